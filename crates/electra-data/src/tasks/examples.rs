//! The examples of a task's file, one at a time.

mod answers;
mod row;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::columns::{self, Found, Place as ColumnPlace};
use super::conll::{Conll, refuse_names};
use super::json::is_squad;
use super::layout::{FileFormat, Reading, reading};
use super::rows::{Cells, Row, Rows, open_text};
use super::squad::Squad;
use super::{Answer, Example, Gold, Header, Input, Place, TaskError, TaskKind, TaskSpec};
use crate::read::ReadError;

/// Whether a file's labels are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabelColumn {
    /// They are: a file or an example without is refused.
    #[default]
    Required,
    /// They are read where the file has them.
    Optional,
}

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Whether labels are needed.
    pub labels: LabelColumn,
    /// The kind of the file, where its name is not to decide.
    pub format: Option<FileFormat>,
    /// Whether invalid UTF-8 becomes U+FFFD instead of an error.
    pub lossy: bool,
    /// Whether every row of a table is an example, for which something must be predicted: labels
    /// are not read, no row is left out, and a text that is not there is empty.
    pub every_row: bool,
}

enum Source {
    Table(Rows, Option<Box<Found>>),
    Conll(Conll),
    Squad(Squad),
}

/// The examples of a file, in order, in memory that does not grow with the file.
pub struct Examples {
    spec: TaskSpec,
    path: Arc<Path>,
    source: Source,
    options: OpenOptions,
    read: u64,
    skipped: u64,
    incomplete: u64,
    /// Cells of the first row of a table of text.
    width: usize,
    surplus: u64,
    /// The label of the first row, where the row was taken for a header because it is no number.
    guessed: Option<String>,
    done: bool,
}

/// Rows that are looked at to see whether labels are numbers.
const LOOKED_AT: usize = 100;

impl Examples {
    /// Opens a file of a task; `-` is standard input. Of classes also a directory whose folders are
    /// called as the labels and hold a file a text.
    ///
    /// # Errors
    /// A file that is missing, unreadable, binary or of an unknown kind; a table without the
    /// columns.
    pub fn open(spec: &TaskSpec, path: &Path, options: OpenOptions) -> Result<Self, TaskError> {
        let source = match reading(spec, path, options.format)? {
            Reading::Table(table) => Source::Table(Rows::open(path, table, options.lossy)?, None),
            Reading::Questions => {
                let (squad, input) =
                    is_squad(open_text(path)?).map_err(|source| ReadError::Io {
                        path: path.into(),
                        source,
                    })?;
                match squad {
                    true => Source::Squad(Squad::new(path, input)),
                    false => Source::Table(Rows::of_json(path, input, options.lossy)?, None),
                }
            }
            Reading::Conll { word, tag, asked } => {
                refuse_names(path, asked)?;
                Source::Conll(Conll::open(path, word, tag, options.lossy)?)
            }
            Reading::ConllU { asked } => {
                Source::Conll(Conll::open_universal(path, asked, options.lossy)?)
            }
        };
        let mut examples = Examples {
            spec: spec.clone(),
            path: path.into(),
            source,
            options,
            read: 0,
            skipped: 0,
            incomplete: 0,
            width: usize::MAX,
            surplus: 0,
            guessed: None,
            done: false,
        };
        examples.find_columns()?;
        Ok(examples)
    }

    /// All examples of a file.
    ///
    /// # Errors
    /// Those of [`Examples::open`] and of reading; a file without examples.
    pub fn read_all(
        spec: &TaskSpec,
        path: &Path,
        options: OpenOptions,
    ) -> Result<Vec<Example>, TaskError> {
        let mut reader = Self::open(spec, path, options)?;
        let examples = (&mut reader).collect::<Result<Vec<_>, _>>()?;
        reader.not_empty(&examples)?;
        Ok(examples)
    }

    /// Refuses a file of which no example was read.
    ///
    /// # Errors
    /// That it holds none.
    pub fn not_empty(&self, examples: &[Example]) -> Result<(), TaskError> {
        match examples {
            [] => Err(TaskError::Empty {
                path: self.path.to_path_buf(),
                skipped: self.skipped,
            }),
            _ => Ok(()),
        }
    }

