//! Left sides in bf16: rows as pairs along them, or pairs of rows.

use super::Source;
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::simd::{LANES, Simd};

/// Rows as pairs of halves: `to` gets `rows` rows of `cols.div_ceil(2)` words, `step` words apart.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn pack_rows_half(isa: Isa, source: Source, step: usize, to: &mut [f32]) {
    assert!(to.len() == source.rows * step && step >= source.cols.div_ceil(2));
    isa.run_half(RowsHalf { source, step, to });
}

struct RowsHalf<'a> {
    source: Source,
    step: usize,
    to: &'a mut [f32],
}

impl Kernel for RowsHalf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let units = self.source.cols.div_ceil(2);
        for (row, to) in self.to.chunks_exact_mut(self.step.max(1)).enumerate() {
            for (i, words) in to[..units].chunks_mut(LANES).enumerate() {
                // SAFETY: the caller of `pack_rows_half` says that the source can be read.
                let pairs = unsafe { self.source.pairs::<S>(row, 2 * i * LANES) };
                S::write(words, pairs);
            }
        }
    }
}

/// Pairs of rows as pairs of halves: unit `u`, column `j` of `to` at `u · stride + j` holds rows `2u`
/// and `2u + 1` of column `j`. A left side whose depth runs over the rows.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn zip_rows(isa: Isa, source: Source, to: &mut [f32], stride: usize) {
    assert!(stride >= source.cols && to.len() >= source.rows.div_ceil(2) * stride);
    isa.run_half(ZipRows { source, to, stride });
}

struct ZipRows<'a> {
    source: Source,
    to: &'a mut [f32],
    stride: usize,
}

impl Kernel for ZipRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let units = self.source.rows.div_ceil(2);
        for (unit, to) in self
            .to
            .chunks_exact_mut(self.stride)
            .take(units)
            .enumerate()
        {
            for (i, to) in to[..self.source.cols].chunks_mut(2 * LANES).enumerate() {
                // SAFETY: the caller of `zip_rows` says that the source can be read.
                let (first, second) = unsafe { self.source.zipped::<S>(2 * unit, 2 * i * LANES) };
                let (low, high) = to.split_at_mut(to.len().min(LANES));
                S::write(low, first);
                S::write(high, second);
            }
        }
    }
}
