//! Rows of `.tsv`, `.csv`, `.jsonl`, `.json` and `.parquet`, of folders of texts, and lines, one at a
//! time, with their places.

use std::fs::File;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::{Map, Number, Value};

use super::folders::Folders;
use super::json::lines_of_list;
use super::line_ends::LineEnds;
use crate::read::bytes::{self, Opened};
use crate::read::identity::Halt;
use crate::read::inputs::compression_of;
use crate::read::jsonl::RECORD_LIMIT;
use crate::read::table::RecordLimit;
use crate::read::{Format, Input, ReadError, ReadOptions};

/// One row.
pub(super) struct Row {
    /// The file it stands in, where each row is a file.
    pub(super) file: Option<Arc<Path>>,
    /// Line on which it begins, or number of the row in Parquet or in a list of JSON, from 1.
    pub(super) line: u64,
    pub(super) cells: Cells,
}

/// What a row holds.
#[derive(Debug)]
pub(super) enum Cells {
    /// By place, as in a table of text.
    Places(Vec<String>),
    /// By name, as in JSON and Parquet.
    Names(Map<String, Value>),
}

impl Row {
    /// One of the rows of the file that is read.
    fn of_file(line: u64, cells: Cells) -> Self {
        Row {
            file: None,
            line,
            cells,
        }
    }

    /// What may be wrong with a row of too few cells, one of which goes on over a line's end.
    pub(super) fn quote_hint(&self) -> &'static str {
        match &self.cells {
            Cells::Places(cells) if cells.iter().any(|cell| cell.contains('\n')) => {
                "; a quote that opens a cell may never be closed"
            }
            _ => "",
        }
    }
}

/// A kind of table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Tsv,
    Csv,
    /// An object a line, or one list of objects.
    Json,
    Parquet,
    /// Folders called as labels, with a file a text.
    Folders,
}

/// Opens a file's text, decompressed and without byte order mark.
pub(super) fn open_text(path: &Path) -> Result<Box<dyn BufRead + Send>, ReadError> {
    Ok(open(path, Format::Text)?.bytes.into_stream())
}

fn open(path: &Path, format: Format) -> Result<Opened, ReadError> {
    let input = if path == Path::new("-") {
        Input::Stdin
    } else {
        Input::File(path.to_owned())
    };
    let options = ReadOptions {
        format: Some(format),
        ..ReadOptions::default()
    };
    bytes::open(&input, &options, bytes::MAGIC, &Halt::default())
}

/// A file's whole text, and whether something in it was not UTF-8.
pub(super) fn file_text(path: &Path, lossy: bool) -> Result<(String, bool), ReadError> {
    let mut bytes = Vec::new();
    let mut limited = open_text(path)?.take(RECORD_LIMIT + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|source| ReadError::Io {
            path: path.into(),
            source,
        })?;
    if bytes.len() as u64 > RECORD_LIMIT {
        return Err(ReadError::Record {
            path: path.into(),
            place: "text".into(),
            what: "longer than 256 MiB".into(),
        });
    }
    text(path, "text", 1, bytes, lossy)
}

/// The last extension of a file's name in lower case, compression taken off.
pub(super) fn extension(path: &Path) -> String {
    let name = compression_of(path).1;
    let extension = name.extension().and_then(|e| e.to_str());
    extension.unwrap_or_default().to_ascii_lowercase()
}

/// Lines of text, ended by `\n` or `\r\n`; in a file without any `\n` by `\r`, as old Macs wrote them.
pub(super) struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    line: u64,
    bytes: Vec<u8>,
    /// Of a file whose lines `\r` ends: those not yet handed out, the last one first.
    by_return: Vec<Vec<u8>>,
    lossy: bool,
    /// Lines with invalid UTF-8 that were read nevertheless.
    pub(super) invalid: u64,
}

impl Lines {
    pub(super) fn new(path: &Path, input: Box<dyn BufRead + Send>, lossy: bool) -> Self {
        Lines {
            path: path.into(),
            input,
            line: 0,
            bytes: Vec::new(),
            by_return: Vec::new(),
            lossy,
            invalid: 0,
        }
    }

