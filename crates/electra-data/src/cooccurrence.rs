//! What counting says of a vocabulary: how frequent each token is, and a vector of each from which tokens
//! stand near it. Parameters can begin with that.
//!
//! A token's vector is its row of positive pointwise mutual information with the tokens around it,
//! brought down to few dimensions by the eigenvectors of the eigenvalues largest in magnitude, each
//! scaled by the root of its own (Levy, Goldberg and Dagan 2015). Tokens of like use get like vectors.

use crate::examples::{ExampleError, Examples};
use electra_engine::batch::PackedBatch;
use spectrum::{Sparse, in_parallel, leading};

mod spectrum;
#[cfg(test)]
mod tests;

/// Tokens on each side that count as near.
const WINDOW: usize = 5;
/// Tokens that are counted at the most.
const SAMPLE: u64 = 1 << 25;
/// Examples in a row that are counted or left out together.
const GROUP: u64 = 64;
/// Tokens whose neighbourhood spans the space: the most frequent ones.
const CORE: usize = 8192;
/// A token that is seen less often gets no vector.
const LEAST_SEEN: u32 = 10;
/// A pair that is seen less often says nothing.
const LEAST_PAIRS: u32 = 2;
/// Power of a context's frequency: below 1, rare contexts count for less.
const SMOOTHING: f64 = 0.75;
/// Bytes of all threads' counts at the most; in tests so few that there are several blocks.
const COUNT_BYTES: usize = if cfg!(test) { 256 } else { 256 << 20 };
/// Between two stretches of text.
const BORDER: u32 = u32::MAX;

/// Frequencies and vectors of the tokens of a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenCounts {
    /// How often each token was seen.
    frequencies: Vec<u32>,
    /// Tokens that were counted.
    tokens: u64,
    /// Dimensions of a vector.
    size: usize,
    /// `[vocab_size, size]`, row-major: mean 0 and mean square 1 over the tokens that have a vector.
    vectors: Vec<f32>,
    /// Which tokens have one.
    known: Vec<bool>,
}

impl TokenCounts {
    /// Counts the tokens of `examples`, of much text an even share, and makes vectors of at most `size`
    /// dimensions; of fewer where fewer tokens are frequent. The result does not depend on `threads`.
    ///
    /// # Errors
    /// Shards that have been altered.
    pub fn of(examples: &Examples, size: usize, threads: usize) -> Result<Self, ExampleError> {
        let text = sample(examples, SAMPLE)?;
        let vocab_size = examples.corpus().vocab_size() as usize;
        Ok(Self::of_text(text, vocab_size, size, threads.max(1)))
    }

    /// Bytes that counting takes at the least, of `tokens` tokens in all of a vocabulary.
    pub fn least_bytes(tokens: u64, vocab_size: usize) -> u64 {
        let text = tokens.min(SAMPLE) as usize * size_of::<u32>();
        let counts = vocab_size * vocab_size.min(CORE) * size_of::<u32>();
        (text + counts.min(COUNT_BYTES)) as u64
    }

    fn of_text(mut text: Vec<u32>, vocab_size: usize, size: usize, threads: usize) -> Self {
        let frequencies = frequencies(&text, vocab_size);
        let by_rank = rank(&mut text, &frequencies);
        let (seen, core) = (by_rank.len(), by_rank.len().min(CORE));
        let size = size.min(core);
        let mut vectors = vec![0.0; vocab_size * size];
        let mut known = vec![false; vocab_size];
        if size > 0 {
            let association = association(&text, seen, core, threads);
            drop(text);
            let leading = leading(&association, core, size, threads);
            let products = association.times(&leading, seen, threads);
            // A row without entries says nothing: all of these would get one vector.
            let mut told: Vec<usize> = (0..seen)
                .filter(|&row| association.entries(row) > 0)
                .collect();
            if told.len() < 2 {
                told.clear();
            }
            let row = |&row: &usize| &products[row * size..][..size];
            let mut rows: Vec<f32> = told.iter().flat_map(row).copied().collect();
            standardize(&mut rows, size);
            for (row, &rank) in rows.chunks_exact(size).zip(&told) {
                let token = by_rank[rank] as usize;
                vectors[token * size..][..size].copy_from_slice(row);
                known[token] = true;
            }
        }
        TokenCounts {
            tokens: frequencies.iter().map(|&f| u64::from(f)).sum(),
            frequencies,
            size,
            vectors,
            known,
        }
    }

