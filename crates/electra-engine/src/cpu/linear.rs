//! Linear layers: `x Wᵀ + b`, `dy W` and `dyᵀ x`.

use super::buffer::Scratch;
use super::clock::Part;
use super::gemm::{Form, PANEL, Panels, Product, Start};
use super::isa::Isa;
use super::pack::{Columns, Source, Strips, pack_panel, pack_rows_bf16, pack_strip, quantize_rows};
use super::params::CpuParams;
use super::view::{Shared, View, part};
use super::{Cpu, Flat};
use crate::backend::{Array, Linear};

/// Rows that a task takes through a product: its part of both sides stays in the L2 cache.
pub(super) const ROW_BLOCK: usize = 96;
/// Tasks that a product of few rows is split into, by columns.
const MIN_TASKS: usize = 8;
/// Multiplications below which a product is one task.
const SMALL: usize = 1 << 17;
/// Tokens whose rows are packed together for a weight's gradient.
const TOKEN_CHUNK: usize = 512;
/// Rows that a task of a weight's gradient takes, about.
const GRADIENT_ROWS: usize = 96;

/// Rows of an activation as left side of a product.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) form: Form,
    pub(super) data: *const f32,
    pub(super) rows: usize,
    pub(super) row_step: usize,
    pub(super) units: usize,
    /// For bytes, step and least value of each row.
    pub(super) ranges: *const f32,
}

/// Words of scratch that [`left_side`] needs.
pub(super) fn left_words(form: Form, rows: usize, depth: usize) -> usize {
    match form {
        Form::F32 => 0,
        Form::Bf16 => rows * form.units(depth),
        Form::Int8 => rows * (form.units(depth) + 2),
    }
}

/// The rows of a source in a product's form: themselves, or rounded into `room`.
///
/// # Safety
/// The source can be read.
pub(super) unsafe fn left_side(isa: Isa, form: Form, source: Source, room: &mut [f32]) -> Left {
    let units = form.units(source.cols);
    let mut left = Left {
        form,
        data: room.as_ptr(),
        rows: source.rows,
        row_step: units,
        units,
        ranges: std::ptr::null(),
    };
    if source.form == form {
        left.data = source.data;
        left.row_step = source.stride;
        return left;
    }
    let (words, rest) = room.split_at_mut(source.rows * units);
    match form {
        // SAFETY: as the caller says.
        Form::Bf16 => unsafe { pack_rows_bf16(isa, source, words) },
        Form::Int8 => {
            let ranges = &mut rest[..2 * source.rows];
            left.ranges = ranges.as_ptr();
            // SAFETY: as the caller says.
            unsafe { quantize_rows(isa, source, words, ranges) };
        }
        Form::F32 => unreachable!("values that are kept as bf16 are multiplied as bf16"),
    }
    left
}

/// Rows `rows` of a view to pack.
pub(super) fn source(view: View, rows: std::ops::Range<usize>) -> Source {
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
        let blocks = y.rows.div_ceil(ROW_BLOCK);
        let block = y
            .rows
            .div_ceil(blocks)
            .next_multiple_of(isa.row_multiple(form));
        let blocks = y.rows.div_ceil(block);
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
                let rows = part(y.rows, block, task / groups);
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
                };
                // SAFETY: the sizes fit as asserted; the task alone has these rows and panels of y.
                unsafe { product.run(isa, form) };
                // Of a layer, this is the only product that comes here.
                lap.done(Part::QkvBackward);
            });
    }

    pub(super) fn linear_gradient(
        &mut self,
        x: Array,
        dy: Array,
        linear: &Linear,
        grads: &mut Flat,
    ) {
        assert!(linear.weight.rows == dy.cols && linear.weight.cols == x.cols);
        assert!(linear.bias.len() == dy.cols && x.rows == dy.rows);
        assert!(linear.weight.range().end.max(linear.bias.range().end) <= grads.len());
        let grads = Shared(grads.as_ptr());
        let (x, dy) = (self.view(x), self.view(dy));
        let (weight, bias) = (linear.weight.offset, linear.bias.offset);
        for first in (0..x.rows).step_by(TOKEN_CHUNK) {
            let tokens = first..x.rows.min(first + TOKEN_CHUNK);
            self.accumulate_outer(
                source(dy, tokens.clone()),
                source(x, tokens),
                Shared(grads.add(weight)),
                Shared(grads.add(bias)),
            );
        }
    }

    /// Adds `dyᵀ x` to `weight` and the column sums of dy to `bias`.
    fn accumulate_outer(&mut self, dy: Source, x: Source, weight: Shared, bias: Shared) {
        let (isa, form, clock) = (self.isa, self.form, &self.clock);
        let units = form.units(x.rows);
        let layout = Strips::new(isa, form, units);
        let count = dy.cols.div_ceil(layout.rows);
        self.left.reserve(count * layout.words());
        self.right.reserve(Panels::words(units, x.cols));
        let left = Shared(self.left.as_ptr());
        let panels = Panels {
            data: self.right.as_ptr(),
            depth: units,
            cols: x.cols,
        };
        let group = GRADIENT_ROWS.div_ceil(layout.rows);
        let groups = count.div_ceil(group);
        let strips = move |index: usize| part(count, group, index);
        self.pool.run(groups + panels.count(), |task, _| {
            let mut lap = clock.start();
            if task >= groups {
                // SAFETY: nobody writes to x; the panel is this task's.
                unsafe { pack_panel(isa, form, x, Columns::Columns, panels, task - groups) };
                lap.done(Part::Weights);
                return;
            }
            for strip in strips(task) {
                let columns = part(dy.cols, layout.rows, strip);
                let words = layout.words();
                // SAFETY: nobody writes to dy; the strip and its bias are this task's.
                unsafe {
                    let to = left.slice_mut(strip * words, words);
                    let sums = bias.slice_mut(columns.start, columns.len());
                    pack_strip(isa, form, dy, layout, strip, to, sums);
                }
            }
            lap.done(Part::Weights);
        });
        self.pool.run(groups * panels.count(), |task, _| {
            let mut lap = clock.start();
            let panel = task / groups;
            for strip in strips(task % groups) {
                let rows = part(dy.cols, layout.rows, strip);
                let product = Product {
                    rows: rows.len(),
                    depth: units,
                    a: left.add(strip * layout.words()),
                    row_step: layout.row_step,
                    unit_step: layout.unit_step,
                    b: panels,
                    first_unit: 0,
                    panels: panel..panel + 1,
                    c: weight.add(rows.start * x.cols),
                    c_stride: x.cols,
                    start: Start::Sum,
                };
                // SAFETY: strips and panels are packed; this tile of the gradient, inside the flat
                // array as the caller asserted, is this task's.
                unsafe { product.run(isa, form) };
            }
            lap.done(Part::Weights);
        });
        debug_assert!(panels.count() * PANEL >= x.cols);
    }
}

/// [`Start`] with an address that tasks can share.
#[derive(Clone, Copy)]
enum Init {
    Zero,
    Sum,
    Bias(Shared),
}
