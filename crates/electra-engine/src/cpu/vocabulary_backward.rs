//! Backward of the log-probability over the vocabulary: the gradient by the logits stands in
//! memory for a chunk of the vocabulary and a block of rows at a time, in the forms in which both
//! products read it.

use super::buffer::Scratch;
use super::gemm::{Form, PANEL, Panels, Product, STRIP, Start};
use super::isa::Kernel;
use super::linear::{Left, source};
use super::math::exp2;
use super::pack::{Columns, pack_panel};
use super::params::CpuParams;
use super::simd::{LANES, Simd};
use super::view::{Shared, View, part};
use super::vocabulary::{BLOCK, Logits};
use super::{Cpu, Flat};
use crate::backend::{Array, Ints, Linear};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Rows that are taken through the vocabulary together: their part of x, packed too, and their
/// gradients stay in the L2 cache.
const ROWS: usize = 8 * BLOCK;
/// Panels whose gradients stand in memory at once: whole strips.
const PANELS: usize = 3;
/// Entries of as many.
const CHUNK: usize = PANELS * PANEL;
/// Distance of rows of gradients: not a power of two.
const STRIDE: usize = CHUNK + LANES;
/// The same of rows of pairs of halves.
const HALF_STRIDE: usize = CHUNK / 2 + LANES;
/// Chunks that a task takes.
const SEGMENT: usize = 10;

const _: () = assert!(CHUNK.is_multiple_of(STRIP) && BLOCK.is_multiple_of(2));

/// Gradients of some rows for one panel in place of their logits, and the sums of the columns.
struct Gradients<'a> {
    /// Rows of 64 logits, at `stride`.
    tile: &'a mut [f32],
    stride: usize,
    /// `log2` of each row's sum of exponentials.
    log_sums: &'a [f32],
    scale: f32,
    /// `[64]`, added to.
    sums: &'a mut [f32],
}

impl Kernel for Gradients<'_> {
    type Output = ();

    // Counted loops over arrays of registers unroll; iterators over them end up in memory.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (factor, scale) = (S::splat(LOG2_E), S::splat(self.scale));
        let mut sums = [S::splat(0.0); PANEL / LANES];
        for j in 0..PANEL / LANES {
            sums[j] = S::read(&self.sums[j * LANES..]);
        }
        for (row, &log_sum) in self.tile.chunks_mut(self.stride).zip(self.log_sums) {
            let shift = S::splat(-log_sum);
            let row = &mut row[..PANEL];
            for j in 0..PANEL / LANES {
                let l = &mut row[j * LANES..][..LANES];
                let p = exp2::<S>(S::fma(S::read(l), factor, shift));
                let d = S::mul(p, scale);
                S::write(l, d);
                sums[j] = S::add(sums[j], d);
            }
        }
        for j in 0..PANEL / LANES {
            S::write(&mut self.sums[j * LANES..], sums[j]);
        }
    }
}

/// Gradients of some rows for one panel, rounded to bf16: pairs along the entries for `d W`, and
/// along the rows for `dᵀ x`.
struct Round<'a> {
    /// Rows of 64, an even number.
    tile: &'a [f32],
    /// Row by row, at [`HALF_STRIDE`].
    along_entries: &'a mut [f32],
    /// A row for two, at [`STRIDE`].
    along_rows: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for ((two, wide), pairs) in self
            .tile
            .chunks_exact(2 * PANEL)
            .zip(self.along_entries.chunks_mut(2 * HALF_STRIDE))
            .zip(self.along_rows.chunks_mut(STRIDE))
        {
            let (upper, lower) = two.split_at(PANEL);
            for j in (0..PANEL).step_by(2 * LANES) {
                let (a, b) = (S::read(&upper[j..]), S::read(&upper[j + LANES..]));
                let (c, d) = (S::read(&lower[j..]), S::read(&lower[j + LANES..]));
                S::write(&mut pairs[j..][..LANES], S::pair_half(a, c));
                S::write(&mut pairs[j + LANES..][..LANES], S::pair_half(b, d));
                S::write(&mut wide[j / 2..][..LANES], S::row_half(a, b));
                let second = &mut wide[HALF_STRIDE + j / 2..][..LANES];
                S::write(second, S::row_half(c, d));
            }
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

/// The gradient by the logits of a block of rows and a chunk of the vocabulary.
struct Chunk<'a> {
    /// A panel's part of some rows.
    tile: &'a mut [f32],
    /// `log2` of each row's sum of exponentials.
    log_sums: &'a [f32],
    /// The gradient as left side of `d W`; in f32, of `dᵀ x` too.
    along_entries: &'a mut [f32],
    /// In bf16, the gradient as left side of `dᵀ x`.
    along_rows: &'a mut [f32],
    /// Sums of the columns.
    sums: &'a mut [f32],
}

