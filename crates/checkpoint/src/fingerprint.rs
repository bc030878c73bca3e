//! A cheap identity of a checkpoint's weights.

use crate::TensorInfo;

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;
/// Bytes sampled in one place.
const SAMPLE: usize = 64;

/// FNV-1a, 64 bits.
struct Hash(u64);

impl Hash {
    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }

    /// Bytes preceded by their length, so that neighbours cannot run into one another.
    fn field(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }
}

/// The fingerprint of tensors in the order given, each with its stored bytes, and those of its scales.
pub(crate) fn of<'a>(tensors: impl Iterator<Item = (&'a TensorInfo, &'a [u8], Option<&'a [u8]>)>) -> String {
    let mut hash = Hash(OFFSET);
    for (tensor, stored, scales) in tensors {
        hash.field(tensor.name.as_bytes());
        hash.field(tensor.storage.name().as_bytes());
        hash.bytes(&(tensor.shape.len() as u64).to_le_bytes());
        for &length in &tensor.shape {
            hash.bytes(&(length as u64).to_le_bytes());
        }
        for bytes in [Some(stored), scales].into_iter().flatten() {
            for start in [0, bytes.len() / 2, bytes.len().saturating_sub(SAMPLE)] {
                let end = bytes.len().min(start + SAMPLE);
                hash.field(bytes.get(start..end).unwrap_or_default());
            }
        }
    }
    format!("{:016x}", hash.0)
}
