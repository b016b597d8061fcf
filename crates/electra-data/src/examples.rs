//! Examples by number, made from the shards when they are read, at any length.
//!
//! [`Builder::Runs`]: each document in runs of `max_seq_length - 2` tokens between `[CLS]` and
//! `[SEP]`; the last run of a document is short; nothing crosses documents.
//!
//! [`Builder::TwoSegments`]: the reference's builder (`build_pretraining_dataset.py`). Lines are
//! sentences. They are gathered until they reach the target length, which is `max_seq_length`, or
//! with probability 0.05 uniform from 5 to it; with probability 0.1 all are one segment, else the
//! first ones, up to about half the target, are segment A (type 0) and the others B (type 1), as
//! `[CLS] A [SEP] B [SEP]`. Two things differ. What does not fit goes on into the next example
//! instead of being dropped. And once B has begun, later sentences stay in B, so that text keeps
//! its order (the reference lets a short one return to A). The random numbers are a function of
//! (seed, document).

use std::sync::Arc;

use electra_engine::batch::PackedBatch;
use electra_engine::rng::{Purpose, Rng};
use thiserror::Error;

use crate::held_out::{HeldOut, HeldOutSet};
use crate::shards::{Corpus, Shard, ShardError};
use crate::tokenizer::SpecialIds;

/// Examples between two remembered places; what a lookup walks at most.
const STRIDE: u64 = 16;
/// Shortest target length, as in the reference.
const SHORTEST: usize = 5;

/// What can go wrong with examples.
#[derive(Debug, Error)]
pub enum ExampleError {
    /// The shards.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A length without room for text.
    #[error("max_seq_length is {0}; examples need at least 5 tokens, [CLS] and [SEP] included")]
    Length(usize),
    /// An example that there is not.
    #[error("example {number} of {count}")]
    Number {
        /// Which.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// A part that cannot be held out.
    #[error(
        "cannot hold out {held_out:?} of {documents} documents: give a fraction from 0 to below 1, or fewer documents than there are"
    )]
    HeldOut {
        /// What was asked for.
        held_out: HeldOut,
        /// How many there are.
        documents: u64,
    },
    /// Fewer examples than one batch takes.
    #[error(
        "the corpus is too small for one batch: {have} {unit}, but a batch takes {need}; give more text, a smaller batch or a smaller held-out part"
    )]
    TooSmall {
        /// What there is.
        have: u64,
        /// What a batch takes.
        need: u64,
        /// `examples` or `tokens`.
        unit: &'static str,
    },
    /// A batch that no example fits.
    #[error(
        "a batch of {budget} tokens holds no example of {max_seq_length}; raise the batch or lower max_seq_length"
    )]
    Budget {
        /// Tokens a batch.
        budget: usize,
        /// Tokens of the longest example.
        max_seq_length: usize,
    },
}

/// How documents become examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Builder {
    /// Runs within a document.
    #[default]
    Runs,
    /// The reference's two segments.
    TwoSegments,
}

/// Which documents examples are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those to train on.
    Train,
    /// Those held out.
    HeldOut,
}

/// How examples are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExampleOptions {
    /// Tokens of the longest example, special ones included.
    pub max_seq_length: usize,
    /// The builder.
    pub builder: Builder,
    /// What is held out. Of a corpus that is one document, its last examples are.
    pub held_out: HeldOut,
    /// Seed of the held-out set and of the two-segment builder.
    pub seed: u64,
}

/// Tokens of one example in their shard: segment A, and segment B behind it, perhaps empty.
#[derive(Clone, Copy, Debug)]
struct Span {
    shard: usize,
    start: u64,
    split: u64,
    end: u64,
}

impl Span {
    /// Tokens with the special ones.
    fn length(&self) -> usize {
        let specials = if self.end > self.split { 3 } else { 2 };
        (self.end - self.start) as usize + specials
    }
}

/// A place between two examples.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The document, and its shard.
    document: u64,
    shard: usize,
    /// Next token, and one past the document's last.
    token: u64,
    end: u64,
    /// The line of the next token.
    line: u64,
    /// Random numbers drawn in this document.
    draws: u32,
}