impl Chunk<'_> {
    /// Fills the chunk that begins at panel `first`.
    fn fill(&mut self, block: &Block, left: Left, first: usize, panels: usize) {
        let (isa, form) = (block.logits.isa, block.logits.form);
        self.sums.fill(0.0);
        for p in 0..panels {
            let sums = &mut self.sums[p * PANEL..][..PANEL];
            for start in (0..block.rows.len()).step_by(BLOCK) {
                let count = BLOCK.min(block.rows.len() - start);
                let (tile, stride) = match form {
                    Form::Half => (&mut self.tile[..], PANEL),
                    _ => {
                        let at = start * STRIDE + p * PANEL;
                        let end = at + (count - 1) * STRIDE + PANEL;
                        (&mut self.along_entries[at..end], STRIDE)
                    }
                };
                let panel = first + p;
                let some = left.part(start..start + count);
                // SAFETY: the left side lies in the block's room, or in x, to which nobody writes.
                unsafe { block.logits.compute(some, panel, tile, stride) };
                isa.run(Gradients {
                    tile: &mut *tile,
                    stride,
                    log_sums: &self.log_sums[start..start + count],
                    scale: block.scale,
                    sums: &mut *sums,
                });
                let row = block.rows.start + start;
                for (i, &target) in block.targets[row..row + count].iter().enumerate() {
                    let place = (target as usize).wrapping_sub(panel * PANEL);
                    if place < PANEL {
                        tile[i * stride + place] -= block.scale;
                        sums[place] -= block.scale;
                    }
                }
                if form == Form::Half {
                    let even = count.next_multiple_of(2);
                    self.tile[count * PANEL..even * PANEL].fill(0.0);
                    isa.run_half(Round {
                        tile: &self.tile[..even * PANEL],
                        along_entries: &mut self.along_entries
                            [start * HALF_STRIDE + p * PANEL / 2..],
                        along_rows: &mut self.along_rows[start / 2 * STRIDE + p * PANEL..],
                    });
                }
            }
        }
    }
}

impl Block<'_> {
    /// One segment of the vocabulary: its part of dx into `dx`, its entries' gradients added.
    ///
    /// # Safety
    /// `dx` has room for the block's rows, and nobody else uses it or these entries' gradients.
    unsafe fn segment(&self, segment: usize, dx: Shared, scratch: &mut Scratch) {
        let (isa, form) = (self.logits.isa, self.logits.form);
        let (rows, cols) = (self.rows.len(), self.logits.x.cols);
        let (tile, wide, pairs) = match form {
            Form::Half => {
                let even = rows.next_multiple_of(2);
                (BLOCK * PANEL, even * HALF_STRIDE, even / 2 * STRIDE)
            }
            _ => (0, rows * STRIDE, 0),
        };
        let lengths = [self.logits.room(rows), rows, tile, wide, pairs, CHUNK];
        let [room, log_sums, tile, along_entries, along_rows, sums] = scratch.split(lengths);
        let left = self.logits.left(self.rows.clone(), room);
        for (row, to) in self.rows.clone().zip(log_sums.iter_mut()) {
            // SAFETY: nobody writes to log_sum.
            *to = unsafe { self.log_sum.at(row, 0).read() } * LOG2_E;
        }
        let mut chunk = Chunk {
            tile,
            log_sums,
            along_entries,
            along_rows,
            sums,
        };
        let all = part(self.logits.weight.count(), SEGMENT * PANELS, segment);
        for first in all.clone().step_by(PANELS) {
            let panels = PANELS.min(all.end - first);
            chunk.fill(self, left, first, panels);
            let entries = first * PANEL..self.logits.weight.cols.min((first + panels) * PANEL);
            let (row_step, by_rows) = match form {
                Form::Half => (HALF_STRIDE, chunk.along_rows.as_ptr()),
                _ => (STRIDE, chunk.along_entries.as_ptr()),
            };
            let by_input = Product {
                rows,
                depth: form.units(entries.len()),
                a: chunk.along_entries.as_ptr(),
                row_step,
                unit_step: 1,
                b: self.backward,
                first_unit: form.units(entries.start),
                panels: 0..self.backward.count(),
                c: dx.0,
                c_stride: cols,
                start: if first == all.start {
                    Start::Zero
                } else {
                    Start::Sum
                },
                ahead: 0..0,
            };
            let by_weight = Product {
                rows: entries.len(),
                depth: form.units(rows),
                a: by_rows,
                row_step: 1,
                unit_step: STRIDE,
                b: self.x,
                first_unit: 0,
                panels: 0..self.x.count(),
                c: self.weight.add(entries.start * cols),
                c_stride: cols,
                start: Start::Sum,
                ahead: 0..0,
            };
            // SAFETY: the room of dx and these entries' gradients are ours, says the caller.
            unsafe {
                by_input.run(isa, form);
                by_weight.run(isa, form);
                let bias = self.bias.slice_mut(entries.start, entries.len());
                for (bias, sum) in bias.iter_mut().zip(&*chunk.sums) {
                    *bias += sum;
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
        assert!(form != Form::Int8, "int8 has no backward");
        let segments = logits.weight.count().div_ceil(SEGMENT * PANELS);
        let grads = Shared(grads.as_ptr());
        let blocks = x.rows.div_ceil(ROWS).max(1);
        let size = x.rows.div_ceil(blocks).next_multiple_of(BLOCK);
        for first in (0..x.rows).step_by(size.max(1)) {
            let rows = first..x.rows.min(first + size);
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
                x: Panels::new(isa, form, self.right.as_ptr(), [units, cols]),
                weight: grads.offset(head.weight.offset),
                bias: grads.offset(head.bias.offset),
            };
            self.pool.run(block.x.count(), |panel, _| {
                let rows = source(block.logits.x, block.rows.clone());
                // SAFETY: nobody writes to x; the panel is this task's.
                unsafe { pack_panel(isa, form, rows, Columns::Columns, block.x, panel) };
            });
            self.pool.run(segments, |segment, scratch| {
                let dx = partial.offset(segment * block.rows.len() * cols);
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
