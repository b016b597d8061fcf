//! Softmax over the vocabulary by chunks of it: log-probability and sampling.
//!
//! Each row keeps the greatest logit and the sum of exponentials of every chunk; from these follow
//! the normaliser, the most probable entry's chunk and a sample's chunk, whose logits are then
//! computed again, to the same bits.

use super::Cpu;
use super::buffer::Buffer;
use super::gemm::{Form, PANEL, Panels, Product, STRIP, Start};
use super::isa::{Isa, Kernel};
use super::linear::{ROW_BLOCK, left_side, left_words, source};
use super::math::exp;
use super::params::CpuParams;
use super::pool::Pool;
use super::simd::{LANES, Simd};
use super::view::{Shared, View, part};
use crate::backend::{Array, Ints, Linear, VocabularySample};
use crate::rng::Purpose;
use std::ops::Range;

/// Entries whose logits stand in memory at once: whole panels and whole strips.
pub(super) const CHUNK: usize = PANEL * STRIP;
/// Distance of rows of logits: not a power of two.
pub(super) const STRIDE: usize = CHUNK + LANES;
/// Chunks that a task takes.
pub(super) const SEGMENT: usize = 5;
/// Rows whose choice is one task.
const ROWS: usize = 8;

/// The head of a vocabulary: `x Wᵀ + b`, by chunks.
#[derive(Clone, Copy)]
pub(super) struct Logits<'a> {
    pub(super) isa: Isa,
    pub(super) form: Form,
    pub(super) x: View,
    pub(super) weight: Panels,
    pub(super) bias: &'a [f32],
}

impl Logits<'_> {
    pub(super) fn chunks(&self) -> usize {
        self.weight.cols.div_ceil(CHUNK)
    }

    /// Words of scratch that [`compute`](Logits::compute) needs for the left side.
    pub(super) fn room(&self, rows: usize) -> usize {
        left_words(self.form, rows, self.x.cols)
    }

    /// Logits of some rows for one chunk, at `STRIDE` a row.
    pub(super) fn compute(
        &self,
        rows: Range<usize>,
        chunk: usize,
        room: &mut [f32],
        out: &mut [f32],
    ) {
        assert!(out.len() >= rows.len() * STRIDE && rows.end <= self.x.rows);
        assert!(self.bias.len() == self.weight.cols);
        let count = rows.len();
        // SAFETY: nobody writes to x during the operator.
        let left = unsafe { left_side(self.isa, self.form, source(self.x, rows), room) };
        let product = Product {
            rows: count,
            depth: left.units,
            a: left.data,
            row_step: left.row_step,
            unit_step: 1,
            b: self.weight,
            first_unit: 0,
            panels: part(self.weight.count(), CHUNK / PANEL, chunk),
            c: out.as_mut_ptr().wrapping_sub(chunk * CHUNK),
            c_stride: STRIDE,
            start: Start::Bias(self.bias.as_ptr()),
        };
        // SAFETY: the sizes fit as asserted; the panels of this chunk write to `out` alone.
        unsafe { product.run(self.isa, self.form) };
    }
}

/// Prepares a chunk's logits in place: times `scale`, and minus infinity at `exclude`.
fn adjust(row: &mut [f32], scale: f32, exclude: Option<usize>) {
    if scale != 1.0 {
        for logit in row.iter_mut() {
            *logit *= scale;
        }
    }
    if let Some(logit) = exclude.and_then(|i| row.get_mut(i)) {
        *logit = f32::NEG_INFINITY;
    }
}

/// Greatest logit of a row and the sum of exponentials of the differences to it.
struct Summary<'a>(&'a [f32]);

impl Kernel for Summary<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; 2] {
        let full = self.0.len() / LANES * LANES;
        let (rows, rest) = self.0.split_at(full);
        let mut max = S::splat(f32::NEG_INFINITY);
        for l in rows.chunks_exact(LANES) {
            max = S::max(max, S::read(l));
        }
        let mut max = S::greatest(max);
        for &l in rest {
            max = max.max(l);
        }
        if max == f32::NEG_INFINITY {
            return [max, 0.0];
        }
        let top = S::splat(max);
        let mut sum = S::splat(0.0);
        for l in rows.chunks_exact(LANES) {
            sum = S::add(sum, exp::<S>(S::sub(S::read(l), top)));
        }
        let mut sum = S::sum(sum);
        for &l in rest {
            sum += (l - max).exp();
        }
        [max, sum]
    }
}

/// `row = e^(row − top)`
struct Exponentials<'a>(&'a mut [f32], f32);

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let top = S::splat(self.1);
        for l in self.0.chunks_mut(LANES) {
            let e = exp::<S>(S::sub(S::read(l), top));
            S::write(l, e);
        }
    }
}

