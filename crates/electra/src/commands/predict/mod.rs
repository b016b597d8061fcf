//! `electra predict`: what a model says about texts, one a line.

mod batches;
mod detect;
mod fill;
mod lines;
mod windows;

use super::corpus::{counted, report_invalid};
use super::models;
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
use std::io::{BufWriter, IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use windows::Window;

/// Say which tokens of a text were replaced, or what stands behind its masks
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
    /// Candidates for each mask
    #[arg(long, value_name = "K", default_value_t = TOP_K)]
    top_k: NonZeroUsize,
    /// What to do with texts that are longer than the model takes
    #[arg(long, value_enum, default_value = "truncate")]
    long: Long,
    /// Texts of 128 tokens that are computed at once; of shorter ones more
    #[arg(long, value_name = "N", default_value_t = BATCH_SIZE)]
    batch_size: NonZeroUsize,
    /// Put U+FFFD in place of invalid UTF-8 and go on
    #[arg(long)]
    lossy: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Task {
    /// Each token's probability of having been replaced
    Detect,
    /// The most probable tokens for each mask
    Fill,
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
            top_k: TOP_K,
            long: Long::Truncate,
            batch_size: BATCH_SIZE,
            lossy: false,
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
/// Tokens that a text of the batch size counts for.
const TOKENS_A_TEXT: usize = 128;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let folder = models::folder(&args.model)?;
    let dir = ModelDir::open(&folder)?;
    dir.require(match args.task {
        Task::Detect => ModelKind::Discriminator,
        Task::Fill => ModelKind::Generator,
    })?;
    let tokenizer = tokenizer_of(&dir)?;
    let (name, input): (String, Box<dyn Read>) = match &args.input {
        Some(path) if path.as_os_str() != "-" => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
            (name, Box::new(file))
        }
        _ => {
            if std::io::stdin().is_terminal() {
                eprintln!("reading texts from the terminal, one a line");
            }
            ("standard input".to_owned(), Box::new(std::io::stdin()))
        }
    };
    args.device.for_model(&dir).run(Predict {
        lines: Lines::new(input, name, args.lossy),
        args: &args,
        dir: &dir,
        tokenizer: &tokenizer,
    })?;
    Ok(ExitCode::SUCCESS)
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
        eprintln!(
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
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, _: &Facts) -> Result<()> {
        match self.args.task {
            Task::Detect => {
                let head = Detect::load(backend, self.dir, self.tokenizer, self.args.json)?;
                self.answer(backend, head)
            }
            Task::Fill => {
                let k = self.args.top_k.get();
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
            eprintln!("warning: {} is empty", self.lines.name());
        }
        if tally.truncated > 0 {
            eprintln!(
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
        let windows = match self.args.long {
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
        if self.args.long == Long::Truncate && tokens.len() > room {
            tally.truncated += 1;
        }
        Ok(Text {
            text,
            tokens,
            windows,
        })
    }
}
