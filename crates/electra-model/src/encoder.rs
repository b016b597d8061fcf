//! The encoder: embeddings with a size of their own, a projection, and post-norm layers.

use crate::config::{Activation as ConfiguredActivation, ElectraConfig};
use electra_engine::backend::*;
use electra_engine::params::{Init, ParamLayout, ParamView};
use electra_engine::rng::Rng;

/// The embedding tables and their norm.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings {
    /// `[V, E]`.
    pub word: ParamView,
    /// `[positions, E]`.
    pub position: ParamView,
    /// `[types, E]`.
    pub token_type: ParamView,
    /// Norm of their sum.
    pub norm: Norm,
}

/// Names of the embeddings' tensors below `electra.embeddings.`.
const EMBEDDING_NAMES: [&str; 5] = [
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
];

impl Embeddings {
    /// Declares the tensors under `prefix`.
    pub fn declare(layout: &mut ParamLayout, prefix: &str, config: &ElectraConfig) -> Self {
        let name = |i: usize| format!("{prefix}electra.embeddings.{}", EMBEDDING_NAMES[i]);
        let size = config.embedding_size;
        let init = Init::TruncatedNormal(config.initializer_range as f32);
        let table = |layout: &mut ParamLayout, i: usize, rows: usize| {
            let view = layout.push(&name(i), &[rows, size], init, 0);
            layout.register_table(view);
            view
        };
        Embeddings {
            word: table(layout, 0, config.vocab_size),
            position: table(layout, 1, config.max_position_embeddings),
            token_type: table(layout, 2, config.type_vocab_size),
            norm: Norm {
                weight: layout.push(&name(3), &[size], Init::Ones, 0),
                bias: layout.push(&name(4), &[size], Init::Zeros, 0),
                eps: config.layer_norm_eps as f32,
            },
        }
    }

    /// Gives the tensors under `existing` second names under `prefix`.
    pub fn alias(layout: &mut ParamLayout, prefix: &str, existing: &str) {
        for name in EMBEDDING_NAMES {
            layout.alias(
                &format!("{prefix}electra.embeddings.{name}"),
                &format!("{existing}electra.embeddings.{name}"),
            );
        }
    }
}

/// Declares a linear layer `[out, inputs]` under `name`.
pub(crate) fn declare_linear(
    layout: &mut ParamLayout,
    name: &str,
    [out, inputs]: [usize; 2],
    init: Init,
    depth: usize,
) -> Linear {
    let weight = layout.push(&format!("{name}.weight"), &[out, inputs], init, depth);
    layout.register_linear(weight);
    Linear {
        weight,
        bias: layout.push(&format!("{name}.bias"), &[out], Init::Zeros, depth),
    }
}

/// Declares a layer norm under `name`.
pub(crate) fn declare_norm(
    layout: &mut ParamLayout,
    name: &str,
    size: usize,
    eps: f64,
    depth: usize,
) -> Norm {
    Norm {
        weight: layout.push(&format!("{name}.weight"), &[size], Init::Ones, depth),
        bias: layout.push(&format!("{name}.bias"), &[size], Init::Zeros, depth),
        eps: eps as f32,
    }
}

impl From<ConfiguredActivation> for Activation {
    fn from(activation: ConfiguredActivation) -> Self {
        match activation {
            ConfiguredActivation::Gelu => Activation::Gelu,
            ConfiguredActivation::GeluNew => Activation::GeluTanh,
        }
    }
}

/// Projection and layers; what comes after the embeddings.
#[derive(Clone, Debug)]
pub struct Body {
    /// Shape of every layer.
    pub spec: LayerSpec,
    /// `[H, E]`, only where the sizes differ.
    pub project: Option<Linear>,
    /// First to last.
    pub layers: Vec<LayerParams>,
}

