//! `electra vocab`: a WordPiece vocabulary from text.

use super::corpus::{Meter, ReadArgs, grouped, print_result, report_invalid};
use anyhow::{Context, Result, bail};
use electra_data::read::expand;
use electra_data::tokenizer::{MAX_POSITIONS, Tokenizer};
use electra_data::vocabulary::{VocabularyOptions, WordCounts};
use electra_data::words::Normalisation;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Train a WordPiece vocabulary
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, folders, globs, or - for standard input
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<String>,
    /// Entries of the vocabulary, the special tokens included
    #[arg(long)]
    size: usize,
    /// Directory for the tokenizer's files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep upper case and accents
    #[arg(long)]
    cased: bool,
    /// Merge no pair that is seen less often
    #[arg(long, default_value_t = 2)]
    min_frequency: u64,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    read: ReadArgs,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let inputs = expand(&args.input)?;
    refuse_foreign(&args.out)?;
    let normalisation = match args.cased {
        true => Normalisation::CASED,
        false => Normalisation::UNCASED,
    };
    let mut counts = WordCounts::new(normalisation);
    let mut meter = Meter::new();
    let counted = counts.add_inputs(&inputs, &args.read.options(), &mut |so_far| {
        let done = format_args!("{} of {} inputs", so_far.inputs, inputs.len());
        meter.show(so_far.text_bytes, done);
    });
    meter.finish();
    let counted = counted?;
    report_invalid(counted.invalid_utf8);
    let options = VocabularyOptions {
        size: args.size,
        min_frequency: args.min_frequency,
    };
    let tokenizer = counts
        .train(&options)
        .with_context(|| format!("--input {}", args.input.join(" ")))?;
    tokenizer.save(&args.out, MAX_POSITIONS)?;
    let (entries, seconds) = (tokenizer.vocab_size(), meter.seconds());
    if entries < args.size {
        tell!(
            "the text gives {} entries, fewer than the {} asked for; more text or a lower \
             --min-frequency gives more",
            grouped(entries as u64),
            grouped(args.size as u64)
        );
    }
    print_result(
        args.json,
        json!({
            "out": args.out, "vocab_size": entries, "cased": args.cased,
            "text_bytes": counted.text_bytes,
            "invalid_utf8": counted.invalid_utf8, "seconds": seconds,
        }),
        format_args!(
            "{}: {} entries from {:.1} MB of text in {seconds:.1} s",
            args.out.display(),
            grouped(entries as u64),
            counted.text_bytes as f64 / 1e6
        ),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// A vocabulary replaces a tokenizer, but goes into no directory that holds anything else.
fn refuse_foreign(out: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(out) else {
        // What is wrong with it, making it will tell, before the long work.
        return std::fs::create_dir_all(out)
            .with_context(|| format!("cannot make the directory {}", out.display()));
    };
    let ours = electra_model::files::TOKENIZER_FILES;
    for entry in entries {
        let name = entry
            .with_context(|| format!("cannot read {}", out.display()))?
            .file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && !ours.contains(&name.as_ref()) {
            bail!(
                "{} holds `{name}`, which is no file of a tokenizer; choose another directory",
                out.display()
            );
        }
    }
    Ok(())
}

/// What a tokenizer is, in a line.
pub fn describe(tokenizer: &Tokenizer) -> String {
    let case = match tokenizer.normalisation().lower_case {
        true => "uncased",
        false => "cased",
    };
    format!("{} entries, {case}", grouped(tokenizer.vocab_size() as u64))
}
