//! Texts from a stream, one a line, a chunk at a time. Lines end as in a task's file: with `\n` or
//! `\r\n`, and with `\r` in a stream without any `\n`, as old Macs wrote them.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read};

/// Bytes of lines that are taken at once: enough to sort by length, few enough to answer soon.
const CHUNK: usize = 64 << 10;
/// A longer line is taken for a file that has no lines.
const LONGEST_LINE: usize = 16 << 20;

/// Lines of a stream.
pub struct Lines<R> {
    reader: BufReader<R>,
    name: String,
    lossy: bool,
    number: u64,
    invalid: u64,
    /// Of a stream whose lines `\r` ends: those not yet handed out, the last one first.
    by_return: Vec<Vec<u8>>,
}

impl<R: Read> Lines<R> {
    /// Lines of `input`, which errors call `name`; `lossy` replaces invalid UTF-8.
    pub fn new(input: R, name: String, lossy: bool) -> Self {
        Lines {
            reader: BufReader::with_capacity(CHUNK, input),
            name,
            lossy,
            number: 0,
            invalid: 0,
            by_return: Vec::new(),
        }
    }

    /// What the stream is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Invalid UTF-8 sequences replaced so far.
    pub fn invalid_utf8(&self) -> u64 {
        self.invalid
    }

    /// Appends the lines that are there, at least one; waits for no more. False at the end. The
    /// lines before an error are in `lines`.
    ///
    /// # Errors
    /// What the system says; a line that is invalid UTF-8 or endless.
    pub fn chunk(&mut self, lines: &mut Vec<String>) -> Result<bool> {
        loop {
            match self.line()? {
                Some(line) => lines.push(line),
                None => return Ok(false),
            }
            if self.by_return.is_empty() && !self.reader.buffer().contains(&b'\n') {
                return Ok(true);
            }
        }
    }

    fn line(&mut self) -> Result<Option<String>> {
        self.number += 1;
        let Some(mut bytes) = self.bytes()? else {
            return Ok(None);
        };
        let place = || format!("{}, line {}", self.name, self.number);
        if self.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        if let Some(at) = bytes.iter().position(|&b| b == 0) {
            bail!(
                "{}: a NUL byte at byte {at} of the line: binary, not text",
                place()
            );
        }
        match String::from_utf8(bytes) {
            Ok(line) => Ok(Some(line)),
            Err(error) => {
                let bytes = error.as_bytes();
                let chunks = bytes.utf8_chunks();
                let count = chunks.filter(|c| !c.invalid().is_empty()).count() as u64;
                if !self.lossy {
                    bail!(
                        "{}: {count} invalid UTF-8 sequences, the first at byte {} of the line; \
                         convert the file, or give --lossy, which puts U+FFFD in their place",
                        place(),
                        error.utf8_error().valid_up_to()
                    );
                }
                self.invalid += count;
                Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
            }
        }
    }
}

impl<R: Read> Lines<R> {
    /// The bytes of the next line without its end.
    fn bytes(&mut self) -> Result<Option<Vec<u8>>> {
        if let Some(line) = self.by_return.pop() {
            return Ok(Some(line));
        }
        let mut bytes = Vec::new();
        (&mut self.reader)
            .take(LONGEST_LINE as u64 + 1)
            .read_until(b'\n', &mut bytes)
            .with_context(|| format!("cannot read {}", self.name))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > LONGEST_LINE {
            bail!(
                "{}, line {}: longer than {} MiB; give one text a line",
                self.name,
                self.number,
                LONGEST_LINE >> 20
            );
        }
        let ended = bytes.pop_if(|byte| *byte == b'\n').is_some();
        bytes.pop_if(|byte| *byte == b'\r');
        if !ended && self.number == 1 && bytes.contains(&b'\r') {
            let lines = bytes.split(|&byte| byte == b'\r').rev();
            self.by_return = lines.map(<[u8]>::to_vec).collect();
            return Ok(self.by_return.pop());
        }
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], lossy: bool) -> (Vec<String>, Result<bool>) {
        let mut lines = Lines::new(bytes, "input".into(), lossy);
        let mut found = Vec::new();
        let end = loop {
            match lines.chunk(&mut found) {
                Ok(true) => {}
                end => break end,
            }
        };
        (found, end)
    }

    #[test]
    fn line_ends_of_any_system_and_a_byte_order_mark_are_taken_off() {
        let (lines, end) = read("\u{feff}a\r\n\n b\nc".as_bytes(), false);
        assert_eq!(lines, ["a", "", " b", "c"]);
        assert!(!end.unwrap());
        assert!(read(b"", false).0.is_empty());
    }

    #[test]
    fn a_lone_return_ends_lines_only_where_nothing_else_does() {
        assert_eq!(read(b"a\nb\rc\n", false).0, ["a", "b\rc"]);
        assert_eq!(read(b"a\nb\rc", false).0, ["a", "b\rc"]);
        assert_eq!(read(b"a\r\rb\r", false).0, ["a", "", "b"]);
        assert_eq!(read("\u{feff}a\rb".as_bytes(), false).0, ["a", "b"]);
        assert_eq!(read(b"a\r\nb\r", false).0, ["a", "b"]);
    }

    #[test]
    fn what_stands_before_invalid_utf8_is_kept_and_the_place_is_named() {
        let (lines, end) = read(b"a\nb\xff\xff\nc\n", false);
        assert_eq!(lines, ["a"]);
        let message = end.unwrap_err().to_string();
        assert!(
            message.starts_with("input, line 2: 2 invalid UTF-8 sequences, the first at byte 1"),
            "{message}"
        );
        assert_eq!(read(b"a\nb\xff\n", true).0, ["a", "b\u{fffd}"]);
    }
}
