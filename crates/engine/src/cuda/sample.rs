//! The choice of a token on the GPU, by the definition of [`crate::sampler`].

use cudarc::driver::CudaFunction;

use crate::cuda::compile::module;
use crate::cuda::device::{Buffer, Gpu, Shape, doing};
use crate::cuda::{Engine, Error};
use crate::sampler::{NothingToChoose, SampleOptions, Sampler, bits};

/// What `kernels/sample.cu` needs besides itself: NVRTC brings no headers.
const PRELUDE: &str = "typedef unsigned int u32;\ntypedef unsigned long long u64;\n\
                       #define NEG_INF __int_as_float(0xff800000)\n";
const SOURCE: &str = include_str!("../../kernels/sample.cu");
/// Threads of a block: one for each of the kernels' bins.
const THREADS: u32 = 256;
const BLOCKS: u32 = 128;
/// Passes over eight bits of a logit's order each, and one that writes down what they found.
const PASSES: i32 = 5;
/// Bytes of `Tally` in `kernels/sample.cu`.
const TALLY: usize = 16 + 5 * 8 + 16 * 4 + 2 * 4 * 256 * 4 + 4 * 256 * 8 + 256 * 8;

/// `Choice` of `kernels/sample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ChoiceArgs {
    logits: u64,
    row: u64,
    seen: u64,
    tally: u64,
    chosen: u64,
    temperature: f64,
    top_p: f64,
    min_p: f64,
    bits: u64,
    penalty: f32,
    top_k: u32,
}

crate::cuda::device::arguments!(ChoiceArgs);

/// Kernels and buffers of choices, made for the first.
#[derive(Debug)]
pub(super) struct Choosing {
    row: CudaFunction,
    top_k: CudaFunction,
    total: CudaFunction,
    top_p: CudaFunction,
    segments: CudaFunction,
    draw: CudaFunction,
    logits: Buffer,
    tally: Buffer,
    seen: Buffer,
    chosen: Buffer,
}

impl Choosing {
    fn new(gpu: &Gpu, vocab: usize) -> Result<Choosing, Error> {
        let (major, minor) = gpu.device.capability;
        let target = format!("sm_{major}{minor}");
        let options =
            [format!("--gpu-architecture={target}"), "--std=c++17".into(), format!("-DVOCAB={vocab}")];
        let module = module(gpu, &format!("{PRELUDE}{SOURCE}"), &options, &target)?;
        let get = |name| module.load_function(name).map_err(doing("finding a kernel"));
        Ok(Choosing {
            row: get("sample_row")?,
            top_k: get("sample_top_k")?,
            total: get("sample_total")?,
            top_p: get("sample_top_p")?,
            segments: get("sample_segments")?,
            draw: get("sample_draw")?,
            logits: gpu.poisoned(vocab * 4)?,
            tally: gpu.zeros(TALLY)?,
            seen: gpu.zeros(vocab.div_ceil(32) * 4)?,
            chosen: gpu.poisoned(4)?,
        })
    }

    /// Starts the kernels that these options need.
    fn launch(&self, gpu: &Gpu, options: &SampleOptions, args: ChoiceArgs) -> Result<(), Error> {
        let many = Shape::new(BLOCKS, THREADS);
        gpu.fill(self.tally.at, 0, TALLY / 4)?;
        gpu.launch(&self.row, many, &[&args])?;
        if options.temperature > 0.0 {
            for pass in (0..PASSES).take_while(|_| args.top_k > 0) {
                gpu.launch(&self.top_k, many, &[&args, &pass])?;
            }
            if args.top_p < 1.0 {
                gpu.launch(&self.total, many, &[&args])?;
                for pass in 0..PASSES {
                    gpu.launch(&self.top_p, many, &[&args, &pass])?;
                }
            }
            gpu.launch(&self.segments, many, &[&args])?;
        }
        gpu.launch(&self.draw, Shape::new(1, THREADS), &[&args])
    }
}

impl Engine {
    /// Chooses the token after the last step, and takes it into the sampler's sequence: the token that
    /// [`Sampler::choose`] gives for [`Engine::logits`].
    ///
    /// # Errors
    /// When no logit is a number above minus infinity, or the GPU fails.
    pub fn choose(&mut self, sampler: &mut Sampler) -> Result<u32, Error> {
        let vocab = self.plan.vocab;
        let choosing = match self.choosing.take() {
            Some(choosing) => choosing,
            None => Choosing::new(&self.gpu, vocab)?,
        };
        let options = sampler.options();
        let penalised = !sampler.seen().is_empty();
        if penalised {
            let mut words = vec![0u32; vocab.div_ceil(32)];
            for &token in sampler.seen() {
                if let Some(word) = words.get_mut(token as usize / 32).filter(|_| (token as usize) < vocab) {
                    *word |= 1 << (token % 32);
                }
            }
            self.gpu.write(&choosing.seen, &words)?;
        }
        let args = ChoiceArgs {
            logits: self.state.logits.at,
            row: choosing.logits.at,
            seen: if penalised { choosing.seen.at } else { 0 },
            tally: choosing.tally.at,
            chosen: choosing.chosen.at,
            temperature: options.temperature,
            top_p: options.top_p,
            min_p: options.min_p,
            bits: bits(options.seed, sampler.drawn()),
            penalty: options.repetition_penalty as f32,
            top_k: options.top_k.min(vocab as u32),
        };
        choosing.launch(&self.gpu, options, args)?;
        let mut chosen = [u32::MAX];
        self.gpu.read(choosing.chosen.at, &mut chosen)?;
        self.choosing = Some(choosing);
        if chosen[0] as usize >= vocab {
            return Err(NothingToChoose.into());
        }
        sampler.chosen(chosen[0]);
        Ok(chosen[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_kernels() {
        // Five addresses, three doubles, the random bits, and two words.
        assert_eq!(size_of::<ChoiceArgs>(), 5 * 8 + 3 * 8 + 8 + 8);
    }
}
