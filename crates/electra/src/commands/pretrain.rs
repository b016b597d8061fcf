//! `electra pretrain`: generator and discriminator from token shards.

use super::models;
use crate::device::{DeviceArgs, Facts, Work, thread_count};
use crate::interrupt;
use anyhow::{Context, Result, bail};
use electra_data::tasks::{OpenOptions, TaskSpec};
use electra_engine::backend::Backend;
use electra_model::pretraining::Objective;
use electra_train::config::PretrainConfig;
use electra_train::finetune::task::TaskFiles;
use electra_train::interrupt::StopFlag;
use electra_train::job::{GivenModel, InitFrom, PretrainJob};
use electra_train::metrics_log::EvalMetrics;
use electra_train::pretrain::{Outcome, RunContext, pretrain};
use electra_train::progress::observer_on_stderr;
use electra_train::run_dir::RunFile;
use electra_train::trainer::{Position, Trainer};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// Pre-train a generator and a discriminator; the same command goes on where it stopped
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sizes and hyper-parameters: tiny, small, base or large
    #[arg(long, default_value = "small")]
    preset: String,
    /// Directory that `electra prepare` wrote
    #[arg(long)]
    data: PathBuf,
    /// The tokenizer that the data must have been prepared with [default: the one beside it]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Directory of the run
    #[arg(long, required_unless_present = "evaluate")]
    out: Option<PathBuf>,
    /// JSON file of hyper-parameters
    #[arg(long)]
    config: Option<PathBuf>,
    /// One hyper-parameter; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of everything random
    #[arg(long)]
    seed: Option<u64>,
    /// Refuse to begin a new run
    #[arg(long)]
    resume: bool,
    /// Begin with these models: a run or a folder with `discriminator` and `generator`, or the hub
    /// name of a discriminator
    #[arg(long, value_name = "DIR")]
    init_from: Option<String>,
    /// Train nothing: measure the models of --init-from on the held-out part of the data
    #[arg(long, requires = "init_from", conflicts_with_all = ["out", "resume", "probes"])]
    evaluate: bool,
    /// Probe the encoder during training: fine-tune a copy of it for a task known by name, and
    /// record the score. Without DEV a tenth of TRAIN is held out. May be given again
    #[arg(long = "probe", value_name = "TASK=TRAIN[,DEV]")]
    probes: Vec<ProbeFiles>,
    /// Steps from one probing to the next; at the end there is always one [default: eval_steps]
    #[arg(long, alias = "probe_steps", value_name = "N", requires = "probes")]
    probe_steps: Option<u64>,
    /// Shrink everything, to see whether it runs at all
    #[arg(long)]
    debug: bool,
    /// Steps between lines where stderr is no terminal
    #[arg(long, default_value_t = 50)]
    log_steps: u64,
    /// Print the last evaluation to stdout as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A task to probe with, and its files.
#[derive(Clone, Debug, PartialEq)]
struct ProbeFiles {
    task: String,
    train: PathBuf,
    dev: Option<PathBuf>,
}

impl FromStr for ProbeFiles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            || format!("give TASK=FILE or TASK=TRAIN,DEV, as in sst2=train.tsv, not {text:?}");
        let (task, files) = text.split_once('=').ok_or_else(form)?;
        let (train, dev) = match files.split_once(',') {
            Some((train, dev)) => (train, Some(dev)),
            None => (files, None),
        };
        if task.is_empty() || train.is_empty() || dev.is_some_and(str::is_empty) {
            return Err(form());
        }
        Ok(ProbeFiles {
            task: task.into(),
            train: train.into(),
            dev: dev.map(PathBuf::from),
        })
    }
}

impl ProbeFiles {
    fn task_files(&self) -> Result<TaskFiles> {
        Ok(TaskFiles {
            spec: TaskSpec::by_name(&self.task)
                .with_context(|| format!("--probe {}", self.task))?,
            train: self.train.clone(),
            dev: self.dev.clone(),
            open: OpenOptions::default(),
        })
    }
}

