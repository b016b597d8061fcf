//! What a pre-training run works on: networks, data and their settings, opened and checked before
//! the first step.

use crate::config::{ExampleKind, Initialization, PretrainConfig, PretrainConfigError};
use crate::export::{Network, hash_network, read_network};
use crate::finetune::config::FinetuneConfig;
use crate::finetune::job::{FinetuneJob, FinetuneJobError, Start};
use crate::finetune::task::TaskFiles;
use crate::informed::{self, Waves};
use crate::progress::available_memory_bytes;
use crate::run_dir::{RUN_FILE, RunDirError, RunFile};
use crate::setting::SettingError;
use electra_data::cooccurrence::TokenCounts;
use electra_data::examples::{Builder, ExampleError, ExampleOptions, Examples, Split};
use electra_data::held_out::HeldOut;
use electra_data::loader::{BatchSize, Loader};
use electra_data::masking::Masking;
use electra_data::order::Order;
use electra_data::shards::{Corpus, ShardError};
use electra_data::tokenizer::{Tokenizer, TokenizerError};
use electra_engine::params::ParamLayout;
use electra_model::config::ElectraConfig;
use electra_model::files::atomic::readable_bytes;
use electra_model::files::{FileError, ModelDir};
use electra_model::init::initial_values;
use electra_model::pretraining::{PairError, Pretraining};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

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
    /// The models to begin with have too few word vectors, or token types, for the data.
    #[error(
        "{path}: \"{key}\" in its config.json is {rows}, but the data needs {needed}: {reason}",
        path = path.display()
    )]
    TooFewRows {
        /// The model.
        path: PathBuf,
        /// The size.
        key: &'static str,
        /// What it is.
        rows: usize,
        /// What it must be at the least.
        needed: usize,
        /// Why.
        reason: &'static str,
    },
    /// More memory than there is.
    #[error(
        "the run takes about {} of memory, but {} are free; lower train_batch_size or \
         max_seq_length, raise gradient_accumulation_steps, set gradient_checkpointing=true, or \
         choose a smaller model",
        readable_bytes(*.needed), readable_bytes(*.free)
    )]
    Memory {
        /// Bytes that the run takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The models to begin with are not there.
    #[error(
        "the run has no checkpoint to go on from yet, so it needs the models of --init-from; give \
         them, or begin another run"
    )]
    ModelsNeeded,
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
#[derive(Clone, Debug, PartialEq)]
pub struct InitFrom {
    /// The discriminator; none where the run trains none.
    pub discriminator: Option<GivenModel>,
    /// The generator; none where the run trains none.
    pub generator: Option<GivenModel>,
}

/// A model to begin with.
#[derive(Clone, Debug, PartialEq)]
pub enum GivenModel {
    /// Its directory.
    Directory(PathBuf),
    /// What a run that began with it has recorded of it. That is enough to go on from a checkpoint.
    Recorded(Box<ModelRecord>),
}

/// What a run records of a model that it began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Its configuration.
    pub config: ElectraConfig,
    /// BLAKE3 of its values, hexadecimal: equal for equal tensors, whatever file they are in.
    pub blake3: String,
}

