//! Where time goes: a backend that passes everything on to another and adds up the time of each
//! operator.
//!
//! Of a layer that the backend fuses, the time is shared out by what the backend says of its parts.

use crate::backend::*;
use crate::params::{ParamLayout, ParamView};
use std::ops::Range;
use std::time::{Duration, Instant};

/// The time that one operator, or one part of a fused layer, took over all of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Name of the operator in the contract.
    pub operator: &'static str,
    /// `[out, in]` of the weight, where there is one: products of one operator differ by it.
    pub weight: Option<[usize; 2]>,
    /// Calls.
    pub calls: u64,
    /// Time of all calls together.
    pub time: Duration,
}

/// A backend that times another: two readings of the clock an operator, some 50 ns. A device that
/// works behind the caller's back is waited for after each.
#[derive(Debug)]
pub struct Timed<'a, B: Backend> {
    inner: &'a mut B,
    phases: Vec<Phase>,
}

impl<'a, B: Backend> Timed<'a, B> {
    /// A clock around `backend`, with nothing timed yet.
    pub fn new(backend: &'a mut B) -> Self {
        // Begins the time of parts.
        backend.parts();
        Timed {
            inner: backend,
            phases: Vec::new(),
        }
    }

    /// Forgets what was timed so far: the end of a warm-up.
    pub fn reset(&mut self) {
        self.phases.clear();
    }

    /// Every operator that was called since the last [`reset`](Timed::reset), the longest first.
    pub fn phases(&self) -> Vec<Phase> {
        let mut phases = self.phases.clone();
        phases.sort_by_key(|phase| std::cmp::Reverse(phase.time));
        phases
    }

    fn time<T>(&mut self, operator: &'static str, run: impl FnOnce(&mut B) -> T) -> T {
        self.time_product(operator, None, run)
    }

    fn time_product<T>(
        &mut self,
        operator: &'static str,
        weight: Option<ParamView>,
        run: impl FnOnce(&mut B) -> T,
    ) -> T {
        let weight = weight.map(|view| [view.rows, view.cols]);
        let start = Instant::now();
        let result = run(self.inner);
        self.inner.wait();
        self.add(operator, weight, start.elapsed());
        result
    }

    /// Times a method that the backend may have fused, by its parts where it says them.
    fn time_fused<T>(&mut self, name: &'static str, run: impl FnOnce(&mut B) -> T) -> T {
        self.inner.parts();
        let start = Instant::now();
        let result = run(self.inner);
        self.inner.wait();
        let time = start.elapsed();
        let parts = self.inner.parts();
        let total: Duration = parts.iter().map(|(_, time)| *time).sum();
        if total.is_zero() {
            self.add(name, None, time);
        }
        for (part, own) in parts {
            let share = own.as_secs_f64() / total.as_secs_f64();
            self.add(part, None, time.mul_f64(share));
        }
        result
    }

    fn add(&mut self, operator: &'static str, weight: Option<[usize; 2]>, time: Duration) {
        let same = |phase: &&mut Phase| phase.operator == operator && phase.weight == weight;
        match self.phases.iter_mut().find(same) {
            Some(phase) => {
                phase.calls += 1;
                phase.time += time;
            }
            None => self.phases.push(Phase {
                operator,
                weight,
                calls: 1,
                time,
            }),
        }
    }
}

