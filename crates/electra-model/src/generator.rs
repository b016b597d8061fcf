//! The generator: an encoder with a masked language model head, its output table tied to the word
//! embeddings.

use crate::config::ElectraConfig;
use crate::encoder::{
    Encoder, EncoderArrays, EncoderGradients, EncoderInput, declare_linear, declare_norm,
};
use electra_engine::backend::*;
use electra_engine::params::{Init, ParamLayout, ParamView};
use electra_engine::rng::Rng;

/// The head: dense to the embedding size, GELU, norm, then the table with a bias of its own.
#[derive(Clone, Copy, Debug)]
pub struct MaskedLmHead {
    /// `[E, H]`.
    pub dense: Linear,
    /// Over `E`.
    pub norm: Norm,
    /// `[V, E]`.
    pub vocabulary: Linear,
}

impl MaskedLmHead {
    /// Declares the head's tensors under `prefix`; `word` are the word embeddings it is tied to.
    pub fn declare(
        layout: &mut ParamLayout,
        prefix: &str,
        config: &ElectraConfig,
    ) -> HeadWithoutTable {
        let depth = config.num_hidden_layers + 2;
        let bias_name = format!("{prefix}generator_lm_head.bias");
        HeadWithoutTable {
            dense: declare_linear(
                layout,
                &format!("{prefix}generator_predictions.dense"),
                [config.embedding_size, config.hidden_size],
                Init::TruncatedNormal(config.initializer_range as f32),
                depth,
            ),
            norm: declare_norm(
                layout,
                &format!("{prefix}generator_predictions.LayerNorm"),
                config.embedding_size,
                config.layer_norm_eps,
                depth,
            ),
            bias: layout.push(&bias_name, &[config.vocab_size], Init::Zeros, depth),
        }
    }
}

/// A head whose table is not declared yet: embeddings come last in a layout.
#[derive(Clone, Copy, Debug)]
pub struct HeadWithoutTable {
    dense: Linear,
    norm: Norm,
    bias: ParamView,
}

impl HeadWithoutTable {
    /// Ties the head under `prefix` to the word embeddings declared under the same prefix.
    pub fn tie(self, layout: &mut ParamLayout, prefix: &str, word: ParamView) -> MaskedLmHead {
        layout.alias(
            &format!("{prefix}generator_lm_head.weight"),
            &format!("{prefix}electra.embeddings.word_embeddings.weight"),
        );
        layout.register_linear(word);
        MaskedLmHead {
            dense: self.dense,
            norm: self.norm,
            vocabulary: Linear {
                weight: word,
                bias: self.bias,
            },
        }
    }
}

/// Encoder and head.
#[derive(Clone, Debug)]
pub struct Generator {
    /// The encoder.
    pub encoder: Encoder,
    /// The head.
    pub head: MaskedLmHead,
}

/// What the generator computes on `T` tokens, `M` of them masked.
#[derive(Clone, Debug)]
pub struct GeneratorArrays {
    /// The encoder's.
    pub encoder: EncoderArrays,
    /// Of the masked rows, which are all that is read of the encoder's output.
    rows: RowArrays,
    /// `[M, E]` before GELU, after it, after the norm.
    dense: Array,
    activated: Array,
    normed: Array,
    stats: Array,
    /// `[M, 1]` log-probability of each target.
    pub log_prob: Array,
    log_sum: Array,
}

/// Gradients that pass through the generator.
#[derive(Clone, Copy, Debug)]
pub struct GeneratorGradients {
    /// The encoder's.
    pub encoder: EncoderGradients,
    dense: Array,
    normed: Array,
}

impl GeneratorArrays {
    /// Arrays for the head beside `encoder`'s, for up to `masked` rows.
    pub fn new<B: Backend>(
        backend: &mut B,
        generator: &Generator,
        encoder: EncoderArrays,
        masked: usize,
    ) -> Self {
        let size = generator.head.dense.weight.rows;
        GeneratorArrays {
            encoder,
            rows: generator.encoder.row_arrays(backend, masked),
            dense: backend.array(masked, size),
            activated: backend.array(masked, size),
            normed: backend.array(masked, size),
            stats: backend.array(masked, 2),
            log_prob: backend.array(masked, 1),
            log_sum: backend.array(masked, 1),
        }
    }

    /// Makes these the first `tokens` tokens of `whole`, of which `rows`, ascending and with these keys,
    /// are masked.
    pub fn cut(&mut self, whole: &Self, tokens: usize, rows: Ints, keys: RowKeys) {
        let arrays = whole.rows.first_rows(rows.len);
        let rows = OutputRows { rows, keys, arrays };
        self.encoder.cut(&whole.encoder, tokens, Some(rows));
        self.cut_head(whole, rows.rows.len);
    }

