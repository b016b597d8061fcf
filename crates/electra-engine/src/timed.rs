//! Where time goes: a backend that passes everything on to another and adds up the time of each
//! operator.
//!
//! Composed methods are not passed on but run as the contract composes them, so that they are
//! timed by their parts. What a backend fuses by overriding a composed method is not seen here.

use crate::backend::*;
use crate::params::{ParamLayout, ParamView};
use crate::rng::Rng;
use std::time::{Duration, Instant};

/// The time that one operator took, over all of its calls.
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

/// A backend that times another: two readings of the clock an operator, some 50 ns.
///
/// On a device that works behind the caller's back only the time to hand work over is seen.
#[derive(Debug)]
pub struct Timed<'a, B: Backend> {
    inner: &'a mut B,
    phases: Vec<Phase>,
}

impl<'a, B: Backend> Timed<'a, B> {
    /// A clock around `backend`, with nothing timed yet.
    pub fn new(backend: &'a mut B) -> Self {
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
        let time = start.elapsed();
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
        result
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

    fn vocabulary_log_prob(
        &mut self,
        params: &Self::Params,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
    ) {
        self.time_product("vocabulary_log_prob", Some(head.weight), |b| {
            b.vocabulary_log_prob(params, x, head, targets, log_prob, log_sum, predicted);
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

    fn vocabulary_sample(
        &mut self,
        params: &Self::Params,
        x: Array,
        head: &Linear,
        temperature: f32,
        exclude: Option<Ints>,
        rng: &Rng,
        keys: &RowKeys,
        rows: Ints,
        sampled: Ints,
    ) {
        self.time_product("vocabulary_sample", Some(head.weight), |b| {
            b.vocabulary_sample(
                params,
                x,
                head,
                temperature,
                exclude,
                rng,
                keys,
                rows,
                sampled,
            );
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

    fn squared_norms(&mut self, flat: &Self::Flat, views: &[ParamView]) -> Vec<f64> {
        self.time("squared_norms", |b| b.squared_norms(flat, views))
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
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let keep = LayerArrays::new(backend, spec, TOKENS);
            backend.layer(&params, spec, layer, &sequences, None, x, &keep);
            let mut out = vec![0.0; TOKENS * spec.hidden];
            backend.read(keep.output, &mut out);
            out
        }
        let plain = run(&mut Reference::<f32>::new(), &layout, &spec, &layer);
        let mut reference = Reference::<f32>::new();
        let mut timed = Timed::new(&mut reference);
        assert_eq!(run(&mut timed, &layout, &spec, &layer), plain);

        let phases = timed.phases();
        let calls = |operator: &str, weight: Option<[usize; 2]>| {
            let same = |p: &&Phase| p.operator == operator && p.weight == weight;
            phases.iter().find(same).map_or(0, |phase| phase.calls)
        };
        for weight in [[12, 4], [4, 4], [8, 4], [4, 8]] {
            assert_eq!(calls("linear", Some(weight)), 1, "{weight:?}");
        }
        assert_eq!(
            (calls("attention", None), calls("layer_norm", None)),
            (1, 2)
        );
        assert_eq!((calls("add", None), calls("activation", None)), (2, 1));
        assert!(phases.is_sorted_by_key(|phase| std::cmp::Reverse(phase.time)));
        timed.reset();
        assert_eq!(timed.phases(), []);
    }
}
