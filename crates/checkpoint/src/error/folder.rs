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
    /// A quantisation that is not read.
    #[error("quantised with {what} {found:?}, which is not supported; supported are {supported}")]
    Quantisation {
        /// The setting.
        what: &'static str,
        /// Its value.
        found: String,
        /// What is read.
        supported: &'static str,
    },
    /// A tensor that makes quantised weights mean something else.
    #[error(
        "tensor {tensor} changes what the quantised weights beside it mean, which is not supported; \
         use a model quantised without it, or the unquantised one"
    )]
    QuantisedWith {
        /// The tensor.
        tensor: String,
    },
    /// A quantised weight without scales.
    #[error("tensor {tensor} is {storage}, and its scales {names} are missing; is the download complete?")]
    NoScales {
        /// The weight.
        tensor: String,
        /// Its format.
        storage: &'static str,
        /// The names that they may have.
        names: String,
    },
    /// Scales of a type that no supported format has.
    #[error(
        "tensor {tensor} is {storage} with scales {scale} of type {found}, which no supported format has \
         (FP8, MXFP4 and NVFP4 are); use another quantisation of the model"
    )]
    ScaleType {
        /// The weight.
        tensor: String,
        /// Its type.
        storage: &'static str,
        /// The scales.
        scale: String,
        /// Their type.
        found: &'static str,
    },
    /// Scales of a shape that does not fit their weight.
    #[error(
        "tensor {tensor} has shape {shape:?} and its scales {scale} have {found:?}, not {expected}; \
         weight and configuration are of different models, or the file is damaged"
    )]
    ScaleShape {
        /// The weight.
        tensor: String,
        /// Its shape, unpacked.
        shape: Vec<usize>,
        /// The scales.
        scale: String,
        /// Their shape.
        found: Vec<usize>,
        /// The shape that they should have.
        expected: String,
    },
    /// A packed weight that holds no whole blocks.
    #[error(
        "tensor {tensor} has shape {shape:?}, which is no whole number of {format} blocks; download it again"
    )]
    PackedShape {
        /// The weight.
        tensor: String,
        /// Its shape, packed.
        shape: Vec<usize>,
        /// The format.
        format: &'static str,
    },
}
