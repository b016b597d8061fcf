//! The CPU backend: threads, vectors, and products over packed weights.
//!
//! Each operator gives the same bits for any number of threads, and a row or sequence the same
//! bits whatever else is in the batch: every sum has one order. Where sums go over blocks of rows, the
//! blocks follow from the shape alone.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod attention_backward;
mod buffer;
mod chain;
mod clock;
mod dropout;
mod elementwise;
mod epilogue;
mod gemm;
mod inference;
mod isa;
mod layer;
mod layer_backward;
mod layer_rows;
mod linear;
mod load;
mod math;
mod norm;
mod optimizer;
mod pack;
mod params;
mod peak;
mod pool;
mod rows;
mod simd;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod view;
mod vocabulary;
mod vocabulary_backward;

pub use buffer::Buffer;
pub use isa::Isa;
pub use params::CpuParams;
pub use pool::barrier_ns;

use crate::backend::*;
use crate::params::{ParamLayout, ParamView};
use crate::selftest::Products;
use clock::PartClock;
use gemm::Form;
use pool::Pool;
use std::ops::Range;
use view::View;

/// A flat f32 array on the CPU.
pub type Flat = Buffer;

/// In what the products of linear layers, of attention and of the vocabulary are computed. Sums,
/// statistics and softmax are f32 in each; what training keeps for backward is bf16 in bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Both sides rounded to bf16, to the nearest, summed in f32; or where [`Isa::has_f16`] says so
    /// to f16, of which up to 256 are summed before their sum is added in f32. Errors are as
    /// large. Values end at 65,504 there, and below 6e-8 is nothing: see [`Backend::loss_scale`].
    Bf16,
    /// For inference: the layers' products in bytes, a scale and an offset for each token, a
    /// scale for each output, summed exactly; all others as in `Bf16`.
    Int8,
}

/// What a token's loss weighs at most in f16, about. Its gradients by activations are 1e-2 to 1e-7 of
/// that, and such numbers are kept whole down to 6e-5, in part to 6e-8; sums over tokens may reach 65,504.
const F16_LOSS_WEIGHT: f64 = 64.0;

/// Settings of a [`Cpu`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller among them; `None` for as many as the system grants.
    pub threads: Option<usize>,
    /// Precision of products.
    pub precision: Precision,
    /// An instruction set of [`Isa::available`]; `None` for the best.
    pub isa: Option<Isa>,
}

/// Why a [`Cpu`] was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The instruction set asked for.
    #[error("this CPU has no {}; it has {}", .0.name(), Isa::available().iter().map(|i| i.name()).collect::<Vec<_>>().join(", "))]
    MissingIsa(Isa),
}

/// The CPU with its threads, for one caller.
#[derive(Debug)]
pub struct Cpu {
    pool: Pool,
    isa: Isa,
    precision: Precision,
    /// Of products, but for those of layers in inference.
    form: Form,
    /// Of products of layers in inference.
    layer_form: Form,
    /// Whether results of layers in inference were no numbers in f16.
    overflowed: bool,
    arrays: Vec<(Buffer, Form)>,
    clock: PartClock,
    ints: Vec<Vec<u32>>,
    /// Memory that the tasks of one operator share.
    left: Buffer,
    right: Buffer,
    /// What the optimizer's tasks are.
    pieces: optimizer::Pieces,
}

