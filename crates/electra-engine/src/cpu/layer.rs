//! An encoder layer in training: between two attentions a block of rows goes through everything
//! while it is in the cache, and what backward reads is kept in the form of products.
//!
//! The activated rows are not kept: backward makes them anew from what stands before the
//! activation, and leaves them in its place for the weight's gradient.

use super::attention::{HeadRoom, Heads, attend_head};
use super::chain::{
    Accuracy, NormWeights, Right, StoreTile, Tile, block_rows, by_panels, check_sizes,
    multiply_rows, product, tile_words,
};
use super::clock::Part;
use super::dropout::{GROUP, RowDropout};
use super::elementwise::activate;
use super::gemm::{Form, PANEL, Start};
use super::isa::{Isa, Kernel};
use super::linear::{left_side, left_words, source};
use super::norm;
use super::params::CpuParams;
use super::simd::{LANES, Simd};
use super::view::{Blocks, Shared, View};
use super::{Cpu, Flat};
use crate::backend::*;
use crate::rng::Purpose;
use std::ops::Range;

impl Cpu {
    /// The form of what a layer keeps, and in which attention reads it: pairs of bf16 are not cut.
    pub(super) fn kept_form(&self, spec: &LayerSpec) -> Form {
        let pairs = [spec.hidden / spec.heads, spec.hidden, spec.intermediate];
        match self.form {
            Form::Bf16 if pairs.iter().all(|n| n % 2 == 0) => Form::Bf16,
            _ => Form::F32,
        }
    }

    pub(super) fn new_layer_arrays(&mut self, spec: &LayerSpec, tokens: usize) -> LayerArrays {
        let form = self.kept_form(spec);
        let intermediate = self.array_in(form, tokens, spec.intermediate);
        LayerArrays {
            qkv: self.array_in(form, tokens, 3 * spec.hidden),
            context: self.array_in(form, tokens, spec.hidden),
            log_sum: self.array(tokens, spec.heads),
            attention_sum: self.array_in(form, tokens, spec.hidden),
            attention_stats: self.array(tokens, 2),
            attention_normed: self.array_in(form, tokens, spec.hidden),
            intermediate,
            activated: intermediate,
            output_sum: self.array_in(form, tokens, spec.hidden),
            output_stats: self.array(tokens, 2),
            output: self.array(tokens, spec.hidden),
        }
    }

    pub(super) fn new_layer_gradients(
        &mut self,
        spec: &LayerSpec,
        tokens: usize,
    ) -> LayerGradients {
        let form = self.kept_form(spec);
        LayerGradients {
            hidden: self.array(tokens, spec.hidden),
            residual: self.array_in(form, tokens, spec.hidden),
            attention_branch: self.array_in(form, tokens, spec.hidden),
            output_branch: self.array_in(form, tokens, spec.hidden),
            qkv: self.array_in(form, tokens, 3 * spec.hidden),
            intermediate: self.array_in(form, tokens, spec.intermediate),
        }
    }

