//! `electra finetune`: a pre-trained model and labelled data to a model for a task.

use super::models;
use super::task::ColumnArgs;
use crate::device::{DeviceArgs, Facts, Work};
use crate::interrupt;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use electra_data::tasks::LabelColumn;
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_model::config::ElectraConfig;
use electra_model::files::ModelDir;
use electra_model::heads::HeadStyle;
use electra_train::finetune::config::FinetuneConfig;
use electra_train::finetune::job::{FinetuneJob, Start};
use electra_train::finetune::run::{FinetuneOutcome, Finished, finetune};
use electra_train::finetune::task::TaskFiles;
use electra_train::interrupt::StopFlag;
use electra_train::pretrain::RunContext;
use electra_train::progress::observer_on_stderr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Fine-tune a model for a task; the same command goes on where it stopped
///
/// Tasks known by name: cola sst2 mrpc stsb qqp mnli qnli rte wnli squad squad2 conll2000 conll2003
/// wnut17 msra chnsenticorp cmrc2018 imdb agnews. For data of your own give a name of your own and
/// --kind. Several tasks share one encoder: give --task, --train and --dev once for each, in the
/// same order; --kind and columns are then those of the tasks that are not known by name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a model, or its name on the hub
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Begin with random values in a network of the model's sizes: only its config.json and its
    /// tokenizer are read
    #[arg(long)]
    scratch: bool,
    /// Name of the task; may be given again
    #[arg(long = "task", value_name = "NAME", required = true)]
    tasks: Vec<String>,
    /// Labelled examples to learn from
    #[arg(long, value_name = "FILE", required = true)]
    train: Vec<PathBuf>,
    /// Labelled examples to choose the best model by; `none` holds out a tenth of that task's --train
    /// [default: so for all]
    #[arg(long, value_name = "FILE")]
    dev: Vec<PathBuf>,
    /// Directory of the run, which is also the best model's
    #[arg(long)]
    out: PathBuf,
    /// Head: transformers' (hf) or the reference's (google) [default: hf]
    #[arg(long, value_enum)]
    head: Option<Head>,
    /// Do as the reference does: sum the loss over the batch, decay layerwise off by one
    #[arg(long, value_enum)]
    compat: Option<Compat>,
    /// Learn from so many examples of each class; every trial draws its own
    #[arg(long, value_name = "K")]
    shots: Option<usize>,
    /// Trials, each with a seed of its own
    #[arg(long, value_name = "N")]
    trials: Option<u32>,
    /// Seed of the first trial
    #[arg(long)]
    seed: Option<u64>,
    /// JSON file of hyper-parameters
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One hyper-parameter; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Refuse to begin a new run
    #[arg(long)]
    resume: bool,
    /// Steps between lines where stderr is no terminal
    #[arg(long, default_value_t = 50)]
    log_steps: u64,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Whose head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Head {
    /// transformers'; what is saved loads there.
    Hf,
    /// The reference's.
    Google,
}

/// Whose flaws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compat {
    /// The reference's.
    Google,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let config = config(&args)?;
    let (start, tokenizer) = start(&args.model, args.scratch)?;
    let job = FinetuneJob::open(config, start, tokenizer, task_files(&args)?)?;
    let stop = interrupt::stop_on_signals()?;
    let outcome = args.device.run(Finetune {
        job: &job,
        out: &args.out,
        resume_only: args.resume,
        log_steps: args.log_steps,
        stop: &stop,
    })?;
    match outcome {
        FinetuneOutcome::Finished(finished) => {
            print_result(&args, &job, &finished)?;
            Ok(ExitCode::SUCCESS)
        }
        FinetuneOutcome::Interrupted(step) => {
            tell!("stopped after step {step}, with a checkpoint; the same command goes on");
            Ok(interrupt::exit_code())
        }
    }
}

fn config(args: &Args) -> Result<FinetuneConfig> {
    let mut config = FinetuneConfig::default();
    if let Some(path) = &args.config {
        config.merge_file(path)?;
    }
    for assignment in &args.set {
        config.set(assignment)?;
    }
    match args.head {
        Some(Head::Hf) => config.head = HeadStyle::Hf,
        Some(Head::Google) => config.head = HeadStyle::Google,
        None => {}
    }
    if args.compat == Some(Compat::Google) {
        config.compat = Some("google".into());
    }
    if args.shots.is_some() {
        config.shots = args.shots;
    }
    if let Some(trials) = args.trials {
        config.num_trials = trials;
    }
    if let Some(seed) = args.seed {
        config.seed = seed;
    }
    Ok(config)
}

