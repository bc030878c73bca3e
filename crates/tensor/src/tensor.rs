//! Dense row-major tensors.

use crate::Real;

/// A shape that does not fit its data, or another shape.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("shape {shape:?} does not hold {elements} elements")]
pub struct ShapeError {
    /// The shape asked for.
    pub shape: Vec<usize>,
    /// The elements there were.
    pub elements: usize,
}

/// Elements of a tensor of this shape; `None` where the product overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// A dense row-major tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    shape: Vec<usize>,
    data: Vec<T>,
}

impl<T: Real> Tensor<T> {
    /// A tensor of `shape` over `data`.
    ///
    /// # Errors
    /// When `data` does not have the shape's element count.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<T>) -> Result<Self, ShapeError> {
        let shape = shape.into();
        if element_count(&shape) == Some(data.len()) {
            Ok(Tensor { shape, data })
        } else {
            Err(ShapeError { shape, elements: data.len() })
        }
    }

    /// A tensor of zeros. The caller has checked that the shape's element count fits in memory.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = vec![T::ZERO; shape.iter().product()];
        Tensor { shape, data }
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, last axis contiguous.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// The elements, to write.
    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// Elements, by value.
    pub fn into_data(self) -> Vec<T> {
        self.data
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Extent of the first axis (1 for a scalar).
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one step along the first axis.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The `i`-th slice along the first axis.
    pub fn row(&self, i: usize) -> &[T] {
        let n = self.row_len();
        &self.data[i * n..(i + 1) * n]
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the element counts differ.
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Result<Self, ShapeError> {
        Tensor::new(shape, self.data)
    }

    /// Axes reordered: axis `i` of the result is axis `order[i]` of `self`.
    ///
    /// # Panics
    /// When `order` is not a permutation of the axes; it is never taken from input.
    pub fn permute(&self, order: &[usize]) -> Self {
        assert_eq!(order.len(), self.shape.len(), "one entry an axis");
        let mut strides = vec![1usize; self.shape.len()];
        for i in (0..self.shape.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * self.shape[i + 1];
        }
        let shape: Vec<usize> = order.iter().map(|&a| self.shape[a]).collect();
        let strides: Vec<usize> = order.iter().map(|&a| strides[a]).collect();
        let mut index = vec![0usize; shape.len()];
        let mut offset = 0usize;
        let mut data = Vec::with_capacity(self.data.len());
        for _ in 0..self.data.len() {
            data.push(self.data[offset]);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                offset += strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                offset -= strides[axis] * shape[axis];
                index[axis] = 0;
            }
        }
        Tensor { shape, data }
    }

    /// The slices at `places` along `axis`, in that order.
    ///
    /// # Panics
    /// When the axis or a place is not there; neither is ever taken from input unchecked.
    pub fn select(&self, axis: usize, places: &[usize]) -> Self {
        let inner: usize = self.shape[axis + 1..].iter().product();
        let extent = self.shape[axis];
        let mut shape = self.shape.clone();
        shape[axis] = places.len();
        let mut data = Vec::with_capacity(shape.iter().product());
        for block in self.data.chunks(if extent * inner == 0 { 1 } else { extent * inner }) {
            places.iter().for_each(|&at| data.extend_from_slice(&block[at * inner..(at + 1) * inner]));
        }
        Tensor { shape, data }
    }

    /// The same values in another precision.
    pub fn cast<U: Real>(&self) -> Tensor<U> {
        Tensor {
            shape: self.shape.clone(),
            data: self.data.iter().map(|x| U::from_f64(x.to_f64())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_overflows_is_refused_not_wrapped() {
        assert_eq!(element_count(&[usize::MAX, 2]), None);
        assert!(Tensor::<f32>::new([usize::MAX, 2], vec![]).is_err());
    }

    #[test]
    fn permuting_moves_elements_to_where_the_axes_say() {
        let t = Tensor::new([2, 3], (0..6).map(f64::from).collect()).unwrap();
        let p = t.permute(&[1, 0]);
        assert_eq!(p.shape(), [3, 2]);
        assert_eq!(p.data(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(p.permute(&[1, 0]), t);
    }
}
