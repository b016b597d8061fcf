//! Comma- and tab-separated values with a header.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::bytes::Bytes;
use super::jsonl::RECORD_LIMIT;
use super::pieces::Record;
use super::{PieceEnd, ReadError, Source};

pub(super) struct TableSource {
    path: PathBuf,
    rows: csv::Reader<RecordLimit>,
    /// Bytes read since the last record.
    used: Arc<AtomicU64>,
    column: usize,
    row: csv::ByteRecord,
    record: Record,
}

impl TableSource {
    pub(super) fn new(
        path: PathBuf,
        bytes: Bytes,
        field: &str,
        tabs: bool,
    ) -> Result<Self, ReadError> {
        let used = Arc::new(AtomicU64::new(0));
        let mut rows = csv::ReaderBuilder::new()
            .delimiter(if tabs { b'\t' } else { b',' })
            .quoting(!tabs)
            .from_reader(RecordLimit {
                inner: bytes.into_stream(),
                used: used.clone(),
            });
        let header = rows.byte_headers().map_err(|e| wrong(&path, e))?;
        let names: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        let column = names.iter().position(|name| name == field);
        // A file without a byte has no header either; it is empty, not wrong.
        if column.is_none() && !names.is_empty() {
            return Err(ReadError::Record {
                path,
                place: "line 1".into(),
                what: format!(
                    "no column {field:?}; the header has: {}; name the column that holds the text",
                    names.join(", ")
                ),
            });
        }
        Ok(TableSource {
            path,
            rows,
            used,
            column: column.unwrap_or(0),
            row: csv::ByteRecord::new(),
            record: Record::default(),
        })
    }
}

impl Source for TableSource {
    fn piece(&mut self, text: &mut String) -> Result<Option<PieceEnd>, ReadError> {
        loop {
            if let Some(end) = self.record.piece(text) {
                return Ok(Some(end));
            }
            self.used.store(0, Relaxed);
            let more = self
                .rows
                .read_byte_record(&mut self.row)
                .map_err(|e| wrong(&self.path, e))?;
            if !more {
                return Ok(None);
            }
            let field = self.row.get(self.column).unwrap_or_default();
            self.record.set(String::from_utf8_lossy(field).into_owned());
        }
    }
}

fn wrong(path: &Path, error: csv::Error) -> ReadError {
    let position = error.position().map(|p| format!("line {}", p.line()));
    let message = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => ReadError::Io {
            path: path.into(),
            source,
        },
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => ReadError::Record {
            path: path.into(),
            place: position.unwrap_or_default(),
            what: format!("{len} fields where the header has {expected_len}"),
        },
        _ => ReadError::Record {
            path: path.into(),
            place: position.unwrap_or_else(|| "a row".into()),
            what: message,
        },
    }
}

/// Stops a record that does not end, such as one with a quote left open.
pub(crate) struct RecordLimit {
    pub(crate) inner: Box<dyn BufRead + Send>,
    /// Bytes read since it was last set to zero.
    pub(crate) used: Arc<AtomicU64>,
}

impl Read for RecordLimit {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if self.used.fetch_add(n as u64, Relaxed) > RECORD_LIMIT {
            return Err(io::Error::other(
                "a row longer than 256 MiB; is a quote left open?",
            ));
        }
        Ok(n)
    }
}
