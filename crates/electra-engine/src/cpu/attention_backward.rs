//! Backward of attention: probabilities anew from the kept log-sums, by blocks of queries.

use super::Cpu;
use super::attention::{Head, Heads, QUERIES, multiply, pack_head, score_stride};
use super::dropout::{GROUP, RowDropout};
use super::gemm::{Form, Panels, Product, Start};
use super::isa::Kernel;
use super::math::exp;
use super::pack::{Columns, Source};
use super::simd::{LANES, Simd};
use super::view::View;
use crate::backend::{Array, Dropout, Sequences};

/// One query's row: scores become probabilities after dropout, and gradients by the probabilities
/// become gradients by the scores.
struct SoftmaxBackward<'a> {
    scores: &'a mut [f32],
    gradient: &'a mut [f32],
    scale: f32,
    log_sum: f32,
    /// `Σ_j p_j d_j`, which is the dot product of the output and its gradient.
    mean: f32,
    dropout: Option<RowDropout>,
}

impl Kernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (scale, log_sum) = (S::splat(self.scale), S::splat(-self.log_sum));
        let mean = S::splat(self.mean);
        let groups = self.scores.chunks_mut(GROUP);
        for (group, (s, d)) in groups.zip(self.gradient.chunks_mut(GROUP)).enumerate() {
            let factors = match &self.dropout {
                Some(dropout) => dropout.factors::<S>(group),
                None => [S::splat(1.0); GROUP / LANES],
            };
            for ((s, d), factor) in s.chunks_mut(LANES).zip(d.chunks_mut(LANES)).zip(factors) {
                let p = exp::<S>(S::fma(S::read(s), scale, log_sum));
                let by_p = S::sub(S::mul(S::read(d), factor), mean);
                S::write(d, S::mul(S::mul(p, by_p), scale));
                S::write(s, S::mul(p, factor));
            }
        }
    }
}

/// Dot product.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sum = S::splat(0.0);
        for (a, b) in self.0.chunks(LANES).zip(self.1.chunks(LANES)) {
            sum = S::fma(S::read(a), S::read(b), sum);
        }
        S::sum(sum)
    }
}

/// The head's rows of an array's gradient as result of a product.
fn result(head: &Head, view: View) -> (*mut f32, usize) {
    (view.at(head.start, head.column), view.stride)
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
        let [dq, dk, dv] = d_qkv.map(|a| self.view(a));
        let [y, log_sum, dy] = [y, log_sum, dy].map(|a| self.view(a));
        for d in [dq, dk, dv] {
            assert!([q, k, v, y, log_sum, dy].iter().all(|a| !a.overlaps(&d)));
        }
        assert!(!dq.overlaps(&dk) && !dq.overlaps(&dv) && !dk.overlaps(&dv));
        let isa = self.isa;
        self.pool.run(all.tasks(), |task, scratch| {
            let head = all.task(task);
            let (len, size) = (head.len, head.size);
            if len == 0 {
                return;
            }
            let stride = score_stride(len);
            let block = QUERIES.min(len);
            let [keys_t, values_t, keys, queries_b, dy_b, scores, gradient] = scratch.split([
                Panels::words(size, len),
                Panels::words(size, len),
                Panels::words(len, size),
                Panels::words(block, size),
                Panels::words(block, size),
                block * stride,
                block * stride,
            ]);
            // SAFETY: nobody writes to what forward kept and dy; the rows and columns of dq, dk,
            // dv of this head are this task's.
            unsafe {
                let keys_t = pack_head(
                    isa,
                    Form::F32,
                    head.source(k, 0..len),
                    Columns::Rows,
                    keys_t,
                );
                let values_t = pack_head(
                    isa,
                    Form::F32,
                    head.source(v, 0..len),
                    Columns::Rows,
                    values_t,
                );
                let keys = pack_head(
                    isa,
                    Form::F32,
                    head.source(k, 0..len),
                    Columns::Columns,
                    keys,
                );
                for first in (0..len).step_by(QUERIES) {
                    let rows = first..len.min(first + QUERIES);
                    let (q, dy_rows) =
                        (head.source(q, rows.clone()), head.source(dy, rows.clone()));
                    multiply(
                        isa,
                        Form::F32,
                        q,
                        keys_t,
                        scores.as_mut_ptr(),
                        stride,
                        Start::Zero,
                    );
                    multiply(
                        isa,
                        Form::F32,
                        dy_rows,
                        values_t,
                        gradient.as_mut_ptr(),
                        stride,
                        Start::Zero,
                    );
                    let both = scores
                        .chunks_exact_mut(stride)
                        .zip(gradient.chunks_exact_mut(stride));
                    for (t, (s, d)) in rows.clone().zip(both) {
                        let row = head.start + t;
                        let columns = head.column..head.column + size;
                        isa.run(SoftmaxBackward {
                            scores: &mut s[..len],
                            gradient: &mut d[..len],
                            scale: head.scale,
                            log_sum: log_sum.at(row, head.index).read(),
                            mean: isa.run(Dot(&y.row(row)[columns.clone()], &dy.row(row)[columns])),
                            dropout: head.row_dropout(t),
                        });
                    }
                    let by_scores = Source {
                        form: Form::F32,
                        data: gradient.as_ptr(),
                        rows: rows.len(),
                        cols: len,
                        stride,
                    };
                    let to = dq.at(head.start + first, head.column);
                    multiply(isa, Form::F32, by_scores, keys, to, dq.stride, Start::Zero);
                    // dv += pᵀ dy and dk += dsᵀ q: the depth runs over this block's queries.
                    let q = pack_head(isa, Form::F32, q, Columns::Columns, queries_b);
                    let dy_rows = pack_head(isa, Form::F32, dy_rows, Columns::Columns, dy_b);
                    for (a, b, d) in [(&*scores, dy_rows, dv), (&*gradient, q, dk)] {
                        let (c, c_stride) = result(&head, d);
                        let product = Product {
                            rows: len,
                            depth: rows.len(),
                            a: a.as_ptr(),
                            row_step: 1,
                            unit_step: stride,
                            b,
                            first_unit: 0,
                            panels: 0..b.count(),
                            c,
                            c_stride,
                            start: if first == 0 { Start::Zero } else { Start::Sum },
                        };
                        product.run(isa, Form::F32);
                    }
                }
            }
        });
    }
}
