//! Looking weights over before anything runs: a zero-filled bias, a corrupted decode.

use firstdiff_checkpoint::TensorInfo;

use crate::{Error, Model};

/// What is suspicious about a tensor's values.
#[derive(Clone, Debug, PartialEq)]
pub enum Flag {
    /// Every element is zero: a loader that fills in what it did not find does this.
    AllZero,
    /// Every element is this value.
    Constant(f32),
    /// So many elements are NaN or infinite.
    NotFinite(usize),
    /// The largest magnitude is above 65504, the largest f16: no trained weight is.
    Absurd(f32),
}

impl std::fmt::Display for Flag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Flag::AllZero => write!(f, "all zero"),
            Flag::Constant(value) => write!(f, "constant: every element is {value}"),
            Flag::NotFinite(n) => write!(f, "not finite: {n} elements are NaN or infinite"),
            Flag::Absurd(value) => write!(f, "absurd: the largest magnitude is {value:e}"),
        }
    }
}

/// The largest finite f16.
const LARGEST_F16: f32 = 65504.0;
/// All bits of an f32 but the sign.
const MAGNITUDE: u32 = u32::MAX >> 1;
/// The bits of infinity.
const INFINITE: u32 = 0x7f80_0000;
/// Elements looked at in one go.
const PIECE: usize = 1 << 16;

/// Looks over the values of one tensor.
///
/// # Errors
/// When it cannot be read.
pub fn inspect(model: &Model, tensor: &TensorInfo) -> Result<Vec<Flag>, Error> {
    let width = tensor.row_len().max(1);
    let rows = (PIECE / width).max(1);
    let mut buffer = Vec::new();
    let (mut first, mut same, mut bad, mut largest) = (None, true, 0usize, 0u32);
    for start in (0..tensor.rows()).step_by(rows) {
        let end = (start + rows).min(tensor.rows());
        buffer.resize((end - start) * width, 0.0);
        model.checkpoint.read_rows(tensor, start..end, &mut buffer)?;
        let reference = *first.get_or_insert(buffer.first().copied().unwrap_or_default());
        // Magnitudes order like their bits, with infinity and NaN above all numbers: two plain
        // reductions that vectorise. Only a file with something wrong in it is looked at again.
        same &= buffer.iter().all(|x| *x == reference);
        let top = buffer.iter().fold(0u32, |m, x| m.max(x.to_bits() & MAGNITUDE));
        if top < INFINITE {
            largest = largest.max(top);
        } else {
            let finite = buffer.iter().filter(|x| x.is_finite());
            largest = finite.fold(largest, |m, x| m.max(x.to_bits() & MAGNITUDE));
            bad += buffer.iter().filter(|x| !x.is_finite()).count();
        }
    }
    let largest = f32::from_bits(largest);
    let mut flags = Vec::new();
    match first {
        Some(0.0) if same => flags.push(Flag::AllZero),
        Some(value) if same && tensor.len() > 1 => flags.push(Flag::Constant(value)),
        _ => {}
    }
    if bad > 0 {
        flags.push(Flag::NotFinite(bad));
    }
    if largest > LARGEST_F16 {
        flags.push(Flag::Absurd(largest));
    }
    Ok(flags)
}
