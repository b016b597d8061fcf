//! Texts as files, one each, in folders that are called as their labels: how the reviews of IMDb are
//! handed out, and what many a collection is made into by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec::IntoIter;

use serde_json::{Map, Value};

use super::rows::{Cells, Row, file_text};
use crate::read::ReadError;

/// What IMDb calls the folder of reviews that have no label; it is no label anywhere.
const UNLABELLED: &str = "unsup";

/// The files of a directory's folders, folder by folder, each in order of its name.
pub(super) struct Folders {
    files: IntoIter<(String, PathBuf)>,
    lossy: bool,
    /// Files with invalid UTF-8 that were read nevertheless.
    pub(super) invalid: u64,
}

impl Folders {
    /// Looks at what there is. Hidden files and files beside the folders are left out.
    ///
    /// # Errors
    /// Folders without a file, or with folders in them: a directory that is one too high.
    pub(super) fn open(dir: &Path, lossy: bool) -> Result<Self, ReadError> {
        let wrong = |what: String| ReadError::Record {
            path: dir.into(),
            place: "folders".into(),
            what,
        };
        let mut files = Vec::new();
        for (label, folder) in entries(dir, true)? {
            if label == UNLABELLED {
                continue;
            }
            if let Some((inner, _)) = entries(&folder, true)?.first() {
                return Err(wrong(format!(
                    "{} holds another folder, {inner}; give the directory whose folders are called \
                     as the labels, which may be this one or one beside it",
                    folder.display()
                )));
            }
            let texts = entries(&folder, false)?;
            files.extend(texts.into_iter().map(|(_, path)| (label.clone(), path)));
        }
        if files.is_empty() {
            return Err(wrong(format!(
                "it is a directory, but none of its folders ({UNLABELLED} has no labels) holds a \
                 file; give a file, or the directory whose folders are called as the labels and \
                 hold a file a text"
            )));
        }
        Ok(Folders {
            files: files.into_iter(),
            lossy,
            invalid: 0,
        })
    }

    /// The next text with its label.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, ReadError> {
        let Some((label, path)) = self.files.next() else {
            return Ok(None);
        };
        let (text, invalid) = file_text(&path, self.lossy)?;
        self.invalid += u64::from(invalid);
        let cells = [("text", text), ("label", label)]
            .map(|(name, value)| (name.to_owned(), Value::String(value)));
        Ok(Some(Row {
            file: Some(Arc::from(path)),
            line: 1,
            cells: Cells::Names(Map::from_iter(cells)),
        }))
    }
}

/// Names and paths of a directory's folders or files, in order; links are followed.
fn entries(dir: &Path, folders: bool) -> Result<Vec<(String, PathBuf)>, ReadError> {
    let io = |source| ReadError::Io {
        path: dir.into(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let wanted = match folders {
            true => path.is_dir(),
            false => path.is_file(),
        };
        if wanted && !name.starts_with('.') {
            found.push((name.into_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}