/// The examples of a corpus, or of its held-out part.
#[derive(Debug)]
pub struct Examples {
    corpus: Arc<Corpus>,
    special: SpecialIds,
    options: ExampleOptions,
    split: Split,
    held_out: HeldOutSet,
    rng: Rng,
    /// The place before every [`STRIDE`]th example.
    places: Vec<Place>,
    /// The examples that are ours, of all that the places count.
    range: std::ops::Range<u64>,
    longest: usize,
    tokens: u64,
}

impl Examples {
    /// Goes through the documents once and counts their examples.
    ///
    /// # Errors
    /// A length below 5; a held-out part that cannot be.
    pub fn new(
        corpus: Arc<Corpus>,
        special: SpecialIds,
        options: ExampleOptions,
        split: Split,
    ) -> Result<Self, ExampleError> {
        if options.max_seq_length < SHORTEST {
            return Err(ExampleError::Length(options.max_seq_length));
        }
        let documents = corpus.documents();
        let nothing = matches!(
            options.held_out,
            HeldOut::None | HeldOut::Documents(0) | HeldOut::Fraction(0.0)
        );
        let by_tail = documents == 1 && !nothing;
        let held_out = if by_tail {
            // Checks the request as for two documents.
            HeldOutSet::new(2, options.held_out, options.seed).or_else(|e| {
                match options.held_out {
                    HeldOut::Documents(_) => HeldOutSet::new(1, HeldOut::None, 0),
                    _ => Err(e),
                }
            })?
        } else {
            HeldOutSet::new(documents, options.held_out, options.seed)?
        };
        let mut examples = Examples {
            corpus,
            special,
            options,
            split,
            held_out,
            rng: Rng::new(options.seed, 0),
            places: Vec::new(),
            range: 0..0,
            longest: 0,
            tokens: 0,
        };
        examples.count(by_tail)?;
        Ok(examples)
    }

    /// Fills in places, range and sizes.
    fn count(&mut self, by_tail: bool) -> Result<(), ExampleError> {
        let all = by_tail;
        let mut count = 0;
        let mut lengths = Vec::new();
        let mut place = self.enter_from(0, all);
        loop {
            let before = place;
            let Some(span) = self.step(&mut place, all) else {
                break;
            };
            if count % STRIDE == 0 {
                self.places.push(before);
            }
            if by_tail {
                lengths.push(span.length());
            }
            self.longest = self.longest.max(span.length());
            self.tokens += span.length() as u64;
            count += 1;
        }
        self.range = 0..count;
        if by_tail {
            let held = match self.options.held_out {
                HeldOut::None => 0,
                HeldOut::Fraction(fraction) => (fraction * count as f64).round() as u64,
                HeldOut::Documents(documents) => documents,
            };
            if count < 2 {
                return Err(ExampleError::TooSmall {
                    have: count,
                    need: 2,
                    unit: "examples",
                });
            }
            let cut = count - held.clamp(1, count - 1);
            self.range = match self.split {
                Split::Train => 0..cut,
                Split::HeldOut => cut..count,
            };
            let ours = &lengths[self.range.start as usize..self.range.end as usize];
            self.longest = ours.iter().copied().max().unwrap_or(0);
            self.tokens = ours.iter().map(|&length| length as u64).sum();
        }
        Ok(())
    }

    /// Number of examples.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Tokens of all examples together, special ones included.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens of the longest example, special ones included.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// How the examples are made.
    pub fn options(&self) -> &ExampleOptions {
        &self.options
    }

    /// The shards.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The special tokens' ids.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// Tokens of example `number`, special ones included.
    ///
    /// # Errors
    /// A number that is not below [`Examples::len`].
    pub fn length(&self, number: u64) -> Result<usize, ExampleError> {
        Ok(self.span(number)?.length())
    }

