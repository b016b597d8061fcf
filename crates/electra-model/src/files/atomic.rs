//! Writing a file aside, so that the old one stays whole until the new one is.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Write `path` through `write`, which gets a file beside it: synced and then renamed over
/// `path`, whose folder is synced too. A failure (disk full, say) leaves `path` as it was.
pub fn write_aside(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?;
    let mut aside_name = std::ffi::OsString::from(".");
    aside_name.push(name);
    aside_name.push(format!(".{}.tmp", std::process::id()));
    let aside = path.with_file_name(aside_name);
    let written = (|| {
        let mut file = File::create(&aside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    })();
    if written.is_err() {
        // The first error says more than one of the cleaning up.
        let _ = fs::remove_file(&aside);
        return written;
    }
    match path.parent() {
        // A rename survives a power cut only once its folder is on disk. Folders cannot be
        // opened everywhere; where they cannot, there is nothing to sync.
        Some(folder) if !folder.as_os_str().is_empty() => {
            File::open(folder).map_or(Ok(()), |f| f.sync_all())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_aside(&path, |f| f.write_all(b"old")).unwrap();
        let result = write_aside(&path, |f| {
            f.write_all(b"half of the n")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(result.unwrap_err().to_string(), "disk full");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
