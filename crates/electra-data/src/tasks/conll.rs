//! CoNLL's columns: a word and its tag a line, a blank line between sentences; and CoNLL-U.

use std::path::Path;

use super::columns::{Column, Columns};
use super::rows::{Lines, open_text};
use crate::read::ReadError;

/// A sentence.
pub(super) struct Sentence {
    pub(super) line: u64,
    pub(super) words: Vec<String>,
    /// Empty where the file has no tags.
    pub(super) tags: Vec<String>,
}

pub(super) struct Conll {
    lines: Lines,
    path: std::path::PathBuf,
    word: usize,
    tag: Option<usize>,
    /// Whether the file is CoNLL-U.
    universal: bool,
    /// Columns of the first line; a file of one column has words alone.
    width: Option<usize>,
}

/// The columns of CoNLL-U, as its definition calls them.
const UNIVERSAL: [&str; 10] = [
    "ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC",
];

/// The column of CoNLL-U that is asked for by number, or by name in whatever case; else `default`.
fn universal_column(asked: &[Column], default: usize) -> usize {
    match asked {
        [Column::Number(number)] => *number,
        [Column::Name(name)] => {
            let found = UNIVERSAL.iter().position(|u| u.eq_ignore_ascii_case(name));
            found.map_or(default, |at| at + 1)
        }
        _ => default,
    }
}

/// The fields of a line: at tabs if it has any, so that a word may hold or be a space, else at
/// spaces.
fn fields(line: &str) -> Vec<&str> {
    if line.contains('\t') {
        line.split('\t').collect()
    } else {
        line.split(' ').filter(|f| !f.is_empty()).collect()
    }
}

impl Conll {
    /// `word` and `tag` count columns from 1; without `tag` it is the last.
    pub(super) fn open(
        path: &Path,
        word: usize,
        tag: Option<usize>,
        lossy: bool,
    ) -> Result<Self, ReadError> {
        Ok(Conll {
            lines: Lines::new(path, open_text(path)?, lossy),
            path: path.into(),
            word,
            tag,
            universal: false,
            width: None,
        })
    }

    /// A file of CoNLL-U: comments, ranges of words (`1-2`) and empty nodes (`1.1`) are passed over.
    /// `asked` may name the columns, by number or as CoNLL-U calls them; FORM and UPOS if not.
    pub(super) fn open_universal(
        path: &Path,
        asked: &Columns,
        lossy: bool,
    ) -> Result<Self, ReadError> {
        let word = universal_column(&asked.text, 2);
        let tag = universal_column(&asked.label, 4);
        Ok(Conll {
            universal: true,
            ..Self::open(path, word, Some(tag), lossy)?
        })
    }

    pub(super) fn invalid(&self) -> u64 {
        self.lines.invalid
    }

    /// The next sentence; `None` at the end.
    pub(super) fn next_sentence(&mut self) -> Result<Option<Sentence>, ReadError> {
        let mut sentence: Option<Sentence> = None;
        while let Some((line, text)) = self.lines.next_line()? {
            // Some files end a sentence with a line of a tab.
            if text.trim_matches([' ', '\t']).is_empty() {
                match sentence {
                    Some(_) => return Ok(sentence),
                    None => continue,
                }
            }
            if text.starts_with("-DOCSTART-") {
                match sentence {
                    Some(_) => return Ok(sentence),
                    None => continue,
                }
            }
            if self.universal && text.starts_with('#') {
                continue;
            }
            let fields = fields(&text);
            if self.universal && fields[0].contains(['-', '.']) {
                continue;
            }
            let wrong = |what: String| ReadError::Record {
                path: self.path.clone(),
                place: format!("line {line}"),
                what,
            };
            let width = *self.width.get_or_insert(fields.len());
            if fields.len() != width {
                return Err(wrong(format!(
                    "{} columns where the first line has {width}",
                    fields.len()
                )));
            }
            let word = fields
                .get(self.word.wrapping_sub(1))
                .ok_or_else(|| wrong(format!("no column {}; the file has {width}", self.word)))?;
            let tag = match self.tag {
                Some(tag) => Some(
                    *fields
                        .get(tag.wrapping_sub(1))
                        .ok_or_else(|| wrong(format!("no column {tag}; the file has {width}")))?,
                ),
                None if width > 1 => fields.last().copied(),
                None => None,
            };
            let sentence = sentence.get_or_insert_with(|| Sentence {
                line,
                words: Vec::new(),
                tags: Vec::new(),
            });
            sentence.words.push((*word).to_owned());
            if let Some(tag) = tag {
                if tag.trim().is_empty() {
                    return Err(wrong("a word without a tag".into()));
                }
                sentence.tags.push(tag.trim().to_owned());
            }
        }
        Ok(sentence)
    }
}
