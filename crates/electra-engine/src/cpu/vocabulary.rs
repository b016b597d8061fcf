//! Softmax over the vocabulary in one pass: log-probability, the most probable entry, a sample.
//!
//! A task takes some rows through a segment of the vocabulary, panel by panel: the logits of a
//! block of rows and one panel stay in the L1 cache while their exponentials are summed. Sums are
//! relative to a whole power of two that a row's first panel of the segment sets, so that scaling
//! them is exact. Kept are a sum for each row and segment and, for a sample, for each row and
//! panel; from these follow the normaliser and the panel of the sample, whose logits are then
//! computed again, to the same bits.

mod entries;

use super::Cpu;
use super::gemm::{Form, PANEL, Panels, Product, Start};
use super::isa::{Isa, Kernel};
use super::linear::{Left, left_side, left_words, source};
use super::math::exp2;
use super::params::CpuParams;
use super::simd::{LANES, Simd};
use super::view::{Shared, View, part};
use crate::backend::{Array, Ints, Linear, VocabularySample};
use crate::rng::Purpose;
use entries::Look;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Panels that a task takes.
pub(super) const SEGMENT: usize = 16;
/// Rows whose logits for a panel are made at once: whole tiles, whole groups, and in L1.
pub(super) const BLOCK: usize = 48;
/// Rows that a task takes at most, so that its part of x stays in the L2 cache.
const TASK_ROWS: usize = 8 * BLOCK;
/// Rows whose sums are made at once: a vector of sums.
const GROUP: usize = LANES;
/// Values of a group's logits for a panel.
const TILE: usize = GROUP * PANEL;
/// Stands for the logit of an entry that is none.
const ABSENT: f32 = -1e30;
/// Sums above this are made again, relative to a greater power of two.
const LIMIT: f32 = 1e18;

/// The head of a vocabulary, `x Wᵀ + b`, by panels.
#[derive(Clone, Copy)]
pub(super) struct Logits<'a> {
    pub(super) isa: Isa,
    pub(super) form: Form,
    pub(super) x: View,
    pub(super) weight: Panels,
    pub(super) bias: &'a [f32],
}

impl Logits<'_> {
    pub(super) fn segments(&self) -> usize {
        self.weight.count().div_ceil(SEGMENT)
    }

    /// Panels of a segment.
    pub(super) fn panels(&self, segment: usize) -> Range<usize> {
        part(self.weight.count(), SEGMENT, segment)
    }

    /// Words of scratch that [`left`](Logits::left) needs.
    pub(super) fn room(&self, rows: usize) -> usize {
        left_words(self.form, rows, self.x.cols)
    }

    /// Some rows as left side of the product.
    pub(super) fn left(&self, rows: Range<usize>, room: &mut [f32]) -> Left {
        assert!(rows.end <= self.x.rows);
        let room = &mut room[..left_words(self.form, rows.len(), self.x.cols)];
        // SAFETY: nobody writes to x during the operator.
        unsafe { left_side(self.isa, self.form, source(self.x, rows), room) }
    }

    /// Logits of the rows of a left side for a panel: at `stride` a row, and [`ABSENT`] beyond the last
    /// entry.
    ///
    /// # Safety
    /// The left side can be read.
    pub(super) unsafe fn compute(&self, left: Left, panel: usize, out: &mut [f32], stride: usize) {
        assert!(stride >= PANEL && out.len() >= (left.rows - 1) * stride + PANEL);
        assert!(self.bias.len() == self.weight.cols);
        let product = Product {
            rows: left.rows,
            depth: left.units,
            a: left.data,
            row_step: left.row_step,
            unit_step: 1,
            b: self.weight,
            first_unit: 0,
            panels: panel..panel + 1,
            c: out.as_mut_ptr().wrapping_sub(panel * PANEL),
            c_stride: stride,
            start: Start::Bias(self.bias.as_ptr()),
            ahead: 0..0,
        };
        // SAFETY: the left side can be read, says the caller; the panel's results go to `out` alone,
        // which has room for them.
        unsafe { product.run(self.isa, self.form) };
        let entries = self.weight.cols - panel * PANEL;
        if entries < PANEL {
            for row in out.chunks_mut(stride).take(left.rows) {
                row[entries..PANEL].fill(ABSENT);
            }
        }
    }
}

/// `2^(factor · logit − shift)` of sixteen logits.
#[inline(always)]
fn weigh<S: Simd>(logits: &[f32], factor: S::V, shift: S::V) -> S::V {
    exp2::<S>(S::fma(S::read(logits), factor, shift))
}

