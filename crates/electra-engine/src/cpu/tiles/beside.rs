//! What the vectors do while the matrix unit multiplies: the epilogue of the block before.
//!
//! Each would wait for the other otherwise: a core looks some hundred instructions ahead, and the epilogue
//! of a block is thousands.

use super::{BLOCK, DEPTH, Sides, sum};
use crate::cpu::amx::{Dot, Fours, Pairs, SIDE, configure};
use crate::cpu::epilogue::{AT_ONCE, Epilogue, EpilogueLoop, TypedEpilogue};
use crate::cpu::gemm::{BESIDE_WORDS, Form, PANEL, Product, Start};
use crate::cpu::isa::Kernel;
use crate::cpu::simd::{LANES, Simd};
use crate::cpu::view::{LINE, prefetch};
use std::marker::PhantomData;

/// What the vectors do while the unit multiplies, a little after each step.
pub(super) trait Beside {
    /// # Safety
    /// Whoever made it says what it uses.
    unsafe fn some<S: Simd>(&mut self);
}

/// Products without an epilogue.
pub(super) struct Nothing;

impl Beside for Nothing {
    #[inline(always)]
    unsafe fn some<S: Simd>(&mut self) {}
}

/// Results of a block of rows of a panel on their way, while those of the next are multiplied.
struct Pending<'a, F, E> {
    /// What the product was given, which knows its places, and the same with form and activation as
    /// types.
    given: &'a F,
    epilogue: E,
    start: Start,
    /// `PANEL` words a row.
    from: *const f32,
    /// Row and column of the first, and of the first that is multiplied meanwhile.
    first: [usize; 2],
    next: [usize; 2],
    /// Times [`AT_ONCE`] values, how many of them are done, and how many are taken after a step.
    all: usize,
    done: usize,
    each: usize,
    /// What is left of the next panel to prefetch, and how many cache lines of it after a step: so
    /// much stands between two of the unit's loads now that the core does not look far enough ahead.
    ahead: *const f32,
    lines: usize,
}

impl<F: Epilogue, E: TypedEpilogue> Pending<'_, F, E> {
    /// Takes what is left.
    ///
    /// # Safety
    /// As for [`until`](Pending::until).
    #[inline(always)]
    unsafe fn rest<S: Simd>(&mut self) {
        // SAFETY: as the caller says.
        unsafe { self.until::<S>(self.all) };
    }

    /// # Safety
    /// As for [`TypedEpilogue::apply`]; the results, and of bytes the scales, can be read.
    #[inline(always)]
    unsafe fn until<S: Simd>(&mut self, end: usize) {
        for index in self.done..end {
            let (row, column) = (
                index / (PANEL / AT_ONCE),
                index % (PANEL / AT_ONCE) * AT_ONCE,
            );
            let [next_row, next_column] = self.next;
            self.given
                .prefetch(next_row + row, next_column + column, AT_ONCE);
            let [first_row, first_column] = self.first;
            // SAFETY: as the caller says.
            unsafe {
                let from = self.from.add(row * PANEL + column);
                let (row, column) = (first_row + row, first_column + column);
                let sums = [S::load(from), S::load(from.add(LANES))];
                let values = [
                    value::<S>(&self.start, sums[0], row, column),
                    value::<S>(&self.start, sums[1], row, column + LANES),
                ];
                self.epilogue.apply::<S>(values, row, column, AT_ONCE);
            }
        }
        self.done = self.done.max(end);
    }
}

impl<F: Epilogue, E: TypedEpilogue> Beside for Pending<'_, F, E> {
    #[inline(always)]
    unsafe fn some<S: Simd>(&mut self) {
        for _ in 0..self.lines {
            prefetch(self.ahead);
            self.ahead = self.ahead.wrapping_add(LINE);
        }
        // SAFETY: whoever made it vouches for places and results.
        unsafe { self.until::<S>(self.all.min(self.done + self.each)) };
    }
}

/// What a sum stands for.
///
/// # Safety
/// As for [`Product::run`].
#[inline(always)]
unsafe fn value<S: Simd>(start: &Start, sum: S::V, row: usize, column: usize) -> S::V {
    let Start::Scaled {
        rows,
        scales,
        sums,
        bias,
    } = start
    else {
        return sum;
    };
    // SAFETY: as the caller says.
    unsafe {
        let (scales, sums) = (S::load(scales.add(column)), S::load(sums.add(column)));
        let bias = S::load(bias.add(column));
        let offset = S::fma(S::splat(*rows.add(2 * row + 1)), sums, bias);
        let scale = S::mul(S::splat(*rows.add(2 * row)), scales);
        S::fma(S::from_int(sum), scale, offset)
    }
}

