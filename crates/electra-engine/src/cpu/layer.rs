//! An encoder layer in training: between two attentions a block of rows goes through everything
//! while it is in the cache, and what backward reads is kept in the form of products.
//!
//! The activated rows are not kept: backward makes them anew from what stands before the
//! activation, and leaves them in its place for the weight's gradient.

use super::Cpu;
use super::attention::{Head, HeadRoom, Heads, attend_head};
use super::buffer::Scratch;
use super::chain::{LayerWeights, Right, block_rows, by_panels, multiply_rows, tile_words};
use super::clock::{Part, PartClock};
use super::dropout::RowDropout;
use super::elementwise::Accuracy;
use super::epilogue::{Place, Store, store_rows};
use super::gemm::Form;
use super::isa::Isa;
use super::layer_rows::DropAddNorm;
use super::linear::{left_side, left_words, source};
use super::params::CpuParams;
use super::rows::chosen_rows;
use super::view::{Blocks, View};
use crate::backend::*;
use crate::rng::Purpose;
use std::ops::Range;

impl Cpu {
    /// The form of what a layer keeps, and in which attention reads it: pairs of halves are not cut.
    pub(super) fn kept_form(&self, spec: &LayerSpec) -> Form {
        let pairs = [spec.hidden / spec.heads, spec.hidden, spec.intermediate];
        match self.form {
            Form::Half if pairs.iter().all(|n| n % 2 == 0) => Form::Half,
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

    pub(super) fn new_row_arrays(&mut self, spec: &LayerSpec, rows: usize) -> RowArrays {
        let form = self.kept_form(spec);
        RowArrays {
            input: self.array(rows, spec.hidden),
            context: self.array_in(form, rows, spec.hidden),
            d_hidden: self.array(rows, spec.hidden),
            d_context: self.array_in(form, rows, spec.hidden),
        }
    }

    pub(super) fn layer_forward(
        &mut self,
        params: &CpuParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        rows: Option<&OutputRows>,
        input: Array,
        keep: &LayerArrays,
    ) {
        let weights = self.layer_weights(params, spec, layer, self.form);
        let kept = Kept::new(self, keep);
        let input = self.view(input);
        let (tokens, hidden) = (input.rows, spec.hidden);
        let count = rows.map_or(tokens, |rows| rows.rows.len);
        assert!(input.cols == hidden && input.stride == hidden && kept.fits(spec, tokens, count));
        assert!(!input.overlaps(&kept.output));
        if tokens == 0 {
            return;
        }
        let blocks = self.blocks(spec, tokens);
        let keys = rows.map_or(&sequences.keys, |rows| &rows.keys);
        let drops = Drops::new(&self.ints, keys, dropout, count);
        let mut forward = Forward {
            isa: self.isa,
            form: self.form,
            spec,
            weights,
            input,
            kept,
            drops,
            clock: &self.clock,
        };
        self.pool.run(blocks.count(), |task, scratch| {
            // SAFETY: nobody writes to the input; these rows of qkv are this task's.
            unsafe { forward.project(blocks.rows(task), scratch) };
        });
        let attention_dropout = dropout.map(|d| &d.attention);
        let (ints, context) = (&self.ints, keep.context);
        let heads = Heads::new(ints, sequences, spec.heads, context, attention_dropout);
        self.pool.run(heads.tasks(), |task, scratch| {
            // SAFETY: nobody writes to q, k, v; this head's rows of the context and its column of
            // log_sum are this task's.
            unsafe { forward.attend(&heads.task(task), scratch) };
        });
        let arrays = rows.map(|rows| {
            let arrays = [rows.arrays.input, rows.arrays.context];
            arrays.map(|array| self.view(array))
        });
        let whole = rows.zip(arrays).map(|(rows, arrays)| {
            let ids = chosen_rows(&self.ints, rows.rows, tokens);
            (ids, forward.read_alone(arrays, count))
        });
        let blocks = self.blocks(spec, count);
        self.pool.run(blocks.count(), |task, scratch| {
            let rows = blocks.rows(task);
            // SAFETY: nobody writes to what is gathered from, nor, where nothing is, to the input and the
            // context; these rows of all other arrays are this task's.
            unsafe {
                if let Some((ids, whole)) = &whole {
                    forward.gather(whole, ids, rows.clone());
                }
                forward.finish(rows, scratch);
            }
        });
    }

    /// Blocks of rows that go through a layer's chains: by shape alone, since sums over a block are
    /// added up.
    pub(super) fn blocks(&self, spec: &LayerSpec, tokens: usize) -> Blocks {
        let most = block_rows(self.isa, self.form, spec);
        Blocks::in_fours(tokens, self.isa.row_multiple(self.form), most)
    }
}

/// A layer on its way forward.
struct Forward<'a> {
    isa: Isa,
    /// Of products.
    form: Form,
    spec: &'a LayerSpec,
    weights: LayerWeights<'a>,
    /// `[T, H]`, and behind attention `[M, H]` where rows are read alone; so is the context that is kept.
    input: View,
    kept: Kept,
    drops: Drops<'a>,
    clock: &'a PartClock,
}

impl Forward<'_> {
    /// Goes on with rows of the input and of the context that are read alone, in these arrays; returns
    /// those of all rows.
    fn read_alone(&mut self, [input, context]: [View; 2], count: usize) -> [View; 2] {
        let hidden = self.spec.hidden;
        assert!(input.rows == count && input.cols == hidden && input.stride == hidden);
        assert!(context.rows == count && context.cols == hidden);
        // Tasks read any row of the whole while others write theirs.
        assert!(self.kept.apart(&[self.input, input, context]));
        let pairs = [(self.input, input), (self.input, context), (input, context)];
        assert!(pairs.iter().all(|(a, b)| !a.overlaps(b)));
        [
            std::mem::replace(&mut self.input, input),
            std::mem::replace(&mut self.kept.context, context),
        ]
    }