/// The greatest of the chunks' maxima, and the sum of exponentials of the differences to it.
fn combine(summaries: &[f32]) -> (f32, f64) {
    let chunks = || summaries.chunks_exact(2);
    let max = chunks().fold(f32::NEG_INFINITY, |max, c| max.max(c[0]));
    (max, chunks().map(|c| weight(c, max)).sum())
}

/// A chunk's part of the sum.
fn weight(chunk: &[f32], max: f32) -> f64 {
    match chunk[1] {
        0.0 => 0.0,
        sum => f64::from(sum) * f64::from(chunk[0] - max).exp(),
    }
}

/// One row's second look at chunks.
struct Visit<'a> {
    logits: Logits<'a>,
    row: usize,
    room: &'a mut [f32],
    out: &'a mut [f32],
}

impl Visit<'_> {
    /// The row's logits for a chunk.
    fn chunk(&mut self, chunk: usize) -> &mut [f32] {
        let rows = self.row..self.row + 1;
        self.logits.compute(rows, chunk, self.room, self.out);
        &mut self.out[..part(self.logits.weight.cols, CHUNK, chunk).len()]
    }
}

/// What a pass over the vocabulary works with.
struct Scan<'a> {
    pool: &'a mut Pool,
    /// Two numbers a row and chunk.
    summaries: &'a mut Buffer,
    /// One number a row: the target's logit, or the bits of the entry that was chosen.
    per_row: &'a mut Buffer,
    logits: Logits<'a>,
}

impl Scan<'_> {
    /// Fills the summaries, and with the targets' logits what is kept a row.
    fn run(&mut self, scale: f32, exclude: Option<&[u32]>, targets: Option<&[u32]>) {
        let logits = self.logits;
        let (rows, chunks) = (logits.x.rows, logits.chunks());
        self.summaries.reserve(2 * rows * chunks);
        self.per_row.reserve(rows);
        let (summaries, hits) = (
            Shared(self.summaries.as_ptr()),
            Shared(self.per_row.as_ptr()),
        );
        let segments = chunks.div_ceil(SEGMENT);
        let blocks = rows.div_ceil(ROW_BLOCK);
        self.pool.run(blocks * segments, |task, scratch| {
            let block = part(rows, ROW_BLOCK, task % blocks);
            let [room, out] = scratch.split([logits.room(block.len()), block.len() * STRIDE]);
            for chunk in part(chunks, SEGMENT, task / blocks) {
                logits.compute(block.clone(), chunk, room, out);
                let entries = part(logits.weight.cols, CHUNK, chunk);
                for (m, row) in block.clone().zip(out.chunks_exact_mut(STRIDE)) {
                    let row = &mut row[..entries.len()];
                    let local = |ids: &[u32]| (ids[m] as usize).wrapping_sub(entries.start);
                    adjust(row, scale, exclude.map(local));
                    if let Some(logit) = targets.and_then(|ids| row.get(local(ids))) {
                        // SAFETY: one chunk has the target of row m.
                        unsafe { hits.add(m).write(*logit) };
                    }
                    let summary = logits.isa.run(Summary(row));
                    // SAFETY: this row and chunk is this task's.
                    let to = unsafe { summaries.slice_mut(2 * (m * chunks + chunk), 2) };
                    to.copy_from_slice(&summary);
                }
            }
        });
    }

    fn summary(&self, row: usize) -> &[f32] {
        let words = 2 * self.logits.chunks();
        &self.summaries.as_slice()[row * words..][..words]
    }

    /// Sets what is kept a row to the bits of the entry that `choice` names.
    fn choose(&mut self, choice: impl Fn(&[f32], &mut Visit) -> usize + Sync) {
        let logits = self.logits;
        let words = 2 * logits.chunks();
        let summaries = self.summaries.as_slice();
        let kept = Shared(self.per_row.as_ptr());
        self.pool
            .run(logits.x.rows.div_ceil(ROWS), |task, scratch| {
                let [room, out] = scratch.split([logits.room(1), STRIDE]);
                for row in part(logits.x.rows, ROWS, task) {
                    let mut visit = Visit {
                        logits,
                        row,
                        room: &mut *room,
                        out: &mut *out,
                    };
                    let entry = choice(&summaries[row * words..][..words], &mut visit);
                    // SAFETY: room for one number a row was made, and this row is this task's.
                    unsafe { kept.add(row).write(f32::from_bits(entry as u32)) };
                }
            });
    }
}

/// The most probable entry, the lowest of equals.
fn most_probable(summaries: &[f32], visit: &mut Visit) -> usize {
    let (max, _) = combine(summaries);
    let chunk = summaries.chunks_exact(2).position(|c| c[0] == max);
    let chunk = chunk.unwrap_or(0);
    let within = visit.chunk(chunk).iter().position(|&l| l == max);
    chunk * CHUNK + within.unwrap_or(0)
}

