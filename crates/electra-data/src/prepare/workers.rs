//! Tokenizes the blocks of one part on several threads and writes them in order.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::blocks::{Block, BlockReader, Item, Resume};
use super::pipeline::in_order;
use super::plan::{Job, lock};
use super::segments::{Entry, Held, SegmentWriter, Tokens, recover, truncate};
use super::{PrepareError, PrepareOptions, Progress, io_error};

use crate::read::identity::{Halt, Stamp};
use crate::read::{Input, PieceEnd};
use crate::shards::token_bytes;
use crate::tokenizer::Tokenizer;
use crate::wordpiece::Encoder;
use electra_model::files::atomic::replace_file;

/// Marks a part that is done.
pub(super) const COMPLETE: &str = "complete";

/// What a run of a part did.
#[derive(Default)]
pub(super) struct Done {
    pub(super) text_bytes: u64,
    pub(super) invalid_utf8: u64,
    /// The first input that was tokenized again because it is not as it was.
    pub(super) again: Option<String>,
}

/// An entry on its way to the writer.
struct Finished {
    entry: Entry<Tokens>,
    text_bytes: u64,
    inputs_done: u64,
}

/// Does what is left of a part.
pub(super) fn run_part(
    job: &Job,
    part: u32,
    inputs: &[Input],
    tokenizer: &Tokenizer,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(&Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Done, PrepareError> {
    let dir = job.part_dir(part);
    fs::create_dir_all(&dir).map_err(io_error(&dir))?;
    let _lock = lock(&dir.join("lock"))?;
    let width = token_bytes(job.plan.vocab_size);
    let complete = dir.join(COMPLETE);
    let (mut segments, held) = recover(&dir, width)?;
    let again = first_changed(&held, inputs, stop)?;
    let kept = match again {
        Some(at) => {
            remove_if_there(&complete)?;
            segments = truncate(&dir, held[at].place)?;
            &held[..at]
        }
        None if complete.exists() => return Ok(Done::default()),
        None => &held[..],
    };
    let resume = match kept.last() {
        None => Resume::default(),
        Some(last) if last.content.is_some() => Resume {
            input: last.input + 1,
            block: None,
        },
        Some(last) => Resume {
            input: last.input,
            block: last.block,
        },
    };
    let again = again.and_then(|at| job.plan.inputs.get(held[at].input as usize));
    let again = again.map(|entry| entry.name.clone());
    let mut writer = SegmentWriter::new(&dir, width, segments);
    let halt = Halt::default();
    let reader = BlockReader::new(job, part, inputs, &options.read, resume, halt.clone());
    let reader = Mutex::new(reader);
    let mut status = Progress {
        inputs: inputs.len() as u64,
        ..Default::default()
    };
    let next = || {
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let item = reader.next()?;
        Ok(item.map(|item| (item, reader.inputs_done())))
    };
    let mapper = || {
        let mut encoder = tokenizer.encoder();
        move |(item, inputs_done): (Item, u64)| {
            let mut text_bytes = 0;
            let entry = match item {
                Item::Begun(input, stamp) => Entry::Begun(input, stamp),
                Item::Read(input, content) => Entry::Read(input, content),
                Item::Block(block) => {
                    text_bytes = block.text.len() as u64;
                    Entry::Block(tokenize(&block, &mut encoder))
                }
            };
            Finished {
                entry,
                text_bytes,
                inputs_done,
            }
        }
    };
    let sink = |finished: Finished| {
        writer.push(&finished.entry)?;
        status.text_bytes += finished.text_bytes;
        status.inputs_done = finished.inputs_done;
        if let Entry::Block(tokens) = &finished.entry {
            status.tokens += tokens.tokens.len() as u64;
            progress(&status);
        }
        Ok(())
    };
    let written = in_order(options.threads.max(1), next, mapper, sink, stop, &halt);
    // What was in order when something went wrong is kept for the next run.
    let closed = writer.close();
    written?;
    closed?;
    replace_file(&complete, |file| file.write_all(b"complete\n"))
        .map_err(|e| io_error(&complete)(e.source))?;
    let reader = reader.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Done {
        text_bytes: status.text_bytes,
        invalid_utf8: reader.invalid_utf8(),
        again,
    })
}

/// The first of the inputs that a part holds, by its place in `held`, which is not as it was when
/// it was read.
fn first_changed(
    held: &[Held],
    inputs: &[Input],
    stop: &dyn Fn() -> bool,
) -> Result<Option<usize>, PrepareError> {
    for (at, held) in held.iter().enumerate() {
        let same = match (inputs.get(held.input as usize), &held.content) {
            (Some(Input::File(path)), Some(content)) => content
                .is_at(path, stop)?
                .ok_or(PrepareError::Interrupted)?,
            // Of what was read in part no hash is known.
            (Some(Input::File(path)), None) => {
                held.stamp.is_some() && held.stamp == Stamp::at(path)
            }
            _ => false,
        };
        if !same {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn remove_if_there(path: &Path) -> Result<(), PrepareError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error(path)(e)),
        _ => Ok(()),
    }
}

fn tokenize(block: &Block, encoder: &mut Encoder) -> Tokens {
    let mut out = Tokens {
        input: block.input,
        block: block.index,
        ..Default::default()
    };
    let mut start = 0;
    for &(end, what) in &block.ends {
        encoder.encode(&block.text[start..end], &mut out.tokens);
        start = end;
        match what {
            PieceEnd::Part => {}
            PieceEnd::Line => out.lines.push(out.tokens.len() as u32),
            PieceEnd::Document => out.documents.push(out.tokens.len() as u32),
        }
    }
    out
}
