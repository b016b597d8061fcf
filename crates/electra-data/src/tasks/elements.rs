//! A file that is one JSON list, as JSON lines.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result};

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
    /// Brackets that are open.
    depth: usize,
    /// Whether within a string, and behind its backslash.
    quoted: bool,
    escaped: bool,
}

impl Elements {
    fn new(inner: Box<dyn BufRead + Send>) -> Self {
        Elements {
            inner,
            depth: 0,
            quoted: false,
            escaped: false,
        }
    }

    /// What stands in the lines for the next byte of the list.
    fn next(&mut self, byte: u8) -> u8 {
        if self.quoted {
            self.quoted = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return byte;
        }
        let outer = self.depth == 1;
        match byte {
            b'"' => self.quoted = true,
            b'[' | b'{' => {
                self.depth += 1;
                if self.depth == 1 {
                    return b' ';
                }
            }
            b']' | b'}' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    return b' ';
                }
            }
            b',' if outer => return b'\n',
            b'\n' | b'\r' => return b' ',
            _ => {}
        }
        byte
    }
}

impl Read for Elements {
    fn read(&mut self, to: &mut [u8]) -> Result<usize> {
        let buffer = self.inner.fill_buf()?;
        if buffer.is_empty() && self.depth > 0 {
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