impl InitFrom {
    /// The models that the run in `out` began with, as far as it has recorded them; none if it
    /// began with random numbers or there is no run.
    ///
    /// # Errors
    /// A `run.json` that cannot be read.
    pub fn recorded(out: &Path) -> Result<Option<Self>, RunDirError> {
        let run = match RunFile::read(out) {
            Ok(run) => run,
            Err(RunDirError::NoRun { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(models) = run.settings.get(INIT_FROM) else {
            return Ok(None);
        };
        let record = |network: Network| -> Result<Option<GivenModel>, RunDirError> {
            let value = models.get(network.directory()).cloned().unwrap_or_default();
            let record: Option<ModelRecord> =
                serde_json::from_value(value).map_err(|e| RunDirError::BadRunFile {
                    path: out.join(RUN_FILE),
                    detail: format!("{INIT_FROM}: {e}"),
                })?;
            Ok(record.map(|record| GivenModel::Recorded(Box::new(record))))
        };
        Ok(Some(InitFrom {
            discriminator: record(Network::Discriminator)?,
            generator: record(Network::Generator)?,
        }))
    }

    fn networks(&self) -> [(Network, Option<&GivenModel>); 2] {
        [
            (Network::Discriminator, self.discriminator.as_ref()),
            (Network::Generator, self.generator.as_ref()),
        ]
    }
}

/// The name of the models in the settings of a run.
const INIT_FROM: &str = "init_from";

/// Tasks that tell during pre-training what the encoder is worth.
#[derive(Debug)]
pub struct Probes {
    /// One task each.
    pub jobs: Vec<FinetuneJob>,
    /// Steps from one probing to the next.
    pub steps: u64,
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
    /// Tasks to probe the encoder with.
    probes: Option<Probes>,
    /// Threads of counting the text.
    threads: usize,
    init_from: Option<InitFrom>,
    /// What the run records of the models to begin with, discriminator and generator.
    given: [Option<ModelRecord>; 2],
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
            let problem = format!(
                "is {vocab_size}, but the tokenizer has {} entries; leave it null",
                tokenizer.vocab_size()
            );
            let error = SettingError::hyper_parameter("vocab_size", problem);
            return Err(PretrainConfigError::from(error).into());
        }
        let (mut generator_config, mut discriminator_config) = config.networks(vocab_size)?;
        let types = discriminator_config.type_vocab_size;
        if types < config.examples.token_types() {
            let problem = format!("is {types}, but examples of two segments need 2");
            let error = SettingError::value("model_hparam_overrides", "type_vocab_size", problem);
            return Err(PretrainConfigError::from(error).into());
        }
        let mut given = [None, None];
        if let Some(from) = &init_from {
            for ((network, model), record) in from.networks().into_iter().zip(&mut given) {
                let Some(model) = model else { continue };
                let (own, blake3) = match model {
                    GivenModel::Recorded(record) => (record.config.clone(), record.blake3.clone()),
                    GivenModel::Directory(path) => {
                        let own = ModelDir::open(path)?.config().clone();
                        if Tokenizer::load(path, None)?.hash() != tokenizer.hash() {
                            return Err(JobError::Vocabulary {
                                path: path.to_owned(),
                            });
                        }
                        check_rows(path, &own, &config, &tokenizer)?;
                        (own, String::new())
                    }
                };
                let mut applied = own.clone();
                config.apply_to_given(&mut applied)?;
                config.check_positions(&applied)?;
                match network {
                    Network::Discriminator => discriminator_config = applied,
                    Network::Generator => generator_config = applied,
                }
                *record = Some(ModelRecord {
                    config: own,
                    blake3,
                });
            }
        }
        let mut networks =
            Pretraining::new(config.objective(), &generator_config, &discriminator_config)?;
        networks.set_checkpointing(config.gradient_checkpointing);
        if let Some(from) = &init_from {
            for ((network, model), record) in from.networks().into_iter().zip(&mut given) {
                if let (Some(GivenModel::Directory(path)), Some(record)) = (model, record) {
                    let dir = ModelDir::open(path)?;
                    record.blake3 = hash_network(&dir, network, &networks.layout)?;
                }
            }
            if let (Some(GivenModel::Directory(_)), Some(GivenModel::Directory(_))) =
                (&from.discriminator, &from.generator)
            {
                // Models that do not fit each other are refused before anything is written.
                read_given(from, &networks.layout, vec![0.0; networks.layout.len()])?;
            }
        }
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
                let sequences = match config.train_batch_tokens {
                    Some(tokens) => tokens / length,
                    None => config.train_batch_size,
                };
                let micro_batch = sequences / config.gradient_accumulation_steps;
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
            probes: None,
            threads: 1,
            init_from,
            given,
        };
        let needed = job.memory_bytes();
        match available_memory_bytes() {
            Some(free) if needed > free => Err(JobError::Memory { needed, free }),
            _ => Ok(job),
        }
    }

