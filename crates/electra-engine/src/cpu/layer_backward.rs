//! Backward of an encoder layer: a block of rows at a time from the gradient of the output to that of
//! attention's context, then attention, then all weights.

use super::buffer::Scratch;
use super::chain::{NormWeights, Right, by_panels, check_sizes, product, tile_words};
use super::clock::{Part, PartClock};
use super::elementwise::Accuracy;
use super::epilogue::{ActivationGradient, Place, Store};
use super::gemm::{Form, Panels, Start};
use super::isa::Isa;
use super::layer::{Drops, Kept};
use super::layer_rows::NormGradient;
use super::linear::{left_side, left_words, source};
use super::params::CpuParams;
use super::rows::chosen_rows;
use super::view::{Shared, View};
use super::{Cpu, Flat};
use crate::backend::*;
use std::ops::Range;

impl Cpu {
    pub(super) fn layer_gradient(
        &mut self,
        params: &CpuParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        rows: Option<&OutputRows>,
        input: Array,
        keep: &LayerArrays,
        d: &LayerGradients,
        grads: &mut Flat,
    ) {
        check_sizes(spec, layer);
        let [output, intermediate, attention_output] =
            [&layer.output, &layer.intermediate, &layer.attention_output]
                .map(|linear| self.backward_panels(params, linear.weight));
        let (tokens, hidden, all) = (d.hidden.rows, spec.hidden, d);
        let BehindAttention { context, keys, .. } =
            BehindAttention::new(rows, sequences, input, keep);
        let d = &all.behind_attention(rows);
        let count = d.hidden.rows;
        let kept = Kept::new(self, keep);
        let gradients = Gradients::new(self, d);
        assert!(kept.fits(spec, tokens, count) && gradients.fits(spec, count));
        if tokens == 0 {
            return;
        }
        let blocks = self.blocks(spec, count);
        self.left.reserve(blocks.count() * 4 * hidden);
        let partial = Shared(self.left.as_ptr());
        let backward = Backward {
            isa: self.isa,
            form: self.form,
            spec,
            output,
            intermediate,
            attention_output,
            output_norm: NormWeights::new(params, &layer.output_norm),
            attention_norm: NormWeights::new(params, &layer.attention_norm),
            kept,
            d: gradients,
            drops: Drops::new(&self.ints, &keys, dropout, count),
            clock: &self.clock,
        };
        self.pool.run(blocks.count(), |task, scratch| {
            // SAFETY: nobody writes to what forward kept but for these rows of what stands before the
            // activation; they, this block's sums, and its rows of all gradients are this task's.
            unsafe {
                let sums = partial.slice_mut(task * 4 * hidden, 4 * hidden);
                backward.rows(blocks.rows(task), sums, scratch);
            }
        });
        let sums = &self.left.as_slice()[..blocks.count() * 4 * hidden];
        let to = grads.as_mut_slice();
        for sums in sums.chunks_exact(4 * hidden) {
            let sums = sums.chunks_exact(hidden);
            let norms = [&layer.output_norm, &layer.attention_norm];
            let views = norms.into_iter().flat_map(|n| [n.weight, n.bias]);
            for (view, sums) in views.zip(sums) {
                for (g, s) in to[view.range()].iter_mut().zip(sums) {
                    *g += s;
                }
            }
        }

        if let Some(rows) = rows {
            self.spread_rows(rows, [(d.hidden, all.hidden), (d.residual, all.residual)]);
        }
        let thirds = |a: Array| [0, 1, 2].map(|i| a.columns(i * hidden, hidden));
        self.attend_backward(
            thirds(keep.qkv),
            spec.heads,
            sequences,
            dropout.map(|d| &d.attention),
            keep.context,
            keep.log_sum,
            all.residual,
            thirds(all.qkv),
        );
        // What stood before the activation is what came out of it by now.
        let layers = [
            (keep.intermediate, d.output_branch, &layer.output),
            (keep.attention_normed, d.intermediate, &layer.intermediate),
            (context, d.attention_branch, &layer.attention_output),
            (input, all.qkv, &layer.qkv),
        ];
        self.linear_gradients(layers, grads);
        self.linear_backward(params, all.qkv, &layer.qkv, all.hidden, true);
    }

    /// For each pair, rows to their places in a larger array, which is zero beside them.
    fn spread_rows(&mut self, rows: &OutputRows, pairs: [(Array, Array); 2]) {
        for (from, to) in pairs {
            let places = chosen_rows(&self.ints, rows.rows, to.rows);
            assert!(from.rows == places.len() && from.cols == to.cols);
            let (from, to) = (self.view(from), self.view(to));
            assert!(!from.overlaps(&to));
            self.pool.rows(to.rows, to.cols, |rows, _| {
                let mut next = places.partition_point(|&place| (place as usize) < rows.start);
                for row in rows {
                    // SAFETY: this row is this task's, and nobody writes to the others.
                    unsafe {
                        if places.get(next).is_some_and(|&place| place as usize == row) {
                            from.copy_row(next, &to, row);
                            next += 1;
                        } else {
                            to.zero_row(row);
                        }
                    }
                }
            });
        }
    }
}

