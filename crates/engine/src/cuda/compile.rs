//! Kernels: compiled for this GPU and this model when they are first needed, then kept on disk.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule};
use cudarc::nvrtc::{Ptx, result, sys};

use crate::cuda::Error;
use crate::cuda::device::{Gpu, doing};

const SOURCES: &[&str] = &[
    include_str!("../../kernels/common.cu"),
    include_str!("../../kernels/formats.cu"),
    include_str!("../../kernels/products.cu"),
    include_str!("../../kernels/stream.cu"),
    include_str!("../../kernels/exchange.cu"),
    include_str!("../../kernels/block.cu"),
    include_str!("../../kernels/attention.cu"),
    include_str!("../../kernels/decode.cu"),
    include_str!("../../kernels/prefill.cu"),
    include_str!("../../kernels/flash.cu"),
];

/// Macros that a compilation defines.
pub(super) type Defines = Vec<(&'static str, String)>;

/// The kernels of one model.
#[derive(Debug)]
pub(super) struct Kernels {
    /// With and without taps: what is recorded is written by the same code that runs without.
    pub decode: [CudaFunction; 2],
    pub embed_rows: CudaFunction,
    pub widen: CudaFunction,
    pub unpack: CudaFunction,
    pub norm_rows: CudaFunction,
    pub bias_rows: CudaFunction,
    pub add_rows: CudaFunction,
    pub act_rows: CudaFunction,
    pub rotate_rows: CudaFunction,
    pub cache_tap: CudaFunction,
    pub flash: CudaFunction,
    pub probs_tap: CudaFunction,
}

impl Kernels {
    pub fn load(gpu: &Gpu, defines: &Defines) -> Result<Kernels, Error> {
        let (major, minor) = gpu.device.capability;
        let target = format!("sm_{major}{minor}");
        let mut options = vec![format!("--gpu-architecture={target}"), "--std=c++17".into()];
        options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        let source = SOURCES.concat();
        let mut modules = vec![];
        for taps in ["-DTAPS=0", "-DTAPS=1"] {
            let options: Vec<String> = options.iter().cloned().chain([taps.to_string()]).collect();
            modules.push(module(gpu, &source, &options, &target)?);
        }
        let find =
            |module: &Arc<CudaModule>, name| module.load_function(name).map_err(doing("finding a kernel"));
        let get = |name| find(&modules[1], name);
        Ok(Kernels {
            decode: [find(&modules[0], "decode")?, get("decode")?],
            embed_rows: get("embed_rows")?,
            widen: get("widen")?,
            unpack: get("unpack")?,
            norm_rows: get("norm_rows")?,
            bias_rows: get("bias_rows")?,
            add_rows: get("add_rows")?,
            act_rows: get("act_rows")?,
            rotate_rows: get("rotate_rows")?,
            cache_tap: get("cache_tap")?,
            flash: get("flash")?,
            probs_tap: get("probs_tap")?,
        })
    }
}

pub(super) fn module(
    gpu: &Gpu,
    source: &str,
    options: &[String],
    target: &str,
) -> Result<Arc<CudaModule>, Error> {
    let kept = cache_file(source, options);
    if let Some(binary) = kept.as_ref().and_then(|file| std::fs::read(file).ok())
        && let Ok(module) = gpu.context.load_module(Ptx::from_binary(binary))
    {
        return Ok(module);
    }
    let binary = compile(source, options, target)?;
    if let Some(file) = kept {
        keep(&file, &binary);
    }
    gpu.context.load_module(Ptx::from_binary(binary)).map_err(doing("loading the kernels"))
}

/// Where the machine code of this source and these options is kept: in the user's cache folder.
fn cache_file(source: &str, options: &[String]) -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let base = base.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
    // FNV-1a, in 128 bits: a name, not a secret.
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for byte in options.iter().flat_map(|o| o.bytes().chain([0])).chain(source.bytes()) {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    Some(base.join("firstdiff").join("kernels").join(format!("{hash:032x}.cubin")))
}

/// Best effort: without the file the kernels are compiled again next time.
fn keep(file: &std::path::Path, binary: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    let _ = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&temporary, binary))
        .and_then(|()| std::fs::rename(&temporary, file));
}

fn compile(source: &str, options: &[String], target: &str) -> Result<Vec<u8>, Error> {
    // SAFETY: only loads the library to see whether it is there.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoNvrtc);
    }
    let failed = |log: String| Error::Compile { target: target.to_string(), log };
    let source = CString::new(source).map_err(|e| failed(e.to_string()))?;
    let program = result::create_program(&source, Some(c"firstdiff.cu")).map_err(doing("starting NVRTC"))?;
    // SAFETY: the program was created above and is destroyed once, below; nothing uses it later.
    unsafe {
        let compiled = result::compile_program(program, options);
        let log = result::get_program_log(program).unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
        let binary =
            compiled.map_err(|_| failed(String::from_utf8_lossy(&log).into_owned())).and_then(|()| {
                let mut size = 0usize;
                sys::nvrtcGetCUBINSize(program, &mut size)
                    .result()
                    .map_err(doing("reading what NVRTC made"))?;
                let mut binary = vec![0u8; size];
                sys::nvrtcGetCUBIN(program, binary.as_mut_ptr().cast())
                    .result()
                    .map_err(doing("reading what NVRTC made"))?;
                Ok(binary)
            });
        let _ = result::destroy_program(program);
        binary
    }
}
