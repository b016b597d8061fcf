//! `prepare`: documents to token shards, on all cores, restartable.
//!
//! The stream of documents of each input is cut into blocks of about a megabyte of text, by its
//! content alone. Each block belongs to one part of the work; the threads of a part tokenize its
//! blocks, which are written in order to segments under `parts/`. The merge reads the blocks of all
//! parts back in the order of the input and writes the shards. So neither the number of threads nor
//! that of parts shows in them, and a killed run loses at most the segment it was writing.

mod blocks;
mod merge;
mod pipeline;
mod plan;
mod segments;
mod stamps;
mod workers;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::manifest::{MANIFEST, Plan, TOKENIZER_DIR};
use crate::read::identity::{Content, Stamp};
use crate::read::{Input, ReadError, ReadOptions};
use crate::shards::{Corpus, ShardError, read_manifest};
use crate::tokenizer::{MAX_POSITIONS, Tokenizer, TokenizerError};

use plan::Job;

/// Tokens a shard holds before it ends with its document.
pub const SHARD_TOKENS: u64 = 32 << 20;

/// What can go wrong in preparing.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// Reading the input.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Writing or reading shards.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Writing the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A file of the output directory that cannot be read or written.
    #[error("{path}: {source}; is the directory writable, and is there room?")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Inputs without a word.
    #[error("no text at all in {inputs}: every document is empty")]
    NoText {
        /// The inputs, in one string.
        inputs: String,
    },
    /// No input was named.
    #[error("no input; name files, folders, globs, or - for standard input")]
    NoInput,
    /// The directory holds something else.
    #[error("{dir}: not empty, and not a directory of prepare; choose another")]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory was prepared from something else.
    #[error("{dir} holds other work: {difference}; choose another directory, or remove this one")]
    Differs {
        /// The directory.
        dir: PathBuf,
        /// What differs.
        difference: String,
    },
    /// The directory holds unfinished work on something else.
    #[error(
        "{dir} holds unfinished other work: {difference}; choose another directory, or remove \
         {parts} to begin again"
    )]
    Unfinished {
        /// The directory.
        dir: PathBuf,
        /// What differs.
        difference: String,
        /// The folder of the unfinished work.
        parts: PathBuf,
    },
    /// Two parts were made from different contents of one input.
    #[error(
        "{input} was not the same file for part {first} and part {second}; give all parts the same \
         and run both again, which does again what has changed"
    )]
    PartsDiffer {
        /// The input.
        input: String,
        /// A part.
        first: u32,
        /// Another.
        second: u32,
    },
    /// A thread that tokenizes has failed by a mistake of the program.
    #[error("a thread failed at {place}: {what}; this is a bug, please report it")]
    Panic {
        /// The input, or what was done.
        place: String,
        /// What the thread said.
        what: String,
    },
    /// Nothing to merge.
    #[error("{dir}: no such directory; give the one that the parts were written to as --out")]
    NoDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// A directory without parts.
    #[error("{dir}: no parts in it to merge; give the --out of the parts, or run them first")]
    NoParts {
        /// The directory.
        dir: PathBuf,
    },
    /// Another process works on this.
    #[error("{path}: another process is working on this; let it finish or stop it")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// A part that there is not.
    #[error("part {index} of {of}: parts are numbered from 0 to the number of parts less one")]
    Part {
        /// Which.
        index: u32,
        /// Of how many.
        of: u32,
    },
    /// Standard input with several parts.
    #[error("standard input cannot be split into parts; give files")]
    StdinParts,
    /// A merge before its parts.
    #[error("{dir}: cannot merge, parts not complete: {missing}; run them first")]
    Incomplete {
        /// The directory.
        dir: PathBuf,
        /// Which, in one string.
        missing: String,
    },
    /// A segment that is not what was written.
    #[error("{path}: {what}; remove {part} and run that part again")]
    Segment {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// The part's folder.
        part: PathBuf,
    },
    /// Stopped from outside.
    #[error("interrupted; the same command goes on from here")]
    Interrupted,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PrepareError {
    move |source| PrepareError::Io {
        path: path.into(),
        source,
    }
}

