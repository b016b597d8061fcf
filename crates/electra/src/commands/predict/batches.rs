//! Texts to packed batches of like length, and the answers back in the order of the texts.

use super::Text;
use anyhow::Result;
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use std::io::Write;

/// A model with a head that answers about tokens.
pub trait Head<B: Backend> {
    /// About one token.
    type Answer;

    /// Whether the answer about a token of this id is wanted.
    fn asks(&self, id: u32) -> bool;
    /// One answer for each of `rows` of the batch.
    fn answer(
        &mut self,
        backend: &mut B,
        batch: &PackedBatch,
        rows: &[u32],
    ) -> Result<Vec<Self::Answer>>;
    /// Writes the answers about one text.
    fn write(
        &mut self,
        out: &mut dyn Write,
        text: &Text,
        asked: Vec<Asked<Self::Answer>>,
    ) -> Result<()>;
    /// Says on stderr what is to be said at the end about all texts.
    fn warn(&self, texts: u64);
}

/// A token that was asked about.
#[derive(Debug)]
pub struct Asked<A> {
    /// Its number in the text.
    pub token: usize,
    /// The answer; none where the token was cut off.
    pub answer: Option<A>,
}

/// A window of a text that holds tokens asked about.
struct Piece {
    text: usize,
    window: usize,
    /// The first and one past the last of the text's tokens asked about that count here.
    asked: std::ops::Range<usize>,
}

/// The answers about each text, computed in batches of about `budget` tokens.
pub fn answer<B: Backend, H: Head<B>>(
    backend: &mut B,
    head: &mut H,
    tokenizer: &Tokenizer,
    texts: &[Text],
    budget: usize,
) -> Result<Vec<Vec<Asked<H::Answer>>>> {
    let mut answers: Vec<Vec<Asked<H::Answer>>> = texts
        .iter()
        .map(|text| {
            let tokens = text.tokens.iter().enumerate();
            tokens
                .filter(|(_, span)| head.asks(span.id))
                .map(|(token, _)| Asked {
                    token,
                    answer: None,
                })
                .collect()
        })
        .collect();
    let mut pieces = Vec::new();
    for (text, asked) in answers.iter().enumerate() {
        for (window, w) in texts[text].windows.iter().enumerate() {
            let first = asked.partition_point(|a| a.token < w.counted.start);
            let end = asked.partition_point(|a| a.token < w.counted.end);
            if first < end {
                let asked = first..end;
                pieces.push(Piece {
                    text,
                    window,
                    asked,
                });
            }
        }
    }
    let length = |p: &Piece| texts[p.text].windows[p.window].seen.len();
    pieces.sort_by_key(|p| std::cmp::Reverse(length(p)));

    let special = tokenizer.special();
    let mut batch = PackedBatch::new();
    let (mut rows, mut first) = (Vec::new(), 0);
    let mut ids = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let text = &texts[piece.text];
        let seen = text.windows[piece.window].seen.clone();
        let base = batch.tokens() + 1;
        ids.clear();
        ids.push(special.cls);
        ids.extend(text.tokens[seen.clone()].iter().map(|span| span.id));
        ids.push(special.sep);
        batch.push(&ids, &vec![0; ids.len()]);
        let asked = &answers[piece.text][piece.asked.clone()];
        rows.extend(asked.iter().map(|a| (base + a.token - seen.start) as u32));

        let full = batch.tokens() + pieces.get(i + 1).map_or(budget, |p| length(p) + 2) > budget;
        if full || i + 1 == pieces.len() {
            let mut found = head.answer(backend, &batch, &rows)?.into_iter();
            for piece in &pieces[first..=i] {
                for asked in &mut answers[piece.text][piece.asked.clone()] {
                    asked.answer = found.next();
                }
            }
            batch.clear();
            rows.clear();
            first = i + 1;
        }
    }
    Ok(answers)
}
