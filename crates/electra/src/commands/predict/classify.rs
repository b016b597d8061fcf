//! `--as classify`: the likeliest classes of texts, the labels that hold, or a number.

use super::tasks::{Answerer, Session};
use anyhow::Result;
use electra_data::tasks::classification::{Scored, classes, labels};
use electra_data::tasks::submission::Submission;
use electra_data::tasks::{Example, Input};
use electra_engine::backend::Backend;
use electra_model::heads::HeadKind;
use serde::Serialize;
use std::io::Write;

/// A classifier at work.
pub struct Classify {
    submission: Option<Submission>,
}

impl Classify {
    /// Begins its output: of a submission that has a header.
    pub fn begin(submission: Option<Submission>, out: &mut dyn Write) -> Result<Self> {
        if submission.is_some() {
            writeln!(out, "{}", Submission::HEADER)?;
        }
        Ok(Classify { submission })
    }
}

/// What is said of a text.
#[derive(Serialize)]
pub struct TextLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_pair: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a [Scored]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f32>,
}

impl<'a> TextLine<'a> {
    /// A line about an example, with what it is called or without.
    pub fn new(example: &'a Example, with_id: bool) -> Self {
        let (text, text_pair) = match &example.input {
            Input::Text { first, second } => (first.as_str(), second.as_deref()),
            _ => ("", None),
        };
        TextLine {
            id: with_id.then_some(example.id.as_str()),
            text,
            text_pair,
            labels: None,
            value: None,
        }
    }

    /// With labels and their probabilities.
    pub fn labels(self, labels: &'a [Scored]) -> Self {
        TextLine {
            labels: Some(labels),
            ..self
        }
    }

    /// With a number.
    fn value(self, value: f32) -> Self {
        TextLine {
            value: Some(value),
            ..self
        }
    }
}

/// Labels and their probabilities, with tabs between.
pub fn shown(scored: &[Scored]) -> String {
    let each = scored
        .iter()
        .map(|s| format!("{}\t{:.4}", s.label, s.score));
    each.collect::<Vec<_>>().join("\t")
}

impl<B: Backend> Answerer<B> for Classify {
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
        let top = session.args.top_k.map_or(1, |k| k.get());
        for (example, output) in examples.iter().zip(&outputs.each) {
            let logits = &output.logits;
            let value = (session.kind == HeadKind::Regression).then(|| logits[0]);
            let scored = match session.kind {
                HeadKind::Regression => Vec::new(),
                HeadKind::MultiLabel => labels(session.labels(), logits, top),
                _ => classes(session.labels(), logits, top),
            };
            if let Some(submission) = &self.submission {
                let line = match (value, scored.first()) {
                    (Some(value), _) => submission.value(&example.id, value.into()),
                    (None, Some(best)) => submission.label(&example.id, &best.label),
                    (None, None) => continue,
                };
                writeln!(out, "{line}")?;
                continue;
            }
            let line = TextLine::new(example, session.spec.is_some());
            let line = match (session.args.json, value) {
                (true, Some(value)) => serde_json::to_string(&line.value(value))?,
                (true, None) => serde_json::to_string(&line.labels(&scored))?,
                (false, Some(value)) => format!("{value:.4}"),
                (false, None) => shown(&scored),
            };
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}
