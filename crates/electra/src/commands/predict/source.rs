//! Where the examples come from: a stream of lines, or a file of a task.

use super::incoming::Incoming;
use super::lines::Lines;
use super::{Args, Task, input_of};
use crate::commands::corpus::report_invalid;
use anyhow::{Result, bail};
use electra_data::tasks::{Example, Examples, Input, LabelColumn, OpenOptions, Place, TaskSpec};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Examples, a chunk at a time, and how many there have been.
pub enum Source {
    /// A file of a task.
    File { file: Incoming, number: u64 },
    /// Lines, and what they are called.
    Lines {
        lines: Lines<Box<dyn Read>>,
        path: Arc<Path>,
        number: u64,
        /// Whether a line to classify has two texts.
        pairs: bool,
    },
}

impl Source {
    /// The input: a file of the task `spec`, without one lines of text, or of two texts.
    ///
    /// # Errors
    /// An input that cannot be read, or has no such columns.
    pub fn open(args: &Args, spec: Option<&TaskSpec>, pairs: bool) -> Result<Self> {
        let columns = &args.task_args.columns;
        Ok(match spec {
            Some(spec) => {
                let path = args.input.clone().unwrap_or_else(|| "-".into());
                let open = OpenOptions {
                    every_row: args.task_args.submission.is_some(),
                    ..columns.open(LabelColumn::Optional)
                };
                let file = Incoming::of(Examples::open(spec, &path, open)?, &path);
                Source::File { file, number: 0 }
            }
            None => {
                let (name, input) = input_of(args)?;
                let lines = Lines::new(input, name.clone(), columns.lossy);
                Source::Lines {
                    lines,
                    path: Path::new(&name).into(),
                    number: 0,
                    pairs,
                }
            }
        })
    }

    /// Whether it is a file of a task.
    pub fn is_file(&self) -> bool {
        matches!(self, Source::File { .. })
    }

    /// Appends some examples; false at the end.
    pub fn chunk(&mut self, examples: &mut Vec<Example>, task: Task) -> Result<bool> {
        match self {
            Source::File { file, number } => {
                let more = file.chunk(examples);
                for example in &mut *examples {
                    // A label is nothing to predict by, and need be none of the model's.
                    example.gold = None;
                }
                *number += examples.len() as u64;
                more
            }
            Source::Lines {
                lines,
                path,
                number,
                pairs,
            } => {
                let mut texts = Vec::new();
                let read = lines.chunk(&mut texts);
                for text in texts {
                    *number += 1;
                    let place = Place {
                        path: path.clone(),
                        line: *number,
                        word: None,
                    };
                    examples.push(example_of(text, place, task, *pairs)?);
                }
                read
            }
        }
    }

    /// Says what was left out or replaced, and whether there was nothing.
    pub fn warn(self) {
        let (Source::File { number, .. } | Source::Lines { number, .. }) = &self;
        if *number == 0 {
            tell!("warning: the input is empty");
        }
        match self {
            Source::File { file, .. } => {
                let file = file.ended();
                if let Some(note) = file.header_note(&[]) {
                    tell!("{note}");
                }
                if file.incomplete() > 0 {
                    tell!(
                        "warning: {} rows lack a text; what is said of them is said of the texts \
                         that they have",
                        file.incomplete()
                    );
                }
                if file.surplus() > 0 {
                    tell!(
                        "warning: {} rows have more cells than the first; these are not read",
                        file.surplus()
                    );
                }
                if file.skipped() > 0 {
                    tell!(
                        "warning: {} rows were left out as incomplete",
                        file.skipped()
                    );
                }
                if file.invalid_utf8() > 0 {
                    tell!("warning: {} lines had invalid UTF-8", file.invalid_utf8());
                }
            }
            Source::Lines { lines, .. } => {
                report_invalid(lines.invalid_utf8());
            }
        }
    }
}

/// The example of a line: its texts are divided by tabs.
fn example_of(line: String, place: Place, task: Task, pairs: bool) -> Result<Example> {
    let two = |what: &str| -> Result<(String, String)> {
        match line.split_once('\t') {
            Some((first, second)) => Ok((first.to_owned(), second.to_owned())),
            None => bail!("{place}: no tab; expected {what}"),
        }
    };
    let input = match task {
        Task::Answer => {
            let (question, context) = two("a question, a tab and the text")?;
            Input::Question {
                title: "".into(),
                question,
                context: context.into(),
            }
        }
        Task::Choose => {
            let (first, choices) = two("a beginning and what may follow it, divided by tabs")?;
            let choices: Vec<String> = choices.split('\t').map(String::from).collect();
            Input::Choices { first, choices }
        }
        Task::Classify if pairs => {
            let (first, second) = two("two texts with a tab between them")?;
            Input::Text {
                first,
                second: Some(second),
            }
        }
        _ => Input::Text {
            first: line,
            second: None,
        },
    };
    Ok(Example {
        id: (place.line - 1).to_string(),
        place,
        lines: Vec::new(),
        input,
        gold: None,
    })
}
