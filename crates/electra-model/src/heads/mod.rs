//! Heads of tasks over the encoder, their losses, and what a fine-tuned model directory holds.
//!
//! Two styles: transformers' heads, under its names, so that its classes load what is saved; and
//! the reference's, under names of their own.

mod classification;
pub mod crf;
pub mod files;
pub mod joint_span;
pub mod layers;
mod linear;
pub mod losses;
mod multiple_choice;
pub mod network;
mod question_answering;
pub mod step;
#[cfg(test)]
mod test_numbers;
mod token_classification;

use serde::{Deserialize, Serialize};

/// What a head predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// One of several classes, of a text or a pair.
    Classification,
    /// Any number of several labels.
    MultiLabel,
    /// A number.
    Regression,
    /// A label for each word.
    Tagging,
    /// First and last token of an answer.
    QuestionAnswering,
    /// One of several texts.
    MultipleChoice,
}

/// Whose head it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadStyle {
    /// transformers'.
    #[default]
    Hf,
    /// The reference's.
    Google,
}

/// A head to be built.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadSpec {
    /// Name of its task.
    pub name: String,
    /// What it predicts.
    pub kind: HeadKind,
    /// Whose head it is.
    #[serde(rename = "head", default)]
    pub style: HeadStyle,
    /// Classes, labels or tags; 1 for a number or a choice, 2 for an answer.
    pub outputs: usize,
    /// Whether a conditional random field stands on top; only of tagging.
    #[serde(default)]
    pub crf: bool,
    /// Regression: the value that an output of 1 stands for.
    #[serde(default = "one")]
    pub value_scale: f32,
    /// Width of the dense layers of the reference's head for answers.
    #[serde(default = "reference_width")]
    pub span_width: usize,
}

fn one() -> f32 {
    1.0
}

fn reference_width() -> usize {
    joint_span::WIDTH
}
