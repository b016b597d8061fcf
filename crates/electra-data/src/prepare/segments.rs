//! Segments: the tokenized blocks of a part, in order, in files that are there whole or not at all.
//!
//! A segment is its entries, then the BLAKE3 of all of them. An entry begins with six u32: input,
//! block, three counts, kind.
//!
//! | kind | counts | then |
//! |---|---|---|
//! | 0 | tokens, lines, documents | the tokens of a block in 2 or 4 bytes each; as u32 how many of them stand before the end of each line and of each document |
//! | 1 | bytes, 0, 0 | as JSON the stamp of an input, whose blocks begin |
//! | 2 | bytes, 0, 0 | as JSON what was read of an input, whose blocks have ended |

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{PrepareError, io_error};

use crate::read::identity::{Content, Stamp};
use crate::shards::put_tokens;
use electra_model::files::atomic::put_in_place;

/// Tokens after which a segment is closed; what a kill may cost.
const SEGMENT_TOKENS: u64 = 4 << 20;
const HEAD: usize = 24;
/// Kinds of entries.
const BLOCK: u32 = 0;
const BEGUN: u32 = 1;
const READ: u32 = 2;

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

/// Whether a part's folder holds anything done.
pub(super) fn holds_segments(dir: &Path) -> bool {
    segment_path(dir, 0).exists()
}

/// Something that stands in a segment, with blocks of the form `B`.
#[derive(Debug)]
pub(super) enum Entry<B> {
    /// A block.
    Block(B),
    /// The blocks of an input begin, which had this stamp.
    Begun(u32, Option<Stamp>),
    /// The blocks of an input have ended.
    Read(u32, Content),
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
    /// What is to be written next.
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

    /// Writes an entry; the beginning of an input with what comes next of it.
    pub(super) fn push(&mut self, entry: &Entry<Tokens>) -> Result<(), PrepareError> {
        let words = |values: &[u32], out: &mut Vec<u8>| {
            out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        };
        let json = |input: u32, kind: u32, text: serde_json::Result<Vec<u8>>, out: &mut Vec<u8>| {
            let text = text.map_err(|e| io_error(&self.dir)(e.into()))?;
            words(&[input, 0, text.len() as u32, 0, 0, kind], out);
            out.extend(text);
            Ok::<(), PrepareError>(())
        };
        let mut block_tokens = 0;
        match entry {
            Entry::Block(block) => {
                block_tokens = block.tokens.len() as u64;
                let counts = [
                    block.input,
                    block.block,
                    block.tokens.len() as u32,
                    block.lines.len() as u32,
                    block.documents.len() as u32,
                    BLOCK,
                ];
                words(&counts, &mut self.scratch);
                put_tokens(&block.tokens, self.width, &mut self.scratch);
                words(&block.lines, &mut self.scratch);
                words(&block.documents, &mut self.scratch);
            }
            Entry::Begun(input, stamp) => {
                json(*input, BEGUN, serde_json::to_vec(stamp), &mut self.scratch)?;
                return Ok(());
            }
            Entry::Read(input, content) => {
                json(*input, READ, serde_json::to_vec(content), &mut self.scratch)?;
            }
        }
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
        self.scratch.clear();
        *tokens += block_tokens;
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
    /// Bytes of the open segment before the next entry.
    at: u64,
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
            at: 0,
        }
    }

    fn wrong(&self, what: &str) -> PrepareError {
        PrepareError::Segment {
            path: segment_path(&self.dir, self.number),
            what: what.into(),
            part: self.dir.clone(),
        }
    }

    /// The next entry; `None` after the last segment.
    pub(super) fn next(&mut self) -> Result<Option<Entry<StoredBlock>>, PrepareError> {
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
                self.at = 0;
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
            let &[input, block, tokens, lines, documents, kind] = head.as_slice() else {
                return Err(truncated);
            };
            let entry = match kind {
                BLOCK => Entry::Block(StoredBlock {
                    input,
                    block,
                    tokens: take(u64::from(tokens) * self.width as u64)?,
                    lines: words(&take(u64::from(lines) * 4)?),
                    documents: words(&take(u64::from(documents) * 4)?),
                }),
                BEGUN | READ => {
                    let json = take(u64::from(tokens))?;
                    let entry = match kind {
                        BEGUN => serde_json::from_slice(&json).map(|s| Entry::Begun(input, s)),
                        _ => serde_json::from_slice(&json).map(|c| Entry::Read(input, c)),
                    };
                    entry.map_err(|_| truncated)?
                }
                _ => return Err(truncated),
            };
            let whole = file.get_ref().metadata().map_err(io_error(&path))?.len();
            self.at = whole.saturating_sub(32 + *left);
            return Ok(Some(entry));
        }
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// A place in the segments of a part, before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    segment: u32,
    offset: u64,
}

