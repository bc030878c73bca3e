//! What a step says of its rows and keys beyond their positions: `sampled`, `logits_rows`, `key_sequence`,
//! `key_position` and `fork`.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Whose key one entry of the key axis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The sequence.
    pub sequence: i64,
    /// The position in it.
    pub position: u32,
}

/// The key axis of one step: an entry for each row of a cache, `None` for an empty slot.
pub type KeyAxis = Arc<[Option<Key>]>;

/// The key axes that a step declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyAxes {
    /// That of all layers that have none of their own.
    pub step: Option<KeyAxis>,
    /// Those of single layers.
    pub layers: BTreeMap<usize, KeyAxis>,
}

impl KeyAxes {
    /// The axis that caches, scores and probabilities of a layer have; `None` where nothing is declared.
    pub fn of(&self, layer: Option<usize>) -> Option<&KeyAxis> {
        layer.and_then(|layer| self.layers.get(&layer)).or(self.step.as_ref())
    }

    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.step.is_none() && self.layers.is_empty()
    }
}

/// A sequence whose first keys are those of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The sequence that begins.
    pub sequence: i64,
    /// The one whose keys it shares.
    pub parent: i64,
    /// How many.
    pub length: u32,
}

/// The sequences of a step's rows, in the order in which they first appear.
pub fn in_order(sequence: &[i64]) -> Vec<i64> {
    let mut seen = std::collections::HashSet::with_capacity(4);
    sequence.iter().copied().filter(|q| seen.insert(*q)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_listed_where_they_first_appear() {
        assert_eq!(in_order(&[4, 4, 0, 4, 2, 0]), [4, 0, 2]);
        assert!(in_order(&[]).is_empty());
    }

    #[test]
    fn a_layers_own_axis_goes_before_that_of_the_step() {
        let key = |position| Some(Key { sequence: 0, position });
        let (all, own): (KeyAxis, KeyAxis) = ([key(0)].into(), [key(1)].into());
        let axes = KeyAxes { step: Some(all.clone()), layers: BTreeMap::from([(3, own.clone())]) };
        assert_eq!(axes.of(Some(3)), Some(&own));
        assert_eq!((axes.of(Some(0)), axes.of(None)), (Some(&all), Some(&all)));
        assert_eq!(KeyAxes::default().of(Some(0)), None);
    }
}
