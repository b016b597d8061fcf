//! Softmax attention within sequences, as loops over sequences, heads, queries and keys.

use super::{Real, Reference};
use crate::backend::{Array, Dropout, Sequences};
use crate::rng::Purpose;

/// One head of one sequence: where its rows and columns lie.
#[derive(Clone, Copy)]
struct Head {
    /// First row of the sequence.
    start: usize,
    /// Its length.
    len: usize,
    /// Which head.
    index: usize,
    /// Columns of a head.
    size: usize,
    /// Columns of an array.
    width: usize,
}

impl Head {
    /// The head's part of token `t` of the sequence.
    fn of<'a, T>(&self, data: &'a [T], t: usize) -> &'a [T] {
        &data[(self.start + t) * self.width + self.index * self.size..][..self.size]
    }

    fn of_mut<'a, T>(&self, data: &'a mut [T], t: usize) -> &'a mut [T] {
        &mut data[(self.start + t) * self.width + self.index * self.size..][..self.size]
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

/// `y += factor · x`
fn axpy<T: Real>(y: &mut [T], factor: T, x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = *y + factor * x;
    }
}

/// Philox blocks that one head's row of probabilities takes at the most.
pub(crate) const HEAD_BLOCKS: u32 = 1 << 16;

impl<T: Real> Reference<T> {
    fn heads(&self, sequences: &Sequences, heads: usize, width: usize) -> Vec<Head> {
        let cu = self.ids(sequences.cu_seqlens);
        cu.windows(2)
            .flat_map(|w| {
                (0..heads).map(move |index| Head {
                    start: w[0] as usize,
                    len: (w[1] - w[0]) as usize,
                    index,
                    size: width / heads,
                    width,
                })
            })
            .collect()
    }

    /// Probabilities of query `t` over the keys, the log of their normaliser, and what dropout
    /// multiplies each with.
    fn probabilities(
        &self,
        head: &Head,
        q: &[T],
        k: &[T],
        t: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
    ) -> (Vec<T>, T, Vec<T>) {
        let scale = T::of(head.size as f64).sqrt().recip();
        let scores: Vec<T> = (0..head.len)
            .map(|j| dot(head.of(q, t), head.of(k, j)) * scale)
            .collect();
        let max = scores.iter().copied().fold(T::neg_infinity(), T::max);
        let sum: T = scores.iter().map(|&s| (s - max).exp()).sum();
        let log_sum = max + sum.ln();
        let probabilities = scores.iter().map(|&s| (s - log_sum).exp()).collect();
        let row = head.start + t;
        let factors = match dropout {
            None => vec![T::one(); head.len],
            Some(dropout) => {
                let example = self.ids(sequences.keys.example)[row];
                let position = self.ids(sequences.keys.position)[row];
                (0..head.len)
                    .map(|j| {
                        Self::dropout_factor(
                            dropout,
                            Purpose::AttentionDropout,
                            example,
                            position,
                            head.index as u32 * HEAD_BLOCKS,
                            j,
                        )
                    })
                    .collect()
            }
        };
        (probabilities, log_sum, factors)
    }

    pub(super) fn attend(
        &mut self,
        q: Array,
        k: Array,
        v: Array,
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        y: Array,
        log_sum: Array,
    ) {
        let (q, k, v) = (self.load(q), self.load(k), self.load(v));
        let mut out = vec![T::zero(); y.rows * y.cols];
        let mut sums = vec![T::zero(); y.rows * heads];
        for head in self.heads(sequences, heads, y.cols) {
            for t in 0..head.len {
                let (p, sum, factors) = self.probabilities(&head, &q, &k, t, sequences, dropout);
                sums[(head.start + t) * heads + head.index] = sum;
                for j in 0..head.len {
                    axpy(head.of_mut(&mut out, t), p[j] * factors[j], head.of(&v, j));
                }
            }
        }
        self.store(y, &out);
        self.store(log_sum, &sums);
    }

    pub(super) fn attend_backward(
        &mut self,
        qkv: [Array; 3],
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        dy: Array,
        d_qkv: [Array; 3],
    ) {
        let [q, k, v] = qkv.map(|a| self.load(a));
        let d = self.load(dy);
        let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![T::zero(); d.len()]);
        for head in self.heads(sequences, heads, dy.cols) {
            let scale = T::of(head.size as f64).sqrt().recip();
            for t in 0..head.len {
                let (p, _, factors) = self.probabilities(&head, &q, &k, t, sequences, dropout);
                let d_row = head.of(&d, t);
                let d_p: Vec<T> = (0..head.len)
                    .map(|j| factors[j] * dot(d_row, head.of(&v, j)))
                    .collect();
                let mean = dot(&p, &d_p);
                for j in 0..head.len {
                    let d_score = p[j] * (d_p[j] - mean) * scale;
                    axpy(head.of_mut(&mut dv, j), p[j] * factors[j], d_row);
                    axpy(head.of_mut(&mut dq, t), d_score, head.of(&k, j));
                    axpy(head.of_mut(&mut dk, j), d_score, head.of(&q, t));
                }
            }
        }
        for (array, values) in d_qkv.into_iter().zip([dq, dk, dv]) {
            self.store(array, &values);
        }
    }
}