impl Body {
    /// Declares the tensors under `prefix`, the last layer first, as backward finishes them.
    pub fn declare(layout: &mut ParamLayout, prefix: &str, config: &ElectraConfig) -> Self {
        let spec = LayerSpec {
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            intermediate: config.intermediate_size,
            activation: config.hidden_act.into(),
        };
        let mut layers: Vec<LayerParams> = (0..config.num_hidden_layers)
            .rev()
            .map(|i| declare_layer(layout, prefix, i, &spec, config))
            .collect();
        layers.reverse();
        let project = config.has_projection().then(|| {
            declare_linear(
                layout,
                &format!("{prefix}electra.embeddings_project"),
                [config.hidden_size, config.embedding_size],
                Init::GlorotUniform,
                0,
            )
        });
        Body {
            spec,
            project,
            layers,
        }
    }
}

fn declare_layer(
    layout: &mut ParamLayout,
    prefix: &str,
    index: usize,
    spec: &LayerSpec,
    config: &ElectraConfig,
) -> LayerParams {
    let base = format!("{prefix}electra.encoder.layer.{index}");
    let (hidden, intermediate, depth) = (spec.hidden, spec.intermediate, index + 1);
    let init = Init::TruncatedNormal(config.initializer_range as f32);
    let eps = config.layer_norm_eps;
    let output_norm = declare_norm(
        layout,
        &format!("{base}.output.LayerNorm"),
        hidden,
        eps,
        depth,
    );
    let output = declare_linear(
        layout,
        &format!("{base}.output.dense"),
        [hidden, intermediate],
        init,
        depth,
    );
    let first = declare_linear(
        layout,
        &format!("{base}.intermediate.dense"),
        [intermediate, hidden],
        init,
        depth,
    );
    let attention_norm = declare_norm(
        layout,
        &format!("{base}.attention.output.LayerNorm"),
        hidden,
        eps,
        depth,
    );
    let attention_output = declare_linear(
        layout,
        &format!("{base}.attention.output.dense"),
        [hidden, hidden],
        init,
        depth,
    );
    let joined = |layout: &mut ParamLayout, kind: &str, shape: &[usize], init: Init| {
        let names = ["query", "key", "value"].map(|n| format!("{base}.attention.self.{n}.{kind}"));
        layout.push_adjacent(&names.each_ref().map(String::as_str), shape, init, depth)
    };
    let weight = joined(layout, "weight", &[hidden, hidden], init);
    let bias = joined(layout, "bias", &[hidden], Init::Zeros);
    for weight in [weight, attention_output.weight, first.weight, output.weight] {
        layout.register_layer_linear(weight);
    }
    LayerParams {
        qkv: Linear { weight, bias },
        attention_output,
        attention_norm,
        intermediate: first,
        output,
        output_norm,
    }
}

/// A whole encoder.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// Tables, its own or shared with another network.
    pub embeddings: Embeddings,
    /// The rest.
    pub body: Body,
    /// Dropout of hidden values in training.
    pub hidden_dropout: f32,
    /// Dropout of attention probabilities in training.
    pub attention_dropout: f32,
    /// Number of this network among those trained together: keeps their random numbers apart.
    pub network: u32,
    /// Whether training keeps of each layer its output alone, and computes the rest again for
    /// backward (Chen and others, 2016): less memory, another forward pass, the same bits.
    pub checkpointing: bool,
}

/// Token ids and where their sequences lie, on a device.
#[derive(Clone, Copy, Debug)]
pub struct EncoderInput {
    /// `[T]`.
    pub token_ids: Ints,
    /// `[T]`.
    pub type_ids: Ints,
    /// `[T]`.
    pub position_ids: Ints,
    /// The sequences.
    pub sequences: Sequences,
}

/// What the encoder computes, and backward reads again.
///
/// Arrays are made once for the largest batch, the whole; a second set of the same handles is
/// [`cut`](EncoderArrays::cut) to each batch.
#[derive(Clone, Debug)]
pub struct EncoderArrays {
    sum: Array,
    stats: Array,
    normed: Array,
    projected: Option<Array>,
    layers: Layers,
    /// Whether layers share all but their outputs, which are then computed again for backward.
    shared: bool,
    /// Rows of the output that are read, where not all are.
    rows: Option<OutputRows>,
    /// One a layer, none where dropout is off.
    dropouts: Vec<LayerDropout>,
}