/// The model to begin with, and its tokenizer.
pub fn start(model: &str, scratch: bool) -> Result<(Start, Tokenizer)> {
    let folder = match scratch {
        // There may be no weights in it.
        true if Path::new(model).is_dir() => model.into(),
        _ => models::folder(model)?,
    };
    let start = match scratch {
        true => {
            let path = folder.join("config.json");
            Start::Scratch(ElectraConfig::read(path)?)
        }
        false => Start::Model(ModelDir::open(&folder)?),
    };
    let tokenizer = Tokenizer::load(&folder, None)
        .with_context(|| format!("the tokenizer of {}", folder.display()))?;
    Ok((start, tokenizer))
}

/// Each task with its files.
fn task_files(args: &Args) -> Result<Vec<TaskFiles>> {
    let (tasks, train, dev) = (args.tasks.len(), args.train.len(), args.dev.len());
    if train != tasks || (dev != 0 && dev != tasks) {
        bail!(
            "{tasks} --task, {train} --train and {dev} --dev: give --train once for each task, in \
             the same order, and --dev for all of them (--dev none for one without) or not at all"
        );
    }
    let dev = args.dev.iter().map(Some).chain(std::iter::repeat(None));
    let specs = args.columns.tasks(&args.tasks)?;
    let files = specs.into_iter().zip(&args.train).zip(dev);
    Ok(files
        .map(|((spec, train), dev)| TaskFiles {
            spec,
            train: train.clone(),
            dev: dev
                .filter(|path| path.as_path() != Path::new("none"))
                .cloned(),
            open: args.columns.open(LabelColumn::Required),
        })
        .collect())
}

/// A fine-tuning run for a backend.
pub struct Finetune<'a> {
    /// Model, tasks and data.
    pub job: &'a FinetuneJob,
    /// The run directory.
    pub out: &'a Path,
    /// Refuse to begin a new run.
    pub resume_only: bool,
    /// Steps between lines where stderr is no terminal.
    pub log_steps: u64,
    /// Asks to stop.
    pub stop: &'a StopFlag,
}

impl Work for Finetune<'_> {
    const TRAINS: bool = true;
    type Output = FinetuneOutcome;

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<FinetuneOutcome> {
        let mut observer = observer_on_stderr(self.log_steps);
        Ok(finetune(
            backend,
            self.job,
            RunContext {
                out: self.out,
                resume_only: self.resume_only,
                observer: observer.as_mut(),
                stop: self.stop,
                precision: facts.precision,
                environment: facts.environment.clone(),
                // Sequences are short here; what is measured is the score.
                peak_flops: None,
            },
        )?)
    }
}

fn print_result(args: &Args, job: &FinetuneJob, finished: &Finished) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let scores: serde_json::Map<_, _> = job
        .tasks
        .iter()
        .zip(&finished.evaluations)
        .map(|(task, evaluation)| {
            let scores: serde_json::Map<_, _> = evaluation
                .scores
                .iter()
                .map(|(metric, value)| (metric.name().to_owned(), (*value).into()))
                .collect();
            (task.spec.name.clone(), scores.into())
        })
        .collect();
    let summary = &finished.summary;
    if args.json {
        let line = serde_json::json!({
            "out": args.out,
            "scores": scores,
            "summary": summary,
            "trials": finished.trials,
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    for (task, evaluation) in job.tasks.iter().zip(&finished.evaluations) {
        write!(out, "{}", task.spec.name)?;
        for (metric, value) in &evaluation.scores {
            write!(out, "  {} {value:.4}", metric.name())?;
        }
        writeln!(out)?;
    }
    if finished.trials.len() > 1 {
        writeln!(
            out,
            "{} trials: mean {:.4}  median {:.4}  best {:.4}  worst {:.4}  standard deviation {:.4}",
            finished.trials.len(),
            summary.mean,
            summary.median,
            summary.best,
            summary.worst,
            summary.deviation
        )?;
    }
    writeln!(out, "{}", args.out.display())?;
    Ok(())
}
