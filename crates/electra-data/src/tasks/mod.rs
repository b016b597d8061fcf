//! Labelled data for fine-tuning: what a task's examples look like to a network.
//!
//! Tokens and targets only. How the network's outputs become predictions and scores stands beside
//! each family's reader; heads and losses are the model's.
//!
//! The way of an example:
//!
//! - [`TaskSpec`]: what a task is: kind, columns, metrics, defaults; by name or for one's own file;
//! - [`Examples`]: its examples out of a file, one at a time;
//! - [`LabelSet`]: the labels, found in the data or given by a model;
//! - [`Featurizer`]: examples to [`Features`], with a tokenizer;
//! - [`classification`], [`tagging`], [`question`]: a network's outputs to predictions and scores;
//! - [`submission`]: predictions to the files that GLUE's server takes.

pub mod classification;
mod columns;
mod conll;
mod error;
mod example;
mod examples;
mod featurizer;
mod folders;
mod json;
mod labels;
mod layout;
mod line_ends;
mod literal;
mod metric;
mod named;
pub mod question;
mod rows;
mod spec;
mod squad;
pub mod submission;
pub mod tagging;
#[cfg(test)]
mod tests;
mod texts;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use classification::Scores;
pub use columns::{Column, Columns, Header};
pub use error::TaskError;
pub use example::{Answer, Example, Gold, Input, Place, Split, hold_out};
pub use examples::{Examples, LabelColumn, OpenOptions};
pub use featurizer::{FeatureCounts, FeatureOptions, Featurizer, Overflow, Questions};
pub use labels::LabelSet;
pub use layout::FileFormat;
pub use metric::Metric;
pub use spec::{OwnTask, TaskSpec};

/// What a head predicts; one value a family of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One of several classes, of one text or a pair.
    Classification,
    /// Any number of several labels, of one text or a pair.
    MultiLabel,
    /// A number, of one text or a pair.
    Regression,
    /// A label for each word.
    Tagging,
    /// A span of a given text, or that there is none.
    QuestionAnswering,
    /// One of several texts, each a sequence of its own.
    MultipleChoice,
}

/// The tokens of one sequence, `[CLS]` and `[SEP]` in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Vocabulary ids.
    pub token_ids: Vec<u32>,
    /// Segment of each token, 0 or 1; as long as `token_ids`.
    pub type_ids: Vec<u32>,
}

/// What the network sees of one example, or of one window of a question's text.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Number of the example in its file, from 0; the windows of a question share it.
    pub example: usize,
    /// One sequence, or one for each choice.
    pub sequences: Vec<Sequence>,
    /// Tagging: the token that stands for each word, ascending. Otherwise empty. Of an example that
    /// takes several windows each word stands in one: the windows' words, one after the other,
    /// are the example's, from the first.
    pub words: Vec<u32>,
    /// Question answering: the tokens that may belong to an answer. Otherwise empty.
    pub context: Range<u32>,
    /// What is to be predicted; `None` where the data holds no labels.
    pub target: Option<Target>,
}

/// What is to be predicted of one [`Features`].
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Number of the class, or of the right choice.
    Class(u32),
    /// Whether each label holds.
    Labels(Vec<bool>),
    /// The number.
    Value(f64),
    /// Label of each of `Features::words`; `None` where the data gives none.
    Tags(Vec<Option<u32>>),
    /// First and last token of the answer; `None` where this window holds none, be it in another
    /// window or nowhere ([`Gold::Answers`] of the example tells).
    Span(Option<(u32, u32)>),
}
