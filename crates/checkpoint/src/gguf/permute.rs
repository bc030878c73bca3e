//! The row order that llama.cpp's converter gives query and key projections.
//!
//! For the architecture `llama` (Mistral's files are such too) the converter reorders the rows of each head,
//! so that rotating neighbouring rows does what Hugging Face's rotation of both halves does: the stored row
//! 2·i + s of a head is the original row s·(D/2) + i. This module undoes it.

/// The stored row that holds the original row `row`, with heads of `head_dim` rows.
pub(crate) fn stored_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

/// Which of a layer's tensors are permuted, by their name within the layer; true for keys.
pub(super) fn is_key_projection(name: &str) -> Option<bool> {
    let (_, stem) = name.strip_prefix("blk.")?.split_once('.')?;
    match stem {
        "attn_q.weight" | "attn_q.bias" => Some(false),
        "attn_k.weight" | "attn_k.bias" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_go_back_to_their_halves() {
        let order: Vec<usize> = (0..12).map(|row| stored_row(row, 6)).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn only_queries_and_keys_are_permuted() {
        assert_eq!(is_key_projection("blk.3.attn_q.weight"), Some(false));
        assert_eq!(is_key_projection("blk.3.attn_k.bias"), Some(true));
        for name in ["blk.3.attn_v.weight", "blk.3.attn_q_norm.weight", "attn_q.weight", "output.weight"] {
            assert_eq!(is_key_projection(name), None);
        }
    }
}