const _: () = assert!(BESIDE_WORDS == 2 * BLOCK * PANEL && PANEL.is_multiple_of(AT_ONCE));

/// A product whose epilogue the vectors apply while the unit multiplies on, as far as its
/// sides fill registers.
pub(in crate::cpu) struct EpilogueTiles<F> {
    product: Product,
    form: Form,
    epilogue: F,
    rows: usize,
}

impl<F: Epilogue> EpilogueTiles<F> {
    /// The product's result is room for two blocks of rows of a panel.
    pub(in crate::cpu) fn new(product: Product, form: Form, epilogue: F) -> Self {
        let p = &product;
        let fills = p.depth.is_multiple_of(SIDE) && p.depth <= DEPTH && p.depth > 0;
        let fills = fills && p.b.cols.is_multiple_of(PANEL) && p.unit_step == 1;
        let rows = if fills { p.rows / SIDE * SIDE } else { 0 };
        EpilogueTiles {
            product,
            form,
            epilogue,
            rows,
        }
    }

    /// Rows to which the epilogue is applied.
    pub(in crate::cpu) fn rows(&self) -> usize {
        self.rows
    }

    /// # Safety
    /// As for [`Product::run_beside`].
    #[inline(always)]
    unsafe fn blocks<S: Simd, U: Dot, E: TypedEpilogue>(&self, epilogue: E) {
        let p = &self.product;
        let steps = p.depth / SIDE;
        // A step of each half of the columns but the last one is followed by some.
        let times = (PANEL / BLOCK) * (steps - 1).max(1);
        let mut pending = Pending {
            given: &self.epilogue,
            epilogue,
            start: p.start,
            from: p.c.cast_const(),
            first: [0; 2],
            next: [0; 2],
            all: 0,
            done: 0,
            each: (BLOCK * PANEL / AT_ONCE).div_ceil(times),
            ahead: p.b.data,
            lines: (p.depth * PANEL / LINE).div_ceil(times * self.rows.div_ceil(BLOCK)),
        };
        let mut to = [p.c, p.c.wrapping_add(BLOCK * PANEL)];
        for panel in p.panels.clone() {
            let column = panel * PANEL;
            let (b, b_next) = (p.b.at(panel, p.first_unit), p.b.lanes_step());
            pending.ahead = b.wrapping_add(PANEL * p.b.depth);
            // The rows of a block are read from the L2 cache once for all columns of the panel.
            for row in (0..self.rows).step_by(BLOCK) {
                let count = BLOCK.min(self.rows - row);
                pending.next = [row, column];
                for first in (0..PANEL).step_by(BLOCK) {
                    let sides = Sides {
                        steps,
                        a: p.a.wrapping_add(row * p.row_step),
                        a_step: p.row_step,
                        b: b.wrapping_add(first / SIDE * b_next),
                        b_next,
                    };
                    let start = match p.start {
                        Start::Bias(bias) => Some((bias.wrapping_add(column + first), 0)),
                        _ => None,
                    };
                    let (to, beside) = (to[0].wrapping_add(first), &mut pending);
                    // SAFETY: as the caller says.
                    unsafe {
                        match count > SIDE {
                            true => {
                                sum::<S, U, _, true, true>(start, sides, None, to, PANEL, beside)
                            }
                            false => {
                                sum::<S, U, _, false, true>(start, sides, None, to, PANEL, beside)
                            }
                        }
                    }
                }
                // SAFETY: as above.
                unsafe { pending.rest::<S>() };
                pending.from = to[0];
                pending.first = [row, column];
                (pending.all, pending.done) = (count * (PANEL / AT_ONCE), 0);
                to.swap(0, 1);
            }
        }
        // SAFETY: as above.
        unsafe { pending.rest::<S>() };
    }
}

impl<F: Epilogue> Kernel for EpilogueTiles<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        if self.rows == 0 {
            return;
        }
        configure();
        let epilogue = self.epilogue;
        epilogue.run_loop(BlockLoop::<F, S>(self, PhantomData));
    }
}

/// The loop of [`EpilogueTiles`] over vectors.
struct BlockLoop<F, S>(EpilogueTiles<F>, PhantomData<S>);

impl<F: Epilogue, S: Simd> EpilogueLoop for BlockLoop<F, S> {
    #[inline(always)]
    fn run<E: TypedEpilogue>(self, epilogue: E) {
        // SAFETY: the caller of `Product::run_beside` vouches for all memory.
        unsafe {
            match self.0.form {
                Form::Half => self.0.blocks::<S, Pairs, E>(epilogue),
                Form::Int8 => self.0.blocks::<S, Fours, E>(epilogue),
                Form::F32 => unreachable!("the unit has no products of f32"),
            }
        }
    }
}
