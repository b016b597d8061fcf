//! What a pre-training run works on: networks, data and their settings, opened and checked before
//! the first step.

use crate::config::{ExampleKind, PretrainConfig, PretrainConfigError};
use crate::export::{Network, read_network};
use crate::progress::available_memory_bytes;
use electra_data::examples::{Builder, ExampleError, ExampleOptions, Examples, Split};
use electra_data::held_out::HeldOut;
use electra_data::loader::{BatchSize, Loader};
use electra_data::masking::Masking;
use electra_data::order::Order;
use electra_data::shards::{Corpus, ShardError};
use electra_data::tokenizer::{Tokenizer, TokenizerError};
use electra_model::config::ElectraConfig;
use electra_model::files::atomic::readable_bytes;
use electra_model::files::{FileError, ModelDir};
use electra_model::init::initial_values;
use electra_model::pretraining::{PairError, Pretraining};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The hyper-parameters.
    #[error(transparent)]
    Config(#[from] PretrainConfigError),
    /// The shards.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// The examples.
    #[error(transparent)]
    Examples(#[from] ExampleError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The networks do not fit each other.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The models to begin with.
    #[error(transparent)]
    Model(#[from] FileError),
    /// The models to begin with have another vocabulary.
    #[error(
        "{path}: the model's tokenizer is not the one that made the shards; prepare the data with \
         the model's own", path = path.display()
    )]
    Vocabulary {
        /// The model.
        path: PathBuf,
    },
    /// More memory than there is.
    #[error(
        "the run takes about {} of memory, but {} are free; lower train_batch_size or \
         max_seq_length, raise gradient_accumulation_steps, or choose a smaller model",
        readable_bytes(*.needed), readable_bytes(*.free)
    )]
    Memory {
        /// Bytes that the run takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Two models that should share their embeddings do not.
    #[error(
        "{tensor} differs between the generator and the discriminator to begin with, but they \
         would share it; set untied_generator_embeddings=true to train them apart"
    )]
    NotShared {
        /// The tensor.
        tensor: String,
    },
}

/// A released or own pair of models to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitFrom {
    /// Directory of the discriminator; none where the run trains none.
    pub discriminator: Option<PathBuf>,
    /// Directory of the generator; none where the run trains none.
    pub generator: Option<PathBuf>,
}

/// Everything a run works on.
#[derive(Debug)]
pub struct PretrainJob {
    /// The hyper-parameters.
    pub config: PretrainConfig,
    /// Configuration of the generator.
    pub generator_config: ElectraConfig,
    /// Configuration of the discriminator.
    pub discriminator_config: ElectraConfig,
    /// The networks.
    pub networks: Pretraining,
    /// The tokenizer that made the data.
    pub tokenizer: Tokenizer,
    /// How batches are masked.
    pub masking: Masking,
    /// Batches to train on.
    pub train: Loader,
    /// Batches to evaluate on, in order.
    pub held_out: Option<Loader>,
    init_from: Option<InitFrom>,
    fingerprint: String,
}

impl PretrainJob {
    /// Opens the shards in `data` and checks everything against everything.
    ///
    /// `tokenizer`, where given, must be the one that made the shards. With `init_from`, sizes
    /// come from the models' own configurations.
    pub fn open(
        mut config: PretrainConfig,
        data: &Path,
        tokenizer: Option<&Path>,
        init_from: Option<InitFrom>,
    ) -> Result<Self, JobError> {
        config.validate()?;
        let corpus = Arc::new(Corpus::open(data)?);
        if let Some(path) = tokenizer {
            corpus.check_tokenizer(&Tokenizer::load(path, None)?.hash())?;
        }
        let tokenizer = Tokenizer::load(&corpus.tokenizer_dir(), None)?;
        corpus.check_tokenizer(&tokenizer.hash())?;
        corpus.verify()?;
        let vocab_size = *config.vocab_size.get_or_insert(tokenizer.vocab_size());
        if vocab_size < tokenizer.vocab_size() {
            return Err(PretrainConfigError::Value {
                place: "hyper-parameters".into(),
                key: "vocab_size".into(),
                problem: format!(
                    "is {vocab_size}, but the tokenizer has {} entries; leave it null",
                    tokenizer.vocab_size()
                ),
            }
            .into());
        }
        let (mut generator_config, mut discriminator_config) = config.networks(vocab_size)?;
        if let Some(from) = &init_from {
            let read = |path: &Path| -> Result<ElectraConfig, JobError> {
                let mut read = ModelDir::open(path)?.config().clone();
                if Tokenizer::load(path, None)?.hash() != tokenizer.hash() {
                    return Err(JobError::Vocabulary {
                        path: path.to_owned(),
                    });
                }
                config.apply_to_given(&mut read)?;
                config.check_positions(&read)?;
                Ok(read)
            };
            if let Some(path) = &from.discriminator {
                discriminator_config = read(path)?;
            }
            if let Some(path) = &from.generator {
                generator_config = read(path)?;
            }
        }
        let networks =
            Pretraining::new(config.objective(), &generator_config, &discriminator_config)?;
        let special = tokenizer.special();
        let options = ExampleOptions {
            max_seq_length: config.max_seq_length,
            builder: match config.examples {
                ExampleKind::Runs => Builder::Runs,
                ExampleKind::TwoSegments => Builder::TwoSegments,
            },
            held_out: match config.held_out {
                0.0 => HeldOut::None,
                share => HeldOut::Fraction(share),
            },
            seed: config.seed,
        };
        let train = Arc::new(Examples::new(
            corpus.clone(),
            special,
            options,
            Split::Train,
        )?);
        let size = match config.train_batch_tokens {
            Some(tokens) => BatchSize::Tokens(tokens),
            None => BatchSize::Sequences(config.train_batch_size),
        };
        let order = Order::Shuffled { seed: config.seed };
        let train = Loader::new(train, order, size)?;
        let held_out = match config.held_out {
            0.0 => None,
            _ => {
                let examples = Examples::new(corpus.clone(), special, options, Split::HeldOut)?;
                // What is measured does not depend on how it is cut; so evaluation takes no more
                // memory than training.
                let length = config.max_seq_length;
                let micro_batch = match config.train_batch_tokens {
                    Some(tokens) => tokens / length,
                    None => config.train_batch_size / config.gradient_accumulation_steps,
                };
                let size = BatchSize::Sequences(config.eval_batch_size.min(micro_batch).max(1));
                Some(Loader::for_pass(Arc::new(examples), order, size)?)
            }
        };
        let job = PretrainJob {
            masking: Masking::new(config.mask_prob, config.max_seq_length, special),
            fingerprint: corpus.fingerprint(),
            config,
            generator_config,
            discriminator_config,
            networks,
            tokenizer,
            train,
            held_out,
            init_from,
        };
        let needed = job.memory_bytes();
        match available_memory_bytes() {
            Some(free) if needed > free => Err(JobError::Memory { needed, free }),
            _ => Ok(job),
        }
    }

