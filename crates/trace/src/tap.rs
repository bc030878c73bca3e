//! Tap names: `embed`, `layers.3.q_rope`, `logits`.

/// The layer number and the rest of a name: `layers.3.q_rope` is layer 3's `q_rope`; `logits`
/// belongs to no layer.
pub fn split(name: &str) -> (Option<usize>, &str) {
    if let Some((number, rest)) = name.strip_prefix("layers.").and_then(|r| r.split_once('.'))
        && let Ok(layer) = number.parse()
    {
        return (Some(layer), rest);
    }
    (None, name)
}

/// The name with its layer number replaced by `*`: what one tap is called over all layers.
pub fn pattern(name: &str) -> String {
    match split(name) {
        (Some(_), rest) => format!("layers.*.{rest}"),
        (None, name) => name.to_string(),
    }
}

/// The name of a layer's tap.
pub fn in_layer(layer: usize, tap: &str) -> String {
    format!("layers.{layer}.{tap}")
}

/// Whether `name` matches `glob`, in which `*` stands for any run of characters.
pub fn matches(glob: &str, name: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(previous) = last.replace(part) {
            match rest.find(previous) {
                Some(at) => rest = &rest[at + str::len(previous)..],
                None => return false,
            }
        }
    }
    match last {
        None => rest.is_empty(),
        Some(end) => rest.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_into_layer_and_tap() {
        assert_eq!(split("layers.12.q_rope"), (Some(12), "q_rope"));
        assert_eq!(split("logits"), (None, "logits"));
        assert_eq!(split("layers.x.q"), (None, "layers.x.q"));
        assert_eq!(pattern(&in_layer(3, "out")), "layers.*.out");
    }

    #[test]
    fn globs_match_whole_names_only() {
        for (glob, name, expected) in [
            ("layers.*.out", "layers.3.out", true),
            ("layers.*.out", "layers.3.attn_out", false),
            ("*out", "layers.3.attn_out", true),
            ("logits", "logits", true),
            ("logit", "logits", false),
            ("*", "anything", true),
            ("layers.*.q_*", "layers.0.q_rope", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} {name}");
        }
    }
}
