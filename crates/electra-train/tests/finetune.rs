//! The fine-tuning loop: it learns, resumes exactly, keeps the best of its trials, and notices a
//! run that is stuck.

use electra_data::tasks::{Column, Columns, Metric, OpenOptions, OwnTask, TaskKind, TaskSpec};
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_engine::cpu::{Cpu, CpuOptions};
use electra_model::files::ModelDir;
use electra_model::heads::network::TaskNetwork;
use electra_model::heads::step::{Targets, TaskStep};
use electra_train::finetune::batch::HostBatch;
use electra_train::finetune::config::FinetuneConfig;
use electra_train::finetune::job::{FinetuneJob, FinetuneJobError, Start};
use electra_train::finetune::outputs::outputs;
use electra_train::finetune::run::{FinetuneError, FinetuneOutcome, Finished, finetune};
use electra_train::finetune::task::TaskFiles;
use electra_train::interrupt::StopFlag;
use electra_train::metrics_log::EvalMetrics;
use electra_train::pretrain::RunContext;
use electra_train::progress::{Observer, StepLine};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-discriminator")
}

/// Keeps what it is told, and asks to stop after a step.
#[derive(Default)]
struct Told {
    messages: Vec<String>,
    stop_after: Option<(u64, StopFlag)>,
}

impl Observer for Told {
    fn on_step(&mut self, line: &StepLine) {
        if let Some((step, stop)) = &self.stop_after
            && line.metrics.step == *step
        {
            stop.request();
        }
    }
    fn on_eval(&mut self, _: &EvalMetrics) {}
    fn on_message(&mut self, message: &str) {
        self.messages.push(message.to_owned());
    }
}

/// Sentences with a boat are one class, those without another; every `one_class` they are not.
fn write_texts(path: &Path, count: usize, mix: bool) {
    let words = [
        "river", "stone", "tree", "house", "wind", "bird", "old", "red",
    ];
    let mut text = String::from("text\tlabel\n");
    for i in 0..count {
        let boat = i % 3 == 0;
        let mut sentence: Vec<&str> = (0..4).map(|j| words[(i * 7 + j * 3 + i / 8) % 8]).collect();
        if boat {
            sentence[i % 4] = "boat";
        }
        let label = if mix { i % 2 == 0 } else { boat };
        text += &format!(
            "{}\t{}\n",
            sentence.join(" "),
            if label { "sea" } else { "land" }
        );
    }
    std::fs::write(path, text).expect("a written file");
}

fn spec(name: &str) -> TaskSpec {
    TaskSpec::own(OwnTask {
        columns: Columns {
            text: vec![Column::from("text")],
            label: vec![Column::from("label")],
            ..Columns::default()
        },
        ..OwnTask::new(name, TaskKind::Classification)
    })
    .expect("a task")
}

fn config(settings: &[&str]) -> FinetuneConfig {
    let mut config = FinetuneConfig::default();
    let common = [
        "learning_rate=4e-3",
        "num_train_epochs=4",
        "train_batch_size=8",
    ];
    for setting in common.iter().chain(settings) {
        config.set(setting).expect("a hyper-parameter");
    }
    config
}

fn open(config: FinetuneConfig, names: &[&str], train: &Path, dev: &Path) -> FinetuneJob {
    try_open(config, names, train, Some(dev)).expect("a job")
}

fn try_open(
    config: FinetuneConfig,
    names: &[&str],
    train: &Path,
    dev: Option<&Path>,
) -> Result<FinetuneJob, FinetuneJobError> {
    let files = names
        .iter()
        .map(|name| TaskFiles {
            spec: spec(name),
            train: train.to_owned(),
            dev: dev.map(Path::to_owned),
            open: OpenOptions::default(),
        })
        .collect();
    let start = Start::Model(ModelDir::open(golden()).expect("a model"));
    let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
    FinetuneJob::open(config, start, tokenizer, files)
}

