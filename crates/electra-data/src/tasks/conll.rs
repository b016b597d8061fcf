//! CoNLL's columns: a word and its tag a line, a blank line between sentences; and CoNLL-U.

use std::path::Path;

use super::columns::{Column, Columns};
use super::rows::{Lines, open_text};
use crate::read::ReadError;

/// A sentence.
pub(super) struct Sentence {
    pub(super) words: Vec<String>,
    /// The line of each word.
    pub(super) lines: Vec<u64>,
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

/// What the columns of tables are called by default: names that ask for nothing here.
const TABLE_NAMES: [&str; 4] = ["tokens", "tags", "ner_tags", "chunk_tags"];

/// The name of a column that was asked for by name.
fn asked_name(asked: &[Column]) -> Option<&str> {
    match asked {
        [Column::Name(name)] if !TABLE_NAMES.contains(&name.as_str()) => Some(name),
        _ => None,
    }
}

/// The column of CoNLL-U that is asked for by number, or by name in whatever case; else `default`.
fn universal_column(path: &Path, asked: &[Column], default: usize) -> Result<usize, ReadError> {
    if let [Column::Number(number)] = asked {
        return Ok(*number);
    }
    let Some(name) = asked_name(asked) else {
        return Ok(default);
    };
    let found = UNIVERSAL.iter().position(|u| u.eq_ignore_ascii_case(name));
    found.map(|at| at + 1).ok_or_else(|| ReadError::Record {
        path: path.into(),
        place: "columns".into(),
        what: format!(
            "CoNLL-U has no column {name:?}; its columns are {}",
            UNIVERSAL.join(" ")
        ),
    })
}

/// Refuses a column that is asked for by name in a file whose columns have none.
pub(super) fn refuse_names(path: &Path, asked: &Columns) -> Result<(), ReadError> {
    match asked_name(&asked.text).or(asked_name(&asked.label)) {
        None => Ok(()),
        Some(name) => Err(ReadError::Record {
            path: path.into(),
            place: "columns".into(),
            what: format!(
                "{name:?} is asked for, but the columns of a CoNLL file have no names: give a \
                 number from 1"
            ),
        }),
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
        let word = universal_column(path, &asked.text, 2)?;
        let tag = universal_column(path, &asked.label, 4)?;
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
                words: Vec::new(),
                lines: Vec::new(),
                tags: Vec::new(),
            });
            sentence.words.push((*word).to_owned());
            sentence.lines.push(line);
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