/// The first entry at which the running sum passes the part `uniform` of the whole.
fn invert(
    summaries: &[f32],
    visit: &mut Visit,
    uniform: f64,
    scale: f32,
    exclude: Option<u32>,
) -> usize {
    let (max, total) = combine(summaries);
    let goal = uniform * total;
    let (mut running, mut chosen) = (0.0, 0);
    for (chunk, summary) in summaries.chunks_exact(2).enumerate() {
        let part = weight(summary, max);
        if part > 0.0 {
            chosen = chunk;
            if running + part > goal {
                break;
            }
            running += part;
        }
    }
    let (first, isa) = (chosen * CHUNK, visit.logits.isa);
    let row = visit.chunk(chosen);
    let exclude = exclude.map(|e| (e as usize).wrapping_sub(first));
    adjust(row, scale, exclude);
    isa.run(Exponentials(row, max));
    let mut last = 0;
    for (i, &p) in row.iter().enumerate() {
        if p > 0.0 {
            last = i;
            running += f64::from(p);
            if running > goal {
                break;
            }
        }
    }
    first + last
}

impl Cpu {
    fn scanner<'a>(
        &'a mut self,
        params: &'a CpuParams,
        x: Array,
        head: &Linear,
    ) -> (Scan<'a>, &'a mut Vec<Vec<u32>>) {
        let logits = self.vocabulary_logits(params, x, head);
        let scan = Scan {
            pool: &mut self.pool,
            summaries: &mut self.left,
            per_row: &mut self.right,
            logits,
        };
        (scan, &mut self.ints)
    }

    pub(super) fn vocabulary_logits<'a>(
        &self,
        params: &'a CpuParams,
        x: Array,
        head: &Linear,
    ) -> Logits<'a> {
        assert!(head.weight.cols == x.cols && head.bias.len() == head.weight.rows);
        Logits {
            isa: self.isa,
            form: self.form,
            x: self.view(x),
            weight: params.forward(head.weight),
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
        self.log_prob(params, x, head, targets, log_prob, log_sum, predicted);
        if let Some(sample) = sample {
            self.sample(params, x, head, sample);
        }
    }

    fn log_prob(
        &mut self,
        params: &CpuParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
    ) {
        assert!(targets.len == x.rows && predicted.is_none_or(|p| p.len == x.rows));
        for a in [log_prob, log_sum] {
            assert!(a.rows == x.rows && a.cols == 1);
        }
        let (log_prob, log_sum) = (self.view(log_prob), self.view(log_sum));
        let (mut scan, ints) = self.scanner(params, x, head);
        let ids = &ints[targets.slot as usize][..targets.len];
        assert!(ids.iter().all(|&t| (t as usize) < head.weight.rows));
        scan.run(1.0, None, Some(ids));
        for m in 0..x.rows {
            let (max, sum) = combine(scan.summary(m));
            let normalizer = (f64::from(max) + sum.ln()) as f32;
            // SAFETY: nobody else uses the two arrays.
            unsafe {
                log_sum.at(m, 0).write(normalizer);
                let hit = scan.per_row.as_slice()[m];
                log_prob.at(m, 0).write(hit - normalizer);
            }
        }
        if let Some(predicted) = predicted {
            scan.choose(most_probable);
            keep(scan.per_row, &mut ints[predicted.slot as usize][..x.rows]);
        }
    }

    fn sample(&mut self, params: &CpuParams, x: Array, head: &Linear, sample: &VocabularySample) {
        let VocabularySample {
            temperature,
            exclude,
            rng,
            keys,
            rows,
            sampled,
        } = *sample;
        assert!(rows.len == x.rows && sampled.len == x.rows);
        assert!(exclude.is_none_or(|e| e.len == x.rows));
        let (mut scan, ints) = self.scanner(params, x, head);
        let of = |i: Ints| &ints[i.slot as usize][..i.len];
        let exclude = exclude.map(of);
        let (rows, examples, positions) = (of(rows), of(keys.example), of(keys.position));
        let scale = 1.0 / temperature;
        scan.run(scale, exclude, None);
        scan.choose(|summaries, visit| {
            let r = rows[visit.row] as usize;
            let uniform = rng.uniform(Purpose::Sample, 0, examples[r], positions[r], 0);
            let exclude = exclude.map(|e| e[visit.row]);
            invert(summaries, visit, uniform, scale, exclude)
        });
        keep(scan.per_row, &mut ints[sampled.slot as usize][..x.rows]);
    }
}

/// Entries from the bits that [`Scan::choose`] left.
fn keep(bits: &Buffer, to: &mut [u32]) {
    for (to, bits) in to.iter_mut().zip(bits.as_slice()) {
        *to = bits.to_bits();
    }
}