/// Which share of the work to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it, and the merge.
    All,
    /// Part `index` of `of`, and no merge.
    Part {
        /// Counted from 0.
        index: u32,
        /// Number of parts.
        of: u32,
    },
}

/// How to prepare.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// How the inputs are read.
    pub read: ReadOptions,
    /// Threads that tokenize.
    pub threads: usize,
    /// A shard ends with the document that brings it to this many tokens.
    pub shard_tokens: u64,
    /// The share of the work.
    pub share: Share,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        PrepareOptions {
            read: ReadOptions::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            shard_tokens: SHARD_TOKENS,
            share: Share::All,
        }
    }
}

/// Where the work stands, for a progress bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of text tokenized by this run.
    pub text_bytes: u64,
    /// Tokens made by this run.
    pub tokens: u64,
    /// Inputs gone through or skipped as done.
    pub inputs_done: u64,
    /// Inputs in all.
    pub inputs: u64,
    /// Whether the blocks are done and the shards are being written.
    pub merging: bool,
}

/// What a call of [`prepare`] or [`merge`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareReport {
    /// What was done.
    pub outcome: Outcome,
    /// Documents of the whole corpus, once it is merged.
    pub documents: u64,
    /// Its lines.
    pub lines: u64,
    /// Its tokens.
    pub tokens: u64,
    /// Its shards.
    pub shards: u64,
    /// Bytes of text that this call tokenized.
    pub text_bytes: u64,
    /// Invalid UTF-8 sequences that this call replaced.
    pub invalid_utf8: u64,
    /// The first input that had been tokenized, in part or whole, and was again because it is not
    /// as it was.
    pub again: Option<String>,
}

impl PrepareReport {
    fn new(outcome: Outcome) -> Self {
        PrepareReport {
            outcome,
            documents: 0,
            lines: 0,
            tokens: 0,
            shards: 0,
            text_bytes: 0,
            invalid_utf8: 0,
            again: None,
        }
    }
}

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The shards are written.
    Complete,
    /// They were there already; nothing was done.
    AlreadyComplete,
    /// The part is done; the merge is to come.
    PartComplete,
}

/// Tokenizes `inputs` into shards in `out`, or one part of them.
///
/// `progress` is called about once a block. When `stop` says true the call returns
/// [`PrepareError::Interrupted`] within a second or so and keeps what is done.
///
/// # Errors
/// Whatever is wrong with inputs, output or a directory of other work. The directory stays good for
/// the next run.
pub fn prepare(
    inputs: &[Input],
    tokenizer: &Tokenizer,
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(&Progress),
    stop: &dyn Fn() -> bool,
) -> Result<PrepareReport, PrepareError> {
    if inputs.is_empty() {
        return Err(PrepareError::NoInput);
    }
    let (part, parts) = match options.share {
        Share::All => (0, 1),
        Share::Part { index, of } if index < of => (index, of),
        Share::Part { index, of } => return Err(PrepareError::Part { index, of }),
    };
    let piped = inputs.contains(&Input::Stdin);
    if piped && parts > 1 {
        return Err(PrepareError::StdinParts);
    }
    let plan = plan::plan(inputs, tokenizer, options)?;
    if let Some(report) = already_complete(out, &plan, inputs, stop)? {
        return Ok(report);
    }
    let job = Job::begin(out, plan, parts, piped)?;
    let tokenizer_dir = out.join(TOKENIZER_DIR);
    let there = Tokenizer::load(&tokenizer_dir, None);
    if !there.is_ok_and(|there| there.hash() == tokenizer.hash()) {
        tokenizer.save(&tokenizer_dir, MAX_POSITIONS)?;
    }
    let done = workers::run_part(&job, part, inputs, tokenizer, options, progress, stop)?;
    let mut report = PrepareReport {
        text_bytes: done.text_bytes,
        invalid_utf8: done.invalid_utf8,
        again: done.again,
        ..PrepareReport::new(Outcome::PartComplete)
    };
    if options.share == Share::All {
        let manifest = merge::merge(&job, progress, stop)?;
        report.outcome = Outcome::Complete;
        fill_in(&mut report, &manifest);
    }
    Ok(report)
}

