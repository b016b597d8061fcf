//! Trains a WordPiece vocabulary with the trainer of the crate `tokenizers`.
//!
//! The trainer merges the most frequent pairs of pieces. What it would take in the order of a hash
//! table is settled here before it starts, so that one text always gives one vocabulary: special
//! tokens, then single characters, then single characters that go on a word, then merges.

use ahash::AHashMap;
use compact_str::CompactString;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeTrainer};

use crate::read::{Input, ReadError, ReadOptions, Reader};
use crate::tokenizer::{SPECIAL_TOKENS, Tokenizer, TokenizerError};
use crate::words::{Normalisation, chunks};

/// Longest word, in characters, that is counted.
const MAX_CHARS: usize = 100;
/// Distinct words counted at most; beyond, the rarest are forgotten.
const MAX_WORDS: usize = 4 << 20;
/// Pairs are counted in 32 bits by the trainer; counts are scaled to stay below this.
const MAX_PAIRS: u64 = 1 << 30;

/// What the trainer is to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VocabularyOptions {
    /// Entries, special tokens included.
    pub size: usize,
    /// A pair seen less often is not merged.
    pub min_frequency: u64,
}

/// What was read to count words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes of text.
    pub text_bytes: u64,
    /// Invalid UTF-8 sequences replaced.
    pub invalid_utf8: u64,
    /// Inputs read to their ends.
    pub inputs: usize,
}

/// Counts the words of a stream of text.
#[derive(Debug)]
pub struct WordCounts {
    normalisation: Normalisation,
    /// Raw chunks; normalised when all are counted.
    chunks: AHashMap<Box<str>, u64>,
    limit: usize,
}

impl WordCounts {
    /// No words yet.
    pub fn new(normalisation: Normalisation) -> Self {
        WordCounts {
            normalisation,
            chunks: AHashMap::new(),
            limit: MAX_WORDS,
        }
    }

    /// Counts the words of `text`, which must not end within a word.
    pub fn add(&mut self, text: &str) {
        let counts = &mut self.chunks;
        chunks(text, self.normalisation.split_chinese, |chunk| {
            if chunk.len() > 4 * MAX_CHARS {
                return;
            }
            match counts.get_mut(chunk) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(chunk.into(), 1);
                }
            }
        });
        // Forgetting by count alone keeps the outcome a function of the text.
        let mut rare = 1;
        while self.chunks.len() > self.limit {
            self.chunks.retain(|_, count| *count > rare);
            rare *= 2;
        }
    }

    /// Counts the words of every document of some inputs. `progress` is told what is read.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn add_inputs(
        &mut self,
        inputs: &[Input],
        options: &ReadOptions,
        progress: &mut dyn FnMut(&Counted),
    ) -> Result<Counted, ReadError> {
        let mut counted = Counted::default();
        let mut text = String::new();
        for input in inputs {
            let mut reader = Reader::open(input, options)?;
            while reader.piece(&mut text)?.is_some() {
                self.add(&text);
                counted.text_bytes += text.len() as u64;
                text.clear();
                progress(&counted);
            }
            counted.invalid_utf8 += reader.invalid_utf8();
            counted.inputs += 1;
        }
        Ok(counted)
    }

    /// The normalised words and their counts, sorted.
    fn words(self) -> Vec<(CompactString, u64)> {
        let mut words: AHashMap<CompactString, u64> = AHashMap::new();
        let mut scratch = String::new();
        for (chunk, count) in self.chunks {
            self.normalisation.words(&chunk, &mut scratch, |word| {
                if word.chars().count() <= MAX_CHARS {
                    *words.entry(word.into()).or_default() += count;
                }
            });
        }
        let mut words: Vec<_> = words.into_iter().collect();
        words.sort_unstable();
        words
    }

    /// Trains a vocabulary on the words counted. It is smaller than asked for if the text does not
    /// give that many pieces.
    ///
    /// # Errors
    /// No word at all; a size without room for the special tokens and some characters.
    pub fn train(self, options: &VocabularyOptions) -> Result<Tokenizer, TokenizerError> {
        let normalisation = self.normalisation;
        let mut words = self.words();
        if words.is_empty() {
            return Err(TokenizerError::Library(
                "no text to train a vocabulary on".into(),
            ));
        }
        let room = options.size.saturating_sub(SPECIAL_TOKENS.len()) / 2;
        let (first, later) = alphabet(&words, room);
        if first.is_empty() {
            return Err(TokenizerError::Library(format!(
                "a vocabulary of {} entries has no room for characters; ask for more",
                options.size
            )));
        }
        words.retain(|(word, _)| word.chars().all(|c| first.binary_search(&c).is_ok()));
        let pairs: u64 = words.iter().map(|(w, n)| w.len() as u64 * n).sum();
        let scale = pairs.div_ceil(MAX_PAIRS).max(1);
        let words: ahash::AHashMap<CompactString, u64> = words
            .into_iter()
            .map(|(word, count)| (word, count.div_ceil(scale)))
            .collect();
        let fixed = SPECIAL_TOKENS
            .map(str::to_owned)
            .into_iter()
            .chain(first.iter().map(char::to_string))
            .chain(later.iter().map(|c| format!("##{c}")))
            .map(|token| AddedToken::from(token, true));
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(options.size)
            .min_frequency(options.min_frequency.div_ceil(scale))
            .continuing_subword_prefix("##".into())
            .special_tokens(fixed.collect())
            .build();
        let mut model = BPE::default();
        trainer
            .do_train(&words, &mut model)
            .map_err(|e| TokenizerError::Library(e.to_string()))?;
        let mut tokens: Vec<(u32, String)> = model
            .get_vocab()
            .into_iter()
            .map(|(token, id)| (id, token))
            .collect();
        tokens.sort_unstable();
        let tokens = tokens.into_iter().map(|(_, token)| token).collect();
        Tokenizer::new(tokens, normalisation, "trained vocabulary".as_ref())
    }
}

/// The most frequent characters, sorted, and those of them that go on a word: together at most
/// `room` entries.
fn alphabet(words: &[(CompactString, u64)], room: usize) -> (Vec<char>, Vec<char>) {
    let mut counts: AHashMap<char, (u64, bool)> = AHashMap::new();
    for (word, count) in words {
        for (i, c) in word.chars().enumerate() {
            let entry = counts.entry(c).or_default();
            entry.0 += count;
            entry.1 |= i > 0;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|&(c, (count, _))| (std::cmp::Reverse(count), c));
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for (c, (_, goes_on)) in counts {
        if first.len() + later.len() + 1 + usize::from(goes_on) > room {
            break;
        }
        first.push(c);
        if goes_on {
            later.push(c);
        }
    }
    first.sort_unstable();
    later.sort_unstable();
    (first, later)
}
