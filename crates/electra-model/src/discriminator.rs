//! The discriminator: an encoder with a replaced token detection head.

use crate::config::ElectraConfig;
use crate::encoder::{Encoder, EncoderArrays, EncoderGradients, EncoderInput, declare_linear};
use electra_engine::backend::*;
use electra_engine::params::{Init, ParamLayout};
use electra_engine::rng::Rng;

/// The head: dense, activation, and one logit a token.
#[derive(Clone, Copy, Debug)]
pub struct ReplacedTokenHead {
    /// `[H, H]`.
    pub dense: Linear,
    /// `[1, H]`.
    pub prediction: Linear,
    /// Between them.
    pub activation: Activation,
}

impl ReplacedTokenHead {
    /// Declares the head's tensors under `prefix`.
    pub fn declare(layout: &mut ParamLayout, prefix: &str, config: &ElectraConfig) -> Self {
        let depth = config.num_hidden_layers + 2;
        let name = |part: &str| format!("{prefix}discriminator_predictions.{part}");
        let hidden = config.hidden_size;
        let init = Init::TruncatedNormal(config.initializer_range as f32);
        ReplacedTokenHead {
            prediction: declare_linear(
                layout,
                &name("dense_prediction"),
                [1, hidden],
                Init::GlorotUniform,
                depth,
            ),
            dense: declare_linear(layout, &name("dense"), [hidden, hidden], init, depth),
            activation: config.hidden_act.into(),
        }
    }
}

/// Encoder and head.
#[derive(Clone, Debug)]
pub struct Discriminator {
    /// The encoder.
    pub encoder: Encoder,
    /// The head.
    pub head: ReplacedTokenHead,
}

/// What the discriminator computes on `T` tokens.
#[derive(Clone, Debug)]
pub struct DiscriminatorArrays {
    /// The encoder's.
    pub encoder: EncoderArrays,
    dense: Array,
    activated: Array,
    /// `[T, 1]` logit of "this token was replaced".
    pub logits: Array,
    /// `[T, 1]` binary cross-entropy.
    pub loss: Array,
}

/// Gradients that pass through the discriminator.
#[derive(Clone, Copy, Debug)]
pub struct DiscriminatorGradients {
    /// The encoder's.
    pub encoder: EncoderGradients,
    logits: Array,
    dense: Array,
}

impl DiscriminatorArrays {
    /// Arrays for the head beside `encoder`'s, for up to `tokens` tokens.
    pub fn new<B: Backend>(
        backend: &mut B,
        discriminator: &Discriminator,
        encoder: EncoderArrays,
        tokens: usize,
    ) -> Self {
        let hidden = discriminator.encoder.body.spec.hidden;
        DiscriminatorArrays {
            encoder,
            dense: backend.array(tokens, hidden),
            activated: backend.array(tokens, hidden),
            logits: backend.array(tokens, 1),
            loss: backend.array(tokens, 1),
        }
    }

    /// Makes these the first `tokens` rows of `whole`.
    pub fn cut(&mut self, whole: &Self, tokens: usize) {
        self.encoder.cut(&whole.encoder, tokens, None);
        self.dense = whole.dense.first_rows(tokens);
        self.activated = whole.activated.first_rows(tokens);
        self.logits = whole.logits.first_rows(tokens);
        self.loss = whole.loss.first_rows(tokens);
    }
}

impl DiscriminatorGradients {
    /// Arrays for up to `tokens` tokens.
    pub fn new<B: Backend>(backend: &mut B, discriminator: &Discriminator, tokens: usize) -> Self {
        let hidden = discriminator.encoder.body.spec.hidden;
        DiscriminatorGradients {
            encoder: EncoderGradients::new(backend, &discriminator.encoder, tokens),
            logits: backend.array(tokens, 1),
            dense: backend.array(tokens, hidden),
        }
    }

    /// The same arrays for the first `tokens` tokens.
    pub fn first_rows(&self, tokens: usize) -> Self {
        DiscriminatorGradients {
            encoder: self.encoder.first_rows(tokens),
            logits: self.logits.first_rows(tokens),
            dense: self.dense.first_rows(tokens),
        }
    }
}

impl Discriminator {
    /// Declares a discriminator that stands alone, under the names of its state dict.
    pub fn declare(layout: &mut ParamLayout, config: &ElectraConfig) -> Self {
        let head = ReplacedTokenHead::declare(layout, "", config);
        let encoder = Encoder::declare(layout, config);
        Discriminator { encoder, head }
    }

    /// Runs encoder and head. Returns the logits, `[T, 1]`.
    pub fn forward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        input: &EncoderInput,
        arrays: &mut DiscriminatorArrays,
        rng: Option<&Rng>,
    ) -> Array {
        let hidden = self
            .encoder
            .forward(backend, params, input, &mut arrays.encoder, rng);
        backend.linear(params, hidden, &self.head.dense, arrays.dense);
        backend.activation(self.head.activation, arrays.dense, arrays.activated);
        backend.linear(
            params,
            arrays.activated,
            &self.head.prediction,
            arrays.logits,
        );
        arrays.logits
    }

    /// Adds to `grads` the gradient of `scale · Σ loss`; `labels` `[T]`, 1 where replaced.
    pub fn backward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        input: &EncoderInput,
        labels: Ints,
        scale: f32,
        arrays: &DiscriminatorArrays,
        rng: Option<&Rng>,
        d: &DiscriminatorGradients,
        grads: &mut B::Flat,
    ) {
        let head = &self.head;
        backend.binary_cross_entropy_backward(arrays.logits, labels, scale, d.logits);
        backend.linear_backward_params(arrays.activated, d.logits, &head.prediction, grads);
        backend.linear_backward_input(params, d.logits, &head.prediction, d.dense, false);
        backend.activation_backward(head.activation, arrays.dense, d.dense);
        let output = arrays.encoder.output();
        backend.linear_backward_params(output, d.dense, &head.dense, grads);
        let hidden = arrays.encoder.output_gradient(&d.encoder);
        backend.linear_backward_input(params, d.dense, &head.dense, hidden, false);
        self.encoder.backward(
            backend,
            params,
            input,
            &arrays.encoder,
            rng,
            &d.encoder,
            grads,
        );
    }
}
