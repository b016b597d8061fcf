//! The contract in its plainest form: scalar loops on one thread, generic over f32 and f64.
//!
//! It is the specification of every operator and the oracle of every test. Each operator copies
//! its inputs out of their slots, computes, and copies the result back.

mod attention;
mod vocabulary;

pub(crate) use attention::HEAD_BLOCKS;

use crate::backend::*;
use crate::params::{ParamLayout, ParamView};
use crate::rng::Purpose;

/// A floating-point type that the reference computes in.
pub trait Real: num_traits::Float + std::iter::Sum + std::fmt::Debug + 'static {
    /// The error function.
    fn erf(self) -> Self;
    /// From f64, rounded.
    fn of(value: f64) -> Self {
        Self::from(value).expect("a float holds any f64")
    }
    /// To f64.
    fn f64(self) -> f64 {
        self.to_f64().expect("f64 holds any float")
    }
}

impl Real for f32 {
    fn erf(self) -> f32 {
        libm::erff(self)
    }
}

impl Real for f64 {
    fn erf(self) -> f64 {
        libm::erf(self)
    }
}

/// The reference backend.
#[derive(Debug, Default)]
pub struct Reference<T> {
    arrays: Vec<Vec<T>>,
    ints: Vec<Vec<u32>>,
}

impl<T: Real> Reference<T> {
    /// A backend without arrays.
    pub fn new() -> Self {
        Reference {
            arrays: Vec::new(),
            ints: Vec::new(),
        }
    }

    /// An array's values, row-major and dense.
    pub fn load(&self, a: Array) -> Vec<T> {
        let data = &self.arrays[a.slot as usize];
        let (stride, column) = (a.stride as usize, a.column as usize);
        (0..a.rows)
            .flat_map(|r| data[r * stride + column..][..a.cols].iter().copied())
            .collect()
    }

    /// Sets an array's values, row-major and dense.
    pub fn store(&mut self, a: Array, values: &[T]) {
        assert_eq!(values.len(), a.rows * a.cols);
        let data = &mut self.arrays[a.slot as usize];
        let (stride, column) = (a.stride as usize, a.column as usize);
        for (r, row) in values.chunks_exact(a.cols.max(1)).enumerate() {
            data[r * stride + column..][..a.cols].copy_from_slice(row);
        }
    }

    fn ids(&self, ints: Ints) -> Vec<u32> {
        self.ints[ints.slot as usize][..ints.len].to_vec()
    }

    /// Factor that dropout puts on column `index` of a row: 0, or the scale of what is kept.
    fn dropout_factor(
        dropout: &Dropout,
        purpose: Purpose,
        example: u32,
        position: u32,
        first_block: u32,
        index: usize,
    ) -> T {
        let (block, word, half) = Dropout::place(index);
        let words = dropout.rng.words(
            purpose,
            dropout.site,
            example,
            position,
            first_block + block,
        );
        let bits = words[word] >> (16 * half) & 0xffff;
        if bits < dropout.threshold() {
            T::zero()
        } else {
            T::of(dropout.scale())
        }
    }

    fn dropped(&self, x: Array, dropout: &Dropout, keys: &RowKeys) -> Vec<T> {
        let mut values = self.load(x);
        let (examples, positions) = (self.ids(keys.example), self.ids(keys.position));
        for (t, row) in values.chunks_exact_mut(x.cols).enumerate() {
            for (c, value) in row.iter_mut().enumerate() {
                *value = *value
                    * Self::dropout_factor(
                        dropout,
                        Purpose::Dropout,
                        examples[t],
                        positions[t],
                        0,
                        c,
                    );
            }
        }
        values
    }
}

