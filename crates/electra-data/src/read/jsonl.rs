//! JSON lines: one object a line, the text in one of its fields.
//!
//! An escape that is half of a surrogate pair, as programs write that cut a string inside a
//! character, is no character: it counts as invalid UTF-8 does.

use std::fmt;
use std::io::{BufRead, Read};
use std::path::PathBuf;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::bytes::{Bytes, Utf8Count};
use super::pieces::Record;
use super::{PieceEnd, ReadError, Source};

/// Bytes of the longest record.
pub(crate) const RECORD_LIMIT: u64 = 256 << 20;

pub(super) struct JsonlSource {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    field: String,
    utf8: Utf8Count,
    line: u64,
    /// Bytes before the line.
    offset: u64,
    bytes: Vec<u8>,
    record: Record,
}

impl JsonlSource {
    pub(super) fn new(path: PathBuf, bytes: Bytes, field: String, utf8: Utf8Count) -> Self {
        JsonlSource {
            path,
            input: bytes.into_stream(),
            field,
            utf8,
            line: 0,
            offset: 0,
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
            for at in replace_half_pairs(&mut self.bytes) {
                self.utf8.add(self.offset + at as u64);
            }
            self.offset += read as u64;
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

/// Makes `\ufffd` of each escape that is half of a surrogate pair; says where they are.
fn replace_half_pairs(line: &mut [u8]) -> Vec<usize> {
    let code = |line: &[u8], at: usize| -> Option<u16> {
        let digits = line.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (mut halves, mut at) = (Vec::new(), 0);
    while let Some(next) = line[at..].iter().position(|&byte| byte == b'\\') {
        at += next;
        at += match code(line, at) {
            // The next byte is escaped.
            None => 2,
            Some(0xd800..=0xdbff) if matches!(code(line, at + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => {
                line[at + 2..at + 6].copy_from_slice(b"fffd");
                halves.push(at);
                6
            }
            Some(_) => 6,
        };
        at = at.min(line.len());
    }
    halves
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