fn run(
    job: &FinetuneJob,
    out: &Path,
    stop_after: Option<u64>,
) -> (Result<FinetuneOutcome, FinetuneError>, Vec<String>) {
    let stop = StopFlag::new();
    let mut told = Told {
        messages: Vec::new(),
        stop_after: stop_after.map(|step| (step, stop.clone())),
    };
    let mut cpu = Cpu::new(CpuOptions {
        threads: Some(1),
        ..CpuOptions::default()
    })
    .expect("a CPU");
    let outcome = finetune(
        &mut cpu,
        job,
        RunContext {
            out,
            resume_only: false,
            observer: &mut told,
            stop: &stop,
            precision: "f32",
            environment: Vec::new(),
            peak_flops: None,
        },
    );
    (outcome, told.messages)
}

fn finished(job: &FinetuneJob, out: &Path) -> (Finished, Vec<String>) {
    let (outcome, messages) = run(job, out, None);
    match outcome.expect("a finished run") {
        FinetuneOutcome::Finished(finished) => (*finished, messages),
        other => panic!("{other:?}"),
    }
}

/// The measurements of a run without what differs from one to the next: times.
fn metrics(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    text.lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            line.as_object_mut()
                .expect("an object")
                .remove("tokens_per_s");
            line
        })
        .collect()
}

fn files(dir: &Path) -> (PathBuf, PathBuf) {
    let (train, dev) = (dir.join("train.tsv"), dir.join("dev.tsv"));
    write_texts(&train, 90, false);
    write_texts(&dev, 31, false);
    (train, dev)
}

#[test]
fn a_run_learns_and_resumes_to_the_same_bits() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let settings = [
        "num_trials=2",
        "evals_per_epoch=2",
        "save_checkpoints_steps=5",
    ];
    let job = open(config(&settings), &["boats"], &train, &dev);
    let whole = dir.path().join("whole");
    let (result, _) = finished(&job, &whole);
    assert_eq!(result.trials.len(), 2);
    assert!(result.summary.best > 0.9, "{result:?}");
    assert_eq!(result.trials[1].seed, 1);
    let kept = result.evaluations[0].scores[0].1;
    assert_eq!(
        kept, result.summary.best,
        "the kept model is the best of all trials"
    );

    // Stopped in the first trial, between checkpoints; in the second; and after the last step.
    let parts = dir.path().join("parts");
    for stop in [7, 60, 96] {
        let (outcome, _) = run(&job, &parts, Some(stop));
        match outcome.expect("a stopped run") {
            FinetuneOutcome::Interrupted(step) => assert_eq!(step, stop),
            FinetuneOutcome::Finished(_) => assert_eq!(stop, 96),
        }
    }
    let (again, messages) = finished(&job, &parts);
    assert!(
        messages.iter().any(|m| m.starts_with("going on from")),
        "{messages:?}"
    );
    assert_eq!(again, result);
    assert_eq!(metrics(&parts), metrics(&whole));
    for file in ["model.safetensors", "config.json", "results.json"] {
        let read = |out: &Path| std::fs::read(out.join(file)).expect("a file");
        assert!(read(&parts) == read(&whole), "{file}");
    }
    let report = std::fs::read_to_string(whole.join("report.html")).expect("a report");
    for part in [
        "Confusion matrix",
        "Trials",
        "median of 2 trials",
        "<td>sea</td>",
    ] {
        assert!(report.contains(part), "{part}");
    }
}

