//! A run of layers of which only the last output is kept.
//!
//! A task takes whole sequences through every layer, in its own memory: nothing waits for anything.
//! Where there are too few sequences for that, all threads share each layer: blocks of rows, then
//! heads. Both give the same bits, since no row knows what stands beside it.

use super::Cpu;
use super::attention::{HeadRoom, Heads, attend_head};
use super::chain::{
    AddNorm, LayerWeights, NormWeights, Right, block_rows, by_panels, multiply_rows, tile_words,
};
use super::clock::{Part, PartClock};
use super::elementwise::Accuracy;
use super::epilogue::{Place, Store};
use super::gemm::{Form, STRIP};
use super::isa::Isa;
use super::linear::{Left, Rounded, left_side, left_words, packed_step, source};
use super::pack::Source;
use super::params::CpuParams;
use super::pool::Pool;
use super::rows::chosen_rows;
use super::view::{Blocks, View, part};
use crate::backend::{Array, Ints, LayerParams, LayerSpec, Sequences};
use std::ops::Range;

/// Tokens of a task that takes whole sequences, unless one is longer.
const GROUP_TOKENS: usize = 128;

/// What every layer of a run shares.
#[derive(Clone, Copy)]
struct Run<'a> {
    isa: Isa,
    spec: &'a LayerSpec,
    /// Of the products of layers, but for those of weights that are kept exact.
    form: Form,
    /// Of weights that are kept exact.
    exact: Form,
    /// Of attention.
    attention: Form,
    /// `[T, H]` what a layer reads and replaces.
    x: View,
    block: usize,
    /// Of the last layer, where it is not all rows.
    wanted: Option<Wanted<'a>>,
    clock: &'a PartClock,
}

/// Rows of the output that are wanted, ascending, and where they go.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    rows: &'a [u32],
    to: View,
}

/// Query, key, value `[rows, 3H]` in attention's form, and attention's result `[rows, H]` in that of
/// [`Run::context_form`]; row 0 is row `first` of the batch.
#[derive(Clone, Copy)]
struct Between {
    qkv: View,
    context: View,
    first: usize,
}