/// The arrays that layers work in.
#[derive(Clone, Debug)]
enum Layers {
    /// For each layer what backward reads.
    Kept(Vec<LayerArrays>),
    /// Two layers' arrays in turn.
    Working(Box<[LayerArrays; 2]>),
}

/// Gradients that pass through an encoder.
#[derive(Clone, Copy, Debug)]
pub struct EncoderGradients {
    layers: LayerGradients,
    normed: Array,
    sum: Array,
}

impl EncoderArrays {
    fn with_layers<B: Backend>(
        backend: &mut B,
        encoder: &Encoder,
        tokens: usize,
        layers: Layers,
        shared: bool,
    ) -> Self {
        let size = encoder.embeddings.word.cols;
        EncoderArrays {
            sum: backend.array(tokens, size),
            stats: backend.array(tokens, 2),
            normed: backend.array(tokens, size),
            projected: encoder
                .body
                .project
                .map(|_| backend.array(tokens, encoder.body.spec.hidden)),
            dropouts: Vec::with_capacity(encoder.body.layers.len()),
            layers,
            shared,
            rows: None,
        }
    }

    /// For training on up to `tokens` tokens: every layer keeps what backward reads, or with
    /// [`checkpointing`](Encoder::checkpointing) its output.
    pub fn for_training<B: Backend>(backend: &mut B, encoder: &Encoder, tokens: usize) -> Self {
        let (spec, shared) = (&encoder.body.spec, encoder.checkpointing);
        let mut layers: Vec<LayerArrays> = Vec::with_capacity(encoder.body.layers.len());
        for _ in &encoder.body.layers {
            let arrays = match layers.first().filter(|_| shared) {
                Some(&first) => LayerArrays {
                    output: backend.array(tokens, spec.hidden),
                    ..first
                },
                None => backend.layer_arrays(spec, tokens),
            };
            layers.push(arrays);
        }
        Self::with_layers(backend, encoder, tokens, Layers::Kept(layers), shared)
    }

    /// For inference on up to `tokens` tokens: nothing is kept but the last output.
    pub fn for_inference<B: Backend>(backend: &mut B, encoder: &Encoder, tokens: usize) -> Self {
        let spec = &encoder.body.spec;
        let even = backend.layer_arrays(spec, tokens);
        let odd = LayerArrays {
            output: backend.array(tokens, spec.hidden),
            ..even
        };
        let layers = Layers::Working(Box::new([even, odd]));
        Self::with_layers(backend, encoder, tokens, layers, true)
    }

    /// Makes these the first `tokens` rows of `whole`, in the memory that they have, for an output of
    /// all rows or of `rows` alone.
    pub fn cut(&mut self, whole: &Self, tokens: usize, rows: Option<OutputRows>) {
        self.rows = rows;
        self.sum = whole.sum.first_rows(tokens);
        self.stats = whole.stats.first_rows(tokens);
        self.normed = whole.normed.first_rows(tokens);
        self.projected = whole.projected.map(|a| a.first_rows(tokens));
        match (&mut self.layers, &whole.layers) {
            (Layers::Kept(kept), Layers::Kept(whole)) => {
                kept.clear();
                kept.extend(whole.iter().map(|l| l.first_rows(tokens)));
                if let (Some(last), Some(rows)) = (kept.last_mut(), rows) {
                    *last = last.with_output_rows(rows.rows.len);
                }
            }
            (Layers::Working(work), Layers::Working(whole)) => {
                **work = whole.each_ref().map(|l| l.first_rows(tokens));
            }
            _ => unreachable!("both are for training or for inference"),
        }
    }

