//! Generator and discriminator trained together by replaced token detection.
//!
//! Loss = `gen_weight · mean over masked rows of −log p(target)`
//! `+ disc_weight · mean over all tokens of binary cross-entropy(replaced?)`
//! (Clark et al. 2020, equation 4; the reference averages both over the whole batch).

use crate::config::{ConfigError, ElectraConfig};
use crate::discriminator::{
    Discriminator, DiscriminatorArrays, DiscriminatorGradients, ReplacedTokenHead,
};
use crate::encoder::{Body, Embeddings, Encoder, EncoderArrays, EncoderInput};
use crate::generator::{Generator, GeneratorArrays, GeneratorGradients, MaskedLmHead};
use electra_engine::backend::*;
use electra_engine::batch::PackedBatch;
use electra_engine::params::ParamLayout;
use electra_engine::rng::Rng;

/// Why a generator and a discriminator cannot be trained together.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// One of the configurations is wrong by itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What is shared has two sizes.
    #[error(
        "generator and discriminator share what \"{key}\" sizes, but it is {generator} in one and \
         {discriminator} in the other; make them equal or share less"
    )]
    Disagreement {
        /// Key of `config.json`.
        key: &'static str,
        /// The generator's value.
        generator: usize,
        /// The discriminator's value.
        discriminator: usize,
    },
}

/// What the two networks share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The embedding tables and their norm: the reference's default.
    Embeddings,
    /// Nothing (`untied_generator_embeddings`).
    Nothing,
    /// The whole encoder (`untied_generator = false`).
    Encoder,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Generator and discriminator.
    ReplacedTokens(Sharing),
    /// A discriminator whose replacements come from elsewhere (`uniform_generator`).
    GivenReplacements,
    /// A masked language model alone (`electra_objective = false`).
    MaskedLm,
}

/// Prefix of the generator's names among parameters trained together.
pub const GENERATOR: &str = "generator.";
/// Prefix of the discriminator's.
pub const DISCRIMINATOR: &str = "discriminator.";

/// The networks of a pre-training run and the layout of their parameters.
#[derive(Clone, Debug)]
pub struct Pretraining {
    /// Every parameter under its prefixed names.
    pub layout: ParamLayout,
    /// Absent with [`Objective::GivenReplacements`].
    pub generator: Option<Generator>,
    /// Absent with [`Objective::MaskedLm`].
    pub discriminator: Option<Discriminator>,
}

impl Pretraining {
    /// Whether both networks keep layers' outputs alone; see [`Encoder::checkpointing`].
    pub fn set_checkpointing(&mut self, on: bool) {
        let generator = self.generator.as_mut().map(|g| &mut g.encoder);
        let discriminator = self.discriminator.as_mut().map(|d| &mut d.encoder);
        for encoder in generator.into_iter().chain(discriminator) {
            encoder.checkpointing = on;
        }
    }

    /// Declares the networks. Where they share, their configurations must agree.
    pub fn new(
        objective: Objective,
        generator: &ElectraConfig,
        discriminator: &ElectraConfig,
    ) -> Result<Self, PairError> {
        generator.validate()?;
        discriminator.validate()?;
        let mut layout = ParamLayout::new();
        let layout_ref = &mut layout;
        let (generator, discriminator) = match objective {
            Objective::ReplacedTokens(sharing) => {
                let (g, d) = declare_pair(layout_ref, sharing, generator, discriminator)?;
                (Some(g), Some(d))
            }
            Objective::GivenReplacements => {
                let head = ReplacedTokenHead::declare(layout_ref, DISCRIMINATOR, discriminator);
                let body = Body::declare(layout_ref, DISCRIMINATOR, discriminator);
                let embeddings = Embeddings::declare(layout_ref, DISCRIMINATOR, discriminator);
                let encoder = Encoder::new(embeddings, body, discriminator, 0);
                (None, Some(Discriminator { encoder, head }))
            }
            Objective::MaskedLm => {
                let head = MaskedLmHead::declare(layout_ref, GENERATOR, generator);
                let body = Body::declare(layout_ref, GENERATOR, generator);
                let embeddings = Embeddings::declare(layout_ref, GENERATOR, generator);
                let head = head.tie(layout_ref, GENERATOR, embeddings.word);
                let encoder = Encoder::new(embeddings, body, generator, 1);
                (Some(Generator { encoder, head }), None)
            }
        };
        Ok(Pretraining {
            layout,
            generator,
            discriminator,
        })
    }
}