/// Sums over sixteen rows of 64, a lane each.
// Counted loops over arrays of registers unroll; iterators over them end up in memory.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn row_sums<S: Simd>(tile: &[f32], factor: S::V, shifts: &[f32]) -> S::V {
    assert!(tile.len() == TILE && shifts.len() == GROUP);
    let mut sums = [S::splat(0.0); GROUP];
    for i in 0..GROUP {
        let shift = S::splat(-shifts[i]);
        let row = &tile[i * PANEL..][..PANEL];
        let mut sum = weigh::<S>(row, factor, shift);
        for j in 1..PANEL / LANES {
            sum = S::add(sum, weigh::<S>(&row[j * LANES..], factor, shift));
        }
        sums[i] = sum;
    }
    S::transpose(&mut sums);
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sums[i] = S::add(sums[i], sums[i + width]);
        }
    }
    sums[0]
}

/// The greatest of each of sixteen rows of 64, a lane each.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn row_maxima<S: Simd>(tile: &[f32]) -> S::V {
    assert!(tile.len() == TILE);
    let mut maxima = [S::splat(0.0); GROUP];
    for i in 0..GROUP {
        let row = &tile[i * PANEL..][..PANEL];
        let mut max = S::read(row);
        for j in 1..PANEL / LANES {
            max = S::max(max, S::read(&row[j * LANES..]));
        }
        maxima[i] = max;
    }
    S::transpose(&mut maxima);
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            maxima[i] = S::max(maxima[i], maxima[i + width]);
        }
    }
    maxima[0]
}

/// The whole power of two nearest to the greatest weight of each of sixteen rows; not below that of
/// a row without entries, and what is no number stays so.
#[inline(always)]
fn row_shifts<S: Simd>(tile: &[f32], factor: S::V) -> S::V {
    let shift = S::round(S::mul(row_maxima::<S>(tile), factor));
    S::max(S::splat(ABSENT), shift)
}

/// Sums of `2^(factor · logit − shift)` over a panel for a group of rows.
struct Sums<'a> {
    /// `[16, 64]` logits.
    tile: &'a [f32],
    factor: f32,
    /// `[16]` whole numbers; set if `fresh`, raised where a sum passes the limit.
    shifts: &'a mut [f32],
    fresh: bool,
    /// `[16]`.
    sums: &'a mut [f32],
}

impl Kernel for Sums<'_> {
    /// Whether a shift was raised.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self) -> bool {
        let factor = S::splat(self.factor);
        if self.fresh {
            S::write(self.shifts, row_shifts::<S>(self.tile, factor));
        }
        let mut sums = row_sums::<S>(self.tile, factor, self.shifts);
        let raised = S::greatest(sums) > LIMIT;
        if raised {
            let before = S::read(self.shifts);
            let shifts = S::max(before, row_shifts::<S>(self.tile, factor));
            let shifts = S::select_less(S::splat(LIMIT), sums, shifts, before);
            S::write(self.shifts, shifts);
            sums = row_sums::<S>(self.tile, factor, self.shifts);
        }
        S::write(self.sums, sums);
        raised
    }
}

/// The greatest logit of a panel for each of a group of rows, `[16]`.
struct Greatest<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Greatest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        S::write(self.1, row_maxima::<S>(self.0));
    }
}

/// What is summed of `softmax(factor · ln 2 · logits)`, for all rows: `[segments, rows]` shifts
/// and sums, and where a sample asks for it `[panels, rows]` sums.
#[derive(Clone, Copy)]
struct Plane {
    factor: f32,
    shifts: Shared,
    totals: Shared,
    panels: Option<Shared>,
}

/// What a pass works with. Planes have `stride` words a segment or panel.
#[derive(Clone, Copy)]
struct Pass<'a> {
    logits: Logits<'a>,
    stride: usize,
    targets: &'a [u32],
    /// `[rows]` gets the targets' logits.
    hits: Shared,
    /// `[segments, rows]` greatest logit of the segment, and its panel as bits.
    greatest: Option<[Shared; 2]>,
    normal: Plane,
    /// For a sample that needs sums of its own: those of the normaliser do where the temperature
    /// is 1, nothing is left out and sums a panel are kept.
    sample: Option<Plane>,
    exclude: Option<&'a [u32]>,
}