impl Run<'_> {
    /// Of the last layer, once attention is over: those of `rows` that are wanted move to the first of
    /// these places, with their part of the context. Returns which of all that are wanted they are.
    ///
    /// # Safety
    /// Nobody else uses these rows of x and of what is between.
    unsafe fn keep_wanted(
        &self,
        wanted: &Wanted,
        rows: &Range<usize>,
        between: Between,
    ) -> Range<usize> {
        let place = |row: usize| wanted.rows.partition_point(|&r| (r as usize) < row);
        let these = place(rows.start)..place(rows.end);
        for (to, &row) in wanted.rows[these.clone()].iter().enumerate() {
            let (row, to) = (row as usize, rows.start + to);
            if to == row {
                continue;
            }
            let (context, first) = (between.context, between.first);
            // SAFETY: as the caller says.
            unsafe {
                self.x.copy_row(row, &self.x, to);
                context.copy_row(row - first, &context, to - first);
            }
        }
        these
    }

    /// Rows of the output from the first of the places of a task's rows to where they are wanted.
    ///
    /// # Safety
    /// Nobody else uses these rows of x, nor these of what is wanted.
    unsafe fn deliver(&self, wanted: &Wanted, these: Range<usize>, first: usize) {
        for (row, to) in (first..).zip(these) {
            // SAFETY: as the caller says.
            unsafe { self.x.copy_row(row, &wanted.to, to) };
        }
    }

    fn qkv_words(&self, rows: usize) -> usize {
        rows * self.attention.units(3 * self.spec.hidden)
    }

    /// What attention's results are kept in: where all products are of bf16, they read these as they
    /// are.
    fn context_form(&self) -> Form {
        match self.form {
            Form::Half => self.attention,
            _ => Form::F32,
        }
    }

    fn context_words(&self, rows: usize) -> usize {
        rows * packed_step(self.context_form(), self.spec.hidden)
    }

    /// Attention's result for some rows, in memory of their own.
    fn context(&self, data: *mut f32, rows: usize) -> View {
        let (form, hidden) = (self.context_form(), self.spec.hidden);
        View::spread(form, data, rows, hidden, packed_step(form, hidden))
    }

    /// Words that [`begin`](Run::begin) and [`finish`](Run::finish) need for a block.
    fn room(&self) -> [usize; 5] {
        let (rows, spec) = (self.block, self.spec);
        let left = |depth| {
            let words = |form| left_words(form, rows, depth);
            words(self.form).max(words(self.exact))
        };
        [
            left(spec.hidden),
            tile_words(self.isa),
            rows * spec.hidden,
            rows * packed_step(middle_form(self.form), spec.intermediate),
            match self.form {
                Form::Int8 => left(spec.intermediate),
                _ => 0,
            },
        ]
    }

    /// Rows of x as a source.
    fn input(&self, rows: &Range<usize>) -> Source {
        source(self.x, rows.clone())
    }

    /// Query, key and value of some rows, at most a block, of the first layer.
    ///
    /// # Safety
    /// Nobody else uses these rows of x and of what is between.
    unsafe fn begin(
        &self,
        layer: &LayerWeights,
        rows: Range<usize>,
        to: Between,
        room: &mut [&mut [f32]; 5],
    ) {
        let [packed, tile, ..] = room;
        // SAFETY: as the caller says.
        unsafe {
            let mut lap = self.clock.start();
            let left = left_side(self.isa, layer.qkv.form, self.input(&rows), packed);
            lap.done(Part::Qkv);
            self.project(layer, left, rows, to, tile);
        }
    }

    /// Query, key and value of some rows, at most a block, from these as left side.
    ///
    /// # Safety
    /// Nobody else uses these rows of what is between.
    unsafe fn project(
        &self,
        layer: &LayerWeights,
        left: Left,
        rows: Range<usize>,
        to: Between,
        tile: &mut [f32],
    ) {
        let mut lap = self.clock.start();
        let first = rows.start - to.first;
        let place = Place::new(to.qkv, &(first..first + rows.len()));
        let right = Right::Weight(&layer.qkv);
        // SAFETY: as the caller says.
        unsafe { by_panels(self.isa, left, right, tile, Store::plain(place)) };
        lap.done(Part::Qkv);
    }

    /// `x = norm(x + y)` for some rows. Returns them as left side of a product in a form.
    ///
    /// # Safety
    /// Nobody else uses these rows of x.
    unsafe fn add_norm(
        &self,
        rows: &Range<usize>,
        y: &[f32],
        norm: NormWeights,
        form: Form,
        room: &mut [f32],
    ) -> Left {
        let (count, hidden) = (rows.len(), self.spec.hidden);
        let rounded = (form != Form::F32).then(|| Rounded::new(form, count, hidden, room));
        let left = match &rounded {
            Some(rounded) => rounded.left(),
            None => Left::of(self.input(rows)),
        };
        let x = self.x.at(rows.start, 0);
        AddNorm {
            // SAFETY: as the caller says; products read these rows through pointers, before and after.
            x: unsafe { std::slice::from_raw_parts_mut(x, count * hidden) },
            y,
            norm,
            rounded,
        }
        .run_on(self.isa);
        left
    }

    /// What follows attention, for some rows, at most a block, and query, key and value of the next layer,
    /// if there is one.
    ///
    /// # Safety
    /// Nobody else uses these rows of x and of what is between.
    unsafe fn finish(
        &self,
        layer: &LayerWeights,
        next: Option<&LayerWeights>,
        rows: Range<usize>,
        from: Between,
        room: &mut [&mut [f32]; 5],
    ) {
        let (isa, spec, count) = (self.isa, self.spec, rows.len());
        let [packed, tile, branch, middle, bytes] = room;
        let middle_form = middle_form(layer.output.form);
        let step = packed_step(middle_form, spec.intermediate);
        let branch = &mut branch[..count * spec.hidden];
        let mut lap = self.clock.start();
        // SAFETY: as the caller says.
        unsafe {
            let context = source(from.context, rows.start - from.first..rows.end - from.first);
            let left = left_side(isa, layer.attention_output.form, context, packed);
            multiply_rows(
                isa,
                left,
                &layer.attention_output,
                branch.as_mut_ptr(),
                spec.hidden,
            );
            lap.done(Part::AttentionOutput);
            let form = layer.intermediate.form;
            let left = self.add_norm(&rows, branch, layer.attention_norm, form, packed);
            lap.done(Part::Norm);
            let right = Right::Weight(&layer.intermediate);
            let middle = View::spread(
                middle_form,
                middle.as_mut_ptr(),
                count,
                spec.intermediate,
                step,
            );
            let place = Place::new(middle, &(0..count));
            let store = Store {
                plain: None,
                activated: Some((place, spec.activation, Accuracy::of(form))),
            };
            by_panels(isa, left, right, tile, store);
            lap.done(Part::Intermediate);
            let left = left_side(isa, layer.output.form, source(middle, 0..count), bytes);
            multiply_rows(isa, left, &layer.output, branch.as_mut_ptr(), spec.hidden);
            lap.done(Part::Output);
            let form = next.map_or(Form::F32, |next| next.qkv.form);
            let left = self.add_norm(&rows, branch, layer.output_norm, form, packed);
            lap.done(Part::Norm);
            if let Some(next) = next {
                self.project(next, left, rows, from, tile);
            }
        }
    }

    /// Query, key and value, in memory of their own.
    fn qkv(&self, data: *mut f32, rows: usize) -> View {
        View::of(self.attention, data, rows, 3 * self.spec.hidden)
    }
}

