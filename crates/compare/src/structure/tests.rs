use firstdiff_tensor::Float;

use super::*;

const AXES: [Axis; 3] = [Axis::Tokens, Axis::Heads(4), Axis::Channels(8)];

/// A value that no shift, factor or permutation maps to itself.
fn exact() -> Tensor<f64> {
    let data = (0..6 * 4 * 8).map(|i| ((i * i * 31 + i * 7 + 3) % 997) as f64 / 500.0 - 1.0).collect();
    Tensor::new([6, 4, 8], data).unwrap()
}

fn found(edit: impl Fn(&mut [f64])) -> Vec<String> {
    let exact = exact();
    let mut recorded = exact.clone();
    edit(recorded.data_mut());
    recorded.data_mut().iter_mut().for_each(|x| *x = Float::BF16.round(*x));
    let variance = exact.data().iter().map(|&x| Float::BF16.rounding_variance(x)).collect();
    let noise = Noise {
        variance,
        lanes: vec![],
        along: vec![],
        factor: vec![],
        store: Float::BF16,
        repeats: firstdiff_reference::Repeats::Values,
        damping: Default::default(),
    };
    structure(&recorded, &exact, &noise, &AXES)
        .into_iter()
        .map(|s| format!("{}: {}", s.kind, s.detail))
        .collect()
}

#[test]
fn a_flipped_sign_is_a_factor() {
    let all = found(|x| x.iter_mut().for_each(|x| *x = -*x));
    assert!(all[0].starts_with("factor: every element is -1.0") && all[0].ends_with("flipped"), "{all:?}");
}

#[test]
fn a_factor_on_one_head_names_the_head() {
    let all = found(|x| (0..x.len()).filter(|i| i / 8 % 4 == 2).for_each(|i| x[i] *= 1.25));
    assert!(all[0].starts_with("factor: head 2 of 4: 1.2"), "{all:?}");
}

#[test]
fn a_missing_bias_is_an_offset_of_all_tokens() {
    let all = found(|x| (0..x.len()).filter(|i| i % 32 == 5).for_each(|i| x[i] += 3.0));
    assert!(
        all.iter().any(|s| s.starts_with("offset: the same vector") && s.contains("(largest element 3.0")),
        "{all:?}"
    );
}

#[test]
fn permuted_heads_and_shifted_tokens_are_told_apart() {
    let heads = found(|x| x.chunks_mut(32).for_each(|t| t.rotate_left(8)));
    assert!(heads.contains(&"permutation: head: all heads are rotated by 1".to_string()), "{heads:?}");
    let tokens = found(|x| x.copy_within(0..160, 32));
    assert!(
        tokens.contains(&"permutation: token: tokens 1..5 hold what belongs 1 before them".to_string()),
        "{tokens:?}"
    );
}

#[test]
fn turned_pairs_keep_their_length() {
    let all = found(|x| {
        for head in x.chunks_mut(8) {
            for p in 0..4 {
                let (s, c) = (0.3 * (p + 1) as f64).sin_cos();
                (head[p], head[p + 4]) = (head[p] * c - head[p + 4] * s, head[p + 4] * c + head[p] * s);
            }
        }
    });
    assert!(all.iter().any(|s| s.starts_with("rotation: pairs (i, i + 4) keep their length")), "{all:?}");
}

#[test]
fn a_stale_row_is_a_copy_and_an_unwritten_one_is_zero() {
    let stale = found(|x| x.copy_within(128..160, 160));
    assert!(
        stale.contains(&"copies: token 5 of 6: a copy of the token before, bit for bit".to_string()),
        "{stale:?}"
    );
    let empty = found(|x| x[160..].fill(0.0));
    assert!(
        empty.contains(&"copies: token 5 of 6: all zero where the right value is not".to_string()),
        "{empty:?}"
    );
}

#[test]
fn what_explains_little_of_the_error_is_not_said() {
    // Truncation makes every number smaller: its pairs are not turned, and no factor is near enough in bf16.
    let truncated = |x: f64| f64::from_bits(x.to_bits() & !((1 << 46) - 1));
    let all = found(|x| x.iter_mut().for_each(|x| *x = truncated(*x)));
    assert!(all.iter().all(|s| !s.starts_with("rotation")), "{all:?}");
    // One stale token beside an error of everything.
    let all = found(|x| {
        x.iter_mut().enumerate().for_each(|(i, x)| *x += ((i * 7919 + 13) % 101) as f64 / 50.0 - 1.0);
        x.copy_within(128..160, 160);
    });
    assert!(all.iter().all(|s| !s.starts_with("copies")), "{all:?}");
}

#[test]
fn what_is_all_zero_is_said_once() {
    let all = found(|x| x[160..].fill(0.0));
    assert_eq!(all, ["copies: token 5 of 6: all zero where the right value is not"]);
}

#[test]
fn noise_has_no_structure() {
    let all = found(|x| {
        x.iter_mut().enumerate().for_each(|(i, x)| *x += ((i * 7919 + 13) % 101) as f64 / 50.0 - 1.0)
    });
    assert_eq!(all, Vec::<String>::new());
}

#[test]
fn the_right_value_has_none_either() {
    assert_eq!(found(|_| {}), Vec::<String>::new());
}
