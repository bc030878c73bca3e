//! How fast it is: what docs/CUDA.md reports. Times are of the GPU's own clock.

use cudarc::driver::sys;

use crate::cuda::blas::Blas;
use crate::cuda::compile::Kernels;
use crate::cuda::device::doing;
use crate::cuda::engine::{allow_shared, defines};
use crate::cuda::{Engine, Error, Wanted};

impl Engine {
    /// Milliseconds of each of `batches` runs of `work`.
    fn timed(
        &mut self,
        batches: usize,
        mut work: impl FnMut(&mut Engine) -> Result<(), Error>,
    ) -> Result<Vec<f32>, Error> {
        let mut times = Vec::with_capacity(batches);
        for _ in 0..batches {
            self.gpu.wait()?;
            let start = self.gpu.mark()?;
            work(self)?;
            let end = self.gpu.mark()?;
            self.gpu.wait()?;
            times.push(start.elapsed_ms(&end).map_err(doing("reading a time"))?);
        }
        Ok(times)
    }

    /// Milliseconds a token of decoding from `position` on, for each of `batches` batches of `steps` tokens.
    /// Keys and values before it are whatever the cache holds.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn time_decode(
        &mut self,
        position: usize,
        steps: usize,
        batches: usize,
        wanted: &Wanted,
    ) -> Result<Vec<f32>, Error> {
        let table =
            self.side
                .prepare(&self.gpu, &self.program, &self.plan, wanted, position + steps + 1, |_| true)?;
        let run = |e: &mut Engine| {
            for n in 0..steps {
                let step = e.step_args(if n == 0 { 1 } else { -1 }, position + n, table, 0);
                e.launch(step)?;
            }
            Ok(())
        };
        run(self)?;
        let times = self.timed(batches, run)?;
        Ok(times.into_iter().map(|ms| ms / steps as f32).collect())
    }

    /// Ends the capture and times replays.
    fn replay(&mut self, batches: usize) -> Result<Vec<f32>, Error> {
        let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.gpu.stream.end_capture(flags).map_err(doing("recording a graph"))?;
        let Some(graph) = graph else { return Ok(vec![]) };
        const REPLAYS: usize = 16;
        let run = |_: &mut Engine| {
            for _ in 0..REPLAYS {
                graph.launch().map_err(doing("running a graph"))?;
            }
            Ok(())
        };
        run(self)?;
        Ok(self.timed(batches, run)?.into_iter().map(|ms| ms / REPLAYS as f32).collect())
    }

    /// Decoding with the kernels of prompts and cuBLAS, one row, as a graph: a baseline. Milliseconds a token.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn time_blas_graph(&mut self, position: usize, batches: usize) -> Result<Vec<f32>, Error> {
        self.rewind(0);
        // Buffers are made and tokens copied outside the graph.
        self.layers_of_prompt(&[1], &Wanted::none())?;
        self.gpu.wait()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        let logits = self.gpu.poisoned(self.plan.vocab * 2)?;
        self.gpu.wait()?;
        self.gpu.stream.begin_capture(mode).map_err(doing("recording a graph"))?;
        let recorded = self.record_row(position, logits.at);
        let times = self.replay(batches)?;
        recorded?;
        Ok(times)
    }

    /// Milliseconds of the layers of a prompt.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn time_prefill(&mut self, tokens: &[u32], batches: usize) -> Result<Vec<f32>, Error> {
        self.rewind(0);
        let run = |e: &mut Engine| e.layers_of_prompt(tokens, &Wanted::none()).map(|_| ());
        run(self)?;
        self.timed(batches, run)
    }

    /// Milliseconds of the matrix products of a prompt's layers alone, and the operations they do.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn time_products(&mut self, tokens: &[u32], batches: usize) -> Result<(Vec<f32>, f64), Error> {
        self.layers_of_prompt(tokens, &Wanted::none())?;
        let run = |e: &mut Engine| e.products_of_prompt(tokens.len());
        run(self)?;
        let sizes = self.plan.layers.iter().flat_map(|l| l.linear.iter().map(|l| l.input * l.output));
        let operations = 2.0 * tokens.len() as f64 * sizes.sum::<usize>() as f64;
        Ok((self.timed(batches, run)?, operations))
    }

    /// Bytes a second of copying memory on the GPU, bytes read and written.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn time_copy(&mut self, batches: usize) -> Result<Vec<f64>, Error> {
        const BYTES: usize = 2 << 30;
        let (from, to) = (self.gpu.poisoned(BYTES)?, self.gpu.poisoned(BYTES)?);
        let run = |e: &mut Engine| e.gpu.copy(from.at, to.at, BYTES);
        run(self)?;
        let times = self.timed(batches, run)?;
        Ok(times.into_iter().map(|ms| 2.0 * BYTES as f64 / (f64::from(ms) / 1e3)).collect())
    }

    /// Operations a second of a large bf16 matrix product on random numbers.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn time_matrix(&mut self, batches: usize) -> Result<Vec<f64>, Error> {
        const N: usize = 8192;
        let mut state = 1u32;
        let mut random = || -> Vec<u16> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // A sign, exponents around 1, any fraction.
                ((state >> 16) & 0x80ff | 0x3f00) as u16
            };
            (0..N * N).map(|_| next()).collect()
        };
        let (a, b) = (self.gpu.upload(&random())?, self.gpu.upload(&random())?);
        let c = self.gpu.poisoned(N * N * 2)?;
        let blas = Blas::new(&self.gpu)?;
        let run = |_: &mut Engine| blas.product(a.at, b.at, c.at, N, N, N);
        run(self)?;
        let times = self.timed(batches, run)?;
        Ok(times.into_iter().map(|ms| 2.0 * (N as f64).powi(3) / (f64::from(ms) / 1e3)).collect())
    }

    /// Bytes that decoding one token at `position` must read: weights once, keys and values before it.
    pub fn bytes_per_token(&self, position: usize) -> usize {
        let layers = self.weights.layers.iter().zip(&self.plan.layers);
        let mats = layers.flat_map(|(l, p)| l.mats.iter().zip(&p.linear));
        let weights: usize = mats.map(|(m, p)| m.stride as usize * p.output).sum();
        let head = self.weights.head.stride as usize * self.plan.vocab;
        weights + head + self.plan.layers.len() * 2 * self.plan.kv_dim() * position * 2
    }

    /// The kernel whose barrier counter block 0 sets back while others wait: a bug kept to show what it does.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn break_barrier(&mut self) -> Result<(), Error> {
        let blocks = self.gpu.device.multiprocessors;
        let mut options = defines(&self.plan, self.storing, &self.layout, blocks);
        options.push(("BARRIER_BUG", "1".into()));
        self.kernels = Kernels::load(&self.gpu, &options)?;
        allow_shared(&self.kernels, &self.layout)
    }
}
