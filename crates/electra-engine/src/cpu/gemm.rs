//! The matrix product: tiles of six rows by up to 64 columns, over a packed right side.
//!
//! Each element of the result is summed over the depth in order, by itself, whatever stands
//! around it; so neither the number of rows nor the split into tasks changes a bit.

use super::epilogue::Epilogue;
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
#[cfg(target_arch = "x86_64")]
use super::tiles::{EpilogueTiles, Tiles};
use super::view::{LINE, prefetch};
use std::marker::PhantomData;
use std::ops::Range;

/// Rows of a tile.
pub(crate) const STRIP: usize = 6;
/// Columns of a packed panel.
pub(crate) const PANEL: usize = 64;
/// Units of depth between two askings for words of the next panel.
const APART: usize = 16;
/// What the words of both sides of a product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One f32 a word.
    F32,
    /// Two values of sixteen bits that are neighbours along the depth a word: bf16, or f16 where the
    /// instruction set multiplies these, see [`Isa::has_f16`].
    Half,
    /// Four bytes that are neighbours along the depth a word: unsigned on the left side, signed on
    /// the right; see [`Start::Scaled`].
    Int8,
}

impl Form {
    /// Values of a word.
    pub(crate) fn values(self) -> usize {
        match self {
            Form::F32 => 1,
            Form::Half => 2,
            Form::Int8 => 4,
        }
    }

    /// Words that a depth of `depth` values takes.
    pub(crate) fn units(self, depth: usize) -> usize {
        depth.div_ceil(self.values())
    }
}

/// What a product starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// What stands in the result.
    Sum,
    /// A bias, one f32 a column.
    Bias(*const f32),
    /// For bytes: a value of row `i` stands for `scale_i · byte + offset_i`, one of column `j`
    /// for `scale_j · byte`; `sum_j` is the sum of the values of the column.
    Scaled {
        /// `[rows, 2]` scale and offset of each row.
        rows: *const f32,
        /// Scale of each column.
        scales: *const f32,
        /// Sum of each column.
        sums: *const f32,
        /// Bias of each column.
        bias: *const f32,
    },
}

/// The right side `[depth, cols]` in panels of 64 columns (the last one narrower, in sixteens),
/// each panel row by row; for the matrix unit sixteen columns after the other, so that what fills
/// one of its registers lies together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    pub(crate) data: *const f32,
    /// Units of the whole right side.
    pub(crate) depth: usize,
    /// Columns in use.
    pub(crate) cols: usize,
    /// Whether they are for the matrix unit.
    tiles: bool,
}

// SAFETY: an address; the products that read say why that is sound.
unsafe impl Send for Panels {}
// SAFETY: as above.
unsafe impl Sync for Panels {}

impl Panels {
    /// Panels for products in a form.
    pub(crate) fn new(isa: Isa, form: Form, data: *const f32, [depth, cols]: [usize; 2]) -> Self {
        Panels {
            data,
            depth,
            cols,
            tiles: isa.multiplies_tiles(form),
        }
    }

    /// Words that panels take.
    pub(crate) fn words(depth: usize, cols: usize) -> usize {
        depth * cols.next_multiple_of(LANES)
    }

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.cols.div_ceil(PANEL)
    }

    /// Columns of panel `p`, those of the padding included.
    pub(crate) fn width(&self, p: usize) -> usize {
        PANEL.min((self.cols - p * PANEL).next_multiple_of(LANES))
    }

    /// Words from unit to unit of panel `p`.
    pub(crate) fn unit_step(&self, p: usize) -> usize {
        match self.tiles {
            true => LANES,
            false => self.width(p),
        }
    }

    /// Words from sixteen columns to the next of a panel.
    pub(crate) fn lanes_step(&self) -> usize {
        match self.tiles {
            true => self.depth * LANES,
            false => LANES,
        }
    }

    /// Unit `unit` of the first sixteen columns of panel `p`.
    pub(crate) fn at(&self, p: usize, unit: usize) -> *const f32 {
        let before = p * PANEL * self.depth + unit * self.unit_step(p);
        self.data.wrapping_add(before)
    }
}

