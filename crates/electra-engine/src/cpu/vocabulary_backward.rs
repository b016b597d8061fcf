//! Backward of the log-probability over the vocabulary: the gradient by the logits stands in
//! memory a chunk at a time.

use super::gemm::{Form, Panels, Product, STRIP, Start};
use super::isa::Kernel;
use super::linear::{left_side, left_words, source};
use super::math::exp;
use super::pack::{Columns, Source, pack_panel, pack_strip};
use super::params::CpuParams;
use super::simd::{LANES, Simd};
use super::view::{Shared, View, part};
use super::vocabulary::{CHUNK, Logits, SEGMENT, STRIDE};
use super::{Cpu, Flat};
use crate::backend::{Array, Ints, Linear};
use std::ops::Range;

/// Rows that are taken through all chunks together.
const ROWS: usize = 256;

/// `row = scale · e^(row − log_sum)`
struct Gradient<'a> {
    row: &'a mut [f32],
    log_sum: f32,
    scale: f32,
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (log_sum, scale) = (S::splat(self.log_sum), S::splat(self.scale));
        for l in self.row.chunks_mut(LANES) {
            let p = exp::<S>(S::sub(S::read(l), log_sum));
            S::write(l, S::mul(p, scale));
        }
    }
}

/// What a block of rows' tasks share.
struct Block<'a> {
    logits: Logits<'a>,
    rows: Range<usize>,
    targets: &'a [u32],
    log_sum: View,
    scale: f32,
    /// The head's weight as right side of `d W`.
    backward: Panels,
    /// The block's rows of x as right side of `dᵀ x`.
    x: Panels,
    /// Gradients of the head's weight and bias.
    weight: Shared,
    bias: Shared,
}

impl Block<'_> {
    /// One segment of the vocabulary: its part of dx into `dx`, its entries' gradients added.
    ///
    /// # Safety
    /// `dx` has room for the block's rows, and nobody else uses it or these entries' gradients.
    unsafe fn segment(&self, segment: usize, dx: Shared, scratch: &mut super::buffer::Scratch) {
        let (isa, form) = (self.logits.isa, self.logits.form);
        let (rows, cols) = (self.rows.len(), self.logits.x.cols);
        let [room, d, left, strip] = scratch.split([
            self.logits.room(rows),
            rows * STRIDE,
            left_words(form, rows, CHUNK),
            STRIP * form.units(rows),
        ]);
        let chunks = part(self.logits.chunks(), SEGMENT, segment);
        for chunk in chunks.clone() {
            let entries = part(self.logits.weight.cols, CHUNK, chunk);
            self.logits.compute(self.rows.clone(), chunk, room, d);
            for (m, row) in self.rows.clone().zip(d.chunks_exact_mut(STRIDE)) {
                isa.run(Gradient {
                    row: &mut row[..entries.len()],
                    // SAFETY: nobody writes to log_sum.
                    log_sum: unsafe { self.log_sum.at(m, 0).read() },
                    scale: self.scale,
                });
                let target = (self.targets[m] as usize).wrapping_sub(entries.start);
                if let Some(hit) = row[..entries.len()].get_mut(target) {
                    *hit -= self.scale;
                }
            }
            let gradient = Source {
                form: Form::F32,
                data: d.as_ptr(),
                rows,
                cols: entries.len(),
                stride: STRIDE,
            };
            let room = left_words(form, rows, entries.len());
            // SAFETY: the gradient is in our scratch.
            let side = unsafe { left_side(isa, form, gradient, &mut left[..room]) };
            let by_input = Product {
                rows,
                depth: side.units,
                a: side.data,
                row_step: side.row_step,
                unit_step: 1,
                b: self.backward,
                first_unit: form.units(entries.start),
                panels: 0..self.backward.count(),
                c: dx.0,
                c_stride: cols,
                start: if chunk == chunks.start {
                    Start::Zero
                } else {
                    Start::Sum
                },
            };
            // SAFETY: the room of dx is ours, says the caller.
            unsafe { by_input.run(isa, form) };
            for i in 0..entries.len().div_ceil(STRIP) {
                let columns = part(entries.len(), STRIP, i);
                let entry = entries.start + columns.start;
                // SAFETY: these entries' gradients are ours, says the caller.
                unsafe {
                    let sums = self.bias.slice_mut(entry, columns.len());
                    pack_strip(isa, form, gradient, i, strip, Some(sums));
                    let by_weight = Product {
                        rows: columns.len(),
                        depth: form.units(rows),
                        a: strip.as_ptr(),
                        row_step: 1,
                        unit_step: STRIP,
                        b: self.x,
                        first_unit: 0,
                        panels: 0..self.x.count(),
                        c: self.weight.add(entry * cols),
                        c_stride: cols,
                        start: Start::Sum,
                    };
                    by_weight.run(isa, form);
                }
            }
        }
    }
}

impl Cpu {
    pub(super) fn log_prob_backward(
        &mut self,
        params: &CpuParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_sum: Array,
        scale: f32,
        dx: Array,
        grads: &mut Flat,
    ) {
        assert!(targets.len == x.rows && log_sum.rows == x.rows && log_sum.cols == 1);
        assert!(dx.rows == x.rows && dx.cols == x.cols);
        assert!(head.weight.range().end.max(head.bias.range().end) <= grads.len());
        let logits = self.vocabulary_logits(params, x, head);
        let backward = self.backward_panels(params, head.weight);
        let (log_sum, dx, cols) = (self.view(log_sum), self.view(dx), x.cols);
        assert!(!dx.overlaps(&logits.x) && !dx.overlaps(&log_sum));
        let (isa, form) = (self.isa, self.form);
        let segments = logits.chunks().div_ceil(SEGMENT);
        let grads = Shared(grads.as_ptr());
        for first in (0..x.rows).step_by(ROWS) {
            let rows = first..x.rows.min(first + ROWS);
            let units = form.units(rows.len());
            self.left.reserve(segments * rows.len() * cols);
            self.right.reserve(Panels::words(units, cols));
            let partial = Shared(self.left.as_ptr());
            let block = Block {
                logits,
                rows: rows.clone(),
                targets: &self.ints[targets.slot as usize][..targets.len],
                log_sum,
                scale,
                backward,
                x: Panels {
                    data: self.right.as_ptr(),
                    depth: units,
                    cols,
                },
                weight: Shared(grads.add(head.weight.offset)),
                bias: Shared(grads.add(head.bias.offset)),
            };
            self.pool.run(block.x.count(), |panel, _| {
                let rows = source(block.logits.x, block.rows.clone());
                // SAFETY: nobody writes to x; the panel is this task's.
                unsafe { pack_panel(isa, form, rows, Columns::Columns, block.x, panel) };
            });
            self.pool.run(segments, |segment, scratch| {
                let dx = Shared(partial.add(segment * block.rows.len() * cols));
                // SAFETY: this segment's part and entries are this task's.
                unsafe { block.segment(segment, dx, scratch) };
            });
            let count = rows.len();
            self.pool.rows(count, cols * segments, |part, _| {
                for r in part {
                    // SAFETY: row r of dx is this task's; nobody writes to the parts.
                    let to = unsafe { dx.row_mut(first + r) };
                    to.fill(0.0);
                    for segment in 0..segments {
                        let at = (segment * count + r) * cols;
                        // SAFETY: as above.
                        let from = unsafe { partial.slice_mut(at, cols) };
                        for (to, from) in to.iter_mut().zip(from) {
                            *to += *from;
                        }
                    }
                }
            });
        }
    }
}
