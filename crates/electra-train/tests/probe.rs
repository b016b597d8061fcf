//! Probes during pre-training: they score what fine-tuning would score, and change nothing.

mod small_run;

use electra_data::tasks::{Column, Columns, OpenOptions, OwnTask, TaskKind, TaskSpec};
use electra_data::tokenizer::Tokenizer;
use electra_model::files::ModelDir;
use electra_train::finetune::config::FinetuneConfig;
use electra_train::finetune::job::{FinetuneJob, FinetuneJobError, Start};
use electra_train::finetune::run::{FinetuneOutcome, finetune};
use electra_train::finetune::task::TaskFiles;
use electra_train::interrupt::StopFlag;
use electra_train::job::PretrainJob;
use electra_train::metrics_log::{EvalMetrics, MetricsLine, ProbeMetrics};
use electra_train::pretrain::{Outcome, RunContext};
use electra_train::progress::{Observer, StepLine};
use small_run::*;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Pairs of words; the class is whether the second follows from the first as in the corpus.
fn labelled(dir: &Path) -> PathBuf {
    let mut rows = String::from("text\tlabel\n");
    for i in 0..160 {
        let (noun, fits) = (i % 8, i % 3 == 0);
        let second = (noun * 3 + if fits { 1 } else { 2 + i % 5 }) % 8;
        let label = if fits { "fits" } else { "not" };
        rows += &format!("w{noun} v{second}.\t{label}\n");
    }
    let path = dir.join("labelled.tsv");
    std::fs::write(&path, rows).expect("a writable directory");
    path
}

fn files(name: &str, train: PathBuf) -> TaskFiles {
    let spec = TaskSpec::own(OwnTask {
        columns: Columns {
            text: vec![Column::from("text")],
            label: vec![Column::from("label")],
            ..Columns::default()
        },
        ..OwnTask::new(name, TaskKind::Classification)
    });
    TaskFiles {
        spec: spec.expect("a task"),
        train,
        dev: None,
        open: OpenOptions::default(),
    }
}

fn job(shards: &Path, settings: &[&str], probes: Vec<TaskFiles>) -> PretrainJob {
    let mut job = PretrainJob::open(config(settings), shards, None, None).expect("a job");
    job.set_probes(probes, 5).expect("probes");
    job
}

fn probes_of(out: &Path) -> Vec<ProbeMetrics> {
    let lines = timeless(out).into_iter();
    lines
        .filter_map(|line| match line {
            MetricsLine::Probe(probe) => Some(probe),
            _ => None,
        })
        .collect()
}

#[derive(Default)]
struct Silent;

impl Observer for Silent {
    fn on_step(&mut self, _: &StepLine) {}
    fn on_eval(&mut self, _: &EvalMetrics) {}
    fn on_message(&mut self, _: &str) {}
}

#[test]
fn a_probe_scores_as_fine_tuning_does_and_changes_nothing_of_the_run() {
    let dir = TempDir::new().expect("a directory");
    let (shards, train) = (corpus(dir.path()), labelled(dir.path()));
    let [plain, probed] = ["plain", "probed"].map(|name| dir.path().join(name));
    let without = job(&shards, &[], Vec::new());
    run_job(&mut cpu(2), &without, &plain, 0)
        .outcome
        .expect("an end");
    let with = job(&shards, &[], vec![files("pairs", train.clone())]);
    let ran = run_job(&mut cpu(2), &with, &probed, 0);
    ran.outcome.expect("an end");
    assert!(
        ran.messages
            .iter()
            .any(|m| m.starts_with("probe at step 10:  pairs_loss "))
    );

    let read = |out: &Path| std::fs::read(out.join("discriminator/model.safetensors")).ok();
    assert_eq!(read(&plain), read(&probed));
    let mut lines = timeless(&probed);
    lines.retain(|line| !matches!(line, MetricsLine::Probe(_)));
    assert_eq!(timeless(&plain), lines);
    let probes = probes_of(&probed);
    assert_eq!(
        probes.iter().map(|p| p.step).collect::<Vec<_>>(),
        [5, 10, 12]
    );
    let page = std::fs::read_to_string(probed.join("report.html")).expect("a report");
    assert!(page.contains("Probe: pairs accuracy"));

    // Fine-tuning the models that the run has left is the same as its last probe.
    let discriminator = probed.join("discriminator");
    let once = FinetuneConfig {
        max_restarts: 0,
        ..FinetuneConfig::default()
    };
    let tuned = FinetuneJob::open(
        once,
        Start::Model(ModelDir::open(&discriminator).expect("a model")),
        Tokenizer::load(&discriminator, None).expect("a tokenizer"),
        vec![files("pairs", train)],
    )
    .expect("a job");
    let out = dir.path().join("tuned");
    let outcome = finetune(
        &mut cpu(1),
        &tuned,
        RunContext {
            out: &out,
            resume_only: false,
            observer: &mut Silent,
            stop: &StopFlag::new(),
            precision: "f32",
            environment: Vec::new(),
            peak_flops: None,
        },
    );
    assert!(matches!(outcome, Ok(FinetuneOutcome::Finished(_))));
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let last: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    for (name, score) in &probes[2].scores {
        let name = name.replace("pairs_", "eval_");
        assert_eq!(last[&name].as_f64(), Some(*score), "{name} in {last}");
    }
}

