//! Packing: values into the order and the form in which a product reads them.

mod bytes;
mod halves;
mod strips;

pub(crate) use bytes::{pack_panel_int8, quantize_row, quantize_rows};
pub(crate) use halves::{pack_rows_half, zip_rows};
pub(crate) use strips::{Strips, pack_strips};

use super::gemm::{Form, PANEL, Panels};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use super::view::{LINE, prefetch};
use std::ops::Range;

/// Units of depth that are prefetched.
const AHEAD: usize = 8;

/// A matrix to pack, of f32 or of pairs of halves: row `r` starts at word `r · stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) form: Form,
    pub(crate) data: *const f32,
    pub(crate) rows: usize,
    /// Values of a row.
    pub(crate) cols: usize,
    /// Words from row to row.
    pub(crate) stride: usize,
}

// SAFETY: an address; the functions that read say why that is sound.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// Up to sixteen words from a place on; zeros outside.
    ///
    /// # Safety
    /// The matrix can be read.
    #[inline(always)]
    unsafe fn words<S: Simd>(&self, row: usize, word: usize, words: usize) -> S::V {
        if row >= self.rows || word >= words {
            return S::splat(0.0);
        }
        let from = self.data.wrapping_add(row * self.stride + word);
        // SAFETY: inside the matrix, which can be read.
        unsafe {
            if words - word >= LANES {
                S::load(from)
            } else {
                S::load_first(from, words - word)
            }
        }
    }

    /// Up to sixteen values of a matrix of f32 from a place on; zeros outside.
    ///
    /// # Safety
    /// The matrix can be read.
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, row: usize, col: usize) -> S::V {
        // SAFETY: as the caller says.
        unsafe { self.words::<S>(row, col, self.cols) }
    }

    /// Up to thirty-two values as pairs of halves from an even column on; zeros outside.
    ///
    /// # Safety
    /// The matrix can be read.
    #[inline(always)]
    unsafe fn pairs<S: Simd>(&self, row: usize, col: usize) -> S::V {
        // SAFETY: as the caller says.
        unsafe {
            match self.form {
                Form::Half => self.words::<S>(row, col / 2, self.cols.div_ceil(2)),
                _ => S::row_half(self.read::<S>(row, col), self.read::<S>(row, col + LANES)),
            }
        }
    }

    /// Up to sixteen values from an even column on; zeros outside.
    ///
    /// # Safety
    /// The matrix can be read.
    #[inline(always)]
    pub(super) unsafe fn values<S: Simd>(&self, row: usize, col: usize) -> S::V {
        // SAFETY: as the caller says.
        unsafe {
            match self.form {
                Form::Half => S::values_half(self.pairs::<S>(row, col)).0,
                _ => self.read::<S>(row, col),
            }
        }
    }

    /// Address of the word that begins with an element.
    #[inline(always)]
    fn word(&self, row: usize, col: usize) -> *const f32 {
        self.data
            .wrapping_add(row * self.stride + self.form.units(col))
    }

    /// Up to thirty-two columns from an even one on, as pairs of two rows: the first sixteen and
    /// the others.
    ///
    /// # Safety
    /// The matrix can be read.
    #[inline(always)]
    unsafe fn zipped<S: Simd>(&self, row: usize, col: usize) -> (S::V, S::V) {
        // SAFETY: as the caller says.
        unsafe {
            match self.form {
                Form::Half => S::zip_half(self.pairs::<S>(row, col), self.pairs::<S>(row + 1, col)),
                _ => (
                    S::pair_half(self.read::<S>(row, col), self.read::<S>(row + 1, col)),
                    S::pair_half(
                        self.read::<S>(row, col + LANES),
                        self.read::<S>(row + 1, col + LANES),
                    ),
                ),
            }
        }
    }
}

/// What is packed into what, known when a kernel is compiled.
trait Way {
    /// Form of the panels.
    const FORM: Form;
    /// Form of the source.
    const SOURCE: Form;
}

/// f32 as they are.
struct Exact;
/// Pairs of halves as they are.
struct Pairs;
/// f32, rounded to pairs of halves.
struct Rounded;

impl Way for Exact {
    const FORM: Form = Form::F32;
    const SOURCE: Form = Form::F32;
}

impl Way for Pairs {
    const FORM: Form = Form::Half;
    const SOURCE: Form = Form::Half;
}

impl Way for Rounded {
    const FORM: Form = Form::Half;
    const SOURCE: Form = Form::F32;
}

/// Sixteen words of a row: f32, or pairs of halves that thirty-two values make.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn sixteen<S: Simd, W: Way>(row: *const f32) -> S::V {
    // SAFETY: as the caller says.
    unsafe {
        match (W::FORM, W::SOURCE) {
            (Form::Half, Form::F32) => S::row_half(S::load(row), S::load(row.add(LANES))),
            _ => S::load(row),
        }
    }
}