fn declare_pair(
    layout: &mut ParamLayout,
    sharing: Sharing,
    generator: &ElectraConfig,
    discriminator: &ElectraConfig,
) -> Result<(Generator, Discriminator), PairError> {
    require_agreement(sharing, generator, discriminator)?;
    let d_head = ReplacedTokenHead::declare(layout, DISCRIMINATOR, discriminator);
    let d_body = Body::declare(layout, DISCRIMINATOR, discriminator);
    let g_head = MaskedLmHead::declare(layout, GENERATOR, generator);
    let g_body = match sharing {
        Sharing::Encoder => {
            let encoder_names: Vec<String> = layout
                .params()
                .iter()
                .flat_map(|p| p.names.iter())
                .filter_map(|name| name.strip_prefix(DISCRIMINATOR))
                .filter(|name| name.starts_with("electra."))
                .map(str::to_owned)
                .collect();
            for name in encoder_names {
                layout.alias(
                    &format!("{GENERATOR}{name}"),
                    &format!("{DISCRIMINATOR}{name}"),
                );
            }
            d_body.clone()
        }
        _ => Body::declare(layout, GENERATOR, generator),
    };
    let d_embeddings = Embeddings::declare(layout, DISCRIMINATOR, discriminator);
    let g_embeddings = match sharing {
        Sharing::Nothing => Embeddings::declare(layout, GENERATOR, generator),
        _ => {
            Embeddings::alias(layout, GENERATOR, DISCRIMINATOR);
            d_embeddings
        }
    };
    let g_head = g_head.tie(layout, GENERATOR, g_embeddings.word);
    Ok((
        Generator {
            encoder: Encoder::new(g_embeddings, g_body, generator, 1),
            head: g_head,
        },
        Discriminator {
            encoder: Encoder::new(d_embeddings, d_body, discriminator, 0),
            head: d_head,
        },
    ))
}

/// What two networks share must have one size in both.
fn require_agreement(
    sharing: Sharing,
    generator: &ElectraConfig,
    discriminator: &ElectraConfig,
) -> Result<(), PairError> {
    let sizes = |c: &ElectraConfig| {
        [
            ("vocab_size", c.vocab_size),
            ("embedding_size", c.embedding_size),
            ("max_position_embeddings", c.max_position_embeddings),
            ("type_vocab_size", c.type_vocab_size),
            ("hidden_size", c.hidden_size),
            ("num_hidden_layers", c.num_hidden_layers),
            ("num_attention_heads", c.num_attention_heads),
            ("intermediate_size", c.intermediate_size),
        ]
    };
    let shared = match sharing {
        Sharing::Nothing => 1,
        Sharing::Embeddings => 4,
        Sharing::Encoder => 8,
    };
    for ((key, g), (_, d)) in sizes(generator)
        .into_iter()
        .zip(sizes(discriminator))
        .take(shared)
    {
        if g != d {
            return Err(PairError::Disagreement {
                key,
                generator: g,
                discriminator: d,
            });
        }
    }
    Ok(())
}

/// A masked batch on the host.
#[derive(Clone, Copy, Debug)]
pub struct MaskedInput<'a> {
    /// Tokens with masks in place.
    pub batch: &'a PackedBatch,
    /// `[T]` tokens as they were.
    pub original_ids: &'a [u32],
    /// `[M]` masked rows, ascending.
    pub masked_rows: &'a [u32],
    /// `[M]` tokens as they were in these rows.
    pub targets: &'a [u32],
    /// Number of the batch's first sequence in the global batch.
    pub first_example: u32,
}

/// How a step is run.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions<'a> {
    /// The step's random numbers.
    pub rng: Rng,
    /// Whether dropout is on.
    pub dropout: bool,
    /// Replacements `[M]`; otherwise they are sampled from the generator.
    pub replacements: Option<&'a [u32]>,
    /// Sampling temperature.
    pub temperature: f32,
    /// Whether the true token is never sampled.
    pub disallow_correct: bool,
    /// Factor on the sum of −log p over masked rows: `gen_weight` / masked rows of the global
    /// batch.
    pub mlm_scale: f32,
    /// Factor on the sum of the discriminator's loss over tokens: `disc_weight` / tokens of the
    /// global batch.
    pub rtd_scale: f32,
}

/// Sums over a (micro-)batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepSums {
    /// Sum of −log p over masked rows.
    pub mlm: f64,
    /// Sum of the discriminator's loss over tokens.
    pub rtd: f64,
    /// Masked rows.
    pub masked: usize,
    /// Tokens.
    pub tokens: usize,
    /// Tokens that were replaced by another.
    pub replaced: usize,
}