/// Stopped at step 5 the probe is what is interrupted: the run goes on with it.
#[test]
fn a_run_that_is_stopped_in_a_probe_equals_the_uninterrupted_run() {
    let dir = TempDir::new().expect("a directory");
    let (shards, train) = (corpus(dir.path()), labelled(dir.path()));
    let whole = dir.path().join("whole");
    let open = |settings: &[&str]| {
        let probes = ["one", "two"].map(|name| files(name, train.clone()));
        job(&shards, settings, probes.into())
    };
    run_job(&mut cpu(2), &open(&[]), &whole, 0)
        .outcome
        .expect("an end");
    for stop in [5, 7, 12] {
        let out = dir.path().join(format!("stopped-{stop}"));
        let ran = run_job(&mut cpu(1), &open(&[]), &out, stop);
        assert_eq!(ran.outcome.expect("an end"), Outcome::Interrupted(stop));
        assert_eq!(probes_of(&out).len() as u64, (stop - 1) / 5);
        run_job(&mut cpu(2), &open(&[]), &out, 0)
            .outcome
            .expect("an end");
        assert_same_end(&whole, &out, 12);
    }
}

#[test]
fn probes_may_come_and_go_when_a_run_goes_on() {
    let dir = TempDir::new().expect("a directory");
    let (shards, train) = (corpus(dir.path()), labelled(dir.path()));
    let out = dir.path().join("run");
    let without = job(&shards, &[], Vec::new());
    run_job(&mut cpu(1), &without, &out, 6)
        .outcome
        .expect("an end");
    let with = job(&shards, &[], vec![files("pairs", train)]);
    let ran = run_job(&mut cpu(1), &with, &out, 0);
    ran.outcome.expect("an end");
    assert!(
        ran.messages.iter().any(|m| m.contains("probe")),
        "{:?}",
        ran.messages
    );
    assert_eq!(
        probes_of(&out).iter().map(|p| p.step).collect::<Vec<_>>(),
        [10, 12]
    );
}

#[test]
fn a_masked_language_model_alone_is_probed_too() {
    let dir = TempDir::new().expect("a directory");
    let (shards, train) = (corpus(dir.path()), labelled(dir.path()));
    let out = dir.path().join("run");
    let job = job(
        &shards,
        &["electra_objective=false"],
        vec![files("pairs", train)],
    );
    run_job(&mut cpu(1), &job, &out, 0).outcome.expect("an end");
    assert_eq!(probes_of(&out).len(), 3);
}

#[test]
fn probes_that_cannot_be_learned_from_are_refused_before_the_first_step() {
    let dir = TempDir::new().expect("a directory");
    let (shards, train) = (corpus(dir.path()), labelled(dir.path()));
    let one_class = dir.path().join("one.tsv");
    std::fs::write(&one_class, "text\tlabel\nw1 v4.\tfits\nw2 v7.\tfits\n").expect("a file");
    let mut job = PretrainJob::open(config(&[]), &shards, None, None).expect("a job");
    let mut refused = |probes: Vec<TaskFiles>| -> FinetuneJobError {
        job.set_probes(probes, 5).expect_err("a refusal")
    };
    let missing = refused(vec![files("pairs", dir.path().join("nowhere.tsv"))]).to_string();
    assert!(missing.contains("nowhere.tsv"), "{missing}");
    let single = refused(vec![files("pairs", one_class)]).to_string();
    assert!(single.contains("one.tsv"), "{single}");
    let twice = refused(vec![files("pairs", train.clone()), files("pairs", train)]).to_string();
    assert!(twice.contains("twice"), "{twice}");
}