    pub(super) fn layer_forward(
        &mut self,
        params: &CpuParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        input: Array,
        keep: &LayerArrays,
    ) {
        let weights = self.layer_weights(params, spec, layer, self.form);
        let kept = Kept::new(self, keep);
        let input = self.view(input);
        let (tokens, hidden) = (input.rows, spec.hidden);
        assert!(input.cols == hidden && input.stride == hidden && kept.fits(spec, tokens));
        assert!(!input.overlaps(&kept.output));
        if tokens == 0 {
            return;
        }
        let (isa, form, clock) = (self.isa, self.form, &self.clock);
        let blocks = Blocks::in_fours(tokens, isa.row_multiple(form), block_rows(isa, form, spec));
        self.pool.run(blocks.count(), |task, scratch| {
            let rows = blocks.rows(task);
            let [packed, tile] =
                scratch.split([left_words(form, rows.len(), hidden), tile_words(isa)]);
            let mut lap = clock.start();
            // SAFETY: nobody writes to the input; these rows of qkv are this task's.
            unsafe {
                let left = left_side(isa, form, source(input, rows.clone()), packed);
                let (right, used) = (Right::Weight(&weights.qkv), ahead([kept.qkv], &rows));
                by_panels(isa, left, right, tile, used, |part, first, tile| {
                    store(isa, tile, kept.qkv, rows.start + part.start, first);
                });
            }
            lap.done(Part::Qkv);
        });

        let attention_dropout = dropout.map(|d| &d.attention);
        let heads = Heads::new(
            &self.ints,
            sequences,
            spec.heads,
            keep.output,
            attention_dropout,
        );
        let qkv = [0, 1, 2].map(|i| kept.qkv.columns(i * hidden, hidden));
        self.pool.run(heads.tasks(), |task, scratch| {
            let head = heads.task(task);
            if head.len == 0 {
                return;
            }
            let mut lap = clock.start();
            let [a, b, c] = HeadRoom::words(kept.qkv.form, head.len, head.size);
            let [a, b, c, result] = scratch.split([a, b, c, head.len * head.size]);
            let keep = |t, sum| {
                // SAFETY: this head's column of log_sum is this task's.
                unsafe { kept.log_sum.at(head.start + t, head.index).write(sum) }
            };
            let to = result.as_mut_ptr();
            // SAFETY: nobody writes to q, k, v; this head's rows of the context are this task's.
            unsafe {
                let room = HeadRoom::new([a, b, c]);
                let form = kept.qkv.form;
                attend_head(
                    isa,
                    form,
                    &head,
                    qkv,
                    0..head.len,
                    to,
                    head.size,
                    room,
                    keep,
                );
                let tile = Tile {
                    values: result,
                    stride: head.size,
                    cols: head.size,
                };
                store(isa, tile, kept.context, head.start, head.column);
            }
            lap.done(Part::Attention);
        });

        let keys = RowIds::new(&self.ints, &sequences.keys, tokens);
        let drop = |d: fn(&LayerDropout) -> &Dropout| dropout.map(|all| (d(all), keys));
        let attention_drop = drop(|d| &d.attention_output);
        let output_drop = drop(|d| &d.output);
        self.pool.run(blocks.count(), |task, scratch| {
            let rows = blocks.rows(task);
            let count = rows.len();
            let width = kept.intermediate.form.units(spec.intermediate);
            let [packed, tile, branch, normed, middle, wide] = scratch.split([
                left_words(form, count, hidden),
                tile_words(isa),
                count * hidden,
                count * hidden,
                count * width,
                left_words(form, count, spec.intermediate),
            ]);
            let mut lap = clock.start();
            // SAFETY: nobody writes to the input and the context; these rows of all other arrays
            // are this task's.
            unsafe {
                let left = left_side(isa, form, source(kept.context, rows.clone()), packed);
                let to = branch.as_mut_ptr();
                multiply_rows(isa, left, &weights.attention_output, to, hidden);
                lap.done(Part::AttentionOutput);
                let add = AddNorm {
                    rows: rows.clone(),
                    branch: &mut *branch,
                    residual: std::slice::from_raw_parts(input.at(rows.start, 0), count * hidden),
                    dropout: attention_drop,
                    norm: weights.attention_norm,
                    sum: kept.attention_sum,
                    stats: kept.attention_stats,
                    normed: &mut *normed,
                };
                add.run_on(isa);
                let all = Tile {
                    values: &mut *normed,
                    stride: hidden,
                    cols: hidden,
                };
                store(isa, all, kept.attention_normed, rows.start, 0);
                lap.done(Part::Norm);
                let left = left_side(
                    isa,
                    form,
                    source(kept.attention_normed, rows.clone()),
                    packed,
                );
                let middle_form = kept.intermediate.form;
                let right = Right::Weight(&weights.intermediate);
                let used = ahead([kept.intermediate], &rows);
                by_panels(isa, left, right, tile, used, |part, first, tile| {
                    let Tile {
                        values,
                        stride,
                        cols,
                    } = tile;
                    let again = Tile {
                        values: &mut *values,
                        stride,
                        cols,
                    };
                    store(
                        isa,
                        again,
                        kept.intermediate,
                        rows.start + part.start,
                        first,
                    );
                    StoreTile {
                        tile: Tile {
                            values,
                            stride,
                            cols,
                        },
                        activation: Some((spec.activation, Accuracy::of(form))),
                        form: middle_form,
                        to: middle
                            .as_mut_ptr()
                            .wrapping_add(part.start * width + middle_form.units(first)),
                        stride: width,
                    }
                    .run_on(isa);
                });
                lap.done(Part::Intermediate);
                let activated =
                    View::of(middle_form, middle.as_mut_ptr(), count, spec.intermediate);
                let left = left_side(isa, form, source(activated, 0..count), wide);
                let to = branch.as_mut_ptr();
                multiply_rows(isa, left, &weights.output, to, hidden);
                lap.done(Part::Output);
                let output =
                    std::slice::from_raw_parts_mut(kept.output.at(rows.start, 0), count * hidden);
                let add = AddNorm {
                    rows,
                    branch,
                    residual: normed,
                    dropout: output_drop,
                    norm: weights.output_norm,
                    sum: kept.output_sum,
                    stats: kept.output_stats,
                    normed: output,
                };
                add.run_on(isa);
                lap.done(Part::Norm);
            }
        });
    }

