//! What can go wrong, and what to do about it.

/// Why the engine cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver's library is not there.
    #[error("no NVIDIA driver: libcuda was not found; install the driver, or use the reference on the CPU")]
    NoDriver,
    /// There is a driver, but it shows no GPU.
    #[error("no NVIDIA GPU: the driver is there but shows no device ({reason})")]
    NoDevice {
        /// What the driver said.
        reason: String,
    },
    /// There is no GPU of this number.
    #[error("there is no GPU number {wanted}; the driver shows {count}, counted from 0")]
    DeviceNumber {
        /// The number asked for.
        wanted: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU lacks what the kernels are built on.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 9.0 or newer (H100, H200 and later)"
    )]
    TooOld {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        major: i32,
        /// The part after the point.
        minor: i32,
    },
    /// The run-time compiler's library is not there.
    #[error(
        "no NVRTC: libnvrtc was not found, which compiles the kernels; install the CUDA toolkit's \
         'cuda-nvrtc' package, or put its folder into LD_LIBRARY_PATH"
    )]
    NoNvrtc,
    /// The library of matrix products is not there.
    #[error(
        "no cuBLAS: libcublas was not found, which multiplies matrices of prompts; install the CUDA \
         toolkit's 'libcublas' package, or put its folder into LD_LIBRARY_PATH"
    )]
    NoCublas,
    /// The kernels do not compile.
    #[error("NVRTC cannot compile the kernels for {target}:\n{log}")]
    Compile {
        /// The architecture compiled for.
        target: String,
        /// The compiler's messages.
        log: String,
    },
    /// The GPU has too little memory.
    #[error(
        "{name} has {free} MiB free and {needed} MiB are needed ({weights} MiB of weights, {cache} MiB of \
         cache for {context} tokens); ask for a shorter context, or use a more quantised model"
    )]
    Memory {
        /// The GPU's name.
        name: String,
        /// Free, in MiB.
        free: usize,
        /// Needed, in MiB.
        needed: usize,
        /// Of which weights.
        weights: usize,
        /// Of which cache.
        cache: usize,
        /// Tokens that the cache holds.
        context: usize,
    },
    /// The model is none that this engine runs.
    #[error("the CUDA engine cannot run this model: {what}; the reference on the CPU can")]
    Unsupported {
        /// What about the model.
        what: String,
    },
    /// More tokens than the cache holds.
    #[error("{wanted} tokens do not fit into the context of {context}; ask for a longer one when loading")]
    Context {
        /// Tokens asked for.
        wanted: usize,
        /// What there is room for.
        context: usize,
    },
    /// A step without tokens.
    #[error("a step needs at least one token")]
    NoTokens,
    /// A token that the model does not have.
    #[error("token {token} is not one of the model's {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens of the model.
        vocab: usize,
    },
    /// A call of the driver or a library failed.
    #[error("{doing} failed on the GPU: {reason}")]
    Device {
        /// What was being done.
        doing: &'static str,
        /// What the driver or library said.
        reason: String,
    },
    /// The logits allow no choice.
    #[error(transparent)]
    Choice(#[from] crate::sampler::NothingToChoose),
    /// A weight cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] firstdiff_checkpoint::Error),
}
