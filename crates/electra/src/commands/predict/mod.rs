//! `electra predict`: what a model says about texts, one a line.

mod answer;
mod batches;
mod choose;
mod classify;
mod detect;
mod embed;
mod fill;
mod incoming;
mod lines;
mod prompt;
mod source;
mod tag;
mod tasks;
mod windows;

use super::corpus::{counted, report_invalid};
use super::models;
use super::prompt::{Prompt, PromptArgs};
use super::task::ColumnArgs;
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::{Context, Result, bail};
use batches::{Asked, Head};
use clap::ValueEnum;
use detect::Detect;
use electra_data::tokenizer::{TokenSpan, Tokenizer};
use electra_engine::backend::Backend;
use electra_model::files::{ModelDir, ModelKind};
use fill::Fill;
use lines::Lines;
use prompt::PromptAll;
use source::Source;
use std::io::{BufWriter, IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use windows::Window;

/// Say what a model says about texts
///
/// Plain input has one text a line. Of --as answer a line is a question, a tab and the text; of
/// --as choose a beginning and what may follow it, divided by tabs; of --as classify --pair two
/// texts with a tab between. With --task or --kind the input is a file of that task, read as
/// `electra evaluate` does, with labels, which are not looked at, or without; with --lines it is
/// plain all the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a model, or its name on the hub
    #[arg(long, value_name = "DIR")]
    model: String,
    /// What to predict
    #[arg(long = "as", value_enum)]
    task: Task,
    /// Texts, one a line [default: standard input]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print one JSON object a text
    #[arg(long)]
    json: bool,
    /// Candidates for each mask, classes of a text, answers to a question [default: 5 of a mask,
    /// else 1]
    #[arg(long, value_name = "K")]
    top_k: Option<NonZeroUsize>,
    /// What to do with texts that are longer than the model takes [default: window for tag and
    /// answer, else truncate]
    #[arg(long, value_enum)]
    long: Option<Long>,
    /// Texts of 128 tokens that are computed at once; of shorter ones more
    #[arg(long, value_name = "N", default_value_t = BATCH_SIZE)]
    batch_size: NonZeroUsize,
    #[command(flatten)]
    task_args: TaskArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Options of fine-tuned models.
#[derive(Clone, Debug, clap::Args)]
struct TaskArgs {
    /// Which task of a model of several; the input is then read as a file of this task
    #[arg(long = "task", value_name = "NAME")]
    task_name: Option<String>,
    /// The input has a text a line, also with --task
    #[arg(long, conflicts_with_all = ["kind", "submission"])]
    lines: bool,
    /// Lines of two texts with a tab between [default: as fine-tuned]
    #[arg(long)]
    pair: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Write what GLUE's server takes: every row of --input has its line. With DIR into a file
    /// there, called as the server wants it
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "json")]
    submission: Option<Option<PathBuf>>,
    /// How tokens become spans, as in transformers: none, simple, first, average or max
    #[arg(long, value_name = "STRATEGY", default_value = "simple",
          value_parser = ["none", "simple", "first", "average", "max"])]
    aggregation: String,
    /// Tokens of a sequence [default: as fine-tuned]
    #[arg(long, value_name = "N")]
    max_seq_length: Option<usize>,
    /// Tokens from one window of a question's text to the next [default: as fine-tuned]
    #[arg(long, value_name = "N")]
    doc_stride: Option<usize>,
    /// Tokens of the longest answer
    #[arg(long, value_name = "N", default_value_t = MAX_ANSWER_LEN)]
    max_answer_len: NonZeroUsize,
    /// An answer that begins or ends within a word has all of it, as in transformers
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    align_to_words: bool,
    /// A question may have no answer [default: as fine-tuned]
    #[arg(long)]
    null_answer: bool,
    /// From what on there is none; inf: never [default: 0, and -2.75 of the reference's head]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    null_threshold: Option<f64>,
    /// Which states make the vector of a text
    #[arg(long, value_enum, default_value = "mean")]
    pooling: Pooling,
    #[command(flatten)]
    columns: ColumnArgs,
}

impl TaskArgs {
    /// Refuses options of another `--as`, which would do nothing.
    fn refuse_others(&self, task: Task) -> Result<()> {
        let default = TaskArgs::default();
        for (given, option, of, name) in [
            (
                self.aggregation != default.aggregation,
                "--aggregation",
                Task::Tag,
                "tag",
            ),
            (
                self.pooling != default.pooling,
                "--pooling",
                Task::Embed,
                "embed",
            ),
            (
                self.doc_stride.is_some(),
                "--doc-stride",
                Task::Answer,
                "answer",
            ),
            (
                self.max_answer_len != default.max_answer_len,
                "--max-answer-len",
                Task::Answer,
                "answer",
            ),
            (
                self.align_to_words != default.align_to_words,
                "--align-to-words",
                Task::Answer,
                "answer",
            ),
            (self.null_answer, "--null-answer", Task::Answer, "answer"),
            (
                self.null_threshold.is_some(),
                "--null-threshold",
                Task::Answer,
                "answer",
            ),
        ] {
            if given && task != of {
                bail!("{option} is for --as {name}");
            }
        }
        Ok(())
    }