impl<B: Backend> Backend for Timed<'_, B> {
    type Params = B::Params;
    type Flat = B::Flat;

    fn array(&mut self, rows: usize, cols: usize) -> Array {
        self.inner.array(rows, cols)
    }

    fn ints(&mut self, len: usize) -> Ints {
        self.inner.ints(len)
    }

    fn release_arrays(&mut self) {
        self.inner.release_arrays();
    }

    fn wait(&mut self) {
        self.inner.wait();
    }

    fn write(&mut self, to: Array, values: &[f32]) {
        self.time("write", |b| b.write(to, values));
    }

    fn read(&mut self, from: Array, out: &mut [f32]) {
        self.time("read", |b| b.read(from, out));
    }

    fn write_ints(&mut self, to: Ints, values: &[u32]) {
        self.time("write_ints", |b| b.write_ints(to, values));
    }

    fn read_ints(&mut self, from: Ints, out: &mut [u32]) {
        self.time("read_ints", |b| b.read_ints(from, out));
    }

    fn zero(&mut self, array: Array) {
        self.time("zero", |b| b.zero(array));
    }

    fn copy(&mut self, x: Array, y: Array) {
        self.time("copy", |b| b.copy(x, y));
    }

    fn params(&mut self, layout: &ParamLayout, values: &[f32]) -> Self::Params {
        self.time("params", |b| b.params(layout, values))
    }

    fn inference_params<E>(
        &mut self,
        layout: &ParamLayout,
        fill: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self::Params, E> {
        self.time("inference_params", |b| b.inference_params(layout, fill))
    }

    fn read_params(&mut self, params: &Self::Params, out: &mut [f32]) {
        self.time("read_params", |b| b.read_params(params, out));
    }

    fn flat(&mut self, len: usize) -> Self::Flat {
        self.inner.flat(len)
    }

    fn write_flat(&mut self, to: &mut Self::Flat, values: &[f32]) {
        self.time("write_flat", |b| b.write_flat(to, values));
    }

    fn read_flat(&mut self, from: &Self::Flat, out: &mut [f32]) {
        self.time("read_flat", |b| b.read_flat(from, out));
    }

    fn zero_flat(&mut self, flat: &mut Self::Flat) {
        self.time("zero_flat", |b| b.zero_flat(flat));
    }

    fn embed(&mut self, params: &Self::Params, tables: &[(ParamView, Ints)], y: Array) {
        self.time("embed", |b| b.embed(params, tables, y));
    }

    fn embed_backward(&mut self, tables: &[(ParamView, Ints)], dy: Array, grads: &mut Self::Flat) {
        self.time("embed_backward", |b| b.embed_backward(tables, dy, grads));
    }

    fn linear(&mut self, params: &Self::Params, x: Array, linear: &Linear, y: Array) {
        self.time_product("linear", Some(linear.weight), |b| {
            b.linear(params, x, linear, y);
        });
    }

    fn linear_backward_input(
        &mut self,
        params: &Self::Params,
        dy: Array,
        linear: &Linear,
        dx: Array,
        accumulate: bool,
    ) {
        self.time_product("linear_backward_input", Some(linear.weight), |b| {
            b.linear_backward_input(params, dy, linear, dx, accumulate);
        });
    }

    fn linear_backward_params(
        &mut self,
        x: Array,
        dy: Array,
        linear: &Linear,
        grads: &mut Self::Flat,
    ) {
        self.time_product("linear_backward_params", Some(linear.weight), |b| {
            b.linear_backward_params(x, dy, linear, grads);
        });
    }

    fn activation(&mut self, activation: Activation, z: Array, y: Array) {
        self.time("activation", |b| b.activation(activation, z, y));
    }

    fn activation_backward(&mut self, activation: Activation, z: Array, d: Array) {
        self.time("activation_backward", |b| {
            b.activation_backward(activation, z, d);
        });
    }

    fn layer_norm(&mut self, params: &Self::Params, x: Array, norm: &Norm, y: Array, stats: Array) {
        self.time("layer_norm", |b| b.layer_norm(params, x, norm, y, stats));
    }

    fn layer_norm_backward(
        &mut self,
        params: &Self::Params,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        grads: &mut Self::Flat,
    ) {
        self.time("layer_norm_backward", |b| {
            b.layer_norm_backward(params, x, stats, norm, dy, dx, grads);
        });
    }

    fn dropout(&mut self, x: Array, dropout: &Dropout, keys: &RowKeys, y: Array) {
        self.time("dropout", |b| b.dropout(x, dropout, keys, y));
    }

    fn add(&mut self, residual: Array, x: Array, dropout: Option<(&Dropout, &RowKeys)>, y: Array) {
        self.time("add", |b| b.add(residual, x, dropout, y));
    }

    fn attention(
        &mut self,
        q: Array,
        k: Array,
        v: Array,
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        y: Array,
        log_sum: Array,
    ) {
        self.time("attention", |b| {
            b.attention(q, k, v, heads, sequences, dropout, y, log_sum);
        });
    }

    fn attention_backward(
        &mut self,
        qkv: [Array; 3],
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        y: Array,
        log_sum: Array,
        dy: Array,
        d_qkv: [Array; 3],
    ) {
        self.time("attention_backward", |b| {
            b.attention_backward(qkv, heads, sequences, dropout, y, log_sum, dy, d_qkv);
        });
    }

    fn gather_rows(&mut self, x: Array, rows: Ints, y: Array) {
        self.time("gather_rows", |b| b.gather_rows(x, rows, y));
    }

    fn scatter_add_rows(&mut self, dy: Array, rows: Ints, dx: Array) {
        self.time("scatter_add_rows", |b| b.scatter_add_rows(dy, rows, dx));
    }

    fn replace(&mut self, base: Ints, rows: Ints, values: Ints, y: Ints) {
        self.time("replace", |b| b.replace(base, rows, values, y));
    }

    fn not_equal(&mut self, a: Ints, b: Ints, y: Ints) {
        self.time("not_equal", |backend| backend.not_equal(a, b, y));
    }

    fn vocabulary(
        &mut self,
        params: &Self::Params,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
        sample: Option<&VocabularySample>,
    ) {
        self.time_product("vocabulary", Some(head.weight), |b| {
            b.vocabulary(
                params, x, head, targets, log_prob, log_sum, predicted, sample,
            );
        });
    }

    fn vocabulary_backward(
        &mut self,
        params: &Self::Params,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_sum: Array,
        scale: f32,
        dx: Array,
        grads: &mut Self::Flat,
    ) {
        self.time_product("vocabulary_backward", Some(head.weight), |b| {
            b.vocabulary_backward(params, x, head, targets, log_sum, scale, dx, grads);
        });
    }

    fn binary_cross_entropy(&mut self, logits: Array, labels: Ints, loss: Array) {
        self.time("binary_cross_entropy", |b| {
            b.binary_cross_entropy(logits, labels, loss);
        });
    }

    fn binary_cross_entropy_backward(
        &mut self,
        logits: Array,
        labels: Ints,
        scale: f32,
        d_logits: Array,
    ) {
        self.time("binary_cross_entropy_backward", |b| {
            b.binary_cross_entropy_backward(logits, labels, scale, d_logits);
        });
    }

    fn sum(&mut self, x: Array) -> f64 {
        self.time("sum", |b| b.sum(x))
    }

    fn squared_norms(&mut self, flat: &Self::Flat, views: &[ParamView], norms: &mut [f64]) {
        self.time("squared_norms", |b| b.squared_norms(flat, views, norms));
    }

    fn adamw(
        &mut self,
        params: &mut Self::Params,
        grads: &Self::Flat,
        first: &mut Self::Flat,
        second: &mut Self::Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
    ) {
        self.time("adamw", |b| {
            b.adamw(params, grads, first, second, adam, grad_scale, updates);
        });
    }

    fn lamb(
        &mut self,
        params: &mut Self::Params,
        grads: &mut Self::Flat,
        first: &mut Self::Flat,
        second: &mut Self::Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
        adapted: &[bool],
    ) {
        self.time("lamb", |b| {
            b.lamb(
                params, grads, first, second, adam, grad_scale, updates, adapted,
            );
        });
    }

    fn layer_arrays(&mut self, spec: &LayerSpec, tokens: usize) -> LayerArrays {
        self.inner.layer_arrays(spec, tokens)
    }

    fn layer_gradients(&mut self, spec: &LayerSpec, tokens: usize) -> LayerGradients {
        self.inner.layer_gradients(spec, tokens)
    }

    fn row_arrays(&mut self, spec: &LayerSpec, rows: usize) -> RowArrays {
        self.inner.row_arrays(spec, rows)
    }

    fn layer(
        &mut self,
        params: &Self::Params,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        rows: Option<&OutputRows>,
        input: Array,
        keep: &LayerArrays,
    ) {
        self.time_fused("layer", |b| {
            b.layer(params, spec, layer, sequences, dropout, rows, input, keep);
        });
    }

    fn layer_backward(
        &mut self,
        params: &Self::Params,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        rows: Option<&OutputRows>,
        input: Array,
        keep: &LayerArrays,
        d: &LayerGradients,
        grads: &mut Self::Flat,
    ) {
        self.time_fused("layer_backward", |b| {
            b.layer_backward(
                params, spec, layer, sequences, dropout, rows, input, keep, d, grads,
            );
        });
    }

    fn infer_layers(
        &mut self,
        params: &Self::Params,
        spec: &LayerSpec,
        layers: &[LayerParams],
        sequences: &Sequences,
        rows: Option<&OutputRows>,
        input: Array,
        work: &[LayerArrays; 2],
    ) -> Array {
        self.time_fused("infer_layers", |b| {
            b.infer_layers(params, spec, layers, sequences, rows, input, work)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, CpuOptions};
    use crate::params::Init;
    use crate::reference::Reference;

    #[test]
    fn a_layer_is_timed_by_its_parts_and_computes_the_same() {
        const TOKENS: usize = 5;
        let mut layout = ParamLayout::new();
        let mut linear = |name: &str, rows: usize, cols: usize| {
            let weight = layout.push(&format!("{name}.weight"), &[rows, cols], Init::Zeros, 0);
            let bias = layout.push(&format!("{name}.bias"), &[rows], Init::Zeros, 0);
            layout.register_linear(weight);
            Linear { weight, bias }
        };
        let (qkv, attention_output) = (linear("qkv", 12, 4), linear("context", 4, 4));
        let (intermediate, output) = (linear("intermediate", 8, 4), linear("output", 4, 8));
        let norm = Norm {
            weight: layout.push("norm.weight", &[4], Init::Ones, 0),
            bias: layout.push("norm.bias", &[4], Init::Zeros, 0),
            eps: 1e-12,
        };
        let layer = LayerParams {
            qkv,
            attention_output,
            attention_norm: norm,
            intermediate,
            output,
            output_norm: norm,
        };
        let spec = LayerSpec {
            hidden: 4,
            heads: 2,
            intermediate: 8,
            activation: Activation::Gelu,
        };
        fn run<B: Backend>(
            backend: &mut B,
            layout: &ParamLayout,
            spec: &LayerSpec,
            layer: &LayerParams,
        ) -> Vec<f32> {
            let wave = |i: usize| (i as f32 * 0.37).sin();
            let values: Vec<f32> = (0..layout.len()).map(wave).collect();
            let params = backend.params(layout, &values);
            let [cu_seqlens, example, position] = [2, TOKENS, TOKENS].map(|n| backend.ints(n));
            backend.write_ints(cu_seqlens, &[0, TOKENS as u32]);
            let sequences = Sequences {
                cu_seqlens,
                keys: RowKeys { example, position },
                longest: TOKENS,
            };
            let x = backend.array(TOKENS, spec.hidden);
            let values: Vec<f32> = (0..TOKENS * spec.hidden).map(wave).collect();
            backend.write(x, &values);
            let keep = backend.layer_arrays(spec, TOKENS);
            backend.layer(&params, spec, layer, &sequences, None, None, x, &keep);
            let mut out = vec![0.0; TOKENS * spec.hidden];
            backend.read(keep.output, &mut out);
            out
        }
        let plain = run(&mut Reference::<f32>::new(), &layout, &spec, &layer);
        let mut reference = Reference::<f32>::new();
        let mut timed = Timed::new(&mut reference);
        assert_eq!(run(&mut timed, &layout, &spec, &layer), plain);
        let calls = |timed: &[Phase], operator: &str| {
            let same = |p: &&Phase| p.operator == operator;
            timed.iter().find(same).map_or(0, |phase| phase.calls)
        };
        assert_eq!(calls(&timed.phases(), "layer"), 1);
        timed.reset();
        assert_eq!(timed.phases(), []);

        let mut cpu = Cpu::new(CpuOptions::default()).expect("the best instruction set");
        let plain = run(&mut cpu, &layout, &spec, &layer);
        let mut timed = Timed::new(&mut cpu);
        assert_eq!(run(&mut timed, &layout, &spec, &layer), plain);
        let phases = timed.phases();
        for part in [
            "query, key, value",
            "attention",
            "residual and norm",
            "output",
        ] {
            assert_eq!(calls(&phases, part), 1, "{part}");
        }
        assert_eq!(calls(&phases, "layer"), 0);
        assert!(phases.is_sorted_by_key(|phase| std::cmp::Reverse(phase.time)));
    }
}
