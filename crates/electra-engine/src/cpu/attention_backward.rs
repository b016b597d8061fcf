//! Backward of attention: probabilities anew from the kept log-sums, by blocks of queries.

use super::Cpu;
use super::attention::{Head, Heads, multiply, narrow, pack_head, power};
use super::clock::Part;
use super::dropout::{GROUP, RowDropout};
use super::epilogue::{Place, store_rows};
use super::gemm::{Form, Panels, Product, Start};
use super::isa::{Isa, Kernel};
use super::pack::{Columns, Source, Strips, pack_strips, zip_rows};
use super::simd::{LANES, Simd};
use super::view::{View, spread};
use crate::backend::{Array, Dropout, Sequences};
use std::f32::consts::LOG2_E;

/// Queries that are taken through the products together.
const ROWS: usize = 128;

/// Rows of queries: scores become probabilities after dropout, and gradients by the probabilities
/// become gradients by the scores.
struct SoftmaxBackward<'a> {
    /// Of the products that come next.
    form: Form,
    /// `stride` words a row, as the gradients.
    scores: &'a mut [f32],
    gradient: &'a mut [f32],
    stride: usize,
    head: &'a Head<'a>,
    /// The query of the first row.
    first: usize,
    log_sum: View,
    /// Of each row `Σ_j p_j d_j`, which is the dot product of the output and its gradient.
    means: &'a [f32],
}

impl Kernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Head { scale, len, .. } = *self.head;
        let scores = self.scores.chunks_mut(self.stride);
        let rows = scores.zip(self.gradient.chunks_mut(self.stride));
        for (((s, d), &mean), t) in rows.zip(self.means).zip(self.first..) {
            // SAFETY: whoever makes the kernel says that nobody writes to the head's column.
            let log_sum = unsafe { self.log_sum.at(self.head.start + t, self.head.index).read() };
            let dropout = self.head.row_dropout(t);
            let (s, d) = (&mut s[..len], &mut d[..len]);
            row::<S>(self.form, s, d, scale, log_sum, mean, dropout);
        }
    }
}

/// A row of [`SoftmaxBackward`].
#[inline(always)]
fn row<S: Simd>(
    form: Form,
    scores: &mut [f32],
    gradient: &mut [f32],
    scale: f32,
    log_sum: f32,
    mean: f32,
    dropout: Option<RowDropout>,
) {
    let (base, shift) = (S::splat(scale * LOG2_E), S::splat(-log_sum * LOG2_E));
    let (scale, mean) = (S::splat(scale), S::splat(mean));
    let groups = scores.chunks_mut(GROUP);
    for (group, (s, d)) in groups.zip(gradient.chunks_mut(GROUP)).enumerate() {
        let factors = match &dropout {
            Some(dropout) => dropout.factors::<S>(group),
            None => [S::splat(1.0); GROUP / LANES],
        };
        for ((s, d), factor) in s.chunks_mut(LANES).zip(d.chunks_mut(LANES)).zip(factors) {
            let p = power::<S>(form, S::fma(S::read(s), base, shift));
            let by_p = S::sub(S::mul(S::read(d), factor), mean);
            S::write(d, S::mul(S::mul(p, by_p), scale));
            S::write(s, S::mul(p, factor));
        }
    }
}

/// Each row's dot product of two matrices of one form.
struct RowDots<'a> {
    a: Source,
    b: Source,
    to: &'a mut [f32],
}

impl Kernel for RowDots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (row, to) in self.to.iter_mut().enumerate() {
            let mut sum = S::splat(0.0);
            for col in (0..self.a.cols).step_by(LANES) {
                // SAFETY: whoever makes the kernel says that both can be read.
                let (a, b) =
                    unsafe { (self.a.values::<S>(row, col), self.b.values::<S>(row, col)) };
                sum = S::fma(a, b, sum);
            }
            *to = S::sum(sum);
        }
    }
}

/// Words that [`multiply_transposed`] needs for a left side of `rows` rows of up to `len` values.
fn transposed_words(isa: Isa, form: Form, rows: usize, len: usize) -> usize {
    match form {
        Form::F32 => 0,
        _ if isa.multiplies_tiles(form) => Strips::new(form.units(rows)).all(len),
        _ => form.units(rows) * spread(len),
    }
}

/// `c = start + aᵀ b`, where a block of rows of f32 stands in `a` and packed in `b`.
///
/// # Safety
/// As for [`Product::run`].
unsafe fn multiply_transposed(
    isa: Isa,
    form: Form,
    a: Source,
    room: &mut [f32],
    b: Panels,
    c: &mut [f32],
    start: Start,
) {
    assert!(c.len() >= a.cols * b.cols);
    // SAFETY: as the caller says.
    let (data, row_step, unit_step) = unsafe {
        match form {
            Form::F32 => (a.data, 1, a.stride),
            _ if isa.multiplies_tiles(form) => {
                let strips = Strips::new(form.units(a.rows));
                pack_strips(isa, a, strips, &mut room[..strips.all(a.cols)], &mut []);
                (room.as_ptr(), strips.row_step, 1)
            }
            _ => {
                zip_rows(isa, a, room, a.stride);
                (room.as_ptr(), 1, a.stride)
            }
        }
    };
    let product = Product {
        rows: a.cols,
        depth: form.units(a.rows),
        a: data,
        row_step,
        unit_step,
        b,
        first_unit: 0,
        panels: 0..b.count(),
        c: c.as_mut_ptr(),
        c_stride: b.cols,
        start,
        ahead: 0..0,
    };
    // SAFETY: as the caller says.
    unsafe { product.run(isa, form) };
}

