//! Linear layers: `x Wᵀ + b`, `dy W` and `dyᵀ x`.

use super::buffer::Scratch;
use super::clock::Part;
use super::gemm::{Form, PANEL, Panels, Product, Start};
use super::isa::Isa;
use super::pack::{
    Source, Strips, add_column_sums, pack_rows, pack_rows_half, pack_strips, quantize_row,
    quantize_rows,
};
use super::params::CpuParams;
use super::simd::{LANES, Simd};
use super::view::{Blocks, Shared, View, part, spread};
use super::{Cpu, Flat};
use crate::backend::{Array, Linear};
use std::ops::Range;

/// Rows that a task takes through a product: its part of both sides stays in the L2 cache.
pub(super) const ROW_BLOCK: usize = 96;
/// Tasks that a product of few rows is split into, by columns.
const MIN_TASKS: usize = 8;
/// Multiplications below which a product is one task.
const SMALL: usize = 1 << 17;
/// Units of depth that are packed together for a weight's gradient: both sides of a tile stay in the
/// L2 cache with it.
const GRADIENT_UNITS: usize = 256;
/// Rows and columns of a weight's gradient that a task takes, the longer side first, in whole panels;
/// fewer where there would be too few tasks. The first is for the matrix unit: each core that has one
/// has an L2 cache of 2 MB, and packing takes it longer than the products.
const GRADIENT_TILES: [[usize; 2]; 4] = [
    [8 * PANEL, 4 * PANEL],
    [4 * PANEL, 4 * PANEL],
    [2 * PANEL, 2 * PANEL],
    [PANEL, PANEL],
];
/// Tasks of weights' gradients for each thread, at least.
const TASKS_A_THREAD: usize = 3;

/// Rows of an activation as left side of a product.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) form: Form,
    pub(super) data: *const f32,
    pub(super) rows: usize,
    pub(super) row_step: usize,
    pub(super) units: usize,
    /// For bytes, scale and offset of each row.
    pub(super) ranges: *const f32,
}

impl Left {
    /// Rows that are multiplied as they are.
    pub(super) fn of(source: Source) -> Left {
        Left {
            form: source.form,
            data: source.data,
            rows: source.rows,
            row_step: source.stride,
            units: source.form.units(source.cols),
            ranges: std::ptr::null(),
        }
    }

    /// Some of the rows.
    pub(super) fn part(self, rows: Range<usize>) -> Left {
        assert!(rows.end <= self.rows);
        Left {
            data: self.data.wrapping_add(rows.start * self.row_step),
            rows: rows.len(),
            ranges: self.ranges.wrapping_add(2 * rows.start),
            ..self
        }
    }
}

/// Words from row to row of a packed left side.
pub(super) fn packed_step(form: Form, depth: usize) -> usize {
    spread(form.units(depth))
}

/// Words of scratch that [`left_side`] needs.
pub(super) fn left_words(form: Form, rows: usize, depth: usize) -> usize {
    match form {
        Form::F32 => 0,
        Form::Half => rows * packed_step(form, depth),
        Form::Int8 => rows * (packed_step(form, depth) + 2),
    }
}

/// The rows of a source in a product's form: themselves, or rounded into `room`.
///
/// # Safety
/// The source can be read.
pub(super) unsafe fn left_side(isa: Isa, form: Form, source: Source, room: &mut [f32]) -> Left {
    if source.form == form {
        return Left::of(source);
    }
    let rounded = Rounded::new(form, source.rows, source.cols, room);
    let left = rounded.left();
    let Rounded {
        step,
        words,
        ranges,
        ..
    } = rounded;
    match form {
        // SAFETY: as the caller says.
        Form::Half => unsafe { pack_rows_half(isa, source, step, words) },
        // SAFETY: as the caller says.
        Form::Int8 => unsafe { quantize_rows(isa, source, step, words, ranges) },
        Form::F32 => unreachable!("values that are kept as bf16 are multiplied as bf16"),
    }
    left
}

/// Where rows of f32 are rounded for a product.
pub(super) struct Rounded<'a> {
    form: Form,
    /// Values of a row.
    cols: usize,
    /// Words from row to row.
    step: usize,
    words: &'a mut [f32],
    /// For bytes, scale and offset of each row.
    ranges: &'a mut [f32],
}

impl<'a> Rounded<'a> {
    /// Room for rows in bf16 or bytes, of [`left_words`].
    pub(super) fn new(form: Form, rows: usize, cols: usize, room: &'a mut [f32]) -> Self {
        let step = packed_step(form, cols);
        let (words, rest) = room.split_at_mut(rows * step);
        let ranges = match form {
            Form::Int8 => &mut rest[..2 * rows],
            _ => &mut [],
        };
        Rounded {
            form,
            cols,
            step,
            words,
            ranges,
        }
    }

    /// They as left side.
    pub(super) fn left(&self) -> Left {
        Left {
            form: self.form,
            data: self.words.as_ptr(),
            rows: self.words.len() / self.step,
            row_step: self.step,
            units: self.form.units(self.cols),
            ranges: self.ranges.as_ptr(),
        }
    }

