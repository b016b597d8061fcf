//! Softmax attention: a task a head of a sequence, by blocks of queries.

use super::Cpu;
use super::dropout::{GROUP, RowDropout};
use super::gemm::{Form, Panels, Product, Start};
use super::isa::{Isa, Kernel};
use super::linear::source;
use super::math::exp;
use super::pack::{Columns, Source, pack_panel};
use super::simd::{LANES, Simd};
use super::view::View;
use crate::backend::{Array, Dropout, Sequences};
use crate::reference::HEAD_BLOCKS;
use crate::rng::Purpose;
use std::ops::Range;

/// Queries that are taken through the products together.
pub(super) const QUERIES: usize = 48;

/// Distance of rows of scores: not a power of two, so that columns spread over the cache.
pub(super) fn score_stride(keys: usize) -> usize {
    keys.next_multiple_of(LANES) + LANES
}

/// One row of scores to probabilities, in place; returns the log of the sum of exponentials.
struct Softmax<'a> {
    row: &'a mut [f32],
    scale: f32,
    dropout: Option<RowDropout>,
}

impl Kernel for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let lowest = S::splat(f32::NEG_INFINITY);
        let full = self.row.len() / LANES * LANES;
        let mut max = lowest;
        for s in self.row[..full].chunks_exact(LANES) {
            max = S::max(max, S::read(s));
        }
        let mut max = S::greatest(max);
        for &s in &self.row[full..] {
            max = max.max(s);
        }
        let (scale, top) = (S::splat(self.scale), S::splat(-max * self.scale));
        let mut sums = S::splat(0.0);
        for s in self.row[..full].chunks_exact_mut(LANES) {
            let e = exp::<S>(S::fma(S::read(s), scale, top));
            sums = S::add(sums, e);
            S::write(s, e);
        }
        let rest = &mut self.row[full..];
        S::write(rest, exp::<S>(S::fma(S::read(rest), scale, top)));
        let sum = S::sum(S::add(sums, S::read(rest)));
        let normalize = S::splat(1.0 / sum);
        for (group, row) in self.row.chunks_mut(GROUP).enumerate() {
            let factors = match &self.dropout {
                Some(dropout) => dropout.factors::<S>(group),
                None => [S::splat(1.0); GROUP / LANES],
            };
            for (p, factor) in row.chunks_mut(LANES).zip(factors) {
                let value = S::mul(S::mul(S::read(p), normalize), factor);
                S::write(p, value);
            }
        }
        max * self.scale + sum.ln()
    }
}

/// Where a task's head lies.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    /// First row of the sequence.
    pub(super) start: usize,
    /// Its length.
    pub(super) len: usize,
    /// Number of the head.
    pub(super) index: usize,
    /// Its first column and their number.
    pub(super) column: usize,
    pub(super) size: usize,
    /// What scores are multiplied with.
    pub(super) scale: f32,
    dropout: Option<(&'a Dropout, &'a [u32], &'a [u32])>,
}

impl Head<'_> {
    /// Rows of the head's part of an array, counted within the sequence.
    pub(super) fn source(&self, view: View, rows: Range<usize>) -> Source {
        let all = source(view, self.start + rows.start..self.start + rows.end);
        Source {
            data: view.at(self.start + rows.start, self.column),
            cols: self.size,
            ..all
        }
    }

    /// The dropout of the row of query `t` of the sequence.
    pub(super) fn row_dropout(&self, t: usize) -> Option<RowDropout> {
        self.dropout.map(|(dropout, examples, positions)| {
            RowDropout::new(
                dropout,
                Purpose::AttentionDropout,
                examples[self.start + t],
                positions[self.start + t],
                self.index as u32 * HEAD_BLOCKS,
            )
        })
    }
}

/// Packs a head's rows as right side into `room`.
///
/// # Safety
/// The source can be read.
pub(super) unsafe fn pack_head(
    isa: Isa,
    source: Source,
    columns: Columns,
    room: &mut [f32],
) -> Panels {
    let (depth, cols) = match columns {
        Columns::Columns => (source.rows, source.cols),
        Columns::Rows => (source.cols, source.rows),
    };
    assert!(room.len() >= Panels::words(depth, cols));
    let panels = Panels {
        data: room.as_ptr(),
        depth,
        cols,
    };
    let to = Panels {
        data: room.as_mut_ptr(),
        ..panels
    };
    for index in 0..panels.count() {
        // SAFETY: the room is large enough and ours.
        unsafe { pack_panel(isa, Form::F32, source, columns, to, index) };
    }
    to
}

