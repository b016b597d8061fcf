//! Softmax attention: a task a head of a sequence, by blocks of queries.

use super::Cpu;
use super::dropout::{GROUP, RowDropout};
use super::gemm::{Form, Panels, Product, Start};
use super::isa::{Isa, Kernel};
use super::linear::source;
use super::math::{exp2, exp2_half};
use super::pack::{Columns, Source, pack_panel};
use super::simd::{LANES, Simd};
use super::view::{View, spread};
use crate::backend::{Array, Dropout, Sequences};
use crate::reference::HEAD_BLOCKS;
use crate::rng::Purpose;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Queries that are taken through the products together, at most.
const QUERIES: usize = 48;
/// The same for the matrix unit, which takes so little for them that what each product begins with
/// counts.
const QUERIES_OF_TILES: usize = 128;

/// Which of the two.
fn queries_together(isa: Isa, form: Form) -> usize {
    match isa.multiplies_tiles(form) {
        true => QUERIES_OF_TILES,
        false => QUERIES,
    }
}

/// Rows of scores to weights that are yet to be divided by their sums, in place: as f32, or as pairs of
/// bf16 from each row's beginning.
struct Softmax<'a> {
    form: Form,
    /// `stride` words a row.
    scores: &'a mut [f32],
    stride: usize,
    head: &'a Head<'a>,
    /// The query of the first row.
    first: usize,
    /// Get what multiplies each row's result.
    factors: &'a mut [f32],
    /// Gets the log of each row's sum of exponentials.
    log_sum: Option<View>,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Head { scale, len, .. } = *self.head;
        let rows = self.scores.chunks_mut(self.stride);
        for ((row, factor), t) in rows.zip(self.factors).zip(self.first..) {
            let row = &mut row[..len];
            let max = greatest::<S>(row);
            let base = scale * LOG2_E;
            let dropout = self.head.row_dropout(t);
            let sum = exponentials::<S>(self.form, row, base, -max * base, dropout);
            *factor = 1.0 / sum;
            if let Some(log_sum) = self.log_sum {
                let to = log_sum.at(self.head.start + t, self.head.index);
                // SAFETY: whoever makes the kernel owns the head's column.
                unsafe { to.write(max * scale + sum.ln()) };
            }
        }
    }
}

/// The greatest value of a row.
#[inline(always)]
fn greatest<S: Simd>(row: &[f32]) -> f32 {
    let (full, rest) = row.split_at(row.len() / LANES * LANES);
    let mut max = S::splat(f32::NEG_INFINITY);
    for s in full.chunks_exact(LANES) {
        max = S::max(max, S::read(s));
    }
    rest.iter().fold(S::greatest(max), |max, &s| max.max(s))
}

/// `2^x`, as closely as what it becomes in a form can tell.
#[inline(always)]
pub(super) fn power<S: Simd>(form: Form, x: S::V) -> S::V {
    match form {
        Form::Half => exp2_half::<S>(x),
        _ => exp2::<S>(x),
    }
}

/// A row `s` to `2^(s · scale + shift)`, through dropout if there is one, in place in a form. Returns
/// the sum before dropout.
#[inline(always)]
fn exponentials<S: Simd>(
    form: Form,
    row: &mut [f32],
    scale: f32,
    shift: f32,
    dropout: Option<RowDropout>,
) -> f32 {
    let (scale, shift) = (S::splat(scale), S::splat(shift));
    let mut sums = [S::splat(0.0); 2];
    for first in (0..row.len()).step_by(GROUP) {
        let end = row.len().min(first + GROUP);
        let factors = match &dropout {
            Some(dropout) => dropout.factors::<S>(first / GROUP),
            None => [S::splat(1.0); GROUP / LANES],
        };
        for (pair, at) in (first..end).step_by(2 * LANES).enumerate() {
            let mut e = [S::splat(0.0); 2];
            if let Some(part) = row[at..end].first_chunk::<{ 2 * LANES }>() {
                e[0] = power::<S>(form, S::fma(S::read(part), scale, shift));
                e[1] = power::<S>(form, S::fma(S::read(&part[LANES..]), scale, shift));
            } else {
                for (e, part) in e.iter_mut().zip(row[at..end].chunks_mut(LANES)) {
                    let x = S::fma(S::read(part), scale, shift);
                    S::write(part, power::<S>(form, x));
                    // What lies beyond the row counts for nothing.
                    *e = S::read(part);
                }
            }
            sums = [S::add(sums[0], e[0]), S::add(sums[1], e[1])];
            if dropout.is_some() {
                e = [
                    S::mul(e[0], factors[2 * pair]),
                    S::mul(e[1], factors[2 * pair + 1]),
                ];
            }
            if form == Form::Half {
                let words = (end - at).div_ceil(2).min(LANES);
                S::write(&mut row[at / 2..][..words], S::row_half(e[0], e[1]));
            } else {
                let part = &mut row[at..end.min(at + 2 * LANES)];
                for (part, e) in part.chunks_mut(LANES).zip(e) {
                    S::write(part, e);
                }
            }
        }
    }
    S::sum(S::add(sums[0], sums[1]))
}

