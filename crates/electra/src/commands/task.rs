//! Options that say which task a file is of, and how it is read.

use anyhow::{Result, bail};
use clap::ValueEnum;
use electra_data::tasks::{
    Column, Columns, FileFormat, Header, LabelColumn, OpenOptions, OwnTask, TaskKind, TaskSpec,
};

/// What is predicted, for a file of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One of several classes, of a text or a pair.
    Classification,
    /// Any number of several labels.
    MultiLabel,
    /// A number.
    Regression,
    /// A label for each word.
    Tagging,
    /// An answer out of a given text.
    QuestionAnswering,
    /// One of several texts.
    MultipleChoice,
}

impl From<Kind> for TaskKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Classification => TaskKind::Classification,
            Kind::MultiLabel => TaskKind::MultiLabel,
            Kind::Regression => TaskKind::Regression,
            Kind::Tagging => TaskKind::Tagging,
            Kind::QuestionAnswering => TaskKind::QuestionAnswering,
            Kind::MultipleChoice => TaskKind::MultipleChoice,
        }
    }
}

/// Kinds of a task's files by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// Tab-separated values, of words and tags the same as conll
    #[value(alias = "txt")]
    Tsv,
    /// Comma-separated values
    Csv,
    /// One JSON object a line or one list of objects, of questions also SQuAD's JSON
    #[value(alias = "json")]
    Jsonl,
    /// Apache Parquet
    Parquet,
    /// A word and its tag a line, for tagging
    Conll,
    /// CoNLL-U, for tagging
    Conllu,
}

impl From<FormatName> for FileFormat {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Tsv => FileFormat::Tsv,
            FormatName::Csv => FileFormat::Csv,
            FormatName::Jsonl => FileFormat::Json,
            FormatName::Parquet => FileFormat::Parquet,
            FormatName::Conll => FileFormat::Conll,
            FormatName::Conllu => FileFormat::ConllU,
        }
    }
}

/// Which columns of a file hold what.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ColumnArgs {
    /// What is predicted; for data of your own. Of several such tasks once for all, or for each
    #[arg(long, value_enum)]
    pub kind: Vec<Kind>,
    /// Column of the text, the words or the context, by name or by number from 1; several are
    /// joined
    #[arg(long, value_name = "COLUMN")]
    pub text_column: Vec<String>,
    /// Column of the other text of a pair, or of the question
    #[arg(long, value_name = "COLUMN")]
    pub second_column: Option<String>,
    /// Column of the choices, or one for each
    #[arg(long, value_name = "COLUMN")]
    pub choice_column: Vec<String>,
    /// Column of the label, the tags or the answers; of multi-label data also one for each label
    #[arg(long, value_name = "COLUMN")]
    pub label_column: Vec<String>,
    /// Column of where an answer begins, in characters from 0 [default: answer_start, if there is one]
    #[arg(long, value_name = "COLUMN")]
    pub start_column: Option<String>,
    /// Column of what an example is called
    #[arg(long, value_name = "COLUMN")]
    pub id_column: Option<String>,
    /// Whether the first row names the columns [default: looked at]
    #[arg(long, value_name = "true|false")]
    pub header: Option<bool>,
    /// Between the labels of a multi-label cell [default: ,]
    #[arg(long, value_name = "CHARACTER")]
    pub label_separator: Option<char>,
    /// Questions may have no answer
    #[arg(long)]
    pub unanswerable: bool,
    /// Answers are compared by characters, as CMRC's script does
    #[arg(long)]
    pub chinese_answers: bool,
    /// Format of the files, where their names are not to decide
    #[arg(long, value_enum)]
    pub format: Option<FormatName>,
    /// Put U+FFFD in place of invalid UTF-8 and go on
    #[arg(long)]
    pub lossy: bool,
}

impl ColumnArgs {
    /// Whether anything is said of how a file is laid out.
    pub fn describes_a_file(&self) -> bool {
        self.columns() != Columns::default()
            || self.header.is_some()
            || self.label_separator.is_some()
            || self.unanswerable
            || self.chinese_answers
            || self.format.is_some()
    }