#[test]
fn accumulated_micro_batches_change_nothing_but_rounding() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let losses = |parts: &str| -> Vec<f64> {
        let settings = [
            parts,
            "num_train_epochs=1",
            "label_smoothing=0.1",
            "class_weights=\"balanced\"",
        ];
        let job = open(config(&settings), &["boats"], &train, &dev);
        let out = dir.path().join(parts);
        finished(&job, &out);
        metrics(&out)
            .iter()
            .filter_map(|line| line["loss"].as_f64())
            .collect()
    };
    let (one, three) = (
        losses("gradient_accumulation_steps=1"),
        losses("gradient_accumulation_steps=3"),
    );
    assert_eq!(one.len(), three.len());
    for (a, b) in one.iter().zip(&three) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_run_stuck_at_one_class_is_begun_again_and_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    // One class alone counts, so the other is never predicted.
    let settings = [
        "class_weights=[1,0]",
        "learning_rate=2e-2",
        "num_train_epochs=2",
        "max_restarts=1",
    ];
    let job = open(config(&settings), &["boats"], &train, &dev);
    let (result, messages) = finished(&job, &dir.path().join("out"));
    let said = |part: &str| messages.iter().filter(|m| m.contains(part)).count();
    assert_eq!(said("seed 0 is stuck"), 1, "{messages:?}");
    assert_eq!(said("begun again with seed 1000"), 1);
    assert_eq!(said("predicted one class for every example to its end"), 1);
    assert!(result.trials.len() == 1 && result.trials[0].stuck && result.trials[0].seed == 1000);
}

#[test]
fn patience_ends_a_run_and_shots_are_few() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let settings = [
        "early_stopping_patience=2",
        "num_train_epochs=40",
        "shots=4",
    ];
    let job = open(config(&settings), &["boats"], &train, &dev);
    let out = dir.path().join("out");
    let (_, messages) = finished(&job, &out);
    let told = |message: &&String| message.contains("no better accuracy in the last 2 evaluations");
    assert_eq!(messages.iter().filter(told).count(), 1, "{messages:?}");
    let lines = metrics(&out);
    // Four of each class are one batch, and an epoch.
    let last = lines.last().expect("lines")["epoch"]
        .as_f64()
        .expect("a number");
    assert_eq!(
        lines.iter().filter(|l| l["loss"].is_number()).count() as f64,
        last
    );
    assert!(last < 40.0, "{last}");
    assert!(job.initial_values(0).is_ok());
}

/// Few examples make few steps an epoch: the epochs of a task would teach nothing.
#[test]
fn few_shots_take_as_many_epochs_as_learn_something() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let mut few = FinetuneConfig::default();
    for setting in ["shots=4", "learning_rate=4e-3", "train_batch_size=4"] {
        few.set(setting).expect("a hyper-parameter");
    }
    let job = open(few.clone(), &["boats"], &train, &dev);
    let plan = job.plan(0);
    let evaluations = (1..=plan.total_steps).filter(|&step| plan.evaluates(step));
    assert_eq!((plan.total_steps, evaluations.count()), (200, 10));
    let (result, _) = finished(&job, &dir.path().join("out"));
    assert!(result.summary.best > 0.9, "{:?}", result.summary);
    few.set("num_train_epochs=3").expect("a hyper-parameter");
    assert_eq!(open(few, &["boats"], &train, &dev).plan(0).total_steps, 6);
}

#[test]
fn the_best_model_may_be_that_of_the_least_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let job = open(config(&["metric=loss"]), &["boats"], &train, &dev);
    let out = dir.path().join("out");
    let (result, _) = finished(&job, &out);
    let losses: Vec<f64> = metrics(&out)
        .iter()
        .filter_map(|line| line["eval_loss"].as_f64())
        .collect();
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!((result.trials[0].score - least).abs() < 1e-6, "{losses:?}");
}

