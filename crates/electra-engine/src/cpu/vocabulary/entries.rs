//! Entries of a row of the vocabulary, from what the pass has kept: the normaliser, the most probable
//! one, a sample.

use super::{ABSENT, Logits, Pass, Plane, SEGMENT, weigh};
use crate::cpu::gemm::PANEL;
use crate::cpu::isa::Kernel;
use crate::cpu::simd::{LANES, Simd};
use crate::cpu::view::{Shared, part};

/// `row = 2^(factor · row − shift)`
struct Weights<'a>(&'a mut [f32], f32, f32);

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (factor, shift) = (S::splat(self.1), S::splat(-self.2));
        for l in self.0.chunks_mut(LANES) {
            let weights = weigh::<S>(l, factor, shift);
            S::write(l, weights);
        }
    }
}

impl Pass<'_> {
    /// A row's words of a plane, one a segment.
    fn column(&self, plane: Shared, row: usize) -> impl Iterator<Item = f32> + Clone {
        let stride = self.stride;
        // SAFETY: planes have a word for each row and segment, which nobody writes any more.
        (0..self.logits.segments()).map(move |s| unsafe { plane.add(s * stride + row).read() })
    }

    /// The greatest shift of a row, and its sum over the vocabulary relative to it.
    pub(super) fn total(&self, plane: &Plane, row: usize) -> (f32, f64) {
        let shifts = self.column(plane.shifts, row);
        let top = shifts.clone().fold(f32::NEG_INFINITY, f32::max);
        let sums = shifts.zip(self.column(plane.totals, row));
        (top, sums.map(|(s, t)| f64::from(t) * power(s - top)).sum())
    }

    /// The most probable entry of a row, the lowest of equals.
    pub(super) fn most_probable(
        &self,
        row: usize,
        [greatest, panels]: [Shared; 2],
        look: &mut Look,
    ) -> u32 {
        let max = self.column(greatest, row).fold(f32::NEG_INFINITY, f32::max);
        let mut found = self.column(greatest, row).zip(self.column(panels, row));
        let panel = found.find(|&(g, _)| g == max).map_or(0, |f| f.1.to_bits());
        let logits = look.logits(&self.logits, row, panel as usize);
        let within = logits.iter().position(|&l| l == max).unwrap_or(0);
        panel * PANEL as u32 + within as u32
    }

    /// The first entry of a row at which the running sum passes the part `uniform` of the whole.
    pub(super) fn invert(&self, row: usize, uniform: f64, plane: &Plane, look: &mut Look) -> u32 {
        let (top, total) = self.total(plane, row);
        let goal = uniform * total;
        let (mut running, mut segment, mut shift) = (0.0, 0, top);
        let parts = self.column(plane.shifts, row);
        for (s, (from, part)) in parts.zip(self.column(plane.totals, row)).enumerate() {
            let part = f64::from(part) * power(from - top);
            if part > 0.0 {
                (segment, shift) = (s, from);
                if running + part > goal {
                    break;
                }
                running += part;
            }
        }
        // From here on relative to the segment's own power of two.
        let mut rest = (goal - running) / power(shift - top);
        let mut chosen = segment * SEGMENT;
        for panel in self.logits.panels(segment) {
            let part = plane.panels.map_or(0.0, |panels| {
                // SAFETY: a word for each row and panel, which nobody writes any more.
                f64::from(unsafe { panels.add(panel * self.stride + row).read() })
            });
            if part > 0.0 {
                chosen = panel;
                if part > rest {
                    break;
                }
                rest -= part;
            }
        }
        let isa = self.logits.isa;
        let weights = look.logits(&self.logits, row, chosen);
        if let Some(exclude) = self.exclude {
            let place = (exclude[row] as usize).wrapping_sub(chosen * PANEL);
            if let Some(logit) = weights.get_mut(place) {
                *logit = ABSENT;
            }
        }
        isa.run(Weights(weights, plane.factor, shift));
        let mut last = 0;
        for (i, &weight) in weights.iter().enumerate() {
            if weight > 0.0 {
                last = i;
                rest -= f64::from(weight);
                if rest < 0.0 {
                    break;
                }
            }
        }
        (chosen * PANEL + last) as u32
    }
}

/// `2^n` for whole `n` ≤ 0.
fn power(n: f32) -> f64 {
    f64::from_bits((1023 + (n as i64).max(-1023)) as u64 * (1 << 52))
}

/// Memory for a second look at a row's logits.
pub(super) struct Look<'a> {
    pub(super) room: &'a mut [f32],
    pub(super) out: &'a mut [f32],
}

impl Look<'_> {
    /// The entries of a panel.
    fn logits(&mut self, logits: &Logits, row: usize, panel: usize) -> &mut [f32] {
        let left = logits.left(row..row + 1, self.room);
        // SAFETY: the left side lies in `room`, or in x, to which nobody writes.
        unsafe { logits.compute(left, panel, self.out, PANEL) };
        &mut self.out[..part(logits.weight.cols, PANEL, panel).len()]
    }
}