    /// The first place in forward order with a value that is not finite: "the embeddings" or
    /// "layer k".
    pub fn first_not_finite<B: Backend>(&self, backend: &mut B) -> Option<String> {
        if !backend.sum(self.layer_input()).is_finite() {
            return Some("the embeddings".to_owned());
        }
        let mut outputs = self.kept().iter().map(|layer| layer.output);
        let layer = outputs.position(|output| !backend.sum(output).is_finite())?;
        Some(format!("layer {layer}"))
    }

    /// Of training, the output of the last layer: `[T, H]`, or `[M, H]` where some rows are read alone.
    pub fn output(&self) -> Array {
        self.kept().last().map_or(self.layer_input(), |l| l.output)
    }

    /// Where the gradient by [`output`](Self::output) is to stand before
    /// [`backward`](Encoder::backward).
    pub fn output_gradient(&self, d: &EncoderGradients) -> Array {
        self.rows
            .map_or(d.layers.hidden, |rows| rows.arrays.d_hidden)
    }

    /// Of training, what each layer keeps.
    fn kept(&self) -> &[LayerArrays] {
        match &self.layers {
            Layers::Kept(kept) => kept,
            Layers::Working(_) => &[],
        }
    }

    fn layer_input(&self) -> Array {
        self.projected.unwrap_or(self.normed)
    }
}

impl EncoderGradients {
    /// Arrays for up to `tokens` tokens.
    pub fn new<B: Backend>(backend: &mut B, encoder: &Encoder, tokens: usize) -> Self {
        let size = encoder.embeddings.word.cols;
        EncoderGradients {
            layers: backend.layer_gradients(&encoder.body.spec, tokens),
            normed: backend.array(tokens, size),
            sum: backend.array(tokens, size),
        }
    }

    /// The same arrays for the first `tokens` tokens.
    pub fn first_rows(&self, tokens: usize) -> Self {
        EncoderGradients {
            layers: self.layers.first_rows(tokens),
            normed: self.normed.first_rows(tokens),
            sum: self.sum.first_rows(tokens),
        }
    }
}

impl Encoder {
    /// Declares an encoder that stands alone, under the names of its state dict.
    pub fn declare(layout: &mut ParamLayout, config: &ElectraConfig) -> Self {
        let body = Body::declare(layout, "", config);
        let embeddings = Embeddings::declare(layout, "", config);
        Encoder::new(embeddings, body, config, 0)
    }

    /// An encoder of parts declared before.
    pub fn new(embeddings: Embeddings, body: Body, config: &ElectraConfig, network: u32) -> Self {
        Encoder {
            embeddings,
            body,
            hidden_dropout: config.hidden_dropout_prob as f32,
            attention_dropout: config.attention_probs_dropout_prob as f32,
            network,
            checkpointing: false,
        }
    }

    /// Arrays for up to `rows` rows of the output that are read alone.
    pub fn row_arrays<B: Backend>(&self, backend: &mut B, rows: usize) -> RowArrays {
        backend.row_arrays(&self.body.spec, rows)
    }

    fn tables(&self, input: &EncoderInput) -> [(ParamView, Ints); 3] {
        let e = &self.embeddings;
        [
            (e.word, input.token_ids),
            (e.position, input.position_ids),
            (e.token_type, input.type_ids),
        ]
    }

    fn dropout(&self, rate: f32, rng: &Rng, place: usize) -> Dropout {
        Dropout {
            rate,
            rng: *rng,
            site: self.network << 16 | place as u32,
        }
    }

    fn embedding_dropout(&self, rng: Option<&Rng>) -> Option<Dropout> {
        let rng = rng.filter(|_| self.hidden_dropout > 0.0)?;
        Some(self.dropout(self.hidden_dropout, rng, 0))
    }

