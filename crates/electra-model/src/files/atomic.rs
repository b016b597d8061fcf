//! Writing a file so that after a crash at any instant either the old or the new one is there,
//! whole.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

/// A write that failed. The message says which path, why, and what to do.
#[derive(Debug)]
pub struct WriteError {
    /// The file or directory that could not be written.
    pub path: PathBuf,
    /// Bytes that the whole write takes, where known.
    pub needed: Option<u64>,
    /// What the system said.
    pub source: io::Error,
}

impl WriteError {
    /// A failure to write `path`, of unknown size.
    pub fn new(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self {
            path: path.into(),
            needed: None,
            source,
        }
    }

    /// The same failure, with the size in bytes that the whole write takes.
    pub fn with_needed(mut self, bytes: u64) -> Self {
        self.needed = Some(bytes);
        self
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write {}: {}", self.path.display(), self.source)?;
        if let Some(bytes) = self.needed {
            write!(f, "; {bytes} bytes are needed ({})", readable_bytes(bytes))?;
        }
        f.write_str(match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; free some space, then run the same command again"
            }
            io::ErrorKind::FileTooLarge => {
                "; raise the limit on file sizes (`ulimit -f`) or write to another file system, \
                 then run the same command again"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; make it writable or choose another output directory"
            }
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                "; a file is in the way: remove it or choose another output directory"
            }
            _ => "",
        })
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Replaces the file at `path` by what `fill` writes: aside, synced, renamed, the directory synced.
///
/// # Errors
/// [`WriteError`] if anything could not be written; the file then is as it was and nothing is left
/// beside it.
pub fn replace_file(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), WriteError> {
    let aside = path_aside(path);
    let written = (|| {
        let mut writer = BufWriter::new(File::create(&aside)?);
        fill(&mut writer)?;
        writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        put_in_place(&aside, path)
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&aside);
        WriteError::new(path, source)
    })
}

/// Makes the directory at `path` with what `fill` writes into the path it is given: aside, renamed
/// when whole, the directory above synced. `fill` syncs its files itself.
///
/// # Errors
/// `fill`'s, or what `failed` makes of the system's; then nothing is left of it. A `path` that is
/// there already and is no empty directory is the system's error.
pub fn make_directory<E>(
    path: &Path,
    failed: impl Fn(io::Error) -> E,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let aside = path_aside(path);
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(&failed)?;
    }
    fs::create_dir_all(&aside).map_err(&failed)?;
    let made = fill(&aside).and_then(|()| {
        let in_place = sync_directory(&aside).and_then(|()| put_in_place(&aside, path));
        in_place.map_err(failed)
    });
    if made.is_err() {
        let _ = fs::remove_dir_all(&aside);
    }
    made
}

/// Renames a synced file to `path`, in the same directory, and syncs the directory.
///
/// # Errors
/// What the system says.
pub fn put_in_place(aside: &Path, path: &Path) -> io::Result<()> {
    fs::rename(aside, path)?;
    sync_directory(path.parent().unwrap_or(Path::new("")))
}

/// Where [`replace_file`] writes before it renames: `dir/name` is written as `dir/.name.tmp`.
pub fn path_aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Makes the entries of a directory durable: names created, renamed and removed in it.
///
/// # Errors
/// What the system says. Elsewhere than on Unix directories cannot be synced and nothing is done.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// A number of bytes for people: `1.3 GB`, in powers of 1000.
pub fn readable_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value < 9.95);
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        replace_file(&path, |w| w.write_all(b"old")).unwrap();
        let error = replace_file(&path, |w| {
            w.write_all(b"new, but only half of")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let message = error.to_string();
        assert!(
            message.contains("report.html") && message.contains("free some space"),
            "{message}"
        );
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(readable_bytes(0), "0 bytes");
        assert_eq!(readable_bytes(999), "999 bytes");
        assert_eq!(readable_bytes(1_320_000_000), "1.3 GB");
        assert_eq!(readable_bytes(999_700), "1.0 MB");
        assert_eq!(readable_bytes(123_456_789), "123 MB");
    }
}
