//! Running text to tagged spans, by the conventions of transformers' token classification pipeline.

use serde::Serialize;

use super::features::{Shown, shown_words};
use crate::tasks::classification::{argmax, softmax};
use crate::tasks::featurizer::Featurizer;
use crate::tasks::{Features, LabelSet, Sequence, TaskError};

/// How tokens become spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// Each token by itself.
    None,
    /// Neighbouring tokens of one kind are one span, wherever words begin.
    #[default]
    Simple,
    /// A word has the label of its first token.
    First,
    /// A word has the label that is likeliest in the mean over its tokens.
    Average,
    /// A word has the label of the token that is surest.
    Max,
}

impl Aggregation {
    /// The names, as transformers has them.
    pub const NAMES: [&str; 5] = ["none", "simple", "first", "average", "max"];

    /// The strategy of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Aggregation::None,
            "simple" => Aggregation::Simple,
            "first" => Aggregation::First,
            "average" => Aggregation::Average,
            "max" => Aggregation::Max,
            _ => return None,
        })
    }
}

/// A run of text with a label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaggedSpan {
    /// The label; without its prefix where tokens were put together.
    pub label: String,
    /// Its probability; the mean over what was put together.
    pub score: f64,
    /// Its tokens as one text, in the form that the tokenizer gave them.
    pub word: String,
    /// First character in the text.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

struct Token {
    piece: String,
    start: usize,
    end: usize,
    /// Whether it goes on with the word of the token before.
    inside: bool,
}

/// Which tokens a network is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// All of them.
    Tokens,
    /// The first of each word, as in training: what decides by the tags of neighbours must see
    /// words.
    Words,
}

/// A text to be tagged, as the network sees it.
pub struct TaggedText {
    tokens: Vec<Token>,
    asked: Asked,
    features: Vec<Features>,
}

impl TaggedText {
    /// Tokens and windows of a text. `Features::words` are the tokens that are asked for, each in
    /// one window.
    ///
    /// # Errors
    /// None that a text is known to cause.
    pub fn new(
        featurizer: &Featurizer,
        number: usize,
        text: &str,
        asked: Asked,
    ) -> Result<Self, TaskError> {
        let special = featurizer.tokenizer.special();
        let spans = featurizer.tokenizer.encode_with_offsets(text)?;
        let mut characters = text.chars();
        let mut at = 0;
        let tokens: Vec<Token> = spans
            .iter()
            .map(|span| {
                characters
                    .by_ref()
                    .take(span.start.saturating_sub(at))
                    .for_each(drop);
                // Spans may share characters where one was normalised to several.
                at = at.max(span.start);
                let length = span.end - span.start;
                let known = featurizer.tokenizer.token(span.id).unwrap_or_default();
                let unknown = span.id == special.unk;
                let piece = if unknown {
                    characters.clone().take(length).collect()
                } else {
                    known.to_owned()
                };
                Token {
                    inside: !unknown && piece.chars().count() != length,
                    piece,
                    start: span.start,
                    end: span.end,
                }
            })
            .collect();
        let room = featurizer.options.max_seq_length - 2;
        // Windows are cut between words; a word longer than a window is cut itself.
        let mut begins = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            if !token.inside || begins.last().is_none_or(|&b| i - b == room) {
                begins.push(i);
            }
        }
        begins.push(tokens.len());
        let features = shown_words(&begins, room)
            .into_iter()
            .map(
                |Shown {
                     first,
                     last,
                     from,
                     to,
                 }| {
                    let mut sequence = Sequence::default();
                    sequence.token_ids.push(special.cls);
                    let seen = begins[first]..begins[last];
                    sequence
                        .token_ids
                        .extend(spans[seen.clone()].iter().map(|s| s.id));
                    sequence.token_ids.push(special.sep);
                    let segment = featurizer.options.tagged_segment;
                    sequence.type_ids = vec![segment; sequence.token_ids.len()];
                    Features {
                        example: number,
                        sequences: vec![sequence],
                        words: (begins[from]..begins[to])
                            .filter(|&t| asked == Asked::Tokens || begins_word(&tokens, t))
                            .map(|t| (t - seen.start + 1) as u32)
                            .collect(),
                        context: 0..0,
                        target: None,
                    }
                },
            )
            .collect();
        Ok(TaggedText {
            tokens,
            asked,
            features,
        })
    }

    /// What the network sees: one sequence a window.
    pub fn features(&self) -> &[Features] {
        &self.features
    }

    /// The spans that are not `O`. `logits` are those of all windows' words in order, `[tokens]`
    /// of `[labels]` each; where words were asked for, a word's hold for all its tokens.
    ///
    /// # Panics
    /// If there are not as many as were asked for, or as many in each as labels.
    pub fn spans(
        &self,
        logits: &[&[f32]],
        labels: &LabelSet,
        aggregation: Aggregation,
    ) -> Vec<TaggedSpan> {
        let logits = match self.asked {
            Asked::Tokens => logits.to_vec(),
            Asked::Words => {
                let mut words = logits.iter();
                let mut own: &[f32] = &[];
                let mut of_token = |t| {
                    if begins_word(&self.tokens, t) {
                        own = words.next().copied().unwrap_or_default();
                    }
                    own
                };
                (0..self.tokens.len()).map(&mut of_token).collect()
            }
        };
        assert_eq!(logits.len(), self.tokens.len(), "logits a token");
        let scores: Vec<Vec<f64>> = logits
            .iter()
            .map(|logits| {
                assert_eq!(logits.len(), labels.len(), "logits a label");
                softmax(logits)
            })
            .collect();
        // What was asked of words is said of words, by whatever strategy.
        let by_token = self.asked == Asked::Tokens
            && matches!(aggregation, Aggregation::None | Aggregation::Simple);
        let mut words: Vec<TaggedSpan> = Vec::new();
        let mut from = 0;
        while from < self.tokens.len() {
            let inside = |t: &Token| t.inside && !by_token;
            let more = self.tokens[from + 1..].iter().take_while(|t| inside(t));
            let to = from + 1 + more.count();
            let (label, score) = word_label(&scores[from..to], aggregation);
            words.push(TaggedSpan {
                label: labels.names()[label].clone(),
                score,
                word: self.text(from..to, by_token && aggregation == Aggregation::None),
                start: self.tokens[from].start,
                end: self.tokens[to - 1].end,
            });
            from = to;
        }
        if aggregation == Aggregation::None {
            words.retain(|word| word.label != "O");
            return words;
        }
        let mut found = Vec::new();
        for group in words.chunk_by(|a, b| {
            let ((_, kind), (begins, next)) = (kind(&a.label), kind(&b.label));
            kind == next && !begins
        }) {
            let label = group[0].label.split_once('-');
            let label = label.map_or(group[0].label.as_str(), |(_, kind)| kind);
            if label == "O" {
                continue;
            }
            let pieces: Vec<&str> = group.iter().map(|w| w.word.as_str()).collect();
            found.push(TaggedSpan {
                label: label.to_owned(),
                score: group.iter().map(|w| w.score).sum::<f64>() / group.len() as f64,
                word: joined(&pieces),
                start: group[0].start,
                end: group[group.len() - 1].end,
            });
        }
        found
    }

    fn text(&self, tokens: std::ops::Range<usize>, raw: bool) -> String {
        let pieces: Vec<&str> = self.tokens[tokens]
            .iter()
            .map(|t| t.piece.as_str())
            .collect();
        // A lone token keeps its mark until spans are put together.
        if raw || pieces.len() == 1 {
            pieces.concat()
        } else {
            joined(&pieces)
        }
    }
}