    /// Whether the input is a file of a task, not lines of text.
    fn is_file(&self) -> Result<bool> {
        let named = self.task_name.is_some() || self.columns.is_own();
        let file = named && !self.lines;
        if !file && self.columns.describes_a_file() {
            bail!(
                "columns, header and format say how a file of a task is read: give --task or --kind, \
                 without --lines"
            );
        }
        Ok(file)
    }
}

impl Default for TaskArgs {
    fn default() -> Self {
        TaskArgs {
            task_name: None,
            lines: false,
            pair: false,
            prompt: PromptArgs::default(),
            submission: None,
            aggregation: "simple".into(),
            max_seq_length: None,
            doc_stride: None,
            max_answer_len: MAX_ANSWER_LEN,
            align_to_words: true,
            null_answer: false,
            null_threshold: None,
            pooling: Pooling::Mean,
            columns: ColumnArgs::default(),
        }
    }
}

/// Which states make the vector of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pooling {
    /// That of the first token
    Cls,
    /// The mean of all
    Mean,
}

/// What to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Task {
    /// Each token's probability of having been replaced
    Detect,
    /// The most probable tokens for each mask
    Fill,
    /// The class of a text or a pair, its labels, or a number
    Classify,
    /// Spans of a text with their kinds
    Tag,
    /// The answer to a question, out of a given text
    Answer,
    /// Which of several texts follows
    Choose,
    /// A vector for each text
    Embed,
}

/// What to do with texts that are longer than the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Long {
    /// Look at their beginning
    Truncate,
    /// Look at all of them through overlapping windows
    Window,
    /// Fail
    Error,
}

impl Args {
    /// `predict --as detect` with the defaults.
    pub fn detect(model: &Path, input: &Path, device: DeviceArgs) -> Args {
        Args {
            model: model.display().to_string(),
            task: Task::Detect,
            input: Some(input.to_owned()),
            json: false,
            top_k: None,
            long: None,
            batch_size: BATCH_SIZE,
            task_args: TaskArgs::default(),
            device,
        }
    }

    /// `predict --as fill` with the defaults.
    pub fn fill(model: &Path, input: &Path, device: DeviceArgs) -> Args {
        Args {
            task: Task::Fill,
            ..Self::detect(model, input, device)
        }
    }
}

/// Candidates for each mask, where nothing is said.
const TOP_K: NonZeroUsize = NonZeroUsize::new(5).expect("above 0");
/// Texts of 128 tokens computed at once, where nothing is said.
const BATCH_SIZE: NonZeroUsize = NonZeroUsize::new(32).expect("above 0");
/// Tokens of the longest answer, where nothing is said.
const MAX_ANSWER_LEN: NonZeroUsize = NonZeroUsize::new(30).expect("above 0");
/// Tokens that a text of the batch size counts for.
const TOKENS_A_TEXT: usize = 128;