    /// The next line and its number; `None` at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, String)>, ReadError> {
        let Some(bytes) = self.next_bytes()? else {
            return Ok(None);
        };
        self.line += 1;
        let (text, invalid) = text(&self.path, "line", self.line, bytes, self.lossy)?;
        self.invalid += u64::from(invalid);
        Ok(Some((self.line, text)))
    }

    fn next_bytes(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        if let Some(line) = self.by_return.pop() {
            return Ok(Some(line));
        }
        let io = |source| ReadError::Io {
            path: self.path.clone(),
            source,
        };
        let (mut any, mut ended) = (false, false);
        while !ended {
            let buffer = self.input.fill_buf().map_err(io)?;
            if buffer.is_empty() {
                break;
            }
            any = true;
            let at = memchr::memchr(b'\n', buffer);
            ended = at.is_some();
            self.bytes
                .extend_from_slice(&buffer[..at.unwrap_or(buffer.len())]);
            let used = at.map_or(buffer.len(), |at| at + 1);
            self.input.consume(used);
            if self.bytes.len() as u64 > RECORD_LIMIT {
                return Err(ReadError::Record {
                    path: self.path.clone(),
                    place: format!("line {}", self.line + 1),
                    what: "longer than 256 MiB".into(),
                });
            }
        }
        if !any {
            return Ok(None);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        if !ended && self.line == 0 && bytes.contains(&b'\r') {
            let lines = bytes.split(|&byte| byte == b'\r').rev();
            self.by_return = lines.map(<[u8]>::to_vec).collect();
            return Ok(self.by_return.pop());
        }
        Ok(Some(bytes))
    }
}

/// Bytes to text; whether something in them was not UTF-8.
fn text(
    path: &Path,
    unit: &str,
    line: u64,
    bytes: Vec<u8>,
    lossy: bool,
) -> Result<(String, bool), ReadError> {
    let wrong = |what: String| ReadError::Record {
        path: path.into(),
        place: format!("{unit} {line}"),
        what,
    };
    if let Some(at) = memchr::memchr(0, &bytes) {
        return Err(wrong(format!(
            "NUL byte at byte {at} of the {unit}: binary, not text; remove it"
        )));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, false)),
        Err(e) if lossy => Ok((String::from_utf8_lossy(e.as_bytes()).into_owned(), true)),
        Err(e) => Err(wrong(format!(
            "invalid UTF-8 at byte {} of the {unit}; convert the file, or give --lossy, which puts U+FFFD in its place",
            e.utf8_error().valid_up_to()
        ))),
    }
}

enum Source {
    Tsv(Lines),
    Csv {
        reader: Box<csv::Reader<LineEnds<RecordLimit>>>,
        record: csv::ByteRecord,
        /// Bytes read since the last record.
        used: Arc<AtomicU64>,
    },
    Jsonl(Lines),
    Parquet(Box<RowIter<'static>>, u64),
    Folders(Folders),
}

/// Rows of a file.
pub(super) struct Rows {
    path: PathBuf,
    source: Source,
    lossy: bool,
    invalid: u64,
    ahead: Option<Row>,
}

impl Rows {
    pub(super) fn open(path: &Path, table: Table, lossy: bool) -> Result<Self, ReadError> {
        let source = match table {
            Table::Json => return Self::of_json(path, open_text(path)?, lossy),
            Table::Folders => Source::Folders(Folders::open(path, lossy)?),
            Table::Tsv => Source::Tsv(Lines::new(path, open_text(path)?, lossy)),
            Table::Csv => {
                let used = Arc::new(AtomicU64::new(0));
                let reader = csv::ReaderBuilder::new()
                    .has_headers(false)
                    .flexible(true)
                    .from_reader(LineEnds::new(RecordLimit {
                        inner: open_text(path)?,
                        used: used.clone(),
                    }));
                Source::Csv {
                    reader: Box::new(reader),
                    record: csv::ByteRecord::new(),
                    used,
                }
            }
            Table::Parquet => {
                let wrong = |e: parquet::errors::ParquetError| ReadError::Record {
                    path: path.into(),
                    place: "footer".into(),
                    what: format!("not a Parquet file: {e}"),
                };
                let bytes::Bytes::File(file) = open(path, Format::Parquet)?.bytes else {
                    return Err(ReadError::UnknownFormat { path: path.into() });
                };
                let file: SerializedFileReader<File> =
                    SerializedFileReader::new(file).map_err(wrong)?;
                Source::Parquet(Box::new(RowIter::from_file_into(Box::new(file))), 0)
            }
        };
        Ok(Self::of(path, source, lossy))
    }

