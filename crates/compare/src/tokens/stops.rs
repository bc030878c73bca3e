//! Ids that end a generation: who declares them, and whether the engine heeded them.

use std::collections::BTreeMap;

use firstdiff_checkpoint::{Message, Tokenizer};
use firstdiff_model::Model;
use firstdiff_trace::Manifest;
use serde::Serialize;
use serde_json::Value;

/// A stop id that was emitted and after which generation went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// `a`, `b`, or `engine`.
    pub side: String,
    /// The sequence of a batch.
    pub sequence: i64,
    /// Its place among the generated tokens, from 0.
    pub index: usize,
    /// The step after which it was chosen, in a trace.
    pub step: Option<usize>,
    /// The id.
    pub id: i64,
    /// Its spelling in the vocabulary.
    pub spelling: Option<String>,
    /// Every place that declares it.
    pub declared_by: Vec<String>,
}

/// What ends a generation.
#[derive(Default)]
pub(crate) struct StopSet {
    pub ids: BTreeMap<i64, Vec<String>>,
    pub tokenizer: Option<Tokenizer>,
}

/// Stands for an answer in a rendered chat; no template contains it.
const ANSWER: &str = "firstdiffanswer";

impl StopSet {
    /// What the model's files declare, and the token that the chat template ends an answer with.
    pub fn of_model(model: &Model) -> StopSet {
        let declared = model.checkpoint.generation().stop_ids;
        let mut ids: BTreeMap<i64, Vec<String>> =
            declared.into_iter().map(|(id, origins)| (i64::from(id), origins)).collect();
        let tokenizer = model.checkpoint.tokenizer().ok();
        if let Some((id, spelling)) = tokenizer.as_ref().and_then(end_of_answer) {
            let origins = ids.entry(i64::from(id)).or_default();
            if !origins.iter().any(|o| o.starts_with("chat template")) {
                origins.push(format!("chat template: {spelling} ends an answer"));
            }
        }
        StopSet { ids, tokenizer }
    }

    /// The same with what the trace declares.
    pub fn with_trace(&self, manifest: &Manifest) -> StopSet {
        let mut ids = self.ids.clone();
        for id in manifest.stop_ids.iter().flatten() {
            ids.entry(*id).or_default().push("trace.json stop_ids".into());
        }
        StopSet { ids, tokenizer: self.tokenizer.clone() }
    }

    /// A token as it is spelled in the vocabulary.
    pub fn spelling(&self, id: i64) -> Option<String> {
        self.tokenizer.as_ref()?.token(u32::try_from(id).ok()?)
    }

    /// The text of tokens.
    pub fn text(&self, ids: &[i64]) -> Option<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.as_ref()?.decode(&ids, false).ok()
    }

    /// What to know of the engine's own stop settings.
    pub fn notes(&self, manifest: &Manifest) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(own) = &manifest.stop_ids {
            let unknown: Vec<String> = self
                .ids
                .iter()
                .filter(|(id, _)| !own.contains(id))
                .map(|(id, origins)| format!("{} ({})", self.named(*id), origins.join(", ")))
                .collect();
            let extra: Vec<String> =
                own.iter().filter(|id| !self.ids.contains_key(id)).map(|id| self.named(*id)).collect();
            if !unknown.is_empty() {
                notes.push(format!(
                    "the engine does not stop at {}, which the model's files declare",
                    unknown.join("; ")
                ));
            }
            if !extra.is_empty() && !self.ids.is_empty() {
                notes.push(format!(
                    "the engine also stops at {}, which no file of the model declares",
                    extra.join(", ")
                ));
            }
        }
        let strings = stop_strings(manifest);
        if let (Some(tokenizer), false) = (&self.tokenizer, strings.is_empty()) {
            let special = tokenizer.special_tokens();
            notes.extend(strings.iter().filter_map(|s| {
                look_alike(s, &special, |s| tokenizer.encode(s, false).ok().map(|i| i.len()))
            }));
        }
        notes
    }

    /// ``4 `<|im_end|>` ``.
    pub fn named(&self, id: i64) -> String {
        self.spelling(id).map_or_else(|| id.to_string(), |s| format!("{id} `{s}`"))
    }
}

