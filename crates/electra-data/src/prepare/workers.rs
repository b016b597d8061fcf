//! Tokenizes the blocks of one part on several threads and writes them in order.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::sync::{Mutex, PoisonError, mpsc};

use super::blocks::{Block, BlockReader};
use super::plan::Job;
use super::segments::{SegmentWriter, Tokens, recover};
use super::{PrepareError, PrepareOptions, Progress, io_error};

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
}

/// A tokenized block on its way to the writer.
struct Finished {
    number: u64,
    text_bytes: u64,
    inputs_done: u64,
    tokens: Result<Tokens, PrepareError>,
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
    let _lock = job.lock(&dir.join("lock"))?;
    if dir.join(COMPLETE).exists() {
        return Ok(Done::default());
    }
    let width = token_bytes(job.plan.vocab_size);
    let (segments, done) = recover(&dir, width)?;
    let mut writer = SegmentWriter::new(&dir, width, segments);
    let threads = options.threads.max(1);
    let reader = BlockReader::new(job, part, inputs, &options.read, done);
    let source = Mutex::new((reader, 0u64));
    let mut status = Progress {
        inputs: inputs.len() as u64,
        ..Default::default()
    };
    // A permit for each block in flight bounds memory; the writer gives it back.
    let (give, permits) = mpsc::channel();
    for _ in 0..2 * threads + 2 {
        let _ = give.send(());
    }
    let permits = Mutex::new(permits);
    let (send, results) = mpsc::channel::<Finished>();
    let written: Result<(), PrepareError> = std::thread::scope(|scope| {
        for _ in 0..threads {
            let (send, source, permits) = (send.clone(), &source, &permits);
            let encoder = tokenizer.encoder();
            scope.spawn(move || work(source, permits, encoder, &send));
        }
        drop(send);
        // Moved in here, so that it is dropped, and the threads end, when this closure returns.
        let give = give;
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        for result in &results {
            waiting.insert(result.number, result);
            while let Some(result) = waiting.remove(&next) {
                next += 1;
                let tokens = result.tokens?;
                writer.push(&tokens)?;
                status.text_bytes += result.text_bytes;
                status.tokens += tokens.tokens.len() as u64;
                status.inputs_done = result.inputs_done;
                progress(&status);
                let _ = give.send(());
            }
            if stop() {
                return Err(PrepareError::Interrupted);
            }
        }
        Ok(())
    });
    // What was in order when something went wrong is kept for the next run.
    let closed = writer.close();
    written?;
    closed?;
    let path = dir.join(COMPLETE);
    replace_file(&path, |file| file.write_all(b"complete\n"))
        .map_err(|e| io_error(&path)(e.source))?;
    let (reader, _) = source.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Done {
        text_bytes: status.text_bytes,
        invalid_utf8: reader.invalid_utf8(),
    })
}

/// One thread: reads a block under the lock, tokenizes it outside.
fn work(
    source: &Mutex<(BlockReader<'_>, u64)>,
    permits: &Mutex<mpsc::Receiver<()>>,
    mut encoder: Encoder,
    send: &mpsc::Sender<Finished>,
) {
    loop {
        let permit = permits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        if permit.is_err() {
            return;
        }
        let (block, number, inputs_done) = {
            let mut guard = source.lock().unwrap_or_else(PoisonError::into_inner);
            let (reader, next) = &mut *guard;
            let block = reader.next();
            *next += 1;
            (block, *next - 1, reader.inputs_done())
        };
        let (tokens, text_bytes, last) = match block {
            Ok(None) => return,
            Ok(Some(block)) => {
                let bytes = block.text.len() as u64;
                (Ok(tokenize(&block, &mut encoder)), bytes, false)
            }
            Err(e) => (Err(e.into()), 0, true),
        };
        let result = Finished {
            number,
            text_bytes,
            inputs_done,
            tokens,
        };
        if send.send(result).is_err() || last {
            return;
        }
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
