//! What a task is, by name or for one's own file.

use serde::{Deserialize, Serialize};

use super::columns::Form;
use super::layout::Layout;
use super::{Column, Columns, Header, TaskError, TaskKind};

/// A score of predictions, as it is called in output. The larger the better, but for `mse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of right predictions; of words in tagging.
    Accuracy,
    /// Precision: of the second class of two, the mean over more; of entities, or of all decisions
    /// where several labels may hold.
    Precision,
    /// Recall, as precision.
    Recall,
    /// F1, as precision; of the words of answers.
    F1,
    /// Precision over the decisions on all classes.
    PrecisionMicro,
    /// Mean of the classes' precision.
    PrecisionMacro,
    /// Recall over the decisions on all classes.
    RecallMicro,
    /// Mean of the classes' recall.
    RecallMacro,
    /// F1 over the decisions on all classes.
    F1Micro,
    /// Mean of the classes' F1.
    F1Macro,
    /// Matthews correlation coefficient.
    Mcc,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation.
    Spearman,
    /// Mean squared error.
    Mse,
    /// Mean loss, without weights of classes and smoothing.
    Loss,
    /// Entity F1 where an entity must be written as the scheme has it (`seqeval`'s strict mode).
    F1Strict,
    /// Share of answers equal to a given one.
    ExactMatch,
    /// Exact match at the threshold for "no answer" that suits the data best.
    BestExactMatch,
    /// F1 at the threshold for "no answer" that suits the data best.
    BestF1,
}

impl Metric {
    /// All, in order.
    pub const ALL: [Metric; 19] = [
        Metric::Accuracy,
        Metric::Precision,
        Metric::Recall,
        Metric::F1,
        Metric::PrecisionMicro,
        Metric::PrecisionMacro,
        Metric::RecallMicro,
        Metric::RecallMacro,
        Metric::F1Micro,
        Metric::F1Macro,
        Metric::Mcc,
        Metric::Pearson,
        Metric::Spearman,
        Metric::Mse,
        Metric::Loss,
        Metric::F1Strict,
        Metric::ExactMatch,
        Metric::BestExactMatch,
        Metric::BestF1,
    ];

    /// Its name in files and output.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::Precision => "precision",
            Metric::Recall => "recall",
            Metric::F1 => "f1",
            Metric::PrecisionMicro => "precision_micro",
            Metric::PrecisionMacro => "precision_macro",
            Metric::RecallMicro => "recall_micro",
            Metric::RecallMacro => "recall_macro",
            Metric::F1Micro => "f1_micro",
            Metric::F1Macro => "f1_macro",
            Metric::Mcc => "mcc",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::Mse => "mse",
            Metric::Loss => "loss",
            Metric::F1Strict => "f1_strict",
            Metric::ExactMatch => "exact_match",
            Metric::BestExactMatch => "best_exact_match",
            Metric::BestF1 => "best_f1",
        }
    }

    /// The metric of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Whether a larger value is better.
    pub fn larger_is_better(self) -> bool {
        !matches!(self, Metric::Mse | Metric::Loss)
    }
}

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

/// Names of the tasks known by name.
pub(super) const NAMES: [&str; 19] = [
    "cola",
    "sst2",
    "mrpc",
    "stsb",
    "qqp",
    "mnli",
    "qnli",
    "rte",
    "wnli",
    "squad",
    "squad2",
    "conll2000",
    "conll2003",
    "wnut17",
    "msra",
    "chnsenticorp",
    "cmrc2018",
    "imdb",
    "agnews",
];

/// Kinds of chunks of CoNLL-2000, in the order of the hub's numbers.
const CHUNKS: [&str; 11] = [
    "ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP",
];

/// Kinds of entities of WNUT 17, in the order of the hub's numbers.
const WNUT: [&str; 6] = [
    "corporation",
    "creative-work",
    "group",
    "location",
    "person",
    "product",
];

/// A table with a header: text, second text (or ""), label, id (or "").
fn headed(text: &str, second: &str, label: &str, id: &str) -> Form {
    let some = |name: &str| (!name.is_empty()).then(|| Column::from(name));
    Form {
        columns: Columns {
            text: vec![text.into()],
            second: some(second),
            label: vec![label.into()],
            id: some(id),
            ..Columns::default()
        },
        width: None,
    }
}

/// A table of `width` columns without a header, by the numbers of its columns.
fn bare(width: usize, text: &[usize], second: Option<usize>, label: usize) -> Form {
    Form {
        columns: Columns {
            text: text.iter().map(|&n| Column::Number(n)).collect(),
            second: second.map(Column::Number),
            label: vec![Column::Number(label)],
            ..Columns::default()
        },
        width: Some(width),
    }
}

fn question_columns() -> Columns {
    Columns {
        text: vec!["context".into()],
        second: Some("question".into()),
        label: vec!["answers".into()],
        id: Some("id".into()),
        ..Columns::default()
    }
}