    /// The rows of an opened file of JSON.
    pub(super) fn of_json(
        path: &Path,
        input: Box<dyn BufRead + Send>,
        lossy: bool,
    ) -> Result<Self, ReadError> {
        let input = lines_of_list(input).map_err(|source| ReadError::Io {
            path: path.into(),
            source,
        })?;
        let source = Source::Jsonl(Lines::new(path, input, lossy));
        Ok(Self::of(path, source, lossy))
    }

    fn of(path: &Path, source: Source, lossy: bool) -> Self {
        Rows {
            path: path.into(),
            source,
            lossy,
            invalid: 0,
            ahead: None,
        }
    }

    /// Other rows of the same text, from its beginning; `None` if it is no text of cells.
    pub(super) fn again(&self) -> Option<Self> {
        let table = match self.source {
            Source::Tsv(_) => Table::Tsv,
            Source::Csv { .. } => Table::Csv,
            _ => return None,
        };
        Self::open(&self.path, table, true).ok()
    }

    /// Makes a row that was just taken the next one again.
    pub(super) fn put_back(&mut self, row: Row) {
        self.ahead = Some(row);
    }

    /// Rows with invalid UTF-8 that were read nevertheless.
    pub(super) fn invalid(&self) -> u64 {
        match &self.source {
            Source::Tsv(lines) | Source::Jsonl(lines) => lines.invalid,
            Source::Folders(folders) => folders.invalid,
            Source::Csv { .. } | Source::Parquet(..) => self.invalid,
        }
    }

    /// The next row, empty lines left out; `None` at the end.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, ReadError> {
        if let Some(row) = self.ahead.take() {
            return Ok(Some(row));
        }
        let wrong = |place: String, what: String| ReadError::Record {
            path: self.path.clone(),
            place,
            what,
        };
        match &mut self.source {
            Source::Folders(folders) => folders.next_row(),
            Source::Tsv(lines) => {
                while let Some((line, text)) = lines.next_line()? {
                    if !text.is_empty() {
                        let cells = Cells::Places(text.split('\t').map(String::from).collect());
                        return Ok(Some(Row::of_file(line, cells)));
                    }
                }
                Ok(None)
            }
            Source::Csv {
                reader,
                record,
                used,
            } => {
                used.store(0, Relaxed);
                let more = reader.read_byte_record(record).map_err(|e| {
                    let line = e.position().map_or(0, |p| p.line());
                    wrong(format!("line {line}"), e.to_string())
                })?;
                if !more {
                    return Ok(None);
                }
                let begins = record.position().map_or(0, |p| p.byte());
                let line = reader.get_mut().line_from(begins);
                let mut cells = Vec::with_capacity(record.len());
                for cell in record.iter() {
                    let (cell, invalid) =
                        text(&self.path, "line", line, cell.to_vec(), self.lossy)?;
                    self.invalid += u64::from(invalid);
                    cells.push(cell);
                }
                Ok(Some(Row::of_file(line, Cells::Places(cells))))
            }
            Source::Jsonl(lines) => {
                while let Some((line, text)) = lines.next_line()? {
                    if text.trim().is_empty() {
                        continue;
                    }
                    let object = serde_json::from_str(&text).map_err(|e| {
                        wrong(format!("line {line}"), format!("not a JSON object: {e}"))
                    })?;
                    return Ok(Some(Row::of_file(line, Cells::Names(object))));
                }
                Ok(None)
            }
            Source::Parquet(rows, number) => {
                let Some(row) = rows.next() else {
                    return Ok(None);
                };
                *number += 1;
                let row = row.map_err(|e| wrong(format!("row {number}"), e.to_string()))?;
                let mut object = Map::new();
                for (name, field) in row.into_columns() {
                    object.insert(name, value(field));
                }
                Ok(Some(Row::of_file(*number, Cells::Names(object))))
            }
        }
    }
}

/// A field of Parquet as the JSON that would hold it. Bytes are taken for text.
fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(b),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float16(x) => Number::from_f64(x.to_f64()).map_or(Value::Null, Value::Number),
        Field::Float(x) => Number::from_f64(f64::from(x)).map_or(Value::Null, Value::Number),
        Field::Double(x) => Number::from_f64(x).map_or(Value::Null, Value::Number),
        Field::Str(text) => Value::String(text),
        Field::Bytes(bytes) => Value::String(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect())
        }
        Field::Group(row) => Value::Object(
            row.into_columns()
                .into_iter()
                .map(|(name, field)| (name, value(field)))
                .collect(),
        ),
        other => Value::String(other.to_string()),
    }
}