    pub(super) fn layer_gradient(
        &mut self,
        params: &CpuParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        input: Array,
        keep: &LayerArrays,
        d: &LayerGradients,
        grads: &mut Flat,
    ) {
        check_sizes(spec, layer);
        let output = self.backward_panels(params, layer.output.weight);
        let intermediate = self.backward_panels(params, layer.intermediate.weight);
        let attention_output = self.backward_panels(params, layer.attention_output.weight);
        let norms = [&layer.output_norm, &layer.attention_norm];
        let weights = norms.map(|norm| NormWeights::new(params, norm));
        let kept = Kept::new(self, keep);
        let [
            d_hidden,
            d_context,
            attention_branch,
            output_branch,
            d_middle,
        ] = [
            d.hidden,
            d.residual,
            d.attention_branch,
            d.output_branch,
            d.intermediate,
        ]
        .map(|a| self.view(a));
        let (tokens, hidden) = (d.hidden.rows, spec.hidden);
        assert!(d_hidden.stride == hidden && d_hidden.cols == hidden && kept.fits(spec, tokens));
        for a in [d_context, attention_branch, output_branch] {
            assert!(a.rows == tokens && a.cols == hidden);
        }
        assert!(d_middle.rows == tokens && d_middle.cols == spec.intermediate);
        if tokens == 0 {
            return;
        }
        let (isa, form, clock) = (self.isa, self.form, &self.clock);
        let blocks = Blocks::in_fours(tokens, isa.row_multiple(form), block_rows(isa, form, spec));
        self.left.reserve(blocks.count() * 4 * hidden);
        let partial = Shared(self.left.as_ptr());
        let keys = RowIds::new(&self.ints, &sequences.keys, tokens);
        let drop = |d: fn(&LayerDropout) -> &Dropout| dropout.map(|all| (d(all), keys));
        let attention_drop = drop(|d| &d.attention_output);
        let output_drop = drop(|d| &d.output);
        self.pool.run(blocks.count(), |task, scratch| {
            let rows = blocks.rows(task);
            let count = rows.len();
            let [packed, tile, residual, wide] = scratch.split([
                left_words(form, count, hidden),
                tile_words(isa),
                count * hidden,
                left_words(form, count, spec.intermediate),
            ]);
            let mut lap = clock.start();
            // SAFETY: this block's sums, and its rows of all arrays, are this task's.
            unsafe {
                let sums = partial.slice_mut(task * 4 * hidden, 4 * hidden);
                sums.fill(0.0);
                let (output_sums, attention_sums) = sums.split_at_mut(2 * hidden);
                let d_rows =
                    std::slice::from_raw_parts_mut(d_hidden.at(rows.start, 0), count * hidden);
                NormGradient {
                    rows: rows.clone(),
                    sum: kept.output_sum,
                    stats: kept.output_stats,
                    weight: weights[0].weight,
                    dy: &*d_rows,
                    dx: &mut *residual,
                    sums: output_sums,
                    dropout: output_drop,
                    branch: output_branch,
                }
                .run_on(isa);
                lap.done(Part::NormBackward);
                let left = left_side(isa, form, source(output_branch, rows.clone()), packed);
                let right = Right::Panels(output);
                let used = ahead([kept.intermediate, d_middle], &rows);
                by_panels(isa, left, right, tile, used, |part, first, tile| {
                    isa.run_in(
                        d_middle.form,
                        ActivationGradient {
                            activation: spec.activation,
                            accuracy: Accuracy::of(form),
                            tile,
                            rows: rows.start + part.start..rows.start + part.end,
                            first,
                            z: kept.intermediate,
                            d: d_middle,
                        },
                    );
                });
                lap.done(Part::OutputBackward);
                let left = left_side(isa, form, source(d_middle, rows.clone()), wide);
                let to = residual.as_mut_ptr();
                product(left, intermediate, Start::Sum, to, hidden).run(isa, form);
                lap.done(Part::IntermediateBackward);
                NormGradient {
                    rows: rows.clone(),
                    sum: kept.attention_sum,
                    stats: kept.attention_stats,
                    weight: weights[1].weight,
                    dy: &*residual,
                    dx: d_rows,
                    sums: attention_sums,
                    dropout: attention_drop,
                    branch: attention_branch,
                }
                .run_on(isa);
                lap.done(Part::NormBackward);
                let left = left_side(isa, form, source(attention_branch, rows.clone()), packed);
                let right = Right::Panels(attention_output);
                let used = ahead([d_context], &rows);
                by_panels(isa, left, right, tile, used, |part, first, tile| {
                    store(isa, tile, d_context, rows.start + part.start, first);
                });
            }
            lap.done(Part::AttentionOutputBackward);
        });
        let sums = &self.left.as_slice()[..blocks.count() * 4 * hidden];
        let to = grads.as_mut_slice();
        for sums in sums.chunks_exact(4 * hidden) {
            let sums = sums.chunks_exact(hidden);
            let views = norms.into_iter().flat_map(|n| [n.weight, n.bias]);
            for (view, sums) in views.zip(sums) {
                for (g, s) in to[view.range()].iter_mut().zip(sums) {
                    *g += s;
                }
            }
        }

        let thirds = |a: Array| [0, 1, 2].map(|i| a.columns(i * hidden, hidden));
        self.attend_backward(
            thirds(keep.qkv),
            spec.heads,
            sequences,
            dropout.map(|d| &d.attention),
            keep.context,
            keep.log_sum,
            d.residual,
            thirds(d.qkv),
        );
        // What stood before the activation is what came out of it by now.
        let layers = [
            (keep.intermediate, d.output_branch, &layer.output),
            (keep.attention_normed, d.intermediate, &layer.intermediate),
            (keep.context, d.attention_branch, &layer.attention_output),
            (input, d.qkv, &layer.qkv),
        ];
        self.linear_gradients(layers, grads);
        self.linear_backward(params, d.qkv, &layer.qkv, d.hidden, true);
    }
}

