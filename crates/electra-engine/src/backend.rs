//! The contract: every operator once, as a forward and backward pair over packed batches.
//!
//! Two storeys. Below stand the plain operators that each backend has. Above stand methods
//! composed of them (a block, a layer, a run of layers), which a backend may override to fuse.
//! [`Reference`](crate::reference::Reference) is the contract in its plainest form and the oracle
//! that every other backend is tested against.
//!
//! `T` is the number of tokens of a packed batch, `S` of its sequences, `H` the hidden size, `M`
//! the number of masked rows or of those that are read, `V` of vocabulary entries, `E` the embedding size.

mod layer;

pub(crate) use layer::BehindAttention;
pub use layer::{
    LayerArrays, LayerDropout, LayerGradients, LayerParams, LayerSpec, OutputRows, RowArrays,
};

use crate::params::{ParamLayout, ParamView};
use crate::rng::Rng;
use std::ops::Range;
use std::time::Duration;

/// A matrix of activations on a device: a handle, valid on the backend that made it.
///
/// What a backend keeps behind it (f32, bf16, int8 with scales) is its own business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    pub(crate) slot: u32,
    pub(crate) column: u32,
    pub(crate) stride: u32,
    /// Rows in use; at most as many as it was made with.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl Array {
    /// The first `rows` rows.
    pub fn first_rows(self, rows: usize) -> Array {
        assert!(
            rows <= self.rows,
            "{rows} rows of an array of {}",
            self.rows
        );
        Array { rows, ..self }
    }

    /// The columns `first .. first + cols` of every row.
    pub fn columns(self, first: usize, cols: usize) -> Array {
        assert!(first + cols <= self.cols);
        Array {
            column: self.column + first as u32,
            cols,
            ..self
        }
    }
}

/// A vector of `u32` on a device: a handle, valid on the backend that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ints {
    pub(crate) slot: u32,
    /// Elements in use; at most as many as it was made with.
    pub len: usize,
}

impl Ints {
    /// The first `len` elements.
    pub fn first(self, len: usize) -> Ints {
        assert!(
            len <= self.len,
            "{len} elements of a vector of {}",
            self.len
        );
        Ints { len, ..self }
    }
}

/// What identifies a row to the random numbers: its example in the global batch and its position.
#[derive(Clone, Copy, Debug)]
pub struct RowKeys {
    /// `[T]` number of the row's sequence in the global batch.
    pub example: Ints,
    /// `[T]` position of the row in its sequence.
    pub position: Ints,
}

/// The sequences of a packed batch.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    /// `[S + 1]` first row of each sequence, and `T`.
    pub cu_seqlens: Ints,
    /// Keys of the rows for random numbers.
    pub keys: RowKeys,
    /// Length of the longest sequence.
    pub longest: usize,
}

/// A dropout: decisions are 16 random bits each, a function of (seed, step, example, position,
/// site, column), so that backward and recomputation draw the same.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that a value is dropped, in [0, 1).
    pub rate: f32,
    /// The step's random numbers.
    pub rng: Rng,
    /// Which dropout of the network this is.
    pub site: u32,
}

impl Dropout {
    /// A value is dropped where its 16 bits are below this.
    pub fn threshold(&self) -> u32 {
        (f64::from(self.rate) * 65536.0).round() as u32
    }

    /// Factor on the values that are kept, so that the expectation stays.
    pub fn scale(&self) -> f64 {
        65536.0 / f64::from(65536 - self.threshold())
    }

    /// The Philox block, word and half that decide on column `index`: 128 columns share sixteen
    /// blocks so that sixteen lanes can work side by side.
    #[inline(always)]
    pub fn place(index: usize) -> (u32, usize, u32) {
        let within = index % 128;
        (
            (index / 128 * 16 + within % 16) as u32,
            within / 32,
            (within / 16 % 2) as u32,
        )
    }
}

/// Activation function of a feed-forward block or head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)` with the error function (Hendrycks and Gimpel 2016).
    Gelu,
    /// Its tanh form, `gelu_new`.
    GeluTanh,
}

/// A linear layer's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: ParamView,
    /// `[out]`.
    pub bias: ParamView,
}

/// A layer norm's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[H]`.
    pub weight: ParamView,
    /// `[H]`.
    pub bias: ParamView,
    /// Added to the variance.
    pub eps: f32,
}

