//! What tells one content of a file from another: the hash of all its bytes, taken as they are
//! read, and a stamp of the file system that says at once that nothing was written since.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ReadError;

/// Coarsest step of a file system's clock: two writes within it may leave one time.
const TICK: Duration = Duration::from_secs(2);
/// Bytes hashed at a time.
const BUFFER: usize = 1 << 20;

/// Set when nobody waits for what is being read any more.
pub(crate) type Halt = Arc<AtomicBool>;

/// What the file system says of a file. A write changes it, if no other write came just before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    /// The same of the last change of content or attributes, which no program can set back.
    changed: u64,
    inode: u64,
}

impl Stamp {
    /// Of an open file; none where the system does not tell times.
    pub(crate) fn of(metadata: &Metadata) -> Option<Self> {
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        #[cfg(unix)]
        let (changed, inode) = {
            use std::os::unix::fs::MetadataExt;
            let seconds = u64::try_from(metadata.ctime()).ok()?;
            let changed = Duration::new(seconds, metadata.ctime_nsec() as u32);
            (changed, metadata.ino())
        };
        #[cfg(not(unix))]
        let (changed, inode) = (modified, 0);
        Some(Stamp {
            bytes: metadata.len(),
            modified: u64::try_from(modified.as_nanos()).ok()?,
            changed: u64::try_from(changed.as_nanos()).ok()?,
            inode,
        })
    }

    /// Of the file at `path`.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        Stamp::of(&path.metadata().ok()?)
    }

    /// The stamp, if it is old enough that the next write will change it.
    fn settled(self) -> Option<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let last = Duration::from_nanos(self.modified.max(self.changed));
        (last + TICK <= now).then_some(self)
    }
}

/// What was read of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// BLAKE3 of all its bytes as they lie on disk, hexadecimal.
    pub(crate) blake3: String,
    /// Its stamp, where that is sure to tell another content.
    pub(crate) stamp: Option<Stamp>,
}

impl Content {
    /// Whether the file at `path` holds this: by its stamp, else by its bytes. None if halted.
    pub(crate) fn is_at(
        &self,
        path: &Path,
        halted: &dyn Fn() -> bool,
    ) -> Result<Option<bool>, ReadError> {
        if self.stamp.is_some() && self.stamp == Stamp::at(path) {
            return Ok(Some(true));
        }
        Ok(Content::read(path, halted)?.map(|now| now.blake3 == self.blake3))
    }

    /// Reads the file at `path`. None if halted.
    pub(crate) fn read(path: &Path, halted: &dyn Fn() -> bool) -> Result<Option<Self>, ReadError> {
        let failed = |source| ReadError::Io {
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let before = Stamp::of(&file.metadata().map_err(failed)?);
        let settled = before.clone().and_then(Stamp::settled);
        let mut hash = blake3::Hasher::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            if halted() {
                return Ok(None);
            }
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e)),
            };
        }
        if before != Stamp::at(path) {
            return Err(ReadError::Changed { path: path.into() });
        }
        Ok(Some(Content {
            blake3: hash.finalize().to_hex().to_string(),
            stamp: settled,
        }))
    }
}

/// Hash and number of the bytes that went by.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(blake3::Hasher, u64)>>);

/// Watches a file being read, to say in the end what was read.
pub(crate) struct Watch {
    path: PathBuf,
    opened: Option<Stamp>,
    settled: Option<Stamp>,
    seen: Seen,
}

impl Watch {
    /// Watches `file`, opened from `path`: what is read from the returned stream is seen.
    pub(super) fn new(path: &Path, file: File) -> io::Result<(Self, Hashing)> {
        let opened = Stamp::of(&file.metadata()?);
        let seen = Seen::default();
        let watch = Watch {
            path: path.into(),
            settled: opened.clone().and_then(Stamp::settled),
            opened,
            seen: seen.clone(),
        };
        Ok((watch, Hashing { file, seen }))
    }

    /// The file's stamp when it was opened, where that is sure to tell another content.
    pub(super) fn stamp(&self) -> Option<&Stamp> {
        self.settled.as_ref()
    }

    /// What was read, once all of it was. None if halted.
    ///
    /// # Errors
    /// A file that was written to while it was read.
    pub(super) fn content(self, halted: &dyn Fn() -> bool) -> Result<Option<Content>, ReadError> {
        let now = Stamp::at(&self.path);
        let same = now.is_some() && now == self.opened;
        let (hash, bytes) = {
            let seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
            (seen.0.finalize(), seen.1)
        };
        if now.is_some_and(|now| now.bytes == bytes) {
            return Ok(Some(Content {
                blake3: hash.to_hex().to_string(),
                stamp: self.settled.filter(|_| same),
            }));
        }
        // Parquet is not read in order, and a compressed file may hold more than its text.
        match same {
            true => Content::read(&self.path, halted),
            false => Err(ReadError::Changed { path: self.path }),
        }
    }
}

/// A file whose bytes are hashed as they are read.
pub(super) struct Hashing {
    file: File,
    seen: Seen,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.update(&buffer[..n]);
        seen.1 += n as u64;
        Ok(n)
    }
}
