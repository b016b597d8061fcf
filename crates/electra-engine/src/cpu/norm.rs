//! Layer norm.

use super::isa::Kernel;
use super::params::CpuParams;
use super::simd::{LANES, Simd};
use super::view::{Shared, part};
use super::{Cpu, Flat};
use crate::backend::{Array, Norm};

/// Rows whose part of the parameters' gradients is summed by one task.
const ROWS: usize = 64;

/// Sums that are added to by turns.
const SUMS: usize = 4;

/// Their sum.
#[inline(always)]
fn total<S: Simd>([a, b, c, d]: [S::V; SUMS]) -> S::V {
    S::add(S::add(a, b), S::add(c, d))
}

/// Mean and reciprocal deviation of a row.
#[inline(always)]
fn stats<S: Simd>(x: &[f32], eps: f32) -> [f32; 2] {
    let n = x.len() as f32;
    // Sums side by side: each addition waits for the one before.
    let mut sums = [S::splat(0.0); SUMS];
    for x in x.chunks(SUMS * LANES) {
        for (sum, x) in sums.iter_mut().zip(x.chunks(LANES)) {
            *sum = S::add(*sum, S::read(x));
        }
    }
    let mean = S::sum(total::<S>(sums)) / n;
    let center = S::splat(mean);
    let mut squares = [S::splat(0.0); SUMS];
    let (full, rest) = x.split_at(x.len() / LANES * LANES);
    for x in full.chunks(SUMS * LANES) {
        for (squares, x) in squares.iter_mut().zip(x.chunks_exact(LANES)) {
            let d = S::sub(S::read(x), center);
            *squares = S::fma(d, d, *squares);
        }
    }
    let mut variance = S::sum(total::<S>(squares));
    for &x in rest {
        variance += (x - mean) * (x - mean);
    }
    [mean, 1.0 / (variance / n + eps).sqrt()]
}

/// One row; returns mean and reciprocal deviation.
pub(super) struct Forward<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
    pub(super) y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; 2] {
        let stats = stats::<S>(self.x, self.eps);
        let (mean, scale) = (S::splat(stats[0]), S::splat(stats[1]));
        for (((x, y), w), b) in self
            .x
            .chunks(LANES)
            .zip(self.y.chunks_mut(LANES))
            .zip(self.weight.chunks(LANES))
            .zip(self.bias.chunks(LANES))
        {
            let hat = S::mul(S::sub(S::read(x), mean), scale);
            S::write(y, S::fma(hat, S::read(w), S::read(b)));
        }
        stats
    }
}

/// A row in its own place.
#[inline(always)]
pub(super) fn forward_in_place<S: Simd>(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let stats = stats::<S>(x, eps);
    let (mean, scale) = (S::splat(stats[0]), S::splat(stats[1]));
    for ((x, w), b) in x
        .chunks_mut(LANES)
        .zip(weight.chunks(LANES))
        .zip(bias.chunks(LANES))
    {
        let hat = S::mul(S::sub(S::read(x), mean), scale);
        S::write(x, S::fma(hat, S::read(w), S::read(b)));
    }
}

/// One row: x is replaced by the gradient by it; adds to the gradients by weight and bias.
#[inline(always)]
pub(super) fn backward_in_place<S: Simd>(
    x: &mut [f32],
    stats: [f32; 2],
    weight: &[f32],
    dy: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let n = x.len() as f32;
    let (mean, reciprocal) = (S::splat(stats[0]), S::splat(stats[1]));
    let (mut sum, mut dot) = (S::splat(0.0), S::splat(0.0));
    for ((((x, dy), w), d_weight), d_bias) in x
        .chunks_mut(LANES)
        .zip(dy.chunks(LANES))
        .zip(weight.chunks(LANES))
        .zip(d_weight.chunks_mut(LANES))
        .zip(d_bias.chunks_mut(LANES))
    {
        let dy = S::read(dy);
        let hat = S::mul(S::sub(S::read(x), mean), reciprocal);
        let d_hat = S::mul(dy, S::read(w));
        sum = S::add(sum, d_hat);
        dot = S::fma(d_hat, hat, dot);
        let (d_w, d_b) = (S::read(d_weight), S::read(d_bias));
        S::write(d_weight, S::fma(dy, hat, d_w));
        S::write(d_bias, S::add(d_b, dy));
        S::write(x, hat);
    }
    let (sum, dot) = (S::splat(S::sum(sum) / n), S::splat(S::sum(dot) / n));
    for ((x, dy), w) in x
        .chunks_mut(LANES)
        .zip(dy.chunks(LANES))
        .zip(weight.chunks(LANES))
    {
        let d_hat = S::mul(S::read(dy), S::read(w));
        let d = S::sub(S::sub(d_hat, sum), S::mul(S::read(x), dot));
        S::write(x, S::mul(reciprocal, d));
    }
}

