//! The documents, kept true: generated blocks, real output, commands and links that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use firstdiff_checkpoint::{Checkpoint, Storage};
use firstdiff_compare::{CheckOptions, check_with_evidence};
use firstdiff_model::{FAMILIES, Model};
use firstdiff_trace::Trace;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every Markdown file that users read, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let in_folder = |folder: &str| {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "md"))
    };
    let mut paths: Vec<PathBuf> = in_folder("").chain(in_folder("docs")).collect();
    paths.sort();
    paths.into_iter().map(|p| (p.clone(), read(&p))).collect()
}

/// The text between two lines that hold exactly these markers.
fn between<'t>(text: &'t str, begin: &str, end: &str) -> &'t str {
    let (_, rest) = text.split_once(&format!("{begin}\n")).unwrap_or_else(|| panic!("no line '{begin}'"));
    rest.split_once(&format!("{end}\n")).unwrap_or_else(|| panic!("no line '{end}'")).0
}

/// Names of the source files in a folder, without extension.
fn stems(folder: &str, extension: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|e| e.unwrap().path());
    let files = entries.filter(|p| p.extension().is_some_and(|e| e == extension));
    files.map(|p| p.file_stem().unwrap().to_str().unwrap().to_string()).collect()
}

/// The quoted strings on the line that defines `list` in a source file.
fn list(file: &str, list: &str) -> Vec<String> {
    let text = read(file);
    let line = text.lines().find(|l| l.contains(list) && l.contains(" = "));
    let line = line.unwrap_or_else(|| panic!("{file} defines no {list}"));
    line.split('"').skip(1).step_by(2).map(str::to_string).collect()
}

/// Code: the contents of fenced blocks in these languages, and of inline code spans.
fn code(text: &str, languages: &[&str]) -> (Vec<String>, Vec<String>) {
    let (mut blocks, mut spans) = (vec![], vec![]);
    let mut fence: Option<String> = None;
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            match fence.take() {
                Some(_) => {}
                None => {
                    fence = Some(language.to_string());
                    if languages.contains(&language) {
                        blocks.push(String::new());
                    }
                }
            }
        } else if let Some(language) = &fence {
            if languages.contains(&language.as_str()) {
                blocks.last_mut().unwrap().push_str(&format!("{line}\n"));
            }
        } else {
            spans.extend(line.split('`').skip(1).step_by(2).map(str::to_string));
        }
    }
    (blocks, spans)
}

/// The word after each `prefix` at the start of a command.
fn commands(text: &str, prefix: &str) -> BTreeSet<String> {
    let (blocks, spans) = code(text, &["console", "sh", "yaml"]);
    let lines = blocks.iter().flat_map(|b| b.lines()).chain(spans.iter().map(String::as_str));
    let starts = lines.filter_map(|l| {
        let l = l.trim_start().trim_start_matches("$ ").trim_start_matches("run: ");
        l.trim_start_matches("./target/release/").strip_prefix(prefix)
    });
    let word = |rest: &str| rest.split(|c: char| !c.is_ascii_alphanumeric()).next().map(str::to_string);
    starts.filter_map(word).filter(|w| !w.is_empty()).collect()
}

fn supported() -> String {
    let recorders = "recorders/python/src/firstdiff";
    let gguf = list("crates/checkpoint/src/gguf/names.rs", "ARCHITECTURES");
    let transformers = list(&format!("{recorders}/transformers.py"), "FAMILIES");
    let llama_cpp = list(&format!("{recorders}/llama_cpp.py"), "ARCHITECTURES");
    // GGUF files spell some families otherwise.
    let spelled = list("crates/checkpoint/src/gguf/config.rs", "const MODEL_TYPES");
    let mut out = String::from(
        "| family | models | safetensors folder | GGUF file | `firstdiff.transformers` | `firstdiff.llama_cpp` |\n\
         |---|---|---|---|---|---|\n",
    );
    for family in FAMILIES {
        let own = |name: &String| {
            name == family.name || spelled.chunks(2).any(|pair| pair[0] == *name && pair[1] == family.name)
        };
        let yes = |names: &[String]| if names.iter().any(own) { "yes" } else { "no" };
        let row = [family.members, "yes", yes(&gguf), yes(&transformers), yes(&llama_cpp)].join(" | ");
        out += &format!("| `{}` | {row} |\n", family.name);
    }
    let names = |keep: fn(Storage) -> bool| {
        Storage::all().filter(|s| keep(*s)).map(Storage::name).collect::<Vec<_>>().join(" ")
    };
    out += &format!("\nWeights in safetensors: {}.\n", names(Storage::is_float));
    out += &format!("Weights in GGUF: F64 F32 F16 BF16, and {}.\n", names(Storage::is_ggml_block));
    out += &format!("Quantised weights in safetensors: {}.\n", names(Storage::has_scales));
    out
}

