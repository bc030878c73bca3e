//! The format that each kind of tap is held in, told from its bits.

use std::collections::BTreeMap;

use firstdiff_tensor::{DType, Float};
use firstdiff_trace::{Trace, tap};

/// Elements examined of each tensor: enough to tell formats apart, since a value in a longer format
/// looks like one in a shorter format with a chance of at most 2^-13.
const SAMPLE: usize = 4096;

/// Elements other than zero that must have been seen before bits say more than the element type does.
const ENOUGH: usize = 32;

/// From the shortest to the longest.
const FLOATS: [Float; 4] = [Float::BF16, Float::F16, Float::F32, Float::F64];

/// What was seen of one kind of tap.
struct Seen {
    /// Formats that hold every element, the shortest first.
    held: Vec<Float>,
    /// The longest element type.
    stored: Float,
    /// Elements that are not zero.
    elements: usize,
}

/// The shortest format that holds every element, for each kind of tap (`layers.*.q_rope`).
pub(crate) struct Formats(BTreeMap<String, Float>);

impl Formats {
    /// Looks at all steps of a trace.
    pub fn of(trace: &Trace) -> Formats {
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        for step in &trace.steps {
            for (name, info) in step.taps() {
                let Some(stored) = float(info.dtype) else { continue };
                let bytes = step.raw(name).unwrap_or_default();
                let bytes = &bytes[..bytes.len().min(SAMPLE * info.dtype.size())];
                let elements: Vec<f64> = info.dtype.decode(bytes).unwrap_or_default();
                let of = seen.entry(tap::pattern(name)).or_insert_with(|| Seen {
                    held: FLOATS.to_vec(),
                    stored,
                    elements: 0,
                });
                of.held
                    .retain(|f| *f == stored || elements.iter().all(|&x| !x.is_finite() || f.round(x) == x));
                of.elements += elements.iter().filter(|x| **x != 0.0 && x.is_finite()).count();
                if stored.significand_bits() > of.stored.significand_bits() {
                    of.stored = stored;
                }
            }
        }
        let format = |of: Seen| match of.held.first() {
            Some(&format) if of.elements >= ENOUGH => format,
            _ => of.stored,
        };
        Formats(seen.into_iter().map(|(pattern, of)| (pattern, format(of))).collect())
    }

    /// The format of a kind of tap, where it was recorded.
    pub fn get(&self, pattern: &str) -> Option<Float> {
        self.0.get(pattern).copied()
    }

    /// Formats that activations may have, the likeliest first: that of most kinds of products, norms and activation
    /// functions; where none was recorded, of what lies between them. Scores, probabilities, routers' scores and logits
    /// are held in a longer format by many engines and say something only where nothing else was recorded: then all
    /// else may be held in any shorter format.
    pub fn activations(&self) -> Vec<Float> {
        for (number, class) in CLASSES.iter().enumerate() {
            let votes: Vec<Float> = self
                .0
                .iter()
                .filter(|(pattern, _)| class(tap::split(pattern).1.rsplit('.').next().unwrap_or_default()))
                .map(|(_, format)| *format)
                .collect();
            let count = |format: Float| votes.iter().filter(|f| **f == format).count();
            let mut formats: Vec<Float> = FLOATS.into_iter().filter(|f| count(*f) > 0).collect();
            // Of as many, the shorter one: an operation that stores a longer format errs less than it might.
            formats.sort_by_key(|f| std::cmp::Reverse(count(*f)));
            if formats.is_empty() {
                continue;
            }
            if number + 1 == CLASSES.len() && formats == [Float::F32] {
                formats.extend([Float::BF16, Float::F16]);
            }
            return formats;
        }
        vec![Float::F32]
    }

    /// Whether every kind of tap is held in this format.
    pub fn are_all(&self, format: Float) -> bool {
        self.0.values().all(|f| *f == format)
    }

    /// Whether something was recorded that tells the format of activations, and not only what many engines hold in a
    /// longer one.
    pub fn tell(&self) -> bool {
        let surer = &CLASSES[..CLASSES.len() - 1];
        let tells = |pattern: &String| {
            let name = tap::split(pattern).1;
            surer.iter().any(|class| class(name.rsplit('.').next().unwrap_or_default()))
        };
        self.0.keys().any(tells)
    }
}

/// Classes of taps that tell the format of activations, the surest first.
const CLASSES: [fn(&str) -> bool; 4] = [
    |tap| {
        let product = tap.ends_with("_proj") || tap.ends_with("_out");
        let held_longer = tap.starts_with("hc_") || tap.starts_with("index_");
        (product || tap.ends_with("_norm") && tap != "final_norm" || tap.ends_with("_act")) && !held_longer
    },
    |tap| tap.ends_with("_rope") || tap == "attn_heads",
    |tap| tap == "attn_resid" || tap == "out" || tap == "final_norm",
    |tap| !tap.ends_with("_cache"),
];

fn float(dtype: DType) -> Option<Float> {
    match dtype {
        DType::F64 => Some(Float::F64),
        DType::F32 => Some(Float::F32),
        DType::F16 => Some(Float::F16),
        DType::BF16 => Some(Float::BF16),
        _ => None,
    }
}
