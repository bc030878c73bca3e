//! Traces written by this crate, and what happens to them on the way.

use std::path::Path;

use firstdiff_tensor::Tensor;
use firstdiff_trace::{Error, Manifest, Producer, Trace, Writer};
use proptest::prelude::*;

fn write(path: &Path, steps: &[&[i64]]) {
    let mut writer = Writer::create(path, Manifest::new(Producer::default())).unwrap();
    for (i, tokens) in steps.iter().enumerate() {
        let positions: Vec<i64> = (0..tokens.len() as i64).map(|p| p + 10 * i as i64).collect();
        let mut step = writer.step(tokens, &positions);
        let tap = Tensor::new([tokens.len(), 2], (0..2 * tokens.len()).map(|x| x as f32).collect()).unwrap();
        step.tap("embed", &tap, false);
        step.tap("logits", &tap, true);
        step.finish().unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_was_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[&[1, 2, 3], &[4]]);
    let trace = Trace::open(dir.path()).unwrap();
    assert_eq!(trace.manifest.complete, Some(true));
    assert_eq!(trace.steps.len(), 2);
    assert_eq!(trace.steps[0].token_ids, [1, 2, 3]);
    assert_eq!(trace.steps[1].positions, [10]);
    let tap: Tensor<f64> = trace.steps[0].read("logits").unwrap().unwrap();
    assert_eq!(tap.shape(), [3, 2]);
    assert_eq!(tap.row(2), [4.0, 5.0]);
    assert!(trace.steps[0].read::<f32>("absent").unwrap().is_none());
}

#[test]
fn a_half_written_step_is_ignored_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[&[1], &[2], &[3]]);
    std::fs::write(dir.path().join("step-000003.safetensors.tmp"), b"half").unwrap();
    assert_eq!(Trace::open(dir.path()).unwrap().steps.len(), 3);
    std::fs::remove_file(dir.path().join("step-000001.safetensors")).unwrap();
    assert!(matches!(Trace::open(dir.path()), Err(Error::Gap { missing: 1, present: 2, .. })));
}

#[test]
fn a_folder_that_holds_something_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), b"years of work").unwrap();
    let refused = Writer::create(dir.path(), Manifest::new(Producer::default()));
    assert!(matches!(refused, Err(Error::Occupied { .. })));
}

#[cfg(unix)]
#[test]
fn a_step_that_links_elsewhere_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[&[1]]);
    let step = dir.path().join("step-000000.safetensors");
    let elsewhere = dir.path().join("elsewhere");
    std::fs::rename(&step, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &step).unwrap();
    assert!(matches!(Trace::open(dir.path()), Err(Error::Damaged { .. })));
}

proptest! {
    #[test]
    fn damage_to_a_step_file_never_panics(cut in 0usize..400, flips in prop::collection::vec((0usize..400, any::<u8>()), 0..6)) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[&[1, 2, 3]]);
        let path = dir.path().join("step-000000.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        std::fs::write(&path, bytes).unwrap();
        if let Ok(trace) = Trace::open(dir.path()) {
            for name in trace.steps[0].taps().keys() {
                let _ = trace.steps[0].read::<f32>(name);
            }
        }
    }
}
