//! Matrix products, cut into pieces by size alone so that results do not depend on the threads.

use std::ops::Range;

use firstdiff_tensor::Real;
use rayon::prelude::*;

use crate::{Error, dot};

/// A strided matrix over borrowed elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a, T: Real> Matrix<'a, T> {
    pub fn row_major(data: &'a [T], rows: usize, cols: usize) -> Self {
        Matrix { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Whether every element lies inside `data`.
    fn in_bounds(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// `out = alpha a b`, with `out` `[a.rows, b.cols]` row-major with `out_stride`, by one thread.
pub(crate) fn product<T: Real>(out: &mut [T], out_stride: usize, a: Matrix<T>, b: Matrix<T>, alpha: T) {
    multiply(out, out_stride, a, b, alpha, false);
}

/// The same, added to what `out` holds where `add`.
fn multiply<T: Real>(out: &mut [T], out_stride: usize, a: Matrix<T>, b: Matrix<T>, alpha: T, add: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    assert!(b.rows == k && a.in_bounds() && b.in_bounds(), "operands fit each other");
    assert!(n <= out_stride && (m - 1) * out_stride + n <= out.len(), "the result fits");
    // SAFETY: the asserts above keep every access inside the three slices; `out` is borrowed
    // mutably, so it overlaps neither operand. The library is SIMD code behind a pointer interface.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            // The first factor is that of what `out` holds.
            if add { T::ONE } else { T::ZERO },
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Weight elements handled as one piece: 1 MiB of f32, which stays in a core's own cache.
const PIECE: usize = 256 * 1024;

/// Rows of one piece of a weight `[n, k]`: pieces of equal size, and enough of them for a few threads.
fn piece_rows(n: usize, k: usize) -> usize {
    let pieces = (n * k).div_ceil(PIECE).max(4).next_multiple_of(4);
    n.div_ceil(pieces).next_multiple_of(8)
}

/// Provides rows of a weight `[n, k]`.
pub(crate) trait RowSource: Sync {
    /// The rows, in `buffer` or wherever they already lie.
    fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> Result<&'a [f32], Error>;
}

/// `y = x w^T` for rows `x` `[t, k]` and a weight `[n, k]`; `map` is applied to each weight first.
/// The result is `[t, n]`.
pub(crate) fn with_weight<T: Real>(
    x: &[T],
    (n, k): (usize, usize),
    source: &impl RowSource,
    map: Option<fn(f32) -> f32>,
) -> Result<Vec<T>, Error> {
    let t = x.len().checked_div(k).unwrap_or(0);
    let piece = piece_rows(n, k);
    let mut transposed = vec![T::ZERO; n * t];
    if t == 0 {
        return Ok(transposed);
    }
    transposed.par_chunks_mut(piece * t).enumerate().try_for_each_init(
        || (Vec::new(), Vec::new(), Vec::new()),
        |(buffer, mapped, converted), (i, out)| {
            let first = i * piece;
            let rows = out.len() / t;
            let mut w = source.rows(first..first + rows, buffer)?;
            if let Some(map) = map {
                mapped.clear();
                mapped.extend(w.iter().map(|&w| map(w)));
                w = mapped;
            }
            if t == 1 {
                dot::products(out, x, w);
                return Ok(());
            }
            let w = Matrix::row_major(T::from_f32_slice(w, converted), rows, k);
            product(out, t, w, Matrix::row_major(x, t, k).transposed(), T::ONE);
            Ok::<(), Error>(())
        },
    )?;
    Ok(if t == 1 { transposed } else { transpose(&transposed, n, t) })
}

/// `g = y w` for rows `y` `[t, n]` and a weight `[n, k]`: the transposed product, `[t, k]`. Pieces are
/// summed in a fixed number of groups, then the groups in order: the threads do not matter.
pub(crate) fn with_transposed_weight(
    y: &[f32],
    (n, k): (usize, usize),
    source: &impl RowSource,
) -> Result<Vec<f32>, Error> {
    let t = y.len().checked_div(n).unwrap_or(0);
    let piece = piece_rows(n, k);
    let groups = (GROUP_BYTES / (t * k * size_of::<f32>()).max(1)).clamp(1, 16);
    let rows = n.div_ceil(groups).next_multiple_of(piece);
    let sums = (0..n.div_ceil(rows.max(1))).into_par_iter().map(|group| {
        let (mut buffer, mut sum) = (Vec::new(), vec![0f32; t * k]);
        for first in (group * rows..n.min((group + 1) * rows)).step_by(piece) {
            let last = (first + piece).min(n);
            let w = Matrix::row_major(source.rows(first..last, &mut buffer)?, last - first, k);
            let y = Matrix { data: &y[first..], rows: t, cols: last - first, row_stride: n, col_stride: 1 };
            multiply(&mut sum, k, y, w, 1.0, true);
        }
        Ok::<_, Error>(sum)
    });
    let sums = sums.collect::<Result<Vec<_>, _>>()?;
    let mut total = vec![0f32; t * k];
    for sum in sums {
        total.iter_mut().zip(sum).for_each(|(t, s)| *t += s);
    }
    Ok(total)
}

/// Memory for the groups' sums.
const GROUP_BYTES: usize = 64 << 20;

/// `[rows, cols]` to `[cols, rows]`.
fn transpose<T: Real>(data: &[T], rows: usize, cols: usize) -> Vec<T> {
    let mut out = vec![T::ZERO; data.len()];
    const BAND: usize = 8;
    out.par_chunks_mut(rows * BAND).enumerate().for_each(|(band, out)| {
        for (i, out) in out.chunks_mut(rows).enumerate() {
            let c = band * BAND + i;
            for (r, out) in out.iter_mut().enumerate() {
                *out = data[r * cols + c];
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(x: &[f64], w: &[f32], k: usize) -> Vec<f64> {
        x.chunks(k)
            .flat_map(|x| w.chunks(k).map(move |w| x.iter().zip(w).map(|(a, b)| a * f64::from(*b)).sum()))
            .collect()
    }

    #[test]
    fn transposed_products_agree_with_the_definition() {
        for (t, k, n) in [(1, 37, 9), (3, 5, 40_000), (2, 5000, 40)] {
            let y: Vec<f32> = (0..t * n).map(|i| (i as f32 * 0.37).sin()).collect();
            let w: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.73).cos()).collect();
            let g = with_transposed_weight(&y, (n, k), &Whole(&w, k)).unwrap();
            for (row, g) in g.chunks(k).enumerate() {
                for (c, g) in g.iter().enumerate() {
                    let expected: f64 =
                        (0..n).map(|r| f64::from(y[row * n + r]) * f64::from(w[r * k + c])).sum();
                    // A sum of n products of magnitude 1 at most, in f32, one after another.
                    let bound = n as f64 * (n as f64).sqrt() * f64::from(f32::EPSILON);
                    assert!((f64::from(*g) - expected).abs() < bound, "{t} {k} {n}: {g} {expected}");
                }
            }
        }
    }

    struct Whole<'w>(&'w [f32], usize);

    impl RowSource for Whole<'_> {
        fn rows<'a>(&'a self, rows: Range<usize>, _buffer: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
            Ok(&self.0[rows.start * self.1..rows.end * self.1])
        }
    }

    #[test]
    fn products_agree_with_the_definition_for_one_row_and_many() {
        for (t, k, n) in [(1, 37, 9), (1, 1, 1), (5, 37, 900), (3, 1, 2), (2, 5000, 40)] {
            let x: Vec<f64> = (0..t * k).map(|i| (i as f64 * 0.37).sin()).collect();
            let w: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.73).cos()).collect();
            let y = with_weight(&x, (n, k), &Whole(&w, k), None).unwrap();
            for (a, b) in y.iter().zip(naive(&x, &w, k)) {
                // Sums of at most k products of magnitude 1, twice.
                assert!((a - b).abs() <= 2.0 * (k * k) as f64 * f64::EPSILON, "{t} {k} {n}: {a} {b}");
            }
        }
    }
}
