//! `--as choose`: which of several texts follows a beginning.

use super::tasks::{Answerer, Session};
use anyhow::Result;
use electra_data::tasks::Example;
use electra_data::tasks::classification::{argmax, softmax};
use electra_engine::backend::Backend;
use serde::Serialize;
use std::io::Write;

/// A chooser at work.
pub struct Choose;

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    /// From 0.
    choice: u32,
    scores: &'a [f64],
}

impl<B: Backend> Answerer<B> for Choose {
    fn answer(
        &mut self,
        backend: &mut B,
        session: &mut Session<B>,
        examples: &[Example],
        out: &mut dyn Write,
    ) -> Result<()> {
        let features = session.features(examples)?;
        let (head, tokens) = (session.head, session.batch_tokens);
        let outputs = session.model.outputs(backend, head, &features, tokens)?;
        for (example, output) in examples.iter().zip(&outputs.each) {
            let (choice, scores) = (argmax(&output.logits), softmax(&output.logits));
            if session.args.json {
                let line = Line {
                    id: &example.id,
                    choice,
                    scores: &scores,
                };
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
            } else {
                writeln!(out, "{choice}\t{:.4}", scores[choice as usize])?;
            }
        }
        Ok(())
    }
}
