//! On which line a row of CSV begins: the parser counts `\n` alone, and from before the line end that it
//! has yet to pass.

use std::collections::VecDeque;
use std::io::{Read, Result};

/// Passes bytes on and keeps where lines end, until rows behind them are asked about.
pub(super) struct LineEnds<R> {
    pub(super) inner: R,
    /// Offset of the next byte.
    offset: u64,
    /// Offset of each `\n` and `\r`, and which of them it is.
    ends: VecDeque<(u64, u8)>,
    /// Lines that have ended before those.
    line: u64,
}

impl<R> LineEnds<R> {
    pub(super) fn new(inner: R) -> Self {
        LineEnds {
            inner,
            offset: 0,
            ends: VecDeque::new(),
            line: 0,
        }
    }

    /// The line, from 1, of the first byte from `offset` on that ends none. Rows are asked about in order.
    pub(super) fn line_from(&mut self, mut offset: u64) -> u64 {
        while let Some(&(at, byte)) = self.ends.front()
            && at <= offset
        {
            self.ends.pop_front();
            // Both together end one line.
            let goes_on = byte == b'\r' && self.ends.front() == Some(&(at + 1, b'\n'));
            self.line += u64::from(!goes_on);
            offset += u64::from(at == offset);
        }
        self.line + 1
    }
}

impl<R: Read> Read for LineEnds<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = self.inner.read(buffer)?;
        let ends = memchr::memchr2_iter(b'\n', b'\r', &buffer[..n]);
        self.ends
            .extend(ends.map(|at| (self.offset + at as u64, buffer[at])));
        self.offset += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_begin_on_their_lines_however_these_end() {
        for (text, lines) in [
            ("a\nb\nc\n", [1, 2, 3]),
            ("a\r\nb\r\nc\r\n", [1, 2, 3]),
            ("a\rb\rc", [1, 2, 3]),
            ("\n\na\n\n\r\n\"b\n\r\n\"\r\nc", [3, 6, 9]),
        ] {
            // A reader of one byte at a time meets line ends at every place.
            for size in [1, 2, 3, 100] {
                let mut reader = csv::ReaderBuilder::new()
                    .has_headers(false)
                    .flexible(true)
                    .buffer_capacity(size)
                    .from_reader(LineEnds::new(text.as_bytes()));
                let mut record = csv::ByteRecord::new();
                let mut found = Vec::new();
                while reader.read_byte_record(&mut record).unwrap() {
                    let begins = record.position().unwrap().byte();
                    found.push(reader.get_mut().line_from(begins));
                }
                assert_eq!(found, lines, "{text:?} by {size}");
            }
        }
    }
}
