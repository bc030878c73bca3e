//! Faults of GGUF files.

use crate::Storage;

/// What can be wrong with a GGUF file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// Other first bytes.
    #[error("not a GGUF file: it begins with {found:?}; give a .gguf file or a model folder")]
    NotGguf {
        /// The first bytes.
        found: String,
    },
    /// A big-endian file.
    #[error("a big-endian GGUF file, which is not supported; convert it with gguf_convert_endian.py")]
    BigEndian,
    /// Another version of the container.
    #[error("GGUF version {version}; versions 2 and 3 are supported: convert the model again")]
    Version {
        /// The file's version.
        version: u32,
    },
    /// The file ends early.
    #[error("truncated: {what} needs {needs} bytes at {at}, the file has {size}; download it again")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where.
        at: usize,
        /// Bytes needed.
        needs: usize,
        /// The file's size.
        size: usize,
    },
    /// A count that the file has no room for.
    #[error("{what} says {count}, and {left} bytes are left; the file is damaged: download it again")]
    Count {
        /// What is counted.
        what: String,
        /// The count.
        count: u64,
        /// Bytes left.
        left: usize,
    },
    /// A string longer than the file.
    #[error(
        "{what} is a string of {length} bytes, and {left} are left; the file is damaged: download it again"
    )]
    StringLength {
        /// What the string is.
        what: String,
        /// Its length.
        length: u64,
        /// Bytes left.
        left: usize,
    },
    /// A string that is no text.
    #[error("{what} is not UTF-8; the file is damaged: download it again")]
    NotUtf8 {
        /// What the string is.
        what: String,
    },
    /// An unknown type of value.
    #[error(
        "{key} has value type {number}, which GGUF does not have; the file is damaged: download it again"
    )]
    ValueType {
        /// The metadata key.
        key: String,
        /// The type's number.
        number: u32,
    },
    /// An array of arrays.
    #[error("{key} is an array of arrays, which is not supported; convert the model without it")]
    NestedArray {
        /// The metadata key.
        key: String,
    },
    /// A key that occurs twice.
    #[error("metadata key {key:?} occurs twice; convert the model again")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key that must be there.
    #[error("no metadata key {key}; convert the model again with a current llama.cpp")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value of the wrong type.
    #[error("{key} is {found}, not {wanted}; convert the model again")]
    KeyType {
        /// The key.
        key: String,
        /// The type it must have.
        wanted: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// A value that cannot be handled.
    #[error("{key} is {value}, which is not supported")]
    UnsupportedValue {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A number that differs between layers.
    #[error("{key} differs between layers, which is not supported")]
    PerLayer {
        /// The key.
        key: String,
    },
    /// Keys and values of different size.
    #[error("attention keys have {keys} channels and values {values}, which is not supported")]
    HeadLengths {
        /// Channels of a key.
        keys: u64,
        /// Channels of a value.
        values: u64,
    },
    /// A hidden size that heads do not divide.
    #[error("{hidden} channels are no whole number for {heads} heads; convert the model again")]
    UnevenHeads {
        /// Hidden size.
        hidden: u64,
        /// Heads.
        heads: u64,
    },
    /// An impossible alignment.
    #[error("general.alignment is {alignment}, not a power of two; the file is damaged: download it again")]
    Alignment {
        /// The value.
        alignment: u64,
    },
    /// One part of a split model.
    #[error(
        "part {number} of a model split into {count} files, which is not supported; \
         join them with llama-gguf-split --merge"
    )]
    Split {
        /// Which part, from 1.
        number: u64,
        /// Parts in all.
        count: u64,
    },
    /// Too many axes.
    #[error("tensor {tensor} has {n_dims} axes; at most 4 are possible: download the file again")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// Its axes.
        n_dims: u32,
    },
    /// An axis without elements, or with more than memory can address.
    #[error("tensor {tensor} has an axis of {length}; the file is damaged: download it again")]
    AxisLength {
        /// The tensor.
        tensor: String,
        /// The axis.
        length: u64,
    },
    /// More elements than memory can address.
    #[error(
        "tensor {tensor} has more elements than memory can address; the file is damaged: download it again"
    )]
    TooManyElements {
        /// The tensor.
        tensor: String,
    },
    /// A row that is no whole number of blocks.
    #[error("tensor {tensor}: a row of {row} is no whole number of {} blocks; convert the model again", storage.name())]
    RaggedRow {
        /// The tensor.
        tensor: String,
        /// Its format.
        storage: Storage,
        /// Elements of a row.
        row: usize,
    },
    /// A format that exists and cannot be read.
    #[error(
        "tensor {tensor} is stored as {kind}, which is not supported; \
         quantise the model to another type (Q4_K_M, Q8_0, F16, …)"
    )]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// The format's name.
        kind: &'static str,
    },
    /// A format that does not exist.
    #[error(
        "tensor {tensor} has type {number}, which is unknown; the file is damaged, or newer than this program"
    )]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// The type's number.
        number: u32,
    },
    /// Data at an odd place.
    #[error("tensor {tensor} is at offset {offset}, not a multiple of {alignment}; convert the model again")]
    Unaligned {
        /// The tensor.
        tensor: String,
        /// Its offset from the data's start.
        offset: u64,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// Data after the file's end.
    #[error("truncated: tensor {tensor} needs bytes {from}..{to}, the file has {size}; download it again")]
    PastEnd {
        /// The tensor.
        tensor: String,
        /// First byte.
        from: u64,
        /// One past the last.
        to: u64,
        /// The file's size.
        size: usize,
    },
    /// A name that occurs twice.
    #[error("tensor {tensor} occurs twice; convert the model again")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// Two tensors in one place.
    #[error("tensors {tensor} and {other} share bytes; the file is damaged: download it again")]
    Overlap {
        /// The tensor that begins first.
        tensor: String,
        /// The one that begins in it.
        other: String,
    },
    /// A projection that its heads do not divide.
    #[error(
        "tensor {tensor}: {rows} rows are no heads of even size for {heads} heads, \
         so the converter's row order cannot be undone; convert the model again"
    )]
    Heads {
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// Heads by the metadata.
        heads: u64,
    },
}
