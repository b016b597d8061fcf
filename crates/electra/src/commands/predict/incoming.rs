//! Examples of a task's file as they come: of a pipe those that are there, not those of a whole chunk.

use anyhow::Result;
use electra_data::tasks::{Example, Examples, TaskError};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// Examples that are taken at once, at most.
const CHUNK: usize = 256;

/// The examples of a file or of standard input.
pub enum Incoming {
    /// All of them can be read at once.
    File(Box<Examples>),
    /// A thread reads on while what has come is answered.
    Pipe {
        examples: Receiver<Result<Example, TaskError>>,
        reader: JoinHandle<Examples>,
    },
}

impl Incoming {
    /// What is read from `path`.
    pub fn of(mut examples: Examples, path: &Path) -> Self {
        if path != Path::new("-") {
            return Incoming::File(Box::new(examples));
        }
        let (sender, receiver) = sync_channel(CHUNK);
        let reader = std::thread::spawn(move || {
            for example in &mut examples {
                if sender.send(example).is_err() {
                    break;
                }
            }
            examples
        });
        Incoming::Pipe {
            examples: receiver,
            reader,
        }
    }

    /// Appends some examples; waits for the first of them alone. False at the end. The examples before
    /// an error are in `examples`.
    ///
    /// # Errors
    /// What is wrong with the next example.
    pub fn chunk(&mut self, examples: &mut Vec<Example>) -> Result<bool> {
        match self {
            Incoming::File(file) => {
                for example in file.take(CHUNK) {
                    examples.push(example?);
                }
                Ok(examples.len() == CHUNK)
            }
            Incoming::Pipe { examples: pipe, .. } => {
                let first = pipe.recv().into_iter();
                for example in first.chain(pipe.try_iter()).take(CHUNK) {
                    examples.push(example?);
                }
                Ok(!examples.is_empty())
            }
        }
    }

    /// What was read, at the end: it has counted what was left out or replaced.
    pub fn ended(self) -> Examples {
        match self {
            Incoming::File(file) => *file,
            Incoming::Pipe { reader, .. } => match reader.join() {
                Ok(examples) => examples,
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}