impl Cpu {
    /// A backend without arrays.
    pub fn new(options: CpuOptions) -> Result<Self, CpuError> {
        let available = Isa::available();
        let isa = options.isa.unwrap_or(available[0]);
        if !available.contains(&isa) {
            return Err(CpuError::MissingIsa(isa));
        }
        let threads = options.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        let form = match options.precision {
            Precision::Bf16 | Precision::Int8 if isa.has_halves() => Form::Half,
            _ => Form::F32,
        };
        Ok(Cpu {
            pool: Pool::new(threads),
            isa,
            precision: options.precision,
            form,
            layer_form: match options.precision {
                Precision::Int8 => Form::Int8,
                _ => form,
            },
            overflowed: false,
            arrays: Vec::new(),
            clock: PartClock::default(),
            ints: Vec::new(),
            left: Buffer::zeroed(0),
            right: Buffer::zeroed(0),
            pieces: optimizer::Pieces::default(),
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The precision in use: what was asked for, or what it fell back to.
    pub fn precision(&self) -> Precision {
        match self.layer_form {
            Form::F32 => Precision::F32,
            Form::Half => Precision::Bf16,
            Form::Int8 => Precision::Int8,
        }
    }

    /// In what products are computed.
    pub fn products(&self) -> Products {
        match (self.precision(), self.isa.has_f16()) {
            (Precision::F32, _) => Products::F32,
            (Precision::Bf16, false) => Products::Bf16,
            (Precision::Bf16, true) => Products::F16,
            (Precision::Int8, false) => Products::Int8,
            (Precision::Int8, true) => Products::Int8AndF16,
        }
    }

    /// What the user should know once: a precision that this CPU has not, or takes another for.
    pub fn notice(&self) -> Option<String> {
        let name = self.isa.name();
        if self.precision() != self.precision {
            return Some(format!(
                "bf16 products need AVX512_BF16 or AVX512_FP16, which {name} has not: computing \
                 in f32"
            ));
        }
        let f16 = self.products() == Products::F16;
        f16.then(|| format!("computing with {name}: f16, as exact and faster, in place of bf16"))
    }

    /// Whether layers in inference put out what is no number although products were of f16, which end
    /// at 65,504: f32 may do.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    fn view(&self, array: Array) -> View {
        let (buffer, form) = &self.arrays[array.slot as usize];
        View::new(buffer, *form, array)
    }

    /// A new array of zeros in some form.
    fn array_in(&mut self, form: Form, rows: usize, cols: usize) -> Array {
        self.arrays
            .push((Buffer::zeroed(rows * form.units(cols)), form));
        Array {
            slot: self.arrays.len() as u32 - 1,
            column: 0,
            stride: cols as u32,
            rows,
            cols,
        }
    }

    fn ids(&self, ints: Ints) -> &[u32] {
        &self.ints[ints.slot as usize][..ints.len]
    }
}

impl Backend for Cpu {
    type Params = CpuParams;
    type Flat = Flat;

    fn loss_scale(&self, weight: f64) -> f64 {
        match self.form == Form::Half && self.isa.has_f16() {
            true => (F16_LOSS_WEIGHT / weight).log2().floor().exp2(),
            false => 1.0,
        }
    }

    fn array(&mut self, rows: usize, cols: usize) -> Array {
        self.array_in(Form::F32, rows, cols)
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
        assert_eq!(values.len(), to.rows * to.cols);
        let view = self.view(to);
        for (r, row) in values.chunks_exact(to.cols.max(1)).enumerate() {
            // SAFETY: nobody else uses the array.
            unsafe { view.row_mut(r).copy_from_slice(row) };
        }
    }

    fn read(&mut self, from: Array, out: &mut [f32]) {
        assert_eq!(out.len(), from.rows * from.cols);
        let view = self.view(from);
        for (r, row) in out.chunks_exact_mut(from.cols.max(1)).enumerate() {
            // SAFETY: nobody writes to the array.
            row.copy_from_slice(unsafe { view.row(r) });
        }
    }

    fn write_ints(&mut self, to: Ints, values: &[u32]) {
        self.ints[to.slot as usize][..to.len].copy_from_slice(values);
    }

    fn read_ints(&mut self, from: Ints, out: &mut [u32]) {
        out.copy_from_slice(self.ids(from));
    }

    fn zero(&mut self, array: Array) {
        let view = self.view(array);
        self.pool.rows(array.rows, array.cols, |rows, _| {
            for r in rows {
                // SAFETY: row r is this task's.
                unsafe { view.row_mut(r).fill(0.0) };
            }
        });
    }

    fn copy(&mut self, x: Array, y: Array) {
        self.add_dropped(None, x, None, y);
    }

    fn params(&mut self, layout: &ParamLayout, values: &[f32]) -> CpuParams {
        CpuParams::new(layout, self.form, values)
    }

    fn inference_params<E>(
        &mut self,
        layout: &ParamLayout,
        fill: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<CpuParams, E> {
        self.load_params(layout, fill)
    }

    fn read_params(&mut self, params: &CpuParams, out: &mut [f32]) {
        out.copy_from_slice(params.master().as_slice());
    }

    fn flat(&mut self, len: usize) -> Flat {
        Buffer::zeroed(len)
    }

    fn write_flat(&mut self, to: &mut Flat, values: &[f32]) {
        to.as_mut_slice().copy_from_slice(values);
    }

    fn read_flat(&mut self, from: &Flat, out: &mut [f32]) {
        out.copy_from_slice(from.as_slice());
    }

    fn zero_flat(&mut self, flat: &mut Flat) {
        self.zero_all(flat);
    }

    fn embed(&mut self, params: &CpuParams, tables: &[(ParamView, Ints)], y: Array) {
        self.embed_sum(params, tables, y);
    }

    fn embed_backward(&mut self, tables: &[(ParamView, Ints)], dy: Array, grads: &mut Flat) {
        self.embed_gradient(tables, dy, grads);
    }

    fn linear(&mut self, params: &CpuParams, x: Array, linear: &Linear, y: Array) {
        self.linear_forward(params, x, linear, y);
    }

    fn linear_backward_input(
        &mut self,
        params: &CpuParams,
        dy: Array,
        linear: &Linear,
        dx: Array,
        accumulate: bool,
    ) {
        self.linear_backward(params, dy, linear, dx, accumulate);
    }

    fn linear_backward_params(&mut self, x: Array, dy: Array, linear: &Linear, grads: &mut Flat) {
        self.linear_gradients([(x, dy, linear)], grads);
    }

    fn activation(&mut self, activation: Activation, z: Array, y: Array) {
        self.activate(activation, z, y);
    }

    fn activation_backward(&mut self, activation: Activation, z: Array, d: Array) {
        self.activate_backward(activation, z, d);
    }

    fn layer_norm(&mut self, params: &CpuParams, x: Array, norm: &Norm, y: Array, stats: Array) {
        self.norm_forward(params, x, norm, y, stats);
    }

    fn layer_norm_backward(
        &mut self,
        params: &CpuParams,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        grads: &mut Flat,
    ) {
        self.norm_backward(params, x, stats, norm, dy, dx, grads);
    }

    fn dropout(&mut self, x: Array, dropout: &Dropout, keys: &RowKeys, y: Array) {
        self.add_dropped(None, x, Some((dropout, keys)), y);
    }

    fn add(&mut self, residual: Array, x: Array, dropout: Option<(&Dropout, &RowKeys)>, y: Array) {
        self.add_dropped(Some(residual), x, dropout, y);
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
        y: Array,
        log_sum: Array,
        dy: Array,
        d_qkv: [Array; 3],
    ) {
        self.attend_backward(qkv, heads, sequences, dropout, y, log_sum, dy, d_qkv);
    }

    fn gather_rows(&mut self, x: Array, rows: Ints, y: Array) {
        self.gather(x, rows, y);
    }

    fn scatter_add_rows(&mut self, dy: Array, rows: Ints, dx: Array) {
        self.scatter_add(dy, rows, dx);
    }

    fn replace(&mut self, base: Ints, rows: Ints, values: Ints, y: Ints) {
        self.replace_ids(base, rows, values, y);
    }

    fn not_equal(&mut self, a: Ints, b: Ints, y: Ints) {
        self.compare_ids(a, b, y);
    }

    fn vocabulary(
        &mut self,
        params: &CpuParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
        sample: Option<&VocabularySample>,
    ) {
        self.vocabulary_pass(
            params, x, head, targets, log_prob, log_sum, predicted, sample,
        );
    }

    fn vocabulary_backward(
        &mut self,
        params: &CpuParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_sum: Array,
        scale: f32,
        dx: Array,
        grads: &mut Flat,
    ) {
        self.log_prob_backward(params, x, head, targets, log_sum, scale, dx, grads);
    }

    fn parts(&mut self) -> Vec<(&'static str, std::time::Duration)> {
        self.clock.take()
    }

    fn layer_arrays(&mut self, spec: &LayerSpec, tokens: usize) -> LayerArrays {
        self.new_layer_arrays(spec, tokens)
    }

    fn layer_gradients(&mut self, spec: &LayerSpec, tokens: usize) -> LayerGradients {
        self.new_layer_gradients(spec, tokens)
    }

    fn row_arrays(&mut self, spec: &LayerSpec, rows: usize) -> RowArrays {
        self.new_row_arrays(spec, rows)
    }

    fn layer(
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
        self.layer_forward(params, spec, layer, sequences, dropout, rows, input, keep);
    }

    fn layer_backward(
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
        self.layer_gradient(
            params, spec, layer, sequences, dropout, rows, input, keep, d, grads,
        );
    }

    fn infer_layers(
        &mut self,
        params: &CpuParams,
        spec: &LayerSpec,
        layers: &[LayerParams],
        sequences: &Sequences,
        rows: Option<&OutputRows>,
        input: Array,
        work: &[LayerArrays; 2],
    ) -> Array {
        let output = work[0].output;
        self.copy(input, output);
        let wanted = rows.map(|rows| (rows.rows, work[1].output.first_rows(rows.rows.len)));
        self.infer(params, spec, layers, sequences, output, wanted);
        wanted.map_or(output, |(_, output)| output)
    }

    fn binary_cross_entropy(&mut self, logits: Array, labels: Ints, loss: Array) {
        self.cross_entropy(logits, labels, loss);
    }

    fn binary_cross_entropy_backward(
        &mut self,
        logits: Array,
        labels: Ints,
        scale: f32,
        d_logits: Array,
    ) {
        self.cross_entropy_backward(logits, labels, scale, d_logits);
    }

    fn sum(&mut self, x: Array) -> f64 {
        self.total(x)
    }

    fn squared_norms(&mut self, flat: &Flat, views: &[ParamView], norms: &mut [f64]) {
        self.norms(flat, views.iter().copied(), norms);
    }

    fn adamw(
        &mut self,
        params: &mut CpuParams,
        grads: &Flat,
        first: &mut Flat,
        second: &mut Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
    ) {
        self.adam_step(params, grads, first, second, adam, grad_scale, updates);
    }

    fn lamb(
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
        self.lamb_step(
            params, grads, first, second, adam, grad_scale, updates, adapted,
        );
    }
}
