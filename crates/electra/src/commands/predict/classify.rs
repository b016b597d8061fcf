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
#[derive(Default)]
pub struct Classify {
    begun: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    about: About<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a [Scored]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f32>,
}

/// What an answer is about.
#[derive(Serialize)]
struct About<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_pair: Option<&'a str>,
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
            if let Some(spec) = session
                .spec
                .as_ref()
                .filter(|_| session.options().submission.is_some())
            {
                // A header before the first line, and none of its own for the others.
                let mut lines = Vec::new();
                let mut submission = Submission::new(spec, &mut lines)?;
                match (value, scored.first()) {
                    (Some(value), _) => submission.value(&example.id, value.into())?,
                    (None, Some(best)) => submission.label(&example.id, &best.label)?,
                    (None, None) => {}
                }
                submission.finish()?;
                let header = lines
                    .iter()
                    .position(|&b| b == b'\n')
                    .map_or(0, |at| at + 1);
                out.write_all(&lines[if self.begun { header } else { 0 }..])?;
                self.begun = true;
                continue;
            }
            if session.args.json {
                let (text, text_pair) = match &example.input {
                    Input::Text { first, second } => (first.as_str(), second.as_deref()),
                    _ => ("", None),
                };
                let line = Line {
                    about: About {
                        id: session.spec.as_ref().map(|_| example.id.as_str()),
                        text,
                        text_pair,
                    },
                    labels: value.is_none().then_some(&scored),
                    value,
                };
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
                continue;
            }
            let shown: Vec<String> = match value {
                Some(value) => vec![format!("{value:.4}")],
                None => scored
                    .iter()
                    .map(|s| format!("{}\t{:.4}", s.label, s.score))
                    .collect(),
            };
            writeln!(out, "{}", shown.join("\t"))?;
        }
        Ok(())
    }
}