/// What a layer keeps.
#[derive(Clone, Copy)]
struct Kept {
    qkv: View,
    context: View,
    log_sum: View,
    attention_sum: View,
    attention_stats: View,
    attention_normed: View,
    intermediate: View,
    output_sum: View,
    output_stats: View,
    output: View,
}

impl Kept {
    fn new(cpu: &Cpu, keep: &LayerArrays) -> Self {
        Kept {
            qkv: cpu.view(keep.qkv),
            context: cpu.view(keep.context),
            log_sum: cpu.view(keep.log_sum),
            attention_sum: cpu.view(keep.attention_sum),
            attention_stats: cpu.view(keep.attention_stats),
            attention_normed: cpu.view(keep.attention_normed),
            intermediate: cpu.view(keep.intermediate),
            output_sum: cpu.view(keep.output_sum),
            output_stats: cpu.view(keep.output_stats),
            output: cpu.view(keep.output),
        }
    }

    fn fits(&self, spec: &LayerSpec, tokens: usize) -> bool {
        let shape = |view: &View, cols: usize| view.rows == tokens && view.cols == cols;
        let hidden = [
            &self.context,
            &self.attention_sum,
            &self.attention_normed,
            &self.output_sum,
            &self.output,
        ];
        hidden.iter().all(|view| shape(view, spec.hidden))
            && self.output.stride == spec.hidden
            && shape(&self.qkv, 3 * spec.hidden)
            && shape(&self.log_sum, spec.heads)
            && shape(&self.intermediate, spec.intermediate)
            && shape(&self.attention_stats, 2)
            && shape(&self.output_stats, 2)
    }
}