#[test]
fn tasks_share_an_encoder_and_each_has_its_head() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let other = dir.path().join("other.tsv");
    write_texts(&other, 40, true);
    let files = [("boats", &train), ("other", &other)];
    let files = files.map(|(name, path)| TaskFiles {
        spec: spec(name),
        train: path.clone(),
        dev: Some(dev.clone()),
        open: OpenOptions::default(),
    });
    let start = Start::Model(ModelDir::open(golden()).expect("a model"));
    let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
    let job = FinetuneJob::open(config(&[]), start, tokenizer, files.to_vec()).expect("a job");
    let out = dir.path().join("out");
    let (result, _) = finished(&job, &out);
    assert_eq!(result.evaluations.len(), 2);
    let model = ModelDir::open(&out).expect("a model");
    for name in ["boats", "other"] {
        let tensor = format!("tasks.{name}.classifier.out_proj.weight");
        assert!(model.shape(&tensor).is_some(), "{tensor}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let refused = |settings: &[&str], names: &[&str]| -> String {
        let opened = try_open(config(settings), names, &train, Some(&dev));
        opened.expect_err("an error").to_string()
    };
    for (settings, wanted) in [
        (
            ["max_seq_length=1000"],
            "max_seq_length is 1000, but the model has 40 positions",
        ),
        (["crf=true"], "crf is for tagging, and boats is not"),
        (
            ["class_weights=[1]"],
            "class_weights has 1 weights, but boats has 2 labels",
        ),
        (["learning_rate=-1"], "\"learning_rate\" must be above 0"),
        (["compat=tf"], "\"compat\" must be \"google\" or null"),
    ] {
        let message = refused(&settings, &["boats"]);
        assert!(message.contains(wanted), "{message}");
    }
    assert!(refused(&[], &["a", "a"]).contains("task a is given twice"));
    let unknown = FinetuneConfig::default()
        .set("lerning_rate=1")
        .expect_err("an error");
    assert!(
        unknown
            .to_string()
            .contains("did you mean \"learning_rate\"?"),
        "{unknown}"
    );
    // Without development data a part of the training data is held out, and it is said.
    let job = try_open(config(&[]), &["boats"], &train, None).expect("a job");
    assert!(
        job.tasks[0].notes[0].contains("held out"),
        "{:?}",
        job.tasks[0].notes
    );
}

/// What says one class for every example may score better than what learns later: it leaves no
/// model while the run may be begun again.
#[test]
fn a_run_that_is_stuck_leaves_no_model() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    for (restarts, kept) in [("max_restarts=1", false), ("max_restarts=0", true)] {
        let settings = ["class_weights=[1,0]", "learning_rate=2e-2", restarts];
        let job = open(config(&settings), &["boats"], &train, &dev);
        let out = dir.path().join(restarts);
        let epoch = job.plan(0).total_steps / 4;
        let (outcome, _) = run(&job, &out, Some(epoch));
        assert!(matches!(outcome, Ok(FinetuneOutcome::Interrupted(step)) if step == epoch));
        assert_eq!(out.join("model.safetensors").exists(), kept, "{restarts}");
    }
}

/// Parts of speech are no entities: the best model is that which is right about most words.
#[test]
fn labels_of_words_that_are_no_entities_are_scored_by_accuracy() {
    let dir = tempfile::tempdir().expect("a directory");
    let train = dir.path().join("train.conll");
    std::fs::write(
        &train,
        "the\tDT\nboat\tNN\n\nold\tJJ\nriver\tNN\n\n".repeat(3),
    )
    .expect("a file");
    let spec = |name: &str| TaskSpec::own(OwnTask::new(name, TaskKind::Tagging)).expect("a task");
    let open = |content: Option<&str>, settings: &[&str]| {
        if let Some(content) = content {
            std::fs::write(&train, content).expect("a file");
        }
        let files = TaskFiles {
            spec: spec("tags"),
            train: train.clone(),
            dev: Some(train.clone()),
            open: OpenOptions::default(),
        };
        let start = Start::Model(ModelDir::open(golden()).expect("a model"));
        let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
        FinetuneJob::open(config(settings), start, tokenizer, vec![files])
    };
    let metrics = |content: Option<&str>| {
        let job = open(content, &[]).expect("a job");
        (job.tasks[0].spec.metrics.clone(), job.tasks[0].notes.len())
    };
    assert_eq!(metrics(None), (vec![Metric::Accuracy], 0));
    let refused = open(None, &["metric=f1"]).expect_err("no entities");
    assert!(refused.to_string().contains("f1_macro"), "{refused}");
    open(None, &["metric=f1_macro"]).expect("of words");
    // Numbers may be meant for entities.
    let numbers = "the\t0\nboat\t1\n\nold\t0\nriver\t2\n\n";
    assert_eq!(metrics(Some(numbers)), (vec![Metric::Accuracy], 1));
    let note = open(None, &[]).expect("a job").tasks[0].notes.remove(0);
    assert!(note.contains("B-PER"), "{note}");
    let entities = "the\tO\nboat\tB-x\n\nold\tO\nriver\tB-x\n\n";
    let (found, notes) = metrics(Some(entities));
    assert_eq!((found[0], notes), (Metric::F1, 0));
    // A tag that is mistyped would have the entities of all others scored as words.
    let mistyped = entities.replacen("B-x", "B_x", 1);
    assert_eq!(metrics(Some(&mistyped)), (vec![Metric::Accuracy], 1));
    let note = open(None, &[]).expect("a job").tasks[0].notes.remove(0);
    assert!(note.contains("line 2") && note.contains("B_x"), "{note}");
}

