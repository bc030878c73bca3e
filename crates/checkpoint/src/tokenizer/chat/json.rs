//! JSON as Python's `json.dumps(…, ensure_ascii=False)` spaces it.

use std::io::{self, Write};

use minijinja::{ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// One line, with a space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `value` on one line, or indented by that many spaces.
pub(super) fn write(value: &Value, indent: Option<usize>) -> Result<Value, minijinja::Error> {
    let mut out = Vec::new();
    let spaces = " ".repeat(indent.unwrap_or(0).min(16));
    let result = match indent {
        Some(_) => {
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine)),
    };
    let failed = |message: String| minijinja::Error::new(ErrorKind::BadSerialization, message);
    result.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(out).map(Value::from_safe_string).map_err(|error| failed(error.to_string()))
}