/// A draw of one entry of the vocabulary a row, from softmax(logits / temperature).
///
/// By inversion: the first entry at which the running sum of probabilities passes the row's
/// uniform number, a function of (seed, step, example, position).
#[derive(Clone, Copy, Debug)]
pub struct VocabularySample {
    /// Above 0.
    pub temperature: f32,
    /// `[M]` an entry of each row that is never drawn.
    pub exclude: Option<Ints>,
    /// The step's random numbers.
    pub rng: Rng,
    /// Keys of all tokens for random numbers.
    pub keys: RowKeys,
    /// `[M]` which of the tokens each row is.
    pub rows: Ints,
    /// `[M]` gets the entries.
    pub sampled: Ints,
}

/// What `adamw` does to one range of the flat array.
#[derive(Clone, Copy, Debug)]
pub struct ParamUpdate {
    /// The range.
    pub view: ParamView,
    /// Learning rate.
    pub lr: f32,
    /// Weight decay, 0 where none applies.
    pub decay: f32,
}

/// LAMB's factor on a tensor's learning rate, from the sums of squares of its parameters and of the
/// direction.
pub(crate) fn trust_ratio(params: f64, direction: f64) -> f32 {
    if params > 0.0 && direction > 0.0 {
        (params / direction).sqrt() as f32
    } else {
        1.0
    }
}

/// Settings of Adam that hold for all parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
}

impl Default for Adam {
    /// The values of the published system.
    fn default() -> Self {
        Adam {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-6,
        }
    }
}

/// A device, with everything one caller has on it: arrays and threads.
///
/// Handles belong to the backend that made them. Shapes that do not fit are a bug of the program
/// and panic; nothing a user types reaches them unchecked.
pub trait Backend {
    /// Parameters in the forms that operators read; immutable while they run.
    type Params;
    /// A flat f32 array of the layout's length: gradients, moments.
    type Flat;

    /// What losses are multiplied by in training, beside a weight of which `weight` > 0 is the greatest, so
    /// that their gradients stay inside the numbers that products are computed in; a power of two.
    /// Gradients are this many times too large until the optimizer's step. Where one of them overflows,
    /// less may do.
    fn loss_scale(&self, _weight: f64) -> f64 {
        1.0
    }

    // ---- memory -------------------------------------------------------------------------

    /// A new array of zeros, `[rows, cols]`.
    fn array(&mut self, rows: usize, cols: usize) -> Array;
    /// A new vector of zeros.
    fn ints(&mut self, len: usize) -> Ints;
    /// Frees every array and vector; the handles must not be used again.
    fn release_arrays(&mut self);
    /// Waits until all that was asked for is done, on devices that work behind the caller's back.
    fn wait(&mut self) {}

    /// Copies `values`, row-major `[rows, cols]`, to the device.
    fn write(&mut self, to: Array, values: &[f32]);
    /// Copies an array to `out`, row-major `[rows, cols]`.
    fn read(&mut self, from: Array, out: &mut [f32]);
    /// Copies `values` to the device.
    fn write_ints(&mut self, to: Ints, values: &[u32]);
    /// Copies a vector to `out`.
    fn read_ints(&mut self, from: Ints, out: &mut [u32]);
    /// Sets every element to zero.
    fn zero(&mut self, array: Array);
    /// `y = x`.
    fn copy(&mut self, x: Array, y: Array);