/// The loss of development data is that of the questions whose answer can be found.
#[test]
fn a_lost_answer_leaves_the_others_their_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    let row = |id: &str, answer: &str| {
        let answers = format!(r#"{{"text": ["{answer}"], "answer_start": [4]}}"#);
        let context = "the old boat sleeps on the river";
        format!(
            r#"{{"id": "{id}", "context": "{context}", "question": "who {id}", "answers": {answers}}}"#
        ) + "\n"
    };
    let path = |name: &str, rows: &[String]| {
        let path = dir.path().join(name);
        std::fs::write(&path, rows.concat()).expect("a file");
        path
    };
    let train = path("train.jsonl", &[row("a", "old boat")]);
    let found = [row("b", "old boat"), row("c", "the river")];
    let lost = [found[0].clone(), row("d", "a bird"), found[1].clone()];
    let loss = |dev: PathBuf| {
        let files = TaskFiles {
            spec: TaskSpec::by_name("squad").expect("a task"),
            train: train.clone(),
            dev: Some(dev),
            open: OpenOptions::default(),
        };
        let start = Start::Model(ModelDir::open(golden()).expect("a model"));
        let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
        let config = config(&["max_seq_length=40"]);
        let job = FinetuneJob::open(config, start, tokenizer, vec![files]).expect("a job");
        let mut cpu = Cpu::new(CpuOptions::default()).expect("a CPU");
        let values = job.initial_values(1).expect("values");
        let head = job.tasks[0].entry.head.clone();
        let network = TaskNetwork::new(&job.network_config, &[head]);
        let params = cpu.params(&network.layout, &values);
        let dev = &job.tasks[0].dev;
        let mut step = TaskStep::for_inference();
        let said = outputs(&mut cpu, &mut step, &network, 0, &params, dev, 4096);
        assert_eq!(said.each.len(), dev.len());
        said.loss.expect("a loss")
    };
    let (all, rest) = (
        loss(path("found.jsonl", &found)),
        loss(path("lost.jsonl", &lost)),
    );
    assert!((all - rest).abs() < 1e-6, "{all} {rest}");
    // So the best model of questions may be chosen by it.
    let files = TaskFiles {
        spec: TaskSpec::by_name("squad").expect("a task"),
        train: train.clone(),
        dev: Some(dir.path().join("lost.jsonl")),
        open: OpenOptions::default(),
    };
    let start = Start::Model(ModelDir::open(golden()).expect("a model"));
    let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
    let config = config(&["max_seq_length=40", "metric=loss"]);
    let job = FinetuneJob::open(config, start, tokenizer, vec![files]).expect("a job");
    let (result, _) = finished(&job, &dir.path().join("out"));
    assert!(result.trials[0].score.is_finite(), "{:?}", result.trials);
}