    /// Rows left out so far: with a cell too few, or labelled `-` (no majority of annotators), in
    /// data sets known to have such.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Rows so far with more cells than the first, which are not read.
    pub fn surplus(&self) -> u64 {
        self.surplus
    }

    /// Rows so far that lack a text and were read nevertheless.
    pub fn incomplete(&self) -> u64 {
        self.incomplete
    }

    /// Lines with invalid UTF-8 that were read nevertheless.
    pub fn invalid_utf8(&self) -> u64 {
        match &self.source {
            Source::Table(rows, _) => rows.invalid(),
            Source::Conll(conll) => conll.invalid(),
            Source::Squad(_) => 0,
        }
    }

    /// What there is to say of the first row: that it was taken for a header by its label, or that
    /// it may be one, since its label is no other's of `examples`, which are those of the file.
    pub fn header_note(&self, examples: &[Example]) -> Option<String> {
        let path = self.path.display();
        if let Some(label) = &self.guessed {
            return Some(format!(
                "{path}: the first row is taken for a header, because its label {label:?} is no \
                 number and all others are; --header false makes it an example"
            ));
        }
        let Source::Table(_, Some(found)) = &self.source else {
            return None;
        };
        let by_place = matches!(found.label[..], [ColumnPlace::At(_)]);
        if found.header || !by_place || self.spec.header != Header::Detect {
            return None;
        }
        let label = |example: &Example| match &example.gold {
            Some(Gold::Class(label)) => Some(label.clone()),
            _ => None,
        };
        let first = label(examples.first()?)?;
        let mut others = BTreeMap::new();
        for other in examples[1..].iter().filter_map(label) {
            *others.entry(other).or_insert(0) += 1;
        }
        let odd = !others.contains_key(&first) && others.values().any(|&n| n > 1);
        odd.then(|| {
            format!(
                "warning: {path}: the label {first:?} of the first row occurs nowhere else; if the \
                 row names the columns, give --header true"
            )
        })
    }

    /// The label of the first row, if it is no number but those of all rows that follow are, as far
    /// as they are looked at.
    fn label_of_header(&self, first: &Row, found: &Found) -> Option<String> {
        let ColumnPlace::At(at) = found.label.first()? else {
            return None;
        };
        let values = matches!(
            self.spec.kind,
            TaskKind::Classification | TaskKind::Regression
        );
        let by_number = !found.header && self.spec.header == Header::Detect;
        let streamed = self.path.as_ref() == Path::new("-");
        if !values || !by_number || streamed {
            return None;
        }
        let label = |row: &Row| match &row.cells {
            Cells::Places(cells) => Some(cells.get(*at)?.trim().to_owned()),
            Cells::Names(_) => None,
        };
        let number = |label: &String| label.parse::<f64>().is_ok();
        let name = label(first).filter(|label| !label.is_empty() && !number(label))?;
        let Source::Table(rows, _) = &self.source else {
            return None;
        };
        // Another reader looks ahead; what it finds wrong this one will find and say.
        let mut rows = rows.again()?;
        rows.next_row().ok()?;
        let mut numbers = 0;
        while numbers < LOOKED_AT
            && let Ok(Some(row)) = rows.next_row()
        {
            if !label(&row).is_some_and(|label| number(&label)) {
                return None;
            }
            numbers += 1;
        }
        (numbers > 1).then_some(name)
    }

    /// Resolves the columns by the first row.
    fn find_columns(&mut self) -> Result<(), TaskError> {
        let Source::Table(rows, _) = &mut self.source else {
            return Ok(());
        };
        let forms = self.spec.layout.forms();
        let Some(first) = rows.next_row()? else {
            return Ok(());
        };
        if let Cells::Places(cells) = &first.cells {
            self.width = cells.len();
        }
        let mut places = columns::find(
            &self.path,
            &forms,
            &first,
            self.spec.header,
            self.options.labels == LabelColumn::Required,
        )?;
        let named = forms.iter().any(|form| form.width.is_some());
        self.guessed = match named {
            true => None,
            false => self.label_of_header(&first, &places),
        };
        places.header |= self.guessed.is_some();
        if let Source::Table(rows, found) = &mut self.source {
            if !places.header {
                rows.put_back(first);
            }
            *found = Some(Box::new(places));
        }
        Ok(())
    }