    /// Probes the encoder with these tasks every `steps` steps (0: at the end alone), and at the end.
    ///
    /// # Errors
    /// A [`FinetuneJobError`]: of the data of a task, or a task that is given twice.
    pub fn set_probes(
        &mut self,
        files: Vec<TaskFiles>,
        steps: u64,
    ) -> Result<(), FinetuneJobError> {
        let mut jobs: Vec<FinetuneJob> = Vec::with_capacity(files.len());
        for file in files {
            let config = FinetuneConfig {
                seed: self.config.seed,
                ..FinetuneConfig::default()
            };
            let start = Start::Scratch(self.encoder_config().clone());
            let job = FinetuneJob::open(config, start, self.tokenizer.clone(), vec![file])?;
            let name = &job.tasks[0].spec.name;
            if jobs.iter().any(|other| other.tasks[0].spec.name == *name) {
                return Err(FinetuneJobError::Options(format!(
                    "the probe {name} is given twice"
                )));
            }
            jobs.push(job);
        }
        self.probes = (!jobs.is_empty()).then_some(Probes { jobs, steps });
        Ok(())
    }

    /// Lets the work before the first step that is not the device's take so many threads; one without
    /// this. No number depends on it.
    pub fn set_threads(&mut self, threads: usize) {
        self.threads = threads.max(1);
    }

    /// The tasks to probe with, if there are any.
    pub fn probes(&self) -> Option<&Probes> {
        self.probes.as_ref()
    }

    /// The network whose encoder the run is for: the discriminator, or the generator where that is
    /// trained alone.
    pub fn main_network(&self) -> Network {
        match self.networks.discriminator {
            Some(_) => Network::Discriminator,
            None => Network::Generator,
        }
    }

    fn encoder_config(&self) -> &ElectraConfig {
        match self.main_network() {
            Network::Discriminator => &self.discriminator_config,
            Network::Generator => &self.generator_config,
        }
    }

    /// Every setting that decides the outcome, for the run directory: two runs with the same are
    /// one run.
    pub fn settings(&self, precision: &str) -> Map<String, Value> {
        let mut settings = self.config.to_map();
        settings.insert("data".into(), self.fingerprint.clone().into());
        settings.insert("tokenizer".into(), self.tokenizer.hash().into());
        settings.insert("precision".into(), precision.into());
        if let Some(probes) = &self.probes {
            let tasks = probes.jobs.iter().map(|job| {
                let name = job.tasks[0].spec.name.clone();
                (name, job.tasks[0].fingerprints.clone().into())
            });
            settings.insert("probe".into(), tasks.collect::<Map<_, _>>().into());
            settings.insert("probe_steps".into(), probes.steps.into());
        }
        if self.init_from.is_some() {
            let [discriminator, generator] = &self.given;
            let models = json!({ "discriminator": discriminator, "generator": generator });
            settings.insert(INIT_FROM.into(), models);
        }
        settings
    }

    /// The preset's settings.
    pub fn defaults(&self) -> Map<String, Value> {
        let preset = PretrainConfig::preset(&self.config.model_size);
        preset.map_or_else(|_| Map::new(), |preset| preset.to_map())
    }

    /// Parameters at step 0: drawn by the seed, counted from the text, or read from the models to begin
    /// with. What is counted, which takes a while, is told to `say`.
    pub fn initial_values(&self, say: &mut dyn FnMut(&str)) -> Result<Vec<f32>, JobError> {
        let layout = &self.networks.layout;
        let mut values = initial_values(layout, self.config.seed);
        if self.config.initialization == Initialization::Counts {
            self.count_text(&mut values, say)?;
        }
        match &self.init_from {
            Some(from) => read_given(from, layout, values),
            None => Ok(values),
        }
    }