/// f(z) and f'(z).
fn activate<T: Real>(activation: Activation, z: T) -> (T, T) {
    let (half, one) = (T::of(0.5), T::one());
    match activation {
        Activation::Gelu => {
            let cdf = half * (one + (z * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
            let density = (-half * z * z).exp()
                * T::of(std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 / 2.0);
            (z * cdf, cdf + z * density)
        }
        Activation::GeluTanh => {
            let root = T::of((2.0 / std::f64::consts::PI).sqrt());
            let cubic = T::of(0.044715);
            let tanh = (root * (z + cubic * z * z * z)).tanh();
            let inner = root * (one + T::of(3.0) * cubic * z * z);
            (
                half * z * (one + tanh),
                half * (one + tanh) + half * z * (one - tanh * tanh) * inner,
            )
        }
    }
}

impl<T: Real> Backend for Reference<T> {
    type Params = Vec<T>;
    type Flat = Vec<T>;

    fn array(&mut self, rows: usize, cols: usize) -> Array {
        self.arrays.push(vec![T::zero(); rows * cols]);
        Array {
            slot: self.arrays.len() as u32 - 1,
            column: 0,
            stride: cols as u32,
            rows,
            cols,
        }
    }

    fn ints(&mut self, len: usize) -> Ints {
        self.ints.push(vec![0; len]);
        Ints {
            slot: self.ints.len() as u32 - 1,
            len,
        }
    }

    fn release_arrays(&mut self) {
        self.arrays.clear();
        self.ints.clear();
    }

    fn write(&mut self, to: Array, values: &[f32]) {
        let values: Vec<T> = values.iter().map(|&v| T::of(v.into())).collect();
        self.store(to, &values);
    }

    fn read(&mut self, from: Array, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(self.load(from)) {
            *out = value.f64() as f32;
        }
    }

    fn write_ints(&mut self, to: Ints, values: &[u32]) {
        assert_eq!(values.len(), to.len);
        self.ints[to.slot as usize][..to.len].copy_from_slice(values);
    }

    fn read_ints(&mut self, from: Ints, out: &mut [u32]) {
        out.copy_from_slice(&self.ints[from.slot as usize][..from.len]);
    }

    fn zero(&mut self, array: Array) {
        self.store(array, &vec![T::zero(); array.rows * array.cols]);
    }

    fn copy(&mut self, x: Array, y: Array) {
        let values = self.load(x);
        self.store(y, &values);
    }

    fn params(&mut self, layout: &ParamLayout, values: &[f32]) -> Vec<T> {
        assert_eq!(values.len(), layout.len());
        values.iter().map(|&v| T::of(v.into())).collect()
    }

    fn read_params(&mut self, params: &Vec<T>, out: &mut [f32]) {
        self.read_flat(params, out);
    }

    fn flat(&mut self, len: usize) -> Vec<T> {
        vec![T::zero(); len]
    }

    fn write_flat(&mut self, to: &mut Vec<T>, values: &[f32]) {
        assert_eq!(values.len(), to.len());
        *to = values.iter().map(|&v| T::of(v.into())).collect();
    }

    fn read_flat(&mut self, from: &Vec<T>, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(from) {
            *out = value.f64() as f32;
        }
    }

    fn zero_flat(&mut self, flat: &mut Vec<T>) {
        flat.fill(T::zero());
    }

    fn embed(&mut self, params: &Vec<T>, tables: &[(ParamView, Ints)], y: Array) {
        let mut values = vec![T::zero(); y.rows * y.cols];
        for &(table, ids) in tables {
            let table = &params[table.range()];
            for (row, id) in values.chunks_exact_mut(y.cols).zip(self.ids(ids)) {
                for (value, &entry) in row.iter_mut().zip(&table[id as usize * y.cols..]) {
                    *value = *value + entry;
                }
            }
        }
        self.store(y, &values);
    }

    fn embed_backward(&mut self, tables: &[(ParamView, Ints)], dy: Array, grads: &mut Vec<T>) {
        let d = self.load(dy);
        for &(table, ids) in tables {
            let grad = &mut grads[table.range()];
            for (row, id) in d.chunks_exact(dy.cols).zip(self.ids(ids)) {
                for (g, &d) in grad[id as usize * dy.cols..].iter_mut().zip(row) {
                    *g = *g + d;
                }
            }
        }
    }

    fn linear(&mut self, params: &Vec<T>, x: Array, linear: &Linear, y: Array) {
        let input = self.load(x);
        let (weight, bias) = (&params[linear.weight.range()], &params[linear.bias.range()]);
        let mut out = Vec::with_capacity(y.rows * y.cols);
        for row in input.chunks_exact(x.cols) {
            for (w, &b) in weight.chunks_exact(x.cols).zip(bias) {
                out.push(row.iter().zip(w).map(|(&x, &w)| x * w).sum::<T>() + b);
            }
        }
        self.store(y, &out);
    }

    fn linear_backward_input(
        &mut self,
        params: &Vec<T>,
        dy: Array,
        linear: &Linear,
        dx: Array,
        accumulate: bool,
    ) {
        let d = self.load(dy);
        let weight = &params[linear.weight.range()];
        let mut out = if accumulate {
            self.load(dx)
        } else {
            vec![T::zero(); dx.rows * dx.cols]
        };
        for (d, out) in d.chunks_exact(dy.cols).zip(out.chunks_exact_mut(dx.cols)) {
            for (&d, w) in d.iter().zip(weight.chunks_exact(dx.cols)) {
                for (out, &w) in out.iter_mut().zip(w) {
                    *out = *out + d * w;
                }
            }
        }
        self.store(dx, &out);
    }

    fn linear_backward_params(&mut self, x: Array, dy: Array, linear: &Linear, grads: &mut Vec<T>) {
        let (input, d) = (self.load(x), self.load(dy));
        for (x_row, d_row) in input.chunks_exact(x.cols).zip(d.chunks_exact(dy.cols)) {
            let weight = &mut grads[linear.weight.range()];
            for (&d, w) in d_row.iter().zip(weight.chunks_exact_mut(x.cols)) {
                for (w, &x) in w.iter_mut().zip(x_row) {
                    *w = *w + d * x;
                }
            }
            for (b, &d) in grads[linear.bias.range()].iter_mut().zip(d_row) {
                *b = *b + d;
            }
        }
    }

    fn activation(&mut self, activation: Activation, z: Array, y: Array) {
        let out: Vec<T> = self
            .load(z)
            .iter()
            .map(|&z| activate(activation, z).0)
            .collect();
        self.store(y, &out);
    }

    fn activation_backward(&mut self, activation: Activation, z: Array, d: Array) {
        let out: Vec<T> = self
            .load(z)
            .iter()
            .zip(self.load(d))
            .map(|(&z, d)| activate(activation, z).1 * d)
            .collect();
        self.store(d, &out);
    }

    fn layer_norm(&mut self, params: &Vec<T>, x: Array, norm: &Norm, y: Array, stats: Array) {
        let (weight, bias) = (&params[norm.weight.range()], &params[norm.bias.range()]);
        let n = T::of(x.cols as f64);
        let (mut out, mut kept) = (Vec::new(), Vec::new());
        for row in self.load(x).chunks_exact(x.cols) {
            let mean = row.iter().copied().sum::<T>() / n;
            let variance = row.iter().map(|&x| (x - mean) * (x - mean)).sum::<T>() / n;
            let reciprocal = (variance + T::of(norm.eps.into())).sqrt().recip();
            for ((&x, &w), &b) in row.iter().zip(weight).zip(bias) {
                out.push((x - mean) * reciprocal * w + b);
            }
            kept.extend([mean, reciprocal]);
        }
        self.store(y, &out);
        self.store(stats, &kept);
    }

    fn layer_norm_backward(
        &mut self,
        params: &Vec<T>,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        grads: &mut Vec<T>,
    ) {
        let n = T::of(x.cols as f64);
        let (input, stats, d) = (self.load(x), self.load(stats), self.load(dy));
        let weight = &params[norm.weight.range()];
        let mut out = Vec::with_capacity(input.len());
        for (t, (row, d)) in input
            .chunks_exact(x.cols)
            .zip(d.chunks_exact(x.cols))
            .enumerate()
        {
            let (mean, reciprocal) = (stats[2 * t], stats[2 * t + 1]);
            let hat: Vec<T> = row.iter().map(|&x| (x - mean) * reciprocal).collect();
            let d_hat: Vec<T> = d.iter().zip(weight).map(|(&d, &w)| d * w).collect();
            let sum = d_hat.iter().copied().sum::<T>() / n;
            let dot = d_hat.iter().zip(&hat).map(|(&d, &h)| d * h).sum::<T>() / n;
            for (c, (&d_hat, &hat)) in d_hat.iter().zip(&hat).enumerate() {
                out.push(reciprocal * (d_hat - sum - hat * dot));
                let (w, b) = (norm.weight.offset + c, norm.bias.offset + c);
                grads[w] = grads[w] + d[c] * hat;
                grads[b] = grads[b] + d[c];
            }
        }
        self.store(dx, &out);
    }

    fn dropout(&mut self, x: Array, dropout: &Dropout, keys: &RowKeys, y: Array) {
        let out = self.dropped(x, dropout, keys);
        self.store(y, &out);
    }

    fn add(&mut self, residual: Array, x: Array, dropout: Option<(&Dropout, &RowKeys)>, y: Array) {
        let branch = match dropout {
            Some((dropout, keys)) => self.dropped(x, dropout, keys),
            None => self.load(x),
        };
        let out: Vec<T> = self
            .load(residual)
            .iter()
            .zip(branch)
            .map(|(&r, b)| r + b)
            .collect();
        self.store(y, &out);
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
        self.attend(q, k, v, heads, sequences, dropout, y, log_sum);
    }

    fn attention_backward(
        &mut self,
        qkv: [Array; 3],
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        _y: Array,
        _log_sum: Array,
        dy: Array,
        d_qkv: [Array; 3],
    ) {
        self.attend_backward(qkv, heads, sequences, dropout, dy, d_qkv);
    }

    fn gather_rows(&mut self, x: Array, rows: Ints, y: Array) {
        let input = self.load(x);
        let out: Vec<T> = self
            .ids(rows)
            .iter()
            .flat_map(|&r| input[r as usize * x.cols..][..x.cols].iter().copied())
            .collect();
        self.store(y, &out);
    }

    fn scatter_add_rows(&mut self, dy: Array, rows: Ints, dx: Array) {
        let (d, mut out) = (self.load(dy), self.load(dx));
        for (d, r) in d.chunks_exact(dy.cols).zip(self.ids(rows)) {
            for (out, &d) in out[r as usize * dy.cols..].iter_mut().zip(d) {
                *out = *out + d;
            }
        }
        self.store(dx, &out);
    }

    fn replace(&mut self, base: Ints, rows: Ints, values: Ints, y: Ints) {
        let mut out = self.ids(base);
        for (r, value) in self.ids(rows).iter().zip(self.ids(values)) {
            out[*r as usize] = value;
        }
        self.write_ints(y, &out);
    }

    fn not_equal(&mut self, a: Ints, b: Ints, y: Ints) {
        let out: Vec<u32> = self
            .ids(a)
            .iter()
            .zip(self.ids(b))
            .map(|(&a, b)| u32::from(a != b))
            .collect();
        self.write_ints(y, &out);
    }

    fn vocabulary(
        &mut self,
        params: &Vec<T>,
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

    fn vocabulary_backward(
        &mut self,
        params: &Vec<T>,
        x: Array,
        head: &Linear,
        targets: Ints,
        _log_sum: Array,
        scale: f32,
        dx: Array,
        grads: &mut Vec<T>,
    ) {
        self.log_prob_backward(params, x, head, targets, scale, dx, grads);
    }

    fn binary_cross_entropy(&mut self, logits: Array, labels: Ints, loss: Array) {
        let out: Vec<T> = self
            .load(logits)
            .iter()
            .zip(self.ids(labels))
            .map(|(&x, label)| {
                x.max(T::zero()) - x * T::of(label.into()) + (-x.abs()).exp().ln_1p()
            })
            .collect();
        self.store(loss, &out);
    }

    fn binary_cross_entropy_backward(
        &mut self,
        logits: Array,
        labels: Ints,
        scale: f32,
        d_logits: Array,
    ) {
        let out: Vec<T> = self
            .load(logits)
            .iter()
            .zip(self.ids(labels))
            .map(|(&x, label)| {
                let sigmoid = (T::one() + (-x).exp()).recip();
                T::of(scale.into()) * (sigmoid - T::of(label.into()))
            })
            .collect();
        self.store(d_logits, &out);
    }

    fn sum(&mut self, x: Array) -> f64 {
        self.load(x).iter().map(|v| v.f64()).sum()
    }

    fn squared_norms(&mut self, flat: &Vec<T>, views: &[ParamView], norms: &mut [f64]) {
        assert_eq!(views.len(), norms.len());
        for (norm, view) in norms.iter_mut().zip(views) {
            *norm = flat[view.range()].iter().map(|v| v.f64() * v.f64()).sum();
        }
    }

    fn adamw(
        &mut self,
        params: &mut Vec<T>,
        grads: &Vec<T>,
        first: &mut Vec<T>,
        second: &mut Vec<T>,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
    ) {
        let of = |v: f32| T::of(v.into());
        let (beta1, beta2) = (of(adam.beta1), of(adam.beta2));
        for update in updates {
            for i in update.view.range() {
                let g = grads[i] * of(grad_scale);
                first[i] = beta1 * first[i] + (T::one() - beta1) * g;
                second[i] = beta2 * second[i] + (T::one() - beta2) * g * g;
                let step =
                    first[i] / (second[i].sqrt() + of(adam.epsilon)) + of(update.decay) * params[i];
                params[i] = params[i] - of(update.lr) * step;
            }
        }
    }

    fn lamb(
        &mut self,
        params: &mut Vec<T>,
        grads: &mut Vec<T>,
        first: &mut Vec<T>,
        second: &mut Vec<T>,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
        adapted: &[bool],
    ) {
        let of = |v: f32| T::of(v.into());
        for (update, &adapted) in updates.iter().zip(adapted) {
            let range = update.view.range();
            // A step of AdamW at rate 1 from where the tensor stands is the direction.
            let before = params[range.clone()].to_vec();
            let whole = ParamUpdate { lr: 1.0, ..*update };
            self.adamw(params, grads, first, second, adam, grad_scale, &[whole]);
            let (mut size, mut length) = (T::zero(), T::zero());
            for (i, &p) in range.clone().zip(&before) {
                grads[i] = p - params[i];
                size = size + p * p;
                length = length + grads[i] * grads[i];
            }
            let ratio = match adapted && size > T::zero() && length > T::zero() {
                true => (size / length).sqrt(),
                false => T::one(),
            };
            for (i, p) in range.zip(before) {
                params[i] = p - of(update.lr) * ratio * grads[i];
            }
        }
    }
}