/// Of questions whose answers are all lost nothing can be learned: what is wrong with the data, its
/// first question shows.
#[test]
fn questions_without_any_answer_in_their_texts_are_refused_with_the_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = |answers: [&str; 2]| {
        let path = dir.path().join("train.csv");
        let [a, b] = answers;
        let rows = format!("q7,the old boat,who,{a}\nq8,the river,what,{b}\n");
        std::fs::write(&path, format!("id,context,question,answer\n{rows}")).expect("a file");
        let files = TaskFiles {
            spec: TaskSpec::by_name("squad").expect("a task"),
            train: path.clone(),
            dev: Some(path),
            open: OpenOptions::default(),
        };
        let start = Start::Model(ModelDir::open(golden()).expect("a model"));
        let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
        FinetuneJob::open(
            config(&["max_seq_length=40"]),
            start,
            tokenizer,
            vec![files],
        )
    };
    let refused = open(["a bird", "a tree"])
        .expect_err("no answer")
        .to_string();
    for part in [
        "train.csv: no question",
        "2 of 2 have",
        "\"q7\"",
        "line 2)",
        "--label-column",
    ] {
        assert!(refused.contains(part), "{refused:?} lacks {part:?}");
    }
    let notes = open(["old boat", "a tree"])
        .expect("a job")
        .tasks
        .remove(0)
        .notes;
    for part in [
        "1 answers were not at their offset",
        "1 questions have an answer",
    ] {
        assert!(notes.iter().any(|note| note.contains(part)), "{notes:?}");
    }
    assert!(
        notes.iter().any(|note| note.contains("\"q8\"")),
        "{notes:?}"
    );
}

