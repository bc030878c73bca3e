//! The text of findings, line by line.

use firstdiff_compare::{
    ArithmeticUse, Because, Candidates, Cause, Check, Coverage, Finding, Floor, Rejected, Shared, Sizes,
    Structure, Test, Unnamed, Verdict, Why,
};

use crate::check_text;

fn finding() -> Finding {
    Finding {
        step: 0,
        tap: "layers.0.q_rope".into(),
        op: "rope",
        layers: vec![0, 1],
        segment: ["layers.0.q_norm".into(), "layers.0.q_rope".into()],
        inputs: vec!["layers.0.q_norm".into()],
        operations: vec!["layers.0.q_rope".into()],
        taps: vec!["layers.0.q_rope".into()],
        steps: vec![0],
        place: "all heads, all tokens".into(),
        error: Sizes { rel_l2: 0.5, max_abs: 3.0, cosine: 0.75, non_finite: 0 },
        noise: Floor { rel_l2: 0.002 },
        ratio: 250.0,
        residual: 250.0,
        why: vec![
            why(Test::NoiseFloor, None, 250.0, 2.0),
            why(Test::NoiseFloor, Some(("token", 9)), 400.0, 4.0),
        ],
        structure: vec![],
        ulps: None,
        scale: None,
        choices: None,
        cause: None,
        unnamed: None,
        rejected: vec![],
    }
}

