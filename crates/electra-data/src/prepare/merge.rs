//! The merge: blocks of all parts, in the order of the input, to shards and the manifest.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use super::plan::{Job, PARTS, PLAN, lock, remove_parts};
use super::segments::{Entry, SegmentReader, StoredBlock};
use super::stamps;
use super::workers::COMPLETE;
use super::{PrepareError, Progress, io_error};
use crate::manifest::{FORMAT_VERSION, MANIFEST, Manifest, ShardEntry};
use crate::read::identity::Content;
use crate::shards::{ShardWriter, read_manifest, token_bytes};
use electra_model::files::atomic::replace_file;

/// How the file of a shard ends, and of one that is being written.
const SHARD: &str = "bin";
const SHARD_ASIDE: &str = "tmp";

/// Writes shards and manifest from complete parts, and removes the parts.
pub(super) fn merge(
    job: &Job,
    progress: &mut dyn FnMut(&Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Manifest, PrepareError> {
    let lock = lock(&job.out.join(PARTS).join("merge.lock"))?;
    // Another merge may have finished while this one waited for its turn to look.
    if let Some(manifest) = read_manifest(&job.out)? {
        return Ok(manifest);
    }
    let missing: Vec<String> = (0..job.parts)
        .filter(|&part| !job.part_dir(part).join(COMPLETE).exists())
        .map(|part| part.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(PrepareError::Incomplete {
            dir: job.out.clone(),
            missing: missing.join(", "),
        });
    }
    remove_old_shards(job)?;
    let mut output = Output::new(job)?;
    let mut blocks = Blocks::new(job)?;
    let mut status = Progress {
        inputs: job.plan.inputs.len() as u64,
        inputs_done: job.plan.inputs.len() as u64,
        merging: true,
        ..Default::default()
    };
    while let Some(block) = blocks.next()? {
        output.push(&block)?;
        status.tokens = output.written + output.shard.as_ref().map_or(0, ShardWriter::tokens);
        progress(&status);
        if stop() {
            return Err(PrepareError::Interrupted);
        }
    }
    let shards = output.finish()?;
    let mut plan = job.plan.clone();
    let mut known = Vec::new();
    for (number, input) in plan.inputs.iter_mut().enumerate() {
        let content = blocks.contents.remove(&(number as u32));
        if input.name != "-" && content.is_none() {
            let part = job.part_dir(job.owner(number, 0));
            return Err(PrepareError::Segment {
                path: part.clone(),
                what: format!("the end of {} is not there", input.name),
                part,
            });
        }
        let content = content.map(|(_, content)| content);
        known.push(content.as_ref().and_then(|c| c.stamp.clone()));
        input.blake3 = content.map(|content| content.blake3);
    }
    let sum = |count: fn(&ShardEntry) -> u64| shards.iter().map(count).sum();
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        plan,
        documents: sum(|s| s.documents),
        lines: sum(|s| s.lines),
        tokens: sum(|s| s.tokens),
        shards,
    };
    if manifest.tokens == 0 {
        remove_parts(&job.out)?;
        let names: Vec<&str> = job.plan.inputs.iter().map(|i| i.name.as_str()).collect();
        return Err(PrepareError::NoText {
            inputs: names.join(", "),
        });
    }
    let path = job.out.join(MANIFEST);
    let mut text = serde_json::to_vec_pretty(&manifest).map_err(|e| io_error(&path)(e.into()))?;
    text.push(b'\n');
    replace_file(&path, |file| file.write_all(&text)).map_err(|e| io_error(&path)(e.source))?;
    stamps::write(&job.out, &known);
    remove_parts(&job.out)?;
    drop(lock);
    Ok(manifest)
}

/// The name of a shard, finished or not.
fn shard_name(number: usize, extension: &str) -> String {
    format!("shard-{number:05}.{extension}")
}

/// Whether `name` is one that [`shard_name`] gives.
pub(super) fn is_shard(name: &str) -> bool {
    let number = name.strip_prefix("shard-").and_then(|name| {
        let (number, extension) = name.split_once('.')?;
        (extension == SHARD || extension == SHARD_ASIDE).then_some(number)
    });
    number.is_some_and(|n| n.len() >= 5 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Removes the shards of a merge that was cut short.
fn remove_old_shards(job: &Job) -> Result<(), PrepareError> {
    for entry in fs::read_dir(&job.out).map_err(io_error(&job.out))? {
        let entry = entry.map_err(io_error(&job.out))?;
        if is_shard(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(io_error(&entry.path()))?;
        }
    }
    Ok(())
}

/// The blocks of all parts in the order of the input.
struct Blocks<'a> {
    job: &'a Job,
    parts: Vec<SegmentReader>,
    /// The next block of each part.
    heads: Vec<Option<StoredBlock>>,
    /// What was read of each input so far come to an end, and a part that read it.
    contents: BTreeMap<u32, (u32, Content)>,
    input: u32,
    block: u32,
}

impl<'a> Blocks<'a> {
    fn new(job: &'a Job) -> Result<Self, PrepareError> {
        let width = token_bytes(job.plan.vocab_size);
        let mut blocks = Blocks {
            job,
            parts: (0..job.parts)
                .map(|part| SegmentReader::new(&job.part_dir(part), width))
                .collect(),
            heads: Vec::new(),
            contents: BTreeMap::new(),
            input: 0,
            block: 0,
        };
        for part in 0..job.parts {
            let head = blocks.advance(part)?;
            blocks.heads.push(head);
        }
        Ok(blocks)
    }

    /// The next block of a part. All parts must have read the same of an input.
    fn advance(&mut self, part: u32) -> Result<Option<StoredBlock>, PrepareError> {
        loop {
            match self.parts[part as usize].next()? {
                None => return Ok(None),
                Some(Entry::Block(block)) => return Ok(Some(block)),
                Some(Entry::Begun(..)) => {}
                Some(Entry::Read(input, content)) => match self.contents.get(&input) {
                    Some((first, there)) if there.blake3 != content.blake3 => {
                        let name = self.job.plan.inputs.get(input as usize);
                        return Err(PrepareError::PartsDiffer {
                            input: name.map_or_else(String::new, |entry| entry.name.clone()),
                            first: *first,
                            second: part,
                        });
                    }
                    Some((_, there)) if there.stamp.is_some() => {}
                    _ => {
                        self.contents.insert(input, (part, content));
                    }
                },
            }
        }
    }

    fn next(&mut self) -> Result<Option<StoredBlock>, PrepareError> {
        while (self.input as usize) < self.job.plan.inputs.len() {
            let owner = self.job.owner(self.input as usize, self.block) as usize;
            let due = (self.input, self.block);
            let head = self.heads.get_mut(owner);
            if let Some(head) = head
                && head.as_ref().is_some_and(|b| (b.input, b.block) == due)
            {
                let block = head.take();
                self.heads[owner] = self.advance(owner as u32)?;
                self.block += 1;
                return Ok(block);
            }
            // The input is used up, unless a part has more of it.
            let early = |head: &Option<StoredBlock>| {
                head.as_ref()
                    .is_some_and(|b| (b.input, b.block) < (self.input + 1, 0))
            };
            if let Some(part) = self.heads.iter().position(early) {
                let dir = self.job.part_dir(part as u32);
                return Err(PrepareError::Segment {
                    path: dir.clone(),
                    what: format!("block {} of input {} is not there", self.block, self.input),
                    part: self.job.part_dir(owner as u32),
                });
            }
            self.input += 1;
            self.block = 0;
        }
        Ok(None)
    }
}

/// Writes shards one after the other.
struct Output<'a> {
    job: &'a Job,
    hash: blake3::Hash,
    shard: Option<ShardWriter>,
    entries: Vec<ShardEntry>,
    /// Tokens in finished shards.
    written: u64,
}

impl<'a> Output<'a> {
    fn new(job: &'a Job) -> Result<Self, PrepareError> {
        let hash = blake3::Hash::from_hex(&job.plan.tokenizer_hash)
            .map_err(|e| io_error(&job.out.join(PARTS).join(PLAN))(std::io::Error::other(e)))?;
        Ok(Output {
            job,
            hash,
            shard: None,
            entries: Vec::new(),
            written: 0,
        })
    }

    fn shard(&mut self) -> Result<&mut ShardWriter, PrepareError> {
        match &mut self.shard {
            Some(shard) => Ok(shard),
            slot => {
                let name = shard_name(self.entries.len(), SHARD);
                let path = self.job.out.join(name);
                Ok(slot.insert(ShardWriter::create(
                    &path,
                    self.job.plan.vocab_size,
                    self.hash,
                )?))
            }
        }
    }

    fn push(&mut self, block: &StoredBlock) -> Result<(), PrepareError> {
        let width = token_bytes(self.job.plan.vocab_size);
        let limit = self.job.plan.shard_tokens;
        let (mut lines, mut documents) = (block.lines.iter().peekable(), block.documents.iter());
        let mut at = 0usize;
        loop {
            let document = documents.next();
            let document_end = document.map_or(block.tokens.len() / width, |&end| end as usize);
            let shard = self.shard()?;
            while let Some(&&line) = lines.peek()
                && line as usize <= document_end
            {
                lines.next();
                let end = line as usize;
                shard.push(slice(&block.tokens, at, end, width))?;
                at = end.max(at);
                shard.end_line();
            }
            shard.push(slice(&block.tokens, at, document_end, width))?;
            at = document_end.max(at);
            if document.is_none() {
                return Ok(());
            }
            shard.end_document();
            if shard.tokens() >= limit {
                self.close()?;
            }
        }
    }

    fn close(&mut self) -> Result<(), PrepareError> {
        if let Some(shard) = self.shard.take() {
            let entry = shard.finish()?;
            self.written += entry.tokens;
            self.entries.push(entry);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<ShardEntry>, PrepareError> {
        if self.shard.as_ref().is_some_and(ShardWriter::is_empty) {
            self.shard = None;
            remove_old_aside(self.job, self.entries.len())?;
        }
        self.close()?;
        Ok(self.entries)
    }
}

/// Removes the file of a shard that got no token.
fn remove_old_aside(job: &Job, number: usize) -> Result<(), PrepareError> {
    let path = job.out.join(shard_name(number, SHARD_ASIDE));
    fs::remove_file(&path).map_err(io_error(&path))
}

/// Tokens `start..end`, held to the bounds of a block that was altered.
fn slice(tokens: &[u8], start: usize, end: usize, width: usize) -> &[u8] {
    let end = (end * width).min(tokens.len());
    &tokens[(start * width).min(end)..end]
}
