//! Plain text.

use std::io::BufRead;
use std::path::PathBuf;

use super::bytes::Bytes;
use super::pieces::{PIECE, cut};
use super::{PieceEnd, ReadError, Source, TextLayout};

/// What stopped the reading of a line.
enum Stop {
    Newline,
    Limit,
    EndOfFile,
}

pub(super) struct TextSource {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    layout: TextLayout,
    /// What has been read of the line and not been handed out.
    line: Vec<u8>,
    in_line: bool,
    in_document: bool,
}

impl TextSource {
    pub(super) fn new(path: PathBuf, bytes: Bytes, layout: TextLayout) -> Self {
        TextSource {
            path,
            input: bytes.into_stream(),
            layout,
            line: Vec::new(),
            in_line: false,
            in_document: false,
        }
    }

    /// Reads on until the line has ended or holds `limit` bytes.
    fn fill(&mut self, limit: usize) -> Result<Stop, ReadError> {
        while self.line.len() < limit {
            let buffer = self.input.fill_buf().map_err(|source| ReadError::Io {
                path: self.path.clone(),
                source,
            })?;
            if buffer.is_empty() {
                return Ok(Stop::EndOfFile);
            }
            let room = (limit - self.line.len()).min(buffer.len());
            if let Some(at) = memchr::memchr(b'\n', &buffer[..room]) {
                self.line.extend_from_slice(&buffer[..at]);
                self.input.consume(at + 1);
                return Ok(Stop::Newline);
            }
            self.line.extend_from_slice(&buffer[..room]);
            self.input.consume(room);
        }
        Ok(Stop::Limit)
    }
}

impl Source for TextSource {
    fn piece(&mut self, text: &mut String) -> Result<Option<PieceEnd>, ReadError> {
        let mut limit = PIECE;
        loop {
            let stop = self.fill(limit)?;
            if let Stop::Limit = stop {
                let Some(end) = cut(&self.line) else {
                    limit *= 2;
                    continue;
                };
                text.push_str(&String::from_utf8_lossy(&self.line[..end]));
                self.line.drain(..end);
                self.in_line = true;
                self.in_document = true;
                return Ok(Some(PieceEnd::Part));
            }
            let ended = matches!(stop, Stop::EndOfFile);
            let line = String::from_utf8_lossy(&self.line);
            let blank = !self.in_line && line.trim().is_empty();
            if !blank {
                text.push_str(line.strip_suffix('\r').unwrap_or(&line));
            }
            self.line.clear();
            self.in_line = false;
            limit = PIECE;
            if !blank {
                self.in_document = self.layout == TextLayout::BlankLine;
                return Ok(Some(if self.in_document {
                    PieceEnd::Line
                } else {
                    PieceEnd::Document
                }));
            }
            if std::mem::take(&mut self.in_document) {
                return Ok(Some(PieceEnd::Document));
            }
            if ended {
                return Ok(None);
            }
        }
    }
}