/// Thirty-two columns of a row and of the one below, as pairs of the two: the first sixteen, and the
/// others.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn zipped<S: Simd, W: Way>(row: *const f32, stride: usize) -> (S::V, S::V) {
    // SAFETY: as the caller says.
    unsafe {
        let below = row.add(stride);
        match W::SOURCE {
            Form::Half => S::zip_half(S::load(row), S::load(below)),
            _ => (
                S::pair_half(S::load(row), S::load(below)),
                S::pair_half(S::load(row.add(LANES)), S::load(below.add(LANES))),
            ),
        }
    }
}

/// Prefetches `words` words of each of some rows that will be read soon.
#[inline(always)]
fn prefetch_ahead(mut row: *const f32, rows: usize, stride: usize, words: usize) {
    for _ in 0..rows {
        for word in (0..words).step_by(LINE) {
            prefetch(row.wrapping_add(word));
        }
        row = row.wrapping_add(stride);
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
    match columns {
        // SAFETY: as the caller says.
        Columns::Columns => unsafe {
            pack_rows(isa, form, source, to, index..index + 1);
        },
        Columns::Rows => {
            isa.run_in(
                form,
                Transpose {
                    form,
                    source,
                    to,
                    index,
                },
            );
        }
    }
}

/// Packs some panels of `to`, which stand for `source`: the depth runs over its rows, of which there
/// may be fewer than the panels have room for.
///
/// # Safety
/// The source can be read, and nobody else uses these panels meanwhile.
pub(crate) unsafe fn pack_rows(
    isa: Isa,
    form: Form,
    source: Source,
    to: Panels,
    panels: Range<usize>,
) {
    let units = form.units(source.rows);
    assert!(units <= to.depth && source.cols == to.cols && panels.end <= to.count());
    let kernel = PackRows {
        form,
        units,
        source,
        to,
        panels,
    };
    isa.run_in(form, kernel);
}

struct PackRows {
    form: Form,
    /// Units of the source.
    units: usize,
    source: Source,
    to: Panels,
    panels: Range<usize>,
}

impl Kernel for PackRows {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: the caller of `pack_rows` vouches for both sides, whose sizes it has compared.
        unsafe {
            match (self.form, self.source.form) {
                (Form::F32, Form::F32) => self.rows::<S, Exact>(),
                (Form::Half, Form::Half) => self.rows::<S, Pairs>(),
                (Form::Half, Form::F32) => self.rows::<S, Rounded>(),
                (to, from) => unreachable!("{from:?} is not packed as {to:?} here"),
            }
        }
    }
}

impl PackRows {
    /// # Safety
    /// The source can be read, and nobody else uses the panels.
    #[inline(always)]
    unsafe fn rows<S: Simd, W: Way>(self) {
        let (source, to) = (self.source, self.to);
        let values = W::FORM.values();
        // What lies inside the source needs no look at its ends.
        let whole = source.rows / values;
        let full = self.panels.start..self.panels.end.min(source.cols / PANEL);
        let words = W::SOURCE.units(PANEL);
        let next = to.lanes_step();
        for unit in 0..whole {
            let mut row = source.word(unit * values, full.start * PANEL);
            let ahead = row.wrapping_add(AHEAD * values * source.stride);
            prefetch_ahead(ahead, values, source.stride, full.len() * words);
            let mut panel = to.at(full.start, unit).cast_mut();
            for _ in full.clone() {
                // SAFETY: as the caller says; inside the source.
                unsafe {
                    if W::FORM == Form::F32 {
                        for j in 0..PANEL / LANES {
                            S::store(panel.add(j * next), S::load(row.add(j * LANES)));
                        }
                    } else {
                        for j in 0..PANEL / LANES / 2 {
                            let from = row.add(j * W::SOURCE.units(2 * LANES));
                            let (low, high) = zipped::<S, W>(from, source.stride);
                            S::store(panel.add(2 * j * next), low);
                            S::store(panel.add((2 * j + 1) * next), high);
                        }
                    }
                }
                row = row.wrapping_add(words);
                panel = panel.wrapping_add(PANEL * to.depth);
            }
        }
        for unit in 0..self.units {
            let panels = match unit < whole {
                true => full.end.max(full.start)..self.panels.end,
                false => self.panels.clone(),
            };
            for panel in panels {
                // SAFETY: as the caller says.
                unsafe { self.edge::<S, W>(unit, panel) };
            }
        }
    }

