//! `electra bench prepare`: text to token shards.

use super::made_up::{self, Scratch};
use super::measure::{Interrupted, RepeatArgs, Spread, peak_rss_bytes};
use super::report::{add_spread, object, print};
use crate::commands::corpus::{ReadArgs, grouped};
use crate::embedded;
use anyhow::{Context, Result};
use electra_data::prepare::{PrepareError, PrepareOptions, PrepareReport, prepare};
use electra_data::read::{Input, expand};
use electra_data::tokenizer::Tokenizer;
use electra_train::interrupt::StopFlag;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

/// Text to token shards
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, folders or globs [default: the text of `quickstart`]
    #[arg(long, num_args = 1.., value_name = "FILE", requires = "tokenizer")]
    input: Vec<String>,
    /// Directory of a tokenizer or a model, or a vocab.txt
    #[arg(long, value_name = "PATH", requires = "input")]
    tokenizer: Option<PathBuf>,
    /// Threads [default: as many as there are cores]
    #[arg(long, env = "ELECTRA_THREADS")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    repeat: RepeatArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// Runs the subject.
pub fn run(args: Args, stop: &StopFlag) -> Result<()> {
    let scratch = Scratch::new("prepare")?;
    let (inputs, tokenizer) = match &args.tokenizer {
        Some(path) => (expand(&args.input)?, path.clone()),
        None => {
            let (text, dir) = (scratch.join("text.txt"), scratch.join("tokenizer"));
            std::fs::write(&text, embedded::TEXT)
                .with_context(|| format!("cannot write {}", text.display()))?;
            made_up::embedded_tokenizer(&text, &dir)?;
            (vec![Input::File(text)], dir)
        }
    };
    if inputs.contains(&Input::Stdin) {
        anyhow::bail!("--input -: standard input cannot be read several times; give files");
    }
    let tokenizer = Tokenizer::load(&tokenizer, None)?;
    let mut options = PrepareOptions {
        read: args.read.options(),
        ..PrepareOptions::default()
    };
    if let Some(threads) = args.threads {
        options.threads = threads.get();
    }
    let mut done: Option<PrepareReport> = None;
    let mut seconds = Vec::new();
    // Once more than asked for: the first brings the files into memory.
    for _ in 0..=args.repeat.repetitions.get() {
        let out = scratch.join("shards");
        let start = Instant::now();
        let interrupted = || stop.is_requested();
        let report = prepare(
            &inputs,
            &tokenizer,
            &out,
            &options,
            &mut |_| (),
            &interrupted,
        );
        let elapsed = start.elapsed().as_secs_f64();
        let report = report.map_err(|error| match error {
            PrepareError::Interrupted => Interrupted.into(),
            error => anyhow::Error::from(error),
        })?;
        if done.replace(report).is_some() {
            seconds.push(elapsed);
        }
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    let Some(report) = done else {
        return Ok(());
    };
    let spread = |of: &dyn Fn(f64) -> f64| Spread::of(seconds.iter().map(|&s| of(s)));
    let megabytes = report.text_bytes as f64 / 1e6;
    let speed = spread(&|s| megabytes / s);
    let mut fields = object([
        ("bench", "prepare".into()),
        ("threads", options.threads.into()),
        ("text_bytes", report.text_bytes.into()),
        ("tokens", report.tokens.into()),
        ("repetitions", seconds.len().into()),
    ]);
    add_spread(&mut fields, "mb_per_s", speed);
    add_spread(
        &mut fields,
        "tokens_per_s",
        spread(&|s| report.tokens as f64 / s),
    );
    add_spread(&mut fields, "ms", spread(&|s| 1e3 * s));
    fields.insert("peak_rss_bytes".into(), peak_rss_bytes().into());
    let line = format!(
        "prepare, {} threads: {:.1} MB/s ({:.1}–{:.1}), {megabytes:.1} MB of text, {} tokens",
        options.threads,
        speed.median,
        speed.min,
        speed.max,
        grouped(report.tokens)
    );
    print(args.repeat.json, fields, &line)
}
