//! Reads documents out of files, one piece at a time.
//!
//! A document is a sequence of lines, a line a sequence of pieces of at most a few ten kilobytes,
//! cut where a word ends: so memory stays flat however long a line is, and cutting changes no
//! token. A word of more than [`pieces::WORD_LIMIT`] bytes without any punctuation is cut too; it
//! becomes one `[UNK]` a cut instead of one in all.

pub(crate) mod bytes;
pub(crate) mod identity;
pub(crate) mod inputs;
pub(crate) mod jsonl;
mod parquet;
pub mod pieces;
mod stdin;
pub(crate) mod table;
mod text;

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use thiserror::Error;

pub use inputs::{Input, expand};
pub use pieces::PieceEnd;

use bytes::{Opened, Utf8Count};
use identity::{Content, Halt, Stamp, Watch};

/// What can go wrong when documents are read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A path that does not exist.
    #[error("{path}: no such file or directory")]
    Missing {
        /// What was asked for.
        path: PathBuf,
    },
    /// A pattern or a folder without a file.
    #[error("{pattern}: no file of a known kind matches; known: {}", Format::KNOWN)]
    NoMatch {
        /// The pattern or folder.
        pattern: String,
    },
    /// A glob pattern that is none.
    #[error("{pattern}: not a glob pattern: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of a kind that its name does not tell.
    #[error(
        "{path}: unknown kind of file; known: {}; or name the format",
        Format::KNOWN
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be read.
    #[error("{path}: cannot read: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that something writes to.
    #[error("{path}: it was written to while it was read; run again when it no longer changes")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// NUL bytes near the start, or the mark of a compressed file or UTF-16.
    #[error("{path}: looks binary, not text: {why}")]
    Binary {
        /// The file.
        path: PathBuf,
        /// The evidence, with its place, and what to do.
        why: String,
    },
    /// Bytes that are not UTF-8.
    #[error(
        "{path}: {count} invalid UTF-8 sequences{also}, the first at {unit} {first}; convert the file, or give --lossy, which puts U+FFFD in their place"
    )]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// Invalid sequences in the whole file.
        count: u64,
        /// Offset of the first in the (decompressed) file; its row in Parquet.
        first: u64,
        /// `byte` or `row`.
        unit: &'static str,
        /// What else counts as one in this format, for the message.
        also: &'static str,
    },
    /// A record that is not what the format asks for.
    #[error("{path}, {place}: {what}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Line or row, counted from 1.
        place: String,
        /// What is wrong and what to do.
        what: String,
    },
}

/// A kind of file, not counting compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain text.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header, quoted as in RFC 4180.
    Csv,
    /// Tab-separated values with a header; quotes are literal text.
    Tsv,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// The names that files end with.
    pub const KNOWN: &str = ".txt .jsonl .csv .tsv .parquet, each also .gz or .zst";

    /// The format of a file's last extension, lower case, compression already taken off.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "txt" | "text" => Some(Format::Text),
            "jsonl" | "ndjson" => Some(Format::Jsonl),
            "csv" => Some(Format::Csv),
            "tsv" => Some(Format::Tsv),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }

    /// The name of the format, as it is given and printed.
    pub fn name(self) -> &'static str {
        match self {
            Format::Text => "txt",
            Format::Jsonl => "jsonl",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Parquet => "parquet",
        }
    }
}

/// Where documents end in plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextLayout {
    /// A blank line ends a document.
    #[default]
    BlankLine,
    /// Each line is a document.
    Line,
}

/// How files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// The format, where the file's name is not to decide.
    pub format: Option<Format>,
    /// Documents in plain text.
    pub layout: TextLayout,
    /// JSON field or table column that holds the text.
    pub field: String,
    /// Whether invalid UTF-8 becomes U+FFFD instead of an error.
    pub lossy: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            format: None,
            layout: TextLayout::BlankLine,
            field: "text".into(),
            lossy: false,
        }
    }
}