    /// Appends example `number` to `batch`.
    ///
    /// # Errors
    /// A number that is not below [`Examples::len`]; a token that the vocabulary does not have.
    pub fn append(&self, number: u64, batch: &mut PackedBatch) -> Result<(), ExampleError> {
        let span = self.span(number)?;
        let shard = &self.corpus.shards()[span.shard];
        let vocab_size = self.corpus.vocab_size();
        let mut ids = Vec::with_capacity(span.length());
        ids.push(self.special.cls);
        shard.read(span.start..span.split, vocab_size, &mut ids)?;
        ids.push(self.special.sep);
        let mut types = vec![0; ids.len()];
        if span.end > span.split {
            shard.read(span.split..span.end, vocab_size, &mut ids)?;
            ids.push(self.special.sep);
            types.resize(ids.len(), 1);
        }
        batch.push(&ids, &types);
        Ok(())
    }

    fn span(&self, number: u64) -> Result<Span, ExampleError> {
        let wrong = ExampleError::Number {
            number,
            count: self.len(),
        };
        if number >= self.len() {
            return Err(wrong);
        }
        let number = number + self.range.start;
        let all = self.corpus.documents() == 1;
        let Some(mut place) = self.places.get((number / STRIDE) as usize).copied() else {
            return Err(wrong);
        };
        for _ in 0..number % STRIDE {
            self.step(&mut place, all);
        }
        self.step(&mut place, all).ok_or(wrong)
    }

    fn ours(&self, document: u64, all: bool) -> bool {
        all || self.held_out.contains(document) == (self.split == Split::HeldOut)
    }

    /// The start of the first of our documents from `document` on, or the end of the corpus.
    fn enter_from(&self, mut document: u64, all: bool) -> Place {
        let documents = self.corpus.documents();
        while document < documents && !self.ours(document, all) {
            document += 1;
        }
        if document >= documents {
            return Place {
                document,
                ..Default::default()
            };
        }
        let (shard, local) = self.corpus.locate(document);
        let place = &self.corpus.shards()[shard];
        let line = place.document_start(local);
        Place {
            document,
            shard,
            token: place.line_start(line),
            end: place.line_start(place.document_start(local + 1)),
            line,
            draws: 0,
        }
    }

    /// The next example; `None` at the end of the corpus.
    fn step(&self, place: &mut Place, all: bool) -> Option<Span> {
        while place.token >= place.end {
            if place.document >= self.corpus.documents() {
                return None;
            }
            *place = self.enter_from(place.document + 1, all);
        }
        let shard = self.corpus.shards().get(place.shard)?;
        let (split, end) = match self.options.builder {
            Builder::Runs => {
                let room = self.options.max_seq_length as u64 - 2;
                let end = place.end.min(place.token + room);
                (end, end)
            }
            Builder::TwoSegments => self.two_segments(shard, place),
        };
        let span = Span {
            shard: place.shard,
            start: place.token,
            split,
            end,
        };
        place.token = end;
        Some(span)
    }

    /// Where segment A ends and where B does.
    fn two_segments(&self, shard: &Shard, place: &mut Place) -> (u64, u64) {
        let max = self.options.max_seq_length as u64;
        let document = place.document;
        let mut draws = place.draws;
        let mut draw = || {
            let (low, high) = (document as u32, (document >> 32) as u32);
            draws += 1;
            self.rng.uniform(Purpose::Examples, 0, low, high, draws - 1)
        };
        let shortest = SHORTEST as u64;
        let target = if draw() < 0.05 {
            shortest + ((max - shortest + 1) as f64 * draw()) as u64
        } else {
            max
        };
        let target_a = if draw() < 0.1 {
            u64::MAX
        } else {
            (target - 3) / 2
        };
        // Sentences are gathered and dealt out in one go: A is `start..a`, B `a..at`.
        let start = place.token;
        let (mut at, mut a, mut line) = (start, start, place.line);
        while at < place.end && at - start < target {
            let end = shard.line_start(line + 1).min(place.end).max(at);
            line += 1;
            let in_a = a == at
                && (a == start || end - start < target_a || (a - start < target_a && draw() < 0.5));
            if in_a {
                a = end;
            }
            at = end;
        }
        place.draws = draws;
        let (split, end) = if a - start >= max - 3 {
            let end = a.min(start + max - 2);
            (end, end)
        } else {
            (a, at.min(start + max - 3))
        };
        while place.line < shard.lines() && shard.line_start(place.line + 1) <= end {
            place.line += 1;
        }
        (split, end)
    }
}

#[cfg(test)]
pub(crate) mod tests;
