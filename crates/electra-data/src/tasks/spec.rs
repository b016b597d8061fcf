//! What a task is, and one for one's own file.

use serde::{Deserialize, Serialize};

use super::columns::Form;
use super::layout::Layout;
use super::named::NAMES;
use super::{Column, Columns, Header, Metric, TaskError, TaskKind};

/// What a task is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Its name.
    pub name: String,
    /// What is predicted.
    pub kind: TaskKind,
    /// Its labels, where they are known before any data is read.
    pub labels: Option<Vec<String>>,
    /// What is measured, in the order of output.
    pub metrics: Vec<Metric>,
    /// What the best model is chosen by.
    pub best: Metric,
    /// Tokens of a sequence.
    pub max_seq_length: usize,
    /// Epochs of fine-tuning.
    pub epochs: u32,
    /// Tokens from the start of one window of a question's text to the next.
    pub doc_stride: usize,
    /// Whether questions may have no answer.
    pub unanswerable: bool,
    /// Whether answers are compared by characters, as CMRC's script does, not by words.
    pub chinese_answers: bool,
    /// The range of a regression's values: for submissions, and the reference's head learns shares
    /// of it.
    pub range: Option<(i32, i32)>,
    /// Whether the texts of a pair have no order.
    #[serde(default)]
    pub unordered: bool,
    /// Whether the first row of a table names its columns.
    pub header: Header,
    /// What separates the labels of a multi-label cell.
    pub label_separator: char,
    /// Rows with a cell too few are counted, not refused; labels called `-` too.
    pub(super) skip_malformed: bool,
    /// Tagging: the tags that numbers stand for, as the hub's tables have them; empty where numbers
    /// are tags like others.
    #[serde(default)]
    pub(super) tag_names: Vec<String>,
    pub(super) layout: Layout,
}

/// What is told of a task of one's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnTask {
    /// What it is called.
    pub name: String,
    /// What is predicted.
    pub kind: TaskKind,
    /// Its columns; those left empty have defaults: `text`, `label`; for tagging `tokens`, `tags`
    /// (in CoNLL files the first and the last column); for questions `context`, `question`,
    /// `answers` (or `answer_text`, `answer`), `id`; for choices `text`, `choices`, `label`.
    pub columns: Columns,
}

impl OwnTask {
    /// With defaults.
    pub fn new(name: impl Into<String>, kind: TaskKind) -> Self {
        OwnTask {
            name: name.into(),
            kind,
            columns: Columns::default(),
        }
    }
}

pub(super) fn question_columns() -> Columns {
    Columns {
        text: vec!["context".into()],
        second: Some("question".into()),
        label: vec!["answers".into()],
        id: Some("id".into()),
        ..Columns::default()
    }
}

impl TaskSpec {
    /// The labels that are known before any data is read, by number: where data or a model only
    /// has numbers, these are meant.
    pub fn numbered_labels(&self) -> Option<&[String]> {
        let tags = Some(self.tag_names.as_slice()).filter(|names| !names.is_empty());
        self.labels.as_deref().or(tags)
    }