impl std::ops::AddAssign for StepSums {
    fn add_assign(&mut self, other: Self) {
        self.mlm += other.mlm;
        self.rtd += other.rtd;
        self.masked += other.masked;
        self.tokens += other.tokens;
        self.replaced += other.replaced;
    }
}

/// What a step leaves on the host, where asked for.
#[derive(Clone, Debug, Default)]
pub struct Detections {
    /// `[M]` the generator's most probable tokens.
    pub predicted: Vec<u32>,
    /// `[M]` tokens put in.
    pub sampled: Vec<u32>,
    /// `[T]` logits of "replaced".
    pub logits: Vec<f32>,
    /// `[T]` 1 where replaced.
    pub labels: Vec<u32>,
}

/// Every array of a pre-training step, for up to so many tokens, sequences and masked rows.
#[derive(Clone, Debug)]
struct Arrays {
    tokens: usize,
    sequences: usize,
    masked: usize,
    masked_ids: Ints,
    original_ids: Ints,
    replaced_ids: Ints,
    type_ids: Ints,
    position_ids: Ints,
    example: Ints,
    cu_seqlens: Ints,
    rows: Ints,
    row_example: Ints,
    row_position: Ints,
    targets: Ints,
    sampled: Ints,
    predicted: Ints,
    labels: Ints,
    generator: Option<NetworkArrays<GeneratorArrays, GeneratorGradients>>,
    discriminator: Option<NetworkArrays<DiscriminatorArrays, DiscriminatorGradients>>,
}

/// Arrays of a network.
#[derive(Clone, Debug)]
struct NetworkArrays<A, G> {
    /// For the largest batch.
    whole: A,
    /// The same, cut to the batch in hand.
    cut: A,
    gradients: G,
}

impl<A: Clone, G> NetworkArrays<A, G> {
    fn new(whole: A, gradients: G) -> Self {
        NetworkArrays {
            cut: whole.clone(),
            whole,
            gradients,
        }
    }
}

impl Arrays {
    fn new<B: Backend>(
        backend: &mut B,
        networks: &Pretraining,
        [tokens, sequences, masked]: [usize; 3],
    ) -> Self {
        let generator = networks.generator.as_ref().map(|g| {
            let encoder = EncoderArrays::for_training(backend, &g.encoder, tokens);
            NetworkArrays::new(
                GeneratorArrays::new(backend, g, encoder, masked),
                GeneratorGradients::new(backend, g, tokens, masked),
            )
        });
        let discriminator = networks.discriminator.as_ref().map(|d| {
            let encoder = EncoderArrays::for_training(backend, &d.encoder, tokens);
            NetworkArrays::new(
                DiscriminatorArrays::new(backend, d, encoder, tokens),
                DiscriminatorGradients::new(backend, d, tokens),
            )
        });
        Arrays {
            tokens,
            sequences,
            masked,
            masked_ids: backend.ints(tokens),
            original_ids: backend.ints(tokens),
            replaced_ids: backend.ints(tokens),
            type_ids: backend.ints(tokens),
            position_ids: backend.ints(tokens),
            example: backend.ints(tokens),
            cu_seqlens: backend.ints(sequences + 1),
            rows: backend.ints(masked),
            row_example: backend.ints(masked),
            row_position: backend.ints(masked),
            targets: backend.ints(masked),
            sampled: backend.ints(masked),
            predicted: backend.ints(masked),
            labels: backend.ints(tokens),
            generator,
            discriminator,
        }
    }
}

/// The device's side of a pre-training step: its arrays, made once and made anew only when a
/// larger batch comes.
#[derive(Debug, Default)]
pub struct PretrainingStep {
    arrays: Option<Arrays>,
    /// `[T]` values on their way to the device or back.
    host: Vec<u32>,
    /// `[M]` values on their way to the device.
    host_rows: Vec<u32>,
}

/// A (micro-)batch on its way through the networks: what [`PretrainingStep::finish`] waits for.
#[must_use = "its sums are to be read before the next one begins"]
pub struct Launched {
    batch: Batch,
    sums: StepSums,
}

/// The arrays of one batch, cut to its size.
struct Batch {
    generator: EncoderInput,
    discriminator: EncoderInput,
    original_ids: Ints,
    rows: Ints,
    row_keys: RowKeys,
    targets: Ints,
    sampled: Ints,
    predicted: Ints,
    labels: Ints,
}

