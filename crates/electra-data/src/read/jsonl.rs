//! JSON lines: one object a line, the text in one of its fields.

use std::fmt;
use std::io::{BufRead, Read};
use std::path::PathBuf;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::bytes::Bytes;
use super::pieces::Record;
use super::{PieceEnd, ReadError, Source};

/// Bytes of the longest record.
pub(crate) const RECORD_LIMIT: u64 = 256 << 20;

pub(super) struct JsonlSource {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    field: String,
    line: u64,
    bytes: Vec<u8>,
    record: Record,
}

impl JsonlSource {
    pub(super) fn new(path: PathBuf, bytes: Bytes, field: String) -> Self {
        JsonlSource {
            path,
            input: bytes.into_stream(),
            field,
            line: 0,
            bytes: Vec::new(),
            record: Record::default(),
        }
    }

    fn wrong(&self, what: String) -> ReadError {
        ReadError::Record {
            path: self.path.clone(),
            place: format!("line {}", self.line),
            what,
        }
    }

    /// The text of the next object; `None` at the end.
    fn next(&mut self) -> Result<Option<String>, ReadError> {
        loop {
            self.bytes.clear();
            let read = (&mut self.input)
                .take(RECORD_LIMIT)
                .read_until(b'\n', &mut self.bytes)
                .map_err(|source| ReadError::Io {
                    path: self.path.clone(),
                    source,
                })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read as u64 == RECORD_LIMIT && self.bytes.last() != Some(&b'\n') {
                return Err(self.wrong("longer than 256 MiB; split the document".into()));
            }
            let text = String::from_utf8_lossy(&self.bytes);
            if text.trim().is_empty() {
                continue;
            }
            let mut json = serde_json::Deserializer::from_str(&text);
            let found = Field(&self.field)
                .deserialize(&mut json)
                .and_then(|found| json.end().map(|()| found))
                .map_err(|e| self.wrong(format!("not a JSON object: {e}")))?;
            return match found {
                Found::Text(text) => Ok(Some(text)),
                Found::Null => continue,
                Found::Other => Err(self.wrong(format!("field {:?} holds no string", self.field))),
                Found::Absent(names) => Err(self.wrong(format!(
                    "no field {:?}; this object has: {}",
                    self.field,
                    names.join(", ")
                ))),
            };
        }
    }
}

impl Source for JsonlSource {
    fn piece(&mut self, text: &mut String) -> Result<Option<PieceEnd>, ReadError> {
        loop {
            if let Some(end) = self.record.piece(text) {
                return Ok(Some(end));
            }
            match self.next()? {
                Some(next) => self.record.set(next),
                None => return Ok(None),
            }
        }
    }
}

/// What an object has under the field's name.
enum Found {
    Text(String),
    Null,
    Other,
    Absent(Vec<String>),
}

/// Reads one field of an object and skips the others.
struct Field<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut names = Vec::new();
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == self.0 {
                found = Some(match map.next_value::<serde_json::Value>()? {
                    serde_json::Value::String(text) => Found::Text(text),
                    serde_json::Value::Null => Found::Null,
                    _ => Found::Other,
                });
            } else {
                map.next_value::<IgnoredAny>()?;
                names.push(name);
            }
        }
        Ok(found.unwrap_or(Found::Absent(names)))
    }
}