    /// Some of the rows that are read alone, from the whole input and context; `ids` are theirs there.
    ///
    /// # Safety
    /// Nobody writes to the whole, nor uses these rows of what they are gathered in.
    unsafe fn gather(&self, whole: &[View; 2], ids: &[u32], rows: Range<usize>) {
        let [input, context] = whole;
        for row in rows {
            // SAFETY: as the caller says.
            unsafe {
                input.copy_row(ids[row] as usize, &self.input, row);
                context.copy_row(ids[row] as usize, &self.kept.context, row);
            }
        }
    }

    /// Query, key and value of some rows.
    ///
    /// # Safety
    /// Nobody writes to the input, nor uses these rows of query, key and value.
    unsafe fn project(&self, rows: Range<usize>, scratch: &mut Scratch) {
        let (isa, form, qkv) = (self.isa, self.form, self.kept.qkv);
        let words = left_words(form, rows.len(), self.spec.hidden);
        let [packed, tile] = scratch.split([words, tile_words(isa)]);
        let mut lap = self.clock.start();
        // SAFETY: as the caller says.
        unsafe {
            let left = left_side(isa, form, source(self.input, rows.clone()), packed);
            let right = Right::Weight(&self.weights.qkv);
            by_panels(isa, left, right, tile, Store::plain(Place::new(qkv, &rows)));
        }
        lap.done(Part::Qkv);
    }

    /// One head's attention.
    ///
    /// # Safety
    /// Nobody writes to query, key and value, nor uses this head's rows of the context and its column
    /// of the logs of sums.
    unsafe fn attend(&self, head: &Head, scratch: &mut Scratch) {
        if head.len == 0 {
            return;
        }
        let (isa, kept, hidden) = (self.isa, &self.kept, self.spec.hidden);
        let form = kept.qkv.form;
        let mut lap = self.clock.start();
        let room = HeadRoom::new(scratch.split(HeadRoom::words(isa, form, head.len, head.size)));
        let qkv = [0, 1, 2].map(|i| kept.qkv.columns(i * hidden, hidden));
        let (to, log_sum) = (kept.context, Some(kept.log_sum));
        // SAFETY: as the caller says.
        unsafe { attend_head(isa, form, head, qkv, 0..head.len, to, log_sum, room) };
        lap.done(Part::Attention);
    }

    /// What follows attention, for some rows.
    ///
    /// # Safety
    /// Nobody writes to the input and the context, nor uses these rows of what comes after.
    unsafe fn finish(&self, rows: Range<usize>, scratch: &mut Scratch) {
        let (isa, form, spec, kept) = (self.isa, self.form, self.spec, &self.kept);
        let (count, hidden) = (rows.len(), spec.hidden);
        let width = kept.intermediate.form.units(spec.intermediate);
        let [packed, tile, branch, normed, middle, wide] = scratch.split([
            left_words(form, count, hidden),
            tile_words(isa),
            count * hidden,
            count * hidden,
            count * width,
            left_words(form, count, spec.intermediate),
        ]);
        let mut lap = self.clock.start();
        // SAFETY: as the caller says.
        unsafe {
            let left = left_side(isa, form, source(kept.context, rows.clone()), packed);
            let to = branch.as_mut_ptr();
            multiply_rows(isa, left, &self.weights.attention_output, to, hidden);
            lap.done(Part::AttentionOutput);
            let from = self.input.at(rows.start, 0);
            let add = DropAddNorm {
                rows: rows.clone(),
                branch: &mut *branch,
                residual: std::slice::from_raw_parts(from, count * hidden),
                dropout: self.drops.attention,
                norm: self.weights.attention_norm,
                sum: kept.attention_sum,
                stats: kept.attention_stats,
                normed: &mut *normed,
            };
            add.run_on(isa);
            store_rows(
                isa,
                normed,
                hidden,
                Place::new(kept.attention_normed, &rows),
            );
            lap.done(Part::Norm);
            let (form_kept, cols) = (kept.intermediate.form, spec.intermediate);
            let middle = View::of(form_kept, middle.as_mut_ptr(), count, cols);
            self.activate(&rows, packed, tile, middle);
            lap.done(Part::Intermediate);
            let left = left_side(isa, form, source(middle, 0..count), wide);
            let to = branch.as_mut_ptr();
            multiply_rows(isa, left, &self.weights.output, to, hidden);
            lap.done(Part::Output);
            let to = kept.output.at(rows.start, 0);
            let add = DropAddNorm {
                rows,
                branch,
                residual: normed,
                dropout: self.drops.output,
                norm: self.weights.output_norm,
                sum: kept.output_sum,
                stats: kept.output_stats,
                normed: std::slice::from_raw_parts_mut(to, count * hidden),
            };
            add.run_on(isa);
        }
        lap.done(Part::Norm);
    }

