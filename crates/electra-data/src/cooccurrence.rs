//! What counting says of a vocabulary in seconds: how frequent each token is, and a vector of each from
//! which tokens stand near it. Parameters can begin with that.
//!
//! A token's vector is its row of positive pointwise mutual information with the tokens around it,
//! brought down to few dimensions by the eigenvectors of the eigenvalues largest in magnitude, each
//! scaled by the root of its own (Levy, Goldberg and Dagan 2015). Tokens of like use get like vectors. What a masked
//! language model learns first, and needs millions of tokens for, is there at the first step.

use crate::examples::{ExampleError, Examples};
use electra_engine::batch::PackedBatch;
use electra_engine::rng::{Purpose, Rng};
use nalgebra::{DMatrix, SymmetricEigen};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens on each side that count as near.
const WINDOW: usize = 5;
/// Tokens that are counted at the most, evenly from all of the text.
const SAMPLE: u64 = 1 << 25;
/// Tokens whose neighbourhood spans the space: the most frequent ones.
const CORE: usize = 8192;
/// A token that is seen less often gets no vector.
const LEAST_SEEN: u32 = 10;
/// A pair that is seen less often says nothing.
const LEAST_PAIRS: u32 = 2;
/// Power of a context's frequency: below 1, rare contexts count for less.
const SMOOTHING: f64 = 0.75;
/// Dimensions beyond those asked for, so that the last of these converge.
const OVERSAMPLING: usize = 32;
/// Rounds of subspace iteration.
const ROUNDS: usize = 5;
/// Bytes of a thread's counts at the most; in tests so few that there are several blocks.
const COUNT_BYTES: usize = if cfg!(test) { 128 } else { 128 << 20 };
/// Rows that a thread multiplies at a time; in tests likewise.
const PRODUCT_ROWS: usize = if cfg!(test) { 3 } else { 256 };
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
        let text = sample(examples)?;
        let vocab_size = examples.corpus().vocab_size() as usize;
        Ok(Self::of_text(text, vocab_size, size, threads.max(1)))
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
            let basis = basis(&association, core, size, threads);
            let products = association.times(&basis, seen, threads);
            // A row without entries says nothing: all of these would get one vector.
            let mut told: Vec<usize> = (0..seen).filter(|&row| association.len(row) > 0).collect();
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

