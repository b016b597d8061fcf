//! `--as tag`: spans of running text, or a tag for each word of a file that has words.

use super::tasks::{Answerer, Session};
use anyhow::Result;
use electra_data::tasks::tagging::{
    Aggregation, Asked, Entity, TaggedSpan, TaggedText, entities, of_entities,
};
use electra_data::tasks::{Example, Features, Input};
use electra_engine::backend::Backend;
use electra_train::finetune::batch::FeatureOutput;
use electra_train::finetune::model::rows;
use electra_train::finetune::score::tags_of;
use serde::Serialize;
use std::io::Write;

/// A tagger at work.
pub struct Tag;

#[derive(Serialize)]
struct SpansLine<'a> {
    text: &'a str,
    entities: &'a [TaggedSpan],
}

#[derive(Serialize)]
struct WordsLine<'a> {
    tokens: &'a [String],
    tags: &'a [&'a str],
    /// Where tags are of entities.
    #[serde(skip_serializing_if = "Option::is_none")]
    entities: Option<Vec<Entity>>,
}

impl<B: Backend> Answerer<B> for Tag {
    fn answer(
        &mut self,
        backend: &mut B,
        session: &mut Session<B>,
        examples: &[Example],
        out: &mut dyn Write,
    ) -> Result<()> {
        let mut texts: Vec<Option<TaggedText>> = Vec::with_capacity(examples.len());
        let mut features: Vec<Features> = Vec::new();
        let mut counts = Vec::with_capacity(examples.len());
        for (number, example) in examples.iter().enumerate() {
            let before = features.len();
            match &example.input {
                Input::Text { first, .. } => {
                    let asked = match session.crf {
                        true => Asked::Words,
                        false => Asked::Tokens,
                    };
                    let text = TaggedText::new(&session.featurizer, number, first, asked)?;
                    session.check_long(example, text.features().len())?;
                    features.extend_from_slice(text.features());
                    texts.push(Some(text));
                }
                _ => {
                    features.extend(session.features(std::slice::from_ref(example))?);
                    texts.push(None);
                }
            }
            counts.push(features.len() - before);
        }
        let (head, tokens) = (session.head, session.batch_tokens);
        let outputs = session.model.outputs(backend, head, &features, tokens)?;
        let mut rest = outputs.each.as_slice();
        for ((example, text), count) in examples.iter().zip(&texts).zip(counts) {
            let (own, others) = rest.split_at(count);
            rest = others;
            match (&example.input, text) {
                (Input::Text { first, .. }, Some(text)) => {
                    write_spans(session, first, text, own, out)?;
                }
                (Input::Words(words), _) => write_words(session, words, own, out)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn write_spans<B: Backend>(
    session: &Session<B>,
    text: &str,
    tagged: &TaggedText,
    outputs: &[FeatureOutput],
    out: &mut dyn Write,
) -> Result<()> {
    let labels = session.labels();
    let by_path = outputs.iter().any(|output| output.tags.is_some());
    // What a conditional random field decides has its marginal probability; the others share the
    // rest, and none has more.
    let decided: Vec<Vec<f32>> = outputs
        .iter()
        .flat_map(|output| output.tags.iter().flatten())
        .map(|decision| {
            let others = (labels.len() - 1).max(1) as f64;
            let each = ((1.0 - decision.probability) / others).min(0.999 * decision.probability);
            let mut row = vec![each.ln() as f32; labels.len()];
            row[decision.tag as usize] = decision.probability.ln() as f32;
            row
        })
        .collect();
    let logits: Vec<&[f32]> = match by_path {
        true => decided.iter().map(Vec::as_slice).collect(),
        false => outputs
            .iter()
            .flat_map(|output| rows(output, labels.len()))
            .collect(),
    };
    let name = &session.options().aggregation;
    let aggregation = Aggregation::by_name(name).unwrap_or_default();
    let spans = tagged.spans(&logits, labels, aggregation);
    if session.args.json {
        let line = SpansLine {
            text,
            entities: &spans,
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
        return Ok(());
    }
    for s in &spans {
        let (label, word) = (&s.label, &s.word);
        writeln!(
            out,
            "{:.4}\t{}\t{}\t{label}\t{word}",
            s.score, s.start, s.end
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn write_words<B: Backend>(
    session: &Session<B>,
    words: &[String],
    outputs: &[FeatureOutput],
    out: &mut dyn Write,
) -> Result<()> {
    let labels = session.labels();
    let tags: Vec<&str> = outputs
        .iter()
        .flat_map(|output| tags_of(output, labels.len()))
        .map(|tag| labels.names()[tag as usize].as_str())
        .collect();
    if session.args.json {
        let line = WordsLine {
            tokens: words,
            entities: of_entities(labels.names()).then(|| entities(&tags)),
            tags: &tags,
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
        return Ok(());
    }
    for (word, tag) in words.iter().zip(&tags) {
        writeln!(out, "{word}\t{tag}")?;
    }
    writeln!(out)?;
    Ok(())
}
