//! What everything that is wrong has in common, and nothing that is right: said once, it is often the cause.

use std::collections::BTreeMap;

use firstdiff_model::{Model, OpKind};
use firstdiff_trace::tap;
use serde::Serialize;

use crate::replay::Judged;

/// Something that all wrong matrix products have, and no right one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Shared {
    /// With tensor parallelism each is a sum of partial products, one from every rank.
    RowParallel {
        /// Their taps, without layers.
        taps: Vec<String>,
    },
    /// Their weights are stored in one format.
    Format {
        /// Its name.
        format: String,
        /// Their taps, without layers.
        taps: Vec<String>,
    },
    /// They sum over equally many inputs.
    Length {
        /// How many.
        inputs: usize,
        /// Their taps, without layers.
        taps: Vec<String>,
    },
}

/// Products whose inputs are split over the ranks of tensor parallelism.
const ROW_PARALLEL: [&str; 4] = ["attn_out", "mlp_out", "experts_out", "shared_out"];

/// A compared matrix product, all layers and steps together.
struct Product {
    wrong: bool,
    inputs: usize,
    format: String,
}

/// What all wrong products share, if those are more than one and are all that is wrong.
pub(crate) fn shared(judged: &[Judged], model: &Model) -> Vec<Shared> {
    let mut products: BTreeMap<String, Product> = BTreeMap::new();
    for j in judged {
        let op = &model.program.ops[j.op];
        let wrong = j.measured.is_wrong();
        let (weight, inputs) = match &op.kind {
            OpKind::Linear(linear) => (Some(linear.weight.as_str()), linear.input),
            OpKind::Experts(experts) => {
                (experts.experts.first().map(|e| e.down.tensor.as_str()), experts.inner)
            }
            _ if wrong => return vec![],
            _ => continue,
        };
        let format = weight.and_then(|name| model.checkpoint.tensor(name)).map(|t| t.storage.name());
        let name = tap::split(&op.tap).1.to_string();
        let product = products.entry(name).or_insert_with(|| Product {
            wrong: false,
            inputs,
            format: format.unwrap_or_default().to_string(),
        });
        product.wrong |= wrong;
        // Layers may store one weight in different formats.
        if format.is_some_and(|format| format != product.format) {
            product.format.clear();
        }
    }
    of_products(&products)
}

fn of_products(products: &BTreeMap<String, Product>) -> Vec<Shared> {
    let wrong: Vec<(&String, &Product)> = products.iter().filter(|(_, p)| p.wrong).collect();
    let (Some((_, first)), 2..) = (wrong.first(), wrong.len()) else { return vec![] };
    let right = || products.iter().filter(|(_, p)| !p.wrong);
    // What right ones do not show says nothing.
    if right().next().is_none() {
        return vec![];
    }
    let taps = || wrong.iter().map(|(name, _)| name.to_string()).collect();
    let tells = |has: &dyn Fn(&str, &Product) -> bool| {
        wrong.iter().all(|(name, p)| has(name, p)) && !right().any(|(name, p)| has(name, p))
    };
    let mut shared = Vec::new();
    if tells(&|name, _| ROW_PARALLEL.contains(&name)) {
        shared.push(Shared::RowParallel { taps: taps() });
    }
    if !first.format.is_empty() && tells(&|_, p| p.format == first.format) {
        shared.push(Shared::Format { format: first.format.clone(), taps: taps() });
    }
    if tells(&|_, p| p.inputs == first.inputs) {
        shared.push(Shared::Length { inputs: first.inputs, taps: taps() });
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(products: &[(&str, bool, usize, &str)]) -> Vec<Shared> {
        let product = |&(name, wrong, inputs, format): &(&str, bool, usize, &str)| {
            (name.to_string(), Product { wrong, inputs, format: format.into() })
        };
        of_products(&products.iter().map(product).collect())
    }

    #[test]
    fn what_wrong_products_alone_have_is_shared() {
        let split =
            [("attn_out", true, 64, "BF16"), ("mlp_out", true, 96, "BF16"), ("q_proj", false, 64, "BF16")];
        let taps = vec!["attn_out".to_string(), "mlp_out".to_string()];
        assert_eq!(of(&split), [Shared::RowParallel { taps: taps.clone() }]);
        let format =
            [("k_proj", true, 64, "Q4_K"), ("q_proj", true, 64, "Q4_K"), ("v_proj", false, 64, "Q6_K")];
        let taps = vec!["k_proj".to_string(), "q_proj".to_string()];
        assert_eq!(of(&format), [Shared::Format { format: "Q4_K".into(), taps }]);
        let long =
            [("gate_proj", false, 64, "F32"), ("attn_out", true, 96, "F32"), ("mlp_out", true, 96, "F32")];
        assert_eq!(of(&long).len(), 2, "row-parallel, and of one length");
    }

    #[test]
    fn what_right_products_have_too_is_not() {
        let one = [("attn_out", true, 64, "BF16"), ("q_proj", false, 64, "BF16")];
        assert_eq!(of(&one), [], "one is not several");
        let all = [("attn_out", true, 64, "BF16"), ("mlp_out", true, 64, "BF16")];
        assert_eq!(of(&all), [], "nothing is right");
        let both =
            [("k_proj", true, 64, "Q4_K"), ("q_proj", true, 64, "Q4_K"), ("v_proj", false, 64, "Q4_K")];
        assert_eq!(of(&both), []);
    }
}
