//! The matrix product by the matrix unit.
//!
//! Two by two registers of sums are held at a time, so that each word that is read is used twice.
//! Rows, columns and depth that do not fill a register go through memory that is filled up with
//! zeros, so nothing outside of a product is read or written. An element is summed by the same
//! instructions wherever in a register it stands.

mod beside;

pub(super) use beside::EpilogueTiles;

use super::amx::{Dot, Fours, Pairs, SIDE, configure, load, store, zero};
use super::gemm::{Form, PANEL, Product, Start};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use beside::{Beside, Nothing};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Rows and columns that are summed together.
const BLOCK: usize = 2 * SIDE;
/// Units of depth that are taken at once: a block's part of both sides stays near.
const DEPTH: usize = 512;

/// A product by the unit.
pub(super) struct Tiles(pub(super) Product, pub(super) Form);

impl Kernel for Tiles {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        configure();
        match self.1 {
            Form::Half => parts::<S, Pairs>(&self.0),
            Form::Int8 => parts::<S, Fours>(&self.0),
            Form::F32 => unreachable!("the unit has no products of f32"),
        }
    }
}

#[inline(always)]
fn parts<S: Simd, U: Dot>(product: &Product) {
    let mut done = 0;
    loop {
        let depth = DEPTH.min(product.depth - done);
        let part = Part {
            product,
            done,
            depth,
        };
        let whole = match product.unit_step {
            1 => product.rows / SIDE * SIDE,
            _ => 0,
        };
        // SAFETY: a part of the product, whose caller vouches for its memory.
        unsafe {
            if whole > 0 {
                let a = product.a.wrapping_add(done);
                part.panels::<S, U>(0, whole, a, product.row_step);
            }
            for row in (whole..product.rows).step_by(BLOCK) {
                Isa::Amx.run_half(Packed(&part, row, PhantomData::<U>));
            }
        }
        done += depth;
        if done == product.depth {
            break;
        }
    }
}

/// Some units of a product's depth.
struct Part<'a> {
    product: &'a Product,
    /// Units before.
    done: usize,
    /// Units.
    depth: usize,
}

/// Words at cache lines.
#[repr(align(64))]
struct Room<const WORDS: usize>([f32; WORDS]);

impl<const WORDS: usize> Room<WORDS> {
    const ZEROS: Self = Room([0.0; WORDS]);
}

/// Words from row to row of a packed left side: not a power of two, so that rows spread over the
/// cache.
const PACKED_STEP: usize = DEPTH + SIDE;

/// [`Part::packed`] as a kernel of its own: most products need no such memory.
struct Packed<'a, U>(&'a Part<'a>, usize, PhantomData<U>);

impl<U: Dot> Kernel for Packed<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes the kernel vouches for the product's memory.
        unsafe { self.0.packed::<S, U>(self.1) };
    }
}