#[test]
fn the_table_of_what_is_supported_is_up_to_date() {
    let readme = read("README.md");
    let block = between(&readme, "<!-- supported: begin -->", "<!-- supported: end -->");
    let expected = supported();
    assert!(block == expected, "paste this between the markers in README.md:\n\n{expected}");
}

#[test]
fn the_output_shown_first_is_what_the_demo_prints() {
    let demo = root().join("crates/cli/demo");
    let trace = Trace::open(&demo.join("trace")).unwrap();
    let model = Model::new(Checkpoint::open(&demo.join("model")).unwrap()).unwrap();
    let options = CheckOptions::default();
    let (mut result, evidence) = check_with_evidence(&trace, &model, &options).unwrap();
    let options = firstdiff_diagnose::Options {
        memory: 0,
        lanes: options.lanes,
        listed: 5,
        budget: 10 * firstdiff_reference::PER_SECOND,
    };
    firstdiff_diagnose::diagnose(&mut result, &evidence, options).unwrap();
    let result = firstdiff_report::check_text(&result);
    let expected: String = result.lines().take(14).map(|l| format!("{l}\n")).collect();
    let readme = read("README.md");
    let shown = between(&readme, "```text", "```");
    assert!(shown == expected, "the first block of README.md should be:\n\n{expected}");
}

#[test]
fn commands_in_the_documents_exist_and_the_readme_names_each() {
    let mut subcommands = stems("crates/cli/src/cmd", "rs");
    subcommands.remove("mod");
    for (path, text) in documents() {
        for word in commands(&text, "firstdiff ") {
            assert!(subcommands.contains(&word), "{}: there is no 'firstdiff {word}'", path.display());
        }
        let developing = stems("crates/dev/src", "rs");
        for word in commands(&text, "cargo dev ") {
            assert!(developing.contains(&word), "{}: there is no 'cargo dev {word}'", path.display());
        }
    }
    assert_eq!(commands(&read("README.md"), "firstdiff "), subcommands);
}

#[test]
fn the_two_commands_of_the_readme_stand_there() {
    let (blocks, _) = code(&read("README.md"), &["console"]);
    let lines: BTreeSet<&str> = blocks.iter().flat_map(|b| b.lines()).collect();
    for command in ["cargo run --release -- demo", "cargo dev test"] {
        assert!(lines.contains(command), "README.md has no line '{command}'");
    }
}

#[test]
fn python_modules_and_json_in_the_documents_exist_and_parse() {
    let modules = stems("recorders/python/src/firstdiff", "py");
    let mut imports = 0;
    for (path, text) in documents() {
        for line in code(&text, &["python"]).0.iter().flat_map(|b| b.lines()) {
            if let Some(module) = line.trim().strip_prefix("import firstdiff.") {
                imports += 1;
                assert!(modules.contains(module.trim()), "{}: no module {module}", path.display());
            }
        }
        for block in code(&text, &["json"]).0 {
            let parsed = serde_json::from_str::<serde_json::Value>(&block);
            assert!(parsed.is_ok(), "{}: {} in\n{block}", path.display(), parsed.unwrap_err());
        }
    }
    assert!(imports > 0, "no document imports a recorder");
}

#[test]
fn links_to_files_lead_somewhere() {
    let mut links = 0;
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let target = target.0.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let file = path.parent().unwrap().join(target);
            assert!(file.exists(), "{}: the link to {target} leads nowhere", path.display());
        }
    }
    assert!(links > 0, "no document links to another");
}
