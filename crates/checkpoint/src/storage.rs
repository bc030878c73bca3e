//! How a tensor's elements are stored.

/// The element format of a stored tensor: a plain type, a block format of ggml, or a format whose scales are tensors
/// of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, zero or one.
    Bool,
    /// 8 bits: 4 of exponent, 3 of mantissa; no infinity.
    F8E4M3,
    /// 8 bits: 5 of exponent, 2 of mantissa.
    F8E5M2,
    /// 8 bits, a power of two: what scales are stored in.
    F8E8M0,
    /// 4 bits and a scale, blocks of 32.
    Q4_0,
    /// 4 bits, a scale and a minimum, blocks of 32.
    Q4_1,
    /// 5 bits and a scale, blocks of 32.
    Q5_0,
    /// 5 bits, a scale and a minimum, blocks of 32.
    Q5_1,
    /// 8 bits and a scale, blocks of 32.
    Q8_0,
    /// 2 bits in 16 groups with 4-bit scales and minima, blocks of 256.
    Q2K,
    /// 3 bits in 16 groups with 6-bit scales, blocks of 256.
    Q3K,
    /// 4 bits in 8 groups with 6-bit scales and minima, blocks of 256.
    Q4K,
    /// 5 bits in 8 groups with 6-bit scales and minima, blocks of 256.
    Q5K,
    /// 6 bits in 16 groups with 8-bit scales, blocks of 256.
    Q6K,
    /// 4 bits into a table of 16 values, and a scale, blocks of 32.
    Iq4Nl,
    /// 4 bits into a table of 16 values, 8 groups with 6-bit scales, blocks of 256.
    Iq4Xs,
    /// 4-bit floats and a power of two as scale, blocks of 32, in a GGUF file.
    Mxfp4,
    /// 4-bit floats in 4 groups, each with an 8-bit float as scale, blocks of 64, in a GGUF file.
    Nvfp4,
    /// 8-bit floats; scales for blocks, rows or the whole lie in a tensor of their own.
    ScaledFp8,
    /// 4-bit floats; a power of two for each 32 of a row lies in a tensor of its own.
    ScaledMxfp4,
    /// 4-bit floats; an 8-bit float for each 16 of a row, and a factor for all, lie in tensors of their own.
    ScaledNvfp4,
}

/// Every format, in the order of the enum: format, name, elements and bytes of a block.
const TABLE: &[(Storage, &str, usize, usize)] = &[
    (Storage::F64, "F64", 1, 8),
    (Storage::F32, "F32", 1, 4),
    (Storage::F16, "F16", 1, 2),
    (Storage::BF16, "BF16", 1, 2),
    (Storage::I64, "I64", 1, 8),
    (Storage::I32, "I32", 1, 4),
    (Storage::I16, "I16", 1, 2),
    (Storage::I8, "I8", 1, 1),
    (Storage::U64, "U64", 1, 8),
    (Storage::U32, "U32", 1, 4),
    (Storage::U16, "U16", 1, 2),
    (Storage::U8, "U8", 1, 1),
    (Storage::Bool, "BOOL", 1, 1),
    (Storage::F8E4M3, "F8_E4M3", 1, 1),
    (Storage::F8E5M2, "F8_E5M2", 1, 1),
    (Storage::F8E8M0, "F8_E8M0", 1, 1),
    (Storage::Q4_0, "Q4_0", 32, 18),
    (Storage::Q4_1, "Q4_1", 32, 20),
    (Storage::Q5_0, "Q5_0", 32, 22),
    (Storage::Q5_1, "Q5_1", 32, 24),
    (Storage::Q8_0, "Q8_0", 32, 34),
    (Storage::Q2K, "Q2_K", 256, 84),
    (Storage::Q3K, "Q3_K", 256, 110),
    (Storage::Q4K, "Q4_K", 256, 144),
    (Storage::Q5K, "Q5_K", 256, 176),
    (Storage::Q6K, "Q6_K", 256, 210),
    (Storage::Iq4Nl, "IQ4_NL", 32, 18),
    (Storage::Iq4Xs, "IQ4_XS", 256, 136),
    (Storage::Mxfp4, "MXFP4", 32, 17),
    (Storage::Nvfp4, "NVFP4", 64, 36),
    (Storage::ScaledFp8, "FP8+scales", 1, 1),
    (Storage::ScaledMxfp4, "MXFP4+scales", 32, 16),
    (Storage::ScaledNvfp4, "NVFP4+scales", 16, 8),
];

impl Storage {
    /// Every format.
    pub fn all() -> impl Iterator<Item = Storage> {
        TABLE.iter().map(|row| row.0)
    }

    /// The spelling of files and tools: `F32`, `BF16`, `Q4_K`.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The format spelled `name`.
    pub fn from_name(name: &str) -> Option<Storage> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Elements of one block; 1 for plain types.
    pub fn block_len(self) -> usize {
        TABLE[self as usize].2
    }

    /// Bytes of one block, without scales that lie elsewhere; for plain types, of one element.
    pub fn block_bytes(self) -> usize {
        TABLE[self as usize].3
    }

    /// Whether elements share scales.
    pub fn is_quantised(self) -> bool {
        self.is_ggml_block() || self.has_scales()
    }

    /// Whether this is a block format of ggml.
    pub fn is_ggml_block(self) -> bool {
        self.block_len() > 1 && !self.has_scales()
    }

    /// Whether scales are tensors of their own, as safetensors files have them.
    pub fn has_scales(self) -> bool {
        matches!(self, Storage::ScaledFp8 | Storage::ScaledMxfp4 | Storage::ScaledNvfp4)
    }

    /// Whether elements are plain floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Storage::F64 | Storage::F32 | Storage::F16 | Storage::BF16)
            || matches!(self, Storage::F8E4M3 | Storage::F8E5M2 | Storage::F8E8M0)
    }

    /// Bytes of `elements` elements, when they are a whole number of blocks.
    pub fn bytes_of(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (at, storage) in Storage::all().enumerate() {
            assert_eq!(storage as usize, at);
            assert_eq!(Storage::from_name(storage.name()), Some(storage));
        }
    }

    #[test]
    fn part_of_a_block_has_no_size() {
        assert_eq!(Storage::Q4K.bytes_of(512), Some(288));
        assert_eq!(Storage::Q4K.bytes_of(300), None);
        assert_eq!(Storage::F64.bytes_of(usize::MAX), None);
    }
}