/// The reference learns pairs without an order both ways round, and shares of a regression's range.
#[test]
fn pairs_and_values_are_learned_as_the_reference_does_with_its_head() {
    let dir = TempDir::new().expect("a directory");
    let train = dir.path().join("train.tsv");
    let rows = "sentence1\tsentence2\tscore\nold boat\tred river\t4.0\nbird\tstone tree\t1.5\n";
    std::fs::write(&train, rows).expect("a file");
    let open = |settings: &[&str]| {
        let files = TaskFiles {
            spec: TaskSpec::by_name("stsb").expect("a task"),
            train: train.clone(),
            dev: Some(train.clone()),
            open: OpenOptions::default(),
        };
        let start = Start::Model(ModelDir::open(golden()).expect("a model"));
        let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
        FinetuneJob::open(config(settings), start, tokenizer, vec![files]).expect("a job")
    };
    let targets = |job: &FinetuneJob| {
        let task = &job.tasks[0];
        let features: Vec<_> = task.train.iter().collect();
        match HostBatch::new(&task.entry.head, &features, 0).targets {
            Some(Targets::Values(values)) => values,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(targets(&open(&[])), [4.0, 1.5]);
    assert_eq!(
        targets(&open(&["double_unordered=true"])),
        [4.0, 1.5, 4.0, 1.5]
    );
    let google = open(&["head=google"]);
    assert_eq!(targets(&google), [0.8, 0.3, 0.8, 0.3]);
    let ids = |i: usize| &google.tasks[0].train[i].sequences[0].token_ids;
    assert_eq!(ids(0).len(), ids(2).len());
    assert_ne!(ids(0), ids(2));
    assert_eq!(
        targets(&open(&["head=google", "double_unordered=false"])),
        [0.8, 0.3]
    );

    // What comes out is values again: of the same model with another scale, so many times as much.
    let task = &google.tasks[0];
    let values = google.initial_values(1).expect("values");
    let mut backend = Cpu::new(CpuOptions::default()).expect("a CPU");
    let mut said = |scale: f32| {
        let mut spec = task.entry.head.clone();
        spec.value_scale = scale;
        let network = TaskNetwork::new(&google.network_config, &[spec]);
        let params = backend.params(&network.layout, &values);
        let mut step = TaskStep::for_inference();
        let outputs = outputs(&mut backend, &mut step, &network, 0, &params, &task.dev, 64);
        outputs
            .each
            .iter()
            .map(|o| o.logits[0])
            .collect::<Vec<f32>>()
    };
    let (once, scaled) = (said(1.0), said(5.0));
    assert!(once.iter().all(|v| *v != 0.0));
    assert_eq!(once.iter().map(|v| v * 5.0).collect::<Vec<_>>(), scaled);
}

/// Numbers that are all the same have no correlation; the run goes on all the same, and again from
/// its checkpoint.
#[test]
fn a_score_that_is_no_number_is_said_and_survives_a_checkpoint() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("values.tsv");
    let line = |i: usize| format!("the {} boat\t1.5\n", ["old", "red"][i % 2]);
    let text: String = (0..12).map(line).collect();
    std::fs::write(&file, format!("text\tlabel\n{text}")).expect("a written file");
    let task = TaskSpec::own(OwnTask::new("same", TaskKind::Regression)).expect("a task");
    let files = TaskFiles {
        spec: task,
        train: file.clone(),
        dev: Some(file),
        open: OpenOptions::default(),
    };
    let start = Start::Model(ModelDir::open(golden()).expect("a model"));
    let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
    let job = FinetuneJob::open(
        config(&["num_train_epochs=3"]),
        start,
        tokenizer,
        vec![files],
    );
    let job = job.expect("a job");
    let out = dir.path().join("out");
    let (first, _) = run(&job, &out, Some(3));
    assert!(
        matches!(first, Ok(FinetuneOutcome::Interrupted(_))),
        "{first:?}"
    );
    let (result, messages) = finished(&job, &out);
    assert!(result.trials[0].score.is_nan() && result.summary.best.is_nan());
    assert!(
        messages
            .iter()
            .any(|m| m.contains("spearman") && m.contains("number"))
    );
    assert!(messages.iter().all(|m| !m.contains("best so far")));
    // What is finished is read again.
    let (again, _) = finished(&job, &out);
    assert!(again.trials[0].score.is_nan());
}

#[test]
fn a_metric_or_a_loss_that_the_task_does_not_have_is_refused_before_the_first_step() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let out = dir.path().join("out");
    let job = open(config(&["metric=pearson"]), &["own"], &train, &dev);
    let (error, _) = run(&job, &out, None);
    let error = error.expect_err("no such metric").to_string();
    assert!(error.contains("pearson") && !out.exists(), "{error}");
    let values = dir.path().join("values.tsv");
    std::fs::write(&values, "text\tlabel\nthe boat\t1\nthe tree\t2\n").expect("a written file");
    let files = TaskFiles {
        spec: TaskSpec::own(OwnTask::new("size", TaskKind::Regression)).expect("a task"),
        train: values.clone(),
        dev: Some(values),
        open: OpenOptions::default(),
    };
    let start = Start::Model(ModelDir::open(golden()).expect("a model"));
    let tokenizer = Tokenizer::load(&golden(), None).expect("a tokenizer");
    let smoothed = config(&["label_smoothing=0.1"]);
    let refused = FinetuneJob::open(smoothed, start, tokenizer, vec![files]);
    let refused = refused.expect_err("no classes").to_string();
    assert!(
        refused.contains("label_smoothing") && refused.contains("size"),
        "{refused}"
    );
}

/// The reference sums the loss over the batch.
#[test]
fn the_loss_is_a_mean_and_with_compat_google_a_sum() {
    let dir = tempfile::tempdir().expect("a directory");
    let (train, dev) = files(dir.path());
    let first_step = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let settings: Vec<&str> = ["num_train_epochs=1"].iter().chain(more).copied().collect();
        finished(&open(config(&settings), &["boats"], &train, &dev), &out);
        let lines = metrics(&out);
        ["loss", "grad_norm"].map(|key| lines[0][key].as_f64().expect("a number"))
    };
    let mean = first_step("mean", &[]);
    let sum = first_step("sum", &["compat=google"]);
    for (mean, sum) in mean.into_iter().zip(sum) {
        // A batch of eight.
        assert!((sum / mean - 8.0).abs() < 1e-4, "{sum} for {mean}");
    }
}
