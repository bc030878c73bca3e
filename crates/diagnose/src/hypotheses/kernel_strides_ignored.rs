//! # A view read as if it were contiguous
//!
//! A tensor or weight is a view: transposed, sliced, or with an offset. The kernel reads its memory from
//! the start, row after row, as if it were not.
//!
//! ## How it shows
//!
//! The output has about the right size and nothing else right. With a square weight it is the product with
//! the transpose, and no shape check notices.
//!
//! ## Seen in
//!
//! - huggingface/candle#3836
//!
//! ## Fix
//!
//! Copy views into contiguous memory before the kernel, or pass strides and offset.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for &index in &scene.ops {
        let op = &scene.program().ops[index];
        let tap = short(op).to_string();
        match &op.kind {
            OpKind::Linear(_) => {
                if tap == "attn_out" {
                    // A view of heads before tokens is also the order of axes that another kernel wrote.
                    edits.extend(heads_read(scene));
                }
                let same = scene.program().ops.iter().filter(|o| short(o) == tap);
                let weights: Vec<String> = same
                    .filter_map(|op| match &op.kind {
                        OpKind::Linear(linear) => Some(linear.weight.clone()),
                        _ => None,
                    })
                    .collect();
                edits.push(Edit::new(format!("the weight of {tap} is read transposed")).weight(move |w| {
                    let &[rows, cols] = w.shape else { return None };
                    weights.iter().any(|n| n == w.name).then_some(())?;
                    let values = w.values()?;
                    Some((0..rows * cols).map(|i| values[i % cols * rows + i / cols]).collect())
                }));
            }
            OpKind::AttnScores(_) => {
                for number in [0, 1] {
                    let what = ["queries", "keys"][number];
                    let detail = format!("{what} lie [T, H, D] in memory and are read as [H, T, D]");
                    edits.push(Edit::new(detail).input(move |at, n, x| {
                        (matches!(at.op().kind, OpKind::AttnScores(_)) && n == number).then_some(())?;
                        let &[t, h, d] = x.shape() else { return None };
                        // The same memory under the other shape, then brought back to [T, H, D].
                        Some(Tensor::new([h, t, d], x.data().to_vec()).ok()?.permute(&[1, 0, 2]))
                    }));
                }
            }
            _ => {}
        }
    }
    edits
}

/// The output projection reads heads that lie in another order.
fn heads_read(scene: &Scene) -> Vec<Edit> {
    let exchange = |t: &Tensor<f64>, written: bool| {
        let &[a, b, c] = t.shape() else { return None };
        match written {
            true => Tensor::new([a, b, c], t.permute(&[1, 0, 2]).into_data()).ok(),
            false => Some(Tensor::new([b, a, c], t.data().to_vec()).ok()?.permute(&[1, 0, 2])),
        }
    };
    if scene.find_tap("attn_out").is_none() {
        return vec![];
    }
    [(true, "[H, T, D] in memory and are read as [T, H, D]"), (false, "[T, H, D] in memory and are read as [H, T, D]")]
        .map(|(written, how)| {
            Edit::new(format!("attention's heads lie {how}")).input(move |at, number, x| {
                (at.tap() == "attn_out" && number == 0).then(|| exchange(x, written)).flatten()
            })
        })
        .into()
}