/// Whether token `t` is the first of a word.
fn begins_word(tokens: &[Token], t: usize) -> bool {
    t == 0 || !tokens[t].inside
}

/// Whether a label begins an entity, and of which kind it is.
fn kind(label: &str) -> (bool, &str) {
    match (label.strip_prefix("B-"), label.strip_prefix("I-")) {
        (Some(kind), _) => (true, kind),
        (_, Some(kind)) => (false, kind),
        _ => (false, label),
    }
}

/// The label of a word of these tokens, `[tokens][labels]`, and its probability.
fn word_label(scores: &[Vec<f64>], aggregation: Aggregation) -> (usize, f64) {
    let best = |scores: &[f64]| {
        let mut best = 0;
        for (i, &score) in scores.iter().enumerate() {
            if score > scores[best] {
                best = i;
            }
        }
        (best, scores[best])
    };
    match aggregation {
        Aggregation::Average => {
            let mut mean = vec![0.0; scores[0].len()];
            for token in scores {
                for (sum, score) in mean.iter_mut().zip(token) {
                    *sum += score / scores.len() as f64;
                }
            }
            best(&mean)
        }
        Aggregation::Max => {
            let mut surest = best(&scores[0]);
            for token in &scores[1..] {
                let this = best(token);
                if this.1 > surest.1 {
                    surest = this;
                }
            }
            surest
        }
        _ => best(&scores[0]),
    }
}

/// WordPiece tokens as one text, as the library's decoder joins them.
fn joined(pieces: &[&str]) -> String {
    let mut text = String::new();
    for (i, piece) in pieces.iter().enumerate() {
        match piece.strip_prefix("##") {
            Some(rest) if i > 0 => text.push_str(rest),
            _ => {
                if i > 0 && !piece.starts_with(['.', '?', '!', ',']) {
                    text.push(' ');
                }
                text.push_str(piece);
            }
        }
    }
    text
}

/// The likeliest label of each word. `logits: [words][labels]`.
pub fn word_tags(logits: &[&[f32]], labels: &LabelSet) -> Vec<String> {
    logits
        .iter()
        .map(|logits| labels.names()[argmax(logits) as usize].clone())
        .collect()
}
