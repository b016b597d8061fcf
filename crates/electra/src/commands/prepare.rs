//! `electra prepare`: text to token shards.

use super::corpus::{Meter, ReadArgs, counted, grouped, print_result, report_invalid};
use super::vocab::describe;
use crate::interrupt;
use anyhow::Result;
use electra_data::prepare::{
    Outcome, PrepareError, PrepareOptions, PrepareReport, Progress, SHARD_TOKENS, Share, merge,
    prepare,
};
use electra_data::read::{Input, Reader, expand};
use electra_data::tokenizer::Tokenizer;
use serde_json::json;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tokenize text into shards; the same command goes on where it stopped
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, folders, globs, or - for standard input
    #[arg(long, num_args = 1.., value_name = "FILE", required_unless_present = "merge")]
    input: Vec<String>,
    /// Directory of a tokenizer or a model, or a vocab.txt
    #[arg(long, value_name = "PATH", required_unless_present = "merge")]
    tokenizer: Option<PathBuf>,
    /// Directory for the shards
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Do only part I of N, counted from 0; all parts share one --out
    #[arg(long, value_name = "I/N", value_parser = part, conflicts_with = "merge")]
    shard: Option<Share>,
    /// Join the parts that were done with --shard
    #[arg(long)]
    merge: bool,
    /// Keep upper case and accents, whatever the tokenizer's files say
    #[arg(long, conflicts_with = "lower_case")]
    cased: bool,
    /// Lower-case, whatever the tokenizer's files say
    #[arg(long)]
    lower_case: bool,
    /// Threads [default: as many as there are cores]
    #[arg(long, env = "ELECTRA_THREADS")]
    threads: Option<NonZeroUsize>,
    /// A shard ends with the document that brings it to this many tokens
    #[arg(long, value_name = "N", default_value_t = NonZeroU64::new(SHARD_TOKENS).unwrap_or(NonZeroU64::MAX))]
    shard_tokens: NonZeroU64,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    read: ReadArgs,
}

/// `I/N`.
fn part(text: &str) -> Result<Share, String> {
    let wrong = || "it has the form I/N, such as 0/4 for the first of four".to_owned();
    let (index, of) = text.split_once('/').ok_or_else(wrong)?;
    let number = |digits: &str| digits.parse::<u32>().map_err(|_| wrong());
    let (index, of) = (number(index)?, number(of)?);
    if index >= of {
        return Err(format!(
            "parts are counted from 0: the last of {of} is {}/{of}",
            of.saturating_sub(1)
        ));
    }
    Ok(Share::Part { index, of })
}

/// From so many lines on, a document that is all of the text is perhaps none.
const LONG_DOCUMENT: u64 = 1000;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    if let Ok(value) = std::env::var("ELECTRA_THREADS") {
        tell!("ELECTRA_THREADS={value} is set and holds where no option says otherwise");
    }
    let requests = interrupt::stop_on_signals()?;
    let stop = || requests.is_requested();
    let mut meter = Meter::new();
    let done = match &args.tokenizer {
        Some(tokenizer) if !args.merge => tokenize(&args, tokenizer, &mut meter, &stop),
        _ => {
            let mut progress = |p: &Progress| show(&mut meter, p);
            merge(&args.out, &mut progress, &stop).map_err(anyhow::Error::from)
        }
    };
    meter.finish();
    let report = match done {
        Ok(report) => report,
        Err(error) if matches!(error.downcast_ref(), Some(PrepareError::Interrupted)) => {
            tell!("{error}");
            return Ok(interrupt::exit_code());
        }
        Err(error) => return Err(error),
    };
    report_invalid(report.invalid_utf8);
    if let Some(name) = &report.again {
        tell!("{name} is not as it was in the run before: tokenized again from there");
    }
    if report.documents == 1 && report.lines >= LONG_DOCUMENT {
        tell!(
            "note: all {} lines are one document, for documents end at blank lines; if each line is \
             one, prepare anew with --one-document-per-line",
            report.lines
        );
    }
    print(&args, &report, meter.seconds())?;
    Ok(ExitCode::SUCCESS)
}

fn tokenize(
    args: &Args,
    tokenizer: &std::path::Path,
    meter: &mut Meter,
    stop: &dyn Fn() -> bool,
) -> Result<PrepareReport> {
    let lower_case = match (args.cased, args.lower_case) {
        (true, _) => Some(false),
        (_, true) => Some(true),
        _ => None,
    };
    let tokenizer = Tokenizer::load(tokenizer, lower_case)?;
    tell!("tokenizer: {}", describe(&tokenizer));
    let inputs = expand(&args.input)?;
    let read = args.read.options();
    // What can be refused is refused before anything is written.
    for input in inputs.iter().filter(|input| **input != Input::Stdin) {
        Reader::open(input, &read)?;
    }
    let mut options = PrepareOptions {
        read,
        shard_tokens: args.shard_tokens.get(),
        share: args.shard.unwrap_or(Share::All),
        ..PrepareOptions::default()
    };
    if let Some(threads) = args.threads {
        options.threads = threads.get();
    }
    let mut progress = |p: &Progress| show(meter, p);
    Ok(prepare(
        &inputs,
        &tokenizer,
        &args.out,
        &options,
        &mut progress,
        stop,
    )?)
}

fn show(meter: &mut Meter, p: &Progress) {
    let tokens = grouped(p.tokens);
    match p.merging {
        true => meter.show(p.text_bytes, format_args!("{tokens} tokens in shards")),
        false => meter.show(
            p.text_bytes,
            format_args!("{tokens} tokens, {} of {} inputs", p.inputs_done, p.inputs),
        ),
    }
}

fn print(args: &Args, report: &PrepareReport, seconds: f64) -> Result<()> {
    let out = args.out.display();
    let megabytes = report.text_bytes as f64 / 1e6;
    let speed = megabytes / seconds.max(1e-9);
    let work = format!("{megabytes:.1} MB of text in {seconds:.1} s ({speed:.1} MB/s)");
    let counts = format!(
        "{}, {}, {} in {}",
        counted(report.documents, "document"),
        counted(report.lines, "line"),
        counted(report.tokens, "token"),
        counted(report.shards, "shard")
    );
    let (outcome, line) = match report.outcome {
        Outcome::Complete if args.merge => ("complete", format!("{out}: {counts}")),
        Outcome::Complete => ("complete", format!("{out}: {counts}; {work}")),
        Outcome::AlreadyComplete => (
            "already_complete",
            format!("{out}: complete already: {counts}"),
        ),
        Outcome::PartComplete => (
            "part_complete",
            format!("{out}: part done, {work}; when all are, join them with --merge"),
        ),
    };
    let object = json!({
        "out": args.out, "outcome": outcome, "documents": report.documents,
        "lines": report.lines, "tokens": report.tokens, "shards": report.shards,
        "text_bytes": report.text_bytes, "invalid_utf8": report.invalid_utf8,
        "seconds": seconds, "mb_per_s": speed,
    });
    print_result(args.json, object, format_args!("{line}"))
}
