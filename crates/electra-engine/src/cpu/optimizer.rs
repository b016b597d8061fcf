//! AdamW, LAMB, and norms of flat arrays.

use super::isa::Kernel;
use super::params::CpuParams;
use super::pool::ELEMENTS;
use super::simd::{LANES, Simd};
use super::view::{Shared, part};
use super::{Cpu, Flat};
use crate::backend::{Adam, Array, ParamUpdate, trust_ratio};
use crate::params::ParamView;
use std::ops::Range;

/// A part of a view that is one task.
#[derive(Debug)]
struct Piece {
    /// Which view.
    view: usize,
    /// Elements of the flat array.
    range: Range<usize>,
}

/// Views of a flat array, cut into tasks of one parallel region.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    views: Vec<ParamView>,
    pieces: Vec<Piece>,
    /// LAMB's sums of squares of each view: of parameters, of directions.
    squares: [Vec<f64>; 2],
}

impl Pieces {
    /// The pieces of `views`, in the memory of the last ones.
    fn fill(&mut self, views: impl Iterator<Item = ParamView>) {
        self.views.clear();
        self.views.extend(views);
        self.pieces.clear();
        for (view, all) in self.views.iter().map(|v| v.range()).enumerate() {
            let pieces = all.clone().step_by(ELEMENTS).map(|start| Piece {
                view,
                range: start..all.end.min(start + ELEMENTS),
            });
            self.pieces.extend(pieces);
        }
    }
}

/// Gradients, and what is done with Adam's direction.
enum Gradients<Read, Write> {
    /// Parameters take a step along it.
    Follow(Read),
    /// It takes the gradients' place.
    Become(Write),
}

struct AdamStep<'a> {
    params: &'a mut [f32],
    grads: Gradients<&'a [f32], &'a mut [f32]>,
    first: &'a mut [f32],
    second: &'a mut [f32],
    adam: Adam,
    grad_scale: f32,
    lr: f32,
    decay: f32,
}

impl Kernel for AdamStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let rule = AdamRule::<S>::new(&self.adam, self.grad_scale, self.decay);
        let lr = S::splat(-self.lr);
        let moments = self
            .first
            .chunks_mut(LANES)
            .zip(self.second.chunks_mut(LANES));
        let params = self.params.chunks_mut(LANES).zip(moments);
        match self.grads {
            Gradients::Follow(grads) => {
                for ((p, (m, v)), g) in params.zip(grads.chunks(LANES)) {
                    let before = S::read(p);
                    let step = rule.direction(before, S::read(g), m, v);
                    S::write(p, S::fma(lr, step, before));
                }
            }
            Gradients::Become(grads) => {
                for ((p, (m, v)), g) in params.zip(grads.chunks_mut(LANES)) {
                    let step = rule.direction(S::read(p), S::read(g), m, v);
                    S::write(g, step);
                }
            }
        }
    }
}

/// Adam's coefficients in every lane.
struct AdamRule<S: Simd> {
    beta1: S::V,
    beta2: S::V,
    rest1: S::V,
    rest2: S::V,
    epsilon: S::V,
    grad_scale: S::V,
    decay: S::V,
}

impl<S: Simd> AdamRule<S> {
    #[inline(always)]
    fn new(adam: &Adam, grad_scale: f32, decay: f32) -> Self {
        AdamRule {
            beta1: S::splat(adam.beta1),
            beta2: S::splat(adam.beta2),
            rest1: S::splat(1.0 - adam.beta1),
            rest2: S::splat(1.0 - adam.beta2),
            epsilon: S::splat(adam.epsilon),
            grad_scale: S::splat(grad_scale),
            decay: S::splat(decay),
        }
    }

    /// Takes a gradient into the moments; `m / (√v + ε) + decay · p`.
    #[inline(always)]
    fn direction(&self, param: S::V, grad: S::V, m: &mut [f32], v: &mut [f32]) -> S::V {
        let grad = S::mul(grad, self.grad_scale);
        let first = S::fma(self.beta1, S::read(m), S::mul(self.rest1, grad));
        let squared = S::mul(S::mul(self.rest2, grad), grad);
        let second = S::fma(self.beta2, S::read(v), squared);
        S::write(m, first);
        S::write(v, second);
        let root = S::add(S::sqrt(second), self.epsilon);
        S::fma(self.decay, param, S::div(first, root))
    }
}

/// `p −= lr · direction`.
struct Descend<'a> {
    params: &'a mut [f32],
    direction: &'a [f32],
    lr: f32,
}

impl Kernel for Descend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let lr = S::splat(-self.lr);
        for (p, u) in self
            .params
            .chunks_mut(LANES)
            .zip(self.direction.chunks(LANES))
        {
            let before = S::read(p);
            S::write(p, S::fma(lr, S::read(u), before));
        }
    }
}

/// Sum of squares in f64, eight running sums.
struct SquaredNorm<'a>(&'a [f32]);

impl Kernel for SquaredNorm<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self) -> f64 {
        const SUMS: usize = 8;
        let mut sums = [0.0f64; SUMS];
        let chunks = self.0.chunks_exact(SUMS);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..SUMS {
                let x = f64::from(chunk[i]);
                sums[i] += x * x;
            }
        }
        let mut total = 0.0;
        for &x in rest {
            total += f64::from(x) * f64::from(x);
        }
        for sum in sums {
            total += sum;
        }
        total
    }
}

