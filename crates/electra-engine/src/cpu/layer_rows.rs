//! What is done with a layer's rows beside products, in training: residual sums with dropout and norm,
//! and the ways between f32 and the form that is kept.

use super::chain::NormWeights;
use super::dropout::{GROUP, RowDropout};
use super::gemm::Form;
use super::isa::{Isa, Kernel};
use super::layer::{RowDrops, row_dropout};
use super::norm;
use super::simd::{LANES, Simd};
use super::view::View;
use std::ops::Range;

/// `normed = norm(residual + dropout(branch))` for some rows; keeps the sum and its statistics.
pub(super) struct DropAddNorm<'a> {
    pub(super) rows: Range<usize>,
    pub(super) branch: &'a mut [f32],
    pub(super) residual: &'a [f32],
    pub(super) dropout: RowDrops<'a>,
    pub(super) norm: NormWeights<'a>,
    pub(super) sum: View,
    pub(super) stats: View,
    pub(super) normed: &'a mut [f32],
}

impl DropAddNorm<'_> {
    /// # Safety
    /// Nobody else uses these rows of sum and statistics.
    pub(super) unsafe fn run_on(self, isa: Isa) {
        isa.run_in(self.sum.form, self);
    }
}

impl Kernel for DropAddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let cols = self.norm.weight.len();
        let lines = self
            .branch
            .chunks_exact_mut(cols)
            .zip(self.residual.chunks_exact(cols))
            .zip(self.normed.chunks_exact_mut(cols));
        for (((branch, residual), normed), row) in lines.zip(self.rows) {
            let drop = row_dropout(self.dropout, row);
            for (group, (sum, residual)) in branch
                .chunks_mut(GROUP)
                .zip(residual.chunks(GROUP))
                .enumerate()
            {
                let factors = match &drop {
                    Some(drop) => drop.factors::<S>(group),
                    None => [S::splat(1.0); GROUP / LANES],
                };
                let values = sum.chunks_mut(LANES).zip(residual.chunks(LANES));
                for ((sum, residual), factor) in values.zip(factors) {
                    // Product, then sum, as two roundings, as without the fusion.
                    let kept = S::mul(S::read(sum), factor);
                    S::write(sum, S::add(S::read(residual), kept));
                }
            }
            let stats = norm::Forward {
                x: branch,
                weight: self.norm.weight,
                bias: self.norm.bias,
                eps: self.norm.eps,
                y: normed,
            }
            .run::<S>();
            // SAFETY: the caller of `run_on` says that these rows are ours.
            unsafe {
                self.stats.row_mut(row).copy_from_slice(&stats);
                write_row::<S>(branch, self.sum, row);
            }
        }
    }
}

/// A row of f32 to a view of either form.
///
/// # Safety
/// Nobody else uses the row.
#[inline(always)]
unsafe fn write_row<S: Simd>(from: &[f32], view: View, row: usize) {
    let words = view.form.units(view.cols);
    // SAFETY: in bounds by construction; ours, says the caller.
    let to = unsafe { std::slice::from_raw_parts_mut(view.word(row, 0), words) };
    if view.form == Form::Half {
        for (x, to) in from.chunks(2 * LANES).zip(to.chunks_mut(LANES)) {
            let high = S::read(&x[x.len().min(LANES)..]);
            S::write(to, S::row_half(S::read(x), high));
        }
    } else {
        to.copy_from_slice(from);
    }
}

/// Backward of [`DropAddNorm`] for some rows: the gradient by the residual, which is that by the norm's
/// input, and through dropout the gradient by the branch.
pub(super) struct NormGradient<'a> {
    pub(super) rows: Range<usize>,
    pub(super) sum: View,
    pub(super) stats: View,
    pub(super) weight: &'a [f32],
    pub(super) dy: &'a [f32],
    pub(super) dx: &'a mut [f32],
    /// Sums of the gradients by weight and bias.
    pub(super) sums: &'a mut [f32],
    pub(super) dropout: RowDrops<'a>,
    pub(super) branch: View,
}

impl NormGradient<'_> {
    /// # Safety
    /// Nobody else uses these rows of the branch, and nobody writes to sum and statistics.
    pub(super) unsafe fn run_on(self, isa: Isa) {
        isa.run_in(self.sum.form, self);
    }
}

impl Kernel for NormGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let cols = self.weight.len();
        let (d_weight, d_bias) = self.sums.split_at_mut(cols);
        let lines = self
            .dy
            .chunks_exact(cols)
            .zip(self.dx.chunks_exact_mut(cols));
        for ((dy, dx), row) in lines.zip(self.rows) {
            // SAFETY: the caller of `run_on` says that nobody writes to what forward kept, and that
            // this row of the branch is ours.
            unsafe {
                let stats = self.stats.row(row);
                // The row of x stands in dx until it is replaced.
                read_row::<S>(self.sum, row, dx);
                norm::backward_in_place::<S>(
                    dx,
                    [stats[0], stats[1]],
                    self.weight,
                    dy,
                    &mut *d_weight,
                    &mut *d_bias,
                );
                write_dropped::<S>(dx, row_dropout(self.dropout, row), self.branch, row);
            }
        }
    }
}

/// A row of a view of either form to f32.
///
/// # Safety
/// Nobody writes to the row.
#[inline(always)]
unsafe fn read_row<S: Simd>(view: View, row: usize, to: &mut [f32]) {
    let words = view.form.units(view.cols);
    // SAFETY: in bounds by construction; not written to, says the caller.
    let from = unsafe { std::slice::from_raw_parts(view.word(row, 0), words) };
    if view.form == Form::Half {
        for (pairs, to) in from.chunks(LANES).zip(to.chunks_mut(2 * LANES)) {
            let (first, second) = S::values_half(S::read(pairs));
            let (low, high) = to.split_at_mut(to.len().min(LANES));
            S::write(low, first);
            S::write(high, second);
        }
    } else {
        to.copy_from_slice(from);
    }
}

/// A row of f32, through dropout if there is one, to a view of either form.
///
/// # Safety
/// Nobody else uses the row.
#[inline(always)]
unsafe fn write_dropped<S: Simd>(
    from: &[f32],
    dropout: Option<RowDropout>,
    view: View,
    row: usize,
) {
    let Some(dropout) = dropout else {
        // SAFETY: as the caller says.
        return unsafe { write_row::<S>(from, view, row) };
    };
    for (group, from) in from.chunks(GROUP).enumerate() {
        let factors = dropout.factors::<S>(group);
        let part = view.columns(group * GROUP, from.len());
        let words = view.form.units(from.len());
        // SAFETY: in bounds by construction; ours, says the caller.
        let to = unsafe { std::slice::from_raw_parts_mut(part.word(row, 0), words) };
        if view.form == Form::Half {
            let values = from.chunks(2 * LANES).zip(factors.chunks_exact(2));
            for ((x, factors), to) in values.zip(to.chunks_mut(LANES)) {
                let low = S::mul(S::read(x), factors[0]);
                let high = S::mul(S::read(&x[x.len().min(LANES)..]), factors[1]);
                S::write(to, S::row_half(low, high));
            }
        } else {
            let values = from.chunks(LANES).zip(factors);
            for ((x, factor), to) in values.zip(to.chunks_mut(LANES)) {
                S::write(to, S::mul(S::read(x), factor));
            }
        }
    }
}