/// [`backward_in_place`] from x to dx.
struct Backward<'a> {
    x: &'a [f32],
    stats: [f32; 2],
    weight: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    d_weight: &'a mut [f32],
    d_bias: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        self.dx.copy_from_slice(self.x);
        backward_in_place::<S>(
            self.dx,
            self.stats,
            self.weight,
            self.dy,
            self.d_weight,
            self.d_bias,
        );
    }
}

impl Cpu {
    pub(super) fn norm_forward(
        &mut self,
        params: &CpuParams,
        x: Array,
        norm: &Norm,
        y: Array,
        stats: Array,
    ) {
        assert!(x.rows == y.rows && x.cols == y.cols);
        assert!(stats.rows == x.rows && stats.cols == 2);
        let (weight, bias) = (params.slice(norm.weight), params.slice(norm.bias));
        assert!(weight.len() == x.cols && bias.len() == x.cols);
        let (x, y, stats) = (self.view(x), self.view(y), self.view(stats));
        assert!(!x.overlaps(&y) && !stats.overlaps(&x) && !stats.overlaps(&y));
        let (isa, eps) = (self.isa, norm.eps);
        self.pool.rows(x.rows, x.cols, |rows, _| {
            for r in rows {
                // SAFETY: row r of y and stats is this task's, and nobody writes to x.
                let (x, y, stats) = unsafe { (x.row(r), y.row_mut(r), stats.row_mut(r)) };
                let kept = isa.run(Forward {
                    x,
                    weight,
                    bias,
                    eps,
                    y,
                });
                stats.copy_from_slice(&kept);
            }
        });
    }

    pub(super) fn norm_backward(
        &mut self,
        params: &CpuParams,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        grads: &mut Flat,
    ) {
        let cols = x.cols;
        assert!(x.rows == dy.rows && x.rows == dx.rows && x.rows == stats.rows);
        assert!(cols == dy.cols && cols == dx.cols && stats.cols == 2);
        assert!(norm.weight.len() == cols && norm.bias.len() == cols);
        let weight = params.slice(norm.weight);
        let [x, stats, dy, dx] = [x, stats, dy, dx].map(|a| self.view(a));
        assert!(!dx.overlaps(&x) && !dx.overlaps(&stats) && !dx.overlaps(&dy));
        let isa = self.isa;
        let chunks = x.rows.div_ceil(ROWS);
        self.left.reserve(chunks * 2 * cols);
        let partial = Shared(self.left.as_ptr());
        self.pool.run(chunks, |chunk, _| {
            // SAFETY: the chunk's part of the buffer is this task's.
            let sums = unsafe { partial.slice_mut(chunk * 2 * cols, 2 * cols) };
            sums.fill(0.0);
            let (d_weight, d_bias) = sums.split_at_mut(cols);
            for r in part(x.rows, ROWS, chunk) {
                // SAFETY: row r of dx is this task's, and nobody writes to the others.
                let (x, stats, dy, dx) =
                    unsafe { (x.row(r), stats.row(r), dy.row(r), dx.row_mut(r)) };
                isa.run(Backward {
                    x,
                    stats: [stats[0], stats[1]],
                    weight,
                    dy,
                    dx,
                    d_weight: &mut *d_weight,
                    d_bias: &mut *d_bias,
                });
            }
        });
        let grads = grads.as_mut_slice();
        for sums in self.left.as_slice()[..chunks * 2 * cols].chunks_exact(2 * cols) {
            let (d_weight, d_bias) = sums.split_at(cols);
            for (view, sums) in [(norm.weight, d_weight), (norm.bias, d_bias)] {
                for (g, s) in grads[view.range()].iter_mut().zip(sums) {
                    *g += s;
                }
            }
        }
    }
}
