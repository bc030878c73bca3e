//! `cargo dev bench diff`: throughput of comparing two traces on disk.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use super::median;
use crate::{python, workspace};

#[derive(Args)]
pub struct Sizes {
    /// Size of each trace as f32, in GB; bf16 takes half of it
    #[arg(long, default_value_t = 2.0)]
    gigabytes: f64,
    /// Instead: the peak memory for a pair of traces of this many GB each, as sparse files
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
}

const ROWS: usize = 512;
const WIDTH: usize = 4096;
/// Taps of one step file.
const TAPS: usize = 32;

#[derive(Clone, Copy, PartialEq)]
enum Format {
    F32,
    Bf16,
}

pub fn run(c: &Sizes, rounds: usize) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let folder = tempfile::tempdir_in(workspace::cache()?)?;
    let path = |name: &str| folder.path().join(name);
    if let Some(gigabytes) = c.memory {
        for name in ["a", "b"] {
            write(&path(name), Format::F32, gigabytes, None)?;
        }
        let (seconds, peak) = ours(&path("a"), &path("b"), None)?;
        println!(
            "diff of two traces of {gigabytes} GB each: {seconds:.1} s, peak resident memory {peak:.1} MiB"
        );
        return Ok(());
    }
    for (name, format, noise) in
        [("a32", Format::F32, 0), ("b32", Format::F32, 1), ("a16", Format::Bf16, 0), ("b16", Format::Bf16, 1)]
    {
        write(&path(name), format, c.gigabytes, Some(noise))?;
    }
    println!("GB/s: bytes of both traces / (wall time x threads); page-cached; medians of {rounds} rounds");
    println!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "", "1 thread", "2 threads", "numpy", "ratio", "peak memory"
    );
    let interpreter = python::interpreter()?;
    for (what, a, b) in
        [("f32 + f32", "a32", "b32"), ("f32 + bf16", "a32", "b16"), ("bf16 + bf16", "a16", "b16")]
    {
        let bytes = (size(&path(a))? + size(&path(b))?) as f64 / 1e9;
        let (mut times, mut ratios, mut peaks) = ([vec![], vec![], vec![]], vec![], vec![]);
        for round in 0..=rounds {
            let (one, peak) = ours(&path(a), &path(b), Some(1))?;
            let (two, more) = ours(&path(a), &path(b), Some(2))?;
            let theirs = numpy(&interpreter, &path(a), &path(b))?;
            // The first round brings the files into the page cache.
            if round > 0 {
                times.iter_mut().zip([one, two, theirs]).for_each(|(t, x)| t.push(x));
                ratios.push(theirs / one);
                peaks.push(peak.max(more));
            }
        }
        let speed = |i: usize, threads: f64| bytes / median(&times[i]) / threads;
        println!(
            "{what:<14} {:>9.2} {:>9.2} {:>9.2} {:>9.1} {:>8.1} MiB",
            speed(0, 1.0),
            speed(1, 2.0),
            speed(2, 1.0),
            median(&ratios),
            median(&peaks)
        );
    }
    Ok(())
}

fn size(trace: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(trace)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// Seconds, and peak resident memory in MiB as the system accounts for it.
fn ours(a: &Path, b: &Path, threads: Option<usize>) -> Result<(f64, f64)> {
    let mut command = Command::new(workspace::target().join("release/firstdiff"));
    command.arg("diff").arg(a).arg(b).args(["--format", "json"]).stdout(Stdio::null());
    command.args(threads.iter().flat_map(|n| ["--threads".to_string(), n.to_string()]));
    let start = Instant::now();
    let mut child = command.spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0f64;
    let status_code = loop {
        if let Some(code) = child.try_wait()? {
            break code;
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0.0));
        std::thread::sleep(Duration::from_millis(2));
    };
    ensure!(status_code.code().is_some_and(|code| code < 2), "firstdiff diff failed");
    Ok((start.elapsed().as_secs_f64(), peak / 1024.0))
}

fn numpy(python: &Path, a: &Path, b: &Path) -> Result<f64> {
    let script = workspace::root().join("crates/dev/python/diff_numpy.py");
    let mut command = Command::new(python);
    // One core, as a script has.
    for variable in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(variable, "1");
    }
    let output = command.arg(script).arg(a).arg(b).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "diff_numpy.py failed");
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// Writes a trace of about as many GB. `noise`: values that differ slightly from those of another
/// number; without it nothing is written, which leaves holes in the files that read as zeros.
fn write(trace: &Path, format: Format, gigabytes: f64, noise: Option<u32>) -> Result<()> {
    std::fs::create_dir_all(trace)?;
    let (name, bytes) = if format == Format::F32 { ("F32", 4) } else { ("BF16", 2) };
    let about = json!({
        "format": "firstdiff.trace/1",
        "producer": {"name": "bench", "version": name},
        "arithmetic": {"activations": if format == Format::F32 { "f32" } else { "bf16" }},
        "environment": {"run": noise},
    });
    std::fs::write(trace.join("trace.json"), about.to_string())?;
    let tap = ROWS * WIDTH * bytes;
    let steps = (gigabytes * 1e9 / (ROWS * WIDTH * 4 * TAPS) as f64).ceil().max(1.0) as usize;
    for step in 0..steps {
        let mut header = serde_json::Map::new();
        let ids = ROWS * 8;
        header.insert("token_ids".into(), json!({"dtype": "I64", "shape": [ROWS], "data_offsets": [0, ids]}));
        for layer in 0..TAPS {
            let start = ids + layer * tap;
            header.insert(
                format!("layers.{layer}.out"),
                json!({"dtype": name, "shape": [ROWS, WIDTH], "data_offsets": [start, start + tap]}),
            );
        }
        let mut text = serde_json::to_string(&header)?.into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(File::create(trace.join(format!("step-{step:06}.safetensors")))?);
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&text)?;
        let Some(noise) = noise else {
            file.flush()?;
            file.into_inner()?.set_len((8 + text.len() + ids + TAPS * tap) as u64)?;
            continue;
        };
        file.write_all(&vec![0; ids])?;
        let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ step as u64;
        for _ in 0..TAPS * ROWS * WIDTH {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let x = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            // A few units in the last place of f32, and one in some of the last places of bf16.
            let x = x + noise as f32 * x * 1e-6 * ((state >> 20) & 3) as f32;
            match format {
                Format::F32 => file.write_all(&x.to_le_bytes())?,
                Format::Bf16 => {
                    let odd = noise * u32::from(state & 0x7000_0000 == 0);
                    file.write_all(&(((x.to_bits() >> 16) + odd) as u16).to_le_bytes())?;
                }
            }
        }
        file.flush()?;
    }
    Ok(())
}
