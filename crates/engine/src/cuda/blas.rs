//! cuBLAS: matrix products of prompts.

use cudarc::cublas::{result, sys};

use crate::cuda::Error;
use crate::cuda::device::{Buffer, Gpu, doing};

/// Scratch that products may use. Fixed, so that the same product always runs the same way.
const WORKSPACE: usize = 32 << 20;

#[derive(Debug)]
pub(super) struct Blas {
    handle: sys::cublasHandle_t,
    _workspace: Buffer,
}

// SAFETY: a handle may be used from any one thread at a time, and `Blas` is used through `&mut Engine` only.
unsafe impl Send for Blas {}

impl Blas {
    pub fn new(gpu: &Gpu) -> Result<Blas, Error> {
        // SAFETY: only loads the library to see whether it is there.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoCublas);
        }
        let workspace = gpu.zeros(WORKSPACE)?;
        let handle = result::create_handle().map_err(doing("starting cuBLAS"))?;
        // SAFETY: the handle was just made; the stream and the workspace live as long as the engine.
        unsafe {
            result::set_stream(handle, gpu.stream.cu_stream().cast()).map_err(doing("starting cuBLAS"))?;
            sys::cublasSetWorkspace_v2(handle, workspace.at as *mut _, WORKSPACE)
                .result()
                .map_err(doing("starting cuBLAS"))?;
            // Partial sums stay in f32: what the declared arithmetic says.
            sys::cublasSetMathMode(
                handle,
                sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION,
            )
            .result()
            .map_err(doing("starting cuBLAS"))?;
        }
        Ok(Blas { handle, _workspace: workspace })
    }

    /// `y[rows, output] = x[rows, input] w[output, input]^T`, all in bf16, sums in f32.
    pub fn product(
        &self,
        x: u64,
        w: u64,
        y: u64,
        rows: usize,
        input: usize,
        output: usize,
    ) -> Result<(), Error> {
        let (one, zero) = (1.0f32, 0.0f32);
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        // SAFETY: the addresses are of buffers with the given extents; the factors outlive the call.
        unsafe {
            result::gemm_ex(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                output as i32,
                rows as i32,
                input as i32,
                std::ptr::from_ref(&one).cast(),
                w as *const _,
                bf16,
                input as i32,
                x as *const _,
                bf16,
                input as i32,
                std::ptr::from_ref(&zero).cast(),
                y as *mut _,
                bf16,
                output as i32,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .map_err(doing("a matrix product"))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. A failure can only mean that the context is gone already.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
