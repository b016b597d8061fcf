//! The byte layer: opens, decompresses, strips a byte order mark, refuses binary files, and counts
//! invalid UTF-8 as the bytes go by.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::identity::{Halt, Watch};
use super::inputs::{Compression, compression_of, format_of};
use super::stdin::Waiting;
use super::{Format, Input, ReadError, ReadOptions};

/// Bytes looked at for signs of a binary file.
pub(crate) const PROBE: usize = 8 << 10;
/// Bytes by which a binary file's kind is told. Who looks at no more of a pipe than these must find NUL
/// bytes himself; what writes to it may wait for an answer to a first line.
pub(crate) const MAGIC: usize = 4;
/// Bytes read at a time.
const BUFFER: usize = 128 << 10;

/// An input after decompression.
pub(crate) enum Bytes {
    /// Text, to be read in order.
    Stream(Box<dyn BufRead + Send>),
    /// A format that is read from its end.
    File(File),
}

impl Bytes {
    /// The stream of a format that is text.
    pub(crate) fn into_stream(self) -> Box<dyn BufRead + Send> {
        match self {
            Bytes::Stream(stream) => stream,
            Bytes::File(file) => Box::new(BufReader::with_capacity(BUFFER, file)),
        }
    }
}

pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) bytes: Bytes,
    pub(crate) utf8: Utf8Count,
    /// What is read of a file; none of standard input.
    pub(crate) watch: Option<Watch>,
}

/// Count and first offset of invalid UTF-8, shared by the byte layer and the reader.
#[derive(Clone, Default)]
pub(crate) struct Utf8Count(Arc<(AtomicU64, AtomicU64)>);

impl Utf8Count {
    pub(super) fn count(&self) -> u64 {
        self.0.0.load(Relaxed)
    }

    pub(super) fn first(&self) -> u64 {
        self.0.1.load(Relaxed)
    }

    /// Notes one invalid sequence at `offset`.
    pub(super) fn add(&self, offset: u64) {
        if self.0.0.fetch_add(1, Relaxed) == 0 {
            self.0.1.store(offset, Relaxed);
        }
    }
}

/// Opens an input, of which `probe` bytes, at most [`PROBE`], are waited for and looked at first.
pub(crate) fn open(
    input: &Input,
    options: &ReadOptions,
    probe: usize,
    halt: &Halt,
) -> Result<Opened, ReadError> {
    let path = input.path();
    let io = |source| ReadError::Io {
        path: path.clone(),
        source,
    };
    let mut watch = None;
    let (raw, compression, format): (Box<dyn Read + Send>, _, _) = match input {
        Input::Stdin => {
            let stdin = Waiting::on(io::stdin(), halt.clone());
            (Box::new(stdin), Compression::None, Some(Format::Text))
        }
        Input::File(path) => {
            let file = File::open(path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ReadError::Missing { path: path.clone() },
                _ => io(source),
            })?;
            let kind = file.metadata().map_err(io)?.file_type();
            if kind.is_dir() {
                return Err(io(io::Error::from(io::ErrorKind::IsADirectory)));
            }
            if !kind.is_file() {
                let what = "it is not a regular file; to read a pipe, connect it to standard input \
                            and give -";
                return Err(io(io::Error::other(what)));
            }
            let (watching, file) = Watch::new(path, file).map_err(io)?;
            watch = Some(watching);
            (Box::new(file), compression_of(path).0, format_of(path))
        }
    };
    let format = options
        .format
        .or(format)
        .ok_or_else(|| ReadError::UnknownFormat { path: path.clone() })?;
    let utf8 = Utf8Count::default();
    if format == Format::Parquet {
        let file = match (input, compression) {
            (Input::File(path), Compression::None) => File::open(path).map_err(io)?,
            // Parquet is read from its end, so a stream goes to a nameless file first.
            _ => {
                let mut file = tempfile::tempfile().map_err(io)?;
                io::copy(&mut decompress(raw, compression).map_err(io)?, &mut file).map_err(io)?;
                file
            }
        };
        let bytes = Bytes::File(file);
        return Ok(Opened {
            path,
            format,
            bytes,
            utf8,
            watch,
        });
    }
    let mut stream = decompress(raw, compression).map_err(io)?;
    let mut head = vec![0; PROBE];
    let mut read = 0;
    while read < probe {
        match stream.read(&mut head[read..]) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io(e)),
        }
    }
    head.truncate(read);
    refuse_binary(&path, &head)?;
    let bom = if head.starts_with(b"\xEF\xBB\xBF") {
        3
    } else {
        0
    };
    let mut head = Cursor::new(head);
    head.set_position(bom);
    let checked = Utf8Check {
        inner: head.chain(stream),
        count: utf8.clone(),
        offset: bom,
        carry: Vec::new(),
    };
    let bytes = Bytes::Stream(Box::new(BufReader::with_capacity(BUFFER, checked)));
    Ok(Opened {
        path,
        format,
        bytes,
        utf8,
        watch,
    })
}

fn decompress(
    raw: Box<dyn Read + Send>,
    compression: Compression,
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => raw,
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(
            BufReader::with_capacity(BUFFER, raw),
        )),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(raw)?),
    })
}

fn refuse_binary(path: &Path, head: &[u8]) -> Result<(), ReadError> {
    let why = if head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF") {
        "it starts with the byte order mark of UTF-16; convert it to UTF-8".to_owned()
    } else if head.starts_with(b"\x1F\x8B") {
        "it is gzip-compressed; name it .gz".to_owned()
    } else if head.starts_with(b"\x28\xB5\x2F\xFD") {
        "it is zstd-compressed; name it .zst".to_owned()
    } else if head.starts_with(b"PAR1") {
        "it is Parquet; name it .parquet".to_owned()
    } else if let Some(at) = memchr::memchr(0, head) {
        let line = memchr::memchr_iter(b'\n', &head[..at]).count() + 1;
        format!("NUL byte at offset {at}, line {line}; give text files")
    } else {
        return Ok(());
    };
    Err(ReadError::Binary {
        path: path.into(),
        why,
    })
}

/// Passes bytes on and counts what in them is not UTF-8.
struct Utf8Check<R> {
    inner: R,
    count: Utf8Count,
    /// Of the first byte of `carry`, or of the next byte.
    offset: u64,
    /// The start of a sequence that the last read cut off.
    carry: Vec<u8>,
}

impl<R> Utf8Check<R> {
    /// Checks `carry`; `last` says that nothing follows.
    fn check(&mut self, fresh: &[u8], last: bool) {
        if self.carry.is_empty() && !last && fresh.is_ascii() {
            self.offset += fresh.len() as u64;
            return;
        }
        self.carry.extend_from_slice(fresh);
        let mut rest = self.carry.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(_) => {
                    self.offset += rest.len() as u64;
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, bad) = match (e.valid_up_to(), e.error_len()) {
                        (valid, Some(bad)) => (valid, bad),
                        (valid, None) if last => (valid, rest.len() - valid),
                        (valid, None) => {
                            self.offset += valid as u64;
                            rest = &rest[valid..];
                            break;
                        }
                    };
                    self.count.add(self.offset + valid as u64);
                    self.offset += (valid + bad) as u64;
                    rest = &rest[valid + bad..];
                }
            }
        }
        let keep = rest.len();
        let from = self.carry.len() - keep;
        self.carry.drain(..from);
    }
}

impl<R: Read> Read for Utf8Check<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let last = n == 0 && !buffer.is_empty();
        self.check(&buffer[..n], last);
        Ok(n)
    }
}