/// Values to pairs of halves, in place from the beginning.
#[inline(always)]
pub(super) fn narrow<S: Simd>(row: &mut [f32]) {
    for first in (0..row.len()).step_by(2 * LANES) {
        let (low, high) = (first, row.len().min(first + LANES));
        let pairs = S::row_half(S::read(&row[low..]), S::read(&row[high..]));
        let words = (row.len() - first).div_ceil(2).min(LANES);
        S::write(&mut row[first / 2..][..words], pairs);
    }
}

/// Rows of results times a factor each, to rows and columns of a view.
struct ScaleRows<'a> {
    /// `cols` values a row.
    results: &'a [f32],
    factors: &'a [f32],
    cols: usize,
    to: View,
    /// Row and column of the first.
    place: [usize; 2],
}

impl Kernel for ScaleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let [first, column] = self.place;
        let rows = self.results.chunks_exact(self.cols.max(1));
        for ((row, &factor), r) in rows.zip(self.factors).zip(first..) {
            let factor = S::splat(factor);
            let words = self.to.form.units(self.cols);
            // SAFETY: in bounds by construction; whoever makes the kernel owns these places.
            let to = unsafe { std::slice::from_raw_parts_mut(self.to.word(r, column), words) };
            if self.to.form == Form::Half {
                for (x, to) in row.chunks(2 * LANES).zip(to.chunks_mut(LANES)) {
                    let low = S::mul(S::read(x), factor);
                    let high = S::mul(S::read(&x[x.len().min(LANES)..]), factor);
                    S::write(to, S::row_half(low, high));
                }
            } else {
                for (x, to) in row.chunks(LANES).zip(to.chunks_mut(LANES)) {
                    S::write(to, S::mul(S::read(x), factor));
                }
            }
        }
    }
}

/// Memory for one head's attention.
pub(super) struct HeadRoom<'a> {
    keys: &'a mut [f32],
    values: &'a mut [f32],
    scores: &'a mut [f32],
    results: &'a mut [f32],
}

impl<'a> HeadRoom<'a> {
    /// Words that sequences of up to `len` tokens need.
    pub(super) fn words(isa: Isa, form: Form, len: usize, size: usize) -> [usize; 4] {
        let queries = queries_together(isa, form).min(len);
        [
            Panels::words(form.units(size), len),
            Panels::words(form.units(len), size),
            queries * spread(len),
            queries * size,
        ]
    }

    pub(super) fn new([keys, values, scores, results]: [&'a mut [f32]; 4]) -> Self {
        HeadRoom {
            keys,
            values,
            scores,
            results,
        }
    }
}

/// One head's attention for some of its queries, to its rows and columns of `to`. `log_sum` gets each
/// query's log of the sum of exponentials.
///
/// # Safety
/// q, k, v can be read; nobody else uses these queries' rows of the head's columns of `to` and of
/// `log_sum`.
pub(super) unsafe fn attend_head(
    isa: Isa,
    form: Form,
    head: &Head,
    [q, k, v]: [View; 3],
    queries: Range<usize>,
    to: View,
    log_sum: Option<View>,
    room: HeadRoom,
) {
    let (len, size) = (head.len, head.size);
    let HeadRoom {
        keys,
        values,
        scores,
        results,
    } = room;
    let stride = spread(len);
    // SAFETY: as the caller says.
    unsafe {
        let keys = pack_head(isa, form, head.source(k, 0..len), Columns::Rows, keys);
        let values = pack_head(isa, form, head.source(v, 0..len), Columns::Columns, values);
        let together = queries_together(isa, form);
        for first in queries.clone().step_by(together) {
            let block = first..queries.end.min(first + together);
            let left = head.source(q, block.clone());
            let scores_at = scores.as_mut_ptr();
            multiply(isa, form, left, keys, scores_at, stride, Start::Zero);
            let mut factors = [0.0; QUERIES_OF_TILES];
            let factors = &mut factors[..block.len()];
            isa.run_in(
                form,
                Softmax {
                    form,
                    scores: &mut *scores,
                    stride,
                    head,
                    first,
                    factors: &mut *factors,
                    log_sum,
                },
            );
            let weights = Source {
                form,
                data: scores.as_ptr(),
                rows: block.len(),
                cols: len,
                stride,
            };
            let results_at = results.as_mut_ptr();
            multiply(isa, form, weights, values, results_at, size, Start::Zero);
            isa.run_in(
                to.form,
                ScaleRows {
                    results: &results[..block.len() * size],
                    factors,
                    cols: size,
                    to,
                    place: [head.start + first, head.column],
                },
            );
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
        assert!([q, k, v].iter().all(|a| !a.overlaps(&log_sum)));
        assert!(k.form == q.form && v.form == q.form);
        let isa = self.isa;
        self.pool.run(all.tasks(), |task, scratch| {
            let head = all.task(task);
            if head.len == 0 {
                return;
            }
            let room =
                HeadRoom::new(scratch.split(HeadRoom::words(isa, q.form, head.len, head.size)));
            // SAFETY: nobody writes to q, k, v; the rows and columns of y and of log_sum of this head
            // are this task's.
            unsafe {
                attend_head(
                    isa,
                    q.form,
                    &head,
                    [q, k, v],
                    0..head.len,
                    y,
                    Some(log_sum),
                    room,
                );
            }
        });
    }
}
