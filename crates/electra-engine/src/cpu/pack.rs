//! Packing: values into the order and the form in which a product reads them.

use super::gemm::{Form, PANEL, Panels};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use super::view::{LINE, prefetch, spread};
use crate::quantize::{quantize, row_step};
use std::ops::Range;

/// Weights of a row that are made bytes at once.
const QUANTIZED: usize = 256;
/// Units of depth that are asked for ahead.
const AHEAD: usize = 8;

/// A matrix to pack, of f32 or of pairs of bf16: row `r` starts at word `r · stride`.
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

    /// Up to thirty-two values as pairs of bf16 from an even column on; zeros outside.
    ///
    /// # Safety
    /// The matrix can be read.
    #[inline(always)]
    unsafe fn pairs<S: Simd>(&self, row: usize, col: usize) -> S::V {
        // SAFETY: as the caller says.
        unsafe {
            match self.form {
                Form::Bf16 => self.words::<S>(row, col / 2, self.cols.div_ceil(2)),
                _ => S::row_bf16(self.read::<S>(row, col), self.read::<S>(row, col + LANES)),
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
                Form::Bf16 => S::values_bf16(self.pairs::<S>(row, col)).0,
                _ => self.read::<S>(row, col),
            }
        }
    }

    /// Asks for `cols` columns from `first` on of rows that will be read soon.
    #[inline(always)]
    fn prefetch(&self, rows: Range<usize>, first: usize, cols: usize) {
        let words = self.form.units(cols);
        for row in rows {
            let from = self
                .data
                .wrapping_add(row * self.stride + self.form.units(first));
            for word in (0..words).step_by(LINE) {
                prefetch(from.wrapping_add(word));
            }
        }
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
                Form::Bf16 => S::zip_bf16(self.pairs::<S>(row, col), self.pairs::<S>(row + 1, col)),
                _ => (
                    S::pair_bf16(self.read::<S>(row, col), self.read::<S>(row + 1, col)),
                    S::pair_bf16(
                        self.read::<S>(row, col + LANES),
                        self.read::<S>(row + 1, col + LANES),
                    ),
                ),
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
        let columns = self.panels.start * PANEL..self.to.cols.min(self.panels.end * PANEL);
        let rows = self.form.values();
        for unit in 0..self.units {
            let ahead = rows * (unit + AHEAD);
            self.source
                .prefetch(ahead..ahead + rows, columns.start, columns.len());
            for panel in self.panels.clone() {
                let (width, first) = (self.to.width(panel), panel * PANEL);
                let to = self.to.at(panel, unit).cast_mut();
                let next = self.to.lanes_step();
                // SAFETY: the caller of `pack_rows` vouches for both sides, whose sizes it has
                // compared.
                unsafe {
                    match self.form {
                        Form::F32 => {
                            for j in (0..width).step_by(LANES) {
                                let words = self.source.read::<S>(unit, first + j);
                                S::store(to.add(j / LANES * next), words);
                            }
                        }
                        Form::Bf16 => {
                            for j in (0..width).step_by(2 * LANES) {
                                let (low, high) = self.source.zipped::<S>(2 * unit, first + j);
                                let to = to.add(j / LANES * next);
                                S::store(to, low);
                                if j + LANES < width {
                                    S::store(to.add(next), high);
                                }
                            }
                        }
                        Form::Int8 => unreachable!("bytes are packed by `pack_panel_int8`"),
                    }
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

    // Counted loops over arrays of registers unroll; iterators over them end up in memory.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (width, depth) = (self.to.width(self.index), self.to.depth);
        let step = self.to.unit_step(self.index);
        let panel = self.to.at(self.index, 0).cast_mut();
        for j in (0..width).step_by(LANES) {
            for unit in (0..depth).step_by(LANES) {
                let first = self.index * PANEL + j;
                let (after, values) = (first + LANES, self.form.values());
                self.source
                    .prefetch(after..after + LANES, unit * values, LANES * values);
                let mut block = [S::splat(0.0); LANES];
                for i in 0..LANES {
                    let row = first + i;
                    // SAFETY: the caller of `pack_panel` says that the source can be read.
                    block[i] = unsafe {
                        match self.form {
                            Form::F32 => self.source.read::<S>(row, unit),
                            Form::Bf16 => self.source.pairs::<S>(row, 2 * unit),
                            Form::Int8 => unreachable!("bytes are packed by `pack_panel_int8`"),
                        }
                    };
                }
                S::transpose(&mut block);
                let to = panel.wrapping_add(j / LANES * self.to.lanes_step());
                for i in 0..LANES.min(depth - unit) {
                    let to = to.wrapping_add((unit + i) * step);
                    // SAFETY: nobody else uses the panel, says the caller of `pack_panel`.
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
                        _ => {
                            let ones = S::pair_bf16(S::splat(1.0), S::splat(1.0));
                            S::dot_bf16(*sum, words, ones)
                        }
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

/// Rows as pairs of bf16: `to` gets `rows` rows of `cols.div_ceil(2)` words, `step` words apart.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn pack_rows_bf16(isa: Isa, source: Source, step: usize, to: &mut [f32]) {
    assert!(to.len() == source.rows * step && step >= source.cols.div_ceil(2));
    isa.run_bf16(RowsBf16 { source, step, to });
}

struct RowsBf16<'a> {
    source: Source,
    step: usize,
    to: &'a mut [f32],
}

impl Kernel for RowsBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let units = self.source.cols.div_ceil(2);
        for (row, to) in self.to.chunks_exact_mut(self.step.max(1)).enumerate() {
            for (i, words) in to[..units].chunks_mut(LANES).enumerate() {
                // SAFETY: the caller of `pack_rows_bf16` says that the source can be read.
                let pairs = unsafe { self.source.pairs::<S>(row, 2 * i * LANES) };
                S::write(words, pairs);
            }
        }
    }
}

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

/// Packs strips of a source as pairs of bf16. Adds the sums of its columns to `sums`, unless that is
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
    assert!(strips.units == Form::Bf16.units(source.rows));
    assert!(to.len() == strips.all(source.cols));
    assert!(sums.is_empty() || sums.len() == source.cols);
    let mut sums = sums.chunks_mut(Strips::ROWS);
    for (index, to) in to.chunks_exact_mut(strips.words()).enumerate() {
        isa.run_bf16(PackStrip {
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
    fn run<S: Simd>(mut self) {
        let mut sums = [S::splat(0.0); 2];
        for unit in (0..self.strips.units).step_by(LANES) {
            // SAFETY: the caller of `pack_strips` says that the source can be read.
            unsafe { self.rows::<S>(unit, &mut sums) };
        }
        for (to, sums) in self.sums.chunks_mut(LANES).zip(sums) {
            let before = S::read(to);
            S::write(to, S::add(before, sums));
        }
    }
}

impl PackStrip<'_> {
    /// Sixteen units from `unit` on, to rows.
    ///
    /// # Safety
    /// The source can be read.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&mut self, unit: usize, sums: &mut [S::V; 2]) {
        let ahead = 2 * (unit + LANES);
        self.source
            .prefetch(ahead..ahead + 2 * LANES, self.first, Strips::ROWS);
        let ones = S::pair_bf16(S::splat(1.0), S::splat(1.0));
        let mut halves = [[S::splat(0.0); LANES]; 2];
        let [first, second] = &mut halves;
        let places = first.iter_mut().zip(second.iter_mut());
        for (i, (first, second)) in places.take(self.strips.units - unit).enumerate() {
            // SAFETY: as the caller says.
            (*first, *second) = unsafe { self.source.zipped::<S>(2 * (unit + i), self.first) };
            sums[0] = S::dot_bf16(sums[0], *first, ones);
            sums[1] = S::dot_bf16(sums[1], *second, ones);
        }
        for (half, block) in halves.iter_mut().enumerate() {
            S::transpose(block);
            for (i, words) in block.iter().enumerate() {
                let to = (half * LANES + i) * self.strips.row_step + unit;
                S::write(&mut self.to[to..to + LANES], *words);
            }
        }
    }
}

/// Rows of f32 as bytes: a value stands for `step · byte + least`. `to` gets `rows` rows of
/// `cols.div_ceil(4)` words, `step` words apart, `ranges` step and least value of each row.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn quantize_rows(
    isa: Isa,
    source: Source,
    step: usize,
    to: &mut [f32],
    ranges: &mut [f32],
) {
    assert!(source.form == Form::F32 && step >= source.cols.div_ceil(4));
    assert!(to.len() == source.rows * step && ranges.len() == 2 * source.rows);
    isa.run(Quantize {
        source,
        step,
        to,
        ranges,
    });
}

struct Quantize<'a> {
    source: Source,
    step: usize,
    to: &'a mut [f32],
    ranges: &'a mut [f32],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Source {
            data, cols, stride, ..
        } = self.source;
        let units = cols.div_ceil(4);
        let rows = self.to.chunks_exact_mut(self.step.max(1));
        for (row, (to, range)) in rows.zip(self.ranges.chunks_exact_mut(2)).enumerate() {
            let to = &mut to[..units];
            // SAFETY: the caller of `quantize_rows` says that the source can be read.
            let x = unsafe { std::slice::from_raw_parts(data.add(row * stride), cols) };
            let (full, rest) = x.split_at(cols / LANES * LANES);
            let (mut least, mut greatest) = (S::splat(f32::INFINITY), S::splat(f32::NEG_INFINITY));
            let mut poison = S::splat(0.0);
            for x in full.chunks_exact(LANES) {
                let x = S::read(x);
                least = S::min(least, x);
                greatest = S::max(greatest, x);
                poison = S::fma(x, S::splat(0.0), poison);
            }
            let (mut least, mut greatest) = (S::least(least), S::greatest(greatest));
            let mut poison = S::sum(poison);
            for &x in rest {
                least = least.min(x);
                greatest = greatest.max(x);
                poison += x * 0.0;
            }
            // What is no number, or infinite, makes the step no number, and so all results.
            let step = (greatest - least) / 255.0 + poison;
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            range.copy_from_slice(&[step, least]);
            let (scale, shift) = (S::splat(inverse), S::splat(least));
            for (x, to) in x.chunks(4 * LANES).zip(to.chunks_mut(LANES)) {
                let mut steps = [S::splat(0.0); 4];
                for (i, steps) in steps.iter_mut().enumerate() {
                    let x = S::read(&x[x.len().min(i * LANES)..]);
                    *steps = S::mul(S::sub(x, shift), scale);
                }
                S::write(to, S::bytes(steps));
            }
        }
    }
}