    /// A unit of a panel at the source's end.
    ///
    /// # Safety
    /// As for [`rows`](PackRows::rows).
    #[inline(always)]
    unsafe fn edge<S: Simd, W: Way>(&self, unit: usize, panel: usize) {
        let (width, first) = (self.to.width(panel), panel * PANEL);
        let to = self.to.at(panel, unit).cast_mut();
        let next = self.to.lanes_step();
        // SAFETY: as the caller says.
        unsafe {
            if W::FORM == Form::F32 {
                for j in (0..width).step_by(LANES) {
                    let words = self.source.read::<S>(unit, first + j);
                    S::store(to.add(j / LANES * next), words);
                }
                return;
            }
            for j in (0..width).step_by(2 * LANES) {
                let (low, high) = self.source.zipped::<S>(2 * unit, first + j);
                let to = to.add(j / LANES * next);
                S::store(to, low);
                if j + LANES < width {
                    S::store(to.add(next), high);
                }
            }
        }
    }
}

/// Packs a panel whose columns are rows of the source.
struct Transpose {
    form: Form,
    source: Source,
    to: Panels,
    index: usize,
}

impl Kernel for Transpose {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: the caller of `pack_panel` says that the source can be read and the panel is ours.
        unsafe {
            match (self.form, self.source.form) {
                (Form::F32, Form::F32) => self.blocks::<S, Exact>(),
                (Form::Half, Form::Half) => self.blocks::<S, Pairs>(),
                (Form::Half, Form::F32) => self.blocks::<S, Rounded>(),
                (to, from) => unreachable!("{from:?} is not packed as {to:?} here"),
            }
        }
    }
}

impl Transpose {
    /// # Safety
    /// The source can be read, and nobody else uses the panel.
    // Counted loops over arrays of registers unroll; iterators over them end up in memory.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    unsafe fn blocks<S: Simd, W: Way>(self) {
        let source = self.source;
        let (width, depth) = (self.to.width(self.index), self.to.depth);
        let step = self.to.unit_step(self.index);
        let panel = self.to.at(self.index, 0).cast_mut();
        let values = LANES * W::FORM.values();
        for j in (0..width).step_by(LANES) {
            let first = self.index * PANEL + j;
            for unit in (0..depth).step_by(LANES) {
                let col = unit * W::FORM.values();
                let mut row = source.word(first, col);
                let ahead = row.wrapping_add(LANES * source.stride);
                prefetch_ahead(ahead, LANES, source.stride, W::SOURCE.units(values));
                let inside = first + LANES <= source.rows && col + values <= source.cols;
                let mut block = [S::splat(0.0); LANES];
                for i in 0..LANES {
                    // SAFETY: as the caller says.
                    block[i] = unsafe {
                        match (inside, W::FORM) {
                            (true, _) => sixteen::<S, W>(row),
                            (false, Form::F32) => source.read::<S>(first + i, col),
                            (false, _) => source.pairs::<S>(first + i, col),
                        }
                    };
                    row = row.wrapping_add(source.stride);
                }
                S::transpose(&mut block);
                let to = panel.wrapping_add(j / LANES * self.to.lanes_step());
                for i in 0..LANES.min(depth - unit) {
                    let to = to.wrapping_add((unit + i) * step);
                    // SAFETY: as the caller says.
                    unsafe { S::store(to, block[i]) };
                }
            }
        }
    }
}

/// Adds the sums of the columns of panels' first units to `to`; of bf16, of both values of a pair.
///
/// # Safety
/// The panels can be read.
pub(crate) unsafe fn add_column_sums(
    isa: Isa,
    form: Form,
    panels: Panels,
    units: usize,
    to: &mut [f32],
) {
    assert!(to.len() == panels.cols && units <= panels.depth && panels.lanes_step() == LANES);
    let kernel = ColumnSums {
        form,
        panels,
        units,
        to,
    };
    isa.run_in(form, kernel);
}

struct ColumnSums<'a> {
    form: Form,
    panels: Panels,
    units: usize,
    to: &'a mut [f32],
}

impl Kernel for ColumnSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let panels = self.panels;
        for (panel, to) in self.to.chunks_mut(PANEL).enumerate() {
            let width = panels.width(panel);
            let mut sums = [S::splat(0.0); PANEL / LANES];
            for unit in 0..self.units {
                for (sum, first) in sums.iter_mut().zip((0..width).step_by(LANES)) {
                    // SAFETY: the caller of `add_column_sums` says that panels can be read.
                    let words = unsafe { S::load(panels.at(panel, unit).wrapping_add(first)) };
                    *sum = match self.form {
                        Form::F32 => S::add(*sum, words),
                        _ => S::add_pair_half(*sum, words),
                    };
                }
            }
            for (to, sum) in to.chunks_mut(LANES).zip(sums) {
                let before = S::read(to);
                S::write(to, S::add(before, sum));
            }
        }
    }
}

#[cfg(test)]
mod tests;
