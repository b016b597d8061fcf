//! `metrics.jsonl` of an interrupted and resumed run equals that of an uninterrupted one.

use std::fs;
use std::path::Path;

use electra_train::metrics_log::{EvalMetrics, MetricsLine, MetricsLog, StepMetrics, read_metrics};

fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        loss: 30.5 / step as f32,
        mlm_loss: Some(9.1 / step as f32),
        rtd_loss: Some(0.41),
        rtd_base: Some(0.4123),
        lr: 5e-4,
        grad_norm: 1.5,
        tokens: step * 2048,
        tokens_per_s: 1234.5,
    }
}

fn eval(step: u64) -> EvalMetrics {
    let rtd_auc = Some(0.5 + 0.01 * step as f32);
    EvalMetrics {
        step,
        mlm_loss: Some(7.25),
        rtd_auc,
        tokens: 4096,
        ..EvalMetrics::default()
    }
}

/// A training line each step, an evaluation at even ones, from `from` + 1 up to `to`.
fn train(log: &mut MetricsLog, from: u64, to: u64) {
    for s in from + 1..=to {
        log.step(&step(s)).unwrap();
        if s % 2 == 0 {
            log.eval(&eval(s)).unwrap();
        }
    }
    log.sync().unwrap();
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn lines_have_the_promised_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let (mut log, _) = MetricsLog::open(&path, None).unwrap();
    log.step(&step(1)).unwrap();
    log.eval(&eval(2)).unwrap();
    assert_eq!(
        text(&path),
        "{\"step\":1,\"loss\":30.5,\"mlm_loss\":9.1,\"rtd_loss\":0.41,\"rtd_base\":0.4123,\
         \"lr\":0.0005,\"grad_norm\":1.5,\"tokens\":2048,\"tokens_per_s\":1234.5}\n\
         {\"step\":2,\"eval_mlm_loss\":7.25,\"eval_rtd_auc\":0.52,\"eval_tokens\":4096}\n"
    );
    assert_eq!(
        read_metrics(&path).unwrap(),
        [MetricsLine::Step(step(1)), MetricsLine::Eval(eval(2))]
    );
}

#[test]
fn a_run_stopped_anywhere_and_resumed_has_the_lines_of_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.jsonl");
    train(&mut MetricsLog::open(&whole, None).unwrap().0, 0, 10);
    for checkpoint in 0..=8 {
        for killed_after in checkpoint..=10 {
            let path = dir.path().join("metrics.jsonl");
            train(
                &mut MetricsLog::open(&path, None).unwrap().0,
                0,
                killed_after,
            );
            let before = text(&path);
            for torn in ["", "{\"step\":", "\0\0\0"] {
                fs::write(&path, before.clone() + torn).unwrap();
                let resumed_at = (checkpoint > 0).then_some(checkpoint);
                let (mut log, history) = MetricsLog::open(&path, resumed_at).unwrap();
                assert_eq!(history.warnings, Vec::<String>::new());
                assert_eq!(history.lines, read_metrics(&path).unwrap());
                train(&mut log, checkpoint, 10);
                assert_eq!(
                    text(&path),
                    text(&whole),
                    "{checkpoint} {killed_after} {torn:?}"
                );
            }
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn what_is_not_finite_is_null_and_what_is_missing_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let (mut log, _) = MetricsLog::open(&path, None).unwrap();
    let line = StepMetrics {
        loss: f32::INFINITY,
        mlm_loss: Some(f32::NAN),
        rtd_loss: None,
        rtd_base: None,
        ..step(1)
    };
    log.step(&line).unwrap();
    let written = text(&path);
    assert!(
        written.contains("\"loss\":null,\"mlm_loss\":null,\"lr\""),
        "{written}"
    );
    let MetricsLine::Step(read) = &read_metrics(&path).unwrap()[0] else {
        panic!()
    };
    assert!(read.loss.is_nan() && read.mlm_loss.unwrap().is_nan() && read.rtd_loss.is_none());
}

#[test]
fn a_damaged_line_is_removed_with_a_warning_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    train(&mut MetricsLog::open(&path, None).unwrap().0, 0, 3);
    let damaged = text(&path).replacen("\"step\":2,\"loss\"", "\"stop\":2,\"loss\"", 1);
    fs::write(&path, damaged).unwrap();
    let (_, history) = MetricsLog::open(&path, Some(3)).unwrap();
    assert_eq!(
        history
            .lines
            .iter()
            .map(MetricsLine::step)
            .collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(history.warnings.len(), 1);
    assert!(
        history.warnings[0].contains("metrics.jsonl: line 2"),
        "{:?}",
        history.warnings
    );
}