    fn layer_dropouts(&self, rng: Option<&Rng>) -> impl Iterator<Item = LayerDropout> {
        let on = self.hidden_dropout > 0.0 || self.attention_dropout > 0.0;
        let layers = rng.filter(|_| on).into_iter();
        layers.flat_map(|rng| {
            (0..self.body.layers.len()).map(|i| LayerDropout {
                attention: self.dropout(self.attention_dropout, rng, 3 * i + 1),
                attention_output: self.dropout(self.hidden_dropout, rng, 3 * i + 2),
                output: self.dropout(self.hidden_dropout, rng, 3 * i + 3),
            })
        })
    }

    /// Runs the encoder; `rng` turns dropout on. Returns the last hidden states: `[T, H]`, or `[M, H]`
    /// of the rows that `arrays` were cut for.
    ///
    /// `arrays` have the batch's number of rows.
    pub fn forward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        input: &EncoderInput,
        arrays: &mut EncoderArrays,
        rng: Option<&Rng>,
    ) -> Array {
        arrays.dropouts.clear();
        arrays.dropouts.extend(self.layer_dropouts(rng));
        backend.embed(params, &self.tables(input), arrays.sum);
        backend.layer_norm(
            params,
            arrays.sum,
            &self.embeddings.norm,
            arrays.normed,
            arrays.stats,
        );
        if let Some(dropout) = self.embedding_dropout(rng) {
            let keys = &input.sequences.keys;
            backend.dropout(arrays.normed, &dropout, keys, arrays.normed);
        }
        if let (Some(project), Some(projected)) = (&self.body.project, arrays.projected) {
            backend.linear(params, arrays.normed, project, projected);
        }
        let body = &self.body;
        match &arrays.layers {
            Layers::Kept(kept) => backend.layers(
                params,
                &body.spec,
                &body.layers,
                &input.sequences,
                &arrays.dropouts,
                arrays.rows.as_ref(),
                arrays.layer_input(),
                kept,
            ),
            Layers::Working(work) => backend.infer_layers(
                params,
                &body.spec,
                &body.layers,
                &input.sequences,
                arrays.rows.as_ref(),
                arrays.layer_input(),
                work,
            ),
        }
    }

    /// Adds to `grads` from the gradient by the output in
    /// [`output_gradient`](EncoderArrays::output_gradient). The other arguments are those of
    /// [`forward`](Encoder::forward).
    pub fn backward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        input: &EncoderInput,
        arrays: &EncoderArrays,
        rng: Option<&Rng>,
        d: &EncoderGradients,
        grads: &mut B::Flat,
    ) {
        let (kept, sequences) = (arrays.kept(), &input.sequences);
        let (spec, layers) = (&self.body.spec, &self.body.layers);
        for (i, layer) in layers.iter().enumerate().rev() {
            let layer_input = match i {
                0 => arrays.layer_input(),
                _ => kept[i - 1].output,
            };
            let (dropout, keep) = (arrays.dropouts.get(i), &kept[i]);
            let last = i + 1 == layers.len();
            let rows = arrays.rows.as_ref().filter(|_| last);
            // The last layer's arrays are as forward left them.
            if arrays.shared && !last {
                backend.layer(
                    params,
                    spec,
                    layer,
                    sequences,
                    dropout,
                    None,
                    layer_input,
                    keep,
                );
            }
            backend.layer_backward(
                params,
                spec,
                layer,
                sequences,
                dropout,
                rows,
                layer_input,
                keep,
                &d.layers,
                grads,
            );
        }
        let d_normed = match &self.body.project {
            Some(project) => {
                backend.linear_backward_params(arrays.normed, d.layers.hidden, project, grads);
                backend.linear_backward_input(params, d.layers.hidden, project, d.normed, false);
                d.normed
            }
            None => d.layers.hidden,
        };
        if let Some(dropout) = self.embedding_dropout(rng) {
            backend.dropout(d_normed, &dropout, &input.sequences.keys, d_normed);
        }
        backend.layer_norm_backward(
            params,
            arrays.sum,
            arrays.stats,
            &self.embeddings.norm,
            d_normed,
            d.sum,
            grads,
        );
        backend.embed_backward(&self.tables(input), d.sum, grads);
    }
}
