//! Options that say which task a file is of, and how it is read.

use super::corpus::FormatName;
use anyhow::{Result, bail};
use clap::ValueEnum;
use electra_data::tasks::{
    Column, Columns, Header, LabelColumn, OpenOptions, OwnTask, TaskKind, TaskSpec,
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

/// Which columns of a file hold what.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ColumnArgs {
    /// What is predicted; for data of your own
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
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
    /// Column of the label; of multi-label data also one for each label
    #[arg(long, value_name = "COLUMN")]
    pub label_column: Vec<String>,
    /// Column of what an example is called
    #[arg(long, value_name = "COLUMN")]
    pub id_column: Option<String>,
    /// Whether the first row names the columns [default: looked at]
    #[arg(long, value_name = "true|false")]
    pub header: Option<bool>,
    /// Between the labels of a multi-label cell
    #[arg(long, value_name = "CHARACTER", default_value = ",")]
    pub label_separator: char,
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
    /// The task called `name`: one known by that name, or with `--kind` one's own.
    pub fn task(&self, name: &str) -> Result<TaskSpec> {
        let columns = self.columns();
        let Some(kind) = self.kind else {
            if columns != Columns::default() || self.unanswerable || self.chinese_answers {
                bail!(
                    "columns are those of a task of your own: give --kind too, or leave them out \
                     for --task {name}"
                );
            }
            let mut spec = TaskSpec::by_name(name)?;
            if let Some(header) = self.header() {
                spec.header = header;
            }
            return Ok(spec);
        };
        let kind = match kind {
            Kind::Classification => TaskKind::Classification,
            Kind::MultiLabel => TaskKind::MultiLabel,
            Kind::Regression => TaskKind::Regression,
            Kind::Tagging => TaskKind::Tagging,
            Kind::QuestionAnswering => TaskKind::QuestionAnswering,
            Kind::MultipleChoice => TaskKind::MultipleChoice,
        };
        Ok(TaskSpec::own(OwnTask {
            columns,
            header: self.header().unwrap_or_default(),
            label_separator: self.label_separator,
            unanswerable: self.unanswerable,
            chinese_answers: self.chinese_answers,
            ..OwnTask::new(name, kind)
        })?)
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

    fn header(&self) -> Option<Header> {
        self.header.map(|there| match there {
            true => Header::Present,
            false => Header::Absent,
        })
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
            id: self.id_column.as_ref().map(column),
        }
    }
}