impl Pass<'_> {
    /// Takes some rows through a segment.
    fn segment(&self, rows: Range<usize>, segment: usize, scratch: &mut super::buffer::Scratch) {
        let logits = &self.logits;
        let [room, tiles] = scratch.split([logits.room(rows.len()), BLOCK * PANEL]);
        let left = logits.left(rows.clone(), room);
        for panel in logits.panels(segment) {
            for first in (0..rows.len()).step_by(BLOCK) {
                let count = BLOCK.min(rows.len() - first);
                let some = left.part(first..first + count);
                // SAFETY: the left side lies in `room`, or in x, to which nobody writes.
                unsafe { logits.compute(some, panel, tiles, PANEL) };
                for (i, tile) in tiles.chunks_exact_mut(TILE).enumerate() {
                    if i * GROUP < count {
                        let row = rows.start + first + i * GROUP;
                        self.group(row..(row + GROUP).min(rows.end), segment, panel, tile);
                    }
                }
            }
        }
    }

    /// Adds a panel to the sums of up to sixteen rows.
    fn group(&self, rows: Range<usize>, segment: usize, panel: usize, tile: &mut [f32]) {
        let isa = self.logits.isa;
        let at = segment * self.stride + rows.start;
        let fresh = panel.is_multiple_of(SEGMENT);
        let place = |id: u32| (id as usize).wrapping_sub(panel * PANEL);
        for (i, row) in rows.clone().enumerate() {
            let place = place(self.targets[row]);
            if place < PANEL {
                // SAFETY: one task has the row and the panel of its target.
                unsafe { self.hits.add(row).write(tile[i * PANEL + place]) };
            }
        }
        if let Some([greatest, panels]) = self.greatest {
            let mut now = [0.0; GROUP];
            isa.run(Greatest(tile, &mut now));
            // SAFETY: these rows and this segment are this task's.
            let (greatest, panels) =
                unsafe { (greatest.slice_mut(at, GROUP), panels.slice_mut(at, GROUP)) };
            for i in 0..GROUP {
                if fresh || now[i] > greatest[i] {
                    greatest[i] = now[i];
                    panels[i] = f32::from_bits(panel as u32);
                }
            }
        }
        let mut sums = [0.0; GROUP];
        self.add(
            &self.normal,
            None,
            tile,
            rows.start,
            segment,
            panel,
            &mut sums,
        );
        let Some(plane) = &self.sample else { return };
        let mut changed = plane.factor != self.normal.factor;
        if let Some(exclude) = self.exclude {
            for (i, row) in rows.clone().enumerate() {
                let place = place(exclude[row]);
                if place < PANEL {
                    tile[i * PANEL + place] = ABSENT;
                    changed = true;
                }
            }
        }
        let given = (!changed).then_some(&self.normal);
        self.add(plane, given, tile, rows.start, segment, panel, &mut sums);
    }

    /// Adds to a plane the sums of a tile, or `sums` where those of the plane `given` are the
    /// same.
    fn add(
        &self,
        plane: &Plane,
        given: Option<&Plane>,
        tile: &[f32],
        row: usize,
        segment: usize,
        panel: usize,
        sums: &mut [f32; GROUP],
    ) {
        let at = segment * self.stride + row;
        let fresh = panel.is_multiple_of(SEGMENT);
        // SAFETY: these rows of the segment, in planes of so many words, are this task's.
        let (shifts, totals) = unsafe {
            (
                plane.shifts.slice_mut(at, GROUP),
                plane.totals.slice_mut(at, GROUP),
            )
        };
        // SAFETY: as above.
        let given = given.map(|plane| unsafe { plane.shifts.slice_mut(at, GROUP) });
        match given {
            Some(given) if fresh || given == shifts => shifts.copy_from_slice(given),
            _ => {
                let mut before = [0.0; GROUP];
                before.copy_from_slice(shifts);
                let kernel = Sums {
                    tile,
                    factor: plane.factor,
                    shifts: &mut *shifts,
                    fresh,
                    sums: &mut *sums,
                };
                if self.logits.isa.run(kernel) && !fresh {
                    self.lower(plane, row, segment, panel, &before, shifts);
                }
            }
        }
        for (total, sum) in totals.iter_mut().zip(&*sums) {
            *total = if fresh { *sum } else { *total + sum };
        }
        if let Some(panels) = plane.panels {
            // SAFETY: as above.
            let to = unsafe { panels.slice_mut(panel * self.stride + row, GROUP) };
            to.copy_from_slice(sums);
        }
    }

    /// Scales what was summed before `panel` to shifts that were raised.
    #[cold]
    fn lower(
        &self,
        plane: &Plane,
        row: usize,
        segment: usize,
        panel: usize,
        before: &[f32],
        shifts: &[f32],
    ) {
        let scale = |at: usize, from: Shared| {
            // SAFETY: these rows of the segment and its panels are this task's.
            let values = unsafe { from.slice_mut(at * self.stride + row, GROUP) };
            for ((value, before), now) in values.iter_mut().zip(before).zip(shifts) {
                *value *= (before - now).exp2();
            }
        };
        scale(segment, plane.totals);
        if let Some(panels) = plane.panels {
            for earlier in segment * SEGMENT..panel {
                scale(earlier, panels);
            }
        }
    }
}