    /// Every setting that decides the outcome, for the run directory: two runs with the same are
    /// one run.
    pub fn settings(&self, precision: &str) -> Map<String, Value> {
        let mut settings = self.config.to_map();
        let name = |path: &PathBuf| {
            let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            Value::from(absolute.display().to_string())
        };
        settings.insert("data".into(), self.fingerprint.clone().into());
        settings.insert("tokenizer".into(), self.tokenizer.hash().into());
        settings.insert("precision".into(), precision.into());
        if let Some(from) = &self.init_from {
            let models = [&from.discriminator, &from.generator];
            settings.insert(
                "init_from".into(),
                models
                    .map(|m| m.as_ref().map_or(Value::Null, name))
                    .to_vec()
                    .into(),
            );
        }
        settings
    }

    /// Parameters at step 0: drawn by the seed, or read from the models to begin with.
    pub fn initial_values(&self) -> Result<Vec<f32>, JobError> {
        let layout = &self.networks.layout;
        let mut values = initial_values(layout, self.config.seed);
        let Some(from) = &self.init_from else {
            return Ok(values);
        };
        if let Some(path) = &from.discriminator {
            let dir = ModelDir::open(path)?;
            read_network(&dir, Network::Discriminator, layout, &mut values)?;
        }
        if let Some(path) = &from.generator {
            let mut generator = values.clone();
            let dir = ModelDir::open(path)?;
            read_network(&dir, Network::Generator, layout, &mut generator)?;
            let shared = layout.params().iter().filter(|p| {
                let prefixes = [Network::Generator.prefix(), Network::Discriminator.prefix()];
                prefixes
                    .iter()
                    .all(|prefix| p.names.iter().any(|name| name.starts_with(prefix)))
            });
            for param in shared {
                if values[param.view.range()] != generator[param.view.range()] {
                    return Err(JobError::NotShared {
                        tensor: param.names[0].clone(),
                    });
                }
            }
            values = generator;
        }
        Ok(values)
    }

    /// Bytes that a run takes at the least: parameters, gradients, moments and packed weights, and
    /// what the layers keep of a micro-batch of ordinary length.
    fn memory_bytes(&self) -> u64 {
        let examples = self.train.examples();
        let mean_length = examples.tokens() as f64 / examples.len().max(1) as f64;
        let parts = self.config.gradient_accumulation_steps as f64;
        let tokens = match self.config.train_batch_tokens {
            Some(tokens) => tokens as f64 / parts,
            None => self.config.train_batch_size as f64 * mean_length / parts,
        };
        let kept = |config: &ElectraConfig| {
            let layer = 8 * config.hidden_size as u64 + 2 * config.intermediate_size as u64;
            config.num_hidden_layers as u64 * layer
        };
        let networks = &self.networks;
        let generator = networks
            .generator
            .as_ref()
            .map_or(0, |_| kept(&self.generator_config));
        let discriminator = networks
            .discriminator
            .as_ref()
            .map_or(0, |_| kept(&self.discriminator_config));
        let activations = tokens * (generator + discriminator) as f64;
        // Four arrays of the parameters, and each weight packed for both directions.
        let words = 6.0 * networks.layout.len() as f64 + activations;
        (words * size_of::<f32>() as f64) as u64
    }

    /// Most tokens, sequences and masked rows of a micro-batch.
    pub fn capacity(&self) -> [usize; 3] {
        let config = &self.config;
        let (length, parts) = (config.max_seq_length, config.gradient_accumulation_steps);
        let (tokens, sequences) = match config.train_batch_tokens {
            // Of a token budget any number of short sequences may come.
            Some(tokens) => (tokens, tokens.div_ceil(3)),
            None => (config.train_batch_size * length, config.train_batch_size),
        };
        let tokens = match parts {
            1 => tokens,
            // A part ends with the sequence that reaches its share.
            parts => tokens.min(tokens.div_ceil(parts) + length),
        };
        let per_sequence = config.max_predictions_per_seq().max(1);
        [tokens, sequences, (sequences * per_sequence).min(tokens)]
    }
}