impl Part<'_> {
    /// Up to `BLOCK` rows from `row` on, through memory that is filled up with zeros.
    ///
    /// # Safety
    /// As for [`Product::run`].
    #[inline(always)]
    unsafe fn packed<S: Simd, U: Dot>(&self, row: usize) {
        let mut room = MaybeUninit::<Room<{ BLOCK * PACKED_STEP }>>::uninit();
        let to = room.as_mut_ptr().cast::<f32>();
        // SAFETY: as the caller says; what is read of the room has been written.
        unsafe {
            match self.product.unit_step {
                1 => self.pack_rows::<S>(row, to),
                _ => self.pack_columns::<S>(row, to),
            }
            let rows = BLOCK.min(self.product.rows - row);
            self.panels::<S, U>(row, rows, to, PACKED_STEP);
        }
    }

    /// # Safety
    /// As for [`Product::run`]; `to` has room for `BLOCK` rows.
    #[inline(always)]
    unsafe fn pack_rows<S: Simd>(&self, row: usize, to: *mut f32) {
        let rows = BLOCK.min(self.product.rows - row);
        let from = self.product.a.wrapping_add(self.done);
        for r in 0..rows.next_multiple_of(SIDE) {
            for unit in (0..self.depth).step_by(SIDE) {
                // SAFETY: as the caller says.
                unsafe {
                    let words = if r < rows {
                        let from = from.add((row + r) * self.product.row_step + unit);
                        S::load_first(from, SIDE.min(self.depth - unit))
                    } else {
                        S::splat(0.0)
                    };
                    S::store(to.add(r * PACKED_STEP + unit), words);
                }
            }
        }
    }

    /// As [`pack_rows`](Part::pack_rows), where the rows are neighbours in memory.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn pack_columns<S: Simd>(&self, row: usize, to: *mut f32) {
        let p = self.product;
        assert!(p.row_step == 1);
        let rows = BLOCK.min(p.rows - row);
        for first in (0..rows).step_by(SIDE) {
            let count = SIDE.min(rows - first);
            for unit in (0..self.depth).step_by(SIDE) {
                let mut block = [S::splat(0.0); SIDE];
                for (i, words) in block.iter_mut().enumerate().take(self.depth - unit) {
                    let from = (self.done + unit + i) * p.unit_step + row + first;
                    // SAFETY: as the caller says.
                    *words = unsafe { S::load_first(p.a.wrapping_add(from), count) };
                }
                S::transpose(&mut block);
                for (i, words) in block.into_iter().enumerate() {
                    // SAFETY: as the caller says.
                    unsafe { S::store(to.add((first + i) * PACKED_STEP + unit), words) };
                }
            }
        }
    }

    /// All panels of `rows` rows, the first of which is row `row` of the product and lies at `a`.
    ///
    /// # Safety
    /// As for [`Product::run`]; where `rows` does not fill registers, what is behind them can be
    /// read, and so can what is behind the depth if the left side is packed.
    #[inline(always)]
    unsafe fn panels<S: Simd, U: Dot>(
        &self,
        row: usize,
        rows: usize,
        a: *const f32,
        a_step: usize,
    ) {
        let p = self.product;
        let rest = self.depth % SIDE;
        let mut a_rest = MaybeUninit::<Room<{ BLOCK * SIDE }>>::uninit();
        let mut b_rest = MaybeUninit::<Room<{ PANEL * SIDE }>>::uninit();
        if rest > 0 {
            // Zeros stay where there is nothing.
            a_rest.write(Room::ZEROS);
            b_rest.write(Room::ZEROS);
        }
        let [a_rest, b_rest] = [
            a_rest.as_mut_ptr().cast(),
            b_rest.as_mut_ptr().cast::<f32>(),
        ];
        for panel in p.panels.clone() {
            let width = p.b.width(panel);
            let (column, cols) = (panel * PANEL, PANEL.min(p.b.cols - panel * PANEL));
            let unit = p.first_unit + self.done;
            let (b, next) = (p.b.at(panel, unit), p.b.lanes_step());
            let steps = self.depth / SIDE;
            if rest > 0 {
                for j in 0..width / SIDE {
                    let from = b.wrapping_add(j * next + steps * SIDE * SIDE);
                    let to = b_rest.wrapping_add(j * SIDE * SIDE);
                    // SAFETY: as the caller says.
                    unsafe { copy::<S>(from, SIDE, to, SIDE, [rest, SIDE]) };
                }
            }
            // The rows of a block are read from the L2 cache once for all columns of the panel.
            for done in (0..rows).step_by(BLOCK) {
                let a = a.wrapping_add(done * a_step);
                let count = BLOCK.min(rows - done);
                if rest > 0 {
                    let from = a.wrapping_add(steps * SIDE);
                    // SAFETY: as the caller says.
                    unsafe { copy::<S>(from, a_step, a_rest, SIDE, [count, rest]) };
                }
                for first in (0..cols).step_by(BLOCK) {
                    let sides = Sides {
                        steps,
                        a,
                        a_step,
                        b: b.wrapping_add(first / SIDE * next),
                        b_next: next,
                    };
                    let last = Sides {
                        steps: 1,
                        a: a_rest,
                        a_step: SIDE,
                        b: b_rest.wrapping_add(first * SIDE),
                        b_next: SIDE * SIDE,
                    };
                    let block = Block {
                        row: row + done,
                        column: column + first,
                        rows: count,
                        cols: BLOCK.min(cols - first),
                    };
                    // SAFETY: as the caller says.
                    unsafe { self.block::<S, U>(block, sides, (rest > 0).then_some(last)) };
                }
            }
        }
    }

    /// # Safety
    /// As for [`panels`](Part::panels).
    #[inline(always)]
    unsafe fn block<S: Simd, U: Dot>(&self, block: Block, sides: Sides, rest: Option<Sides>) {
        let p = self.product;
        let Block {
            row,
            column,
            rows,
            cols,
        } = block;
        let c = p.c.wrapping_add(row * p.c_stride + column);
        let start = match p.start {
            _ if self.done > 0 => Some((c.cast_const(), p.c_stride)),
            Start::Zero | Start::Scaled { .. } => None,
            Start::Sum => Some((c.cast_const(), p.c_stride)),
            Start::Bias(bias) => Some((bias.wrapping_add(column), 0)),
        };
        // SAFETY: as the caller says; what does not fill registers goes through the room.
        unsafe {
            if rows.is_multiple_of(SIDE) && cols.is_multiple_of(SIDE) {
                sum_block::<S, U>([rows, cols], start, sides, rest, c, p.c_stride);
            } else {
                let mut room = Room::<{ BLOCK * BLOCK }>::ZEROS;
                let to = room.0.as_mut_ptr();
                if let Some((from, step)) = start {
                    copy::<S>(from, step, to, BLOCK, [rows, cols]);
                }
                let start = start.map(|_| (to.cast_const(), BLOCK));
                sum_block::<S, U>([rows, cols], start, sides, rest, to, BLOCK);
                copy::<S>(to, BLOCK, c, p.c_stride, [rows, cols]);
            }
            if self.done + self.depth == p.depth {
                self.scale::<S>(block);
            }
        }
    }

    /// Sums of bytes to the values that they stand for.
    ///
    /// # Safety
    /// As for [`Product::run`].
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, block: Block) {
        let p = self.product;
        let Start::Scaled {
            rows,
            scales,
            sums,
            bias,
        } = p.start
        else {
            return;
        };
        for first in (0..block.cols).step_by(LANES) {
            let count = LANES.min(block.cols - first);
            let column = block.column + first;
            // SAFETY: as the caller says.
            unsafe {
                let scales = S::load_first(scales.add(column), count);
                let sums = S::load_first(sums.add(column), count);
                let bias = S::load_first(bias.add(column), count);
                for row in block.row..block.row + block.rows {
                    let to = p.c.add(row * p.c_stride + column);
                    let offset = S::fma(S::splat(*rows.add(2 * row + 1)), sums, bias);
                    let scale = S::mul(S::splat(*rows.add(2 * row)), scales);
                    let value = S::fma(S::from_int(S::load_first(to, count)), scale, offset);
                    S::store_first(to, count, value);
                }
            }
        }
    }
}

