//! The CUDA backend: kernels of our own, compiled when first used, and products by cuBLASLt.
//!
//! In bf16 activations are kept in bf16 too, but for narrow arrays (statistics, logits, losses),
//! which are f32; sums, statistics and softmax are f32 inside every kernel, and so are the master
//! parameters, gradients and moments. No sum uses atomics: the same input gives the same bits.

mod attention;
mod device;
#[cfg(feature = "cuda")]
mod driver;
mod elementwise;
mod embedding;
#[cfg(any(test, feature = "cuda-emulator"))]
mod emulator;
mod error;
mod kernels;
#[cfg(any(test, feature = "cuda"))]
mod libraries;
mod linear;
mod memory;
mod norm;
#[cfg(any(test, feature = "cuda"))]
mod nvrtc;
mod optimizer;
#[cfg(feature = "cuda")]
mod peak;
#[cfg(feature = "cuda")]
mod products;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use device::Memory;
#[cfg(feature = "cuda")]
pub use driver::{CudaDevice, devices};
pub use error::{CudaError, catch};
pub use memory::CudaParams;

use crate::backend::*;
use crate::params::{ParamLayout, ParamView};
use device::Device;
use error::OrFail;
use kernels::Kind;
use memory::{Scratch, Slot};
use std::rc::Rc;

/// A flat f32 array on the device.
pub type Flat = Memory;

/// In what products are computed and activations kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// f32, with products whose sides are rounded to 19 bits.
    Tf32,
    /// bf16, summed in f32.
    Bf16,
}

/// A CUDA device, for one caller.
pub struct Cuda {
    device: Rc<dyn Device>,
    precision: Precision,
    slots: Vec<Slot>,
    ints: Vec<Memory>,
    scratch: Scratch,
    /// The views whose chunks lie in [`memory::Use::NormChunks`].
    norm_chunks: Vec<ParamView>,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {:?}", self.device.name(), self.precision)
    }
}

impl Cuda {
    fn with_device(device: Rc<dyn Device>, precision: Precision) -> Cuda {
        Cuda {
            scratch: Scratch::new(&device),
            device,
            precision,
            slots: Vec::new(),
            ints: Vec::new(),
            norm_chunks: Vec::new(),
        }
    }

    /// A backend without arrays on device number `ordinal`.
    ///
    /// # Errors
    ///
    /// No driver, no such device, a library that is missing, kernels that do not compile.
    #[cfg(feature = "cuda")]
    pub fn new(ordinal: usize, precision: Precision) -> Result<Cuda, CudaError> {
        let device = driver::Driver::open(ordinal, precision == Precision::Tf32)?;
        Ok(Cuda::with_device(Rc::new(device), precision))
    }

    /// A backend on the emulated device, for tests; `None`, with the reason printed, where there is
    /// no C++ compiler.
    #[cfg(any(test, feature = "cuda-emulator"))]
    pub fn emulated(precision: Precision) -> Option<Cuda> {
        let device = emulator::Emulator::new(emulator::Order::Rising, true)?;
        Some(Cuda::with_device(Rc::new(device), precision))
    }

    /// The device's number and name.
    pub fn device_name(&self) -> String {
        self.device.name()
    }

    /// Products so far that cuBLASLt had nothing for, and that our own kernel computed, which is
    /// many times slower: a line each.
    pub fn refused_products(&self) -> Vec<String> {
        self.device.refused()
    }

    /// The precision in use.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Elements of arrays with this many columns.
    fn kind(&self, cols: usize) -> Kind {
        match self.precision {
            Precision::Bf16 if cols > NARROW => Kind::Bf16,
            _ => Kind::F32,
        }
    }
}

/// Arrays of at most this many columns are f32 whatever the precision: statistics, logits, losses.
const NARROW: usize = 32;

impl Backend for Cuda {
    type Params = CudaParams;
    type Flat = Flat;

    fn array(&mut self, rows: usize, cols: usize) -> Array {
        self.new_array(rows, cols)
    }

    fn ints(&mut self, len: usize) -> Ints {
        self.ints.push(Memory::zeroed(&self.device, 4 * len));
        Ints {
            slot: self.ints.len() as u32 - 1,
            len,
        }
    }