impl PretrainingStep {
    /// A step without arrays.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for batches of up to `tokens` tokens, `sequences` sequences and `masked`
    /// masked rows.
    pub fn reserve<B: Backend>(
        &mut self,
        backend: &mut B,
        networks: &Pretraining,
        [tokens, sequences, masked]: [usize; 3],
    ) {
        let have = self
            .arrays
            .as_ref()
            .map_or([0; 3], |a| [a.tokens, a.sequences, a.masked]);
        let want = [
            tokens.max(have[0]),
            sequences.max(have[1]),
            masked.max(have[2]),
        ];
        if have != want {
            // Whoever made the old arrays must not keep them beside the new.
            self.arrays = None;
            backend.release_arrays();
            self.arrays = Some(Arrays::new(backend, networks, want));
        }
    }

    /// Where in forward order the last batch first had a value that is not finite.
    pub fn first_not_finite<B: Backend>(&self, backend: &mut B) -> Option<String> {
        let arrays = self.arrays.as_ref()?;
        if let Some(NetworkArrays { cut: generator, .. }) = &arrays.generator {
            if let Some(place) = generator.encoder.first_not_finite(backend) {
                return Some(format!("{place} of the generator"));
            }
            if !backend.sum(generator.log_prob).is_finite() {
                return Some("the generator's log-probabilities".to_owned());
            }
        }
        let discriminator = &arrays.discriminator.as_ref()?.cut;
        if let Some(place) = discriminator.encoder.first_not_finite(backend) {
            return Some(format!("{place} of the discriminator"));
        }
        let logits = backend.sum(discriminator.logits);
        (!logits.is_finite()).then(|| "the discriminator's logits".to_owned())
    }

    fn upload<B: Backend>(&mut self, backend: &mut B, input: &MaskedInput) -> Option<Batch> {
        let a = self.arrays.as_ref()?;
        let batch = input.batch;
        let (tokens, masked) = (batch.tokens(), input.masked_rows.len());
        let upload = |backend: &mut B, to: Ints, values: &[u32]| {
            let to = to.first(values.len());
            backend.write_ints(to, values);
            to
        };
        self.host.clear();
        for s in 0..batch.sequences() {
            let rows = self.host.len() + batch.rows(s).len();
            self.host.resize(rows, input.first_example + s as u32);
        }
        let position_ids = upload(backend, a.position_ids, &batch.position_ids);
        let sequences = Sequences {
            cu_seqlens: upload(backend, a.cu_seqlens, &batch.cu_seqlens),
            keys: RowKeys {
                example: upload(backend, a.example, &self.host),
                position: position_ids,
            },
            longest: (0..batch.sequences())
                .map(|s| batch.rows(s).len())
                .max()
                .unwrap_or(0),
        };
        let generator = EncoderInput {
            token_ids: upload(backend, a.masked_ids, &batch.token_ids),
            type_ids: upload(backend, a.type_ids, &batch.type_ids),
            position_ids,
            sequences,
        };
        let rows_of = |backend: &mut B, to: Ints, values: &[u32], host: &mut Vec<u32>| {
            host.clear();
            host.extend(input.masked_rows.iter().map(|&row| values[row as usize]));
            upload(backend, to, host)
        };
        let host = &mut self.host_rows;
        let row_keys = RowKeys {
            example: rows_of(backend, a.row_example, &self.host, host),
            position: rows_of(backend, a.row_position, &batch.position_ids, host),
        };
        Some(Batch {
            generator,
            row_keys,
            discriminator: EncoderInput {
                token_ids: a.replaced_ids.first(tokens),
                ..generator
            },
            original_ids: upload(backend, a.original_ids, input.original_ids),
            rows: upload(backend, a.rows, input.masked_rows),
            targets: upload(backend, a.targets, input.targets),
            sampled: a.sampled.first(masked),
            predicted: a.predicted.first(masked),
            labels: a.labels.first(tokens),
        })
    }

    /// Runs one (micro-)batch forward and, with `grads`, backward: adds to `grads` the gradient
    /// of `mlm_scale · Σ MLM + rtd_scale · Σ RTD`. With `detections`, fills it.
    pub fn run<B: Backend>(
        &mut self,
        backend: &mut B,
        networks: &Pretraining,
        params: &B::Params,
        input: &MaskedInput,
        options: &StepOptions,
        grads: Option<&mut B::Flat>,
        detections: Option<&mut Detections>,
    ) -> StepSums {
        let predict = detections.is_some();
        let launched = self.launch(backend, networks, params, input, options, grads, predict);
        launched.map_or(StepSums::default(), |launched| {
            self.finish(backend, launched, detections)
        })
    }