/// Part of a result: up to `BLOCK` rows and columns.
#[derive(Clone, Copy)]
struct Block {
    row: usize,
    column: usize,
    rows: usize,
    cols: usize,
}

/// Both sides of a block.
#[derive(Clone, Copy)]
struct Sides {
    /// Times sixteen units of depth.
    steps: usize,
    a: *const f32,
    a_step: usize,
    b: *const f32,
    /// Words from sixteen columns to the next.
    b_next: usize,
}

/// Copies rows and columns of words.
///
/// # Safety
/// They can be read and written.
#[inline(always)]
unsafe fn copy<S: Simd>(
    from: *const f32,
    from_step: usize,
    to: *mut f32,
    to_step: usize,
    [rows, cols]: [usize; 2],
) {
    for row in 0..rows {
        for col in (0..cols).step_by(LANES) {
            let count = LANES.min(cols - col);
            // SAFETY: as the caller says.
            unsafe {
                let words = S::load_first(from.add(row * from_step + col), count);
                S::store_first(to.add(row * to_step + col), count, words);
            }
        }
    }
}

/// Sums `rows` by `cols` registers' worth, which are rounded up.
///
/// # Safety
/// As many rows and columns as registers have can be read and written.
#[inline(always)]
unsafe fn sum_block<S: Simd, U: Dot>(
    [rows, cols]: [usize; 2],
    start: Option<(*const f32, usize)>,
    sides: Sides,
    rest: Option<Sides>,
    to: *mut f32,
    to_step: usize,
) {
    // SAFETY: as the caller says.
    unsafe {
        match (rows > SIDE, cols > SIDE) {
            (true, true) => {
                sum::<S, U, _, true, true>(start, sides, rest, to, to_step, &mut Nothing)
            }
            (true, false) => {
                sum::<S, U, _, true, false>(start, sides, rest, to, to_step, &mut Nothing)
            }
            (false, true) => {
                sum::<S, U, _, false, true>(start, sides, rest, to, to_step, &mut Nothing)
            }
            (false, false) => {
                sum::<S, U, _, false, false>(start, sides, rest, to, to_step, &mut Nothing)
            }
        }
    }
}