impl Cpu {
    pub(super) fn vocabulary_logits<'a>(
        &mut self,
        params: &'a CpuParams,
        x: Array,
        head: &Linear,
    ) -> Logits<'a> {
        assert!(head.weight.cols == x.cols && head.bias.len() == head.weight.rows);
        Logits {
            isa: self.isa,
            form: self.form,
            x: self.view(x),
            weight: self.forward_panels(params, head.weight),
            bias: params.slice(head.bias),
        }
    }

    pub(super) fn vocabulary_pass(
        &mut self,
        params: &CpuParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
        sample: Option<&VocabularySample>,
    ) {
        let rows = x.rows;
        for a in [log_prob, log_sum] {
            assert!(a.rows == rows && a.cols == 1);
        }
        let logits = self.vocabulary_logits(params, x, head);
        let (log_prob, log_sum) = (self.view(log_prob), self.view(log_sum));
        let (segments, panels) = (logits.segments(), logits.weight.count());
        let stride = rows.next_multiple_of(GROUP);
        let own_sums = sample.is_some_and(|s| s.temperature != 1.0 || s.exclude.is_some());
        self.left.reserve(stride * (6 * segments + panels));
        self.right.reserve(3 * stride);
        let plane = |index: usize| Shared(self.left.as_ptr()).offset(index * segments * stride);
        let panel_sums = sample.map(|_| plane(6));
        let [hits, best, drawn] = [0, 1, 2].map(|i| Shared(self.right.as_ptr()).offset(i * stride));
        let ids = |i: Ints| &self.ints[i.slot as usize][..i.len];
        let pass = Pass {
            logits,
            stride,
            targets: ids(targets),
            hits,
            greatest: predicted.map(|_| [plane(0), plane(1)]),
            normal: Plane {
                factor: LOG2_E,
                shifts: plane(2),
                totals: plane(3),
                panels: panel_sums.filter(|_| !own_sums),
            },
            sample: sample.filter(|_| own_sums).map(|sample| Plane {
                factor: LOG2_E / sample.temperature,
                shifts: plane(4),
                totals: plane(5),
                panels: panel_sums,
            }),
            exclude: sample.and_then(|s| s.exclude).map(ids),
        };
        assert!(pass.targets.len() == rows);
        assert!(pass.exclude.is_none_or(|e| e.len() == rows));
        let known = |&id: &u32| (id as usize) < head.weight.rows;
        assert!(pass.targets.iter().all(known));
        let keys = sample.map(|s| {
            assert!(s.rows.len == rows && s.sampled.len == rows);
            [s.rows, s.keys.example, s.keys.position].map(ids)
        });
        let blocks = rows.div_ceil(TASK_ROWS).max(1);
        let block = rows.div_ceil(blocks).next_multiple_of(BLOCK);
        let blocks = rows.div_ceil(block.max(1));
        self.pool.run(blocks * segments, |task, scratch| {
            pass.segment(part(rows, block, task % blocks), task / blocks, scratch);
        });
        self.pool.run(rows.div_ceil(GROUP), |task, scratch| {
            let [room, out] = scratch.split([logits.room(1), PANEL]);
            let mut look = Look { room, out };
            for row in part(rows, GROUP, task) {
                let (top, sum) = pass.total(&pass.normal, row);
                // By the very factor that the sums were made with: a large shift cancels.
                let normalizer = f64::from(top) / f64::from(LOG2_E) + sum.ln();
                // SAFETY: this row of the arrays and of what is kept a row is this task's.
                unsafe {
                    log_sum.at(row, 0).write(normalizer as f32);
                    let hit = f64::from(hits.add(row).read());
                    log_prob.at(row, 0).write((hit - normalizer) as f32);
                }
                let keep = |to: Shared, entry: u32| {
                    // SAFETY: as above.
                    unsafe { to.add(row).write(f32::from_bits(entry)) };
                };
                if let Some(greatest) = pass.greatest {
                    keep(best, pass.most_probable(row, greatest, &mut look));
                }
                if let (Some(sample), Some([rows, examples, positions])) = (sample, keys) {
                    let token = rows[row] as usize;
                    let (example, position) = (examples[token], positions[token]);
                    let rng = &sample.rng;
                    let uniform = rng.uniform(Purpose::Sample, 0, example, position, 0);
                    let plane = pass.sample.as_ref().unwrap_or(&pass.normal);
                    keep(drawn, pass.invert(row, uniform, plane, &mut look));
                }
            }
        });
        let results = [(predicted, best), (sample.map(|s| s.sampled), drawn)];
        for (to, from) in results {
            let Some(to) = to else { continue };
            assert!(to.len == rows);
            for (row, to) in self.ints[to.slot as usize][..rows].iter_mut().enumerate() {
                // SAFETY: written above.
                *to = unsafe { from.add(row).read() }.to_bits();
            }
        }
    }
}
