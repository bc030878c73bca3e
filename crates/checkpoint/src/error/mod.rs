//! Everything that can be wrong with a model, and what to do about it.

mod folder;
mod gguf;

pub use folder::FolderFault;
pub use gguf::GgufFault;

use std::path::PathBuf;

/// A model that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at the path.
    #[error("{}: no such file or folder; give a GGUF file, or a folder with config.json and safetensors", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The path looks like a name on the model hub, and nothing of that name is here.
    #[error(
        "{name}: no such folder here; it looks like a name on the model hub, which is not asked: \
         download it (`hf download {name} --local-dir MODEL`) and give the folder"
    )]
    HubName {
        /// The name.
        name: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A GGUF file is malformed, or holds what cannot be read.
    #[error("{}: {fault}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: GgufFault,
    },
    /// A folder is no complete, well-formed model.
    #[error("{}: {fault}", path.display())]
    Folder {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What is wrong with it.
        fault: Box<FolderFault>,
    },
    /// The tokenizer or the chat template cannot be used.
    #[error("{}: {fault}", path.display())]
    Tokenizer {
        /// The file or folder that holds the tokenizer.
        path: PathBuf,
        /// What is wrong with it.
        fault: TokenizerFault,
    },
    /// The configuration names no model family.
    #[error(
        "{}: no model_type, so the model's family is unknown; take config.json from the model's source",
        path.display()
    )]
    NoModelType {
        /// The file that should name it.
        path: PathBuf,
    },
    /// Two tensors would have one name.
    #[error("{}: tensors {first:?} and {second:?} are both {name:?}; convert the model again", path.display())]
    NameClash {
        /// The model.
        path: PathBuf,
        /// The name they would share.
        name: String,
        /// One tensor's name in the file.
        first: String,
        /// The other's.
        second: String,
    },
    /// Rows were asked for that the tensor does not have.
    #[error("{tensor}: rows {from}..{to} of {rows}")]
    Rows {
        /// The tensor.
        tensor: String,
        /// First row asked for.
        from: usize,
        /// One past the last.
        to: usize,
        /// Rows that there are.
        rows: usize,
    },
    /// The output's length is not that of the rows asked for.
    #[error("{tensor}: {wanted} values into room for {given}")]
    OutputLength {
        /// The tensor.
        tensor: String,
        /// Values that the rows hold.
        wanted: usize,
        /// Length of the output.
        given: usize,
    },
    /// A scale of a quantised weight is not a number.
    #[error(
        "{}: tensor {tensor}: the scale of block ({row}, {column}), in {scale}, is NaN; download the file again",
        path.display()
    )]
    NanScale {
        /// The model.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// The scales.
        scale: String,
        /// The row of the block.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// The factor on top of scales is not positive and finite.
    #[error("{}: tensor {tensor}: {scale} is not a positive number; download the file again", path.display())]
    ScaleFactor {
        /// The model.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// The factor's name.
        scale: String,
    },
    /// A tensor of another checkpoint.
    #[error("{tensor}: not a tensor of {}", path.display())]
    ForeignTensor {
        /// The tensor.
        tensor: String,
        /// The checkpoint that was asked.
        path: PathBuf,
    },
}

/// What can be wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerFault {
    /// There is none.
    #[error(
        "no tokenizer.json; take it from the model's source, or save the tokenizer with transformers \
         (AutoTokenizer.from_pretrained(…).save_pretrained(…)); token ids can be given instead of text"
    )]
    NoFile,
    /// The GGUF file has no vocabulary.
    #[error("no {key}, so text cannot be tokenised; give token ids instead of text")]
    NoVocabulary {
        /// The metadata key.
        key: String,
    },
    /// The kind of tokenizer is not supported.
    #[error(
        "tokenizer model {model:?} is not supported (gpt2 and llama are); give token ids instead of text"
    )]
    Model {
        /// The kind.
        model: String,
    },
    /// The way text is split into words is not known.
    #[error("pre-tokenizer {pre:?} is not supported; give token ids instead of text")]
    PreTokenizer {
        /// Its name in the file.
        pre: String,
    },
    /// Two tokens are spelled alike.
    #[error("tokens {first} and {second} are both {token:?}; convert the model again")]
    DuplicateToken {
        /// The spelling.
        token: String,
        /// The first id.
        first: u32,
        /// The second id.
        second: u32,
    },
    /// Lists that go together differ in length.
    #[error("{key} has {found} entries for {tokens} tokens; convert the model again")]
    ListLength {
        /// The list.
        key: String,
        /// Its length.
        found: usize,
        /// The vocabulary's size.
        tokens: usize,
    },
    /// A merge is not two tokens.
    #[error("merge {merge:?} is not two tokens that make a third; convert the model again")]
    Merge {
        /// The merge.
        merge: String,
    },
    /// The metadata are malformed.
    #[error(transparent)]
    Metadata(#[from] GgufFault),
    /// A file of the tokenizer cannot be used.
    #[error("{message}")]
    Invalid {
        /// What the tokenizer library said.
        message: String,
    },
    /// The model has no chat template.
    #[error("the model has no chat template; give the text as it is (--raw)")]
    NoTemplate,
    /// The chat template fails, or rejects the messages.
    #[error("the chat template failed: {message}")]
    Template {
        /// What it said.
        message: String,
    },
}
