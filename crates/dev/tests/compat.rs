//! Traces and results of version 0.1.0: a trace that it could read means what it meant, and a key that its results had is
//! still there, with the same type.

use std::path::Path;

use firstdiff_checkpoint::Checkpoint;
use firstdiff_compare::{CheckOptions, check_with_evidence};
use firstdiff_diagnose::{Options, diagnose};
use firstdiff_model::Model;
use firstdiff_reference::PER_SECOND;
use firstdiff_trace::Trace;
use serde_json::Value;

/// Cases, and the models that they are of. `compat/NAME.json` is what 0.1.0 printed.
const CASES: [(&str, &str); 4] = [
    ("act-wrong-fn", "qwen2"),
    ("rope-theta-wrong", "qwen3"),
    ("kv-slot-mapping", "llama"),
    ("entries-not-attended", "v4-small"),
];

fn today(name: &str, model: &str) -> Value {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cases");
    let model = Model::new(Checkpoint::open(&cases.join("models").join(model)).unwrap()).unwrap();
    let trace = Trace::open(&cases.join(name).join("trace")).unwrap();
    let (mut check, evidence) = check_with_evidence(&trace, &model, &CheckOptions::default()).unwrap();
    diagnose(
        &mut check,
        &evidence,
        Options { memory: 64 << 20, lanes: 9, listed: 5, budget: 10 * PER_SECOND },
    )
    .unwrap();
    firstdiff_report::json::check(&check)
}

/// Keys of `then` that `now` lacks or has with another type; of lists, the first elements stand for all.
fn lost(then: &Value, now: &Value, path: &str, out: &mut Vec<String>) {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            for (key, value) in then {
                match now.get(key) {
                    Some(other) => lost(value, other, &format!("{path}.{key}"), out),
                    None => out.push(format!("{path}.{key} is gone")),
                }
            }
        }
        (Value::Array(then), Value::Array(now)) => {
            if let (Some(then), Some(now)) = (then.first(), now.first()) {
                lost(then, now, &format!("{path}[0]"), out);
            }
        }
        // What may be absent is null.
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        _ => out.push(format!("{path} was {then} and is {now}")),
    }
}

#[test]
fn what_0_1_0_read_means_what_it_meant() {
    for (name, model) in CASES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/compat/{name}.json"));
        let then: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let now = today(name, model);
        let mut gone = Vec::new();
        lost(&then, &now, "", &mut gone);
        assert!(gone.is_empty(), "{name}: {gone:?}");
        let main = |v: &Value| {
            let first = &v["findings"][0];
            ["verdict"]
                .map(|k| v[k].clone())
                .into_iter()
                .chain([first["tap"].clone(), first["step"].clone(), first["cause"]["id"].clone()])
                .collect::<Vec<_>>()
        };
        assert_eq!(main(&now), main(&then), "{name}");
    }
}

#[test]
fn a_key_that_is_gone_is_seen() {
    let then = serde_json::json!({"a": [{"b": 1}], "c": "x", "d": null});
    let mut gone = Vec::new();
    lost(&then, &serde_json::json!({"a": [{}], "c": 1, "d": 2, "e": 3}), "", &mut gone);
    assert_eq!(gone, [".a[0].b is gone", ".c was \"x\" and is 1"]);
}
