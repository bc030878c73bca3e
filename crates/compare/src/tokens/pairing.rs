//! Which sequences of two streams belong together.

use std::collections::{HashMap, VecDeque};

use super::chains::Chain;

/// Above so many sequences without an equal prompt, what is left is paired in order: comparing each with each takes the
/// square of their number.
const MOST: usize = 256;

/// Pairs sequences by their prompts: equal ones first, of those the ones of one number; then the ones that have most
/// tokens in common; then what is left, in order.
pub(crate) fn pair(a: &[Chain], b: &[Chain]) -> Vec<(usize, usize)> {
    let prompt = |c: &Chain| c.ids[..c.prompt()].to_vec();
    let mut there: HashMap<Vec<i64>, VecDeque<usize>> = HashMap::new();
    for (j, chain) in b.iter().enumerate() {
        there.entry(prompt(chain)).or_default().push_back(j);
    }
    let (mut pairs, mut left) = (Vec::new(), Vec::new());
    // Those of one number first, so that repeated prompts stay with their own.
    for numbered in [true, false] {
        let of: Vec<usize> = if numbered { (0..a.len()).collect() } else { std::mem::take(&mut left) };
        for i in of {
            let queue = there.get_mut(&prompt(&a[i]));
            let found = queue.and_then(|queue| {
                let same = |j: &usize| !numbered || b[*j].sequence == a[i].sequence;
                let at = queue.iter().position(same)?;
                queue.remove(at)
            });
            match found {
                Some(j) => pairs.push((i, j)),
                None => left.push(i),
            }
        }
    }
    let mut free: Vec<usize> = there.into_values().flatten().collect();
    free.sort_unstable();
    if left.len().max(free.len()) <= MOST {
        let common = |i: usize, j: usize| a[i].ids.iter().zip(&b[j].ids).take_while(|(x, y)| x == y).count();
        let mut near: Vec<(usize, usize, usize)> =
            left.iter().flat_map(|&i| free.iter().map(move |&j| (common(i, j), i, j))).collect();
        near.retain(|n| n.0 > 0);
        near.sort_by_key(|&(n, i, j)| (std::cmp::Reverse(n), i, j));
        for (_, i, j) in near {
            if left.contains(&i) && free.contains(&j) {
                pairs.push((i, j));
                left.retain(|l| *l != i);
                free.retain(|f| *f != j);
            }
        }
    }
    pairs.extend(left.into_iter().zip(free));
    pairs.sort_unstable();
    pairs
}

/// Says so where one list is the other with one token more at the front; `names` of the two.
pub(crate) fn one_more_in_front(a: &[i64], b: &[i64], names: [&str; 2]) -> Option<String> {
    let more = |long: &[i64], short: &[i64]| {
        let rest = long.get(1..)?;
        let n = rest.len().min(short.len());
        (n >= 2 && rest[..n] == short[..n] && long[..n] != short[..n]).then(|| long[0])
    };
    let text = |name: &str, id: i64| format!("{name} has one token more at the front, {id}: a BOS?");
    more(a, b).map(|id| text(names[0], id)).or_else(|| more(b, a).map(|id| text(names[1], id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(sequence: i64, prompt: &[i64], output: &[i64]) -> Chain {
        let ids = [prompt, output].concat();
        let given = (0..ids.len()).map(|i| i < prompt.len()).collect();
        Chain { sequence, ids, given, ..Chain::default() }
    }

    #[test]
    fn sequences_belong_together_by_their_prompts_whatever_their_numbers() {
        let a = [chain(0, &[1, 2, 3], &[4]), chain(1, &[1, 5, 6], &[7]), chain(2, &[9], &[9])];
        let b = [chain(0, &[1, 5, 6], &[8]), chain(1, &[9], &[9]), chain(5, &[1, 2, 3], &[4])];
        assert_eq!(pair(&a, &b), [(0, 2), (1, 0), (2, 1)]);
    }

    #[test]
    fn repeated_prompts_stay_with_their_numbers_and_the_rest_goes_by_what_is_common() {
        let a = [chain(0, &[1, 2], &[3]), chain(1, &[1, 2], &[4]), chain(2, &[7, 8, 9], &[5])];
        let b = [chain(1, &[1, 2], &[4]), chain(0, &[1, 2], &[3]), chain(2, &[7, 8, 6], &[5])];
        assert_eq!(pair(&a, &b), [(0, 1), (1, 0), (2, 2)]);
        assert_eq!(pair(&a[..1], &b[2..]), [(0, 0)], "one each: there is nothing else to compare");
        assert!(pair(&a, &[]).is_empty());
    }

    #[test]
    fn one_token_more_at_the_front_is_seen_on_either_side() {
        let names = ["a", "b"];
        let seen = one_more_in_front(&[1, 5, 6, 7], &[5, 6, 7, 8], names).unwrap();
        assert!(seen.contains("a has one token more at the front, 1"), "{seen}");
        assert!(one_more_in_front(&[5, 6, 7], &[0, 5, 6], names).unwrap().starts_with("b has one"));
        for (a, b) in [([5, 6, 7], [5, 6, 8]), ([5, 5, 5], [5, 5, 5]), ([1, 5, 6], [5, 7, 6])] {
            assert_eq!(one_more_in_front(&a, &b, names), None, "{a:?} {b:?}");
        }
    }
}