impl Between {
    /// Query, key and value apart.
    fn parts(&self) -> [View; 3] {
        let hidden = self.context.cols;
        [0, 1, 2].map(|i| self.qkv.columns(i * hidden, hidden))
    }
}

/// What activations are kept in for a product in a form: bytes are made of f32.
fn middle_form(product: Form) -> Form {
    match product {
        Form::Int8 => Form::F32,
        form => form,
    }
}

/// Consecutive sequences of about `tokens` tokens each, as ranges of sequences.
fn groups(cu_seqlens: &[u32], tokens: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut room = 0;
    for (s, ends) in cu_seqlens.windows(2).enumerate() {
        let len = (ends[1] - ends[0]) as usize;
        match groups.last_mut() {
            Some(last) if len <= room => {
                last.end = s + 1;
                room -= len;
            }
            _ => {
                groups.push(s..s + 1);
                room = tokens.saturating_sub(len);
            }
        }
    }
    groups
}

/// Tokens of the busiest of `threads` that take groups in order as they come free.
fn makespan(sizes: impl Iterator<Item = usize>, threads: usize) -> usize {
    let mut busy = vec![0; threads.max(1)];
    for size in sizes {
        if let Some(least) = busy.iter_mut().min() {
            *least += size;
        }
    }
    busy.into_iter().max().unwrap_or(0)
}

impl Cpu {
    /// Takes `x` through all layers, in place; where only some rows of the output are wanted, ascending,
    /// these to an array of their own.
    pub(super) fn infer(
        &mut self,
        params: &CpuParams,
        spec: &LayerSpec,
        layers: &[LayerParams],
        sequences: &Sequences,
        x: Array,
        wanted: Option<(Ints, Array)>,
    ) {
        self.take_through(params, spec, layers, sequences, x, wanted);
        if self.isa.has_f16() && self.layer_form != Form::F32 && !layers.is_empty() {
            // A norm makes all values of a row what one of them is.
            let rows = self.view(wanted.map_or(x, |(_, to)| to));
            let is_number = |row| {
                // SAFETY: nobody writes to the array now.
                unsafe { rows.at(row, 0).read() }.is_finite()
            };
            self.overflowed |= !(0..rows.rows).all(is_number);
        }
    }

