//! The metadata table: keys and typed values.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::Cursor;
use crate::GgufFault;

/// The type of a value, by its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned 8 bits.
    U8,
    /// Signed 8 bits.
    I8,
    /// Unsigned 16 bits.
    U16,
    /// Signed 16 bits.
    I16,
    /// Unsigned 32 bits.
    U32,
    /// Signed 32 bits.
    I32,
    /// IEEE 754 binary32.
    F32,
    /// One byte.
    Bool,
    /// A length and bytes.
    String,
    /// Values of one type.
    Array,
    /// Unsigned 64 bits.
    U64,
    /// Signed 64 bits.
    I64,
    /// IEEE 754 binary64.
    F64,
}

/// By number: the type, its name, its size in bytes (the least size, for strings and arrays).
const KINDS: &[(Kind, &str, usize)] = &[
    (Kind::U8, "u8", 1),
    (Kind::I8, "i8", 1),
    (Kind::U16, "u16", 2),
    (Kind::I16, "i16", 2),
    (Kind::U32, "u32", 4),
    (Kind::I32, "i32", 4),
    (Kind::F32, "f32", 4),
    (Kind::Bool, "bool", 1),
    (Kind::String, "string", 8),
    (Kind::Array, "array", 12),
    (Kind::U64, "u64", 8),
    (Kind::I64, "i64", 8),
    (Kind::F64, "f64", 8),
];

impl Kind {
    fn from_number(number: u32) -> Option<Kind> {
        KINDS.get(usize::try_from(number).ok()?).map(|row| row.0)
    }

    /// The type's name in messages.
    pub fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    fn size(self) -> usize {
        KINDS[self as usize].2
    }
}

/// A value of the table. Arrays stay in the file: a vocabulary is large and seldom needed.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either float type.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Where an array's elements lie in the file.
    Array {
        /// The elements' type.
        kind: Kind,
        /// How many there are.
        count: usize,
        /// Their bytes' position in the file.
        bytes: Range<usize>,
    },
}

impl Value {
    fn kind_name(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "an unsigned integer",
            Value::Signed(_) => "a signed integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a bool",
            Value::String(_) => "a string",
            Value::Array { .. } => "an array",
        }
    }

    fn unsigned(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(n) => Some(n),
            Value::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// Reads a value of type `kind`, checking all of it.
    pub(super) fn read(cursor: &mut Cursor, kind: Kind, key: &str) -> Result<Value, GgufFault> {
        match kind {
            Kind::String => Ok(Value::String(cursor.string(key)?.to_owned())),
            Kind::Array => read_array(cursor, key),
            _ => Ok(scalar(kind, cursor.take(kind.size(), key)?)),
        }
    }

    /// Reads the type's number.
    pub(super) fn read_kind(cursor: &mut Cursor, key: &str) -> Result<Kind, GgufFault> {
        let number = cursor.u32(key)?;
        Kind::from_number(number).ok_or_else(|| GgufFault::ValueType { key: key.to_owned(), number })
    }
}

/// A scalar from exactly its bytes.
fn scalar(kind: Kind, bytes: &[u8]) -> Value {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    match kind {
        Kind::I8 => Value::Signed(i64::from(bits as i8)),
        Kind::I16 => Value::Signed(i64::from(bits as i16)),
        Kind::I32 => Value::Signed(i64::from(bits as i32)),
        Kind::I64 => Value::Signed(bits as i64),
        Kind::F32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
        Kind::F64 => Value::Float(f64::from_bits(bits)),
        Kind::Bool => Value::Bool(bits != 0),
        _ => Value::Unsigned(bits),
    }
}

fn read_array(cursor: &mut Cursor, key: &str) -> Result<Value, GgufFault> {
    let kind = Value::read_kind(cursor, key)?;
    if kind == Kind::Array {
        return Err(GgufFault::NestedArray { key: key.to_owned() });
    }
    let count = cursor.count(kind.size(), key)?;
    let start = cursor.position();
    if kind == Kind::String {
        for _ in 0..count {
            cursor.string_bytes(key)?;
        }
    } else {
        // `count` has checked that this many fit, so the product cannot overflow.
        cursor.take(count * kind.size(), key)?;
    }
    Ok(Value::Array { kind, count, bytes: start..cursor.position() })
}