impl Cpu {
    pub(super) fn attend_backward(
        &mut self,
        qkv: [Array; 3],
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        y: Array,
        log_sum: Array,
        dy: Array,
        d_qkv: [Array; 3],
    ) {
        for a in qkv.iter().chain(&d_qkv).chain([&dy]) {
            assert!(a.rows == y.rows && a.cols == y.cols);
        }
        assert!(log_sum.rows == y.rows && log_sum.cols == heads);
        let all = Heads::new(&self.ints, sequences, heads, y, dropout);
        let [q, k, v] = qkv.map(|a| self.view(a));
        let d_qkv = d_qkv.map(|a| self.view(a));
        let [y, log_sum, dy] = [y, log_sum, dy].map(|a| self.view(a));
        for d in &d_qkv {
            assert!([q, k, v, y, log_sum, dy].iter().all(|a| !a.overlaps(d)));
            assert!(d.form == q.form && y.form == q.form && dy.form == q.form);
        }
        assert!(k.form == q.form && v.form == q.form);
        let [dq, dk, dv] = &d_qkv;
        assert!(!dq.overlaps(dk) && !dq.overlaps(dv) && !dk.overlaps(dv));
        let (isa, form, clock) = (self.isa, q.form, &self.clock);
        self.pool.run(all.tasks(), |task, scratch| {
            let head = all.task(task);
            let (len, size) = (head.len, head.size);
            if len == 0 {
                return;
            }
            let mut lap = clock.start();
            let stride = spread(len);
            let block = ROWS.min(len);
            let [
                keys_t,
                values_t,
                keys,
                queries_b,
                dy_b,
                scores,
                gradient,
                transposed,
                dots,
                results @ ..,
            ] = scratch.split([
                Panels::words(form.units(size), len),
                Panels::words(form.units(size), len),
                Panels::words(form.units(len), size),
                Panels::words(form.units(block), size),
                Panels::words(form.units(block), size),
                block * stride,
                block * stride,
                transposed_words(isa, form, block, len),
                block,
                len * size,
                len * size,
                len * size,
            ]);
            let [d_queries, d_keys, d_values] = results;
            // SAFETY: nobody writes to what forward kept and dy; the rows and columns of dq, dk,
            // dv of this head are this task's.
            unsafe {
                let whole = |view| head.source(view, 0..len);
                let keys_t = pack_head(isa, form, whole(k), Columns::Rows, keys_t);
                let values_t = pack_head(isa, form, whole(v), Columns::Rows, values_t);
                let keys = pack_head(isa, form, whole(k), Columns::Columns, keys);
                for first in (0..len).step_by(ROWS) {
                    let rows = first..len.min(first + ROWS);
                    let [q, dy, y] = [q, dy, y].map(|view| head.source(view, rows.clone()));
                    multiply(
                        isa,
                        form,
                        q,
                        keys_t,
                        scores.as_mut_ptr(),
                        stride,
                        Start::Zero,
                    );
                    let to = gradient.as_mut_ptr();
                    multiply(isa, form, dy, values_t, to, stride, Start::Zero);
                    let dots = &mut dots[..rows.len()];
                    isa.run_in(
                        form,
                        RowDots {
                            a: y,
                            b: dy,
                            to: &mut *dots,
                        },
                    );
                    isa.run(SoftmaxBackward {
                        form,
                        scores: &mut *scores,
                        gradient: &mut *gradient,
                        stride,
                        head: &head,
                        first,
                        log_sum,
                        means: dots,
                    });
                    // dv += pᵀ dy and dk += dsᵀ q: the depth runs over this block's queries.
                    let queries_b = pack_head(isa, form, q, Columns::Columns, queries_b);
                    let dy_b = pack_head(isa, form, dy, Columns::Columns, dy_b);
                    let start = if first == 0 { Start::Zero } else { Start::Sum };
                    let matrix = |values: &[f32]| Source {
                        form: Form::F32,
                        data: values.as_ptr(),
                        rows: rows.len(),
                        cols: len,
                        stride,
                    };
                    let (p, ds) = (matrix(scores), matrix(gradient));
                    multiply_transposed(isa, form, p, transposed, dy_b, d_values, start);
                    multiply_transposed(isa, form, ds, transposed, queries_b, d_keys, start);
                    if form == Form::Half {
                        isa.run_half(Narrow {
                            rows: &mut gradient[..rows.len() * stride],
                            stride,
                            len,
                        });
                    }
                    let by_scores = Source {
                        form,
                        ..matrix(gradient)
                    };
                    let to = d_queries[first * size..].as_mut_ptr();
                    multiply(isa, form, by_scores, keys, to, size, Start::Zero);
                }
                for (view, values) in d_qkv.iter().zip([d_queries, d_keys, d_values]) {
                    let rows = head.start..head.start + len;
                    let to = Place::new(view.columns(head.column, size), &rows);
                    store_rows(isa, values, size, to);
                }
            }
            lap.done(Part::AttentionBackward);
        });
    }
}

/// Rows of f32 to pairs of halves, each in place from its beginning.
struct Narrow<'a> {
    rows: &'a mut [f32],
    stride: usize,
    len: usize,
}

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for row in self.rows.chunks_exact_mut(self.stride) {
            narrow::<S>(&mut row[..self.len]);
        }
    }
}