    /// Makes those of the head the first `masked` rows of `whole`.
    pub fn cut_head(&mut self, whole: &Self, masked: usize) {
        self.dense = whole.dense.first_rows(masked);
        self.activated = whole.activated.first_rows(masked);
        self.normed = whole.normed.first_rows(masked);
        self.stats = whole.stats.first_rows(masked);
        self.log_prob = whole.log_prob.first_rows(masked);
        self.log_sum = whole.log_sum.first_rows(masked);
    }
}

impl GeneratorGradients {
    /// Arrays for up to `tokens` tokens and `masked` masked rows.
    pub fn new<B: Backend>(
        backend: &mut B,
        generator: &Generator,
        tokens: usize,
        masked: usize,
    ) -> Self {
        let size = generator.head.dense.weight.rows;
        GeneratorGradients {
            encoder: EncoderGradients::new(backend, &generator.encoder, tokens),
            dense: backend.array(masked, size),
            normed: backend.array(masked, size),
        }
    }

    /// The same arrays for the first `tokens` tokens and `masked` masked rows.
    pub fn first_rows(&self, tokens: usize, masked: usize) -> Self {
        GeneratorGradients {
            encoder: self.encoder.first_rows(tokens),
            dense: self.dense.first_rows(masked),
            normed: self.normed.first_rows(masked),
        }
    }
}

impl Generator {
    /// Declares a generator that stands alone, under the names of its state dict.
    pub fn declare(layout: &mut ParamLayout, config: &ElectraConfig) -> Self {
        let head = MaskedLmHead::declare(layout, "", config);
        let encoder = Encoder::declare(layout, config);
        let head = head.tie(layout, "", encoder.embeddings.word);
        Generator { encoder, head }
    }

    /// Runs encoder and head up to the vocabulary, on the masked rows that `arrays` were cut for.
    pub fn forward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        input: &EncoderInput,
        arrays: &mut GeneratorArrays,
        rng: Option<&Rng>,
    ) {
        let hidden = self
            .encoder
            .forward(backend, params, input, &mut arrays.encoder, rng);
        self.head_forward(backend, params, hidden, arrays);
    }

    /// The head alone, on rows of the encoder's output `[M, H]`. Returns the vocabulary's input,
    /// `[M, E]`.
    fn head_forward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        hidden: Array,
        arrays: &GeneratorArrays,
    ) -> Array {
        backend.linear(params, hidden, &self.head.dense, arrays.dense);
        backend.activation(Activation::Gelu, arrays.dense, arrays.activated);
        backend.layer_norm(
            params,
            arrays.activated,
            &self.head.norm,
            arrays.normed,
            arrays.stats,
        );
        arrays.normed
    }

    /// Head and vocabulary on rows of the encoder's output `[M, H]`: logits `[M, V]`.
    pub fn logits<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        hidden: Array,
        arrays: &GeneratorArrays,
        logits: Array,
    ) {
        let x = self.head_forward(backend, params, hidden, arrays);
        backend.linear(params, x, &self.head.vocabulary, logits);
    }

    /// Log-probabilities of `targets` into `arrays.log_prob`, and what else is asked for, after
    /// [`forward`](Self::forward).
    pub fn vocabulary<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        targets: Ints,
        arrays: &GeneratorArrays,
        predicted: Option<Ints>,
        sample: Option<&VocabularySample>,
    ) {
        backend.vocabulary(
            params,
            arrays.normed,
            &self.head.vocabulary,
            targets,
            arrays.log_prob,
            arrays.log_sum,
            predicted,
            sample,
        );
    }

    /// Adds to `grads` the gradient of `− scale · Σ log_prob`.
    pub fn backward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        input: &EncoderInput,
        targets: Ints,
        scale: f32,
        arrays: &GeneratorArrays,
        rng: Option<&Rng>,
        d: &GeneratorGradients,
        grads: &mut B::Flat,
    ) {
        let head = &self.head;
        backend.vocabulary_backward(
            params,
            arrays.normed,
            &head.vocabulary,
            targets,
            arrays.log_sum,
            scale,
            d.normed,
            grads,
        );
        backend.layer_norm_backward(
            params,
            arrays.activated,
            arrays.stats,
            &head.norm,
            d.normed,
            d.dense,
            grads,
        );
        backend.activation_backward(Activation::Gelu, arrays.dense, d.dense);
        let (output, d_output) = (
            arrays.encoder.output(),
            arrays.encoder.output_gradient(&d.encoder),
        );
        backend.linear_backward_params(output, d.dense, &head.dense, grads);
        backend.linear_backward_input(params, d.dense, &head.dense, d_output, false);
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