    fn release_arrays(&mut self) {
        self.slots.clear();
        self.ints.clear();
    }

    fn wait(&mut self) {
        self.device.wait().or_fail();
    }

    fn parts(&mut self) -> Vec<(&'static str, std::time::Duration)> {
        self.device.times().or_fail()
    }

    fn write(&mut self, to: Array, values: &[f32]) {
        self.write_array(to, values);
    }

    fn read(&mut self, from: Array, out: &mut [f32]) {
        self.read_array(from, out);
    }

    fn write_ints(&mut self, to: Ints, values: &[u32]) {
        self.write_ids(to, values);
    }

    fn read_ints(&mut self, from: Ints, out: &mut [u32]) {
        self.read_ids(from, out);
    }

    fn zero(&mut self, array: Array) {
        self.zero_array(array);
    }

    fn copy(&mut self, x: Array, y: Array) {
        self.copy_array(x, y);
    }

    fn params(&mut self, layout: &ParamLayout, values: &[f32]) -> CudaParams {
        self.new_params(layout, values)
    }

    fn read_params(&mut self, params: &CudaParams, out: &mut [f32]) {
        self.download(&params.master, out);
    }

    fn flat(&mut self, len: usize) -> Flat {
        Memory::zeroed(&self.device, 4 * len)
    }

    fn write_flat(&mut self, to: &mut Flat, values: &[f32]) {
        self.upload(to, values);
    }

    fn read_flat(&mut self, from: &Flat, out: &mut [f32]) {
        self.download(from, out);
    }

    fn zero_flat(&mut self, flat: &mut Flat) {
        self.clear(flat);
    }

    fn embed(&mut self, params: &CudaParams, tables: &[(ParamView, Ints)], y: Array) {
        self.embed_sum(params, tables, y);
    }

    fn embed_backward(&mut self, tables: &[(ParamView, Ints)], dy: Array, grads: &mut Flat) {
        self.embed_gradient(tables, dy, grads);
    }

    fn linear(&mut self, params: &CudaParams, x: Array, linear: &Linear, y: Array) {
        self.linear_forward(params, x, linear, y);
    }

    fn linear_backward_input(
        &mut self,
        params: &CudaParams,
        dy: Array,
        linear: &Linear,
        dx: Array,
        accumulate: bool,
    ) {
        self.linear_backward(params, dy, linear, dx, accumulate);
    }

    fn linear_backward_params(&mut self, x: Array, dy: Array, linear: &Linear, grads: &mut Flat) {
        self.linear_gradient(x, dy, linear, grads);
    }

    fn activation(&mut self, activation: Activation, z: Array, y: Array) {
        self.activate(activation, z, None, y);
    }

    fn activation_backward(&mut self, activation: Activation, z: Array, d: Array) {
        self.activate(activation, z, Some(d), d);
    }

    fn layer_norm(&mut self, params: &CudaParams, x: Array, norm: &Norm, y: Array, stats: Array) {
        self.norm_forward(params, None, x, None, x, norm, y, stats);
    }

    fn layer_norm_backward(
        &mut self,
        params: &CudaParams,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        grads: &mut Flat,
    ) {
        self.norm_backward(params, x, stats, norm, dy, dx, None, grads);
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
        params: &CudaParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
        sample: Option<&VocabularySample>,
    ) {
        self.log_prob(
            params, x, head, targets, log_prob, log_sum, predicted, sample,
        );
    }

    fn vocabulary_backward(
        &mut self,
        params: &CudaParams,
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
        self.norms(flat, views, norms);
    }

    fn adamw(
        &mut self,
        params: &mut CudaParams,
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
        params: &mut CudaParams,
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

    fn layer(
        &mut self,
        params: &CudaParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        rows: Option<&OutputRows>,
        input: Array,
        keep: &LayerArrays,
    ) {
        self.fused_layer(params, spec, layer, sequences, dropout, rows, input, keep);
    }

    fn layer_backward(
        &mut self,
        params: &CudaParams,
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
        self.fused_layer_backward(
            params, spec, layer, sequences, dropout, rows, input, keep, d, grads,
        );
    }
}
