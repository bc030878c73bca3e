//! ggml's tensor types, by their number in the file.

use crate::Storage;

/// What a type number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GgmlType {
    /// One that can be read.
    Known(Storage),
    /// One that exists and cannot be read.
    Unsupported(&'static str),
}

/// Types that ggml has and this reader does not; most need code books.
const UNSUPPORTED: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (41, "Q1_0"),
];

const KNOWN: &[(u32, Storage)] = &[
    (0, Storage::F32),
    (1, Storage::F16),
    (2, Storage::Q4_0),
    (3, Storage::Q4_1),
    (6, Storage::Q5_0),
    (7, Storage::Q5_1),
    (8, Storage::Q8_0),
    (10, Storage::Q2K),
    (11, Storage::Q3K),
    (12, Storage::Q4K),
    (13, Storage::Q5K),
    (14, Storage::Q6K),
    (20, Storage::Iq4Nl),
    (23, Storage::Iq4Xs),
    (24, Storage::I8),
    (25, Storage::I16),
    (26, Storage::I32),
    (27, Storage::I64),
    (28, Storage::F64),
    (30, Storage::BF16),
    (39, Storage::Mxfp4),
    (40, Storage::Nvfp4),
];

/// The type with this number, if ggml has one.
pub(crate) fn by_number(number: u32) -> Option<GgmlType> {
    let known = KNOWN.iter().find(|row| row.0 == number).map(|row| GgmlType::Known(row.1));
    known.or_else(|| UNSUPPORTED.iter().find(|row| row.0 == number).map(|row| GgmlType::Unsupported(row.1)))
}