impl Cpu {
    pub(super) fn adam_step(
        &mut self,
        params: &mut CpuParams,
        grads: &Flat,
        first: &mut Flat,
        second: &mut Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
    ) {
        let moments = [first, second];
        self.adam_pass(
            params,
            Gradients::Follow(grads),
            moments,
            adam,
            grad_scale,
            updates,
        );
        params.repack(&mut self.pool, self.isa, &self.pieces.views);
    }

    pub(super) fn lamb_step(
        &mut self,
        params: &mut CpuParams,
        grads: &mut Flat,
        first: &mut Flat,
        second: &mut Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
        adapted: &[bool],
    ) {
        assert_eq!(updates.len(), adapted.len());
        let moments = [first, second];
        self.adam_pass(
            params,
            Gradients::Become(grads),
            moments,
            adam,
            grad_scale,
            updates,
        );
        let views = updates.iter().map(|u| u.view);
        let [mut sizes, mut lengths] = std::mem::take(&mut self.pieces.squares);
        for squares in [&mut sizes, &mut lengths] {
            squares.resize(updates.len(), 0.0);
        }
        self.norms(params.master(), views.clone(), &mut sizes);
        self.norms(grads, views, &mut lengths);
        let (isa, master) = (self.isa, Shared(params.master().as_ptr()));
        let pieces = self.pieces.pieces.as_slice();
        self.pool.run(pieces.len(), |task, _| {
            let Piece { view, range } = &pieces[task];
            let ratio = match adapted[*view] {
                true => trust_ratio(sizes[*view], lengths[*view]),
                false => 1.0,
            };
            isa.run(Descend {
                // SAFETY: the range lies in the array, as was asserted, and is this task's.
                params: unsafe { master.slice_mut(range.start, range.len()) },
                direction: &grads.as_slice()[range.clone()],
                lr: updates[*view].lr * ratio,
            });
        });
        params.repack(&mut self.pool, isa, &self.pieces.views);
        self.pieces.squares = [sizes, lengths];
    }

    /// New moments, and what becomes of the direction; nothing is packed.
    fn adam_pass(
        &mut self,
        params: &mut CpuParams,
        grads: Gradients<&Flat, &mut Flat>,
        [first, second]: [&mut Flat; 2],
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
    ) {
        let len = params.master().len();
        let grads_len = match &grads {
            Gradients::Follow(grads) => grads.len(),
            Gradients::Become(grads) => grads.len(),
        };
        assert!(grads_len == len && first.len() == len && second.len() == len);
        let isa = self.isa;
        let grads = match grads {
            Gradients::Follow(grads) => Gradients::Follow(grads.as_slice()),
            Gradients::Become(grads) => Gradients::Become(Shared(grads.as_ptr())),
        };
        let arrays = [params.master(), first, second].map(|flat| Shared(flat.as_ptr()));
        self.pieces.fill(updates.iter().map(|u| u.view));
        let pieces = self.pieces.pieces.as_slice();
        assert!(pieces.iter().all(|p| p.range.end <= len));
        assert!(pieces.is_sorted_by(|a, b| a.range.end <= b.range.start));
        self.pool.run(pieces.len(), |task, _| {
            let piece = &pieces[task];
            let (at, n) = (piece.range.start, piece.range.len());
            let update = &updates[piece.view];
            // SAFETY: the range lies in all arrays and is this task's.
            let [params, first, second] = arrays.map(|array| unsafe { array.slice_mut(at, n) });
            isa.run(AdamStep {
                params,
                grads: match &grads {
                    Gradients::Follow(grads) => Gradients::Follow(&grads[at..at + n]),
                    Gradients::Become(grads) => {
                        // SAFETY: as above.
                        Gradients::Become(unsafe { grads.slice_mut(at, n) })
                    }
                },
                first,
                second,
                adam: *adam,
                grad_scale,
                lr: update.lr,
                decay: update.decay,
            });
        });
    }

    /// The sum of squares of each view.
    pub(super) fn norms(
        &mut self,
        flat: &Flat,
        views: impl ExactSizeIterator<Item = ParamView>,
        norms: &mut [f64],
    ) {
        assert_eq!(views.len(), norms.len());
        let (isa, flat) = (self.isa, flat.as_slice());
        self.pieces.fill(views);
        let pieces = self.pieces.pieces.as_slice();
        // One f64 a piece, in the words of two f32.
        self.left.reserve(2 * pieces.len());
        let sums = Shared(self.left.as_ptr());
        self.pool.run(pieces.len(), |task, _| {
            let sum = isa.run(SquaredNorm(&flat[pieces[task].range.clone()]));
            // SAFETY: the buffer has room for an f64 a piece and is aligned to 64 bytes; this one
            // is this task's.
            unsafe { sums.add(0).cast::<f64>().add(task).write(sum) };
        });
        norms.fill(0.0);
        for (task, piece) in pieces.iter().enumerate() {
            // SAFETY: written above.
            norms[piece.view] += unsafe { sums.add(0).cast::<f64>().add(task).read() };
        }
    }

    pub(super) fn zero_all(&mut self, flat: &mut Flat) {
        let (len, flat) = (flat.len(), Shared(flat.as_ptr()));
        self.pool.run(len.div_ceil(ELEMENTS), |task, _| {
            let range = part(len, ELEMENTS, task);
            // SAFETY: the range is this task's, of an array borrowed mutably.
            unsafe { flat.slice_mut(range.start, range.len()).fill(0.0) };
        });
    }

    pub(super) fn total(&mut self, x: Array) -> f64 {
        let x = self.view(x);
        let mut total = 0.0;
        for r in 0..x.rows {
            // SAFETY: nobody writes meanwhile.
            for &value in unsafe { x.row(r) } {
                total += f64::from(value);
            }
        }
        total
    }
}
