//! A whole file as memory, without reading it.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::error::FileError;

/// A read-only memory-mapped file that is not empty.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Map `path`. Empty files, folders and Git LFS pointers are refused by name.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(FileError::read(path))?;
        let about = file.metadata().map_err(FileError::read(path))?;
        if about.is_dir() {
            return Err(FileError::unsupported(path, "it is a folder, not a file"));
        }
        if about.len() == 0 {
            return Err(FileError::damaged(path, "it is empty"));
        }
        // SAFETY: the map is read-only and private to this process; the bytes are only ever read
        // as bytes, never as references to types with invalid values. Another process that
        // shortens the file while it is mapped can end this one by a signal; weights are replaced
        // by renaming, never rewritten in place.
        let map = unsafe { Mmap::map(&file) }.map_err(FileError::read(path))?;
        if map.starts_with(b"version https://git-lfs") {
            let problem = "it is a Git LFS pointer, not the file itself; run `git lfs pull`";
            return Err(FileError::unsupported(path, problem));
        }
        Ok(Self {
            path: path.into(),
            map,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