/// Settings that decide which models there are, what they are measured on, and how.
const MEASURED_BY: [&str; 11] = [
    "electra_objective",
    "uniform_generator",
    "untied_generator",
    "untied_generator_embeddings",
    "seed",
    "held_out",
    "max_seq_length",
    "examples",
    "mask_prob",
    "temperature",
    "disallow_correct",
];

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut config = PretrainConfig::preset(&args.preset)?;
    if args.debug {
        config.shrink();
    }
    if let (true, Some(name)) = (args.evaluate, &args.init_from)
        && let Ok(run) = RunFile::read(Path::new(name))
    {
        // A run's models are measured as it measured them, on what it held out.
        let own = run.settings.into_iter();
        let own = own.filter(|(key, _)| MEASURED_BY.contains(&key.as_str()));
        config.merge(&own.collect(), &format!("{name}/run.json"))?;
    }
    if let Some(path) = &args.config {
        config.merge_file(path)?;
    }
    for assignment in &args.set {
        config.set(assignment)?;
    }
    if let Some(seed) = args.seed {
        config.seed = seed;
    }
    if args.debug {
        let parts = &mut config.gradient_accumulation_steps;
        *parts = (*parts).min(config.train_batch_size);
    }
    let init_from = match &args.init_from {
        Some(name) => Some(match models_of(name, config.objective()) {
            Ok(models) => models,
            // A run that is under way needs them no more.
            Err(error) => match args
                .out
                .as_deref()
                .map(InitFrom::recorded)
                .transpose()?
                .flatten()
            {
                Some(recorded) => {
                    tell!("{error:#}; the run goes on without");
                    recorded
                }
                None => return Err(error),
            },
        }),
        None => None,
    };
    let eval_steps = config.eval_steps;
    let mut job = PretrainJob::open(config, &args.data, args.tokenizer.as_deref(), init_from)?;
    let probes = args.probes.iter().map(ProbeFiles::task_files);
    let probes = probes.collect::<Result<Vec<_>>>()?;
    job.set_threads(thread_count(args.device.threads)?);
    job.set_probes(probes, args.probe_steps.unwrap_or(eval_steps))
        .context("--probe")?;
    let stop = interrupt::stop_on_signals()?;
    let Some(out) = &args.out else {
        if job.held_out.is_none() {
            bail!("held_out is 0, so there is nothing to measure on");
        }
        let measured = args.device.run(Evaluate {
            job: &job,
            stop: &stop,
        })?;
        return match measured {
            Some(metrics) => print_metrics(&metrics, args.json),
            None => Ok(interrupt::exit_code()),
        };
    };
    let outcome = args.device.run(Pretrain {
        job: &job,
        out,
        resume_only: args.resume,
        log_steps: args.log_steps,
        stop: &stop,
    })?;
    match outcome {
        Outcome::Finished(evaluation) => {
            print_result(out, evaluation.as_ref(), args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted(step) => {
            tell!("stopped after step {step}, with a checkpoint; the same command goes on");
            Ok(interrupt::exit_code())
        }
    }
}

/// A pre-training run for a backend.
pub struct Pretrain<'a> {
    /// Networks and data.
    pub job: &'a PretrainJob,
    /// The run directory.
    pub out: &'a Path,
    /// Refuse to begin a new run.
    pub resume_only: bool,
    /// Steps between lines where stderr is no terminal.
    pub log_steps: u64,
    /// Asks to stop.
    pub stop: &'a StopFlag,
}

impl Work for Pretrain<'_> {
    const TRAINS: bool = true;
    const RATED: bool = true;
    type Output = Outcome;

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<Outcome> {
        let mut observer = observer_on_stderr(self.log_steps);
        Ok(pretrain(
            backend,
            self.job,
            RunContext {
                out: self.out,
                resume_only: self.resume_only,
                observer: observer.as_mut(),
                stop: self.stop,
                precision: facts.precision,
                environment: facts.environment.clone(),
                peak_flops: facts.peak_flops(),
            },
        )?)
    }
}

/// Measures the models that a job begins with.
struct Evaluate<'a> {
    job: &'a PretrainJob,
    stop: &'a StopFlag,
}

impl Work for Evaluate<'_> {
    const TRAINS: bool = true;
    type Output = Option<EvalMetrics>;

    fn run<B: Backend>(self, backend: &mut B, _: &Facts) -> Result<Self::Output> {
        let values = self.job.initial_values(&mut |_| ())?;
        let zeros = vec![0.0; values.len()];
        let arrays = [&values[..], &zeros, &zeros];
        let mut trainer = Trainer::new(backend, self.job, arrays, Position::default());
        let measured = trainer.evaluate(backend, 0, self.stop)?;
        Ok(measured.map(|(metrics, _)| metrics))
    }
}

fn print_metrics(metrics: &EvalMetrics, json: bool) -> Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(metrics)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in serde_json::to_value(metrics)?
        .as_object()
        .into_iter()
        .flatten()
    {
        // Steps and tokens are a run's, and nothing was trained here.
        let measure = name.strip_prefix("eval_").filter(|name| *name != "tokens");
        if let (Some(measure), Some(value)) = (measure, value.as_f64()) {
            writeln!(stdout, "{measure:<18}{value:.4}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_result(out: &Path, evaluation: Option<&EvalMetrics>, json: bool) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    if json {
        let line = serde_json::json!({ "out": out, "evaluation": evaluation });
        writeln!(stdout, "{line}")?;
        return Ok(());
    }
    writeln!(stdout, "{}", out.display())?;
    Ok(())
}

/// The models that `name` stands for: those of the networks that are trained.
fn models_of(name: &str, objective: Objective) -> Result<InitFrom> {
    let trains_generator = objective != Objective::GivenReplacements;
    let trains_discriminator = objective != Objective::MaskedLm;
    let folder = Path::new(name);
    let (discriminator, generator) = (folder.join("discriminator"), folder.join("generator"));
    if discriminator.is_dir() || generator.is_dir() {
        let part = |wanted: bool, path: PathBuf, what: &str| match wanted {
            true if !path.is_dir() => bail!("--init-from {name}: there is no {what} in it"),
            wanted => Ok(wanted.then_some(GivenModel::Directory(path))),
        };
        return Ok(InitFrom {
            discriminator: part(trains_discriminator, discriminator, "discriminator")?,
            generator: part(trains_generator, generator, "generator")?,
        });
    }
    let (base, revision) = match name.split_once('@') {
        Some((base, _)) => (base, &name[base.len()..]),
        None => (name, ""),
    };
    let Some(stem) = base.strip_suffix("-discriminator") else {
        bail!(
            "--init-from {name}: give a folder with `discriminator` and `generator`, or a name that \
             ends in -discriminator whose twin ends in -generator"
        );
    };
    let fetch = |wanted: bool, name: String| {
        let model = wanted.then(|| models::folder(&name).map(GivenModel::Directory));
        model.transpose()
    };
    Ok(InitFrom {
        discriminator: fetch(trains_discriminator, name.to_owned())?,
        generator: fetch(trains_generator, format!("{stem}-generator{revision}"))
            .with_context(|| format!("the generator that belongs to {name}"))?,
    })
}