/// `c = start + a b` for some rows and panels.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    /// Units of depth.
    pub(crate) depth: usize,
    /// The left side: row `i`, unit `k` at `i · row_step + k · unit_step`.
    pub(crate) a: *const f32,
    pub(crate) row_step: usize,
    pub(crate) unit_step: usize,
    pub(crate) b: Panels,
    /// The unit of `b` that meets the left side's first.
    pub(crate) first_unit: usize,
    /// Panels to do; `c` and the bias point to column 0 all the same.
    pub(crate) panels: Range<usize>,
    pub(crate) c: *mut f32,
    pub(crate) c_stride: usize,
    pub(crate) start: Start,
    /// Words of the panel behind each that are prefetched while it is multiplied: weights come from far
    /// away, and the tiles would wait for them. Products of the matrix unit prefetch nothing, unless an
    /// epilogue is applied beside them.
    pub(crate) ahead: Range<usize>,
}

impl Product {
    fn check(&self, isa: Isa, form: Form) {
        assert!(self.first_unit + self.depth <= self.b.depth && self.panels.end <= self.b.count());
        assert!(matches!(self.start, Start::Scaled { .. }) == (form == Form::Int8));
        assert!(self.b.tiles == isa.multiplies_tiles(form));
    }

    /// Computes the product.
    ///
    /// # Safety
    /// The left side, the panels and the bias can be read, the result written, and nobody else
    /// writes to the former or uses the latter meanwhile.
    pub(crate) unsafe fn run(self, isa: Isa, form: Form) {
        self.check(isa, form);
        #[cfg(target_arch = "x86_64")]
        if isa.multiplies_tiles(form) {
            return isa.run_half(Tiles(self, form));
        }
        match form {
            Form::F32 => isa.run(Blocked::<F32>(self, PhantomData)),
            Form::Half => isa.run_half(Blocked::<Half>(self, PhantomData)),
            Form::Int8 => isa.run_int8(Blocked::<Int8>(self, PhantomData)),
        }
    }

    /// Applies an epilogue to the results of the first rows while the next are multiplied, as far as the
    /// matrix unit can; says how many rows that were. The result is [`BESIDE_WORDS`] of room, of `PANEL`
    /// words a row; the next panel is prefetched.
    ///
    /// # Safety
    /// As for [`run`](Product::run), and for [`TypedEpilogue::apply`](super::epilogue::TypedEpilogue::apply) of all results.
    ///
    /// # Panics
    /// If the product starts from what stands in the result.
    pub(crate) unsafe fn run_beside<F: Epilogue>(self, isa: Isa, form: Form, epilogue: F) -> usize {
        self.check(isa, form);
        assert!(!matches!(self.start, Start::Sum) && self.c_stride == PANEL);
        #[cfg(target_arch = "x86_64")]
        if isa.multiplies_tiles(form) {
            let tiles = EpilogueTiles::new(self, form, epilogue);
            let rows = tiles.rows();
            isa.run_half(tiles);
            return rows;
        }
        let _ = epilogue;
        0
    }
}

/// Words of room that [`Product::run_beside`] needs: two blocks of 32 rows of a panel.
pub(crate) const BESIDE_WORDS: usize = 2 * 2 * LANES * PANEL;

/// A word's arithmetic.
trait Unit {
    /// Units of depth that are taken at once, so that a panel stays in the L2 cache.
    const DEPTH: usize;
    /// `acc +` the products of words.
    fn dot<S: Simd>(a: S::V, b: S::V, acc: S::V) -> S::V;
    /// Units that are summed at most, before [`add`](Unit::add) adds them to what was summed before.
    #[inline(always)]
    fn span<S: Simd>() -> usize {
        usize::MAX
    }
    /// `total + part`, where [`span`](Unit::span) says that parts are summed by themselves.
    #[inline(always)]
    fn add<S: Simd>(_part: S::V, total: S::V) -> S::V {
        total
    }
}

struct F32;
struct Half;
struct Int8;

impl Unit for F32 {
    const DEPTH: usize = 1024;

    #[inline(always)]
    fn dot<S: Simd>(a: S::V, b: S::V, acc: S::V) -> S::V {
        S::fma(a, b, acc)
    }
}

impl Unit for Half {
    const DEPTH: usize = 1024;

    #[inline(always)]
    fn dot<S: Simd>(a: S::V, b: S::V, acc: S::V) -> S::V {
        S::dot_half(acc, a, b)
    }

    #[inline(always)]
    fn span<S: Simd>() -> usize {
        S::HALF_SPAN
    }

