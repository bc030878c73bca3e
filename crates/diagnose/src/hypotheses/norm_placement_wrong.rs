//! # A norm in another place of the block
//!
//! Blocks differ in where they normalise: before a branch, after it, or after the addition. The engine has
//! another family's order.
//!
//! ## How it shows
//!
//! One of the other orders gives the engine's values: `h + N(f(h))`, or `N(h + f(h))`.
//!
//! ## Seen in
//!
//! - google/flax#4567
//! - ggml-org/llama.cpp#1925
//!
//! ## Fix
//!
//! Write the block as the family's own code has it, norm by norm.

use firstdiff_model::{OpKind, Program, Value};

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = left_out(scene);
    edits.extend(orders(scene));
    edits
}

/// Norms after attention and after the MLP, in families that have them.
const AFTER: [&str; 2] = ["attn_post_norm", "mlp_post_norm"];

/// Without these norms, both or one.
fn left_out(scene: &Scene) -> Vec<Edit> {
    let here: Vec<&'static str> = AFTER.into_iter().filter(|tap| scene.find_tap(tap).is_some()).collect();
    let without = |taps: Vec<&'static str>, detail: String| {
        Edit::new(detail).output(move |at, inputs, _| {
            let left_out = taps.contains(&at.tap()) && matches!(at.op().kind, OpKind::RmsNorm(_));
            left_out.then(|| inputs.first().map(|x| (*x).clone()))?
        })
    };
    if here.is_empty() {
        return vec![];
    }
    let both = without(AFTER.into(), "the norms after attention and after the MLP are left out".into());
    let one = |tap: &'static str| without(vec![tap], format!("{tap} is left out"));
    std::iter::once(both).chain(here.into_iter().map(one)).collect()
}

fn orders(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::RmsNorm(_) | OpKind::Add(_))).is_none() {
        return vec![];
    }
    // Orders in which an operation reads a later one can only be tried where that one is recorded.
    let Some(block) = found(scene.program()).into_iter().next() else { return vec![] };
    let recorded = |op: usize| scene.recorded(op, scene.step).is_some();
    let mut edits = Vec::new();
    if recorded(block.norm) {
        edits.push(Edit::new("the second norm is applied to attention's output before it is added, and not before the MLP")
            .program(|program| blocks(program, |p, block| {
                p.ops[block.norm].inputs = vec![block.branch];
                read_by(p, block, block.stream);
                replace(p, block.sum, block.branch, Value(block.norm));
            })));
    }
    if block.out.is_some_and(|out| recorded(out.0)) {
        edits.push(Edit::new("the second norm is applied to the MLP's output, and not before the MLP")
            .program(|program| blocks(program, |p, block| {
                let Some(out) = block.out else { return };
                p.ops[block.norm].inputs = vec![out];
                read_by(p, block, block.stream);
                replace(p, block.end, out, Value(block.norm));
            })));
    }
    if recorded(block.sum) && recorded(block.end) && recorded(block.first) {
        edits.push(Edit::new("norms come after the additions, N(h + f(h)), and not before the branches").program(|program| {
            let found: Vec<Block> = found(program);
            for block in &found {
                let first = program.ops[block.first].inputs.clone();
                let readers = |p: &Program, norm: usize| -> Vec<usize> {
                    (0..p.ops.len()).filter(|&i| p.ops[i].inputs.contains(&Value(norm)) && matches!(p.ops[i].kind, OpKind::Linear(_))).collect()
                };
                for i in readers(program, block.first) {
                    program.ops[i].inputs = first.clone();
                }
                for i in readers(program, block.norm) {
                    program.ops[i].inputs = vec![Value(block.first)];
                }
                program.ops[block.first].inputs = vec![Value(block.sum)];
                program.ops[block.norm].inputs = vec![Value(block.end)];
                replace(program, block.end, block.stream, Value(block.first));
            }
        }));
    }
    edits
}

/// The parts of a layer that orders of norms differ in.
struct Block {
    /// The norm before attention.
    first: usize,
    /// Attention's output.
    branch: Value,
    /// Its addition to the residual stream.
    sum: usize,
    stream: Value,
    /// The norm before the MLP.
    norm: usize,
    /// The MLP's output, and its addition.
    out: Option<Value>,
    end: usize,
}

fn found(program: &Program) -> Vec<Block> {
    let place = |layer: usize, name: &str| program.ops.iter().position(|op| op.tap == format!("layers.{layer}.{name}"));
    (0..)
        .map_while(|layer| {
            let sum = place(layer, "attn_resid")?;
            Some(Block {
                first: place(layer, "attn_norm")?,
                branch: Value(place(layer, "attn_out")?),
                sum,
                stream: Value(sum),
                norm: place(layer, "mlp_norm")?,
                out: place(layer, "mlp_out").map(Value),
                end: place(layer, "out")?,
            })
        })
        .collect()
}

fn blocks(program: &mut Program, edit: impl Fn(&mut Program, &Block)) {
    for block in found(program) {
        edit(program, &block);
    }
}

/// What read the second norm reads `value`.
fn read_by(program: &mut Program, block: &Block, value: Value) {
    for op in &mut program.ops {
        if matches!(op.kind, OpKind::Linear(_)) && short(op) != "attn_out" {
            op.inputs.iter_mut().filter(|i| **i == Value(block.norm)).for_each(|i| *i = value);
        }
    }
}

fn replace(program: &mut Program, op: usize, old: Value, new: Value) {
    program.ops[op].inputs.iter_mut().filter(|i| **i == old).for_each(|i| *i = new);
}