    /// The intermediate values of some rows: before the activation to where they are kept, behind it to
    /// `middle`.
    ///
    /// # Safety
    /// As for [`finish`](Forward::finish).
    unsafe fn activate(
        &self,
        rows: &Range<usize>,
        packed: &mut [f32],
        tile: &mut [f32],
        middle: View,
    ) {
        let (isa, form, kept) = (self.isa, self.form, &self.kept);
        // SAFETY: as the caller says.
        unsafe {
            let normed = source(kept.attention_normed, rows.clone());
            let left = left_side(isa, form, normed, packed);
            let right = Right::Weight(&self.weights.intermediate);
            let activated = Place::new(middle, &(0..rows.len()));
            let store = Store {
                plain: Some(Place::new(kept.intermediate, rows)),
                activated: Some((activated, self.spec.activation, Accuracy::of(form))),
            };
            by_panels(isa, left, right, tile, store);
        }
    }
}

/// What a layer keeps.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) qkv: View,
    pub(super) context: View,
    pub(super) log_sum: View,
    pub(super) attention_sum: View,
    pub(super) attention_stats: View,
    pub(super) attention_normed: View,
    pub(super) intermediate: View,
    pub(super) output_sum: View,
    pub(super) output_stats: View,
    pub(super) output: View,
}

impl Kept {
    pub(super) fn new(cpu: &Cpu, keep: &LayerArrays) -> Self {
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

    /// Whether they are as large as they should be, of `rows` rows behind attention, and share nothing.
    pub(super) fn fits(&self, spec: &LayerSpec, tokens: usize, rows: usize) -> bool {
        let shape = |view: &View, rows: usize, cols: usize| view.rows == rows && view.cols == cols;
        let hidden = [
            &self.attention_sum,
            &self.attention_normed,
            &self.output_sum,
            &self.output,
        ];
        self.apart(&[])
            && hidden.iter().all(|view| shape(view, rows, spec.hidden))
            && self.output.stride == spec.hidden
            && shape(&self.qkv, tokens, 3 * spec.hidden)
            && shape(&self.context, tokens, spec.hidden)
            && shape(&self.log_sum, tokens, spec.heads)
            && shape(&self.intermediate, rows, spec.intermediate)
            && shape(&self.attention_stats, rows, 2)
            && shape(&self.output_stats, rows, 2)
    }

    /// Whether no two share an element, nor one of them and one of the others.
    fn apart(&self, others: &[View]) -> bool {
        let own = [
            &self.qkv,
            &self.context,
            &self.log_sum,
            &self.attention_sum,
            &self.attention_stats,
            &self.attention_normed,
            &self.intermediate,
            &self.output_sum,
            &self.output_stats,
            &self.output,
        ];
        let mut rest = own.iter();
        own.iter().all(|view| {
            rest.next();
            let mut others = rest.clone().copied().chain(others);
            others.all(|other| !view.overlaps(other))
        })
    }
}

/// Examples and positions of rows.
#[derive(Clone, Copy)]
pub(super) struct RowIds<'a> {
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

pub(super) type RowDrops<'a> = Option<(&'a Dropout, RowIds<'a>)>;

/// The dropouts of what is added to the residual.
#[derive(Clone, Copy)]
pub(super) struct Drops<'a> {
    pub(super) attention: RowDrops<'a>,
    pub(super) output: RowDrops<'a>,
}

impl<'a> Drops<'a> {
    /// Those of a batch of so many rows.
    pub(super) fn new(
        ints: &'a [Vec<u32>],
        keys: &RowKeys,
        dropout: Option<&'a LayerDropout>,
        rows: usize,
    ) -> Self {
        let keys = RowIds::new(ints, keys, rows);
        Drops {
            attention: dropout.map(|all| (&all.attention_output, keys)),
            output: dropout.map(|all| (&all.output, keys)),
        }
    }
}

pub(super) fn row_dropout(drops: RowDrops, row: usize) -> Option<RowDropout> {
    drops.map(|(dropout, keys)| {
        let (example, position) = (keys.example[row], keys.position[row]);
        RowDropout::new(dropout, Purpose::Dropout, example, position, 0)
    })
}
