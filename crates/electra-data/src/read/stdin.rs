//! Standard input, read so that waiting for it can be given up.

use std::io::{self, Read};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::identity::Halt;

/// Between two looks at whether anybody still waits.
const PATIENCE: Duration = Duration::from_millis(50);
/// Bytes read at a time, and how many such chunks may lie ready.
const CHUNK: usize = 128 << 10;
const READY: usize = 4;

/// What a thread of its own reads from a source that may never say anything again. The thread ends
/// with the source, with the process, or at the first chunk that nobody takes.
pub(super) struct Waiting {
    chunks: Receiver<io::Result<Vec<u8>>>,
    halt: Halt,
    chunk: Vec<u8>,
    at: usize,
}

impl Waiting {
    /// Begins to read `source`.
    pub(super) fn on(mut source: impl Read + Send + 'static, halt: Halt) -> Self {
        let (send, chunks) = sync_channel(READY);
        std::thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK];
                let read = match source.read(&mut chunk) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(n) => {
                        chunk.truncate(n);
                        Ok(chunk)
                    }
                    Err(e) => Err(e),
                };
                let last = !matches!(&read, Ok(chunk) if !chunk.is_empty());
                if send.send(read).is_err() || last {
                    return;
                }
            }
        });
        Waiting {
            chunks,
            halt,
            chunk: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.recv_timeout(PATIENCE) {
                Ok(chunk) => {
                    self.chunk = chunk?;
                    self.at = 0;
                    if self.chunk.is_empty() {
                        return Ok(0);
                    }
                }
                Err(RecvTimeoutError::Timeout) if self.halt.load(Relaxed) => {
                    return Err(io::Error::other("given up waiting"));
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The end was told before.
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..][..n]);
        self.at += n;
        Ok(n)
    }
}