    #[inline(always)]
    fn add<S: Simd>(part: S::V, total: S::V) -> S::V {
        S::add(total, S::sum_of_halves(part))
    }
}

impl Unit for Int8 {
    /// Whole numbers do not go through the result: all at once.
    const DEPTH: usize = usize::MAX;

    #[inline(always)]
    fn dot<S: Simd>(a: S::V, b: S::V, acc: S::V) -> S::V {
        S::dot_int8(acc, a, b)
    }
}

struct Blocked<U>(Product, PhantomData<U>);

impl<U: Unit> Kernel for Blocked<U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let p = self.0;
        let mut done = 0;
        loop {
            let depth = U::DEPTH.min(p.depth - done);
            for panel in p.panels.clone() {
                let width = p.b.width(panel);
                let first = panel * PANEL;
                let b = p.b.at(panel, p.first_unit + done);
                // Each part of the depth prefetches its part.
                let [from, to] = [done, done + depth]
                    .map(|units| p.ahead.start + p.ahead.len() * units / p.depth.max(1));
                let next =
                    p.b.at(panel, p.first_unit)
                        .wrapping_add(p.b.depth * width + from);
                let share = (to - from).div_ceil(p.rows.div_ceil(STRIP).max(1));
                for (strip, row) in (0..p.rows).step_by(STRIP).enumerate() {
                    let tile = Tile {
                        depth,
                        ahead: next.wrapping_add(strip * share),
                        lines: share.div_ceil(LINE),
                        a: p.a.wrapping_add(row * p.row_step + done * p.unit_step),
                        row_step: p.row_step,
                        unit_step: p.unit_step,
                        b,
                        width,
                        c: p.c.wrapping_add(row * p.c_stride + first),
                        c_stride: p.c_stride,
                        cols: PANEL.min(p.b.cols - first),
                        start: match p.start {
                            _ if done > 0 => Start::Sum,
                            Start::Bias(bias) => Start::Bias(bias.wrapping_add(first)),
                            Start::Scaled {
                                rows,
                                scales,
                                sums,
                                bias,
                            } => Start::Scaled {
                                rows: rows.wrapping_add(2 * row),
                                scales: scales.wrapping_add(first),
                                sums: sums.wrapping_add(first),
                                bias: bias.wrapping_add(first),
                            },
                            start => start,
                        },
                    };
                    // SAFETY: a part of the product, whose caller vouches for its memory.
                    unsafe { tile.rows::<S, U>(STRIP.min(p.rows - row)) };
                }
            }
            done += depth;
            if done == p.depth {
                break;
            }
        }
    }
}

/// One panel's part of up to six rows.
#[derive(Clone, Copy)]
struct Tile {
    depth: usize,
    /// What to prefetch meanwhile, and how many cache lines of it.
    ahead: *const f32,
    lines: usize,
    a: *const f32,
    row_step: usize,
    unit_step: usize,
    b: *const f32,
    width: usize,
    c: *mut f32,
    c_stride: usize,
    cols: usize,
    start: Start,
}

impl Tile {
    /// # Safety
    /// As for [`Product::run`].
    #[inline(always)]
    unsafe fn rows<S: Simd, U: Unit>(self, rows: usize) {
        // SAFETY: as the caller says.
        unsafe {
            match rows {
                1 => self.columns::<S, U, 1>(),
                2 => self.columns::<S, U, 2>(),
                3 => self.columns::<S, U, 3>(),
                4 => self.columns::<S, U, 4>(),
                5 => self.columns::<S, U, 5>(),
                _ => self.columns::<S, U, STRIP>(),
            }
        }
    }

    /// # Safety
    /// As for [`Product::run`].
    #[inline(always)]
    unsafe fn columns<S: Simd, U: Unit, const ROWS: usize>(self) {
        // SAFETY: as the caller says.
        unsafe {
            if S::TILE == 1 {
                for first in (0..self.width).step_by(LANES) {
                    let lines = if first == 0 { self.lines } else { 0 };
                    Tile { lines, ..self }.multiply::<S, U, ROWS, 1>(first);
                }
            } else {
                match self.width / LANES {
                    1 => self.multiply::<S, U, ROWS, 1>(0),
                    2 => self.multiply::<S, U, ROWS, 2>(0),
                    3 => self.multiply::<S, U, ROWS, 3>(0),
                    _ => self.multiply::<S, U, ROWS, 4>(0),
                }
            }
        }
    }

