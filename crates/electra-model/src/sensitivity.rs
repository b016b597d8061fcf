//! What each linear layer's products in bytes do to an encoder's output, by itself.
//!
//! Activations with a few large channels leave all others few steps, so a layer that reads them
//! loses more than bytes need cost. Which layers these are shows only on text.

use crate::encoder::{Encoder, EncoderArrays};
use crate::files::{FileError, ModelDir};
use crate::inference::{BatchError, InputArrays, check, load_params};
use electra_engine::backend::{Backend, LayerParams};
use electra_engine::batch::PackedBatch;
use electra_engine::params::{ParamLayout, ParamView};

/// The relative deviation above which a layer's products are better not computed in bytes.
///
/// Of trained encoders the layers lie between 0.001 and 0.02; those that read an outlier channel
/// above 0.1, several times what all others together cost.
pub const THRESHOLD: f64 = 0.05;

/// What can keep an encoder from being measured.
#[derive(Debug, thiserror::Error)]
pub enum SensitivityError {
    /// The model's files.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The sample does not fit the model.
    #[error(transparent)]
    Sample(#[from] BatchError),
}

/// What bytes cost in some of an encoder's linear layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// The layers that are computed in one product.
    pub modules: Vec<String>,
    /// Root mean square of the last hidden states' deviation, divided by that of the states.
    pub deviation: f64,
}

/// An encoder whose layers can be put into bytes one by one.
pub struct Probe<B: Backend> {
    encoder: Encoder,
    params: B::Params,
    set_exact: fn(&mut B::Params, ParamView, bool),
    input: InputArrays,
    arrays: EncoderArrays,
    batch: PackedBatch,
}

impl<B: Backend> Probe<B> {
    /// Takes the encoder in `dir` and a sample of text to a backend that computes in bytes, and all
    /// else best in f32. `set_exact` says of a weight whether it is kept out of bytes.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or not finite; a sample that does not fit.
    pub fn new(
        backend: &mut B,
        dir: &ModelDir,
        batch: PackedBatch,
        set_exact: fn(&mut B::Params, ParamView, bool),
    ) -> Result<Self, SensitivityError> {
        check(dir.config(), &batch)?;
        let mut layout = ParamLayout::new();
        let encoder = Encoder::declare(&mut layout, dir.config());
        let tokens = batch.tokens();
        Ok(Probe {
            params: load_params(backend, dir, &mut layout)?,
            set_exact,
            input: InputArrays::new(backend, [tokens, batch.sequences()]),
            arrays: EncoderArrays::for_inference(backend, &encoder, tokens),
            encoder,
            batch,
        })
    }

    /// The last hidden states `[T, H]` with all layers exact but those for which `in_bytes` holds,
    /// given the number of the layer and the names of its modules.
    pub fn states(&mut self, backend: &mut B, in_bytes: impl Fn(&[String]) -> bool) -> Vec<f32> {
        for (modules, weight) in self.products() {
            (self.set_exact)(&mut self.params, weight, !in_bytes(&modules));
        }
        let input = self.input.upload(backend, &self.batch);
        let out = self
            .encoder
            .forward(backend, &self.params, &input, &self.arrays, None);
        let mut states = vec![0.0; out.rows * out.cols];
        backend.read(out, &mut states);
        states
    }

    /// What bytes cost in each product by itself, in the order of the layers.
    pub fn effects(
        &mut self,
        backend: &mut B,
        mut progress: impl FnMut(usize, usize),
    ) -> Vec<Effect> {
        let exact = self.states(backend, |_| false);
        let products = self.products();
        let count = products.len();
        let mut effects = Vec::with_capacity(count);
        for (i, (modules, _)) in products.into_iter().enumerate() {
            let states = self.states(backend, |these| these == modules);
            effects.push(Effect {
                deviation: relative_deviation(&states, &exact),
                modules,
            });
            progress(i + 1, count);
        }
        effects
    }

    /// The products of every layer: the modules that are computed in one, and their weight.
    fn products(&self) -> Vec<(Vec<String>, ParamView)> {
        let of_layer = |(i, layer): (usize, &LayerParams)| {
            let name = |module: &str| format!("electra.encoder.layer.{i}.{module}");
            let qkv = ["query", "key", "value"].map(|n| name(&format!("attention.self.{n}")));
            [
                (qkv.to_vec(), layer.qkv.weight),
                (
                    vec![name("attention.output.dense")],
                    layer.attention_output.weight,
                ),
                (vec![name("intermediate.dense")], layer.intermediate.weight),
                (vec![name("output.dense")], layer.output.weight),
            ]
        };
        self.encoder
            .body
            .layers
            .iter()
            .enumerate()
            .flat_map(of_layer)
            .collect()
    }
}

/// Root mean square of the differences, divided by that of `exact`.
pub fn relative_deviation(values: &[f32], exact: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let differences: f64 = values.iter().zip(exact).map(|(a, b)| square(a - b)).sum();
    let size: f64 = exact.iter().copied().map(square).sum();
    (differences / size.max(f64::MIN_POSITIVE)).sqrt()
}