    /// Lets fresh parameters begin with what counts of the text say ([`informed`]).
    fn count_text(&self, values: &mut [f32], say: &mut dyn FnMut(&str)) -> Result<(), JobError> {
        say("counting the text's tokens and which stand near each other, to begin with that");
        let start = Instant::now();
        let networks = || {
            let discriminator = self.networks.discriminator.is_some();
            let generator = self.networks.generator.is_some();
            [
                (
                    discriminator,
                    Network::Discriminator,
                    &self.discriminator_config,
                ),
                (generator, Network::Generator, &self.generator_config),
            ]
            .into_iter()
            .filter_map(|(is_there, network, config)| is_there.then_some((network, config)))
        };
        let waves = Waves::of(networks().map(|(_, config)| config));
        let size = self.encoder_config().embedding_size - waves.dimensions();
        let counts = TokenCounts::of(self.train.examples(), size, self.threads)?;
        say(&format!(
            "counted {} tokens: {} of the vocabulary's {} have a vector; {:.1} s",
            counts.tokens(),
            counts.with_vector(),
            self.tokenizer.vocab_size(),
            start.elapsed().as_secs_f64()
        ));
        informed::begin(networks(), &self.networks.layout, &counts, waves, values);
        Ok(())
    }

    /// Bytes that a run takes at the least: while it trains, parameters, gradients, moments and packed
    /// weights, and what the layers keep of a micro-batch of ordinary length; before that, what
    /// counting the text takes beside parameters and moments.
    fn memory_bytes(&self) -> u64 {
        let examples = self.train.examples();
        let mean_length = examples.tokens() as f64 / examples.len().max(1) as f64;
        let parts = self.config.gradient_accumulation_steps as f64;
        let tokens = match self.config.train_batch_tokens {
            Some(tokens) => tokens as f64 / parts,
            None => self.config.train_batch_size as f64 * mean_length / parts,
        };
        let checkpointing = self.config.gradient_checkpointing;
        let kept = |config: &ElectraConfig| {
            let hidden = config.hidden_size as u64;
            let layer = 8 * hidden + 2 * config.intermediate_size as u64;
            match (config.num_hidden_layers as u64, checkpointing) {
                (layers, false) => layers * layer,
                (layers, true) => layers * hidden + layer,
            }
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
        let parameters = networks.layout.len() as f64;
        let bytes = |words: f64| (words * size_of::<f32>() as f64) as u64;
        let training = bytes(6.0 * parameters + activations);
        let counting = match self.config.initialization {
            Initialization::Random => 0,
            Initialization::Counts => {
                let vocab_size = self.tokenizer.vocab_size();
                bytes(3.0 * parameters) + TokenCounts::least_bytes(examples.tokens(), vocab_size)
            }
        };
        training.max(counting)
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

/// The values of the models to begin with; of a network that none is given for, those in `values`.
fn read_given(
    from: &InitFrom,
    layout: &ParamLayout,
    mut values: Vec<f32>,
) -> Result<Vec<f32>, JobError> {
    let open = |model: &GivenModel| match model {
        GivenModel::Directory(path) => Ok(ModelDir::open(path)?),
        GivenModel::Recorded(_) => Err(JobError::ModelsNeeded),
    };
    if let Some(model) = &from.discriminator {
        let dir = open(model)?;
        read_network(&dir, Network::Discriminator, layout, &mut values)?;
    }
    let Some(model) = &from.generator else {
        return Ok(values);
    };
    let mut generator = values.clone();
    let dir = open(model)?;
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
    Ok(generator)
}

/// Refuses a model without a row for every token and token type of the data.
fn check_rows(
    path: &Path,
    model: &ElectraConfig,
    config: &PretrainConfig,
    tokenizer: &Tokenizer,
) -> Result<(), JobError> {
    let (tokens, types) = (tokenizer.vocab_size(), config.examples.token_types());
    for (key, rows, needed, reason) in [
        (
            "vocab_size",
            model.vocab_size,
            tokens,
            "its tokenizer has more entries than its word table rows",
        ),
        (
            "type_vocab_size",
            model.type_vocab_size,
            types,
            "examples of two segments tell them apart by type",
        ),
    ] {
        if rows < needed {
            return Err(JobError::TooFewRows {
                path: path.to_owned(),
                key,
                rows,
                needed,
                reason,
            });
        }
    }
    Ok(())
}
