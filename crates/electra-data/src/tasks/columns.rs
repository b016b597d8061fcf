//! Which columns of a table hold what, and whether its first row names them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TaskError;
use super::error::shown;
use super::rows::{Cells, Row};

/// A column by its name or its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// Counted from 1.
    Number(usize),
    /// As the header, the JSON object or the Parquet schema has it.
    Name(String),
}

impl FromStr for Column {
    type Err = std::convert::Infallible;

    /// A number from 1 is a place, all else a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse() {
            Ok(number) if number > 0 => Column::Number(number),
            _ => Column::Name(text.into()),
        })
    }
}

impl From<&str> for Column {
    fn from(name: &str) -> Self {
        Column::Name(name.into())
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Column::Number(number) => write!(f, "{number}"),
            Column::Name(name) => write!(f, "{name:?}"),
        }
    }
}

/// Whether the first row of a table of text names the columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Header {
    /// It does if it holds the names asked for, or, with columns by number, if the column of the
    /// label holds a word such as `label` or `class`, or a word where the next hundred rows have numbers.
    #[default]
    Detect,
    /// It does.
    Present,
    /// It does not; it is an example.
    Absent,
}

/// Which columns hold what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// The text, the words, the context of a question, what stands before the choices. Several
    /// are joined with a space.
    pub text: Vec<Column>,
    /// The other text of a pair; the question.
    pub second: Option<Column>,
    /// The choices; one column that holds a list, or one each.
    pub choices: Vec<Column>,
    /// The label. Several for multi-label data that has a column of 0 and 1 for each label.
    pub label: Vec<Column>,
    /// Where a question's answer begins, if its label is a text; where it is not given,
    /// `answer_start`, in a file that has such a column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Column>,
    /// What the example is called.
    pub id: Option<Column>,
}

impl Columns {
    /// These columns, and where one is not given that of `other`.
    pub(super) fn or(self, other: &Columns) -> Columns {
        let list = |own: Vec<Column>, other: &[Column]| match own.is_empty() {
            true => other.to_vec(),
            false => own,
        };
        Columns {
            text: list(self.text, &other.text),
            second: self.second.or_else(|| other.second.clone()),
            choices: list(self.choices, &other.choices),
            label: list(self.label, &other.label),
            start: self.start.or_else(|| other.start.clone()),
            id: self.id.or_else(|| other.id.clone()),
        }
    }

    fn inputs(&self) -> impl Iterator<Item = &Column> {
        self.text.iter().chain(&self.second).chain(&self.choices)
    }

    fn labels(&self) -> impl Iterator<Item = &Column> {
        self.label.iter().chain(&self.start)
    }
}

/// One way in which a task's files are laid out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Form {
    pub(super) columns: Columns,
    /// For tables without a header: the number of columns that tells the form.
    pub(super) width: Option<usize>,
}

/// A column found in a file.
#[derive(Clone, Debug)]
pub(super) enum Place {
    At(usize),
    Key(String),
}

/// The columns of a [`Form`] found in a file.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) text: Vec<Place>,
    pub(super) second: Option<Place>,
    pub(super) choices: Vec<Place>,
    /// Empty where the file has no labels.
    pub(super) label: Vec<Place>,
    /// Names of the label columns.
    pub(super) label_names: Vec<String>,
    pub(super) start: Option<Place>,
    pub(super) id: Option<Place>,
    /// Whether the first row is no example.
    pub(super) header: bool,
}

/// What a first cell of labels says where it is not a label.
const LABEL_NAMES: [&str; 12] = [
    "label",
    "labels",
    "class",
    "category",
    "target",
    "score",
    "tag",
    "tags",
    "sentiment",
    "answer",
    "gold_label",
    "quality",
];