    /// Takes parameters to the device and packs those that are multiplied with.
    fn params(&mut self, layout: &ParamLayout, values: &[f32]) -> Self::Params;
    /// Parameters for inference alone. `fill` is given ranges of the flat array, in order, that
    /// cut no tensor, and writes the values of each one's tensors. A backend may keep of a weight
    /// only what products read: these parameters are neither trained nor read back.
    ///
    /// # Errors
    /// `fill`'s.
    fn inference_params<E>(
        &mut self,
        layout: &ParamLayout,
        mut fill: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self::Params, E> {
        let mut values = vec![0.0; layout.len()];
        fill(0..layout.len(), &mut values)?;
        Ok(self.params(layout, &values))
    }
    /// Copies the parameters to `out`, of the layout's length.
    fn read_params(&mut self, params: &Self::Params, out: &mut [f32]);
    /// A new flat array of `len` zeros.
    fn flat(&mut self, len: usize) -> Self::Flat;
    /// Copies `values` to the device.
    fn write_flat(&mut self, to: &mut Self::Flat, values: &[f32]);
    /// Copies a flat array to `out`.
    fn read_flat(&mut self, from: &Self::Flat, out: &mut [f32]);
    /// Sets a flat array to zero.
    fn zero_flat(&mut self, flat: &mut Self::Flat);

    // ---- operators ----------------------------------------------------------------------

    /// `y[t] = Σ_k table_k[ids_k[t]]`; `tables[k]` is `[n_k, E]`, every id below `n_k`.
    fn embed(&mut self, params: &Self::Params, tables: &[(ParamView, Ints)], y: Array);
    /// Adds `dy` to the gradient of each row that was read.
    fn embed_backward(&mut self, tables: &[(ParamView, Ints)], dy: Array, grads: &mut Self::Flat);

    /// `y = x Wᵀ + b`; x `[T, in]`, y `[T, out]`.
    fn linear(&mut self, params: &Self::Params, x: Array, linear: &Linear, y: Array);
    /// `dx = dy W`, or `dx += dy W`.
    fn linear_backward_input(
        &mut self,
        params: &Self::Params,
        dy: Array,
        linear: &Linear,
        dx: Array,
        accumulate: bool,
    );
    /// Adds `dyᵀ x` to the weight's gradient and the column sums of `dy` to the bias's.
    fn linear_backward_params(
        &mut self,
        x: Array,
        dy: Array,
        linear: &Linear,
        grads: &mut Self::Flat,
    );

    /// `y = f(z)`, element by element.
    fn activation(&mut self, activation: Activation, z: Array, y: Array);
    /// `d = f'(z) d`, in place.
    fn activation_backward(&mut self, activation: Activation, z: Array, d: Array);

    /// `y = (x − mean) / sqrt(variance + eps) · weight + bias` over each row; stats `[T, 2]` keeps
    /// the mean and the reciprocal deviation.
    fn layer_norm(&mut self, params: &Self::Params, x: Array, norm: &Norm, y: Array, stats: Array);
    /// Sets dx and adds to the gradients of weight and bias. `x` and `stats` are forward's.
    fn layer_norm_backward(
        &mut self,
        params: &Self::Params,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        grads: &mut Self::Flat,
    );

    /// `y = dropout(x)`; its backward is itself on the gradient. `x` and `y` may be one array.
    fn dropout(&mut self, x: Array, dropout: &Dropout, keys: &RowKeys, y: Array);
    /// `y = residual + dropout(x)`; without `dropout`, `y = residual + x`.
    fn add(&mut self, residual: Array, x: Array, dropout: Option<(&Dropout, &RowKeys)>, y: Array);

    /// Softmax attention within each sequence: `y = dropout(softmax(q kᵀ / √d)) v`, head by head.
    ///
    /// q, k, v, y: `[T, heads · d]`; log_sum `[T, heads]` keeps the log of each row's sum of
    /// exponentials.
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
    );
    /// Sets dq, dk, dv. `y` and `log_sum` are forward's.
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
    );

    /// `y[m] = x[rows[m]]`.
    fn gather_rows(&mut self, x: Array, rows: Ints, y: Array);
    /// `dx[rows[m]] += dy[m]`; the rows are distinct.
    fn scatter_add_rows(&mut self, dy: Array, rows: Ints, dx: Array);

    /// `y = base`, then `y[rows[m]] = values[m]`; the rows are distinct.
    fn replace(&mut self, base: Ints, rows: Ints, values: Ints, y: Ints);
    /// `y[i] = 1` where `a[i] ≠ b[i]`, else 0.
    fn not_equal(&mut self, a: Ints, b: Ints, y: Ints);

    /// One pass over the vocabulary, without an array of `[M, V]`: the log-probability of each
    /// row's target under softmax, and what else is asked for.
    ///
    /// x `[M, E]`; head `[V, E]` with bias; log_prob and log_sum (of the exponentials of the
    /// logits) `[M, 1]`. `predicted` gets the most probable entry (the lowest of equals); `sample`
    /// says what to draw.
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
    );
    /// Backward of `− scale · Σ log_prob`: sets dx and adds to the gradients of the head.
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
    );

    /// Binary cross-entropy of `sigmoid(logits)`: loss, logits `[T, 1]`, labels 0 or 1.
    fn binary_cross_entropy(&mut self, logits: Array, labels: Ints, loss: Array);
    /// Gradient of `scale · Σ loss` by the logits.
    fn binary_cross_entropy_backward(
        &mut self,
        logits: Array,
        labels: Ints,
        scale: f32,
        d_logits: Array,
    );

    /// Sum of all elements.
    fn sum(&mut self, x: Array) -> f64;
    /// Sum of squares of each of `views`, into `norms` of the same length.
    fn squared_norms(&mut self, flat: &Self::Flat, views: &[ParamView], norms: &mut [f64]);
    /// One step of AdamW as the published system takes it: no bias correction, decay inside the
    /// update.
    ///
    /// With `g = grad_scale · grad`: `m = β1 m + (1 − β1) g`, `v = β2 v + (1 − β2) g²`,
    /// `p −= lr (m / (√v + ε) + decay · p)`. What is packed is packed anew. The ranges of `updates`
    /// follow each other in the flat array, and none overlaps another.
    fn adamw(
        &mut self,
        params: &mut Self::Params,
        grads: &Self::Flat,
        first: &mut Self::Flat,
        second: &mut Self::Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
    );

    /// One step of LAMB (You and others, 2019, algorithm 2), like [`adamw`](Backend::adamw) without
    /// bias correction: the direction `u = m / (√v + ε) + decay · p` is found as there, and
    /// `p −= lr · r · u`. Where `adapted` says so, `r = ‖p‖ / ‖u‖` over the whole tensor, or 1 where
    /// one of both is 0; elsewhere it is 1. `grads` are left with the directions.
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
    );

    // ---- composed -----------------------------------------------------------------------

    /// Of a backend that overrides methods below: time of their parts since the last call, added up
    /// over its threads. The first call begins.
    fn parts(&mut self) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// What [`layer`](Backend::layer) keeps of up to `tokens` tokens. `output` and the statistics
    /// are f32; the others may have the form of the backend's products, and only `layer` and
    /// `layer_backward` use them.
    fn layer_arrays(&mut self, spec: &LayerSpec, tokens: usize) -> LayerArrays {
        LayerArrays {
            qkv: self.array(tokens, 3 * spec.hidden),
            context: self.array(tokens, spec.hidden),
            log_sum: self.array(tokens, spec.heads),
            attention_sum: self.array(tokens, spec.hidden),
            attention_stats: self.array(tokens, 2),
            attention_normed: self.array(tokens, spec.hidden),
            intermediate: self.array(tokens, spec.intermediate),
            activated: self.array(tokens, spec.intermediate),
            output_sum: self.array(tokens, spec.hidden),
            output_stats: self.array(tokens, 2),
            output: self.array(tokens, spec.hidden),
        }
    }

    /// What [`layer_backward`](Backend::layer_backward) works in for up to `tokens` tokens.
    /// `hidden` is f32; the others may have the form of the backend's products.
    fn layer_gradients(&mut self, spec: &LayerSpec, tokens: usize) -> LayerGradients {
        LayerGradients {
            hidden: self.array(tokens, spec.hidden),
            residual: self.array(tokens, spec.hidden),
            attention_branch: self.array(tokens, spec.hidden),
            output_branch: self.array(tokens, spec.hidden),
            qkv: self.array(tokens, 3 * spec.hidden),
            intermediate: self.array(tokens, spec.intermediate),
        }
    }

    /// What a layer of which up to `rows` rows are read works in. `input` and `d_hidden` are f32; the
    /// others may have the form of the backend's products.
    fn row_arrays(&mut self, spec: &LayerSpec, rows: usize) -> RowArrays {
        RowArrays {
            input: self.array(rows, spec.hidden),
            context: self.array(rows, spec.hidden),
            d_hidden: self.array(rows, spec.hidden),
            d_context: self.array(rows, spec.hidden),
        }
    }

    /// An encoder layer: attention and feed-forward, each with residual, then norm. With `rows`, only
    /// these rows of the output are computed, and `keep` is
    /// [`with_output_rows`](LayerArrays::with_output_rows).
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
        let hidden = spec.hidden;
        self.linear(params, input, &layer.qkv, keep.qkv);
        self.attention(
            keep.qkv.columns(0, hidden),
            keep.qkv.columns(hidden, hidden),
            keep.qkv.columns(2 * hidden, hidden),
            spec.heads,
            sequences,
            dropout.map(|d| &d.attention),
            keep.context,
            keep.log_sum,
        );
        let behind = BehindAttention::gathered(self, rows, sequences, input, keep);
        let (input, context, keys) = (behind.input, behind.context, &behind.keys);
        // The branch is written where the layer's output will stand, and is gone by then.
        let branch = keep.output;
        self.linear(params, context, &layer.attention_output, branch);
        let drop = dropout.map(|d| (&d.attention_output, keys));
        self.add(input, branch, drop, keep.attention_sum);
        self.layer_norm(
            params,
            keep.attention_sum,
            &layer.attention_norm,
            keep.attention_normed,
            keep.attention_stats,
        );
        self.linear(
            params,
            keep.attention_normed,
            &layer.intermediate,
            keep.intermediate,
        );
        self.activation(spec.activation, keep.intermediate, keep.activated);
        self.linear(params, keep.activated, &layer.output, branch);
        let drop = dropout.map(|d| (&d.output, keys));
        self.add(keep.attention_normed, branch, drop, keep.output_sum);
        self.layer_norm(
            params,
            keep.output_sum,
            &layer.output_norm,
            keep.output,
            keep.output_stats,
        );
    }

    /// Backward of [`layer`](Backend::layer): `d.hidden` holds the gradient by the output and
    /// gets the gradient by the input; with `rows`, the former stands in their `d_hidden`. What was kept
    /// may be gone afterwards, but for the output.
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
        let BehindAttention { context, keys, .. } =
            BehindAttention::new(rows, sequences, input, keep);
        let (hidden, keys, all, d) = (spec.hidden, &keys, d, &d.behind_attention(rows));
        self.layer_norm_backward(
            params,
            keep.output_sum,
            keep.output_stats,
            &layer.output_norm,
            d.hidden,
            d.residual,
            grads,
        );
        let branch = match dropout {
            Some(dropout) => {
                self.dropout(d.residual, &dropout.output, keys, d.output_branch);
                d.output_branch
            }
            None => d.residual,
        };
        self.linear_backward_params(keep.activated, branch, &layer.output, grads);
        self.linear_backward_input(params, branch, &layer.output, d.intermediate, false);
        self.activation_backward(spec.activation, keep.intermediate, d.intermediate);
        self.linear_backward_params(
            keep.attention_normed,
            d.intermediate,
            &layer.intermediate,
            grads,
        );
        self.linear_backward_input(
            params,
            d.intermediate,
            &layer.intermediate,
            d.residual,
            true,
        );
        self.layer_norm_backward(
            params,
            keep.attention_sum,
            keep.attention_stats,
            &layer.attention_norm,
            d.residual,
            d.hidden,
            grads,
        );
        let branch = match dropout {
            Some(dropout) => {
                self.dropout(
                    d.hidden,
                    &dropout.attention_output,
                    keys,
                    d.attention_branch,
                );
                d.attention_branch
            }
            None => d.hidden,
        };
        self.linear_backward_params(context, branch, &layer.attention_output, grads);
        self.linear_backward_input(params, branch, &layer.attention_output, d.residual, false);
        all.scatter(self, rows);
        let d = all;
        let thirds = |a: Array| [0, 1, 2].map(|i| a.columns(i * hidden, hidden));
        self.attention_backward(
            thirds(keep.qkv),
            spec.heads,
            sequences,
            dropout.map(|d| &d.attention),
            keep.context,
            keep.log_sum,
            d.residual,
            thirds(d.qkv),
        );
        self.linear_backward_params(input, d.qkv, &layer.qkv, grads);
        self.linear_backward_input(params, d.qkv, &layer.qkv, d.hidden, true);
    }

    /// A run of layers, at least one, each reading the one before; returns the last output, with `rows`
    /// these rows of it. They are the last layer's alone.
    fn layers(
        &mut self,
        params: &Self::Params,
        spec: &LayerSpec,
        layers: &[LayerParams],
        sequences: &Sequences,
        dropout: &[LayerDropout],
        rows: Option<&OutputRows>,
        input: Array,
        keep: &[LayerArrays],
    ) -> Array {
        let mut x = input;
        for (i, (layer, keep)) in layers.iter().zip(keep).enumerate() {
            let rows = rows.filter(|_| i + 1 == layers.len());
            let dropout = dropout.get(i);
            self.layer(params, spec, layer, sequences, dropout, rows, x, keep);
            x = keep.output;
        }
        x
    }

    /// A run of layers, at least one, of which only the last output is kept; returns it, with `rows`
    /// these rows of it. `work` are two layers' arrays for all rows that may share all but their outputs.
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
        let mut x = input;
        for (i, layer) in layers.iter().enumerate() {
            let rows = rows.filter(|_| i + 1 == layers.len());
            let keep = match rows {
                Some(rows) => work[i % 2].with_output_rows(rows.rows.len),
                None => work[i % 2],
            };
            self.layer(params, spec, layer, sequences, None, rows, x, &keep);
            x = keep.output;
        }
        x
    }
}