/// Registers 0 to 3 are sums, 4 and 5 the left side, 6 and 7 the right.
///
/// # Safety
/// As for [`sum_block`].
#[inline(always)]
unsafe fn sum<S: Simd, U: Dot, B: Beside, const ROWS: bool, const COLS: bool>(
    start: Option<(*const f32, usize)>,
    sides: Sides,
    rest: Option<Sides>,
    to: *mut f32,
    to_step: usize,
    beside: &mut B,
) {
    // SAFETY: as the caller says.
    unsafe {
        match start {
            None => {
                zero::<0>();
                zero::<1>();
                zero::<2>();
                zero::<3>();
            }
            Some((from, step)) => {
                let below = from.wrapping_add(SIDE * step);
                load::<0>(from, step);
                if COLS {
                    load::<1>(from.add(SIDE), step);
                }
                if ROWS {
                    load::<2>(below, step);
                }
                if ROWS && COLS {
                    load::<3>(below.add(SIDE), step);
                }
            }
        }
        add::<S, U, B, ROWS, COLS>(sides, beside);
        if let Some(rest) = rest {
            add::<S, U, B, ROWS, COLS>(rest, beside);
        }
        let below = to.wrapping_add(SIDE * to_step);
        store::<0>(to, to_step);
        if COLS {
            store::<1>(to.add(SIDE), to_step);
        }
        if ROWS {
            store::<2>(below, to_step);
        }
        if ROWS && COLS {
            store::<3>(below.add(SIDE), to_step);
        }
    }
}

/// # Safety
/// As for [`sum_block`].
#[inline(always)]
unsafe fn add<S: Simd, U: Dot, B: Beside, const ROWS: bool, const COLS: bool>(
    sides: Sides,
    beside: &mut B,
) {
    let Sides {
        steps,
        mut a,
        a_step,
        mut b,
        b_next,
    } = sides;
    if steps == 0 {
        return;
    }
    let below = SIDE * a_step;
    // SAFETY: as the caller says.
    unsafe {
        load::<6>(b, SIDE);
        load::<4>(a, a_step);
        if COLS {
            load::<7>(b.add(b_next), SIDE);
        }
        if ROWS {
            load::<5>(a.add(below), a_step);
        }
        // A register is filled anew as soon as it has been multiplied, long before its next turn.
        for _ in 1..steps {
            a = a.wrapping_add(SIDE);
            b = b.wrapping_add(SIDE * SIDE);
            U::dot::<0, 4, 6>();
            if COLS {
                U::dot::<1, 4, 7>();
            }
            load::<4>(a, a_step);
            if ROWS {
                U::dot::<2, 5, 6>();
            }
            load::<6>(b, SIDE);
            if ROWS && COLS {
                U::dot::<3, 5, 7>();
            }
            if ROWS {
                load::<5>(a.add(below), a_step);
            }
            if COLS {
                load::<7>(b.add(b_next), SIDE);
            }
            beside.some::<S>();
        }
        U::dot::<0, 4, 6>();
        if COLS {
            U::dot::<1, 4, 7>();
        }
        if ROWS {
            U::dot::<2, 5, 6>();
        }
        if ROWS && COLS {
            U::dot::<3, 5, 7>();
        }
    }
}