    /// Whether the input is of a task of one's own.
    pub fn is_own(&self) -> bool {
        !self.kind.is_empty()
    }

    /// The task called `name`: one known by that name, or with `--kind` one's own.
    pub fn task(&self, name: &str) -> Result<TaskSpec> {
        match self.kind.as_slice() {
            [] => self.over(TaskSpec::by_name(name)?),
            [kind] => self.own(name, *kind),
            _ => bail!("--kind is given more than once, for one task"),
        }
    }

    /// The tasks called so. Of several, those known by name are these; kind, columns and the like
    /// are of the others, unless there are none.
    pub fn tasks(&self, names: &[String]) -> Result<Vec<TaskSpec>> {
        if let [name] = names {
            return Ok(vec![self.task(name)?]);
        }
        let known = |name: &str| TaskSpec::names().contains(&name);
        let own = names.iter().filter(|name| !known(name)).count();
        if ![0, 1, own].contains(&self.kind.len()) || (own == 0 && self.is_own()) {
            bail!(
                "--kind is given {} times for {own} tasks of your own ({} are known by name): give \
                 it once for all of them, or once for each",
                self.kind.len(),
                names.len() - own
            );
        }
        let mut kinds = self.kind.iter().cycle();
        names
            .iter()
            .map(|name| match (known(name), own) {
                (true, 0) => self.over(TaskSpec::by_name(name)?),
                (true, _) => Ok(TaskSpec::by_name(name)?),
                (false, _) => match kinds.next() {
                    Some(kind) => self.fitting(*kind).own(name, *kind),
                    None => Ok(TaskSpec::by_name(name)?),
                },
            })
            .collect()
    }

    /// Of what is said of several tasks' files, what one of this kind can have. What none of their
    /// kinds can have stays, and is refused.
    fn fitting(&self, kind: Kind) -> Self {
        let mut fitting = self.clone();
        let taken = |by: &[Kind]| !by.contains(&kind) && self.kind.iter().any(|k| by.contains(k));
        let questions = [Kind::QuestionAnswering];
        if taken(&questions) {
            (fitting.unanswerable, fitting.chinese_answers) = (false, false);
            fitting.start_column = None;
        }
        if taken(&[Kind::Classification, Kind::Regression, questions[0]]) {
            fitting.second_column = None;
        }
        if taken(&[Kind::MultipleChoice]) {
            fitting.choice_column.clear();
        }
        if taken(&[Kind::MultiLabel]) && self.label_column.len() > 1 {
            fitting.label_column.clear();
        }
        fitting
    }

    fn own(&self, name: &str, kind: Kind) -> Result<TaskSpec> {
        self.over(TaskSpec::own(OwnTask::new(name, kind.into()))?)
    }

    /// A task with what is said here of its files.
    pub fn over(&self, spec: TaskSpec) -> Result<TaskSpec> {
        let mut spec = spec.with_columns(self.columns())?;
        if let Some(header) = self.header {
            spec.header = match header {
                true => Header::Present,
                false => Header::Absent,
            };
        }
        if let Some(separator) = self.label_separator {
            spec.label_separator = separator;
        }
        if self.unanswerable {
            spec = spec.with_unanswerable()?;
        }
        if self.chinese_answers {
            spec = spec.with_chinese_answers()?;
        }
        Ok(spec)
    }

    /// How the files are read.
    pub fn open(&self, labels: LabelColumn) -> OpenOptions {
        OpenOptions {
            labels,
            format: self.format.map(Into::into),
            lossy: self.lossy,
            ..OpenOptions::default()
        }
    }

    fn columns(&self) -> Columns {
        let column = |text: &String| -> Column {
            match text.parse() {
                Ok(column) => column,
                Err(never) => match never {},
            }
        };
        Columns {
            text: self.text_column.iter().map(column).collect(),
            second: self.second_column.as_ref().map(column),
            choices: self.choice_column.iter().map(column).collect(),
            label: self.label_column.iter().map(column).collect(),
            start: self.start_column.as_ref().map(column),
            id: self.id_column.as_ref().map(column),
        }
    }
}