/// Joins the parts that lie in `out` into shards and removes them.
///
/// # Errors
/// Parts that are missing or not complete; whatever is wrong with the output.
pub fn merge(
    out: &Path,
    progress: &mut dyn FnMut(&Progress),
    stop: &dyn Fn() -> bool,
) -> Result<PrepareReport, PrepareError> {
    if !out.is_dir() {
        return Err(PrepareError::NoDirectory { dir: out.into() });
    }
    let mut report = PrepareReport::new(Outcome::AlreadyComplete);
    if let Some(manifest) = read_manifest(out)? {
        Corpus::open(out)?;
        plan::remove_parts(out)?;
        fill_in(&mut report, &manifest);
        return Ok(report);
    }
    let job = Job::resume(out)?;
    let manifest = merge::merge(&job, progress, stop)?;
    report.outcome = Outcome::Complete;
    fill_in(&mut report, &manifest);
    Ok(report)
}

fn fill_in(report: &mut PrepareReport, manifest: &crate::manifest::Manifest) {
    report.documents = manifest.documents;
    report.lines = manifest.lines;
    report.tokens = manifest.tokens;
    report.shards = manifest.shards.len() as u64;
}

/// The report of a directory that is complete already with this plan and these inputs.
fn already_complete(
    out: &Path,
    wanted: &Plan,
    inputs: &[Input],
    stop: &dyn Fn() -> bool,
) -> Result<Option<PrepareReport>, PrepareError> {
    let Some(manifest) = read_manifest(out)? else {
        return Ok(None);
    };
    let there = &manifest.plan;
    let other = |difference: String| PrepareError::Differs {
        dir: out.into(),
        difference,
    };
    if let Some(difference) =
        plan::difference(there, wanted).or_else(|| there.size_difference(wanted))
    {
        return Err(other(difference));
    }
    if wanted.inputs.iter().any(|input| input.name == "-") {
        let what = "it was made from standard input, which cannot be compared with now";
        return Err(other(what.into()));
    }
    let mut stamps = stamps::read(out);
    stamps.resize(inputs.len(), None);
    let mut looked = false;
    for (i, input) in inputs.iter().enumerate() {
        let Input::File(path) = input else { continue };
        if stamps[i].is_some() && stamps[i] == Stamp::at(path) {
            continue;
        }
        let now = Content::read(path, stop)?.ok_or(PrepareError::Interrupted)?;
        if there.inputs[i].blake3.as_ref() != Some(&now.blake3) {
            let name = &there.inputs[i].name;
            let what = format!("input {}: the content of {name} has changed", i + 1);
            return Err(other(what));
        }
        looked |= now.stamp.is_some();
        stamps[i] = now.stamp;
    }
    if looked {
        stamps::write(out, &stamps);
    }
    Corpus::open(out)?;
    plan::remove_parts(out)?;
    let mut report = PrepareReport::new(Outcome::AlreadyComplete);
    fill_in(&mut report, &manifest);
    Ok(Some(report))
}

/// Whether `out` may be written to: it is new, empty, or of prepare. What is named as prepare names its
/// files is prepare's own where its manifest or its mark lies beside it.
fn refuse_foreign(out: &Path) -> Result<(), PrepareError> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error(out)(e)),
    };
    let begun = out.join(MANIFEST).exists() || out.join(plan::MARK).exists();
    for entry in entries {
        let name = entry.map_err(io_error(out))?.file_name();
        let name = name.to_string_lossy();
        let own = match name.as_ref() {
            hidden if hidden.starts_with('.') => true,
            MANIFEST | TOKENIZER_DIR | plan::PARTS => begun,
            other => begun && merge::is_shard(other),
        };
        if !own {
            return Err(PrepareError::Foreign { dir: out.into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
