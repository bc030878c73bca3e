//! Reads one JSON string a line on standard input and writes its token ids as a JSON array a line, by the
//! tokenizer of the model that the first argument names. With `--decode` the lines are arrays of ids and the
//! answers are strings; with `--chat` they are arrays of messages and the answers are the rendered chats. The
//! tests in `tests/python` compare it with llama.cpp and transformers.

use std::io::{BufRead, Write};
use std::path::Path;

use firstdiff_checkpoint::{Checkpoint, Message};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: tokenize MODEL [--decode | --chat | --special] < lines")?;
    let mode = arguments.next();
    let tokenizer = Checkpoint::open(Path::new(&model))?.tokenizer()?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match mode.as_deref() {
            Some("--decode") => json!(tokenizer.decode(&serde_json::from_str::<Vec<u32>>(&line)?, false)?),
            Some("--chat") => {
                let messages: Vec<Value> = serde_json::from_str(&line)?;
                let text = |message: &Value, key: &str| message[key].as_str().unwrap_or_default().to_owned();
                let messages: Vec<Message> = messages
                    .iter()
                    .map(|m| Message { role: text(m, "role"), content: text(m, "content") })
                    .collect();
                json!(tokenizer.render_chat(&messages)?)
            }
            special => json!(tokenizer.encode(&serde_json::from_str::<String>(&line)?, special.is_some())?),
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}
