//! How a task's files are laid out: what tells the kind of a file, and what reads it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::columns::{Columns, Form};
use super::rows::{Table, extension};
use super::{TaskError, TaskKind, TaskSpec};
use crate::read::ReadError;

/// A kind of a task's file, not counting compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Tab-separated values; quotes are literal text. Such a table cannot hold a list, so of words
    /// and tags it is CoNLL's columns. What is called `.txt` is read in the same way.
    Tsv,
    /// Comma-separated values, quoted as in RFC 4180.
    Csv,
    /// One JSON object a line, or one list of objects; of questions also SQuAD's JSON.
    Json,
    /// Apache Parquet.
    Parquet,
    /// CoNLL's columns: a word and its tag a line.
    Conll,
    /// CoNLL-U.
    ConllU,
}

impl FileFormat {
    /// The format of a file's last extension, lower case, compression already taken off.
    fn of_extension(extension: &str) -> Option<Self> {
        Some(match extension {
            "tsv" | "txt" => FileFormat::Tsv,
            "csv" => FileFormat::Csv,
            "jsonl" | "ndjson" | "json" => FileFormat::Json,
            "parquet" => FileFormat::Parquet,
            "conll" | "bio" | "iob" | "iob2" => FileFormat::Conll,
            "conllu" => FileFormat::ConllU,
            _ => return None,
        })
    }
}

/// How a task's files are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Layout {
    /// Tables, in one of these forms.
    Table(Vec<Form>),
    /// Columns of words and tags; also tables of lists with these columns.
    Conll {
        word: usize,
        /// From 1; `None` is the last.
        tag: Option<usize>,
        table: Columns,
    },
    /// SQuAD's JSON; also tables with these columns.
    Squad { table: Columns },
}

/// What answers are called in a table, the usual name first.
const ANSWERS: [&str; 3] = ["answers", "answer_text", "answer"];

impl Layout {
    /// The forms of its tables.
    pub(super) fn forms(&self) -> Vec<Form> {
        let form = |columns| Form {
            columns,
            width: None,
        };
        match self {
            Layout::Table(forms) => forms.clone(),
            Layout::Squad { table } if table.label == [ANSWERS[0].into()] => ANSWERS
                .map(|name| {
                    form(Columns {
                        label: vec![name.into()],
                        ..table.clone()
                    })
                })
                .to_vec(),
            Layout::Conll { table, .. } | Layout::Squad { table } => vec![form(table.clone())],
        }
    }
}

/// What reads a file.
pub(super) enum Reading<'a> {
    Table(Table),
    /// SQuAD's JSON or rows of JSON: the content tells.
    Questions,
    Conll {
        word: usize,
        tag: Option<usize>,
        asked: &'a Columns,
    },
    ConllU {
        asked: &'a Columns,
    },
}

/// What reads a task's file, as its name says or as is `given`. Words and tags are CoNLL's columns
/// under whatever name no table has.
///
/// # Errors
/// A kind of file that the task cannot have; a directory, unless it is of classes.
pub(super) fn reading<'a>(
    spec: &'a TaskSpec,
    path: &Path,
    given: Option<FileFormat>,
) -> Result<Reading<'a>, TaskError> {
    let wrong = |what: String| ReadError::Record {
        path: path.into(),
        place: given.map_or("name", |_| "format").into(),
        what,
    };
    if path.is_dir() {
        return match (spec.kind, given) {
            (TaskKind::Classification, None) => Ok(Reading::Table(Table::Folders)),
            (TaskKind::Classification, Some(_)) => Err(wrong(
                "it is a directory, whose files are text; leave --format out".into(),
            )
            .into()),
            _ => Err(TaskError::Directory { path: path.into() }),
        };
    }
    let streamed = path == Path::new("-");
    let format = given.or_else(|| FileFormat::of_extension(&extension(path)));
    Ok(match (&spec.layout, format) {
        (_, Some(FileFormat::Csv)) => Reading::Table(Table::Csv),
        (_, Some(FileFormat::Parquet)) => Reading::Table(Table::Parquet),
        (Layout::Squad { .. }, Some(FileFormat::Json)) => Reading::Questions,
        (Layout::Squad { .. }, None) if streamed => Reading::Questions,
        (_, Some(FileFormat::Json)) => Reading::Table(Table::Json),
        (Layout::Conll { table, .. }, Some(FileFormat::ConllU)) => Reading::ConllU { asked: table },
        (Layout::Conll { word, tag, table }, _) => Reading::Conll {
            word: *word,
            tag: *tag,
            asked: table,
        },
        (_, Some(FileFormat::Tsv)) => Reading::Table(Table::Tsv),
        // Opening what is not there says best what is wrong with it.
        (_, None) if streamed || !path.exists() => Reading::Table(Table::Tsv),
        (_, format) => {
            let what = match format {
                None => "unknown kind of file",
                Some(_) => "a word and its tag a line is for tagging",
            };
            let more = match spec.kind {
                TaskKind::Classification => ", or a directory of folders",
                TaskKind::QuestionAnswering => "; .json is also SQuAD's",
                _ => "",
            };
            return Err(wrong(format!(
                "{what}; {} reads .tsv .csv .jsonl .json .parquet .txt, each also .gz or .zst{more}; \
                 --format says the kind where the name does not",
                spec.name
            ))
            .into());
        }
    })
}
