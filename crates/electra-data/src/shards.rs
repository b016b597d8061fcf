//! Token shards: memory-mapped files of tokens with line and document offsets.
//!
//! All numbers are little-endian. A shard is
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `ELECTRA\0` |
//! | 4, 4 | format version; bytes a token, 2 or 4 |
//! | 8, 8, 8, 8 | entries of the vocabulary; tokens; lines; documents |
//! | 32 | hash of the tokenizer |
//! | 48 | zero |
//! | tokens × 2 or 4 | tokens, filled up with zeros to a multiple of 4 bytes |
//! | (lines + 1) × 4 | first token of each line, and the number of tokens |
//! | (documents + 1) × 4 | first line of each document, and the number of lines |

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use thiserror::Error;

use crate::manifest::{FORMAT_VERSION, MANIFEST, Manifest, ShardEntry};
use electra_model::files::atomic::put_in_place;

const MAGIC: &[u8; 8] = b"ELECTRA\0";
/// Bytes of the header.
pub const HEADER: usize = 128;

/// What can be wrong with shards.
#[derive(Debug, Error)]
pub enum ShardError {
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory without a manifest.
    #[error("{dir}: no manifest.json; give a directory that prepare has completed")]
    NoManifest {
        /// The directory.
        dir: PathBuf,
    },
    /// A manifest that is none.
    #[error("{path}: {what}; prepare the data again")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file that is no shard, or one of another version.
    #[error("{path}: {what}; prepare the data again")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file with a wrong length.
    #[error(
        "{path}: {found} bytes where {expected} are due; the file is truncated or has grown; copy it anew, or prepare the data again"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes due.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// A file whose content is not what was written.
    #[error(
        "{path}: checksum {found} where the manifest says {expected}; the file was altered; copy it anew, or prepare the data again"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Of the manifest.
        expected: String,
        /// Of the file.
        found: String,
    },
    /// A token that the vocabulary does not have.
    #[error(
        "{path}: token {token} at position {position}, but the vocabulary has {vocab_size} entries; the file was altered, or the manifest is another's"
    )]
    TokenOutOfRange {
        /// The file.
        path: PathBuf,
        /// The id.
        token: u32,
        /// Its position in the shard.
        position: u64,
        /// Entries of the vocabulary.
        vocab_size: u64,
    },
    /// Offsets that do not rise.
    #[error(
        "{path}: {what} offset {index} is out of order; the file was altered; copy it anew, or prepare the data again"
    )]
    Offsets {
        /// The file.
        path: PathBuf,
        /// `line` or `document`.
        what: &'static str,
        /// Which.
        index: u64,
    },
    /// Shards made with another tokenizer.
    #[error(
        "{dir}: the shards were made with tokenizer {there}, not with {given}; give that one (it lies in {dir}/tokenizer), or prepare the data again"
    )]
    OtherTokenizer {
        /// The directory.
        dir: PathBuf,
        /// Hash in the manifest.
        there: String,
        /// Hash of the tokenizer given.
        given: String,
    },
    /// More tokens in one shard than offsets can count.
    #[error("{path}: a document brings this shard beyond 4,294,967,295 tokens; split the document")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> ShardError {
    move |source| ShardError::Io {
        path: path.into(),
        source,
    }
}

/// Bytes a token takes with a vocabulary of `vocab_size` entries.
pub fn token_bytes(vocab_size: u64) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// Appends tokens in `width` bytes each.
pub(crate) fn put_tokens(tokens: &[u32], width: usize, out: &mut Vec<u8>) {
    if width == 2 {
        out.extend(tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()));
    } else {
        out.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    }
}

