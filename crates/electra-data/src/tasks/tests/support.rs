//! What the tests of tasks share: files of a few lines, a small tokenizer, the real data.

use std::path::{Path, PathBuf};

use crate::tasks::{Example, Examples, OpenOptions, TaskError, TaskSpec};
use crate::tokenizer::Tokenizer;
use crate::words::Normalisation;

/// A file of this name and content, and the directory that holds it.
pub fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

/// The examples of a file of this name and content.
pub fn read(
    spec: &TaskSpec,
    name: &str,
    content: impl AsRef<[u8]>,
) -> Result<Vec<Example>, TaskError> {
    let (_dir, path) = file(name, content);
    Examples::read_all(spec, &path, OpenOptions::default())
}

/// The directory of real data beside the repository; `None`, said aloud, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{} must be there",
        path.display()
    );
    eprintln!("skipped: {} is not there", path.display());
    None
}

/// A tokenizer that knows some words, and letters and characters one by one.
pub fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "old", "boat", "sailed", "on",
        "river", "seine", "in", "paris", ".", ",", "?", "where", "who", "is", "was",
    ]
    .iter()
    .map(|t| (*t).to_owned())
    .collect();
    for letter in ('a'..='z').chain('0'..='9') {
        tokens.push(letter.to_string());
        tokens.push(format!("##{letter}"));
    }
    for character in "亚辛访问了海湾国家北京上天安门。，".chars() {
        tokens.push(character.to_string());
    }
    Tokenizer::new(tokens, Normalisation::UNCASED, Path::new("vocab.txt")).unwrap()
}
