//! An example as its file has it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::TaskError;

/// Where an example stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// Its first line, or its row in Parquet, counted from 1; the line of its article in SQuAD's
    /// format.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let unit = match self.path.extension() {
            Some(e) if e == "parquet" => "row",
            _ => "line",
        };
        write!(f, "{}, {unit} {}", self.path.display(), self.line)
    }
}

/// An example as its file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Where it stands.
    pub place: Place,
    /// What its file calls it (a question's id, GLUE's index); else its number in the file, from 0.
    pub id: String,
    /// What the network is shown.
    pub input: Input,
    /// What is to be predicted; `None` where the data does not say.
    pub gold: Option<Gold>,
}

/// What the network is shown of an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// One text or a pair.
    Text {
        /// The text.
        first: String,
        /// The other text of a pair.
        second: Option<String>,
    },
    /// The words of a sentence; characters in Chinese data.
    Words(Vec<String>),
    /// A question and the text that may hold its answer.
    Question {
        /// Title of the text; may be empty.
        title: Arc<str>,
        /// The question.
        question: String,
        /// The text.
        context: Arc<str>,
    },
    /// A beginning and what may follow it.
    Choices {
        /// The beginning: a text, a question; may be empty.
        first: String,
        /// What may follow.
        choices: Vec<String>,
    },
}

/// What is to be predicted of an [`Example`].
#[derive(Clone, Debug, PartialEq)]
pub enum Gold {
    /// A class.
    Class(String),
    /// The labels that hold.
    Labels(Vec<String>),
    /// A number.
    Value(f64),
    /// A tag for each word.
    Tags(Vec<String>),
    /// The answers that annotators gave; empty if the text holds none.
    Answers(Vec<Answer>),
    /// Number of the right choice, from 0.
    Choice(usize),
}

/// An answer of a question's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Where it is said to begin, in characters of the context; wrong in some data.
    pub start: Option<i64>,
}

impl Example {
    /// The text as a person reads it, for reports.
    pub fn text(&self) -> String {
        match &self.input {
            Input::Text {
                first,
                second: None,
            } => first.clone(),
            Input::Text {
                first,
                second: Some(second),
            } => format!("{first} ⫽ {second}"),
            Input::Words(words) => words.join(" "),
            Input::Question { question, .. } => question.clone(),
            Input::Choices { first, choices } => format!("{first} ⫽ {}", choices.join(" | ")),
        }
    }

    /// A number that depends on what the example shows alone; the questions of one article, told
    /// by its title or else its text, share it, so that no text is on both sides of a split.
    fn group_hash(&self, seed: u64) -> u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        let mut add = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        match &self.input {
            Input::Text { first, second } => {
                add(first);
                add(second.as_deref().unwrap_or_default());
            }
            Input::Words(words) => words.iter().for_each(|word| add(word)),
            Input::Question { title, context, .. } => {
                add(if title.is_empty() { context } else { title });
            }
            Input::Choices { first, choices } => {
                add(first);
                choices.iter().for_each(|choice| add(choice));
            }
        }
        let bytes = *hash.finalize().as_bytes();
        u64::from_le_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
        ])
    }
}

/// Sets about `fraction` of the examples aside, by a hash of their text, and returns (kept, held
/// out), both in the order of the file. The same examples whatever their order; equal texts, and
/// the questions of one article, stay together. Neither part is empty.
///
/// # Errors
/// A fraction outside (0, 1); fewer than two different texts.
pub fn hold_out(
    examples: Vec<Example>,
    fraction: f64,
    seed: u64,
) -> Result<(Vec<Example>, Vec<Example>), TaskError> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(TaskError::Options(format!(
            "cannot hold out a share of {fraction}; it must lie between 0 and 1"
        )));
    }
    let hashes: Vec<u64> = examples.iter().map(|e| e.group_hash(seed)).collect();
    let mut order = hashes.clone();
    order.sort_unstable();
    order.dedup();
    if order.len() < 2 {
        return Err(TaskError::Options(format!(
            "cannot hold out a part of {} different texts; give a development file",
            order.len()
        )));
    }
    let threshold = ((fraction * 2f64.powi(64)) as u64)
        .max(order[0])
        .min(order[order.len() - 2]);
    let (mut kept, mut held_out) = (Vec::new(), Vec::new());
    for (example, hash) in examples.into_iter().zip(hashes) {
        if hash <= threshold {
            held_out.push(example);
        } else {
            kept.push(example);
        }
    }
    Ok((kept, held_out))
}