/// `c = start + a b` with a left side of plain rows.
///
/// # Safety
/// As for [`Product::run`].
pub(super) unsafe fn multiply(
    isa: Isa,
    a: Source,
    b: Panels,
    c: *mut f32,
    c_stride: usize,
    start: Start,
) {
    let product = Product {
        rows: a.rows,
        depth: a.cols,
        a: a.data,
        row_step: a.stride,
        unit_step: 1,
        b,
        first_unit: 0,
        panels: 0..b.count(),
        c,
        c_stride,
        start,
    };
    // SAFETY: as the caller says.
    unsafe { product.run(isa, Form::F32) };
}

/// The heads of all sequences, as tasks.
pub(super) struct Heads<'a> {
    pub(super) cu_seqlens: &'a [u32],
    pub(super) heads: usize,
    pub(super) size: usize,
    dropout: Option<(&'a Dropout, &'a [u32], &'a [u32])>,
}

impl<'a> Heads<'a> {
    pub(super) fn new(
        ints: &'a [Vec<u32>],
        sequences: &Sequences,
        heads: usize,
        y: Array,
        dropout: Option<&'a Dropout>,
    ) -> Self {
        assert!(y.cols.is_multiple_of(heads));
        let of = |i: crate::backend::Ints| &ints[i.slot as usize][..i.len];
        let cu_seqlens = of(sequences.cu_seqlens);
        assert!(cu_seqlens.is_sorted() && cu_seqlens.last().is_some_and(|&t| t as usize <= y.rows));
        let keys = &sequences.keys;
        Heads {
            cu_seqlens,
            heads,
            size: y.cols / heads,
            dropout: dropout.map(|d| (d, of(keys.example), of(keys.position))),
        }
    }

    pub(super) fn tasks(&self) -> usize {
        (self.cu_seqlens.len() - 1) * self.heads
    }

    pub(super) fn task(&self, task: usize) -> Head<'a> {
        let (sequence, index) = (task / self.heads, task % self.heads);
        let start = self.cu_seqlens[sequence] as usize;
        Head {
            start,
            len: self.cu_seqlens[sequence + 1] as usize - start,
            index,
            column: index * self.size,
            size: self.size,
            scale: 1.0 / (self.size as f32).sqrt(),
            dropout: self.dropout,
        }
    }
}

impl Cpu {
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
        assert!(
            [q, k, v]
                .iter()
                .all(|a| a.rows == y.rows && a.cols == y.cols)
        );
        assert!(log_sum.rows == y.rows && log_sum.cols == heads);
        let all = Heads::new(&self.ints, sequences, heads, y, dropout);
        let [q, k, v, y, log_sum] = [q, k, v, y, log_sum].map(|a| self.view(a));
        assert!([q, k, v, log_sum].iter().all(|a| !a.overlaps(&y)));
        let isa = self.isa;
        self.pool.run(all.tasks(), |task, scratch| {
            let head = all.task(task);
            let (len, size) = (head.len, head.size);
            if len == 0 {
                return;
            }
            let stride = score_stride(len);
            let [keys, values, scores] = scratch.split([
                Panels::words(size, len),
                Panels::words(len, size),
                QUERIES * stride,
            ]);
            // SAFETY: nobody writes to q, k, v; the rows and columns of y and log_sum of this head
            // are this task's.
            unsafe {
                let keys = pack_head(isa, head.source(k, 0..len), Columns::Rows, keys);
                let values = pack_head(isa, head.source(v, 0..len), Columns::Columns, values);
                for first in (0..len).step_by(QUERIES) {
                    let queries = first..len.min(first + QUERIES);
                    let left = head.source(q, queries.clone());
                    multiply(isa, left, keys, scores.as_mut_ptr(), stride, Start::Zero);
                    for (t, row) in queries.clone().zip(scores.chunks_exact_mut(stride)) {
                        let sum = isa.run(Softmax {
                            row: &mut row[..len],
                            scale: head.scale,
                            dropout: head.row_dropout(t),
                        });
                        log_sum.at(head.start + t, head.index).write(sum);
                    }
                    let probabilities = Source {
                        data: scores.as_ptr(),
                        rows: queries.len(),
                        cols: len,
                        stride,
                    };
                    let out = y.at(head.start + first, head.column);
                    multiply(isa, probabilities, values, out, y.stride, Start::Zero);
                }
            }
        });
    }
}
