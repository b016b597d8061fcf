//! The examples of a task's file, one at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::columns::{self, Found, Place as ColumnPlace};
use super::conll::{Conll, refuse_names};
use super::rows::{Cells, Row, Rows, extension};
use super::spec::Layout;
use super::squad::Squad;
use super::{Answer, Example, Gold, Header, Input, Place, TaskError, TaskKind, TaskSpec};
use crate::read::Format;

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
    /// The format of a table, where the name is not to decide.
    pub format: Option<Format>,
    /// Whether invalid UTF-8 becomes U+FFFD instead of an error.
    pub lossy: bool,
    /// Whether every row of a table is an example, for which something must be predicted: labels
    /// are not read, no row is left out, and a text that is not there is empty.
    pub every_row: bool,
}

enum Source {
    Table(Rows, Option<Found>),
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

/// The extensions that are read as CoNLL's columns.
const CONLL: [&str; 6] = ["conll", "txt", "bio", "iob", "iob2", "conllu"];

impl Examples {
    /// Opens a file of a task; `-` is standard input.
    ///
    /// # Errors
    /// A file that is missing, unreadable, binary or of an unknown kind; a table without the
    /// columns.
    pub fn open(spec: &TaskSpec, path: &Path, options: OpenOptions) -> Result<Self, TaskError> {
        let conll = options.format.is_none() && CONLL.contains(&extension(path).as_str());
        let json = options.format.is_none() && extension(path) == "json";
        let stdin = options.format.is_none() && path == Path::new("-");
        let table = || -> Result<Source, TaskError> {
            Ok(Source::Table(
                Rows::open(path, options.format, options.lossy)?,
                None,
            ))
        };
        let source = match &spec.layout {
            Layout::Table(_) => table()?,
            Layout::Conll { table, .. } if conll && extension(path) == "conllu" => {
                Source::Conll(Conll::open_universal(path, table, options.lossy)?)
            }
            Layout::Conll { word, tag, table } if conll || stdin => {
                refuse_names(path, table)?;
                Source::Conll(Conll::open(path, *word, *tag, options.lossy)?)
            }
            // A table of text cannot hold a list; CoNLL's columns end in .tsv too.
            Layout::Conll { word, tag, table } if extension(path) == "tsv" => {
                refuse_names(path, table)?;
                Source::Conll(Conll::open(path, *word, *tag, options.lossy)?)
            }
            Layout::Conll { .. } => table()?,
            Layout::Squad { .. } if json || stdin => Source::Squad(Squad::open(path)?),
            Layout::Squad { .. } => table()?,
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
        let examples = Self::open(spec, path, options)?.collect::<Result<Vec<_>, _>>()?;
        if examples.is_empty() {
            return Err(TaskError::Empty { path: path.into() });
        }
        Ok(examples)
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
        // Another reader looks ahead; what it finds wrong this one will find and say.
        let mut rows = Rows::open(&self.path, self.options.format, true).ok()?;
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
        let own;
        let forms = match &self.spec.layout {
            Layout::Table(forms) => forms,
            Layout::Conll { table, .. } | Layout::Squad { table } => {
                own = vec![columns::Form {
                    columns: table.clone(),
                    width: None,
                }];
                &own
            }
        };
        let Some(first) = rows.next_row()? else {
            return Ok(());
        };
        if let Cells::Places(cells) = &first.cells {
            self.width = cells.len();
        }
        let mut places = columns::find(
            &self.path,
            forms,
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
            *found = Some(places);
        }
        Ok(())
    }

    fn place(&self, line: u64) -> Place {
        Place {
            path: self.path.clone(),
            line,
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
                    let place = self.place(row.line);
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
                    let place = self.place(sentence.line);
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

    /// The example of a row; `None` if it is one to leave out.
    fn of_row(
        &self,
        row: &Row,
        found: &Found,
        number: u64,
        place: Place,
    ) -> Result<Option<Example>, TaskError> {
        let wrong = |what: String| TaskError::Example {
            place: place.clone(),
            what,
        };
        let every_row = self.options.every_row;
        let cell = |at: &ColumnPlace, what: &str| match row.cell(at) {
            Some(Value::Null) | None if every_row => Ok(Value::String(String::new())),
            Some(Value::Null) | None => Err(wrong(match at {
                ColumnPlace::At(i) => {
                    format!(
                        "no column {} ({what}); the line has fewer{}",
                        i + 1,
                        row.quote_hint()
                    )
                }
                ColumnPlace::Key(name) => format!("no {name:?} ({what})"),
            })),
            Some(value) => Ok(value),
        };
        let string = |at: &ColumnPlace, what: &str| match cell(at, what)? {
            Value::String(text) => Ok(text),
            value @ (Value::Number(_) | Value::Bool(_)) => Ok(value.to_string()),
            _ => Err(wrong(format!("the {what} is not a string"))),
        };
        let id = match &found.id {
            Some(at) => string(at, "id")?,
            None => number.to_string(),
        };
        if id.is_empty() && every_row {
            return Err(wrong("no id, so nothing can be said of it".into()));
        }
        let joined = || -> Result<String, TaskError> {
            let parts = found.text.iter().map(|at| string(at, "text"));
            Ok(parts.collect::<Result<Vec<_>, _>>()?.join(" "))
        };
        let second = || {
            found
                .second
                .as_ref()
                .map(|at| string(at, "second text"))
                .transpose()
        };
        let input = match self.spec.kind {
            TaskKind::Tagging => {
                let at = &found.text[0];
                match cell(at, "words")? {
                    Value::Array(_) => Input::Words(
                        strings(cell(at, "words")?)
                            .ok_or_else(|| wrong("the words are not a list of strings".into()))?,
                    ),
                    Value::String(text) => {
                        Input::Words(text.split_whitespace().map(String::from).collect())
                    }
                    _ => return Err(wrong("the words are not a list of strings".into())),
                }
            }
            TaskKind::QuestionAnswering => Input::Question {
                title: "".into(),
                question: second()?.unwrap_or_default(),
                context: joined()?.into(),
            },
            TaskKind::MultipleChoice => {
                let mut all = Vec::new();
                for at in &found.choices {
                    match cell(at, "choice")? {
                        list @ (Value::Array(_) | Value::Object(_)) => {
                            all.extend(choices(list).ok_or_else(|| {
                                wrong(
                                    "the choices are neither a list of strings nor {\"text\": [...], \"label\": [...]}"
                                        .into(),
                                )
                            })?);
                        }
                        _ => all.push(string(at, "choice")?),
                    }
                }
                if all.len() < 2 {
                    return Err(wrong(format!(
                        "{} choices; expected two or more",
                        all.len()
                    )));
                }
                Input::Choices {
                    first: joined()?,
                    choices: all,
                }
            }
            _ => Input::Text {
                first: joined()?,
                second: second()?,
            },
        };
        let gold = if found.label.is_empty() || every_row {
            None
        } else {
            match self.gold(row, found, &input, &place)? {
                Label::Gold(gold) => Some(gold),
                Label::Unlabelled if self.options.labels == LabelColumn::Optional => None,
                Label::Unlabelled => {
                    return Err(wrong("the label is empty".into()));
                }
                Label::LeaveOut => return Ok(None),
            }
        };
        self.check_answerable(&place, &id, gold.as_ref())?;
        Ok(Some(Example {
            place,
            id,
            input,
            gold,
        }))
    }

    /// The tags that numbers stand for, in a task that knows them; what is wrong if one stands for
    /// none.
    fn named_tags(&self, tags: Vec<String>) -> Result<Vec<String>, String> {
        let names = &self.spec.tag_names;
        let numbers: Option<Vec<usize>> = tags.iter().map(|tag| tag.parse().ok()).collect();
        let Some(numbers) = numbers.filter(|_| !names.is_empty()) else {
            return Ok(tags);
        };
        let named = numbers.into_iter().map(|number| {
            names.get(number).cloned().ok_or_else(|| {
                format!(
                    "{} has no tag {number}: its {} tags are numbered from 0; for data with tags of \
                     its own give --kind tagging",
                    self.spec.name,
                    names.len()
                )
            })
        });
        named.collect()
    }

    fn gold(
        &self,
        row: &Row,
        found: &Found,
        input: &Input,
        place: &Place,
    ) -> Result<Label, TaskError> {
        let wrong = |what: String| TaskError::Example {
            place: place.clone(),
            what,
        };
        let value = match row.cell(&found.label[0]) {
            Some(Value::Null) => return Ok(Label::Unlabelled),
            Some(value) => value,
            None => {
                return Err(match &found.label[0] {
                    ColumnPlace::At(i) => {
                        let hint = row.quote_hint();
                        wrong(format!(
                            "no column {} (label); the line has fewer{hint}",
                            i + 1
                        ))
                    }
                    ColumnPlace::Key(name) => wrong(format!("no {name:?} (label)")),
                });
            }
        };
        let scalar = |value: &Value| match value {
            Value::String(text) => Some(text.trim().to_owned()),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
            _ => None,
        };
        let not_one = || wrong("the label is a list or an object; expected one label".into());
        Ok(Label::Gold(match self.spec.kind {
            TaskKind::Classification => {
                let label = scalar(&value).ok_or_else(not_one)?;
                if label.is_empty() {
                    return Ok(Label::Unlabelled);
                }
                if self.spec.skip_malformed && label == "-" {
                    return Ok(Label::LeaveOut);
                }
                let Some(known) = &self.spec.labels else {
                    return Ok(Label::Gold(Gold::Class(label)));
                };
                if known.contains(&label) {
                    return Ok(Label::Gold(Gold::Class(label)));
                }
                // Other copies of these data sets have the labels' numbers, and −1 for none.
                match label.parse::<i64>() {
                    Ok(-1) => return Ok(Label::Unlabelled),
                    Ok(n) if n >= 0 && (n as usize) < known.len() => {
                        Gold::Class(known[n as usize].clone())
                    }
                    _ => Gold::Class(label),
                }
            }
            TaskKind::Regression => {
                let text = scalar(&value).ok_or_else(not_one)?;
                if text.is_empty() {
                    return Ok(Label::Unlabelled);
                }
                match text.parse::<f64>() {
                    Ok(number) if number.is_finite() => Gold::Value(number),
                    _ => {
                        return Err(wrong(format!(
                            "the label {text:?} is not a number{}",
                            place.header_hint()
                        )));
                    }
                }
            }
            TaskKind::MultiLabel if found.label.len() > 1 => {
                let mut labels = Vec::new();
                for (at, name) in found.label.iter().zip(&found.label_names) {
                    let cell = row.cell(at).and_then(|v| scalar(&v)).unwrap_or_default();
                    match cell.to_lowercase().as_str() {
                        "1" | "1.0" | "true" | "yes" => labels.push(name.clone()),
                        "0" | "0.0" | "false" | "no" => {}
                        other => {
                            return Err(wrong(format!(
                                "column {name:?} holds {other:?}; expected 0 or 1"
                            )));
                        }
                    }
                }
                Gold::Labels(labels)
            }
            TaskKind::MultiLabel => match value {
                Value::Array(list) if is_multi_hot(&list) => {
                    return Err(wrong(
                        "the labels are a list of 0 and 1; expected the labels that hold, or a \
                         column of 0 and 1 for each (several --label-column)"
                            .into(),
                    ));
                }
                Value::Array(_) => Gold::Labels(
                    strings(value).ok_or_else(|| wrong("the labels are not strings".into()))?,
                ),
                value => {
                    let text = scalar(&value).ok_or_else(not_one)?;
                    let list = written_list(&text).unwrap_or_else(|| {
                        let parts = text.split(self.spec.label_separator).map(str::trim);
                        parts.map(String::from).collect()
                    });
                    Gold::Labels(list.into_iter().filter(|l| !l.is_empty()).collect())
                }
            },
            TaskKind::Tagging => {
                let tags = match &value {
                    Value::Array(_) => strings(value),
                    Value::String(text) => {
                        Some(text.split_whitespace().map(String::from).collect())
                    }
                    _ => None,
                };
                let tags = tags.ok_or_else(|| wrong("the tags are not a list".into()))?;
                let words = match input {
                    Input::Words(words) => words.len(),
                    _ => 0,
                };
                if tags.len() != words {
                    return Err(wrong(format!("{words} words but {} tags", tags.len())));
                }
                Gold::Tags(self.named_tags(tags).map_err(wrong)?)
            }
            TaskKind::QuestionAnswering => Gold::Answers(
                answers(&value).ok_or_else(|| {
                    wrong(
                        "the answers are neither {\"text\": [...], \"answer_start\": [...]} nor a list of objects with these"
                            .into(),
                    )
                })?,
            ),
            TaskKind::MultipleChoice => {
                let Input::Choices { choices, .. } = input else {
                    return Ok(Label::Unlabelled);
                };
                let label = scalar(&value).ok_or_else(not_one)?;
                if label.is_empty() || label == "-1" {
                    return Ok(Label::Unlabelled);
                }
                let names = match &found.choices[..] {
                    [at] => row.cell(at).and_then(choice_names),
                    _ => None,
                };
                if let Some(names) = names {
                    if names.len() != choices.len() {
                        return Err(wrong(format!(
                            "{} choices but {} names of choices",
                            choices.len(),
                            names.len()
                        )));
                    }
                    return match names.iter().position(|name| *name == label) {
                        Some(number) => Ok(Label::Gold(Gold::Choice(number))),
                        None => Err(wrong(format!(
                            "the label {label:?} is none of the choices, which are called {}",
                            names.join(", ")
                        ))),
                    };
                }
                let letter = |c: u8| usize::from(c.to_ascii_uppercase().wrapping_sub(b'A'));
                let number = match label.parse::<usize>() {
                    Ok(number) => Some(number),
                    Err(_) => choices.iter().position(|c| *c == label).or_else(|| {
                        (label.len() == 1 && label.as_bytes()[0].is_ascii_alphabetic())
                            .then(|| letter(label.as_bytes()[0]))
                    }),
                };
                match number {
                    Some(number) if number < choices.len() => Gold::Choice(number),
                    _ => {
                        return Err(wrong(format!(
                            "the label {label:?} is none of the {} choices; expected a number from 0, a letter from A, or the text of one",
                            choices.len()
                        )));
                    }
                }
            }
        }))
    }
}

/// What a label's cell says.
enum Label {
    Gold(Gold),
    Unlabelled,
    LeaveOut,
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

/// Whether a list has a 0 or 1 for each label instead of the labels that hold: floats, or one twice.
fn is_multi_hot(list: &[Value]) -> bool {
    let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
    let Some(numbers) = numbers.filter(|n| n.iter().all(|x| [0.0, 1.0].contains(x))) else {
        return false;
    };
    let twice = numbers.len() > 2 || matches!(numbers[..], [a, b] if a == b);
    twice || list.iter().any(Value::is_f64)
}

/// The strings of a list in a cell of text, as JSON or Python write it: `["x", "y"]`, `['x', 'y']`.
fn written_list(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut list = Vec::new();
    let mut chars = inner.chars();
    while let Some(quote) = chars.next() {
        if quote != '"' && quote != '\'' {
            return None;
        }
        let mut item = String::new();
        loop {
            match chars.next()? {
                '\\' => item.push(chars.next()?),
                end if end == quote => break,
                other => item.push(other),
            }
        }
        list.push(item);
        let rest = chars.as_str().trim_start();
        chars = match rest.strip_prefix(',') {
            Some(rest) => rest.trim_start().chars(),
            None if rest.is_empty() => rest.chars(),
            None => return None,
        };
    }
    Some(list)
}

/// A list of strings or numbers as strings.
fn strings(value: Value) -> Option<Vec<String>> {
    let Value::Array(list) = value else {
        return None;
    };
    list.into_iter()
        .map(|item| match item {
            Value::String(text) => Some(text),
            item @ Value::Number(_) => Some(item.to_string()),
            _ => None,
        })
        .collect()
}

/// The choices in a cell: a list, or one beside their names, `{"text": [...], "label": [...]}`.
fn choices(cell: Value) -> Option<Vec<String>> {
    match cell {
        Value::Object(mut object) => strings(object.remove("text")?),
        list => strings(list),
    }
}

/// The names beside the choices in a cell, if it has any.
fn choice_names(cell: Value) -> Option<Vec<String>> {
    match cell {
        Value::Object(mut object) => strings(object.remove("label")?),
        _ => None,
    }
}

/// Answers in either of the shapes that tables have them in.
fn answers(value: &Value) -> Option<Vec<Answer>> {
    match value {
        Value::Object(object) => {
            let texts = object.get("text")?.as_array()?;
            let starts = object.get("answer_start").and_then(Value::as_array);
            texts
                .iter()
                .enumerate()
                .map(|(i, text)| {
                    Some(Answer {
                        text: text.as_str()?.to_owned(),
                        start: starts.and_then(|s| s.get(i)).and_then(Value::as_i64),
                    })
                })
                .collect()
        }
        Value::Array(list) => list
            .iter()
            .map(|item| {
                Some(Answer {
                    text: item.get("text")?.as_str()?.to_owned(),
                    start: item.get("answer_start").and_then(Value::as_i64),
                })
            })
            .collect(),
        _ => None,
    }
}