    fn take_through(
        &mut self,
        params: &CpuParams,
        spec: &LayerSpec,
        layers: &[LayerParams],
        sequences: &Sequences,
        x: Array,
        wanted: Option<(Ints, Array)>,
    ) {
        let form = self.layer_form;
        let weights: Vec<LayerWeights> = layers
            .iter()
            .map(|layer| self.layer_weights(params, spec, layer, form))
            .collect();
        let tokens = x.rows;
        let view = self.view(x);
        if tokens == 0 {
            return;
        }
        assert!(x.cols == spec.hidden && view.stride == spec.hidden);
        let to = wanted.map(|(_, to)| self.view(to));
        let wanted = wanted.zip(to).map(|((rows, _), to)| {
            let rows = chosen_rows(&self.ints, rows, tokens);
            assert!(to.rows == rows.len() && to.cols == spec.hidden && !to.overlaps(&view));
            Wanted { rows, to }
        });
        let run = Run {
            isa: self.isa,
            spec,
            form,
            exact: self.form,
            attention: self.kept_form(spec),
            x: view,
            block: block_rows(self.isa, form, spec),
            wanted,
            clock: &self.clock,
        };
        let threads = self.pool.threads();
        let heads = Heads::new(&self.ints, sequences, spec.heads, x, None);
        let cu_seqlens = heads.cu_seqlens;
        let each = tokens
            .div_ceil(4 * threads)
            .clamp(GROUP_TOKENS / 4, GROUP_TOKENS);
        let groups = groups(cu_seqlens, each);
        let rows =
            |group: &Range<usize>| cu_seqlens[group.start] as usize..cu_seqlens[group.end] as usize;
        let busiest = makespan(groups.iter().map(|g| rows(g).len()), threads);
        if threads == 1 || 10 * busiest * threads <= 11 * tokens {
            self.pool.run(groups.len(), |task, scratch| {
                let group = &groups[task];
                whole_sequences(&run, &weights, &heads, group.clone(), rows(group), scratch);
            });
            return;
        }
        self.left.reserve(run.qkv_words(tokens));
        self.right.reserve(run.context_words(tokens));
        let between = Between {
            qkv: run.qkv(self.left.as_ptr(), tokens),
            context: run.context(self.right.as_ptr(), tokens),
            first: 0,
        };
        layer_by_layer(&mut self.pool, &run, &weights, &heads, between, tokens);
    }
}

/// Takes all sequences through one layer after the other, by all threads: heads, then rows with
/// the next layer's query, key and value.
fn layer_by_layer(
    pool: &mut Pool,
    run: &Run,
    weights: &[LayerWeights],
    heads: &Heads,
    between: Between,
    tokens: usize,
) {
    let Some(first) = weights.first() else {
        return;
    };
    let threads = pool.threads();
    // As many blocks as go round the threads, none larger than a block, and no more than there are
    // strips: half of one costs as much.
    let blocks_of = |rows: usize| {
        let count = rows.div_ceil(run.block).next_multiple_of(threads);
        Blocks::new(rows, 1, count.min(rows.div_ceil(STRIP)))
    };
    let blocks = blocks_of(tokens);
    pool.run(blocks.count(), |task, scratch| {
        let mut room = scratch.split(run.room());
        let rows = blocks.rows(task);
        // SAFETY: these rows are this task's.
        unsafe { run.begin(first, rows, between, &mut room) };
    });
    let qkv = between.parts();
    // Halves of a head's queries where the heads do not go round.
    let parts = if heads.tasks() < 2 * threads { 2 } else { 1 };
    for (i, layer) in weights.iter().enumerate() {
        pool.run(heads.tasks() * parts, |task, scratch| {
            let head = heads.task(task / parts);
            let queries = part(head.len, head.len.div_ceil(parts), task % parts);
            if queries.is_empty() {
                return;
            }
            let mut lap = run.clock.start();
            let words = HeadRoom::words(run.isa, run.attention, head.len, head.size);
            let room = HeadRoom::new(scratch.split(words));
            let (form, to) = (run.attention, between.context);
            // SAFETY: nobody writes to q, k, v; these rows of the head are this task's.
            unsafe { attend_head(run.isa, form, &head, qkv, queries, to, None, room) };
            lap.done(Part::Attention);
        });
        let mut blocks = blocks;
        let wanted = run.wanted.as_ref().filter(|_| i + 1 == weights.len());
        if let Some(wanted) = wanted {
            // SAFETY: nobody else uses them now.
            let count = unsafe { run.keep_wanted(wanted, &(0..tokens), between) }.len();
            blocks = blocks_of(count);
        }
        pool.run(blocks.count(), |task, scratch| {
            let mut room = scratch.split(run.room());
            let rows = blocks.rows(task);
            // SAFETY: these rows are this task's.
            unsafe {
                let next = weights.get(i + 1);
                run.finish(layer, next, rows.clone(), between, &mut room);
                if let Some(wanted) = wanted {
                    run.deliver(wanted, rows.clone(), rows.start);
                }
            }
        });
    }
}

