//! The example of a row of a table: what its cells say.

use serde_json::Value;

use super::super::columns::{Found, Place as ColumnPlace};
use super::super::literal::unwritten;
use super::super::rows::Row;
use super::super::{Example, Gold, Input, Place, TaskError, TaskKind};
use super::answers::answers;
use super::{Examples, LabelColumn};

impl Examples {
    /// The example of a row; `None` if it is one to leave out.
    pub(super) fn of_row(
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
                    return Err(wrong("the label is empty, or the −1 of a test file".into()));
                }
                Label::LeaveOut => return Ok(None),
            }
        };
        self.check_answerable(&place, &id, gold.as_ref())?;
        Ok(Some(Example {
            place,
            id,
            lines: Vec::new(),
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
            // Tables have it for an empty cell, and that is a question without an answer.
            Some(Value::Null) if self.spec.unanswerable => {
                return Ok(Label::Gold(Gold::Answers(Vec::new())));
            }
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
                    // Test files have it, of values that begin at 0.
                    Ok(-1.0) if self.spec.range.is_some_and(|(least, _)| least > -1) => {
                        return Ok(Label::Unlabelled);
                    }
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
            TaskKind::MultiLabel => match unwritten(value) {
                Value::Array(list) if is_multi_hot(&list) => {
                    return Err(wrong(
                        "the labels are a list of 0 and 1; expected the labels that hold, or a \
                         column of 0 and 1 for each (several --label-column)"
                            .into(),
                    ));
                }
                list @ Value::Array(_) => {
                    let list = strings(list);
                    Gold::Labels(list.ok_or_else(|| wrong("the labels are not strings".into()))?)
                }
                value => {
                    let text = scalar(&value).ok_or_else(not_one)?;
                    let parts = text.split(self.spec.label_separator).map(str::trim);
                    let labels = parts.filter(|label| !label.is_empty());
                    Gold::Labels(labels.map(String::from).collect())
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
            TaskKind::QuestionAnswering => {
                let starts = found.start.as_ref().and_then(|at| row.cell(at));
                Gold::Answers(answers(value, starts).map_err(wrong)?)
            }
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

/// Whether a list has a 0 or 1 for each label instead of the labels that hold: floats, or one twice.
fn is_multi_hot(list: &[Value]) -> bool {
    let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
    let Some(numbers) = numbers.filter(|n| n.iter().all(|x| [0.0, 1.0].contains(x))) else {
        return false;
    };
    let twice = numbers.len() > 2 || matches!(numbers[..], [a, b] if a == b);
    twice || list.iter().any(Value::is_f64)
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