    /// `acc +` some units of `ROWS` rows by `VECTORS · 16` columns from `first`.
    ///
    /// # Safety
    /// As for [`Product::run`].
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    unsafe fn units<S: Simd, U: Unit, const ROWS: usize, const VECTORS: usize>(
        &self,
        first: usize,
        units: Range<usize>,
        mut acc: [[S::V; VECTORS]; ROWS],
    ) -> [[S::V; VECTORS]; ROWS] {
        let mut a = self.a.wrapping_add(units.start * self.unit_step);
        let mut b = self.b.wrapping_add(units.start * self.width + first);
        // Some every few units: all at once would wait for each other.
        let lines = self.lines.div_ceil(self.depth.div_ceil(APART).max(1));
        let mut ahead = self.ahead.wrapping_add(units.start / APART * lines * LINE);
        for unit in units.clone().step_by(APART) {
            for _ in 0..lines {
                prefetch(ahead);
                ahead = ahead.wrapping_add(LINE);
            }
            for _ in unit..units.end.min(unit + APART) {
                // SAFETY: as the caller says.
                unsafe {
                    let mut right = [S::splat(0.0); VECTORS];
                    for j in 0..VECTORS {
                        right[j] = S::load(b.add(j * LANES));
                    }
                    for i in 0..ROWS {
                        let left = S::splat(*a.add(i * self.row_step));
                        for j in 0..VECTORS {
                            acc[i][j] = U::dot::<S>(left, right[j], acc[i][j]);
                        }
                    }
                }
                a = a.wrapping_add(self.unit_step);
                b = b.wrapping_add(self.width);
            }
        }
        acc
    }

    /// `ROWS` rows by `VECTORS · 16` columns from `first`, in registers.
    ///
    /// # Safety
    /// As for [`Product::run`].
    // Counted loops over arrays of registers unroll; iterators over them end up in memory.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    unsafe fn multiply<S: Simd, U: Unit, const ROWS: usize, const VECTORS: usize>(
        self,
        first: usize,
    ) {
        let mut acc = [[S::splat(0.0); VECTORS]; ROWS];
        let lanes = |j: usize| LANES.min(self.cols - first - j * LANES);
        // SAFETY: as the caller says; no more than `cols` columns of the result and the bias, and
        // `width` of the panel.
        unsafe {
            for i in 0..ROWS {
                for j in 0..VECTORS {
                    let at = first + j * LANES;
                    acc[i][j] = match self.start {
                        Start::Zero | Start::Scaled { .. } => S::splat(0.0),
                        Start::Sum => S::load_first(self.c.add(i * self.c_stride + at), lanes(j)),
                        Start::Bias(bias) => S::load_first(bias.add(at), lanes(j)),
                    };
                }
            }
            if U::span::<S>() == usize::MAX {
                acc = self.units::<S, U, ROWS, VECTORS>(first, 0..self.depth, acc);
            } else {
                for unit in (0..self.depth).step_by(U::span::<S>()) {
                    let units = unit..self.depth.min(unit + U::span::<S>());
                    let zeros = [[S::splat(0.0); VECTORS]; ROWS];
                    let part = self.units::<S, U, ROWS, VECTORS>(first, units, zeros);
                    for i in 0..ROWS {
                        for j in 0..VECTORS {
                            acc[i][j] = U::add::<S>(part[i][j], acc[i][j]);
                        }
                    }
                }
            }
            if let Start::Scaled {
                rows,
                scales,
                sums,
                bias,
            } = self.start
            {
                for j in 0..VECTORS {
                    let at = first + j * LANES;
                    let scales = S::load_first(scales.add(at), lanes(j));
                    let sums = S::load_first(sums.add(at), lanes(j));
                    let bias = S::load_first(bias.add(at), lanes(j));
                    for i in 0..ROWS {
                        let offset = S::fma(S::splat(*rows.add(2 * i + 1)), sums, bias);
                        let scale = S::mul(S::splat(*rows.add(2 * i)), scales);
                        acc[i][j] = S::fma(S::from_int(acc[i][j]), scale, offset);
                    }
                }
            }
            for i in 0..ROWS {
                for j in 0..VECTORS {
                    let to = self.c.add(i * self.c_stride + first + j * LANES);
                    if lanes(j) == LANES {
                        S::store(to, acc[i][j]);
                    } else {
                        S::store_first(to, lanes(j), acc[i][j]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