    fn place(&self, line: u64) -> Place {
        Place {
            path: self.path.clone(),
            line,
            word: None,
        }
    }

    fn next_example(&mut self) -> Result<Option<Example>, TaskError> {
        loop {
            let number = self.read;
            match &mut self.source {
                Source::Table(rows, found) => {
                    let Some(row) = rows.next_row()? else {
                        return Ok(None);
                    };
                    let Some(found) = found.clone() else {
                        return Ok(None);
                    };
                    let place = Place {
                        path: row.file.clone().unwrap_or_else(|| self.path.clone()),
                        line: row.line,
                        word: None,
                    };
                    if let Cells::Places(cells) = &row.cells {
                        self.surplus += u64::from(cells.len() > self.width);
                    }
                    let absent = |at| matches!(row.cell(at), None | Some(Value::Null));
                    if self.options.every_row {
                        let lacks = found.text.iter().chain(&found.second).any(absent);
                        self.incomplete += u64::from(lacks);
                    }
                    match self.of_row(&row, &found, number, place) {
                        Ok(Some(example)) => {
                            self.read += 1;
                            return Ok(Some(example));
                        }
                        Ok(None) => self.skipped += 1,
                        Err(TaskError::Example { .. })
                            if self.spec.skip_malformed && !self.options.every_row =>
                        {
                            self.skipped += 1;
                        }
                        Err(e) => return Err(e),
                    }
                }
                Source::Conll(conll) => {
                    let Some(sentence) = conll.next_sentence()? else {
                        return Ok(None);
                    };
                    let place = self.place(sentence.lines[0]);
                    if sentence.tags.is_empty() && self.options.labels == LabelColumn::Required {
                        return Err(TaskError::Example {
                            place,
                            what: "no tags: the file has one column; expected a word and its tag a line".into(),
                        });
                    }
                    self.read += 1;
                    return Ok(Some(Example {
                        place,
                        id: number.to_string(),
                        lines: sentence.lines,
                        gold: (!sentence.tags.is_empty()).then_some(Gold::Tags(sentence.tags)),
                        input: Input::Words(sentence.words),
                    }));
                }
                Source::Squad(squad) => {
                    let Some(question) = squad.next_question()? else {
                        return Ok(None);
                    };
                    let place = self.place(question.line);
                    if question.answers.is_none() && self.options.labels == LabelColumn::Required {
                        return Err(TaskError::Example {
                            place,
                            what: format!("question {:?} has no \"answers\"", question.id),
                        });
                    }
                    let gold = question.answers.map(|answers| {
                        Gold::Answers(
                            answers
                                .into_iter()
                                .map(|(text, start)| Answer { text, start })
                                .collect(),
                        )
                    });
                    self.check_answerable(&place, &question.id, gold.as_ref())?;
                    self.read += 1;
                    return Ok(Some(Example {
                        place,
                        id: question.id,
                        lines: Vec::new(),
                        input: Input::Question {
                            title: question.title,
                            question: question.question,
                            context: question.context,
                        },
                        gold,
                    }));
                }
            }
        }
    }

    /// A question without answer in a task where each has one.
    fn check_answerable(
        &self,
        place: &Place,
        id: &str,
        gold: Option<&Gold>,
    ) -> Result<(), TaskError> {
        match gold {
            Some(Gold::Answers(answers)) if answers.is_empty() && !self.spec.unanswerable => {
                Err(TaskError::Example {
                    place: place.clone(),
                    what: format!(
                        "question {id:?} has no answer, but in {} each has one; use squad2, or say that questions may have none",
                        self.spec.name
                    ),
                })
            }
            _ => Ok(()),
        }
    }
}

impl Iterator for Examples {
    type Item = Result<Example, TaskError>;

    /// The next example. After an error there is none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_example();
        self.done = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}