    /// Names of the tasks known by name.
    pub fn names() -> &'static [&'static str] {
        &NAMES
    }

    /// A task of one's own.
    ///
    /// # Errors
    /// Columns that do not fit the kind.
    pub fn own(task: OwnTask) -> Result<Self, TaskError> {
        let OwnTask {
            name,
            kind,
            mut columns,
        } = task;
        check_columns(&name, kind, &columns)?;
        let given = columns.clone();
        let or = |list: &mut Vec<Column>, name: &str| {
            if list.is_empty() {
                list.push(name.into());
            }
        };
        let layout = match kind {
            TaskKind::Tagging => {
                or(&mut columns.text, "tokens");
                or(&mut columns.label, "tags");
                // Names are for tables; a CoNLL file has none.
                Layout::Conll {
                    word: number(&given.text).unwrap_or(1),
                    tag: number(&given.label),
                    table: columns,
                }
            }
            TaskKind::QuestionAnswering => {
                let default = question_columns();
                or(&mut columns.text, "context");
                or(&mut columns.label, "answers");
                Layout::Squad {
                    table: Columns {
                        second: columns.second.or(default.second),
                        id: columns.id.or(default.id),
                        ..columns
                    },
                }
            }
            TaskKind::MultipleChoice => {
                or(&mut columns.text, "text");
                or(&mut columns.choices, "choices");
                or(&mut columns.label, "label");
                Layout::Table(vec![Form {
                    columns,
                    width: None,
                }])
            }
            _ => {
                or(&mut columns.text, "text");
                or(&mut columns.label, "label");
                let form = |columns| Form {
                    columns,
                    width: None,
                };
                let mut forms = vec![form(columns.clone())];
                if kind == TaskKind::MultiLabel && given.label.is_empty() {
                    columns.label = vec!["labels".into()];
                    forms.push(form(columns));
                }
                Layout::Table(forms)
            }
        };
        let metrics: &[Metric] = match kind {
            TaskKind::Classification => &[
                Metric::Accuracy,
                Metric::F1,
                Metric::Precision,
                Metric::Recall,
                Metric::F1Macro,
                Metric::Mcc,
            ],
            TaskKind::MultiLabel => &[
                Metric::F1Micro,
                Metric::F1Macro,
                Metric::Precision,
                Metric::Recall,
                Metric::Accuracy,
            ],
            TaskKind::Regression => &[Metric::Spearman, Metric::Pearson, Metric::Mse],
            TaskKind::Tagging => &[
                Metric::F1,
                Metric::Precision,
                Metric::Recall,
                Metric::F1Strict,
                Metric::Accuracy,
            ],
            TaskKind::QuestionAnswering => &[Metric::F1, Metric::ExactMatch],
            TaskKind::MultipleChoice => &[Metric::Accuracy],
        };
        let mut spec = Self::base(&name, kind, layout, metrics);
        if kind == TaskKind::QuestionAnswering {
            spec.max_seq_length = 512;
            spec.epochs = 2;
        }
        Ok(spec)
    }

    /// The same task in files whose columns are called otherwise; those left empty stay.
    ///
    /// # Errors
    /// Columns that do not fit the kind.
    pub fn with_columns(mut self, columns: Columns) -> Result<Self, TaskError> {
        if columns == Columns::default() {
            return Ok(self);
        }
        check_columns(&self.name, self.kind, &columns)?;
        // The numbers of another column are other tags.
        let another = match &self.layout {
            Layout::Conll { table, .. } => columns.label != table.label,
            _ => false,
        };
        if another && !columns.label.is_empty() {
            self.tag_names.clear();
        }
        let numbers = (number(&columns.text), number(&columns.label));
        let over = |old: &Columns| columns.clone().or(old);
        self.layout = match &self.layout {
            Layout::Table(forms) => Layout::Table(
                forms
                    .iter()
                    .map(|form| Form {
                        columns: over(&form.columns),
                        width: form.width,
                    })
                    .collect(),
            ),
            Layout::Conll { word, tag, table } => Layout::Conll {
                word: numbers.0.unwrap_or(*word),
                tag: numbers.1.or(*tag),
                table: over(table),
            },
            Layout::Squad { table } => Layout::Squad { table: over(table) },
        };
        Ok(self)
    }

    /// The same task where questions may have no answer.
    ///
    /// # Errors
    /// A task without questions.
    pub fn with_unanswerable(mut self) -> Result<Self, TaskError> {
        self.require_questions("unanswerable")?;
        self.unanswerable = true;
        for metric in [Metric::BestF1, Metric::BestExactMatch] {
            if !self.metrics.contains(&metric) {
                self.metrics.push(metric);
            }
        }
        Ok(self)
    }

    /// The same task with answers compared by characters.
    ///
    /// # Errors
    /// A task without questions.
    pub fn with_chinese_answers(mut self) -> Result<Self, TaskError> {
        self.require_questions("chinese_answers")?;
        self.chinese_answers = true;
        Ok(self)
    }

    /// Whether it is about two texts.
    pub fn takes_pairs(&self) -> bool {
        match &self.layout {
            Layout::Table(forms) => forms.iter().any(|form| form.columns.second.is_some()),
            Layout::Conll { .. } | Layout::Squad { .. } => false,
        }
    }

    fn require_questions(&self, what: &str) -> Result<(), TaskError> {
        match self.kind {
            TaskKind::QuestionAnswering => Ok(()),
            _ => Err(TaskError::Options(format!(
                "task {}: {what} is for question answering",
                self.name
            ))),
        }
    }

    /// The reference's defaults: 128 tokens, 3 epochs, windows 128 tokens apart.
    pub(super) fn base(name: &str, kind: TaskKind, layout: Layout, metrics: &[Metric]) -> Self {
        TaskSpec {
            name: name.into(),
            kind,
            labels: None,
            metrics: metrics.to_vec(),
            best: metrics[0],
            max_seq_length: 128,
            epochs: 3,
            doc_stride: 128,
            unanswerable: false,
            chinese_answers: false,
            range: None,
            unordered: false,
            header: Header::Detect,
            label_separator: ',',
            skip_malformed: false,
            tag_names: Vec::new(),
            layout,
        }
    }
}

/// The number of a lone column that is given by its number.
fn number(columns: &[Column]) -> Option<usize> {
    match columns {
        [Column::Number(number)] => Some(*number),
        _ => None,
    }
}

/// Refuses columns that do not fit the kind of a task.
fn check_columns(name: &str, kind: TaskKind, columns: &Columns) -> Result<(), TaskError> {
    let refuse = |what: &str| Err(TaskError::Options(format!("task {name}: {what}")));
    if columns.label.len() > 1 && kind != TaskKind::MultiLabel {
        return refuse("several label columns are for multi-label tasks");
    }
    if !columns.choices.is_empty() && kind != TaskKind::MultipleChoice {
        return refuse("columns for choices are for multiple choice");
    }
    if columns.start.is_some() && kind != TaskKind::QuestionAnswering {
        return refuse("a column of where answers begin is for questions");
    }
    if columns.second.is_some() && matches!(kind, TaskKind::Tagging | TaskKind::MultipleChoice) {
        return refuse("a second text is for classification, regression and questions");
    }
    Ok(())
}
