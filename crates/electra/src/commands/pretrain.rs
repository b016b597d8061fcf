//! `electra pretrain`: generator and discriminator from token shards.

use crate::device::{DeviceArgs, Facts, Work};
use crate::interrupt;
use anyhow::{Context, Result, bail};
use electra_engine::backend::Backend;
use electra_model::files::hub::{HubSettings, resolve};
use electra_train::config::PretrainConfig;
use electra_train::interrupt::StopFlag;
use electra_train::job::{InitFrom, PretrainJob};
use electra_train::metrics_log::EvalMetrics;
use electra_train::pretrain::{Outcome, RunContext, pretrain};
use electra_train::progress::observer_on_stderr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    #[arg(long)]
    out: PathBuf,
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

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut config = PretrainConfig::preset(&args.preset)?;
    if args.debug {
        config.set_debug();
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
    let trains_generator = config.electra_objective && !config.uniform_generator;
    let init_from = match &args.init_from {
        Some(name) => Some(models_of(name, trains_generator)?),
        None => None,
    };
    let job = PretrainJob::open(config, &args.data, args.tokenizer.as_deref(), init_from)?;
    let stop = interrupt::stop_on_signals()?;
    let outcome = args.device.run(Pretrain {
        job: &job,
        out: &args.out,
        resume_only: args.resume,
        log_steps: args.log_steps,
        stop: &stop,
    })?;
    match outcome {
        Outcome::Finished(evaluation) => {
            print_result(&args.out, evaluation.as_ref(), args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted(step) => {
            eprintln!("stopped after step {step}, with a checkpoint; the same command goes on");
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
                peak_flops: facts.peak_flops,
            },
        )?)
    }
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

/// The pair of models that `name` stands for.
fn models_of(name: &str, trains_generator: bool) -> Result<InitFrom> {
    let folder = Path::new(name);
    let (discriminator, generator) = (folder.join("discriminator"), folder.join("generator"));
    if discriminator.is_dir() {
        if trains_generator && !generator.is_dir() {
            bail!("--init-from {name}: there is a discriminator but no generator beside it");
        }
        return Ok(InitFrom {
            discriminator,
            generator: trains_generator.then_some(generator),
        });
    }
    let settings = HubSettings::from_env()?;
    let fetch = |model: &str| resolve(model, &settings, &mut |_| ());
    let (base, revision) = name
        .split_once('@')
        .map_or((name, ""), |(base, _)| (base, &name[base.len()..]));
    let Some(stem) = base.strip_suffix("-discriminator") else {
        bail!(
            "--init-from {name}: give a folder with `discriminator` and `generator`, or a name that \
             ends in -discriminator whose twin ends in -generator"
        );
    };
    Ok(InitFrom {
        discriminator: fetch(name)?,
        generator: match trains_generator {
            true => Some(
                fetch(&format!("{stem}-generator{revision}"))
                    .with_context(|| format!("the generator that belongs to {name}"))?,
            ),
            false => None,
        },
    })
}
