//! Cuts lines into pieces where a word ends.

use crate::words::ends_word;

/// Bytes of a piece, as far as words allow.
pub const PIECE: usize = 64 << 10;
/// Bytes of a word that is cut for its length.
pub const WORD_LIMIT: usize = 1 << 20;

/// What a piece of text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceEnd {
    /// A part of a line; the line goes on.
    Part,
    /// A line; the document goes on.
    Line,
    /// A document.
    Document,
}

/// Where to cut `bytes`, of which more follows: after the last character that ends a word in the
/// first [`PIECE`] bytes, or in twice as many and so on, or at [`WORD_LIMIT`]. `None` if `bytes`
/// holds too little to tell.
pub(super) fn cut(bytes: &[u8]) -> Option<usize> {
    let mut limit = PIECE;
    while limit <= bytes.len() {
        // The last character may be cut off; white space or punctuation before it will do.
        let mut end = limit;
        let floor = limit / 2;
        while end > floor {
            let mut start = end - 1;
            while start > 0 && bytes[start] & 0xC0 == 0x80 {
                start -= 1;
            }
            if let Ok(character) = std::str::from_utf8(&bytes[start..end])
                && let Some(c) = character.chars().next()
                // Chinese text is cut after punctuation only, which ends a word in any setting.
                && ends_word(c, false)
            {
                return Some(end);
            }
            end = start;
        }
        if limit >= WORD_LIMIT {
            let mut end = limit;
            while end > limit - 4 && bytes.get(end).is_some_and(|b| b & 0xC0 == 0x80) {
                end -= 1;
            }
            return Some(end);
        }
        limit *= 2;
    }
    None
}

/// Hands out a record that is in memory, line by line and piece by piece.
#[derive(Default)]
pub(super) struct Record {
    text: String,
    at: usize,
    open: bool,
}

impl Record {
    /// Starts on a new record.
    pub(super) fn set(&mut self, text: String) {
        self.text = text;
        self.at = 0;
        self.open = true;
    }

    /// The next piece; `None` when the record is used up.
    pub(super) fn piece(&mut self, out: &mut String) -> Option<PieceEnd> {
        if !self.open {
            return None;
        }
        let rest = &self.text[self.at..];
        let line = memchr::memchr(b'\n', rest.as_bytes());
        let line_end = line.unwrap_or(rest.len());
        if let Some(end) = cut(&rest.as_bytes()[..line_end])
            && let Some(part) = rest.get(..end)
        {
            out.push_str(part);
            self.at += end;
            return Some(PieceEnd::Part);
        }
        out.push_str(&rest[..line_end]);
        if line.is_some() {
            self.at += line_end + 1;
            return Some(PieceEnd::Line);
        }
        self.text = String::new();
        self.open = false;
        Some(PieceEnd::Document)
    }
}