    /// The first half of [`run`](PretrainingStep::run): nothing of it waits for the device. With
    /// `predict` the generator's most probable tokens are found, too.
    pub fn launch<B: Backend>(
        &mut self,
        backend: &mut B,
        networks: &Pretraining,
        params: &B::Params,
        input: &MaskedInput,
        options: &StepOptions,
        mut grads: Option<&mut B::Flat>,
        predict: bool,
    ) -> Option<Launched> {
        let (tokens, masked) = (input.batch.tokens(), input.masked_rows.len());
        self.reserve(backend, networks, [tokens, input.batch.sequences(), masked]);
        let batch = self.upload(backend, input)?;
        let arrays = self.arrays.as_mut()?;
        let rng = options.dropout.then_some(&options.rng);
        if let Some(given) = options.replacements {
            backend.write_ints(batch.sampled, given);
        }
        if let (Some(generator), Some(own)) = (&networks.generator, &mut arrays.generator) {
            let arrays = &mut own.cut;
            let (input, rows) = (&batch.generator, batch.rows);
            arrays.cut(&own.whole, tokens, rows, batch.row_keys);
            generator.forward(backend, params, input, arrays, rng);
            let sampling = networks.discriminator.is_some() && options.replacements.is_none();
            let sample = sampling.then_some(VocabularySample {
                temperature: options.temperature,
                exclude: options.disallow_correct.then_some(batch.targets),
                rng: options.rng,
                keys: input.sequences.keys,
                rows,
                sampled: batch.sampled,
            });
            let predicted = predict.then_some(batch.predicted);
            let (targets, sample) = (batch.targets, sample.as_ref());
            generator.vocabulary(backend, params, targets, arrays, predicted, sample);
            if let Some(grads) = grads.as_deref_mut() {
                let d = own.gradients.first_rows(tokens, masked);
                let (targets, scale) = (batch.targets, options.mlm_scale);
                generator.backward(
                    backend, params, input, targets, scale, arrays, rng, &d, grads,
                );
            }
        }
        if let (Some(discriminator), Some(own)) =
            (&networks.discriminator, &mut arrays.discriminator)
        {
            let arrays = &mut own.cut;
            arrays.cut(&own.whole, tokens);
            let (input, labels) = (&batch.discriminator, batch.labels);
            backend.replace(
                batch.original_ids,
                batch.rows,
                batch.sampled,
                input.token_ids,
            );
            backend.not_equal(input.token_ids, batch.original_ids, labels);
            discriminator.forward(backend, params, input, arrays, rng);
            backend.binary_cross_entropy(arrays.logits, labels, arrays.loss);
            if let Some(grads) = grads {
                let d = own.gradients.first_rows(tokens);
                let scale = options.rtd_scale;
                discriminator.backward(
                    backend, params, input, labels, scale, arrays, rng, &d, grads,
                );
            }
        }
        Some(Launched {
            batch,
            sums: StepSums {
                tokens,
                masked,
                ..StepSums::default()
            },
        })
    }

    /// Waits for the batch that was launched last, and reads its sums and, where wanted, detections.
    pub fn finish<B: Backend>(
        &mut self,
        backend: &mut B,
        launched: Launched,
        detections: Option<&mut Detections>,
    ) -> StepSums {
        let Launched { batch, mut sums } = launched;
        let arrays = self.arrays.as_ref();
        if let Some(own) = arrays.and_then(|a| a.generator.as_ref()) {
            sums.mlm = -backend.sum(own.cut.log_prob);
        }
        let mut logits = None;
        if let Some(own) = arrays.and_then(|a| a.discriminator.as_ref()) {
            sums.rtd = backend.sum(own.cut.loss);
            logits = Some(own.cut.logits);
            self.host.resize(sums.tokens, 0);
            backend.read_ints(batch.labels, &mut self.host);
            sums.replaced = self.host.iter().filter(|&&label| label != 0).count();
        }
        if let Some(out) = detections {
            read_detections(backend, &batch, logits, out);
        }
        sums
    }
}

fn read_detections<B: Backend>(
    backend: &mut B,
    batch: &Batch,
    logits: Option<Array>,
    out: &mut Detections,
) {
    for (from, to) in [
        (batch.predicted, &mut out.predicted),
        (batch.sampled, &mut out.sampled),
        (batch.labels, &mut out.labels),
    ] {
        to.resize(from.len, 0);
        backend.read_ints(from, to);
    }
    out.logits.clear();
    if let Some(logits) = logits {
        out.logits.resize(logits.rows, 0.0);
        backend.read(logits, &mut out.logits);
    }
}