/// The text of every `n`th example, so that [`SAMPLE`] tokens are not exceeded by much, with borders
/// where special tokens stand.
fn sample(examples: &Examples) -> Result<Vec<u32>, ExampleError> {
    let special = examples.special();
    let stride = examples.tokens().div_ceil(SAMPLE).max(1);
    let mut text = vec![BORDER];
    let mut batch = PackedBatch::new();
    for number in (0..examples.len()).step_by(stride as usize) {
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

/// A sparse matrix by rows.
struct Sparse {
    /// Where each row's entries begin, and their number.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl Sparse {
    /// Entries of a row.
    fn len(&self, row: usize) -> usize {
        self.starts[row + 1] - self.starts[row]
    }

    /// The product of the first `rows` rows with the transpose of `right`, `[size, columns]`; row-major,
    /// `[rows, size]`.
    fn times(&self, right: &DMatrix<f32>, rows: usize, threads: usize) -> Vec<f32> {
        let size = right.nrows();
        let vectors = right.as_slice();
        let blocks = in_parallel(rows.div_ceil(PRODUCT_ROWS), threads, |block| {
            let first = block * PRODUCT_ROWS;
            let last = (first + PRODUCT_ROWS).min(rows);
            let mut out = vec![0.0f32; (last - first) * size];
            for (row, out) in (first..last).zip(out.chunks_exact_mut(size)) {
                let entries = self.starts[row]..self.starts[row + 1];
                for (&column, &value) in self.columns[entries.clone()]
                    .iter()
                    .zip(&self.values[entries])
                {
                    let vector = &vectors[column as usize * size..][..size];
                    for (sum, &x) in out.iter_mut().zip(vector) {
                        *sum += value * x;
                    }
                }
            }
            out
        });
        blocks.concat()
    }
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
    let block_rows = (COUNT_BYTES / size_of::<u32>() / core).max(1);
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

/// The `size` leading eigenvectors of the core's square, `[size, core]`, each divided by the root of its
/// eigenvalue, by subspace iteration (Halko, Martinsson and Tropp 2011). A row of the matrix times
/// this is that token's vector, of the core or not.
fn basis(matrix: &Sparse, core: usize, size: usize, threads: usize) -> DMatrix<f32> {
    let width = (size + OVERSAMPLING).min(core);
    let rng = Rng::new(0, 0);
    let start = |row: usize, column: usize| {
        rng.uniform(Purpose::Init, u32::MAX, row as u32, column as u32, 0) as f32 - 0.5
    };
    let mut vectors = orthonormal(DMatrix::from_fn(width, core, start));
    let times = |vectors: &DMatrix<f32>| {
        DMatrix::from_vec(width, core, matrix.times(vectors, core, threads))
    };
    for _ in 0..ROUNDS {
        vectors = orthonormal(times(&vectors));
    }
    let projected = &times(&vectors) * vectors.transpose();
    let eigen = SymmetricEigen::new((&projected + projected.transpose()) * 0.5);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (eigen.eigenvalues[a].abs(), eigen.eigenvalues[b].abs());
        b.total_cmp(&a)
    });
    let chosen = DMatrix::from_fn(size, width, |row, column| {
        let value = eigen.eigenvalues[order[row]];
        let scale = match value.abs() > f32::MIN_POSITIVE {
            true => value.signum() / value.abs().sqrt(),
            false => 0.0,
        };
        eigen.eigenvectors[(column, order[row])] * scale
    });
    chosen * vectors
}

/// Makes the rows orthonormal.
fn orthonormal(rows: DMatrix<f32>) -> DMatrix<f32> {
    rows.transpose().qr().q().transpose()
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

/// `work(0)`, `work(1)`, … `work(count - 1)` on so many threads, in order.
fn in_parallel<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = work(index);
                    done.lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sentences of a subject, a verb and an object of one of two kinds: tokens 0 to 3 are subjects, 4
    /// and 5 verbs, 6 to 9 objects; 10 was seen once, 11 never.
    fn sentences() -> Vec<u32> {
        let rng = Rng::new(1, 0);
        let mut text = vec![BORDER, 10, BORDER];
        for i in 0..4000 {
            let draw =
                |which, below: f64| (rng.uniform(Purpose::Test, which, i, 0, 0) * below) as u32;
            let kind = draw(0, 2.0);
            text.extend([
                2 * kind + draw(1, 2.0),
                4 + kind,
                6 + 2 * kind + draw(2, 2.0),
                BORDER,
            ]);
        }
        text
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn tokens_of_like_use_have_like_vectors() {
        let counts = TokenCounts::of_text(sentences(), 12, 6, 1);
        let vector = |token| counts.vector(token).expect("seen often");
        for (one, same, other) in [(0, 1, 2), (2, 3, 0), (6, 7, 8), (8, 9, 7)] {
            let (same, other) = (
                cosine(vector(one), vector(same)),
                cosine(vector(one), vector(other)),
            );
            assert!(same > 0.9 && other < 0.5, "{one}: {same}, {other}");
        }
        assert_eq!(counts.vector(10), None);
        assert_eq!(counts.vector(11), None);
        assert_eq!(counts.vector(12), None);
        let values: Vec<f32> = (0..10).flat_map(vector).copied().collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 1e-5 && (square - 1.0).abs() < 1e-5);
    }

    #[test]
    fn threads_change_nothing() {
        let one = TokenCounts::of_text(sentences(), 12, 6, 1);
        for threads in [2, 3] {
            assert_eq!(one, TokenCounts::of_text(sentences(), 12, 6, threads));
        }
    }

    #[test]
    fn shares_add_up_to_one() {
        let counts = TokenCounts::of_text(sentences(), 12, 6, 1);
        let shares = (0..12).map(|token| counts.log_frequency(token).exp());
        assert!((shares.sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(counts.log_frequency(11) > f32::NEG_INFINITY);
        assert!(counts.log_frequency(10) > counts.log_frequency(11));
    }

    #[test]
    fn text_without_frequent_tokens_has_no_vectors() {
        for text in [vec![], vec![BORDER], vec![0, 1, BORDER, 2]] {
            let counts = TokenCounts::of_text(text, 3, 6, 2);
            assert_eq!(counts.vector(0), None);
            assert!(counts.log_frequency(0).is_finite());
        }
    }

    #[test]
    fn tokens_whose_neighbours_say_nothing_have_no_vectors() {
        // Token 0 stands alone, 1 beside itself.
        let text = [[0, BORDER, 1, 1, BORDER]; 20].concat();
        let counts = TokenCounts::of_text(text, 2, 2, 1);
        assert_eq!(counts.vector(0), None);
        assert_eq!(counts.vector(1), None);
        assert!(counts.log_frequency(1) > counts.log_frequency(0));
    }

    #[test]
    fn a_single_token_with_neighbours_makes_nothing_infinite() {
        // Token 0 beside itself, each of many others once beside token 1.
        let mut text = [[0, 0, BORDER]; 20].concat();
        for other in 2..14 {
            text.extend([[1, other, BORDER], [other, BORDER, other]].concat());
            text.extend([BORDER, other, BORDER].repeat(9));
        }
        let counts = TokenCounts::of_text(text, 14, 4, 1);
        let vectors = (0..14).filter_map(|token| counts.vector(token));
        assert!(vectors.flatten().all(|x| x.is_finite()));
    }

    #[test]
    fn a_context_without_a_share_of_its_own_says_nothing() {
        // A core of two; token 1 stands near token 2 alone, which is outside of it.
        let text = [[0, 0, 0, BORDER], [1, 2, BORDER, BORDER]]
            .concat()
            .repeat(20);
        let matrix = association(&text, 3, 2, 1);
        assert!(matrix.values.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn association_is_what_its_definition_says() {
        let mut text = sentences();
        let by_rank = rank(&mut text, &frequencies(&sentences(), 12));
        let (seen, core) = (by_rank.len(), 6);
        assert_eq!(seen, 10);
        let matrix = association(&text, seen, core, 2);
        let mut counts = vec![vec![0.0f64; core]; seen];
        for i in 0..text.len() {
            for j in 0..text.len() {
                let (from, to) = (text[i] as usize, text[j] as usize);
                let between = &text[i.min(j)..=i.max(j)];
                let near = i != j && i.abs_diff(j) <= WINDOW && !between.contains(&BORDER);
                if near && from < seen && to < core {
                    counts[from][to] += 1.0;
                }
            }
        }
        let sum = |row: usize| counts[row].iter().sum::<f64>();
        let total: f64 = (0..core).map(|c| sum(c).powf(SMOOTHING)).sum();
        let ppmi = |row: usize, column: usize| {
            let share = sum(column).powf(SMOOTHING) / total;
            (counts[row][column] / (sum(row) * share)).ln().max(0.0)
        };
        let mut entries = 0;
        for row in 0..seen {
            let range = matrix.starts[row]..matrix.starts[row + 1];
            let mut dense = vec![0.0; core];
            for i in range {
                dense[matrix.columns[i] as usize] = f64::from(matrix.values[i]);
                entries += 1;
            }
            for (column, &found) in dense.iter().enumerate() {
                let expected = match row < core {
                    true => 0.5 * (ppmi(row, column) + ppmi(column, row)),
                    false => ppmi(row, column),
                };
                assert!((found - expected).abs() < 1e-5, "{row}, {column}");
            }
        }
        assert!(entries > seen);
    }

    #[test]
    fn vectors_of_all_dimensions_multiply_to_the_matrix() {
        // Ones beside twos on the diagonal: positive definite.
        let core = 40usize;
        let mut matrix = Sparse {
            starts: vec![0],
            columns: Vec::new(),
            values: Vec::new(),
        };
        for row in 0..core {
            for column in row.saturating_sub(1)..(row + 2).min(core) {
                matrix.columns.push(column as u32);
                let diagonal = row == column;
                matrix
                    .values
                    .push(if diagonal { 2.0 + row as f32 } else { 1.0 });
            }
            matrix.starts.push(matrix.columns.len());
        }
        let basis = basis(&matrix, core, core, 2);
        let vectors = DMatrix::from_vec(core, core, matrix.times(&basis, core, 2));
        let product = vectors.transpose() * &vectors;
        for row in 0..core {
            for column in 0..core {
                let expected = match row.abs_diff(column) {
                    0 => 2.0 + row as f32,
                    1 => 1.0,
                    _ => 0.0,
                };
                assert!((product[(row, column)] - expected).abs() < 1e-3);
            }
        }
    }
}
