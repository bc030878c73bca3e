//! Element types as files store them.

use half::{bf16, f16};

use crate::Real;

/// The element type of a stored tensor. The names are those of the safetensors header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, zero or one.
    Bool,
}

/// Bytes that cannot be read as a run of elements.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The byte count is not a whole number of elements.
    #[error("{bytes} bytes are not a whole number of {dtype:?} elements")]
    Ragged {
        /// What the bytes were to be read as.
        dtype: DType,
        /// How many bytes there were.
        bytes: usize,
    },
    /// A floating-point type was asked for where integers are needed.
    #[error("{0:?} is not an integer type")]
    NotInteger(DType),
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether elements are floating point.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// The safetensors spelling.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I16 => "I16",
            DType::I8 => "I8",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
        }
    }

    /// The type with this safetensors spelling.
    pub fn from_name(name: &str) -> Option<DType> {
        use DType::*;
        [F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool].into_iter().find(|d| d.name() == name)
    }

    /// Reads little-endian `bytes` as elements of this type.
    ///
    /// # Errors
    /// When `bytes` is not a whole number of elements.
    pub fn decode<T: Real>(self, bytes: &[u8]) -> Result<Vec<T>, DecodeError> {
        if !bytes.len().is_multiple_of(self.size()) {
            return Err(DecodeError::Ragged { dtype: self, bytes: bytes.len() });
        }
        let words = |n: usize| bytes.chunks_exact(n);
        Ok(match self {
            DType::F64 => words(8).map(|b| T::from_f64(f64::from_le_bytes(array(b)))).collect(),
            DType::F32 => words(4).map(|b| T::from_f32(f32::from_le_bytes(array(b)))).collect(),
            DType::F16 => words(2).map(|b| T::from_f32(f16::from_le_bytes(array(b)).to_f32())).collect(),
            DType::BF16 => words(2).map(|b| T::from_f32(bf16::from_le_bytes(array(b)).to_f32())).collect(),
            DType::I64 => words(8).map(|b| T::from_f64(i64::from_le_bytes(array(b)) as f64)).collect(),
            DType::I32 => words(4).map(|b| T::from_f64(i32::from_le_bytes(array(b)) as f64)).collect(),
            DType::I16 => words(2).map(|b| T::from_f32(f32::from(i16::from_le_bytes(array(b))))).collect(),
            DType::I8 => bytes.iter().map(|&b| T::from_f32(f32::from(b as i8))).collect(),
            DType::U8 | DType::Bool => bytes.iter().map(|&b| T::from_f32(f32::from(b))).collect(),
        })
    }

    /// Reads little-endian `bytes` as integers.
    ///
    /// # Errors
    /// When this is a floating-point type, or `bytes` is not a whole number of elements.
    pub fn decode_integers(self, bytes: &[u8]) -> Result<Vec<i64>, DecodeError> {
        if self.is_float() {
            return Err(DecodeError::NotInteger(self));
        }
        if !bytes.len().is_multiple_of(self.size()) {
            return Err(DecodeError::Ragged { dtype: self, bytes: bytes.len() });
        }
        let words = |n: usize| bytes.chunks_exact(n);
        Ok(match self {
            DType::I64 => words(8).map(|b| i64::from_le_bytes(array(b))).collect(),
            DType::I32 => words(4).map(|b| i64::from(i32::from_le_bytes(array(b)))).collect(),
            DType::I16 => words(2).map(|b| i64::from(i16::from_le_bytes(array(b)))).collect(),
            DType::I8 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
            _ => bytes.iter().map(|&b| i64::from(b)).collect(),
        })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("chunks_exact gives chunks of the size asked for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_its_type() {
        for name in ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"] {
            assert_eq!(DType::from_name(name).map(DType::name), Some(name));
        }
        assert_eq!(DType::from_name("F8_E4M3"), None);
    }

    #[test]
    fn bytes_that_are_no_whole_number_of_elements_are_refused() {
        assert_eq!(
            DType::F32.decode::<f32>(&[0; 7]),
            Err(DecodeError::Ragged { dtype: DType::F32, bytes: 7 })
        );
        assert_eq!(
            DType::I64.decode_integers(&[0; 9]),
            Err(DecodeError::Ragged { dtype: DType::I64, bytes: 9 })
        );
        assert_eq!(DType::F16.decode_integers(&[0; 2]), Err(DecodeError::NotInteger(DType::F16)));
    }

    #[test]
    fn elements_decode_to_their_values() {
        assert_eq!(DType::BF16.decode::<f64>(&[0x80, 0x3f, 0x00, 0xc0]), Ok(vec![1.0, -2.0]));
        assert_eq!(DType::F16.decode::<f32>(&[0x00, 0x3c]), Ok(vec![1.0]));
        assert_eq!(DType::I16.decode_integers(&[0xff, 0xff]), Ok(vec![-1]));
    }
}