/// Finds the first form that fits, by the first row. Where `labels` are not needed a form without
/// its label column fits too, if nothing fits with it.
///
/// # Errors
/// No form fits.
pub(super) fn find(
    path: &Path,
    forms: &[Form],
    first: &Row,
    header: Header,
    labels: bool,
) -> Result<Found, TaskError> {
    let names: Vec<String> = match &first.cells {
        Cells::Names(object) => object.keys().cloned().collect(),
        Cells::Places(cells) => cells.iter().map(|c| c.trim().to_owned()).collect(),
    };
    let by_name = matches!(first.cells, Cells::Names(_));
    // A header tells more than a number of columns: forms with one come first, even without labels.
    'found: for bare in [false, true] {
        for with_labels in [true, false] {
            for form in forms.iter().filter(|form| form.width.is_some() == bare) {
                if let Some(found) = fit(form, &names, by_name, header, with_labels) {
                    if labels && !with_labels {
                        break 'found;
                    }
                    return Ok(found);
                }
            }
        }
    }
    let missing = forms.first().map_or_else(Vec::new, |form| {
        let mut wanted: Vec<&Column> = form.columns.inputs().collect();
        if labels {
            wanted.extend(form.columns.labels());
        }
        wanted
            .into_iter()
            .filter(|c| place(c, &names, by_name, header != Header::Absent).is_none())
            .map(|c| c.to_string())
            .collect()
    });
    let expected: Vec<String> = forms
        .iter()
        .map(|form| {
            let mut wanted: Vec<&Column> = form.columns.inputs().collect();
            if labels {
                wanted.extend(form.columns.labels());
            }
            let list: Vec<String> = wanted.iter().map(|c| c.to_string()).collect();
            match form.width {
                Some(width) => format!("{width} columns without a header"),
                None => list.join(", "),
            }
        })
        .collect();
    let quoted: Vec<String> = names
        .iter()
        .map(|n| format!("{:?}", n.chars().take(40).collect::<String>()))
        .collect();
    Err(TaskError::MissingColumn {
        path: path.into(),
        missing: if missing.is_empty() {
            "that fits".into()
        } else {
            missing.join(", ")
        },
        found: shown(&quoted),
        expected: expected.join("; or "),
    })
}

/// Where a column is; by name only if `named`, by number only in tables of text.
fn place(column: &Column, names: &[String], by_name: bool, named: bool) -> Option<Place> {
    match column {
        Column::Name(name) if by_name => names.contains(name).then(|| Place::Key(name.clone())),
        Column::Name(name) if named => names.iter().position(|n| n == name).map(Place::At),
        Column::Name(_) => None,
        Column::Number(number) if by_name => names
            .get(number.checked_sub(1)?)
            .map(|name| Place::Key(name.clone())),
        Column::Number(number) => {
            let at = number.checked_sub(1)?;
            (at < names.len()).then_some(Place::At(at))
        }
    }
}

fn fit(
    form: &Form,
    names: &[String],
    by_name: bool,
    header: Header,
    with_labels: bool,
) -> Option<Found> {
    if !by_name && form.width.is_some_and(|width| width != names.len()) {
        return None;
    }
    if by_name && form.width.is_some() {
        return None;
    }
    let columns = &form.columns;
    let named = header != Header::Absent;
    let at = |column: &Column| place(column, names, by_name, named);
    let all = |columns: &[Column]| columns.iter().map(at).collect::<Option<Vec<_>>>();
    let is_label_name = |place: &Place| match place {
        Place::At(i) => LABEL_NAMES.contains(&names[*i].to_lowercase().as_str()),
        Place::Key(_) => false,
    };
    // A header, but with other names than those asked for.
    let headed = header == Header::Detect && form.width.is_some();
    if headed
        && columns
            .label
            .iter()
            .filter_map(at)
            .any(|p| is_label_name(&p))
    {
        return None;
    }
    let label = if with_labels {
        all(&columns.label)?
    } else {
        Vec::new()
    };
    let start = match &columns.start {
        Some(column) if with_labels => Some(at(column)?),
        Some(_) => None,
        None => at(&"answer_start".into()),
    };
    let uses_names = columns
        .inputs()
        .chain(columns.labels())
        .any(|c| matches!(c, Column::Name(_)));
    let header = !by_name
        && match header {
            Header::Present => true,
            Header::Absent => false,
            Header::Detect => {
                uses_names || (form.width.is_none() && label.iter().any(is_label_name))
            }
        };
    let label_names = label
        .iter()
        .map(|place| match place {
            Place::At(i) if header => names[*i].clone(),
            Place::At(i) => (i + 1).to_string(),
            Place::Key(name) => name.clone(),
        })
        .collect();
    Some(Found {
        text: all(&columns.text)?,
        second: match &columns.second {
            Some(column) => Some(at(column)?),
            None => None,
        },
        choices: all(&columns.choices)?,
        label,
        label_names,
        start,
        id: columns.id.as_ref().and_then(at),
        header,
    })
}

impl Row {
    /// What a column holds; `None` if the row ends before it, or lacks it.
    pub(super) fn cell(&self, place: &Place) -> Option<Value> {
        match (&self.cells, place) {
            (Cells::Places(cells), Place::At(i)) => cells.get(*i).cloned().map(Value::String),
            (Cells::Names(object), Place::Key(name)) => object.get(name).cloned(),
            _ => None,
        }
    }
}