/// Packs panel `index` of `to` with the rows of a matrix of f32 as columns of bytes: a value stands
/// for `step · byte`. `steps` and `sums` get the steps and the sums of the values that the bytes
/// stand for, of every column of `to`.
///
/// # Safety
/// The source can be read, and nobody else uses the panel and its part of steps and sums meanwhile.
pub(crate) unsafe fn pack_panel_int8(
    source: Source,
    to: Panels,
    index: usize,
    steps: *mut f32,
    sums: *mut f32,
) {
    assert!(source.form == Form::F32);
    assert!(Form::Int8.units(source.cols) == to.depth && source.rows == to.cols);
    let first = index * PANEL;
    let (panel, unit_step, lanes_step) = (
        to.at(index, 0).cast_mut(),
        to.unit_step(index),
        to.lanes_step(),
    );
    for j in 0..PANEL.min(to.cols - first) {
        // SAFETY: as the caller says.
        unsafe {
            let from = source.data.add((first + j) * source.stride);
            let row = std::slice::from_raw_parts(from, source.cols);
            let step = row_step(row);
            let mut sum = 0;
            let mut bytes = [0; QUANTIZED];
            for (chunk, row) in row.chunks(QUANTIZED).enumerate() {
                bytes[row.len()..].fill(0);
                sum += quantize(row, step, &mut bytes[..row.len()]);
                let fours = bytes.chunks_exact(4).take(row.len().div_ceil(4));
                for (unit, four) in fours.enumerate() {
                    let word =
                        u32::from_le_bytes([four[0], four[1], four[2], four[3]].map(|b| b as u8));
                    let unit = chunk * (QUANTIZED / 4) + unit;
                    let at = j / LANES * lanes_step + unit * unit_step + j % LANES;
                    panel.add(at).write(f32::from_bits(word));
                }
            }
            steps.add(first + j).write(step);
            sums.add(first + j).write(step * sum as f32);
        }
    }
}

/// Pairs of rows as pairs of bf16: unit `u`, column `j` of `to` at `u · stride + j` holds rows `2u`
/// and `2u + 1` of column `j`. A left side whose depth runs over the rows.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn zip_rows(isa: Isa, source: Source, to: &mut [f32], stride: usize) {
    assert!(stride >= source.cols && to.len() >= source.rows.div_ceil(2) * stride);
    isa.run_bf16(ZipRows { source, to, stride });
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