    /// Tokens that were counted, special ones left out.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// How many tokens of the vocabulary have a vector.
    pub fn with_vector(&self) -> usize {
        self.known.iter().filter(|&&known| known).count()
    }

    /// The vector of `token`, if its neighbours tell anything of it.
    pub fn vector(&self, token: usize) -> Option<&[f32]> {
        let known = self.known.get(token).copied().unwrap_or(false);
        known.then(|| &self.vectors[token * self.size..][..self.size])
    }

    /// Logarithm of the share of `token` in the text, each token counted once more than it was seen.
    pub fn log_frequency(&self, token: usize) -> f32 {
        let frequency = self.frequencies.get(token).copied().unwrap_or(0);
        let total = self.tokens as f64 + self.frequencies.len() as f64;
        ((f64::from(frequency) + 1.0) / total).ln() as f32
    }
}

/// The text of at most about `most` tokens, groups of examples that follow on each other, evenly from
/// all of the text; with borders where special tokens stand.
fn sample(examples: &Examples, most: u64) -> Result<Vec<u32>, ExampleError> {
    let special = examples.special();
    let share = (most as f64 / examples.tokens().max(1) as f64).min(1.0);
    let mut text = Vec::with_capacity(examples.tokens().min(most) as usize);
    let mut batch = PackedBatch::new();
    for group in 0..examples.len().div_ceil(GROUP) {
        let taken = |groups: u64| (groups as f64 * share) as u64;
        if taken(group + 1) == taken(group) {
            continue;
        }
        let first = group * GROUP;
        for number in first..(first + GROUP).min(examples.len()) {
            batch.clear();
            examples.append(number, &mut batch)?;
            text.extend(batch.token_ids.iter().map(|&id| {
                if [special.pad, special.cls, special.sep].contains(&id) {
                    BORDER
                } else {
                    id
                }
            }));
        }
    }
    Ok(text)
}

fn frequencies(text: &[u32], vocab_size: usize) -> Vec<u32> {
    let mut frequencies = vec![0u32; vocab_size];
    for &token in text.iter().filter(|&&token| token != BORDER) {
        frequencies[token as usize] += 1;
    }
    frequencies
}

/// Replaces each token by its rank in frequency, those seen too rarely by a number above all ranks.
/// Returns the tokens by rank.
fn rank(text: &mut [u32], frequencies: &[u32]) -> Vec<u32> {
    let frequency = |token: u32| frequencies[token as usize];
    let mut by_rank: Vec<u32> = (0..frequencies.len() as u32)
        .filter(|&token| frequency(token) >= LEAST_SEEN)
        .collect();
    by_rank.sort_by_key(|&token| (std::cmp::Reverse(frequency(token)), token));
    let mut ranks = vec![BORDER - 1; frequencies.len()];
    for (rank, &token) in by_rank.iter().enumerate() {
        ranks[token as usize] = rank as u32;
    }
    for token in text.iter_mut().filter(|token| **token != BORDER) {
        *token = ranks[*token as usize];
    }
    by_rank
}

/// Pairs of a block of rows that were seen often enough, and how often each row has any context.
struct Counted {
    sums: Vec<u64>,
    /// For each row, its number of pairs.
    lengths: Vec<usize>,
    pairs: Vec<(u32, u32)>,
}

