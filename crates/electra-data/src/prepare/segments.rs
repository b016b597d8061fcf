//! Segments: the tokenized blocks of a part, in order, in files that are there whole or not at all.
//!
//! A segment is its blocks, then the BLAKE3 of all of them. A block is six u32 (input, block,
//! tokens, lines, documents, 0), its tokens in 2 or 4 bytes each, and as u32 how many tokens of the
//! block stand before the end of each line and of each document.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{PrepareError, io_error};

use crate::shards::put_tokens;
use electra_model::files::atomic::put_in_place;

/// Tokens after which a segment is closed; what a kill may cost.
const SEGMENT_TOKENS: u64 = 4 << 20;
const HEAD: usize = 24;

/// The tokens of a block.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    pub(super) input: u32,
    pub(super) block: u32,
    pub(super) tokens: Vec<u32>,
    /// Tokens before the end of each line.
    pub(super) lines: Vec<u32>,
    /// Tokens before the end of each document.
    pub(super) documents: Vec<u32>,
}

fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("segment-{number:06}.bin"))
}

/// Writes the segments of a part.
pub(super) struct SegmentWriter {
    dir: PathBuf,
    width: usize,
    number: u32,
    open: Option<(BufWriter<File>, blake3::Hasher, u64)>,
    scratch: Vec<u8>,
}

impl SegmentWriter {
    /// Goes on in `dir` with segment `number`.
    pub(super) fn new(dir: &Path, width: usize, number: u32) -> Self {
        SegmentWriter {
            dir: dir.into(),
            width,
            number,
            open: None,
            scratch: Vec::new(),
        }
    }

    fn aside(&self) -> PathBuf {
        segment_path(&self.dir, self.number).with_extension("tmp")
    }

    pub(super) fn push(&mut self, block: &Tokens) -> Result<(), PrepareError> {
        self.scratch.clear();
        let counts = [
            block.input,
            block.block,
            block.tokens.len() as u32,
            block.lines.len() as u32,
            block.documents.len() as u32,
            0,
        ];
        let words = |values: &[u32], out: &mut Vec<u8>| {
            out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        };
        words(&counts, &mut self.scratch);
        put_tokens(&block.tokens, self.width, &mut self.scratch);
        words(&block.lines, &mut self.scratch);
        words(&block.documents, &mut self.scratch);
        let aside = self.aside();
        let (file, hash, tokens) = match &mut self.open {
            Some(open) => open,
            None => {
                let file = File::create(&aside).map_err(io_error(&aside))?;
                self.open
                    .insert((BufWriter::new(file), blake3::Hasher::new(), 0))
            }
        };
        file.write_all(&self.scratch).map_err(io_error(&aside))?;
        hash.update(&self.scratch);
        *tokens += block.tokens.len() as u64;
        if *tokens >= SEGMENT_TOKENS {
            self.close()?;
        }
        Ok(())
    }

    /// Closes the open segment, if there is one.
    pub(super) fn close(&mut self) -> Result<(), PrepareError> {
        let aside = self.aside();
        let Some((mut file, hash, _)) = self.open.take() else {
            return Ok(());
        };
        let path = segment_path(&self.dir, self.number);
        let synced = file.write_all(hash.finalize().as_bytes()).and_then(|()| {
            let file = file.into_inner().map_err(|e| e.into_error())?;
            file.sync_all()?;
            put_in_place(&aside, &path)
        });
        synced.map_err(io_error(&path))?;
        self.number += 1;
        Ok(())
    }
}

/// Reads the blocks of a part back, in order.
pub(super) struct SegmentReader {
    dir: PathBuf,
    width: usize,
    number: u32,
    open: Option<(BufReader<File>, blake3::Hasher, u64)>,
}

/// A block as it lies in a segment.
#[derive(Debug, Default)]
pub(super) struct StoredBlock {
    pub(super) input: u32,
    pub(super) block: u32,
    /// Tokens in 2 or 4 bytes each.
    pub(super) tokens: Vec<u8>,
    pub(super) lines: Vec<u32>,
    pub(super) documents: Vec<u32>,
}

impl SegmentReader {
    pub(super) fn new(dir: &Path, width: usize) -> Self {
        SegmentReader {
            dir: dir.into(),
            width,
            number: 0,
            open: None,
        }
    }

    /// The segment that comes next, once the open one is used up.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    fn wrong(&self, what: &str) -> PrepareError {
        PrepareError::Segment {
            path: segment_path(&self.dir, self.number),
            what: what.into(),
            part: self.dir.clone(),
        }
    }

    /// The next block; `None` after the last segment.
    pub(super) fn next(&mut self) -> Result<Option<StoredBlock>, PrepareError> {
        loop {
            let path = segment_path(&self.dir, self.number);
            if self.open.is_none() {
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(io_error(&path)(e)),
                };
                let left = file.metadata().map_err(io_error(&path))?.len();
                if left < 32 {
                    return Err(self.wrong("truncated"));
                }
                let reader = BufReader::with_capacity(256 << 10, file);
                self.open = Some((reader, blake3::Hasher::new(), left - 32));
            }
            let truncated = self.wrong("truncated or altered");
            let Some((file, hash, left)) = &mut self.open else {
                continue;
            };
            if *left == 0 {
                let mut sum = [0; 32];
                file.read_exact(&mut sum).map_err(io_error(&path))?;
                if hash.finalize() != blake3::Hash::from_bytes(sum) {
                    return Err(self.wrong("its checksum does not hold"));
                }
                self.open = None;
                self.number += 1;
                continue;
            }
            let mut take = |bytes: u64| -> Result<Vec<u8>, PrepareError> {
                if bytes > *left {
                    return Err(PrepareError::Segment {
                        path: path.clone(),
                        what: "truncated or altered".into(),
                        part: self.dir.clone(),
                    });
                }
                let mut buffer = vec![0; bytes as usize];
                file.read_exact(&mut buffer).map_err(io_error(&path))?;
                hash.update(&buffer);
                *left -= bytes;
                Ok(buffer)
            };
            let head = words(&take(HEAD as u64)?);
            let &[input, block, tokens, lines, documents, _] = head.as_slice() else {
                return Err(truncated);
            };
            let tokens = take(u64::from(tokens) * self.width as u64)?;
            let lines = words(&take(u64::from(lines) * 4)?);
            let documents = words(&take(u64::from(documents) * 4)?);
            return Ok(Some(StoredBlock {
                input,
                block,
                tokens,
                lines,
                documents,
            }));
        }
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// Where a part stands: the number of its good segments, and the last block in them. Segments from
/// the first bad one on are removed.
pub(super) fn recover(dir: &Path, width: usize) -> Result<(u32, Option<(u32, u32)>), PrepareError> {
    loop {
        let mut reader = SegmentReader::new(dir, width);
        let mut last = None;
        let bad = loop {
            match reader.next() {
                Ok(Some(block)) => last = Some((block.input, block.block)),
                Ok(None) => return Ok((reader.number(), last)),
                Err(PrepareError::Segment { .. }) => break reader.number(),
                Err(e) => return Err(e),
            }
        };
        for number in bad.. {
            let path = segment_path(dir, number);
            if !path.exists() {
                break;
            }
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
    }
}