/// Takes some sequences through every layer.
fn whole_sequences(
    run: &Run,
    weights: &[LayerWeights],
    heads: &Heads,
    group: Range<usize>,
    rows: Range<usize>,
    scratch: &mut super::buffer::Scratch,
) {
    let count = rows.len();
    let longest = group
        .clone()
        .map(|s| heads.task(s * heads.heads).len)
        .max()
        .unwrap_or(0);
    let [a, b, c, d, e] = run.room();
    let [keys, values, scores, results] =
        HeadRoom::words(run.isa, run.attention, longest, heads.size);
    let words = [
        run.qkv_words(count),
        run.context_words(count),
        a,
        b,
        c,
        d,
        e,
        keys,
        values,
        scores,
        results,
    ];
    let [qkv, context, a, b, c, d, e, keys, values, scores, results] = scratch.split(words);
    let mut room = [a, b, c, d, e];
    let between = Between {
        qkv: run.qkv(qkv.as_mut_ptr(), count),
        context: run.context(context.as_mut_ptr(), count),
        first: rows.start,
    };
    // Equal blocks: a small last one would take as many weights by as the others.
    let blocks = |count: usize| {
        let first = rows.start;
        let of_group = move |rows: Range<usize>| first + rows.start..first + rows.end;
        let all = Blocks::of(count, run.isa.row_multiple(run.form), run.block);
        (0..all.count()).map(move |index| of_group(all.rows(index)))
    };
    let views = between.parts();
    let Some(first) = weights.first() else {
        return;
    };
    for rows in blocks(count) {
        // SAFETY: these rows are this task's.
        unsafe { run.begin(first, rows, between, &mut room) };
    }
    for (i, layer) in weights.iter().enumerate() {
        let mut lap = run.clock.start();
        for task in group.start * heads.heads..group.end * heads.heads {
            let mut head = heads.task(task);
            head.start -= rows.start;
            if head.len == 0 {
                continue;
            }
            let room = HeadRoom::new([&mut *keys, &mut *values, &mut *scores, &mut *results]);
            let (form, to) = (run.attention, between.context);
            // SAFETY: all of it is this task's.
            unsafe { attend_head(run.isa, form, &head, views, 0..head.len, to, None, room) };
        }
        lap.done(Part::Attention);
        let wanted = run.wanted.as_ref().filter(|_| i + 1 == weights.len());
        // SAFETY: these rows are this task's.
        let these = wanted.map(|wanted| unsafe { run.keep_wanted(wanted, &rows, between) });
        for rows in blocks(these.as_ref().map_or(count, Range::len)) {
            // SAFETY: these rows are this task's.
            unsafe { run.finish(layer, weights.get(i + 1), rows, between, &mut room) };
        }
        if let (Some(wanted), Some(these)) = (wanted, these) {
            // SAFETY: these rows are this task's, and so are those that are wanted of them.
            unsafe { run.deliver(wanted, these, rows.start) };
        }
    }
}
