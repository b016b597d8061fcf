//! Softmax attention: a task a head of a sequence, by blocks of queries.

use super::Cpu;
use super::dropout::{GROUP, RowDropout};
use super::gemm::{Form, Panels, Product, Start};
use super::isa::{Isa, Kernel};
use super::linear::source;
use super::math::exp;
use super::pack::{Columns, Source, pack_panel};
use super::simd::{LANES, Simd};
use super::view::{View, spread};
use crate::backend::{Array, Dropout, Sequences};
use crate::reference::HEAD_BLOCKS;
use crate::rng::Purpose;
use std::ops::Range;

/// Queries that are taken through the products together.
pub(super) const QUERIES: usize = 48;

/// One row of scores to weights that are yet to be divided by their sum, in place: as f32, or as
/// pairs of bf16 from the row's beginning. Returns the log of the sum of the exponentials, and what
/// multiplies the result.
struct Softmax<'a> {
    form: Form,
    row: &'a mut [f32],
    scale: f32,
    dropout: Option<RowDropout>,
}

impl Kernel for Softmax<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; 2] {
        let len = self.row.len();
        let full = len / LANES * LANES;
        let mut max = S::splat(f32::NEG_INFINITY);
        for s in self.row[..full].chunks_exact(LANES) {
            max = S::max(max, S::read(s));
        }
        let mut max = S::greatest(max);
        for &s in &self.row[full..] {
            max = max.max(s);
        }
        let (scale, top) = (S::splat(self.scale), S::splat(-max * self.scale));
        let mut sums = S::splat(0.0);
        for s in self.row.chunks_mut(LANES) {
            let e = exp::<S>(S::fma(S::read(s), scale, top));
            S::write(s, e);
            // What lies beyond a short row was not written.
            sums = S::add(sums, S::read(s));
        }
        if let Some(dropout) = &self.dropout {
            for (group, row) in self.row.chunks_mut(GROUP).enumerate() {
                let factors = dropout.factors::<S>(group);
                for (p, factor) in row.chunks_mut(LANES).zip(factors) {
                    let value = S::mul(S::read(p), factor);
                    S::write(p, value);
                }
            }
        }
        if self.form == Form::Bf16 {
            narrow::<S>(self.row);
        }
        let sum = S::sum(sums);
        [max * self.scale + sum.ln(), 1.0 / sum]
    }
}

/// Values to pairs of bf16, in place from the beginning.
#[inline(always)]
pub(super) fn narrow<S: Simd>(row: &mut [f32]) {
    for first in (0..row.len()).step_by(2 * LANES) {
        let (low, high) = (first, row.len().min(first + LANES));
        let pairs = S::row_bf16(S::read(&row[low..]), S::read(&row[high..]));
        let words = (row.len() - first).div_ceil(2).min(LANES);
        S::write(&mut row[first / 2..][..words], pairs);
    }
}

/// Rows of results times a factor each.
struct ScaleRows<'a> {
    factors: &'a [f32],
    to: *mut f32,
    stride: usize,
    cols: usize,
}

impl Kernel for ScaleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (t, &factor) in self.factors.iter().enumerate() {
            let row = self.to.wrapping_add(t * self.stride);
            // SAFETY: whoever makes the kernel has written these rows and owns them.
            let row = unsafe { std::slice::from_raw_parts_mut(row, self.cols) };
            for y in row.chunks_mut(LANES) {
                let value = S::mul(S::read(y), S::splat(factor));
                S::write(y, value);
            }
        }
    }
}

/// Memory for one head's attention.
pub(super) struct HeadRoom<'a> {
    keys: &'a mut [f32],
    values: &'a mut [f32],
    scores: &'a mut [f32],
}

impl<'a> HeadRoom<'a> {
    /// Words that sequences of up to `len` tokens need.
    pub(super) fn words(form: Form, len: usize, size: usize) -> [usize; 3] {
        [
            Panels::words(form.units(size), len),
            Panels::words(form.units(len), size),
            QUERIES.min(len) * spread(len),
        ]
    }