    /// Rounds a row, in a kernel that may write words of this form.
    #[inline(always)]
    pub(super) fn write<S: Simd>(&mut self, row: usize, x: &[f32]) {
        let to = &mut self.words[row * self.step..][..self.form.units(self.cols)];
        match self.form {
            Form::Int8 => quantize_row::<S>(x, to, &mut self.ranges[2 * row..][..2]),
            _ => {
                for (x, to) in x.chunks(2 * LANES).zip(to.chunks_mut(LANES)) {
                    let high = S::read(&x[x.len().min(LANES)..]);
                    S::write(to, S::row_half(S::read(x), high));
                }
            }
        }
    }
}

/// Rows `rows` of a view to pack.
pub(super) fn source(view: View, rows: Range<usize>) -> Source {
    Source {
        form: view.form,
        data: view.word(rows.start, 0),
        rows: rows.len(),
        cols: view.cols,
        stride: view.stride,
    }
}

impl Cpu {
    pub(super) fn linear_forward(
        &mut self,
        params: &CpuParams,
        x: Array,
        linear: &Linear,
        y: Array,
    ) {
        assert!(linear.bias.len() == y.cols && linear.weight.cols == x.cols);
        let bias = params.slice(linear.bias).as_ptr().cast_mut();
        let weight = self.forward_panels(params, linear.weight);
        let (x, y) = (self.view(x), self.view(y));
        self.product(x, weight, Init::Bias(Shared(bias)), y);
    }

    pub(super) fn linear_backward(
        &mut self,
        params: &CpuParams,
        dy: Array,
        linear: &Linear,
        dx: Array,
        accumulate: bool,
    ) {
        assert!(linear.weight.rows == dy.cols && linear.weight.cols == dx.cols);
        let weight = self.backward_panels(params, linear.weight);
        let start = if accumulate { Init::Sum } else { Init::Zero };
        let (dy, dx) = (self.view(dy), self.view(dx));
        self.product(dy, weight, start, dx);
    }

    /// `y = start + x · weight`, by blocks of rows and, where those are few, of panels.
    fn product(&mut self, x: View, weight: Panels, start: Init, y: View) {
        assert!(x.rows == y.rows && weight.cols == y.cols && !x.overlaps(&y));
        if y.rows == 0 {
            return;
        }
        let (isa, form, clock) = (self.isa, self.form, &self.clock);
        let all = Blocks::in_fours(y.rows, isa.row_multiple(form), ROW_BLOCK);
        let blocks = all.count();
        let groups = if y.rows * x.cols * y.cols < SMALL {
            1
        } else {
            MIN_TASKS.div_ceil(blocks).min(weight.count())
        };
        let group = weight.count().div_ceil(groups);
        let groups = weight.count().div_ceil(group);
        self.pool
            .run(blocks * groups, |task, scratch: &mut Scratch| {
                let mut lap = clock.start();
                let rows = all.rows(task / groups);
                let [room] = scratch.split([left_words(form, rows.len(), x.cols)]);
                // SAFETY: nobody writes to x during the operator.
                let left = unsafe { left_side(isa, form, source(x, rows.clone()), room) };
                let product = Product {
                    rows: rows.len(),
                    depth: left.units,
                    a: left.data,
                    row_step: left.row_step,
                    unit_step: 1,
                    b: weight,
                    first_unit: 0,
                    panels: part(weight.count(), group, task % groups),
                    c: y.at(rows.start, 0),
                    c_stride: y.stride,
                    start: match start {
                        Init::Zero => Start::Zero,
                        Init::Sum => Start::Sum,
                        Init::Bias(bias) => Start::Bias(bias.0),
                    },
                    ahead: 0..left.units * PANEL,
                };
                // SAFETY: the sizes fit as asserted; the task alone has these rows and panels of y.
                unsafe { product.run(isa, form) };
                // Of a layer, this is the only product that comes here.
                lap.done(Part::QkvBackward);
            });
    }

