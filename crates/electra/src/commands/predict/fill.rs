//! `--as fill`: the most probable tokens for each mask.

use super::{Asked, Head, Text};
use anyhow::Result;
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_model::files::ModelDir;
use electra_model::inference::{Candidate, Filler, FillerWorkspace};
use serde::Serialize;
use std::io::Write;

/// A generator at work.
pub struct Fill<'a, B: Backend> {
    filler: Filler<B>,
    workspace: FillerWorkspace,
    tokenizer: &'a Tokenizer,
    top_k: usize,
    json: bool,
    without_mask: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    masks: Vec<Vec<Filling<'a>>>,
}

/// A token and its probability.
#[derive(Serialize)]
struct Filling<'a> {
    token: &'a str,
    score: f32,
}

impl<'a, B: Backend> Fill<'a, B> {
    /// Takes the generator to the backend.
    pub fn load(
        backend: &mut B,
        dir: &ModelDir,
        tokenizer: &'a Tokenizer,
        top_k: usize,
        json: bool,
    ) -> Result<Self> {
        Ok(Fill {
            filler: Filler::load(backend, dir)?,
            workspace: FillerWorkspace::default(),
            tokenizer,
            top_k,
            json,
            without_mask: 0,
        })
    }
}

impl<B: Backend> Head<B> for Fill<'_, B> {
    type Answer = Vec<Candidate>;

    fn asks(&self, id: u32) -> bool {
        id == self.tokenizer.special().mask
    }

    fn answer(
        &mut self,
        backend: &mut B,
        batch: &PackedBatch,
        rows: &[u32],
    ) -> Result<Vec<Vec<Candidate>>> {
        let vocabulary = self.tokenizer.vocab_size();
        let workspace = &mut self.workspace;
        Ok(self
            .filler
            .fill(backend, workspace, batch, rows, self.top_k, vocabulary)?)
    }

    fn write(
        &mut self,
        out: &mut dyn Write,
        text: &Text,
        asked: Vec<Asked<Vec<Candidate>>>,
    ) -> Result<()> {
        if asked.is_empty() {
            self.without_mask += 1;
        }
        let fillings = |asked: &Asked<Vec<Candidate>>| {
            let candidates = asked.answer.iter().flatten();
            candidates
                .map(|c| Filling {
                    token: self.tokenizer.token(c.id).unwrap_or_default(),
                    score: c.log_prob.exp(),
                })
                .collect()
        };
        let masks: Vec<Vec<Filling>> = asked.iter().map(fillings).collect();
        let text = text.text.as_str();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&Line { text, masks })?)?;
            return Ok(());
        }
        writeln!(out, "{text}")?;
        for (number, mask) in masks.iter().enumerate() {
            for filling in mask {
                let number = number + 1;
                writeln!(out, "  {number}\t{:.4}\t{}", filling.score, filling.token)?;
            }
        }
        Ok(())
    }

    fn warn(&self, texts: u64) {
        if self.without_mask > 0 {
            tell!(
                "warning: {} of {texts} texts have no [MASK] to fill",
                self.without_mask
            );
        }
    }
}
