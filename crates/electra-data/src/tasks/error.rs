//! What can be wrong with a task or its data.

use std::path::PathBuf;

use thiserror::Error;

use super::example::Place;
use super::featurizer::Questions;
use crate::read::ReadError;
use crate::tokenizer::TokenizerError;

/// What can be wrong with a task or its data.
#[derive(Debug, Error)]
pub enum TaskError {
    /// A file that cannot be read, or a record of it.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A text that cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A task of no known name.
    #[error(
        "no task is called {name:?}; known by name: {known}; for a file of your own give its kind and columns"
    )]
    UnknownTask {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Options that do not fit each other or the kind of task.
    #[error("{0}")]
    Options(String),
    /// A directory, where only classes may be folders.
    #[error("{path}: it is a directory; give a file (folders of texts are for classification)")]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A file without a single example.
    #[error("{path}: holds no example; expected at least one{}", only_skipped(*.skipped))]
    Empty {
        /// The file.
        path: PathBuf,
        /// Rows that were left out.
        skipped: u64,
    },
    /// A table without a column that is needed.
    #[error("{path}, line 1: no column {missing}; the file has: {found}; expected {expected}")]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// What is not there.
        missing: String,
        /// What is there.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// A label that is not among those of training or of the model.
    #[error("{place}: unknown label {label:?}; the labels are: {known}{hint}")]
    UnknownLabel {
        /// Where.
        place: Place,
        /// The label.
        label: String,
        /// All labels.
        known: String,
        /// What to do if the row names the columns.
        hint: &'static str,
    },
    /// A label that only the development data has.
    #[error(
        "{place}: label {label:?} is not in the training data, whose labels are: {known}; nothing can be learned of it; add examples of it or remove these{hint}"
    )]
    LabelNotTrained {
        /// Where it first occurs.
        place: Place,
        /// The label.
        label: String,
        /// The labels of training.
        known: String,
        /// What to do if the row names the columns.
        hint: &'static str,
    },
    /// Training data with one label only.
    #[error(
        "{path}: every example has the label {label:?}; a classifier needs at least two (is the right column named?)"
    )]
    OneLabel {
        /// The file.
        path: PathBuf,
        /// The one label.
        label: String,
    },
    /// Questions to learn from, of which no answer can be found.
    #[error(
        "{path}: no question can be learned from: {} of {questions} have an answer that is not in the \
         text, the first of them {}; an answer must stand in its text letter for letter; in a table \
         see that --text-column and --label-column name the two",
        lost.count,
        lost.first
    )]
    NoAnswerFound {
        /// The file.
        path: PathBuf,
        /// How many there are.
        questions: usize,
        /// Those whose answer is not in the text.
        lost: Questions,
    },
    /// Anything else that is wrong with one example.
    #[error("{place}: {what}")]
    Example {
        /// Where.
        place: Place,
        /// What is wrong and what to do.
        what: String,
    },
}

/// What there is to say of rows that were left out.
fn only_skipped(skipped: u64) -> String {
    match skipped {
        0 => String::new(),
        n => format!(
            " (its {n} rows lack a label, as test files do, or a cell; electra predict takes those)"
        ),
    }
}

/// Some of a list, for a message.
pub(super) fn shown<S: AsRef<str>>(names: &[S]) -> String {
    const MOST: usize = 12;
    let mut text = names
        .iter()
        .take(MOST)
        .map(|n| n.as_ref())
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > MOST {
        text.push_str(&format!(" and {} more", names.len() - MOST));
    }
    text
}