/// Examples and positions of rows.
#[derive(Clone, Copy)]
struct RowIds<'a> {
    example: &'a [u32],
    position: &'a [u32],
}

impl<'a> RowIds<'a> {
    fn new(ints: &'a [Vec<u32>], keys: &RowKeys, rows: usize) -> Self {
        let of = |i: Ints| &ints[i.slot as usize][..i.len];
        let (example, position) = (of(keys.example), of(keys.position));
        assert!(example.len() >= rows && position.len() >= rows);
        RowIds { example, position }
    }
}

type RowDrops<'a> = Option<(&'a Dropout, RowIds<'a>)>;

fn row_dropout(drops: RowDrops, row: usize) -> Option<RowDropout> {
    drops.map(|(dropout, keys)| {
        let (example, position) = (keys.example[row], keys.position[row]);
        RowDropout::new(dropout, Purpose::Dropout, example, position, 0)
    })
}

/// Asks for the places of a panel's rows in some views; `rows` are a block's, which the asked ones
/// are counted from.
fn ahead<const N: usize>(views: [View; N], rows: &Range<usize>) -> impl Fn(Range<usize>, usize) {
    let from = rows.start;
    move |rows, first| {
        for view in views {
            let cols = PANEL.min(view.cols - first);
            view.prefetch_to_write(from + rows.start..from + rows.end, first, cols);
        }
    }
}

/// Takes a tile to rows and columns of a view.
///
/// # Safety
/// Nobody else uses them meanwhile.
unsafe fn store(isa: Isa, tile: Tile, view: View, row: usize, column: usize) {
    let store = StoreTile {
        tile,
        activation: None,
        form: view.form,
        to: view.word(row, column),
        stride: view.stride,
    };
    // SAFETY: as the caller says.
    unsafe { store.run_on(isa) };
}

/// `normed = norm(residual + dropout(branch))` for some rows; keeps the sum and its statistics.
struct AddNorm<'a> {
    rows: Range<usize>,
    branch: &'a mut [f32],
    residual: &'a [f32],
    dropout: RowDrops<'a>,
    norm: NormWeights<'a>,
    sum: View,
    stats: View,
    normed: &'a mut [f32],
}

impl AddNorm<'_> {
    /// # Safety
    /// Nobody else uses these rows of sum and statistics.
    unsafe fn run_on(self, isa: Isa) {
        isa.run_in(self.sum.form, self);
    }
}

