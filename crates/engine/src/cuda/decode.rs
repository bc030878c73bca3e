//! One token: the persistent kernel, and the table of taps that it writes.

use firstdiff_model::{Program, Value, extents};
use firstdiff_tensor::DType;

use crate::cuda::device::{Buffer, Gpu, Kind, Shape};
use crate::cuda::plan::{LAYER_TAPS, Plan};
use crate::cuda::weights::{Mat, Storing};
use crate::cuda::{Error, Tap, Wanted};

/// Warps of a block that compute.
pub(super) const WARPS: usize = 8;
/// Rows of weights in a slot, as `kernels/products.cu` has them.
const ROWS: usize = 2;
/// Bytes that a slot has at least, for keys or values, as `kernels/stream.cu` has them.
const KEY_BYTES: usize = 2048;
/// Warps of a block that fill the rings.
pub(super) const FEEDERS: usize = 4;
/// Phases of a layer.
pub(super) const PHASES: i32 = 5;

/// `Step` of `kernels/stream.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct StepArgs {
    pub layers: u64,
    pub embed: Mat,
    pub head: Mat,
    pub final_norm: u64,
    pub rope: u64,
    pub cache: u64,
    pub row: u64,
    pub middle: u64,
    pub out: u64,
    pub qkv: u64,
    pub heads: u64,
    pub act: u64,
    pub partial: u64,
    pub logits: u64,
    pub arrivals: u64,
    pub best: u64,
    pub state: u64,
    pub chosen: u64,
    pub taps: u64,
    pub barrier: u64,
    pub round: u32,
    pub context: i32,
    pub token: i32,
    pub position: i32,
    pub first: i32,
    pub unused: u32,
}

crate::cuda::device::arguments!(StepArgs);

/// Shared memory of the decode kernel, as `carve` in `kernels/block.cu` lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of a slot.
    pub slot: usize,
    /// Slots of every warp.
    pub slots: usize,
    pub x_bytes: usize,
    pub own_bytes: usize,
    pub sum_bytes: usize,
    pub total: usize,
}

/// Rows of a block, at most: rows are handed out in pairs, those of the output matrix one by one.
fn owned(rows: usize, blocks: usize) -> usize {
    2 * (rows / 2).div_ceil(blocks) + 1
}

impl Layout {
    /// As many slots as `room` bytes allow, at most `most`.
    pub fn new(
        plan: &Plan,
        storing: Storing,
        blocks: usize,
        room: usize,
        most: usize,
    ) -> Result<Layout, Error> {
        let widest = plan.hidden.max(plan.q_dim()).max(plan.ffn);
        let x_bytes = (widest * 2).next_multiple_of(16);
        let own_bytes = (owned(plan.hidden, blocks) * 2).next_multiple_of(16);
        let tasks = |rows: usize, width: usize| owned(rows, blocks) * width.div_ceil(storing.segment);
        let tasks = [
            tasks(plan.q_dim() + 2 * plan.kv_dim(), plan.hidden),
            tasks(plan.hidden, plan.q_dim()),
            2 * tasks(plan.ffn, plan.hidden),
            tasks(plan.hidden, plan.ffn),
            tasks(plan.vocab, plan.hidden),
            WARPS * plan.head_dim,
        ];
        let sum_bytes = (tasks.into_iter().max().unwrap_or(0) * 4).next_multiple_of(16);
        let rest = plan.layers.len() * size_of::<crate::cuda::weights::Layer>()
            + x_bytes
            + own_bytes
            + sum_bytes
            + 3 * plan.head_dim * 2
            + (32 + 2 * WARPS) * 4;
        // The kernel's own variables of this kind take a little as well.
        let slot = (ROWS * storing.segment_bytes()).max(KEY_BYTES);
        let fits = room.saturating_sub(rest + 4096) / (WARPS * (slot + 16));
        let slots = fits.min(most);
        if slots < 2 {
            let what = format!("its vectors leave no room in the GPU's {room} bytes of shared memory");
            return Err(Error::Unsupported { what });
        }
        let total = rest + slots * WARPS * (slot + 16);
        Ok(Layout { slot, slots, x_bytes, own_bytes, sum_bytes, total })
    }

