//! Short runs on a small made-up corpus.

// Not every test needs all of it.
#![allow(dead_code)]

use electra_data::prepare::{PrepareOptions, prepare};
use electra_data::read::{ReadOptions, expand};
use electra_data::tokenizer::Tokenizer;
use electra_data::vocabulary::{VocabularyOptions, WordCounts};
use electra_data::words::Normalisation;
use electra_engine::backend::Backend;
use electra_engine::cpu::{Cpu, CpuOptions};
use electra_engine::rng::{Purpose, Rng};
use electra_train::checkpoint::Checkpoint;
use electra_train::config::PretrainConfig;
use electra_train::interrupt::StopFlag;
use electra_train::job::PretrainJob;
use electra_train::metrics_log::{EvalMetrics, MetricsLine, read_metrics};
use electra_train::pretrain::{Outcome, PretrainError, RunContext, pretrain};
use electra_train::progress::{Observer, StepLine};
use std::path::{Path, PathBuf};

/// Sentences in which every second word follows from the one before, so that there is something
/// to learn.
pub fn text(documents: u32) -> String {
    let rng = Rng::new(1, 1);
    let mut text = String::new();
    for document in 0..documents {
        for line in 0..4 {
            let mut words = Vec::new();
            for place in 0..6 {
                let noun = rng.below(8, Purpose::Test, 0, document, line * 10 + place, 0);
                words.push(format!("w{noun} v{}", (noun * 3 + 1) % 8));
            }
            text += &format!("{}.\n", words.join(" "));
        }
        text += "\n";
    }
    text
}

/// Shards of the made-up corpus.
pub fn corpus(dir: &Path) -> PathBuf {
    let (input, shards) = (dir.join("text.txt"), dir.join("shards"));
    std::fs::write(&input, text(2000)).expect("a writable directory");
    let inputs = expand(&[input.display().to_string()]).expect("the input");
    let mut counts = WordCounts::new(Normalisation::UNCASED);
    counts
        .add_inputs(&inputs, &ReadOptions::default(), &mut |_| ())
        .expect("text");
    let options = VocabularyOptions {
        size: 100,
        min_frequency: 2,
    };
    let tokenizer: Tokenizer = counts.train(&options).expect("a vocabulary");
    prepare(
        &inputs,
        &tokenizer,
        &shards,
        &PrepareOptions::default(),
        &mut |_| (),
        &|| false,
    )
    .expect("shards");
    shards
}

/// Settings of a short run with networks of its own.
pub fn config(settings: &[&str]) -> PretrainConfig {
    let mut all = vec![
        "model_hparam_overrides={\"hidden_size\":32,\"num_hidden_layers\":2,\"num_attention_heads\":2,\"intermediate_size\":64}",
        "embedding_size=16",
    ];
    all.extend(settings);
    continued(&all)
}

/// Settings of a short run whose networks are given.
pub fn continued(settings: &[&str]) -> PretrainConfig {
    let mut config = PretrainConfig::preset("tiny").expect("a preset");
    for setting in [
        "max_seq_length=32",
        "train_batch_size=8",
        "eval_batch_size=8",
        "num_train_steps=12",
        "num_warmup_steps=2",
        "save_checkpoints_steps=4",
        "keep_checkpoint_max=2",
        "eval_steps=5",
        "held_out=0.02",
    ]
    .iter()
    .chain(settings)
    {
        config
            .set(setting)
            .unwrap_or_else(|e| panic!("{setting}: {e}"));
    }
    config
}

/// Asks to stop after a step, and keeps what it is told.
struct StopAfter {
    step: u64,
    flag: StopFlag,
    messages: Vec<String>,
}

impl Observer for StopAfter {
    fn on_step(&mut self, line: &StepLine) {
        if line.metrics.step == self.step {
            self.flag.request();
        }
    }
    fn on_eval(&mut self, _: &EvalMetrics) {}
    fn on_message(&mut self, message: &str) {
        self.messages.push(message.to_owned());
    }
}

pub struct Ran {
    pub outcome: Result<Outcome, PretrainError>,
    pub messages: Vec<String>,
}

/// Runs `config` on `shards` into `out`, to the end or until after step `stop`.
pub fn run_on<B: Backend>(
    backend: &mut B,
    config: PretrainConfig,
    shards: &Path,
    out: &Path,
    stop: u64,
) -> Ran {
    let job = PretrainJob::open(config, shards, None, None).expect("a job");
    run_job(backend, &job, out, stop)
}

pub fn run_job<B: Backend>(backend: &mut B, job: &PretrainJob, out: &Path, stop: u64) -> Ran {
    let flag = StopFlag::new();
    let mut observer = StopAfter {
        step: stop,
        flag: flag.clone(),
        messages: Vec::new(),
    };
    let outcome = pretrain(
        backend,
        job,
        RunContext {
            out,
            resume_only: false,
            observer: &mut observer,
            stop: &flag,
            precision: "f32",
            environment: Vec::new(),
            peak_flops: None,
        },
    );
    Ran {
        outcome,
        messages: observer.messages,
    }
}

pub fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions {
        threads: Some(threads),
        ..CpuOptions::default()
    })
    .expect("a CPU")
}

/// `metrics.jsonl` without what depends on the clock.
pub fn timeless(out: &Path) -> Vec<MetricsLine> {
    let mut lines = read_metrics(&out.join("metrics.jsonl")).expect("metrics");
    for line in &mut lines {
        match line {
            MetricsLine::Step(m) => m.tokens_per_s = 0.0,
            MetricsLine::Eval(_) | MetricsLine::Probe(_) => {}
        }
    }
    lines
}

pub fn last_checkpoint(out: &Path, step: u64) -> Checkpoint {
    let path = out.join(format!("checkpoints/step-{step:08}"));
    let mut checkpoint = Checkpoint::read(&path).unwrap_or_else(|e| panic!("{e}"));
    checkpoint.state["seconds"] = 0.into();
    checkpoint
}

/// Asserts that two runs ended alike: parameters, moments, counters, metrics, models.
pub fn assert_same_end(a: &Path, b: &Path, step: u64) {
    let (left, right) = (last_checkpoint(a, step), last_checkpoint(b, step));
    assert_eq!(left.state, right.state);
    for ((name, left), (_, right)) in left.arrays.iter().zip(&right.arrays) {
        let same = left
            .iter()
            .zip(right)
            .all(|(l, r)| l.to_bits() == r.to_bits());
        assert!(same, "{name} differs");
    }
    assert_eq!(timeless(a), timeless(b));
    for model in ["discriminator", "generator"] {
        let read = |out: &Path| std::fs::read(out.join(model).join("model.safetensors")).ok();
        assert_eq!(read(a), read(b), "{model}");
    }
}