/// What the segments of a part hold of an input.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) input: u32,
    /// Before its first entry.
    pub(super) place: Place,
    /// The input's stamp when its blocks began.
    pub(super) stamp: Option<Stamp>,
    /// The last block.
    pub(super) block: Option<u32>,
    /// What was read of it, if its blocks have ended.
    pub(super) content: Option<Content>,
}

/// What the good segments of a part hold, input by input, and their number. Segments from the first
/// bad one on are removed.
pub(super) fn recover(dir: &Path, width: usize) -> Result<(u32, Vec<Held>), PrepareError> {
    loop {
        let mut reader = SegmentReader::new(dir, width);
        let mut inputs: Vec<Held> = Vec::new();
        let bad = loop {
            let mut place = Place {
                segment: reader.number,
                offset: reader.at,
            };
            let entry = match reader.next() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok((reader.number, inputs)),
                Err(PrepareError::Segment { .. }) => break reader.number,
                Err(e) => return Err(e),
            };
            if place.segment != reader.number || inputs.is_empty() {
                place = Place {
                    segment: reader.number,
                    offset: 0,
                };
            }
            let (input, block) = match &entry {
                Entry::Block(block) => (block.input, Some(block.block)),
                Entry::Begun(input, _) | Entry::Read(input, _) => (*input, None),
            };
            if inputs.last().is_none_or(|held| held.input != input) {
                inputs.push(Held {
                    input,
                    place,
                    stamp: None,
                    block: None,
                    content: None,
                });
            }
            if let Some(held) = inputs.last_mut() {
                held.block = block.or(held.block);
                match entry {
                    Entry::Block(_) => {}
                    Entry::Begun(_, stamp) => held.stamp = stamp,
                    Entry::Read(_, content) => held.content = Some(content),
                }
            }
        };
        remove_from(dir, bad)?;
    }
}

/// Removes the segments from `first` on, the last first: what is left is always a beginning.
fn remove_from(dir: &Path, first: u32) -> Result<(), PrepareError> {
    let mut end = first;
    while segment_path(dir, end).exists() {
        end += 1;
    }
    for number in (first..end).rev() {
        let path = segment_path(dir, number);
        fs::remove_file(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

/// Removes what stands in the segments from `place` on. Returns the number of segments left.
pub(super) fn truncate(dir: &Path, place: Place) -> Result<u32, PrepareError> {
    remove_from(dir, place.segment + 1)?;
    let path = segment_path(dir, place.segment);
    if place.offset == 0 {
        fs::remove_file(&path).map_err(io_error(&path))?;
        return Ok(place.segment);
    }
    let aside = path.with_extension("tmp");
    let cut = (|| {
        let mut from = File::open(&path)?.take(place.offset);
        let mut to = BufWriter::new(File::create(&aside)?);
        let mut hash = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            to.write_all(&buffer[..n])?;
        }
        to.write_all(hash.finalize().as_bytes())?;
        let to = to.into_inner().map_err(|e| e.into_error())?;
        to.sync_all()?;
        put_in_place(&aside, &path)
    })();
    cut.map_err(io_error(&path))?;
    Ok(place.segment + 1)
}