/// The special token that comes first after the answer in a rendered chat.
fn end_of_answer(tokenizer: &Tokenizer) -> Option<(u32, String)> {
    if !tokenizer.has_chat_template() {
        return None;
    }
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let chat = tokenizer.render_chat(&[message("user", "x"), message("assistant", ANSWER)]).ok()?;
    let (_, after) = chat.rsplit_once(ANSWER)?;
    let ids = tokenizer.encode(after, false).ok()?;
    let id = ids.into_iter().find(|&id| tokenizer.token(id).is_some_and(|t| !t.trim().is_empty()))?;
    tokenizer.is_special(id).then(|| tokenizer.token(id)).flatten().map(|spelling| (id, spelling))
}

/// Stop strings that the trace declares.
fn stop_strings(manifest: &Manifest) -> Vec<String> {
    let sampling = manifest.sampling.as_ref();
    let of = |map: &serde_json::Map<String, Value>| -> Vec<Value> {
        ["stop", "stop_strings"].iter().filter_map(|key| map.get(*key).cloned()).collect()
    };
    let mut values = of(&manifest.other);
    values.extend(sampling.map(of).unwrap_or_default());
    let list = values.into_iter().flat_map(|value| match value {
        Value::Array(list) => list,
        other => vec![other],
    });
    list.filter_map(|value| value.as_str().filter(|s| !s.is_empty()).map(str::to_string)).collect()
}

/// A spelling without what looks alike: full-width bars and brackets, SentencePiece's space.
fn plain(spelling: &str) -> String {
    let replaced = spelling.chars().filter(|c| !c.is_whitespace()).map(|c| match c {
        '\u{ff5c}' => '|',
        '\u{2581}' => '_',
        '\u{ff1c}' => '<',
        '\u{ff1e}' => '>',
        other => other,
    });
    replaced.collect()
}

/// A stop string that is no token, where a special token looks the same.
fn look_alike(
    stop: &str,
    special: &[(u32, String)],
    tokens: impl Fn(&str) -> Option<usize>,
) -> Option<String> {
    if special.iter().any(|(_, spelling)| spelling == stop) || tokens(stop).is_some_and(|n| n < 2) {
        return None;
    }
    let same = |s: &str| plain(s).replace('_', "") == plain(stop).replace('_', "");
    let (id, spelling) = special.iter().find(|(_, spelling)| same(spelling))?;
    Some(format!(
        "the stop string `{stop}` is no token of this model; token {id} `{spelling}` looks like it and never matches"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(rest: &str) -> Manifest {
        let json = format!(r#"{{"format":"firstdiff.trace/1","producer":{{"name":"x"}}{rest}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_stop_string_in_plain_letters_is_told_from_its_full_width_token() {
        let special = vec![(7, "<｜end▁of▁sentence｜>".to_string()), (8, "<|im_end|>".to_string())];
        let note = look_alike("<|end_of_sentence|>", &special, |_| Some(9)).unwrap();
        assert!(note.contains("token 7 `<｜end▁of▁sentence｜>`"), "{note}");
        assert!(look_alike("<|end of sentence|>", &special, |_| Some(9)).is_some());
        for fine in ["<|im_end|>", "<｜end▁of▁sentence｜>", "\n\n", "</s>"] {
            assert_eq!(look_alike(fine, &special, |_| Some(9)), None, "{fine}");
        }
        assert_eq!(look_alike("<|end_of_sentence|>", &special, |_| Some(1)), None);
    }

    #[test]
    fn stop_strings_are_found_where_engines_write_them() {
        assert_eq!(
            stop_strings(&manifest(r#","stop":"a","sampling":{"stop":["b","c"],"stop_strings":["d"]}"#)),
            ["a", "b", "c", "d"]
        );
        assert!(stop_strings(&manifest(r#","stop":[1,null]"#)).is_empty());
    }

    #[test]
    fn an_engine_that_knows_other_stop_ids_is_noted() {
        let set = StopSet { ids: [(2, vec!["config.json eos_token_id".into()])].into(), tokenizer: None };
        assert!(set.notes(&manifest("")).is_empty());
        assert!(set.notes(&manifest(r#","stop_ids":[2]"#)).is_empty());
        let notes = set.notes(&manifest(r#","stop_ids":[3]"#));
        assert_eq!(notes.len(), 2);
        assert!(notes[0].contains("does not stop at 2 (config.json eos_token_id)"), "{notes:?}");
    }
}
