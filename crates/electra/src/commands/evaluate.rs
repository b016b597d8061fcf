//! `electra evaluate`: the scores of a fine-tuned model on labelled examples.

use super::models;
use super::task::ColumnArgs;
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::{Result, bail};
use electra_data::tasks::{Example, Examples, LabelColumn, LabelSet, Metric, TaskSpec};
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_model::files::ModelDir;
use electra_train::finetune::job::{feature_options, features_of};
use electra_train::finetune::model::{ModelTask, TaskModel};
use electra_train::finetune::score::{Evaluation, evaluate};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Score a fine-tuned model on labelled examples
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a fine-tuned model, or its name on the hub
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Name of the task [default: what the model was fine-tuned for]
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Labelled examples
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Tokens of a sequence [default: as fine-tuned]
    #[arg(long, value_name = "N")]
    max_seq_length: Option<usize>,
    /// Tokens that are computed at once
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
    /// Print the scores as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// The task that a model is asked for: by name and columns, else what it was fine-tuned for.
pub fn spec_of(task: &ModelTask, name: Option<&str>, columns: &ColumnArgs) -> Result<TaskSpec> {
    match (&task.spec, name) {
        (Some(spec), name)
            if columns.kind.is_none() && name.is_none_or(|name| name == spec.name) =>
        {
            Ok(spec.clone())
        }
        (_, Some(name)) => columns.task(name),
        (None, None) if columns.kind.is_some() => columns.task(&task.entry.head.name),
        _ => bail!(
            "the model does not say which task's files it reads; give --task NAME, or --kind for a \
             file of your own"
        ),
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let dir = ModelDir::open(models::folder(&args.model)?)?;
    let task = ModelTask::find(&dir, args.task.as_deref())?;
    let mut spec = spec_of(&task, args.task.as_deref(), &args.columns)?;
    if let Some(length) = args.max_seq_length {
        spec.max_seq_length = length;
    }
    let labels = task.labels(&spec)?;
    let tokenizer = Tokenizer::load(dir.path(), None)?;
    let open = args.columns.open(LabelColumn::Required);
    let mut reader = Examples::open(&spec, &args.data, open)?;
    let examples = (&mut reader).collect::<Result<Vec<Example>, _>>()?;
    if examples.is_empty() {
        bail!("{}: holds no example", args.data.display());
    }
    if let Some(note) = reader.header_note(&[]) {
        tell!("{note}");
    }
    if reader.skipped() > 0 {
        tell!("{} rows were left out as incomplete", reader.skipped());
    }
    labels.check(&examples)?;
    let evaluation = args.device.for_model(&dir).run(Evaluate {
        args: &args,
        dir: &dir,
        task: &task,
        spec: &spec,
        labels: &labels,
        tokenizer: &tokenizer,
        examples: &examples,
    })?;
    print(&args, &spec, examples.len(), &evaluation)?;
    Ok(ExitCode::SUCCESS)
}

struct Evaluate<'a> {
    args: &'a Args,
    dir: &'a ModelDir,
    task: &'a ModelTask,
    spec: &'a TaskSpec,
    labels: &'a LabelSet,
    tokenizer: &'a Tokenizer,
    examples: &'a [Example],
}

impl Work for Evaluate<'_> {
    const TRAINS: bool = false;
    type Output = Evaluation;

    fn run<B: Backend>(self, backend: &mut B, _: &Facts) -> Result<Evaluation> {
        let (spec, labels) = (self.spec, self.labels);
        let mut model = TaskModel::load(backend, self.dir)?;
        let positions = model.config().max_position_embeddings;
        let mut spec = spec.clone();
        spec.max_seq_length = spec.max_seq_length.min(positions);
        let (spec, options) = (&spec, feature_options(&spec, &self.task.entry.head));
        let mut notes = Vec::new();
        let (features, windows) = features_of(
            spec,
            self.tokenizer,
            labels,
            self.examples,
            options,
            &mut notes,
        )?;
        for note in notes {
            tell!("{note}");
        }
        let outputs = model.outputs(backend, self.task.head, &features, self.args.batch_tokens)?;
        Ok(evaluate(
            spec,
            labels,
            self.examples,
            &features,
            &windows,
            &outputs,
        )?)
    }
}

fn print(args: &Args, spec: &TaskSpec, examples: usize, evaluation: &Evaluation) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let scores = || {
        let named = |(metric, value): &(Metric, f64)| (metric.name(), *value);
        let loss = evaluation.loss.map(|loss| ("loss", loss));
        evaluation.scores.iter().map(named).chain(loss)
    };
    if args.json {
        let mut line = serde_json::Map::new();
        line.insert("task".into(), spec.name.as_str().into());
        line.insert("examples".into(), examples.into());
        line.extend(scores().map(|(name, value)| (name.to_owned(), value.into())));
        writeln!(out, "{}", serde_json::Value::Object(line))?;
        return Ok(());
    }
    for (name, value) in scores() {
        writeln!(out, "{name}\t{value:.4}")?;
    }
    Ok(())
}
