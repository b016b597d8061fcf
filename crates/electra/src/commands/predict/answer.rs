//! `--as answer`: answers to questions out of given texts.

use super::tasks::{Answerer, Session};
use anyhow::Result;
use electra_data::tasks::question::{AnswerOptions, ScoredAnswer, Windows};
use electra_data::tasks::{Example, Features, Input};
use electra_engine::backend::Backend;
use electra_train::finetune::answers::{JOINT_THRESHOLD, answers};
use serde::Serialize;
use std::io::Write;

/// A reader at work.
pub struct AnswerQuestions;

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    question: &'a str,
    answers: &'a [ScoredAnswer],
    #[serde(skip_serializing_if = "Option::is_none")]
    null: Option<f64>,
}

impl<B: Backend> Answerer<B> for AnswerQuestions {
    fn answer(
        &mut self,
        backend: &mut B,
        session: &mut Session<B>,
        examples: &[Example],
        out: &mut dyn Write,
    ) -> Result<()> {
        let mut windows = Vec::with_capacity(examples.len());
        let mut features: Vec<Features> = Vec::new();
        let (featurizer, counts) = session.counts();
        for (number, example) in examples.iter().enumerate() {
            let of_one = Windows::new(featurizer, number, example, counts)?;
            features.extend_from_slice(of_one.features());
            windows.push(of_one);
        }
        for (example, windows) in examples.iter().zip(&windows) {
            session.check_long(example, windows.features().len())?;
        }
        let (head, tokens) = (session.head, session.batch_tokens);
        let outputs = session.model.outputs(backend, head, &features, tokens)?;
        let given = session.options();
        let null = session.unanswerable;
        let top = session.args.top_k.map_or(1, |k| k.get());
        let options = AnswerOptions {
            n_best: top.max(AnswerOptions::default().n_best),
            max_answer_length: given.max_answer_len.get(),
            null,
            whole_words: given.align_to_words,
        };
        let mut rest = outputs.each.as_slice();
        for (example, windows) in examples.iter().zip(&windows) {
            let (own, others) = rest.split_at(windows.features().len());
            rest = others;
            let joint = own.iter().any(|output| output.window.is_some());
            let threshold =
                given
                    .null_threshold
                    .unwrap_or(if joint { JOINT_THRESHOLD } else { 0.0 });
            let found = answers(windows, own, &options);
            let mut best = found.best.clone();
            if null {
                let none = ScoredAnswer {
                    answer: String::new(),
                    score: found.null_probability,
                    start: 0,
                    end: 0,
                };
                // The threshold decides about the first place alone.
                let at = match found.null > threshold {
                    true => 0,
                    false => best.partition_point(|b| b.score >= none.score).max(1),
                };
                best.insert(at.min(best.len()), none);
            }
            best.truncate(top);
            let Input::Question { question, .. } = &example.input else {
                continue;
            };
            if session.args.json {
                let line = Line {
                    id: &example.id,
                    question,
                    answers: &best,
                    null: null.then_some(found.null),
                };
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
                continue;
            }
            let shown: Vec<String> = best
                .iter()
                .map(|a| format!("{}\t{:.4}", a.answer, a.score))
                .collect();
            writeln!(out, "{}", shown.join("\t"))?;
        }
        Ok(())
    }
}
