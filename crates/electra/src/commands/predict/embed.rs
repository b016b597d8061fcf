//! `--as embed`: a vector for each text.

use super::Pooling;
use super::tasks::{Answerer, Session};
use anyhow::Result;
use electra_data::tasks::{Example, Input};
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use serde::Serialize;
use std::io::Write;

/// An encoder at work.
pub struct Embed;

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    embedding: &'a [f32],
}

impl<B: Backend> Answerer<B> for Embed {
    fn answer(
        &mut self,
        backend: &mut B,
        session: &mut Session<B>,
        examples: &[Example],
        out: &mut dyn Write,
    ) -> Result<()> {
        let features = session.features(examples)?;
        let mut first = 0;
        while first < features.len() {
            let mut batch = PackedBatch::new();
            let mut end = first;
            while let Some(next) = features.get(end) {
                let sequence = &next.sequences[0];
                let tokens = batch.tokens() + sequence.token_ids.len();
                if end > first && tokens > session.batch_tokens {
                    break;
                }
                batch.push(&sequence.token_ids, &sequence.type_ids);
                end += 1;
            }
            let size = session.model.config().hidden_size;
            let hidden = session.model.hidden_states(backend, &batch);
            for (s, example) in examples[first..end].iter().enumerate() {
                let rows = batch.rows(s);
                let rows = &hidden[rows.start * size..rows.end * size];
                let embedding = pool(rows, size, session.options().pooling);
                let Input::Text { first: text, .. } = &example.input else {
                    continue;
                };
                if session.args.json {
                    let line = Line {
                        text,
                        embedding: &embedding,
                    };
                    writeln!(out, "{}", serde_json::to_string(&line)?)?;
                } else {
                    let numbers: Vec<String> = embedding.iter().map(f32::to_string).collect();
                    writeln!(out, "{}", numbers.join(" "))?;
                }
            }
            first = end;
        }
        Ok(())
    }
}

/// The state of `[CLS]`, or the mean over all tokens, special ones too.
fn pool(rows: &[f32], size: usize, pooling: Pooling) -> Vec<f32> {
    match pooling {
        Pooling::Cls => rows[..size].to_vec(),
        Pooling::Mean => {
            let mut sum = vec![0.0f64; size];
            for row in rows.chunks_exact(size) {
                for (sum, &x) in sum.iter_mut().zip(row) {
                    *sum += f64::from(x);
                }
            }
            let count = (rows.len() / size) as f64;
            sum.into_iter().map(|x| (x / count) as f32).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_takes_the_first_row_or_the_mean_of_all() {
        let rows = [1.0, 2.0, 3.0, 6.0, 5.0, 1.0];
        assert_eq!(pool(&rows, 2, Pooling::Cls), [1.0, 2.0]);
        assert_eq!(pool(&rows, 2, Pooling::Mean), [3.0, 3.0]);
    }
}