/// One format's reader. Invalid UTF-8 is replaced; counting it is the byte layer's work.
trait Source: Send {
    /// Appends the next piece to `text` and says what it ends; `None` at the end of the file.
    fn piece(&mut self, text: &mut String) -> Result<Option<PieceEnd>, ReadError>;
}

/// Reads one input.
pub struct Reader {
    path: PathBuf,
    source: Box<dyn Source>,
    utf8: Utf8Count,
    unit: &'static str,
    also: &'static str,
    lossy: bool,
    watch: Option<Watch>,
}

impl Reader {
    /// Opens an input.
    ///
    /// # Errors
    /// A file that is missing, unreadable, binary or of an unknown kind; a table without the
    /// column.
    pub fn open(input: &Input, options: &ReadOptions) -> Result<Self, ReadError> {
        Self::open_until(input, options, &Halt::default())
    }

    /// Opens an input; waiting for standard input ends with an error once `halt` is set.
    pub(crate) fn open_until(
        input: &Input,
        options: &ReadOptions,
        halt: &Halt,
    ) -> Result<Self, ReadError> {
        let Opened {
            path,
            format,
            bytes,
            utf8,
            watch,
        } = bytes::open(input, options, bytes::PROBE, halt)?;
        let source: Box<dyn Source> = match format {
            Format::Text => Box::new(text::TextSource::new(path.clone(), bytes, options.layout)),
            Format::Jsonl => Box::new(jsonl::JsonlSource::new(
                path.clone(),
                bytes,
                options.field.clone(),
                utf8.clone(),
            )),
            Format::Csv | Format::Tsv => Box::new(table::TableSource::new(
                path.clone(),
                bytes,
                &options.field,
                format == Format::Tsv,
            )?),
            Format::Parquet => Box::new(parquet::ParquetSource::new(
                path.clone(),
                bytes,
                &options.field,
                utf8.clone(),
            )?),
        };
        Ok(Reader {
            path,
            source,
            utf8,
            unit: match format {
                Format::Parquet => "row",
                _ => "byte",
            },
            also: match format {
                Format::Jsonl => " or escapes of half a surrogate pair",
                _ => "",
            },
            lossy: options.lossy,
            watch,
        })
    }

    /// The stamp that the file had when it was opened, where that is sure to tell another content.
    pub(crate) fn stamp(&self) -> Option<&Stamp> {
        self.watch.as_ref()?.stamp()
    }

    /// What was read of a file, after its last piece. None of standard input, and if halted.
    ///
    /// # Errors
    /// [`ReadError::Changed`].
    pub(crate) fn content(self, halt: &Halt) -> Result<Option<Content>, ReadError> {
        // What reads the file goes first: it may still hold some of it.
        drop(self.source);
        match self.watch {
            Some(watch) => watch.content(&|| halt.load(Relaxed)),
            None => Ok(None),
        }
    }

    /// Appends the next piece to `text` and says what it ends; `None` at the end of the file.
    ///
    /// # Errors
    /// As for [`Reader::open`], and malformed records. At the first invalid UTF-8 the rest of the
    /// file is read through, to say how much of it there is.
    pub fn piece(&mut self, text: &mut String) -> Result<Option<PieceEnd>, ReadError> {
        let end = self.source.piece(text)?;
        if !self.lossy && self.utf8.count() > 0 {
            let mut rest = String::new();
            while self.source.piece(&mut rest)?.is_some() {
                rest.clear();
            }
            return Err(ReadError::InvalidUtf8 {
                path: self.path.clone(),
                count: self.utf8.count(),
                first: self.utf8.first(),
                unit: self.unit,
                also: self.also,
            });
        }
        Ok(end)
    }

    /// Invalid UTF-8 sequences met so far.
    pub fn invalid_utf8(&self) -> u64 {
        self.utf8.count()
    }
}

#[cfg(test)]
pub(crate) mod tests;