/// The gradients of a layer's values.
#[derive(Clone, Copy)]
struct Gradients {
    hidden: View,
    context: View,
    attention_branch: View,
    output_branch: View,
    intermediate: View,
}

impl Gradients {
    fn new(cpu: &Cpu, d: &LayerGradients) -> Self {
        Gradients {
            hidden: cpu.view(d.hidden),
            context: cpu.view(d.residual),
            attention_branch: cpu.view(d.attention_branch),
            output_branch: cpu.view(d.output_branch),
            intermediate: cpu.view(d.intermediate),
        }
    }

    fn fits(&self, spec: &LayerSpec, tokens: usize) -> bool {
        let of_hidden = [
            &self.hidden,
            &self.context,
            &self.attention_branch,
            &self.output_branch,
        ];
        let shape = |view: &View, cols: usize| view.rows == tokens && view.cols == cols;
        of_hidden.iter().all(|view| shape(view, spec.hidden))
            && self.hidden.stride == spec.hidden
            && shape(&self.intermediate, spec.intermediate)
    }
}

/// A layer on its way back.
struct Backward<'a> {
    isa: Isa,
    /// Of products.
    form: Form,
    spec: &'a LayerSpec,
    output: Panels,
    intermediate: Panels,
    attention_output: Panels,
    output_norm: NormWeights<'a>,
    attention_norm: NormWeights<'a>,
    kept: Kept,
    d: Gradients,
    drops: Drops<'a>,
    clock: &'a PartClock,
}

impl Backward<'_> {
    /// Some rows from the gradient of the output, which becomes that by the layer's input beside
    /// attention, to that of the context. `sums` is set to the sums of the gradients by weight and bias
    /// of the norms, the last one first.
    ///
    /// # Safety
    /// Nobody else uses these rows of the gradients, nor of what stands before the activation, which
    /// becomes what came out of it; nobody writes to what else forward kept.
    unsafe fn rows(&self, rows: Range<usize>, sums: &mut [f32], scratch: &mut Scratch) {
        let (isa, form, spec, kept, d) = (self.isa, self.form, self.spec, &self.kept, &self.d);
        let (count, hidden) = (rows.len(), spec.hidden);
        let [packed, tile, residual, wide] = scratch.split([
            left_words(form, count, hidden),
            tile_words(isa),
            count * hidden,
            left_words(form, count, spec.intermediate),
        ]);
        sums.fill(0.0);
        let (output_sums, attention_sums) = sums.split_at_mut(2 * hidden);
        let mut lap = self.clock.start();
        // SAFETY: as the caller says.
        unsafe {
            let d_rows = std::slice::from_raw_parts_mut(d.hidden.at(rows.start, 0), count * hidden);
            NormGradient {
                rows: rows.clone(),
                sum: kept.output_sum,
                stats: kept.output_stats,
                weight: self.output_norm.weight,
                dy: &*d_rows,
                dx: &mut *residual,
                sums: output_sums,
                dropout: self.drops.output,
                branch: d.output_branch,
            }
            .run_on(isa);
            lap.done(Part::NormBackward);
            self.activation(&rows, packed, tile);
            lap.done(Part::OutputBackward);
            let left = left_side(isa, form, source(d.intermediate, rows.clone()), wide);
            let to = residual.as_mut_ptr();
            product(left, self.intermediate, Start::Sum, to, hidden).run(isa, form);
            lap.done(Part::IntermediateBackward);
            NormGradient {
                rows: rows.clone(),
                sum: kept.attention_sum,
                stats: kept.attention_stats,
                weight: self.attention_norm.weight,
                dy: &*residual,
                dx: d_rows,
                sums: attention_sums,
                dropout: self.drops.attention,
                branch: d.attention_branch,
            }
            .run_on(isa);
            lap.done(Part::NormBackward);
            let left = left_side(isa, form, source(d.attention_branch, rows.clone()), packed);
            let right = Right::Panels(self.attention_output);
            by_panels(
                isa,
                left,
                right,
                tile,
                Store::plain(Place::new(d.context, &rows)),
            );
        }
        lap.done(Part::AttentionOutputBackward);
    }

    /// The gradient by what stands before the activation, of some rows, from that of the output's branch.
    ///
    /// # Safety
    /// As for [`rows`](Backward::rows).
    unsafe fn activation(&self, rows: &Range<usize>, packed: &mut [f32], tile: &mut [f32]) {
        let (isa, form, z, d) = (self.isa, self.form, self.kept.intermediate, &self.d);
        // SAFETY: as the caller says.
        unsafe {
            let left = left_side(isa, form, source(d.output_branch, rows.clone()), packed);
            let right = Right::Panels(self.output);
            let gradient = ActivationGradient {
                activation: self.spec.activation,
                accuracy: Accuracy::of(form),
                z: Place::new(z, rows),
                d: Place::new(d.intermediate, rows),
            };
            by_panels(isa, left, right, tile, gradient);
        }
    }
}