fn why(test: Test, part: Option<(&'static str, i64)>, value: f64, limit: f64) -> Why {
    Why { test, axis: part.map(|p| p.0), index: part.map(|p| p.1), value, limit, factor: None }
}

fn rejected(id: &str, residual: f64) -> Rejected {
    Rejected { id: id.into(), detail: format!("{id} in words"), residual }
}

fn check(findings: Vec<Finding>) -> Check {
    Check {
        not_compared: vec![],
        verdict: Verdict::Diverges,
        complete: true,
        causes_complete: true,
        candidates: Some(Candidates { tried: 300, of: 300 }),
        coverage: Coverage { steps: 1, taps: 12, elements: 3456, ..Coverage::default() },
        arithmetic: ArithmeticUse {
            profile: "bf16".into(),
            declared: true,
            why: "declared by the trace".into(),
            taken: vec![],
        },
        findings,
        shared: vec![],
        unloaded: vec![],
        tokens: None,
        closest: None,
        ambiguous: vec![],
        notes: vec![],
    }
}

/// The lines of the text that begin with one of these labels.
fn lines(check: &Check, labels: &[&str]) -> Vec<String> {
    let text = check_text(check);
    let wanted = |line: &&str| labels.iter().any(|label| line.trim_start().starts_with(label));
    text.lines().filter(wanted).map(str::to_string).collect()
}

#[test]
fn a_finding_reads_from_the_place_to_the_cause() {
    let mut f = finding();
    let separate = None;
    f.cause = Some(Cause {
        id: "rope-theta-wrong".into(),
        detail: "engine uses theta 10000; the model's is 1000000".into(),
        residual: 1.43,
        equal: vec![],
        separate,
        element: None,
    });
    f.structure = vec![Structure { kind: "rotation", detail: "pairs are rotated".into() }];
    f.rejected = vec![rejected("rope-partial", 352.0)];
    assert_eq!(
        check_text(&check(vec![f])),
        "\
diverges: the first wrong operation is rope at layers.0.q_rope

layers.0.q_rope: step 0, layers 0..1
  segment     layers.0.q_norm -> layers.0.q_rope
  where       all heads, all tokens
  error       0.5000 of the tensor's norm (largest element 3.00, cosine 0.750000)
  rounding    explains 0.0020 (the noise floor)
  why         250 times the noise floor (limit 2)
  structure   pairs are rotated
  cause       rope-theta-wrong: engine uses theta 10000; the model's is 1000000
  evidence    with this change the error drops from 250 to 1.43 times the noise floor (limit 2)
  ruled out   rope-partial (rope-partial in words), 352 times the noise floor remains

compared      12 tensors, 3,456 elements, 1 steps
arithmetic    bf16, declared by the trace
next          firstdiff explain rope-theta-wrong
"
    );
}

#[test]
fn the_test_that_fired_is_said_with_its_figure_and_limit() {
    let mut f = finding();
    f.ratio = 1.41;
    f.why = vec![Why { factor: Some(0.99715), ..why(Test::Factor, None, 31.2, 10.0) }];
    assert_eq!(
        lines(&check(vec![f.clone()]), &["why"]),
        ["  why         common factor 0.99715, 31.2 standard deviations (limit 10)"]
    );
    f.why = vec![
        why(Test::NoiseFloor, Some(("token", 10)), 5.2, 4.0),
        why(Test::Offset, Some(("channel", 3)), 12.0, 10.0),
        why(Test::NoiseFloor, Some(("head", 0)), 4.5, 4.0),
        why(Test::Factor, Some(("head", 1)), 10.5, 10.0),
    ];
    assert_eq!(
        lines(&check(vec![f]), &["why"]),
        [
            "  why         token 10 alone: 5.20 times the noise floor (limit 4); channel 3 alone: common offset, 12.0 \
          standard deviations (limit 10); head 0 alone: 4.50 times the noise floor (limit 4)"
        ]
    );
}

#[test]
fn a_copy_that_is_not_rounded_to_nearest_says_so() {
    let why = vec![why(Test::Nearest, None, 17.0, 0.0)];
    assert_eq!(
        lines(&check(vec![Finding { why, ..finding() }]), &["why"]),
        ["  why         17 elements are not the nearest number of the cache's format (limit 0)"]
    );
}

#[test]
fn the_nearest_is_said_only_where_it_leaves_less_than_a_tenth() {
    let labels = ["cause", "nearest"];
    let mut f = finding();
    f.rejected = vec![rejected("a", 25.1)];
    assert_eq!(
        lines(&check(vec![f.clone()]), &labels),
        ["  cause       not known: nothing tried explains it"]
    );
    f.rejected = vec![rejected("a", 24.9)];
    assert_eq!(
        lines(&check(vec![f]), &labels)[1..],
        ["  nearest     a (a in words) leaves 24.9 times the noise floor"]
    );
}

#[test]
fn what_explains_a_finding_is_said_though_it_is_not_named() {
    let said = |because, rival, equal, separate: Option<&str>| {
        let mut f = finding();
        f.rejected = vec![rejected("a", 0.75), rejected("b", 6.45)];
        let separate = separate.map(String::from);
        f.unnamed = Some(Unnamed { explains: rejected("a", 0.75), because, equal, rival, separate });
        let text = check_text(&check(vec![f.clone()]));
        assert!(!text.contains("nothing tried explains it") && !text.contains("nearest"), "{text}");
        lines(&check(vec![f]), &["cause", "separate", "next"])
    };
    assert_eq!(
        said(Because::Rival, Some(rejected("b", 6.45)), vec![], Some("layers.0.attn_heads")),
        [
            "  cause       not named: a (a in words) explains it (0.7500 times the noise floor remains, limit 2), but b \
             (b in words) leaves only 6.45; not told apart",
            "  separate    record layers.0.attn_heads: there they differ",
            "next          record layers.0.attn_heads: it tells a from the others",
        ]
    );
    let both = &said(Because::Small, None, vec![rejected("c", 0.8)], None)[0];
    assert!(both.contains("a (a in words) and c (c in words) both explain it"), "{both}");
    assert!(both.ends_with("but the error itself is only 250"), "{both}");
    let unverified = &said(Because::Unverified, None, vec![], None)[0];
    assert!(unverified.ends_with("at layers.0.q_rope, step 0; the budget did not reach its other places"));
}

#[test]
fn a_search_that_is_not_complete_says_so_and_a_complete_one_nothing() {
    let labels = ["causes", "incomplete", "diverges"];
    let headline = "diverges: the first wrong operation is rope at layers.0.q_rope";
    let mut c = check(vec![finding()]);
    assert_eq!(lines(&c, &labels), [headline]);
    c.causes_complete = false;
    c.candidates = Some(Candidates { tried: 40, of: 1300 });
    let searched =
        "causes        searched 40 of 1,300 candidates within the budget; --budget 60 searches further";
    assert_eq!(lines(&c, &labels), [headline, searched]);
    c.candidates = None;
    assert_eq!(lines(&c, &labels), [headline, "causes        not looked for"]);
    c.complete = false;
    let first = format!("incomplete (interrupted): {headline}");
    assert_eq!(lines(&c, &labels), [first.as_str(), "causes        not all were looked for"]);
}

#[test]
fn what_findings_share_is_said_once() {
    let mut c = check(vec![finding(), finding()]);
    let taps = vec!["attn_out".to_string(), "mlp_out".to_string()];
    c.shared = vec![Shared::RowParallel { taps: taps.clone() }, Shared::Length { inputs: 8960, taps }];
    assert_eq!(
        lines(&c, &["shared"]),
        [
            "shared        both (attn_out, mlp_out) are row-parallel products, and nothing else is wrong: with tensor \
             parallelism each is a sum of partial products",
            "shared        both (attn_out, mlp_out) are products over 8,960 inputs; products over others agree",
        ]
    );
}

#[test]
fn the_first_verdict_is_one_line() {
    let mut c = check(vec![finding()]);
    let first = crate::first_verdict(&c).unwrap();
    assert_eq!(first, "diverges: rope at layers.0.q_rope, step 0; looking for causes ...");
    c.findings.extend([finding(), finding()]);
    assert!(crate::first_verdict(&c).unwrap().contains(", and 2 more findings; "));
    c.findings.clear();
    assert_eq!(crate::first_verdict(&c), None);
}
