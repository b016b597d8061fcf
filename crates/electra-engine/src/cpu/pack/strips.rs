//! A left side for the matrix unit whose depth runs over rows.

use super::{Pairs, Rounded, Source, Way, prefetch_ahead, zipped};
use crate::cpu::gemm::Form;
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::simd::{LANES, Simd};
use crate::cpu::view::spread;

/// A left side whose depth runs over the rows of a source, as the matrix unit reads it: strips of
/// some columns of the source, each a row of units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strips {
    /// Words from row to row.
    pub(crate) row_step: usize,
    /// Units of depth.
    units: usize,
}

impl Strips {
    /// Rows of a strip, which are columns of the source.
    const ROWS: usize = 2 * LANES;

    /// Strips of a depth of `units`.
    pub(crate) fn new(units: usize) -> Self {
        Strips {
            row_step: spread(units),
            units,
        }
    }

    /// Words of a strip.
    fn words(&self) -> usize {
        Strips::ROWS * self.row_step
    }

    /// Words of the strips of `cols` columns.
    pub(crate) fn all(&self, cols: usize) -> usize {
        cols.div_ceil(Strips::ROWS) * self.words()
    }
}

/// Packs strips of a source as pairs of halves. Adds the sums of its columns to `sums`, unless that is
/// empty.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn pack_strips(
    isa: Isa,
    source: Source,
    strips: Strips,
    to: &mut [f32],
    sums: &mut [f32],
) {
    assert!(strips.units == Form::Half.units(source.rows));
    assert!(to.len() == strips.all(source.cols));
    assert!(sums.is_empty() || sums.len() == source.cols);
    let mut sums = sums.chunks_mut(Strips::ROWS);
    for (index, to) in to.chunks_exact_mut(strips.words()).enumerate() {
        isa.run_half(PackStrip {
            source,
            first: index * Strips::ROWS,
            strips,
            to,
            sums: sums.next().unwrap_or_default(),
        });
    }
}

struct PackStrip<'a> {
    source: Source,
    /// First column.
    first: usize,
    strips: Strips,
    to: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for PackStrip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: the caller of `pack_strips` says that the source can be read.
        unsafe {
            match self.source.form {
                Form::Half => self.strip::<S, Pairs>(),
                Form::F32 => self.strip::<S, Rounded>(),
                Form::Int8 => unreachable!("bytes are no left side that is turned"),
            }
        }
    }
}

impl PackStrip<'_> {
    /// # Safety
    /// The source can be read.
    #[inline(always)]
    unsafe fn strip<S: Simd, W: Way>(mut self) {
        let mut sums = [S::splat(0.0); 2];
        for unit in (0..self.strips.units).step_by(LANES) {
            // SAFETY: as the caller says.
            unsafe { self.rows::<S, W>(unit, &mut sums) };
        }
        for (to, sums) in self.sums.chunks_mut(LANES).zip(sums) {
            let before = S::read(to);
            S::write(to, S::add(before, sums));
        }
    }

    /// Sixteen units from `unit` on, to rows.
    ///
    /// # Safety
    /// The source can be read.
    // Counted loops over arrays of registers unroll; iterators over them end up in memory.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    unsafe fn rows<S: Simd, W: Way>(&mut self, unit: usize, sums: &mut [S::V; 2]) {
        let (source, first) = (self.source, self.first);
        let mut row = source.word(2 * unit, first);
        let ahead = row.wrapping_add(2 * LANES * source.stride);
        prefetch_ahead(
            ahead,
            2 * LANES,
            source.stride,
            W::SOURCE.units(Strips::ROWS),
        );
        let inside = 2 * (unit + LANES) <= source.rows && first + Strips::ROWS <= source.cols;
        let mut halves = [[S::splat(0.0); LANES]; 2];
        for i in 0..LANES {
            // SAFETY: as the caller says; what is outside reads as zeros.
            let (low, high) = unsafe {
                match inside {
                    true => zipped::<S, W>(row, source.stride),
                    false => source.zipped::<S>(2 * (unit + i), first),
                }
            };
            row = row.wrapping_add(2 * source.stride);
            sums[0] = S::add_pair_half(sums[0], low);
            sums[1] = S::add_pair_half(sums[1], high);
            halves[0][i] = low;
            halves[1][i] = high;
        }
        for half in 0..2 {
            S::transpose(&mut halves[half]);
            for i in 0..LANES {
                let to = (half * LANES + i) * self.strips.row_step + unit;
                S::write(&mut self.to[to..to + LANES], halves[half][i]);
            }
        }
    }
}
