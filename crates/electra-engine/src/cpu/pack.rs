//! Packing: values into the order and the form in which a product reads them.

use super::gemm::{Form, PANEL, Panels, STRIP};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use crate::quantize::{quantize, row_step};

/// Weights of a row that are made bytes at once.
const QUANTIZED: usize = 256;

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
    let kernel = PackPanel {
        form,
        source,
        columns,
        first: index * PANEL,
        width: to.width(index),
        depth: to.depth,
        to: to.data.wrapping_add(index * PANEL * to.depth).cast_mut(),
    };
    isa.run_in(form, kernel);
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
            let to = self.to.wrapping_add(unit * self.width);
            match self.form {
                Form::F32 => {
                    for j in (0..self.width).step_by(LANES) {
                        // SAFETY: as the caller says.
                        unsafe { S::store(to.add(j), self.source.read::<S>(unit, self.first + j)) };
                    }
                }
                Form::Bf16 => {
                    for j in (0..self.width).step_by(2 * LANES) {
                        // SAFETY: as the caller says.
                        unsafe {
                            let (first, second) = self.source.zipped::<S>(2 * unit, self.first + j);
                            S::store(to.add(j), first);
                            if j + LANES < self.width {
                                S::store(to.add(j + LANES), second);
                            }
                        }
                    }
                }
                Form::Int8 => unreachable!("bytes are packed by `pack_panel_int8`"),
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
                            Form::Bf16 => self.source.pairs::<S>(row, 2 * unit),
                            Form::Int8 => unreachable!("bytes are packed by `pack_panel_int8`"),
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
                let pairs = unsafe { self.source.pairs::<S>(row, 2 * i * LANES) };
                S::write(words, pairs);
            }
        }
    }
}

/// How the left side of a product lies whose depth runs over the rows of a source: strips of some
/// of its columns, row `i` and unit `k` of each at `i · row_step + k · unit_step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strips {
    /// Columns of the source, which are rows of the left side.
    pub(crate) rows: usize,
    pub(crate) row_step: usize,
    pub(crate) unit_step: usize,
    units: usize,
}

impl Strips {
    /// Strips of a depth of `units`.
    pub(crate) fn new(isa: Isa, form: Form, units: usize) -> Self {
        if isa.has_tiles() && form == Form::Bf16 {
            // The matrix unit reads rows; their distance is no power of two, so that they spread
            // over the cache.
            Strips {
                rows: 2 * LANES,
                row_step: units.next_multiple_of(LANES) + LANES,
                unit_step: 1,
                units,
            }
        } else {
            Strips {
                rows: STRIP,
                row_step: 1,
                unit_step: STRIP,
                units,
            }
        }
    }

    /// Words of a strip.
    pub(crate) fn words(&self) -> usize {
        self.rows * self.row_step.max(self.units)
    }
}

/// Packs strip `index` of the source. Adds the sums of its columns to `sums`, of as many elements as
/// the strip has columns.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn pack_strip(
    isa: Isa,
    form: Form,
    source: Source,
    strips: Strips,
    index: usize,
    to: &mut [f32],
    sums: &mut [f32],
) {
    let first = index * strips.rows;
    let cols = source.cols.min(first + strips.rows);
    assert!(strips.units == form.units(source.rows) && to.len() == strips.words());
    assert!(first + sums.len() == cols);
    let kernel = PackStrip {
        form,
        source: Source { cols, ..source },
        first,
        strips,
        to,
        sums,
    };
    isa.run_in(form, kernel);
}

struct PackStrip<'a> {
    form: Form,
    /// Its columns end where the strip does.
    source: Source,
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
        let columns = self.columns();
        // SAFETY: the caller of `pack_strip` says that the source can be read.
        unsafe {
            match (self.form, self.strips.unit_step) {
                (Form::F32, _) => {
                    for (unit, words) in self.to.chunks_exact_mut(STRIP).enumerate() {
                        let values = self.source.read::<S>(unit, self.first);
                        sums[0] = S::add(sums[0], values);
                        S::write(words, values);
                    }
                }
                (Form::Bf16, 1) => {
                    for unit in (0..self.strips.units).step_by(LANES) {
                        self.rows::<S>(unit, &mut sums);
                    }
                }
                (Form::Bf16, _) => {
                    for (unit, words) in self.to.chunks_exact_mut(STRIP).enumerate() {
                        S::write(words, columns.unit::<S>(unit, &mut sums[..1]).0);
                    }
                }
                (Form::Int8, _) => unreachable!("gradients have no bytes"),
            }
        }
        for (to, sums) in self.sums.chunks_mut(LANES).zip(sums) {
            let before = S::read(to);
            S::write(to, S::add(before, sums));
        }
    }
}

/// The columns of a strip.
#[derive(Clone, Copy)]
struct StripColumns {
    source: Source,
    first: usize,
}

impl StripColumns {
    /// Unit `unit` of up to thirty-two columns; adds their values to `sums`.
    ///
    /// # Safety
    /// The source can be read.
    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, sums: &mut [S::V]) -> (S::V, S::V) {
        // SAFETY: as the caller says.
        unsafe {
            for row in [2 * unit, 2 * unit + 1] {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let values = self.source.values::<S>(row, self.first + i * LANES);
                    *sum = S::add(*sum, values);
                }
            }
            self.source.zipped::<S>(2 * unit, self.first)
        }
    }
}

impl PackStrip<'_> {
    fn columns(&self) -> StripColumns {
        StripColumns {
            source: self.source,
            first: self.first,
        }
    }

    /// Sixteen units from `unit` on, to rows.
    ///
    /// # Safety
    /// The source can be read.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&mut self, unit: usize, sums: &mut [S::V; 2]) {
        let (columns, mut halves) = (self.columns(), [[S::splat(0.0); LANES]; 2]);
        let [first, second] = &mut halves;
        let places = first.iter_mut().zip(second.iter_mut());
        for (i, (first, second)) in places.take(self.strips.units - unit).enumerate() {
            // SAFETY: as the caller says.
            (*first, *second) = unsafe { columns.unit::<S>(unit + i, sums) };
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
/// `cols.div_ceil(4)` words, `ranges` step and least value of each row.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn quantize_rows(isa: Isa, source: Source, to: &mut [f32], ranges: &mut [f32]) {
    assert!(source.form == Form::F32);
    assert!(to.len() == source.rows * source.cols.div_ceil(4) && ranges.len() == 2 * source.rows);
    isa.run(Quantize { source, to, ranges });
}

struct Quantize<'a> {
    source: Source,
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
        let units = cols.div_ceil(4).max(1);
        let rows = self.to.chunks_exact_mut(units);
        for (row, (to, range)) in rows.zip(self.ranges.chunks_exact_mut(2)).enumerate() {
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
    let (first, width) = (index * PANEL, to.width(index));
    let panel = to.data.wrapping_add(first * to.depth).cast_mut();
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
                    panel.add(unit * width + j).write(f32::from_bits(word));
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
