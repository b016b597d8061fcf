//! Parquet: one string column, page by page.

use std::fs::File;
use std::path::PathBuf;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::bytes::{Bytes, Utf8Count};
use super::pieces::Record;
use super::{PieceEnd, ReadError, Source};

/// Rows read at a time.
const ROWS: usize = 64;

pub(super) struct ParquetSource {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    group: usize,
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
    rows: std::vec::IntoIter<ByteArray>,
    definition: Vec<i16>,
    utf8: Utf8Count,
    row: u64,
    record: Record,
}

impl ParquetSource {
    pub(super) fn new(
        path: PathBuf,
        bytes: Bytes,
        field: &str,
        utf8: Utf8Count,
    ) -> Result<Self, ReadError> {
        let wrong = |place: &str, what: String| ReadError::Record {
            path: path.clone(),
            place: place.into(),
            what,
        };
        let Bytes::File(file) = bytes else {
            return Err(wrong("footer", "Parquet needs a file, not a stream".into()));
        };
        let file = SerializedFileReader::new(file)
            .map_err(|e| wrong("footer", format!("not a Parquet file: {e}")))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let Some(column) = names.iter().position(|name| name == field) else {
            return Err(wrong(
                "schema",
                format!(
                    "no column {field:?}; the file has: {}; name the column that holds the text",
                    names.join(", ")
                ),
            ));
        };
        let description = schema.column(column);
        if description.physical_type() != Type::BYTE_ARRAY || description.max_rep_level() > 0 {
            return Err(wrong(
                "schema",
                format!("column {field:?} does not hold one string a row"),
            ));
        }
        Ok(ParquetSource {
            path,
            file,
            column,
            group: 0,
            reader: None,
            rows: Vec::new().into_iter(),
            definition: Vec::new(),
            utf8,
            row: 0,
            record: Record::default(),
        })
    }

    /// Reads the next rows that are not null; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, ReadError> {
        let wrong = |e: ParquetError, group: usize| ReadError::Record {
            path: self.path.clone(),
            place: format!("row group {group}"),
            what: e.to_string(),
        };
        loop {
            if let Some(reader) = &mut self.reader {
                self.definition.clear();
                let mut values = Vec::new();
                let (rows, _, _) = reader
                    .read_records(ROWS, Some(&mut self.definition), None, &mut values)
                    .map_err(|e| wrong(e, self.group))?;
                if rows > 0 {
                    self.rows = values.into_iter();
                    return Ok(true);
                }
                self.reader = None;
            }
            if self.group >= self.file.num_row_groups() {
                return Ok(false);
            }
            let column = self
                .file
                .get_row_group(self.group)
                .and_then(|group| group.get_column_reader(self.column))
                .map_err(|e| wrong(e, self.group + 1))?;
            self.group += 1;
            if let ColumnReader::ByteArrayColumnReader(reader) = column {
                self.reader = Some(reader);
            }
        }
    }
}

impl Source for ParquetSource {
    fn piece(&mut self, text: &mut String) -> Result<Option<PieceEnd>, ReadError> {
        loop {
            if let Some(end) = self.record.piece(text) {
                return Ok(Some(end));
            }
            match self.rows.next() {
                Some(value) => {
                    self.row += 1;
                    let text = String::from_utf8_lossy(value.data());
                    if let std::borrow::Cow::Owned(_) = text {
                        self.utf8.add(self.row);
                    }
                    self.record.set(text.into_owned());
                }
                None => {
                    if !self.fill()? {
                        return Ok(None);
                    }
                }
            }
        }
    }
}
