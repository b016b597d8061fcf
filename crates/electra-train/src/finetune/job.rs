//! What a fine-tuning run works on: model, tasks and data, opened and checked before the first
//! step.

use super::config::FinetuneConfig;
use super::model::check_fit;
use super::plan::{Pace, Plan};
use super::task::{self, Task, TaskFiles};
use super::trainer::StepSettings;
use crate::schedule::Schedule;
use crate::setting::SettingError;
use electra_data::tasks::TaskError;
use electra_data::tokenizer::{Tokenizer, TokenizerError};
use electra_model::config::ElectraConfig;
use electra_model::files::{FileError, ModelDir};
use electra_model::heads::HeadSpec;
use electra_model::heads::files::{TaskEntry, read_encoder};
use electra_model::heads::network::TaskNetwork;
use electra_model::init::initial_values;
use serde_json::{Map, Value};

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum FinetuneJobError {
    /// The hyper-parameters.
    #[error(transparent)]
    Config(#[from] SettingError),
    /// The data.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model.
    #[error(transparent)]
    Model(#[from] FileError),
    /// Sizes that make no network.
    #[error(transparent)]
    Network(#[from] electra_model::config::ConfigError),
    /// Tasks that cannot be trained together, or options that do not fit them.
    #[error("{0}")]
    Options(String),
}

/// What to begin with.
#[derive(Debug)]
pub enum Start {
    /// A model's encoder.
    Model(ModelDir),
    /// Random values in a network of these sizes.
    Scratch(ElectraConfig),
}

/// Everything a run works on.
#[derive(Debug)]
pub struct FinetuneJob {
    /// The hyper-parameters, resolved.
    pub config: FinetuneConfig,
    /// Configuration of the network.
    pub network_config: ElectraConfig,
    /// Encoder and heads.
    pub network: TaskNetwork,
    /// The model's.
    pub tokenizer: Tokenizer,
    /// The tasks, in the order of the heads.
    pub tasks: Vec<Task>,
    start: Start,
}

/// What there is to say where nothing is dropped: a model that was pre-trained without dropout would
/// silently be fine-tuned without.
fn dropout_note(config: &ElectraConfig) -> Option<String> {
    let none = config.hidden_dropout_prob == 0.0 && config.attention_probs_dropout_prob == 0.0;
    none.then(|| {
        "nothing is dropped, as config.json or the settings say: hidden_dropout_prob and \
         attention_probs_dropout_prob are 0; published models are fine-tuned with 0.1"
            .to_owned()
    })
}

impl FinetuneJob {
    /// Reads the data and checks everything against everything.
    ///
    /// # Errors
    /// A [`FinetuneJobError`]: of the hyper-parameters, the model, the data.
    pub fn open(
        mut config: FinetuneConfig,
        start: Start,
        tokenizer: Tokenizer,
        files: Vec<TaskFiles>,
    ) -> Result<Self, FinetuneJobError> {
        config.validate()?;
        let mut network_config = match &start {
            Start::Model(dir) => dir.config().clone(),
            Start::Scratch(config) => config.clone(),
        };
        config.resolve(&network_config);
        if let Some(rate) = config.hidden_dropout_prob {
            network_config.hidden_dropout_prob = rate;
        }
        if let Some(rate) = config.attention_probs_dropout_prob {
            network_config.attention_probs_dropout_prob = rate;
        }
        network_config.validate()?;
        if tokenizer.vocab_size() > network_config.vocab_size {
            return Err(FinetuneJobError::Options(format!(
                "the tokenizer has {} tokens but the model's word table {} rows; the tokenizer is \
                 another model's",
                tokenizer.vocab_size(),
                network_config.vocab_size
            )));
        }
        let names: Vec<&str> = files.iter().map(|f| f.spec.name.as_str()).collect();
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                return Err(FinetuneJobError::Options(format!(
                    "task {name} is given twice; each task of a model has a name of its own"
                )));
            }
        }
        let mut tasks = files
            .into_iter()
            .map(|files| {
                let positions = network_config.max_position_embeddings;
                task::open(&config, positions, &tokenizer, files)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for task in &tasks {
            let fits = check_fit(&network_config, &task.train)
                .and_then(|()| check_fit(&network_config, &task.dev));
            fits.map_err(|error| FinetuneJobError::Options(error.to_string()))?;
        }
        if let (Some(note), Some(first)) = (dropout_note(&network_config), tasks.first_mut()) {
            first.notes.push(note);
        }
        let specs: Vec<HeadSpec> = tasks.iter().map(|t| t.entry.head.clone()).collect();
        let mut network = TaskNetwork::new(&network_config, &specs);
        network.encoder.checkpointing = config.gradient_checkpointing;
        Ok(FinetuneJob {
            network,
            config,
            network_config,
            tokenizer,
            tasks,
            start,
        })
    }

    /// Parameters of a run with `seed` at step 0: the model's encoder, heads drawn by the seed.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or not finite.
    pub fn initial_values(&self, seed: u64) -> Result<Vec<f32>, FileError> {
        let mut values = initial_values(&self.network.layout, seed);
        if let Start::Model(dir) = &self.start {
            read_encoder(dir, &self.network, &mut values)?;
        }
        Ok(values)
    }

    /// Every setting that decides the outcome, for the run directory.
    pub fn settings(&self, precision: &str) -> Map<String, Value> {
        let mut settings = self.config.to_map();
        let start = match &self.start {
            Start::Model(dir) => {
                let path = std::fs::canonicalize(dir.path()).unwrap_or(dir.path().into());
                path.display().to_string().into()
            }
            Start::Scratch(config) => serde_json::to_value(config).unwrap_or_default(),
        };
        let tasks = self.tasks.iter().map(|t| t.spec.name.as_str()).collect();
        settings.insert("model".into(), start);
        settings.insert("tasks".into(), tasks);
        settings.insert("data".into(), self.fingerprints());
        settings.insert("tokenizer".into(), self.tokenizer.hash().into());
        settings.insert("precision".into(), precision.into());
        settings
    }

    /// Which examples each step of a trial with `seed` learns from.
    pub fn plan(&self, seed: u64) -> Plan {
        let config = &self.config;
        let epochs = |task: &Task| f64::from(task.spec.epochs);
        let longest = self.tasks.iter().map(epochs).fold(1.0, f64::max);
        Plan::new(
            &self.tasks,
            seed,
            config.shots,
            config.train_batch_size,
            Pace {
                epochs: config.num_train_epochs,
                task_epochs: longest,
                evals_per_epoch: config.evals_per_epoch,
            },
        )
    }

    /// How steps are taken.
    pub fn step_settings(&self) -> StepSettings {
        let config = &self.config;
        StepSettings {
            weight_decay_rate: config.weight_decay_rate,
            layerwise_lr_decay: config.layerwise_lr_decay.unwrap_or(1.0),
            parts: config.gradient_accumulation_steps,
            compat_google: config.compat_google(),
        }
    }

    /// Learning rates of a trial.
    pub fn schedule(&self, plan: &Plan) -> Schedule {
        let config = &self.config;
        Schedule {
            learning_rate: config.learning_rate.unwrap_or(1e-4),
            warmup_steps: (plan.total_steps as f64 * config.warmup_proportion) as u64,
            total_steps: plan.total_steps,
            decay_power: 1.0,
        }
    }

    /// What identifies the examples of each task's files: equal for equal ones.
    pub fn fingerprints(&self) -> Value {
        let of_task = |task: &Task| (task.spec.name.clone(), task.fingerprints.clone().into());
        Value::Object(self.tasks.iter().map(of_task).collect())
    }

    /// Tokens of an ordinary micro-batch of a task.
    pub fn tokens_of_batch(&self, task: &Task) -> usize {
        let lengths = task.train.iter().flat_map(|f| &f.sequences);
        let tokens: usize = lengths.map(|s| s.token_ids.len()).sum();
        let batch = self.config.train_batch_size / self.config.gradient_accumulation_steps;
        (tokens / task.train.len().max(1)) * batch.max(1)
    }

    /// The tasks as they stand in the model's directory.
    pub fn entries(&self) -> Vec<TaskEntry> {
        self.tasks.iter().map(|t| t.entry.clone()).collect()
    }
}