impl Kernel for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let cols = self.norm.weight.len();
        let lines = self
            .branch
            .chunks_exact_mut(cols)
            .zip(self.residual.chunks_exact(cols))
            .zip(self.normed.chunks_exact_mut(cols));
        for (((branch, residual), normed), row) in lines.zip(self.rows) {
            let drop = row_dropout(self.dropout, row);
            for (group, (sum, residual)) in branch
                .chunks_mut(GROUP)
                .zip(residual.chunks(GROUP))
                .enumerate()
            {
                let factors = match &drop {
                    Some(drop) => drop.factors::<S>(group),
                    None => [S::splat(1.0); GROUP / LANES],
                };
                let values = sum.chunks_mut(LANES).zip(residual.chunks(LANES));
                for ((sum, residual), factor) in values.zip(factors) {
                    // Product, then sum, as two roundings, as without the fusion.
                    let kept = S::mul(S::read(sum), factor);
                    S::write(sum, S::add(S::read(residual), kept));
                }
            }
            let stats = norm::Forward {
                x: branch,
                weight: self.norm.weight,
                bias: self.norm.bias,
                eps: self.norm.eps,
                y: normed,
            }
            .run::<S>();
            // SAFETY: the caller of `run_on` says that these rows are ours.
            unsafe {
                self.stats.row_mut(row).copy_from_slice(&stats);
                write_row::<S>(branch, self.sum, row);
            }
        }
    }
}

/// A row of f32 to a view of either form.
///
/// # Safety
/// Nobody else uses the row.
#[inline(always)]
unsafe fn write_row<S: Simd>(from: &[f32], view: View, row: usize) {
    let words = view.form.units(view.cols);
    // SAFETY: in bounds by construction; ours, says the caller.
    let to = unsafe { std::slice::from_raw_parts_mut(view.word(row, 0), words) };
    if view.form == Form::Bf16 {
        for (x, to) in from.chunks(2 * LANES).zip(to.chunks_mut(LANES)) {
            let high = S::read(&x[x.len().min(LANES)..]);
            S::write(to, S::row_bf16(S::read(x), high));
        }
    } else {
        to.copy_from_slice(from);
    }
}

/// Backward of [`AddNorm`] for some rows: the gradient by the residual, which is that by the norm's
/// input, and through dropout the gradient by the branch.
struct NormGradient<'a> {
    rows: Range<usize>,
    sum: View,
    stats: View,
    weight: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    /// Sums of the gradients by weight and bias.
    sums: &'a mut [f32],
    dropout: RowDrops<'a>,
    branch: View,
}

impl NormGradient<'_> {
    /// # Safety
    /// Nobody else uses these rows of the branch, and nobody writes to sum and statistics.
    unsafe fn run_on(self, isa: Isa) {
        isa.run_in(self.sum.form, self);
    }
}

impl Kernel for NormGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let cols = self.weight.len();
        let (d_weight, d_bias) = self.sums.split_at_mut(cols);
        let lines = self
            .dy
            .chunks_exact(cols)
            .zip(self.dx.chunks_exact_mut(cols));
        for ((dy, dx), row) in lines.zip(self.rows) {
            // SAFETY: the caller of `run_on` says that nobody writes to what forward kept, and that
            // this row of the branch is ours.
            unsafe {
                let stats = self.stats.row(row);
                // The row of x stands in dx until it is replaced.
                read_row::<S>(self.sum, row, dx);
                norm::backward_in_place::<S>(
                    dx,
                    [stats[0], stats[1]],
                    self.weight,
                    dy,
                    &mut *d_weight,
                    &mut *d_bias,
                );
                write_dropped::<S>(dx, row_dropout(self.dropout, row), self.branch, row);
            }
        }
    }
}