/// The metadata of a file.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn insert(&mut self, key: &str, value: Value) -> Result<(), GgufFault> {
        if self.entries.insert(key.to_owned(), value).is_some() {
            return Err(GgufFault::DuplicateKey { key: key.to_owned() });
        }
        Ok(())
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    fn typed<'m, T>(
        &'m self,
        key: &str,
        wanted: &'static str,
        as_type: impl Fn(&'m Value) -> Option<T>,
    ) -> Result<Option<T>, GgufFault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        as_type(value).map(Some).ok_or_else(|| GgufFault::KeyType {
            key: key.to_owned(),
            wanted,
            found: value.kind_name(),
        })
    }

    /// A non-negative integer of any width.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufFault> {
        self.typed(key, "a non-negative integer", Value::unsigned)
    }

    /// A float, or an integer where a float was meant.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufFault> {
        self.typed(key, "a float", |value| match *value {
            Value::Float(x) => Some(x),
            Value::Unsigned(n) => Some(n as f64),
            Value::Signed(n) => Some(n as f64),
            _ => None,
        })
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufFault> {
        self.typed(key, "a bool", |value| if let Value::Bool(b) = value { Some(*b) } else { None })
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, GgufFault> {
        self.typed(
            key,
            "a string",
            |value| if let Value::String(s) = value { Some(s.as_str()) } else { None },
        )
    }

    /// A number given once, or once per layer as long as every layer has the same.
    pub fn uniform(&self, file: &[u8], key: &str) -> Result<Option<u64>, GgufFault> {
        let Some(Value::Array { .. }) = self.get(key) else { return self.unsigned(key) };
        let numbers = self.integers(file, key)?.unwrap_or_default();
        let first = numbers.first().copied().and_then(|n| u64::try_from(n).ok());
        if first.is_none() || numbers.iter().any(|n| Some(*n) != numbers.first().copied()) {
            return Err(GgufFault::PerLayer { key: key.to_owned() });
        }
        Ok(first)
    }

    /// The strings of an array, read from the file it was parsed from.
    pub fn strings<'f>(&self, file: &'f [u8], key: &str) -> Result<Option<Vec<&'f str>>, GgufFault> {
        let Some((count, mut cursor)) =
            self.elements(file, key, "an array of strings", |k| k == Kind::String)?
        else {
            return Ok(None);
        };
        let mut out = Vec::with_capacity(count.1);
        for _ in 0..count.1 {
            out.push(cursor.string(key)?);
        }
        Ok(Some(out))
    }

    /// The integers of an array.
    pub fn integers(&self, file: &[u8], key: &str) -> Result<Option<Vec<i64>>, GgufFault> {
        let is_integer = |k| !matches!(k, Kind::String | Kind::F32 | Kind::F64 | Kind::Array);
        let Some(((kind, count), mut cursor)) =
            self.elements(file, key, "an array of integers", is_integer)?
        else {
            return Ok(None);
        };
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            out.push(match scalar(kind, cursor.take(kind.size(), key)?) {
                Value::Signed(n) => n,
                Value::Unsigned(n) => i64::try_from(n).unwrap_or(i64::MAX),
                Value::Bool(b) => i64::from(b),
                _ => 0,
            });
        }
        Ok(Some(out))
    }

    /// The floats of an array.
    pub fn floats(&self, file: &[u8], key: &str) -> Result<Option<Vec<f64>>, GgufFault> {
        let is_float = |k| matches!(k, Kind::F32 | Kind::F64);
        let Some(((kind, count), mut cursor)) = self.elements(file, key, "an array of floats", is_float)?
        else {
            return Ok(None);
        };
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            if let Value::Float(x) = scalar(kind, cursor.take(kind.size(), key)?) {
                out.push(x);
            }
        }
        Ok(Some(out))
    }

    /// An array's type and count, and a cursor over its bytes.
    #[expect(clippy::type_complexity, reason = "a local pair, taken apart at once")]
    fn elements<'f>(
        &self,
        file: &'f [u8],
        key: &str,
        wanted: &'static str,
        fits: impl Fn(Kind) -> bool,
    ) -> Result<Option<((Kind, usize), Cursor<'f>)>, GgufFault> {
        self.typed(key, wanted, |value| match value {
            Value::Array { kind, count, bytes } if fits(*kind) => {
                Some(((*kind, *count), Cursor::new(file.get(bytes.clone())?)))
            }
            _ => None,
        })
    }
}
