//! What the user names: files, folders, globs and `-`, to a list of inputs in a fixed order.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Format, ReadError};

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl Input {
    /// The name that messages use.
    pub fn path(&self) -> PathBuf {
        match self {
            Input::File(path) => path.clone(),
            Input::Stdin => "standard input".into(),
        }
    }
}

/// Resolves names to inputs: `-` is standard input; a folder is all its files of known kinds,
/// recursively, in the order of their paths, hidden ones left out; a name that does not exist and
/// holds `*`, `?` or `[` is a glob. The order of the names is kept.
///
/// # Errors
/// A name that does not exist, a pattern or folder without a file.
pub fn expand(names: &[String]) -> Result<Vec<Input>, ReadError> {
    let mut inputs = Vec::new();
    for name in names {
        if name == "-" {
            inputs.push(Input::Stdin);
            continue;
        }
        let path = Path::new(name);
        let before = inputs.len();
        if path.is_dir() {
            folder(path, &mut inputs)?;
        } else if path.exists() {
            inputs.push(Input::File(path.to_owned()));
        } else if name.contains(['*', '?', '[']) {
            let options = glob::MatchOptions {
                require_literal_leading_dot: true,
                ..Default::default()
            };
            let matches = glob::glob_with(name, options).map_err(|e| ReadError::Pattern {
                pattern: name.clone(),
                why: e.to_string(),
            })?;
            let mut paths = Vec::new();
            for found in matches {
                paths.push(found.map_err(|e| ReadError::Io {
                    path: e.path().to_owned(),
                    source: e.into(),
                })?);
            }
            paths.sort();
            for path in paths {
                if path.is_dir() {
                    folder(&path, &mut inputs)?;
                } else {
                    inputs.push(Input::File(path));
                }
            }
        } else {
            return Err(ReadError::Missing { path: path.into() });
        }
        if inputs.len() == before {
            return Err(ReadError::NoMatch {
                pattern: name.clone(),
            });
        }
    }
    Ok(inputs)
}

fn folder(path: &Path, inputs: &mut Vec<Input>) -> Result<(), ReadError> {
    let io = |source| ReadError::Io {
        path: path.into(),
        source,
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        entries.push((entry.path(), entry.file_type().map_err(io)?.is_dir()));
    }
    entries.sort();
    for (path, is_dir) in entries {
        if is_dir {
            folder(&path, inputs)?;
        } else if path.is_file() && format_of(&path).is_some() {
            inputs.push(Input::File(path));
        }
    }
    Ok(())
}

/// The compression of a file, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// Compression, and the name without its extension.
pub(crate) fn compression_of(path: &Path) -> (Compression, PathBuf) {
    match extension(path).as_deref() {
        Some("gz") => (Compression::Gzip, path.with_extension("")),
        Some("zst") => (Compression::Zstd, path.with_extension("")),
        _ => (Compression::None, path.to_owned()),
    }
}

/// The format of a file, by its name.
pub(super) fn format_of(path: &Path) -> Option<Format> {
    Format::of_extension(&extension(&compression_of(path).1)?)
}