    pub(super) fn new([keys, values, scores]: [&'a mut [f32]; 3]) -> Self {
        HeadRoom {
            keys,
            values,
            scores,
        }
    }
}

/// One head's attention for some of its queries; row `t` of the sequence goes to
/// `to + t · stride`. `kept` takes each query's log of the sum of exponentials.
///
/// # Safety
/// q, k, v can be read, the result written by nobody else.
pub(super) unsafe fn attend_head(
    isa: Isa,
    form: Form,
    head: &Head,
    [q, k, v]: [View; 3],
    queries: Range<usize>,
    to: *mut f32,
    stride: usize,
    room: HeadRoom,
    mut kept: impl FnMut(usize, f32),
) {
    let (len, size) = (head.len, head.size);
    let HeadRoom {
        keys,
        values,
        scores,
    } = room;
    let score_stride = spread(len);
    // SAFETY: as the caller says.
    unsafe {
        let keys = pack_head(isa, form, head.source(k, 0..len), Columns::Rows, keys);
        let values = pack_head(isa, form, head.source(v, 0..len), Columns::Columns, values);
        for first in queries.clone().step_by(QUERIES) {
            let block = first..queries.end.min(first + QUERIES);
            let left = head.source(q, block.clone());
            multiply(
                isa,
                form,
                left,
                keys,
                scores.as_mut_ptr(),
                score_stride,
                Start::Zero,
            );
            let mut factors = [0.0; QUERIES];
            for (i, t) in block.clone().enumerate() {
                let [log_sum, factor] = isa.run_in(
                    form,
                    Softmax {
                        form,
                        row: &mut scores[i * score_stride..][..len],
                        scale: head.scale,
                        dropout: head.row_dropout(t),
                    },
                );
                kept(t, log_sum);
                factors[i] = factor;
            }
            let weights = Source {
                form,
                data: scores.as_ptr(),
                rows: block.len(),
                cols: len,
                stride: score_stride,
            };
            let to = to.add(first * stride);
            multiply(isa, form, weights, values, to, stride, Start::Zero);
            isa.run(ScaleRows {
                factors: &factors[..block.len()],
                to,
                stride,
                cols: size,
            });
        }
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
            data: view.word(self.start + rows.start, self.column),
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
    form: Form,
    source: Source,
    columns: Columns,
    room: &mut [f32],
) -> Panels {
    let (depth, cols) = match columns {
        Columns::Columns => (source.rows, source.cols),
        Columns::Rows => (source.cols, source.rows),
    };
    let depth = form.units(depth);
    assert!(room.len() >= Panels::words(depth, cols));
    let to = Panels::new(isa, form, room.as_mut_ptr(), [depth, cols]);
    for index in 0..to.count() {
        // SAFETY: the room is large enough and ours.
        unsafe { pack_panel(isa, form, source, columns, to, index) };
    }
    to
}

/// `c = start + a b` with a left side of plain rows.
///
/// # Safety
/// As for [`Product::run`].
pub(super) unsafe fn multiply(
    isa: Isa,
    form: Form,
    a: Source,
    b: Panels,
    c: *mut f32,
    c_stride: usize,
    start: Start,
) {
    assert!(a.form == form);
    let product = Product {
        rows: a.rows,
        depth: form.units(a.cols),
        a: a.data,
        row_step: a.stride,
        unit_step: 1,
        b,
        first_unit: 0,
        panels: 0..b.count(),
        c,
        c_stride,
        start,
        ahead: 0..0,
    };
    // SAFETY: as the caller says.
    unsafe { product.run(isa, form) };
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
            if head.len == 0 {
                return;
            }
            let room = HeadRoom::new(scratch.split(HeadRoom::words(q.form, head.len, head.size)));
            let (to, stride) = (y.at(head.start, head.column), y.stride);
            let keep = |t, sum| {
                // SAFETY: this head's column of log_sum is this task's.
                unsafe { log_sum.at(head.start + t, head.index).write(sum) }
            };
            // SAFETY: nobody writes to q, k, v; the rows and columns of y of this head are this
            // task's.
            unsafe {
                attend_head(
                    isa,
                    q.form,
                    &head,
                    [q, k, v],
                    0..head.len,
                    to,
                    stride,
                    room,
                    keep,
                );
            }
        });
    }
}
