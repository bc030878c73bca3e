//! What `tokens` compares: a trace, or a file of token ids.

use std::path::{Path, PathBuf};

use firstdiff_trace::Trace;
use serde_json::Value;

use crate::Error;

/// Ids are a few bytes each: a file near this size is something else.
const MAX_BYTES: u64 = 256 << 20;

/// One of the two streams.
#[derive(Debug)]
pub enum Source {
    /// A trace.
    Trace(Box<Trace>),
    /// Token ids alone.
    Ids {
        /// The file.
        path: PathBuf,
        /// The ids, the prompt's first where the file has it.
        ids: Vec<i64>,
        /// How many of them are the prompt, where the file says so.
        prompt: Option<usize>,
        /// Whether the reference generated them (`firstdiff run`).
        reference: bool,
        /// The temperature at which they were drawn, where the file says so.
        temperature: f64,
    },
}

impl Source {
    /// Opens a trace folder; or a file: the JSON of `firstdiff run`, a JSON array of ids, or ids
    /// separated by commas or white space.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn open(path: &Path) -> Result<Source, Error> {
        // What cannot be looked at is left to those who open it: their error says why.
        if matches!(path.try_exists(), Ok(false)) {
            return Err(Error::Missing { file: path.to_path_buf() });
        }
        if !path.is_file() {
            return Ok(Source::Trace(Box::new(Trace::open(path)?)));
        }
        let wrong = |reason: String| Error::Ids { file: path.to_path_buf(), reason };
        let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
        if size > MAX_BYTES {
            return Err(wrong(format!("{size} bytes are more than any list of ids has")));
        }
        let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is not text".into()))?;
        let source = |ids, prompt, reference, temperature| Source::Ids {
            path: path.to_path_buf(),
            ids,
            prompt,
            reference,
            temperature,
        };
        let text = text.trim();
        if text.starts_with(['{', '[']) {
            let value: Value =
                serde_json::from_str(text).map_err(|e| wrong(format!("it is not valid JSON: {e}")))?;
            if value.is_array() {
                return Ok(source(integers(&value, "the array").map_err(wrong)?, None, false, 0.0));
            }
            let (Some(prompt), Some(tokens)) = (value.get("prompt_ids"), value.get("tokens")) else {
                return Err(wrong("its object has no 'prompt_ids' and 'tokens'".into()));
            };
            let mut ids = integers(prompt, "'prompt_ids'").map_err(wrong)?;
            let prompt = ids.len();
            ids.extend(integers(tokens, "'tokens'").map_err(wrong)?);
            let reference = value.get("format").and_then(Value::as_str) == Some("firstdiff.run/1");
            let temperature = value.get("temperature").and_then(Value::as_f64).unwrap_or(0.0);
            return Ok(source(ids, Some(prompt), reference, temperature));
        }
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
        let ids: Result<Vec<i64>, String> = words.map(id).collect();
        Ok(source(ids.map_err(wrong)?, None, false, 0.0))
    }
}

fn id(word: &str) -> Result<i64, String> {
    let parsed = word.parse().ok().filter(|id| (0..=i64::from(u32::MAX)).contains(id));
    parsed.ok_or_else(|| format!("'{}' is no token id", word.chars().take(40).collect::<String>()))
}

fn integers(value: &Value, what: &str) -> Result<Vec<i64>, String> {
    let list = value.as_array().ok_or_else(|| format!("{what} is no array"))?;
    list.iter().map(|v| id(&v.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<(Vec<i64>, Option<usize>), String> {
        let name = format!("firstdiff-ids-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let opened = Source::open(&path);
        std::fs::remove_file(&path).unwrap();
        match opened {
            Ok(Source::Ids { ids, prompt, .. }) => Ok((ids, prompt)),
            Ok(Source::Trace(_)) => Err("a trace".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn ids_are_read_in_every_way_they_are_written() {
        for text in ["1,2,3", "1 2\n3\n", "[1, 2, 3]", "1, 2, 3,\n"] {
            assert_eq!(open(text), Ok((vec![1, 2, 3], None)), "{text}");
        }
        let run = r#"{"format":"firstdiff.run/1","prompt_ids":[1],"tokens":[2,3],"text":"x"}"#;
        assert_eq!(open(run), Ok((vec![1, 2, 3], Some(1))));
        assert_eq!(open(""), Ok((vec![], None)));
    }

    #[test]
    fn a_missing_file_is_called_missing() {
        let error = Source::open(Path::new("/no/such/ids.txt")).unwrap_err().to_string();
        assert_eq!(error, "/no/such/ids.txt: there is no such file or folder");
    }

    #[test]
    fn what_is_no_list_of_ids_is_one_clear_error() {
        for (text, says) in [
            ("1,two", "'two' is no token id"),
            ("1,-2", "'-2' is no token id"),
            ("[1, 2.5]", "'2.5' is no token id"),
            ("[1, \"2\"]", "is no token id"),
            ("99999999999999999999", "is no token id"),
            ("[1,", "not valid JSON"),
            (r#"{"ids":[1]}"#, "no 'prompt_ids' and 'tokens'"),
            (r#"{"prompt_ids":1,"tokens":[]}"#, "'prompt_ids' is no array"),
        ] {
            let error = open(text).unwrap_err();
            assert!(error.contains(says) && error.contains("firstdiff-ids"), "{text}: {error}");
        }
    }
}