/// A row of a view of either form to f32.
///
/// # Safety
/// Nobody writes to the row.
#[inline(always)]
unsafe fn read_row<S: Simd>(view: View, row: usize, to: &mut [f32]) {
    let words = view.form.units(view.cols);
    // SAFETY: in bounds by construction; not written to, says the caller.
    let from = unsafe { std::slice::from_raw_parts(view.word(row, 0), words) };
    if view.form == Form::Bf16 {
        for (pairs, to) in from.chunks(LANES).zip(to.chunks_mut(2 * LANES)) {
            let (first, second) = S::values_bf16(S::read(pairs));
            let (low, high) = to.split_at_mut(to.len().min(LANES));
            S::write(low, first);
            S::write(high, second);
        }
    } else {
        to.copy_from_slice(from);
    }
}

/// A row of f32, through dropout if there is one, to a view of either form.
///
/// # Safety
/// Nobody else uses the row.
#[inline(always)]
unsafe fn write_dropped<S: Simd>(
    from: &[f32],
    dropout: Option<RowDropout>,
    view: View,
    row: usize,
) {
    let Some(dropout) = dropout else {
        // SAFETY: as the caller says.
        return unsafe { write_row::<S>(from, view, row) };
    };
    for (group, from) in from.chunks(GROUP).enumerate() {
        let factors = dropout.factors::<S>(group);
        let part = view.columns(group * GROUP, from.len());
        let words = view.form.units(from.len());
        // SAFETY: in bounds by construction; ours, says the caller.
        let to = unsafe { std::slice::from_raw_parts_mut(part.word(row, 0), words) };
        if view.form == Form::Bf16 {
            let values = from.chunks(2 * LANES).zip(factors.chunks_exact(2));
            for ((x, factors), to) in values.zip(to.chunks_mut(LANES)) {
                let low = S::mul(S::read(x), factors[0]);
                let high = S::mul(S::read(&x[x.len().min(LANES)..]), factors[1]);
                S::write(to, S::row_bf16(low, high));
            }
        } else {
            let values = from.chunks(LANES).zip(factors);
            for ((x, factor), to) in values.zip(to.chunks_mut(LANES)) {
                S::write(to, S::mul(S::read(x), factor));
            }
        }
    }
}

/// For a panel: `d = f'(z) · tile`, and `z = f(z)`.
struct ActivationGradient<'a> {
    activation: Activation,
    accuracy: Accuracy,
    tile: Tile<'a>,
    rows: Range<usize>,
    /// First column.
    first: usize,
    z: View,
    d: View,
}

impl Kernel for ActivationGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (cols, form) = (self.tile.cols, self.z.form);
        // No closure here: one that is not inlined would lack the instruction set.
        let (activation, accuracy) = (self.activation, self.accuracy);
        let lines = self.tile.values.chunks_exact(self.tile.stride);
        for (tile, row) in lines.zip(self.rows.clone()) {
            let tile = &tile[..cols];
            let words = form.units(cols);
            // SAFETY: in bounds by construction; whoever makes the kernel owns these rows.
            let [z, d] = [self.z, self.d].map(|view| unsafe {
                std::slice::from_raw_parts_mut(view.word(row, self.first), words)
            });
            if form == Form::Bf16 {
                let places = z.chunks_mut(LANES).zip(d.chunks_mut(LANES));
                for (dy, (z, d)) in tile.chunks(2 * LANES).zip(places) {
                    let (first, second) = S::values_bf16(S::read(z));
                    let (first, first_slope) = activate::<S>(activation, accuracy, first);
                    let (second, second_slope) = activate::<S>(activation, accuracy, second);
                    S::write(z, S::row_bf16(first, second));
                    let high = S::read(&dy[dy.len().min(LANES)..]);
                    let low = S::mul(first_slope, S::read(dy));
                    S::write(d, S::row_bf16(low, S::mul(second_slope, high)));
                }
            } else {
                let places = z.chunks_mut(LANES).zip(d.chunks_mut(LANES));
                for (dy, (z, d)) in tile.chunks(LANES).zip(places) {
                    let (value, slope) = activate::<S>(activation, accuracy, S::read(z));
                    S::write(z, value);
                    S::write(d, S::mul(slope, S::read(dy)));
                }
            }
        }
    }
}