/// Positive pointwise mutual information of the tokens seen, `[seen, core]`; the square of the core
/// is symmetric.
fn association(text: &[u32], seen: usize, core: usize, threads: usize) -> Sparse {
    let block_rows = (COUNT_BYTES / threads / size_of::<u32>() / core).max(1);
    let blocks = in_parallel(seen.div_ceil(block_rows), threads, |block| {
        let first = block * block_rows;
        count(text, first..(first + block_rows).min(seen), core)
    });
    let sums: Vec<f64> = blocks
        .iter()
        .flat_map(|block| &block.sums)
        .map(|&sum| sum as f64)
        .collect();
    // The pairs of the core with itself are symmetric, so a row's sum serves for its column too.
    let smooth: Vec<f64> = sums[..core].iter().map(|s| s.powf(SMOOTHING)).collect();
    let smooth_total: f64 = smooth.iter().sum();
    let positive = |count: u32, row: usize, column: usize| {
        let expected = sums[row] * smooth[column] / smooth_total;
        // A context that has none in the core itself has no share to compare with.
        match expected > 0.0 {
            true => (f64::from(count) / expected).ln().max(0.0),
            false => 0.0,
        }
    };
    let mut matrix = Sparse {
        starts: vec![0],
        columns: Vec::new(),
        values: Vec::new(),
    };
    let mut row = 0;
    for block in blocks {
        let mut pairs = block.pairs.into_iter();
        for length in block.lengths {
            for (column, count) in pairs.by_ref().take(length) {
                let one_way = positive(count, row, column as usize);
                let value = match row < core {
                    true => 0.5 * (one_way + positive(count, column as usize, row)),
                    false => one_way,
                };
                if value > 0.0 {
                    matrix.columns.push(column);
                    matrix.values.push(value as f32);
                }
            }
            matrix.starts.push(matrix.columns.len());
            row += 1;
        }
    }
    matrix
}

/// Counts which tokens of the core stand near those of `rows`.
fn count(text: &[u32], rows: std::ops::Range<usize>, core: usize) -> Counted {
    let mut counts = vec![0u32; rows.len() * core];
    for (at, &token) in text.iter().enumerate() {
        if !rows.contains(&(token as usize)) {
            continue;
        }
        let row = &mut counts[(token as usize - rows.start) * core..][..core];
        let before = text[..at].iter().rev().take(WINDOW);
        let after = text[at + 1..].iter().take(WINDOW);
        let mut add = |near: &u32| {
            if let Some(count) = row.get_mut(*near as usize) {
                *count += 1;
            }
        };
        before
            .take_while(|&&near| near != BORDER)
            .for_each(&mut add);
        after.take_while(|&&near| near != BORDER).for_each(&mut add);
    }
    let mut counted = Counted {
        sums: Vec::with_capacity(rows.len()),
        lengths: Vec::with_capacity(rows.len()),
        pairs: Vec::new(),
    };
    for row in counts.chunks_exact(core) {
        let before = counted.pairs.len();
        let frequent = row.iter().enumerate().filter(|(_, c)| **c >= LEAST_PAIRS);
        counted
            .pairs
            .extend(frequent.map(|(column, &c)| (column as u32, c)));
        counted.lengths.push(counted.pairs.len() - before);
        counted.sums.push(row.iter().map(|&c| u64::from(c)).sum());
    }
    counted
}

/// Moves the mean row to 0 and scales to a mean square of 1.
fn standardize(rows: &mut [f32], size: usize) {
    let count = (rows.len() / size).max(1) as f64;
    let mut mean = vec![0.0f64; size];
    for row in rows.chunks_exact(size) {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x) / count;
        }
    }
    let mut square = 0.0;
    for row in rows.chunks_exact_mut(size) {
        for (x, &mean) in row.iter_mut().zip(&mean) {
            *x -= mean as f32;
            square += f64::from(*x).powi(2);
        }
    }
    // Rows that are all alike are all 0 now.
    let scale = match square > f64::from(f32::MIN_POSITIVE) {
        true => (rows.len() as f64 / square).sqrt(),
        false => 1.0,
    };
    for x in rows {
        *x *= scale as f32;
    }
}
