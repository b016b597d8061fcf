//! A loaded encoder without a head.

use super::{BatchError, Workspace, check, load_params};
use crate::config::ElectraConfig;
use crate::encoder::{Encoder, EncoderArrays};
use crate::files::{FileError, ModelDir};
use crate::init::initial_values;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_engine::params::ParamLayout;
use std::convert::Infallible;

/// An encoder that gives its last hidden states.
#[derive(Debug)]
pub struct EncoderModel<B: Backend> {
    config: ElectraConfig,
    network: Encoder,
    params: B::Params,
}

/// A caller's arrays for an [`EncoderModel`].
pub type EncoderWorkspace = Workspace<EncoderArrays>;

impl<B: Backend> EncoderModel<B> {
    /// Takes the encoder of the model in `dir` to the backend; every kind of model has one.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or not finite.
    pub fn load(backend: &mut B, dir: &ModelDir) -> Result<Self, FileError> {
        let config = dir.config().clone();
        let mut layout = ParamLayout::new();
        let network = Encoder::declare(&mut layout, &config);
        Ok(EncoderModel {
            config,
            network,
            params: load_params(backend, dir, &mut layout)?,
        })
    }

    /// An encoder of these sizes, which [`ElectraConfig::validate`] accepts, with the weights that
    /// training begins with.
    pub fn untrained(backend: &mut B, config: &ElectraConfig, seed: u64) -> Self {
        let mut layout = ParamLayout::new();
        let network = Encoder::declare(&mut layout, config);
        let values = initial_values(&layout, seed);
        let Ok(params) = backend.inference_params(&layout, |part, out| {
            out.copy_from_slice(&values[part]);
            Ok::<(), Infallible>(())
        });
        EncoderModel {
            config: config.clone(),
            network,
            params,
        }
    }

    /// Sizes of the network.
    pub fn config(&self) -> &ElectraConfig {
        &self.config
    }

    /// Writes the last hidden states to `out`, `[T, H]` row-major; it gets the length that it
    /// needs.
    ///
    /// # Errors
    /// A token, segment or position that the model has no row for.
    pub fn hidden_states(
        &self,
        backend: &mut B,
        workspace: &mut EncoderWorkspace,
        batch: &PackedBatch,
        out: &mut Vec<f32>,
    ) -> Result<(), BatchError> {
        check(&self.config, batch)?;
        out.resize(batch.tokens() * self.config.hidden_size, 0.0);
        if out.is_empty() {
            return Ok(());
        }
        let network = &self.network;
        let (input, whole, arrays) = workspace.upload(backend, batch, |backend, tokens| {
            EncoderArrays::for_inference(backend, network, tokens)
        });
        arrays.cut(whole, batch.tokens(), None);
        let hidden = network.forward(backend, &self.params, &input, arrays, None);
        backend.read(hidden, out);
        Ok(())
    }
}
