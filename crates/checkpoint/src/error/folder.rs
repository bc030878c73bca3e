//! Faults of model folders.

/// What can be wrong with a model folder, or with a path that should be one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderFault {
    /// A weights file alone.
    #[error("one weights file; give the folder that holds it with config.json")]
    WeightsFile,
    /// PyTorch pickles.
    #[error(
        "{file} is a PyTorch pickle, which is not read, as it can run code; save the model as safetensors \
         (AutoModelForCausalLM.from_pretrained(…).save_pretrained(…))"
    )]
    Pickle {
        /// The file.
        file: String,
    },
    /// A GGUF file in a folder.
    #[error("a folder with {file}; give that file itself")]
    GgufInside {
        /// The file.
        file: String,
    },
    /// No configuration.
    #[error("no config.json; take it from the model's source")]
    NoConfig,
    /// A file far larger than such files are.
    #[error("{size} bytes, and at most {most} are read; is this the right file?")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The most that is read.
        most: u64,
    },
    /// Not JSON, or other JSON than expected.
    #[error("{message}; take the file from the model's source")]
    Json {
        /// What is wrong.
        message: String,
    },
    /// No weights.
    #[error("no safetensors file; is the download complete?")]
    NoWeights,
    /// Several weights files, and nothing says which.
    #[error("{count} safetensors files and no model.safetensors.index.json; take it from the model's source")]
    NoIndex {
        /// How many files there are.
        count: usize,
    },
    /// A shard's name that could leave the folder.
    #[error("the index names {name:?}, which is not the plain name of a file in the folder; refused")]
    ShardName {
        /// The name.
        name: String,
    },
    /// A shard that is not there.
    #[error("{shard} is missing, and the index names it; complete the download")]
    MissingShard {
        /// The shard.
        shard: String,
    },
    /// A tensor that its shard does not have.
    #[error("tensor {tensor} is not in {shard}, where the index says it is; download both again")]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A tensor that two shards have.
    #[error("tensor {tensor} is in both {first} and {second}; save the model again")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// A malformed safetensors file.
    #[error("not a valid safetensors file ({message}); download it again")]
    Header {
        /// What the reader said.
        message: String,
    },
    /// An element type that cannot be read.
    #[error(
        "tensor {tensor} has element type {dtype}, which is not supported; save the model as BF16, F16 or F32"
    )]
    DType {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
}