    pub fn shape(&self, blocks: usize) -> Shape {
        let threads = (WARPS + FEEDERS) * 32;
        Shape {
            grid: (blocks as u32, 1),
            block: threads as u32,
            shared: self.total as u32,
            kind: Kind::Cooperative,
        }
    }
}

/// The side buffer for one step's taps: where each wanted value goes.
#[derive(Debug, Default)]
pub(super) struct SideBuffer {
    memory: Option<Buffer>,
    table: Option<Buffer>,
    /// Operation, offset, bytes; in the program's order.
    values: Vec<(usize, usize, usize)>,
    bytes: usize,
}

/// Bytes of an element: scores, probabilities and logits are held in f32.
fn dtype(tap: &str) -> DType {
    match tap.rsplit('.').next() {
        Some("attn_scores" | "attn_probs" | "logits") => DType::F32,
        _ => DType::BF16,
    }
}

impl SideBuffer {
    /// Lays the wanted values out and gives the address of the table; 0 when nothing is wanted.
    pub fn prepare(
        &mut self,
        gpu: &Gpu,
        program: &Program,
        plan: &Plan,
        wanted: &Wanted,
        keys: usize,
        only: impl Fn(&str) -> bool,
    ) -> Result<u64, Error> {
        self.values.clear();
        self.bytes = 0;
        // Probabilities are made from the scores.
        let needed = |op: usize| {
            wanted.has(op)
                || program.ops[op].tap.ends_with(".attn_scores")
                    && program.ops.get(op + 1).is_some_and(|_| wanted.has(op + 1))
        };
        for (op, entry) in program.ops.iter().enumerate() {
            if needed(op) && only(&entry.tap) {
                let elements: usize = extents(&entry.axes, 1, keys).iter().product();
                let bytes = elements * dtype(&entry.tap).size();
                self.values.push((op, self.bytes, bytes));
                self.bytes += bytes.next_multiple_of(16);
            }
        }
        if self.values.is_empty() {
            return Ok(0);
        }
        if self.memory.as_ref().is_none_or(|m| m.bytes < self.bytes) {
            self.memory = None;
            self.memory = Some(gpu.poisoned(self.bytes * 5 / 4)?);
        }
        let mut table = vec![0u64; plan.tap_places()];
        let base = self.memory.as_ref().map_or(0, |m| m.at);
        for (op, offset, bytes) in &self.values {
            let place = plan.places.get(*op).copied().unwrap_or(0);
            table[place] = base + *offset as u64;
            // Keys outside a window are never read: their scores are those of masked ones.
            let layer = plan.layers.get(place / LAYER_TAPS.len());
            if layer.is_some_and(|l| l.window.is_some())
                && LAYER_TAPS[place % LAYER_TAPS.len()] == "attn_scores"
            {
                gpu.fill(base + *offset as u64, 0xff80_0000, bytes / 4)?;
            }
        }
        if self.table.is_none() {
            self.table = Some(gpu.zeros(plan.tap_places() * 8)?);
        }
        let Some(buffer) = &self.table else { return Ok(0) };
        gpu.write(buffer, &table)?;
        Ok(buffer.at)
    }

    /// Where a value of the running step goes.
    pub fn address(&self, op: usize) -> Option<u64> {
        let (_, offset, _) = self.values.iter().find(|v| v.0 == op)?;
        Some(self.memory.as_ref()?.at + *offset as u64)
    }

    /// Reads the values back.
    pub fn collect(
        &self,
        gpu: &Gpu,
        program: &Program,
        wanted: &Wanted,
        keys: usize,
    ) -> Result<Vec<Tap>, Error> {
        let Some(memory) = &self.memory else { return Ok(vec![]) };
        let mut all = vec![0u8; self.bytes];
        gpu.read(memory.at, &mut all)?;
        let values = self.values.iter().filter(|v| wanted.has(v.0));
        let tap = |(op, offset, bytes): &(usize, usize, usize)| {
            let entry = program.op(Value(*op));
            Tap {
                name: entry.tap.clone(),
                shape: extents(&entry.axes, 1, keys),
                dtype: dtype(&entry.tap),
                bytes: all[*offset..*offset + *bytes].to_vec(),
            }
        };
        Ok(values.map(tap).collect())
    }
}