fn word_columns(tags: &str) -> Columns {
    Columns {
        text: vec!["tokens".into()],
        label: vec![tags.into()],
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

    /// A task known by name.
    ///
    /// # Errors
    /// An unknown name; the message has all that are known.
    pub fn by_name(name: &str) -> Result<Self, TaskError> {
        use Metric::{Accuracy, F1, Mcc, Pearson, Spearman};
        let pair = |label: &str| headed("sentence1", "sentence2", label, "index");
        let bits = || Some(vec!["0".to_owned(), "1".to_owned()]);
        let list = |labels: &[&str]| Some(labels.iter().map(|l| (*l).to_owned()).collect());
        let spec = |kind, forms, metrics| Self::base(name, kind, Layout::Table(forms), metrics);
        let classes = |forms, metrics| spec(TaskKind::Classification, forms, metrics);
        let questions = || {
            let layout = Layout::Squad {
                table: question_columns(),
            };
            let mut spec = Self::base(
                name,
                TaskKind::QuestionAnswering,
                layout,
                &[F1, Metric::ExactMatch],
            );
            spec.max_seq_length = 512;
            spec.epochs = 2;
            spec
        };
        let tags = |column, kinds: &[&str]| {
            let layout = Layout::Conll {
                word: 1,
                tag: None,
                table: word_columns(column),
            };
            let both = |kind: &&str| [format!("B-{kind}"), format!("I-{kind}")];
            let outside = std::iter::once("O".to_owned());
            let spec = Self::base(
                name,
                TaskKind::Tagging,
                layout,
                &[
                    F1,
                    Metric::Precision,
                    Metric::Recall,
                    Metric::F1Strict,
                    Accuracy,
                ],
            );
            TaskSpec {
                tag_names: outside.chain(kinds.iter().flat_map(both)).collect(),
                ..spec
            }
        };
        Ok(match name {
            "cola" => TaskSpec {
                labels: bits(),
                ..classes(
                    vec![
                        headed("sentence", "", "label", "index"),
                        bare(4, &[4], None, 2),
                    ],
                    &[Mcc, Accuracy],
                )
            },
            "sst2" => TaskSpec {
                labels: bits(),
                ..classes(
                    vec![
                        headed("sentence", "", "label", "index"),
                        bare(2, &[1], None, 2),
                    ],
                    &[Accuracy],
                )
            },
            "mrpc" => TaskSpec {
                labels: bits(),
                unordered: true,
                ..classes(
                    vec![
                        headed("#1 String", "#2 String", "Quality", "index"),
                        pair("label"),
                    ],
                    &[Accuracy, F1],
                )
            },
            "stsb" => TaskSpec {
                range: Some((0, 5)),
                unordered: true,
                epochs: 10,
                ..spec(
                    TaskKind::Regression,
                    vec![pair("score"), pair("label")],
                    &[Spearman, Pearson, Metric::Mse],
                )
            },
            "qqp" => TaskSpec {
                labels: bits(),
                skip_malformed: true,
                ..classes(
                    vec![
                        headed("question1", "question2", "is_duplicate", "id"),
                        headed("question1", "question2", "label", "idx"),
                    ],
                    &[Accuracy, F1],
                )
            },
            "mnli" => TaskSpec {
                labels: list(&["entailment", "neutral", "contradiction"]),
                skip_malformed: true,
                ..classes(
                    vec![
                        pair("gold_label"),
                        headed("premise", "hypothesis", "label", "idx"),
                    ],
                    &[Accuracy],
                )
            },
            "qnli" => TaskSpec {
                labels: list(&["entailment", "not_entailment"]),
                ..classes(
                    vec![headed("question", "sentence", "label", "index")],
                    &[Accuracy],
                )
            },
            "rte" => TaskSpec {
                labels: list(&["entailment", "not_entailment"]),
                epochs: 10,
                ..classes(
                    vec![pair("label"), headed("text", "hypothesis", "label", "")],
                    &[Accuracy],
                )
            },
            "wnli" => TaskSpec {
                labels: bits(),
                ..classes(vec![pair("label")], &[Accuracy])
            },
            "squad" => questions(),
            "squad2" => TaskSpec {
                unanswerable: true,
                metrics: vec![
                    F1,
                    Metric::ExactMatch,
                    Metric::BestF1,
                    Metric::BestExactMatch,
                ],
                ..questions()
            },
            "cmrc2018" => TaskSpec {
                chinese_answers: true,
                ..questions()
            },
            "conll2000" => TaskSpec {
                max_seq_length: 256,
                ..tags("chunk_tags", &CHUNKS)
            },
            "conll2003" => tags("ner_tags", &["PER", "ORG", "LOC", "MISC"]),
            "wnut17" => tags("ner_tags", &WNUT),
            "msra" => TaskSpec {
                max_seq_length: 256,
                ..tags("ner_tags", &["PER", "ORG", "LOC"])
            },
            "chnsenticorp" => TaskSpec {
                labels: bits(),
                max_seq_length: 256,
                ..classes(
                    vec![
                        headed("review", "", "label", ""),
                        headed("text_a", "", "label", "qid"),
                        headed("text", "", "label", ""),
                    ],
                    &[Accuracy, F1],
                )
            },
            "imdb" => TaskSpec {
                max_seq_length: 512,
                ..classes(
                    vec![
                        headed("text", "", "label", ""),
                        headed("review", "", "sentiment", ""),
                    ],
                    &[Accuracy],
                )
            },
            "agnews" => classes(
                vec![
                    headed("text", "", "label", ""),
                    bare(3, &[2, 3], None, 1),
                    Form {
                        columns: Columns {
                            text: vec!["Title".into(), "Description".into()],
                            label: vec!["Class Index".into()],
                            ..Columns::default()
                        },
                        width: None,
                    },
                ],
                &[Accuracy, Metric::F1Macro],
            ),
            _ => {
                return Err(TaskError::UnknownTask {
                    name: name.into(),
                    known: NAMES.join(" "),
                });
            }
        })
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
    fn base(name: &str, kind: TaskKind, layout: Layout, metrics: &[Metric]) -> Self {
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