fn put_u32s(values: &[u32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Writes one shard, aside until it is finished. Holds the offsets in memory, 4 bytes a line.
pub(crate) struct ShardWriter {
    path: PathBuf,
    file: BufWriter<File>,
    vocab_size: u64,
    tokenizer_hash: blake3::Hash,
    tokens: u64,
    lines: Vec<u32>,
    documents: Vec<u32>,
    scratch: Vec<u8>,
}

impl ShardWriter {
    pub(crate) fn create(
        path: &Path,
        vocab_size: u64,
        tokenizer_hash: blake3::Hash,
    ) -> Result<Self, ShardError> {
        let aside = path.with_extension("tmp");
        let file = File::create(&aside).map_err(io_error(&aside))?;
        let mut writer = ShardWriter {
            path: path.into(),
            file: BufWriter::with_capacity(1 << 20, file),
            vocab_size,
            tokenizer_hash,
            tokens: 0,
            lines: vec![0],
            documents: vec![0],
            scratch: vec![0; HEADER],
        };
        writer.flush_scratch()?;
        Ok(writer)
    }

    fn flush_scratch(&mut self) -> Result<(), ShardError> {
        self.file
            .write_all(&self.scratch)
            .map_err(io_error(&self.path))?;
        self.scratch.clear();
        Ok(())
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Appends tokens, given as they lie in the file.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), ShardError> {
        self.file.write_all(bytes).map_err(io_error(&self.path))?;
        self.tokens += (bytes.len() / token_bytes(self.vocab_size)) as u64;
        if self.tokens >= u64::from(u32::MAX) {
            return Err(ShardError::TooLong {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    /// Ends a line, if it has a token.
    pub(crate) fn end_line(&mut self) {
        if self.lines.last() != Some(&(self.tokens as u32)) {
            self.lines.push(self.tokens as u32);
        }
    }

    /// Ends a document and its last line, if it has a token.
    pub(crate) fn end_document(&mut self) {
        self.end_line();
        let lines = (self.lines.len() - 1) as u32;
        if self.documents.last() != Some(&lines) {
            self.documents.push(lines);
        }
    }

    /// Completes the file, syncs it and puts it in its place.
    pub(crate) fn finish(mut self) -> Result<ShardEntry, ShardError> {
        let width = token_bytes(self.vocab_size);
        let length = self.tokens * width as u64;
        self.scratch
            .resize((length.next_multiple_of(4) - length) as usize, 0);
        put_u32s(&self.lines, &mut self.scratch);
        put_u32s(&self.documents, &mut self.scratch);
        self.flush_scratch()?;
        let (lines, documents) = (self.lines.len() as u64 - 1, self.documents.len() as u64 - 1);
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        put_u32s(&[FORMAT_VERSION, width as u32], &mut header);
        for count in [self.vocab_size, self.tokens, lines, documents] {
            header.extend_from_slice(&count.to_le_bytes());
        }
        header.extend_from_slice(self.tokenizer_hash.as_bytes());
        header.resize(HEADER, 0);
        let aside = self.path.with_extension("tmp");
        let at = io_error;
        let mut file = self
            .file
            .into_inner()
            .map_err(|e| io_error(&self.path)(e.into_error()))?;
        use std::io::{Seek, SeekFrom};
        file.seek(SeekFrom::Start(0)).map_err(at(&aside))?;
        file.write_all(&header).map_err(at(&aside))?;
        file.sync_all().map_err(at(&aside))?;
        drop(file);
        let (bytes, blake3) = checksum(&aside)?;
        put_in_place(&aside, &self.path).map_err(at(&self.path))?;
        Ok(ShardEntry {
            file: self
                .path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            documents,
            lines,
            tokens: self.tokens,
            bytes,
            blake3,
        })
    }
}

/// Size and BLAKE3 of a file.
fn checksum(path: &Path) -> Result<(u64, String), ShardError> {
    let mut hash = blake3::Hasher::new();
    let file = File::open(path).map_err(io_error(path))?;
    hash.update_reader(file).map_err(io_error(path))?;
    Ok((hash.count(), hash.finalize().to_hex().to_string()))
}

/// An open shard.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    width: usize,
    tokens: u64,
    lines: u64,
    documents: u64,
    /// Where line offsets and document offsets start, in bytes.
    line_at: usize,
    document_at: usize,
}

impl Shard {
    /// Maps a shard and checks its header and size against the manifest.
    ///
    /// # Errors
    /// A file that is missing, truncated, of another format or tokenizer.
    fn open(dir: &Path, entry: &ShardEntry, manifest: &Manifest) -> Result<Self, ShardError> {
        let path = dir.join(&entry.file);
        let file = File::open(&path).map_err(io_error(&path))?;
        let found = file.metadata().map_err(io_error(&path))?.len();
        let wrong = |what: String| ShardError::Header {
            path: path.clone(),
            what,
        };
        if found != entry.bytes {
            return Err(ShardError::Size {
                path,
                expected: entry.bytes,
                found,
            });
        }
        if found < HEADER as u64 {
            return Err(wrong(format!("{found} bytes are too few for a shard")));
        }
        // SAFETY: the file is opened read-only and this crate never writes to a finished shard; if
        // another process truncates it while it is mapped, reading it raises SIGBUS, as for any map.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error(&path))?;
        let header = &map[..HEADER];
        if &header[..8] != MAGIC {
            return Err(wrong("not a token shard".into()));
        }
        let (version, width) = (u32_at(header, 8), u32_at(header, 12) as usize);
        if version != FORMAT_VERSION {
            return Err(wrong(format!(
                "shard format {version}, but this program reads format {FORMAT_VERSION}"
            )));
        }
        let [vocab_size, tokens, lines, documents] = [16, 24, 32, 40].map(|at| u64_at(header, at));
        let counts = [entry.tokens, entry.lines, entry.documents];
        if [tokens, lines, documents] != counts
            || vocab_size != manifest.plan.vocab_size
            || width != token_bytes(vocab_size)
        {
            return Err(wrong("its header does not agree with the manifest".into()));
        }
        let hash = blake3::Hash::from_slice(&header[48..80]).map(|h| h.to_hex().to_string());
        if hash.ok().as_ref() != Some(&manifest.plan.tokenizer_hash) {
            return Err(wrong(
                "it was made with another tokenizer than the manifest's".into(),
            ));
        }
        if tokens.max(lines).max(documents) > u64::from(u32::MAX) {
            return Err(wrong("its header counts more than a shard can hold".into()));
        }
        let line_at = HEADER as u64 + (tokens * width as u64).next_multiple_of(4);
        let document_at = line_at + (lines + 1) * 4;
        let expected = document_at + (documents + 1) * 4;
        if expected != found {
            return Err(ShardError::Size {
                path,
                expected,
                found,
            });
        }
        Ok(Shard {
            path,
            map,
            width,
            tokens,
            lines,
            documents,
            line_at: line_at as usize,
            document_at: document_at as usize,
        })
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Number of lines.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// First token of line `line`; of the line after the last, the number of tokens.
    ///
    /// Altered offsets are held to the shard's bounds, so that they cannot make a reader run out.
    pub fn line_start(&self, line: u64) -> u64 {
        let at = self.line_at + 4 * line.min(self.lines) as usize;
        u64::from(u32_at(&self.map, at)).min(self.tokens)
    }

    /// First line of document `document`; of the one after the last, the number of lines.
    pub fn document_start(&self, document: u64) -> u64 {
        let at = self.document_at + 4 * document.min(self.documents) as usize;
        u64::from(u32_at(&self.map, at)).min(self.lines)
    }

    /// Appends the tokens of `range` to `out`.
    ///
    /// # Errors
    /// A token that is not below `vocab_size`.
    pub fn read(
        &self,
        range: std::ops::Range<u64>,
        vocab_size: u64,
        out: &mut Vec<u32>,
    ) -> Result<(), ShardError> {
        let end = range.end.min(self.tokens);
        let start = range.start.min(end);
        let bytes =
            &self.map[HEADER + start as usize * self.width..HEADER + end as usize * self.width];
        let first = out.len();
        if self.width == 2 {
            out.extend(
                bytes
                    .chunks_exact(2)
                    .map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))),
            );
        } else {
            out.extend(
                bytes
                    .chunks_exact(4)
                    .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
        match out[first..]
            .iter()
            .position(|&t| u64::from(t) >= vocab_size)
        {
            None => Ok(()),
            Some(at) => Err(ShardError::TokenOutOfRange {
                path: self.path.clone(),
                token: out[first + at],
                position: start + at as u64,
                vocab_size,
            }),
        }
    }

    /// Reads everything: offsets rise, every token is in the vocabulary.
    fn verify(&self, vocab_size: u64) -> Result<(), ShardError> {
        let rising = |what, at: usize, count: u64, last: u64| {
            let mut before = None;
            for i in 0..=count {
                let value = u32_at(&self.map, at + 4 * i as usize);
                let ends = (i == 0 && value != 0) || (i == count && u64::from(value) != last);
                if ends || before.is_some_and(|before| value <= before) {
                    return Err(ShardError::Offsets {
                        path: self.path.clone(),
                        what,
                        index: i,
                    });
                }
                before = Some(value);
            }
            Ok(())
        };
        rising("line", self.line_at, self.lines, self.tokens)?;
        rising("document", self.document_at, self.documents, self.lines)?;
        let mut out = Vec::new();
        let mut at = 0;
        while at < self.tokens {
            out.clear();
            self.read(at..at + (1 << 20), vocab_size, &mut out)?;
            at += 1 << 20;
        }
        Ok(())
    }
}

/// An open directory of shards.
#[derive(Debug)]
pub struct Corpus {
    dir: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// First document of each shard, and the number of documents.
    first_document: Vec<u64>,
}

impl Corpus {
    /// Opens a directory that `prepare` has completed.
    ///
    /// # Errors
    /// No or a bad manifest; a shard that is missing, truncated, of another format, tokenizer or
    /// size than the manifest says.
    pub fn open(dir: &Path) -> Result<Self, ShardError> {
        let manifest =
            read_manifest(dir)?.ok_or_else(|| ShardError::NoManifest { dir: dir.into() })?;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut first_document = vec![0];
        let mut documents = 0;
        for entry in &manifest.shards {
            let shard = Shard::open(dir, entry, &manifest)?;
            documents += shard.documents();
            first_document.push(documents);
            shards.push(shard);
        }
        Ok(Corpus {
            dir: dir.into(),
            manifest,
            shards,
            first_document,
        })
    }

    /// What the directory holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder of the tokenizer that made the shards.
    pub fn tokenizer_dir(&self) -> PathBuf {
        self.dir.join(crate::manifest::TOKENIZER_DIR)
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.first_document.last().copied().unwrap_or(0)
    }

    /// Entries of the vocabulary: every token is below it.
    pub fn vocab_size(&self) -> u64 {
        self.manifest.plan.vocab_size
    }

    /// A hash of what the shards hold, 64 hexadecimal digits: equal for equal data.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for shard in &self.manifest.shards {
            hash.update(shard.blake3.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }

    /// Refuses a tokenizer other than the one that made the shards.
    ///
    /// # Errors
    /// [`ShardError::OtherTokenizer`].
    pub fn check_tokenizer(&self, hash: &str) -> Result<(), ShardError> {
        if self.manifest.plan.tokenizer_hash == hash {
            return Ok(());
        }
        let short = |hash: &str| hash.chars().take(12).collect();
        Err(ShardError::OtherTokenizer {
            dir: self.dir.clone(),
            there: short(&self.manifest.plan.tokenizer_hash),
            given: short(hash),
        })
    }

    /// Reads every byte: checksums as in the manifest, offsets rising, tokens in the vocabulary.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), ShardError> {
        for (shard, entry) in self.shards.iter().zip(&self.manifest.shards) {
            shard.verify(self.vocab_size())?;
            let found = blake3::hash(&shard.map).to_hex().to_string();
            if found != entry.blake3 {
                return Err(ShardError::Checksum {
                    path: shard.path.clone(),
                    expected: entry.blake3.clone(),
                    found,
                });
            }
        }
        Ok(())
    }

    /// The shards.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Shard of a document, and its number there. `document` is below [`Corpus::documents`].
    pub fn locate(&self, document: u64) -> (usize, u64) {
        let shard = self
            .first_document
            .partition_point(|&first| first <= document)
            .saturating_sub(1)
            .min(self.shards.len().saturating_sub(1));
        (shard, document - self.first_document[shard])
    }
}

/// The manifest of a directory, if there is one.
///
/// # Errors
/// One that cannot be read or is of another version.
pub fn read_manifest(dir: &Path) -> Result<Option<Manifest>, ShardError> {
    let path = dir.join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(&path)(e)),
    };
    let wrong = |what: String| ShardError::Manifest {
        path: path.clone(),
        what,
    };
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|e| wrong(format!("not a manifest: {e}")))?;
    if manifest.format_version != FORMAT_VERSION {
        return Err(wrong(format!(
            "format {}, but this program reads format {FORMAT_VERSION}",
            manifest.format_version
        )));
    }
    Ok(Some(manifest))
}

#[cfg(test)]
pub(crate) mod tests;
