//! Packing: values into the order and the form in which a product reads them.

use super::gemm::{Form, PANEL, Panels, STRIP};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};

/// A matrix to pack: row `r` starts at `r · stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) data: *const f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

// SAFETY: an address; the functions that read say why that is sound.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// Up to sixteen values from a place on; none outside.
    ///
    /// # Safety
    /// The matrix can be read.
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, row: usize, col: usize) -> S::V {
        if row >= self.rows || col >= self.cols {
            return S::splat(0.0);
        }
        let from = self.data.wrapping_add(row * self.stride + col);
        // SAFETY: inside the matrix, which can be read.
        unsafe {
            if self.cols - col >= LANES {
                S::load(from)
            } else {
                S::load_first(from, self.cols - col)
            }
        }
    }
}

/// Which side of the source becomes the columns of the panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Columns {
    /// Its columns: the depth runs over its rows.
    Columns,
    /// Its rows: the depth runs over its columns.
    Rows,
}

/// Packs panel `index` of `to`, which stand for `source` with `columns` as columns.
///
/// # Safety
/// The source can be read, and nobody else uses the panel meanwhile.
pub(crate) unsafe fn pack_panel(
    isa: Isa,
    form: Form,
    source: Source,
    columns: Columns,
    to: Panels,
    index: usize,
) {
    let (depth, cols) = match columns {
        Columns::Columns => (source.rows, source.cols),
        Columns::Rows => (source.cols, source.rows),
    };
    assert!(form.units(depth) == to.depth && cols == to.cols && index < to.count());
    let kernel = PackPanel {
        form,
        source,
        columns,
        first: index * PANEL,
        width: to.width(index),
        depth: to.depth,
        to: to.data.wrapping_add(index * PANEL * to.depth).cast_mut(),
    };
    match form {
        Form::F32 => isa.run(kernel),
        Form::Bf16 => isa.run_bf16(kernel),
    }
}

struct PackPanel {
    form: Form,
    source: Source,
    columns: Columns,
    /// First column.
    first: usize,
    width: usize,
    /// Units.
    depth: usize,
    to: *mut f32,
}

impl Kernel for PackPanel {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: the caller of `pack_panel` vouches for both sides, whose sizes it has compared.
        unsafe {
            match self.columns {
                Columns::Columns => self.copy::<S>(),
                Columns::Rows => self.transpose::<S>(),
            }
        }
    }
}

impl PackPanel {
    /// # Safety
    /// As for [`pack_panel`].
    #[inline(always)]
    unsafe fn copy<S: Simd>(&self) {
        for unit in 0..self.depth {
            for j in (0..self.width).step_by(LANES) {
                let col = self.first + j;
                // SAFETY: as the caller says.
                unsafe {
                    let words = match self.form {
                        Form::F32 => self.source.read::<S>(unit, col),
                        Form::Bf16 => S::pair_bf16(
                            self.source.read::<S>(2 * unit, col),
                            self.source.read::<S>(2 * unit + 1, col),
                        ),
                    };
                    S::store(self.to.add(unit * self.width + j), words);
                }
            }
        }
    }

    /// # Safety
    /// As for [`pack_panel`].
    // Counted loops over arrays of registers unroll; iterators over them end up in memory.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    unsafe fn transpose<S: Simd>(&self) {
        for j in (0..self.width).step_by(LANES) {
            for unit in (0..self.depth).step_by(LANES) {
                let mut block = [S::splat(0.0); LANES];
                for i in 0..LANES {
                    let row = self.first + j + i;
                    // SAFETY: as the caller says.
                    block[i] = unsafe {
                        match self.form {
                            Form::F32 => self.source.read::<S>(row, unit),
                            Form::Bf16 => S::row_bf16(
                                self.source.read::<S>(row, 2 * unit),
                                self.source.read::<S>(row, 2 * unit + LANES),
                            ),
                        }
                    };
                }
                S::transpose(&mut block);
                for i in 0..LANES.min(self.depth - unit) {
                    // SAFETY: as the caller says.
                    unsafe { S::store(self.to.add((unit + i) * self.width + j), block[i]) };
                }
            }
        }
    }
}

/// Rows as pairs of bf16: `to` gets `rows` rows of `cols.div_ceil(2)` words.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn pack_rows_bf16(isa: Isa, source: Source, to: &mut [f32]) {
    assert_eq!(to.len(), source.rows * source.cols.div_ceil(2));
    isa.run_bf16(PackRows { source, to });
}

struct PackRows<'a> {
    source: Source,
    to: &'a mut [f32],
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let units = self.source.cols.div_ceil(2).max(1);
        for (row, to) in self.to.chunks_exact_mut(units).enumerate() {
            for (i, words) in to.chunks_mut(LANES).enumerate() {
                // SAFETY: the caller of `pack_rows_bf16` says that the source can be read.
                let (first, second) = unsafe {
                    (
                        self.source.read::<S>(row, 2 * i * LANES),
                        self.source.read::<S>(row, (2 * i + 1) * LANES),
                    )
                };
                S::write(words, S::row_bf16(first, second));
            }
        }
    }
}

/// Words of the strips of `rows` rows and `units` units.
pub(crate) fn strip_words(rows: usize, units: usize) -> usize {
    rows.div_ceil(STRIP) * STRIP * units
}

/// Packs column `strip · 6` and the following of the source as six rows of a left side whose
/// depth runs over the source's rows: row `i`, unit `k` at `k · 6 + i`. Adds the sums of the
/// columns to `sums`, if given, of up to six elements.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn pack_strip(
    isa: Isa,
    form: Form,
    source: Source,
    strip: usize,
    to: &mut [f32],
    sums: Option<&mut [f32]>,
) {
    assert_eq!(to.len(), STRIP * form.units(source.rows));
    let kernel = PackStrip {
        form,
        source,
        first: strip * STRIP,
        to,
        sums,
    };
    match form {
        Form::F32 => isa.run(kernel),
        Form::Bf16 => isa.run_bf16(kernel),
    }
}

struct PackStrip<'a> {
    form: Form,
    source: Source,
    first: usize,
    to: &'a mut [f32],
    sums: Option<&'a mut [f32]>,
}

impl Kernel for PackStrip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let source = Source {
            cols: self.source.cols.min(self.first + STRIP),
            ..self.source
        };
        let mut sums = S::splat(0.0);
        for (unit, words) in self.to.chunks_exact_mut(STRIP).enumerate() {
            // SAFETY: the caller of `pack_strip` says that the source can be read.
            unsafe {
                match self.form {
                    Form::F32 => {
                        let values = source.read::<S>(unit, self.first);
                        sums = S::add(sums, values);
                        S::write(words, values);
                    }
                    Form::Bf16 => {
                        let low = source.read::<S>(2 * unit, self.first);
                        let high = source.read::<S>(2 * unit + 1, self.first);
                        sums = S::add(S::add(sums, low), high);
                        S::write(words, S::pair_bf16(low, high));
                    }
                }
            }
        }
        if let Some(to) = self.sums {
            let before = S::read(to);
            S::write(to, S::add(before, sums));
        }
    }
}
