//! JSON as files have it: SQuAD's object, or rows in lines or in one list.

use std::io::{BufRead, BufReader, Cursor, Error, ErrorKind, Read, Result};

use crate::read::jsonl::RECORD_LIMIT;

/// How deep in JSON one has come, byte by byte.
#[derive(Clone, Copy, Default)]
pub(super) struct Nesting {
    /// Brackets that are open.
    pub(super) depth: usize,
    /// Whether within a string, and behind its backslash.
    pub(super) quoted: bool,
    escaped: bool,
}

impl Nesting {
    /// Goes past a byte.
    pub(super) fn pass(&mut self, byte: u8) {
        if self.quoted {
            self.quoted = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return;
        }
        match byte {
            b'"' => self.quoted = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// How SQuAD's list of articles begins, be it the first of its object or not.
const DATA: [&[u8; 9]; 2] = [b"{\"data\":[", b",\"data\":["];

/// Whether this is SQuAD's JSON, and the same input. It is if the first object has a list called
/// `data`; and if that object goes on over a line's end, as none does that is a row, so that SQuAD's
/// reader says what is wrong.
pub(super) fn is_squad(
    mut input: Box<dyn BufRead + Send>,
) -> Result<(bool, Box<dyn BufRead + Send>)> {
    let (mut head, mut at, mut last) = (Vec::new(), Nesting::default(), [0; 9]);
    let squad = loop {
        let Some(&byte) = input.fill_buf()?.first() else {
            break false;
        };
        input.consume(1);
        head.push(byte);
        if !at.quoted && byte.is_ascii_whitespace() {
            if byte == b'\n' && at.depth > 0 {
                break true;
            }
            continue;
        }
        at.pass(byte);
        last.rotate_left(1);
        last[8] = byte;
        if at.depth == 2 && DATA.contains(&&last) {
            break true;
        }
        // What does not begin with a brace is no object.
        let object = at.depth > 1 || at.depth == 1 && byte != b'[';
        if !object || head.len() as u64 > RECORD_LIMIT {
            break false;
        }
    };
    Ok((squad, Box::new(Cursor::new(head).chain(input))))
}

/// The same input, or where it begins as a list, its elements a line each.
pub(super) fn lines_of_list(mut input: Box<dyn BufRead + Send>) -> Result<Box<dyn BufRead + Send>> {
    loop {
        let buffer = input.fill_buf()?;
        let blank = buffer.iter().take_while(|b| b.is_ascii_whitespace());
        let blank = blank.count();
        match buffer.get(blank) {
            Some(b'[') => return Ok(Box::new(BufReader::new(Elements::new(input)))),
            None if !buffer.is_empty() => input.consume(blank),
            _ => return Ok(input),
        }
    }
}

/// Puts every element of a list on a line of its own, in memory that does not grow with it.
struct Elements {
    inner: Box<dyn BufRead + Send>,
    at: Nesting,
}

impl Elements {
    fn new(inner: Box<dyn BufRead + Send>) -> Self {
        Elements {
            inner,
            at: Nesting::default(),
        }
    }

    /// What stands in the lines for the next byte of the list.
    fn next(&mut self, byte: u8) -> u8 {
        let before = self.at;
        self.at.pass(byte);
        match byte {
            _ if before.quoted => byte,
            b'[' | b'{' if before.depth == 0 => b' ',
            b']' | b'}' if self.at.depth == 0 => b' ',
            b',' if before.depth == 1 => b'\n',
            b'\n' | b'\r' => b' ',
            _ => byte,
        }
    }
}

impl Read for Elements {
    fn read(&mut self, to: &mut [u8]) -> Result<usize> {
        let buffer = self.inner.fill_buf()?;
        if buffer.is_empty() && self.at.depth > 0 {
            let problem = "the file ends within its list; it was cut off";
            return Err(Error::new(ErrorKind::UnexpectedEof, problem));
        }
        let count = to.len().min(buffer.len());
        to[..count].copy_from_slice(&buffer[..count]);
        self.inner.consume(count);
        for byte in &mut to[..count] {
            *byte = self.next(*byte);
        }
        Ok(count)
    }
}
