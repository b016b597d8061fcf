//! `electra evaluate`: the scores of a fine-tuned model on labelled examples.

use super::models;
use super::prompt::{Prompt, PromptArgs};
use super::task::ColumnArgs;
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::{Result, bail};
use electra_data::metrics::classification::Confusion;
use electra_data::tasks::classification::class_scores;
use electra_data::tasks::{
    Example, Examples, Gold, LabelColumn, LabelSet, Metric, TaskKind, TaskSpec,
};
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_model::files::ModelDir;
use electra_train::finetune::model::{ModelTask, TaskModel};
use electra_train::finetune::score::{Evaluation, evaluate};
use electra_train::finetune::task::{feature_options, features_of};
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
    /// Tokens from one window of a question's text to the next [default: as fine-tuned]
    #[arg(long, value_name = "N")]
    doc_stride: Option<usize>,
    /// Another score beside the task's, such as precision, recall, f1, f1_macro or mcc; may be given
    /// again
    #[arg(long = "metric", value_name = "NAME", value_parser = metric)]
    metrics: Vec<Metric>,
    /// Tokens that are computed at once
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
    /// Print the scores as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// The task that a model is asked for: by name and kind, else what it was fine-tuned for, with what
/// the columns say of the file. Says so where the model was fine-tuned for another.
pub fn spec_of(task: &ModelTask, name: Option<&str>, columns: &ColumnArgs) -> Result<TaskSpec> {
    if let Some(name) = name
        && let Some(tuned) = other_task(task, name)
    {
        tell!("warning: the model was fine-tuned for {tuned}, and is asked about {name}");
    }
    if columns.is_own() {
        return columns.task(name.unwrap_or(&task.entry.head.name));
    }
    match (&task.spec, name) {
        (Some(spec), name) if name.is_none_or(|name| name == spec.name) => {
            columns.over(spec.clone())
        }
        (_, Some(name)) => columns.task(name),
        (_, None) => bail!(
            "the model does not say which task's files it reads; give --task NAME, or --kind for a \
             file of your own"
        ),
    }
}

/// What the model was fine-tuned for, if it is not the task called `name`.
pub fn other_task<'a>(task: &'a ModelTask, name: &str) -> Option<&'a str> {
    let tuned = task.spec.as_ref()?.name.as_str();
    (tuned != name).then_some(tuned)
}

/// The metric of a name.
fn metric(name: &str) -> Result<Metric, String> {
    let known = || Metric::ALL.map(Metric::name).join(", ");
    Metric::by_name(name).ok_or_else(|| format!("there is no such metric; known are {}", known()))
}

/// Adds the metrics that are asked for to those of the task.
fn ask_for(metrics: &[Metric], spec: &mut TaskSpec) {
    for metric in metrics {
        if !spec.metrics.contains(metric) {
            spec.metrics.push(*metric);
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let dir = ModelDir::open(models::folder(&args.model)?)?;
    let device = args.device.clone().for_model(&dir);
    let tokenizer = Tokenizer::load(dir.path(), None)?;
    let (spec, examples, evaluation) = match args.prompt.prompt(&dir, &tokenizer)? {
        Some(prompt) => {
            if args.task.is_none() && !args.columns.is_own() {
                bail!("--template needs --task or --kind, which say how --data is read");
            }
            if args.max_seq_length.is_some() || args.doc_stride.is_some() {
                bail!(
                    "--max-seq-length and --doc-stride are for heads: a template takes what the \
                     model does"
                );
            }
            let mut spec = args.columns.task(args.task.as_deref().unwrap_or("own"))?;
            ask_for(&args.metrics, &mut spec);
            if spec.kind != TaskKind::Classification {
                bail!(
                    "--template is for classification, and {} is none",
                    spec.name
                );
            }
            let labels = LabelSet::new(LabelSet::in_order(&spec, prompt.labels()))?;
            let examples = read(&args, &spec, &labels)?;
            let evaluation = device.run(EvaluatePrompt {
                prompt: &prompt,
                spec: &spec,
                labels: &labels,
                examples: &examples,
                batch_tokens: args.batch_tokens,
            })?;
            (spec, examples.len(), evaluation)
        }
        None => {
            let task = ModelTask::find(&dir, args.task.as_deref(), |_| true)?;
            let mut spec = spec_of(&task, args.task.as_deref(), &args.columns)?;
            ask_for(&args.metrics, &mut spec);
            if args.doc_stride.is_some() && spec.kind != TaskKind::QuestionAnswering {
                bail!("--doc-stride is for questions, and {} has none", spec.name);
            }
            spec.max_seq_length = args.max_seq_length.unwrap_or(spec.max_seq_length);
            spec.doc_stride = args.doc_stride.unwrap_or(spec.doc_stride);
            let labels = task.labels(&spec)?;
            let examples = read(&args, &spec, &labels)?;
            let evaluation = device.run(Evaluate {
                args: &args,
                dir: &dir,
                task: &task,
                spec: &spec,
                labels: &labels,
                tokenizer: &tokenizer,
                examples: &examples,
            })?;
            (spec, examples.len(), evaluation)
        }
    };
    print(&args, &spec, examples, &evaluation)?;
    Ok(ExitCode::SUCCESS)
}

/// The labelled examples.
fn read(args: &Args, spec: &TaskSpec, labels: &LabelSet) -> Result<Vec<Example>> {
    let open = args.columns.open(LabelColumn::Required);
    let mut reader = Examples::open(spec, &args.data, open)?;
    let examples = (&mut reader).collect::<Result<Vec<Example>, _>>()?;
    reader.not_empty(&examples)?;
    if let Some(note) = reader.header_note(&[]) {
        tell!("{note}");
    }
    if reader.surplus() > 0 {
        tell!(
            "warning: {} rows have more cells than the first; these are not read",
            reader.surplus()
        );
    }
    if reader.skipped() > 0 {
        tell!("{} rows were left out as incomplete", reader.skipped());
    }
    labels.check(&examples)?;
    Ok(examples)
}

/// What a discriminator says of the words of a template, scored.
struct EvaluatePrompt<'a> {
    prompt: &'a Prompt<'a>,
    spec: &'a TaskSpec,
    labels: &'a LabelSet,
    examples: &'a [Example],
    batch_tokens: usize,
}

impl Work for EvaluatePrompt<'_> {
    const TRAINS: bool = false;
    type Output = Evaluation;

    fn run<B: Backend>(self, backend: &mut B, _: &Facts) -> Result<Evaluation> {
        let mut prompted = self.prompt.load(backend, self.batch_tokens)?;
        let mut confusion = Confusion::new(self.labels.len());
        let mut loss = 0.0;
        let all = prompted.scores(backend, self.examples)?;
        let given = self.prompt.labels();
        let place = |name: &String| given.iter().position(|label| label == name);
        let places: Vec<usize> = self.labels.names().iter().filter_map(place).collect();
        for (example, scores) in self.examples.iter().zip(all) {
            let scores: Vec<f64> = places.iter().map(|&place| scores[place]).collect();
            let Some(Gold::Class(gold)) = &example.gold else {
                continue;
            };
            let Some(gold) = self.labels.id(gold) else {
                continue;
            };
            let best = (0..).zip(&scores).max_by(|a, b| a.1.total_cmp(b.1));
            confusion.add(gold, best.map_or(0, |(label, _)| label));
            loss -= scores[gold as usize].ln();
        }
        prompted.warn();
        Ok(Evaluation {
            loss: Some(loss / self.examples.len() as f64),
            scores: class_scores(&confusion, &self.spec.metrics)?,
            ..Evaluation::default()
        })
    }
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