/// Runs the subcommand.
pub fn run(mut args: Args) -> Result<ExitCode> {
    let given = &args.task_args;
    if given.submission.is_some()
        && (args.task != Task::Classify || given.prompt.template.is_some())
    {
        bail!("--submission is for GLUE's tasks, which are classified by a head: --as classify");
    }
    given.refuse_others(args.task)?;
    let folder = models::folder(&args.model)?;
    let dir = ModelDir::open(&folder)?;
    args.device = args.device.for_model(&dir);
    let kind = match args.task {
        Task::Detect => Some(ModelKind::Discriminator),
        Task::Fill => Some(ModelKind::Generator),
        _ => None,
    };
    if let Some(kind) = kind {
        dir.require(kind)?;
    }
    let tokenizer = tokenizer_of(&dir)?;
    if let Some(prompt) = args.task_args.prompt.prompt(&dir, &tokenizer)? {
        prompt_all(&args, prompt)?;
        return Ok(ExitCode::SUCCESS);
    }
    if kind.is_none() {
        tasks::run(&args, &dir, tokenizer)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.task_args.is_file()? {
        bail!("--task and --kind are for heads; detect and fill read a text a line");
    }
    let (name, input) = input_of(&args)?;
    args.device.run(Predict {
        lines: Lines::new(input, name, args.task_args.columns.lossy),
        args: &args,
        dir: &dir,
        tokenizer: &tokenizer,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn prompt_all(args: &Args, prompt: Prompt) -> Result<()> {
    let given = &args.task_args;
    if args.task != Task::Classify {
        bail!("--template is for --as classify");
    }
    let cut = args.long.is_none_or(|long| long == Long::Truncate);
    if given.pair || !cut || given.max_seq_length.is_some() {
        bail!(
            "--template takes one text, which is cut where it is longer than the model takes: leave \
             out --pair, --long and --max-seq-length"
        );
    }
    let spec = match given.is_file()? {
        true => Some(
            given
                .columns
                .task(given.task_name.as_deref().unwrap_or("own"))?,
        ),
        false => None,
    };
    if spec.is_none() && given.task_name.is_some() {
        bail!("--template needs no head: --task says how a file is read, which --lines is not");
    }
    let input = Source::open(args, spec.as_ref(), false)?;
    args.device.run(PromptAll {
        args,
        prompt,
        input,
    })
}

/// The stream of texts and what it is called.
fn input_of(args: &Args) -> Result<(String, Box<dyn Read>)> {
    let (name, input): (String, Box<dyn Read>) = match &args.input {
        Some(path) if path.as_os_str() != "-" => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
            (name, Box::new(file))
        }
        _ => {
            if std::io::stdin().is_terminal() {
                tell!("reading texts from the terminal, one a line");
            }
            ("standard input".to_owned(), Box::new(std::io::stdin()))
        }
    };
    Ok((name, input))
}

/// The tokenizer beside a model, checked against its word table.
pub(super) fn tokenizer_of(dir: &ModelDir) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::load(dir.path(), None)?;
    let (tokens, rows) = (tokenizer.vocab_size(), dir.config().vocab_size);
    let path = dir.path().display();
    if tokens > rows {
        bail!(
            "{path}: the tokenizer has {tokens} tokens but the model's word table {rows} rows \
             (\"vocab_size\" in config.json); the tokenizer is another model's"
        );
    }
    if tokens < rows {
        tell!(
            "warning: {path}: the tokenizer has {tokens} tokens and the model's word table {rows} \
             rows: harmless if the table was padded, otherwise the tokenizer is another model's"
        );
    }
    if dir.config().max_position_embeddings < 3 {
        bail!("{path}: a model of fewer than 3 positions has no room for a text");
    }
    Ok(tokenizer)
}

/// A prediction for a backend.
struct Predict<'a> {
    args: &'a Args,
    dir: &'a ModelDir,
    tokenizer: &'a Tokenizer,
    lines: Lines<Box<dyn Read>>,
}

impl Work for Predict<'_> {
    const TRAINS: bool = false;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, _: &Facts) -> Result<()> {
        match self.args.task {
            Task::Detect => {
                let head = Detect::load(backend, self.dir, self.tokenizer, self.args.json)?;
                self.answer(backend, head)
            }
            _ => {
                let k = self.args.top_k.unwrap_or(TOP_K).get();
                let head = Fill::load(backend, self.dir, self.tokenizer, k, self.args.json)?;
                self.answer(backend, head)
            }
        }
    }
}

/// A text, its tokens, and through which windows the model sees them.
struct Text {
    text: String,
    tokens: Vec<TokenSpan>,
    windows: Vec<Window>,
}

/// What is said once, at the end.
#[derive(Default)]
struct Tally {
    texts: u64,
    truncated: u64,
}

impl Predict<'_> {
    /// Tokens of a text beside `[CLS]` and `[SEP]`.
    fn room(&self) -> usize {
        self.dir.config().max_position_embeddings - 2
    }

    /// Answers every line, in order.
    fn answer<B: Backend, H: Head<B>>(mut self, backend: &mut B, mut head: H) -> Result<()> {
        let mut out = BufWriter::new(std::io::stdout().lock());
        let mut tally = Tally::default();
        let budget = self.args.batch_size.get().saturating_mul(TOKENS_A_TEXT);
        loop {
            let mut lines = Vec::new();
            let read = self.lines.chunk(&mut lines);
            let mut texts = Vec::with_capacity(lines.len());
            // What stands before a bad line is answered.
            let encoded = lines.into_iter().try_for_each(|line| {
                texts.push(self.encode(line, &mut tally)?);
                anyhow::Ok(())
            });
            let asked = batches::answer(backend, &mut head, self.tokenizer, &texts, budget)?;
            for (text, asked) in texts.iter().zip(asked) {
                head.write(&mut out, text, asked)?;
            }
            out.flush()?;
            encoded?;
            if !read? {
                break;
            }
        }
        report_invalid(self.lines.invalid_utf8());
        if tally.texts == 0 {
            tell!("warning: {} is empty", self.lines.name());
        }
        if tally.truncated > 0 {
            tell!(
                "warning: {} of {} truncated to the first {} tokens; --long window looks at all of a \
                 text",
                tally.truncated,
                counted(tally.texts, "text"),
                self.room()
            );
        }
        head.warn(tally.texts);
        Ok(())
    }

    fn encode(&self, text: String, tally: &mut Tally) -> Result<Text> {
        tally.texts += 1;
        let tokens = self.tokenizer.encode_with_offsets(&text)?;
        let room = self.room();
        let long = self.args.long.unwrap_or(Long::Truncate);
        let windows = match long {
            Long::Window => windows::overlapping(tokens.len(), room),
            Long::Error if tokens.len() > room => bail!(
                "{}, line {}: {} tokens, but the model takes {room}; shorten the text, or give \
                 --long truncate or --long window",
                self.lines.name(),
                tally.texts,
                tokens.len()
            ),
            _ => windows::beginning(tokens.len(), room),
        };
        if long == Long::Truncate && tokens.len() > room {
            tally.truncated += 1;
        }
        Ok(Text {
            text,
            tokens,
            windows,
        })
    }
}