    /// Adds the gradients of weights and biases of some layers, each given its input and the gradient
    /// of its output.
    pub(super) fn linear_gradients<const N: usize>(
        &mut self,
        layers: [(Array, Array, &Linear); N],
        grads: &mut Flat,
    ) {
        for (x, dy, linear) in &layers {
            assert!(linear.weight.rows == dy.cols && linear.weight.cols == x.cols);
            assert!(linear.bias.len() == dy.cols && x.rows == dy.rows);
            assert!(linear.weight.range().end.max(linear.bias.range().end) <= grads.len());
        }
        let grads = Shared(grads.as_ptr());
        let outer = layers.map(|(x, dy, linear)| Outer {
            dy: self.view(dy),
            x: self.view(x),
            weight: grads.offset(linear.weight.offset),
            bias: grads.offset(linear.bias.offset),
        });
        let tasks = |size| outer.iter().map(|o| o.tiles(size)).sum::<usize>();
        let enough = |size: &[usize; 2]| tasks(*size) >= TASKS_A_THREAD * self.pool.threads();
        let (isa, form, clock) = (self.isa, self.form, &self.clock);
        let sizes = match isa.multiplies_tiles(form) {
            true => &GRADIENT_TILES[..],
            false => &GRADIENT_TILES[1..],
        };
        let size = sizes.iter().copied().find(enough).unwrap_or([PANEL; 2]);
        self.pool.run(tasks(size), |mut task, scratch| {
            let mut lap = clock.start();
            for outer in &outer {
                if task < outer.tiles(size) {
                    let [height, width] = outer.tile(size);
                    let groups = outer.dy.cols.div_ceil(height);
                    let rows = part(outer.dy.cols, height, task % groups);
                    let cols = part(outer.x.cols, width, task / groups);
                    // SAFETY: nobody writes to x and dy; this tile of the gradient, inside the flat
                    // array as asserted, is this task's, and so are its biases if it has the first
                    // columns.
                    unsafe { outer.add(isa, form, rows, cols, scratch) };
                    break;
                }
                task -= outer.tiles(size);
            }
            lap.done(Part::Weights);
        });
    }
}

/// A weight's gradient `dyᵀ x`, and the bias's, which are the sums of the columns of dy.
struct Outer {
    dy: View,
    x: View,
    /// `[dy.cols, x.cols]`
    weight: Shared,
    /// `[dy.cols]`
    bias: Shared,
}

impl Outer {
    /// Rows and columns of a tile, given the longer side first: it lies along the weight's own.
    fn tile(&self, [long, short]: [usize; 2]) -> [usize; 2] {
        match self.dy.cols < self.x.cols {
            true => [short, long],
            false => [long, short],
        }
    }

    /// How many tiles there are of a size.
    fn tiles(&self, size: [usize; 2]) -> usize {
        let [height, width] = self.tile(size);
        self.dy.cols.div_ceil(height) * self.x.cols.div_ceil(width)
    }

    /// Adds a tile, some tokens after the other, and if it has the first columns the biases of its
    /// rows. Both sides are packed where only this core writes.
    ///
    /// # Safety
    /// Nobody writes to x and dy, or uses what is added to, meanwhile.
    unsafe fn add(
        &self,
        isa: Isa,
        form: Form,
        rows: Range<usize>,
        cols: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let tokens = GRADIENT_UNITS * form.values();
        let tiles = isa.multiplies_tiles(form);
        for first in (0..self.x.rows).step_by(tokens) {
            let tokens = first..self.x.rows.min(first + tokens);
            let units = form.units(tokens.len());
            let strips = Strips::new(units);
            // Odd, so that panels spread over the caches.
            let depth = units | 1;
            let left_words = match tiles {
                true => strips.all(rows.len()),
                false => Panels::words(depth, rows.len()),
            };
            let right_words = Panels::words(depth, cols.len());
            let [left, right] = scratch.split([left_words, right_words]);
            let [dy, x] = [(self.dy, &rows), (self.x, &cols)]
                .map(|(view, part)| source(view.columns(part.start, part.len()), tokens.clone()));
            let left_data = left.as_mut_ptr();
            let panels = |data: *mut f32, cols: &Range<usize>| {
                Panels::new(isa, form, data, [depth, cols.len()])
            };
            let right = panels(right.as_mut_ptr(), &cols);
            let product = Product {
                rows: rows.len(),
                depth: units,
                a: left_data,
                row_step: strips.row_step,
                unit_step: 1,
                b: right,
                first_unit: 0,
                panels: 0..right.count(),
                c: self.weight.add(rows.start * self.x.cols + cols.start),
                c_stride: self.x.cols,
                start: Start::Sum,
                ahead: 0..0,
            };
            // SAFETY: as the caller says; what is packed lies in the scratch.
            unsafe {
                let sums = match cols.start {
                    0 => self.bias.slice_mut(rows.start, rows.len()),
                    _ => &mut [],
                };
                pack_rows(isa, form, x, right, 0..right.count());
                if tiles {
                    let left = std::slice::from_raw_parts_mut(left_data, left_words);
                    pack_strips(isa, dy, strips, left, sums);
                    product.run(isa, form);
                    continue;
                }
                let left = panels(left_data, &rows);
                pack_rows(isa, form, dy, left, 0..left.count());
                if !sums.is_empty() {
                    add_column_sums(isa, form, left, units, sums);
                }
                for panel in 0..left.count() {
                    let first = panel * PANEL;
                    let product = Product {
                        rows: PANEL.min(rows.len() - first),
                        a: left.data.add(first * depth),
                        row_step: 1,
                        unit_step: left.unit_step(panel),
                        c: product.c.add(first * self.x.cols),
                        ..product.clone()
                    };
                    product.run(isa, form);
                }
            }
        }
    }
}

/// [`Start`] with an address that tasks can share.
#[derive(Clone, Copy)]
enum Init {
    Zero,
    Sum,
    Bias(Shared),
}
