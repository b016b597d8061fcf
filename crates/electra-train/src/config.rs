//! Hyper-parameters of pre-training, with the names of the published system.
//!
//! Defaults come from a preset; `base` and `large` carry the values that the reference code has
//! only in comments. An unknown name is an error that suggests the nearest known one.

use crate::optimizer::OptimizerKind;
use crate::preset::preset;
use crate::setting::{Setting, SettingError, nearest, read_object, to_map};
use electra_model::config::{Activation, ConfigError, ElectraConfig};
use electra_model::pretraining::{Objective, Sharing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What can be wrong with hyper-parameters.
#[derive(Debug, thiserror::Error)]
pub enum PretrainConfigError {
    /// No such preset.
    #[error("there is no preset \"{0}\"; the presets are tiny, small, base and large")]
    UnknownPreset(String),
    /// A hyper-parameter.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// An option of the reference that is not built.
    #[error(
        "\"{key}\" is an option of the reference code that is not built here; leave it {leave}"
    )]
    NotBuilt {
        /// The hyper-parameter.
        key: &'static str,
        /// The value that stands for "off".
        leave: &'static str,
    },
    /// The sizes make no network.
    #[error(transparent)]
    Network(#[from] ConfigError),
    /// Those of the generator do not.
    #[error("the generator, sized by generator_hidden_size and generator_layers: {0}")]
    Generator(ConfigError),
}

/// How examples are made from documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExampleKind {
    /// Each document in runs of `max_seq_length − 2` tokens.
    Runs,
    /// The reference's builder of two segments.
    TwoSegments,
}

impl ExampleKind {
    /// Token types that such examples have.
    pub fn token_types(self) -> usize {
        match self {
            ExampleKind::Runs => 1,
            ExampleKind::TwoSegments => 2,
        }
    }
}

/// What parameters begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Initialization {
    /// Random numbers, as in the reference.
    #[default]
    Random,
    /// Word embeddings from which tokens stand near each other in the text, the generator's output
    /// bias from how frequent they are, positions as waves, and first heads that look at a token's
    /// neighbours ([`crate::informed`]); the rest random.
    Counts,
}

/// Hyper-parameters of a pre-training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// Size of the networks: `tiny`, `small`, `base`, `large`.
    pub model_size: String,
    /// Train generator and discriminator; `false`: a masked language model alone.
    pub electra_objective: bool,
    /// The energy-based variant; not built.
    pub electric_objective: bool,
    /// Weight of the generator's loss.
    pub gen_weight: f64,
    /// Weight of the discriminator's loss.
    pub disc_weight: f64,
    /// Share of tokens that are masked.
    pub mask_prob: f64,
    /// `adamw` or, for very large batches, `lamb`.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Power of the learning rate's decay.
    pub lr_decay_power: f64,
    /// Weight decay.
    pub weight_decay_rate: f64,
    /// Decay of Adam's second moment a step. The reference's 0.999 remembers a thousand steps.
    pub adam_beta2: f64,
    /// Steps of warm-up.
    pub num_warmup_steps: u64,
    /// Steps of the run.
    pub num_train_steps: u64,
    /// Steps between checkpoints.
    pub save_checkpoints_steps: u64,
    /// Checkpoints kept; 0 keeps all.
    pub keep_checkpoint_max: usize,
    /// Steps between evaluations on the held-out part; 0 for none.
    pub eval_steps: u64,
    /// Batches of an evaluation at the most.
    pub num_eval_steps: usize,
    /// Share of the documents that is held out.
    pub held_out: f64,
    /// Sizes that differ from the preset's: keys of the discriminator's `config.json`.
    pub model_hparam_overrides: Map<String, Value>,
    /// What parameters begin with.
    pub initialization: Initialization,
    /// Embedding size; null for the preset's.
    pub embedding_size: Option<usize>,
    /// Size of the vocabulary; null for the tokenizer's.
    pub vocab_size: Option<usize>,
    /// Tokens of an example, special ones included.
    pub max_seq_length: usize,
    /// How examples are made.
    pub examples: ExampleKind,
    /// Sequences of a batch.
    pub train_batch_size: usize,
    /// Tokens of a batch at the most, instead of `train_batch_size`; null for none.
    pub train_batch_tokens: Option<usize>,
    /// Micro-batches that a batch is split into, to save memory.
    pub gradient_accumulation_steps: usize,
    /// Keep of each layer its output alone and compute the rest again for backward: less memory, more
    /// time.
    pub gradient_checkpointing: bool,
    /// Sequences of a batch in evaluation.
    pub eval_batch_size: usize,
    /// Layers of the generator as a share of the discriminator's.
    pub generator_layers: f64,
    /// Hidden size of the generator as a share of the discriminator's.
    pub generator_hidden_size: f64,
    /// Whether the generator has an encoder of its own.
    pub untied_generator: bool,
    /// Whether it has embeddings of its own.
    pub untied_generator_embeddings: bool,
    /// Replace by random tokens, without a generator network.
    pub uniform_generator: bool,
    /// Generator of two causal towers; not built.
    pub two_tower_generator: bool,
    /// Never sample the true token.
    pub disallow_correct: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Skipped steps in a row (loss or gradient not finite) after which the run stops.
    pub max_skipped_steps: u32,
}

/// Fewest tokens of an example.
const SHORTEST: usize = 5;

/// Settings that a resumed run may change: none changes a number of the run.
pub const MAY_CHANGE: &[&str] = &[
    "save_checkpoints_steps",
    "keep_checkpoint_max",
    "max_skipped_steps",
    "gradient_checkpointing",
    // Of the job, not of the configuration: a probe changes nothing of the run.
    "probe",
    "probe_steps",
];

impl PretrainConfig {
    /// The hyper-parameters of a preset.
    pub fn preset(name: &str) -> Result<Self, PretrainConfigError> {
        let p = preset(name)?;
        Ok(PretrainConfig {
            model_size: name.to_owned(),
            electra_objective: true,
            electric_objective: false,
            gen_weight: 1.0,
            disc_weight: 50.0,
            mask_prob: p.mask_prob,
            optimizer: OptimizerKind::AdamW,
            learning_rate: p.learning_rate,
            lr_decay_power: 1.0,
            weight_decay_rate: 0.01,
            adam_beta2: 0.999,
            num_warmup_steps: p.warmup,
            num_train_steps: p.steps,
            save_checkpoints_steps: 1000,
            keep_checkpoint_max: 5,
            eval_steps: 1000,
            num_eval_steps: 100,
            held_out: 0.01,
            model_hparam_overrides: Map::new(),
            initialization: Initialization::Random,
            embedding_size: None,
            vocab_size: None,
            max_seq_length: p.max_seq_length,
            examples: ExampleKind::Runs,
            train_batch_size: p.batch,
            train_batch_tokens: None,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            eval_batch_size: p.batch.min(128),
            generator_layers: 1.0,
            generator_hidden_size: p.generator_hidden_size,
            untied_generator: true,
            untied_generator_embeddings: false,
            uniform_generator: false,
            two_tower_generator: false,
            disallow_correct: false,
            temperature: 1.0,
            seed: 0,
            max_skipped_steps: 10,
        })
    }

    /// Shrinks the run to a few small steps.
    pub fn shrink(&mut self) {
        self.train_batch_size = 8;
        self.eval_batch_size = 8;
        self.num_train_steps = 20;
        self.num_warmup_steps = 5;
        self.save_checkpoints_steps = 10;
        self.eval_steps = 10;
        for (key, value) in [
            ("num_hidden_layers", 3),
            ("hidden_size", 144),
            ("intermediate_size", 576),
            ("num_attention_heads", 4),
        ] {
            self.model_hparam_overrides
                .insert(key.to_owned(), value.into());
        }
    }

    /// Takes hyper-parameters from a JSON object; `place` says where it stands.
    pub fn merge(
        &mut self,
        given: &Map<String, Value>,
        place: &str,
    ) -> Result<(), PretrainConfigError> {
        for (key, value) in given {
            self.assign(Setting {
                key,
                value: value.clone(),
                place: place.to_owned(),
            })?;
        }
        Ok(())
    }

    /// Takes hyper-parameters from a JSON file.
    ///
    /// # Errors
    /// A file that cannot be read; an unknown name, or a value of the wrong type.
    pub fn merge_file(&mut self, path: &std::path::Path) -> Result<(), PretrainConfigError> {
        self.merge(&read_object(path)?, &path.display().to_string())
    }

    /// Sets one hyper-parameter from `key=value`; the value is JSON, or text where it is not.
    /// `model_hparam_overrides.KEY=value` sets one size.
    pub fn set(&mut self, assignment: &str) -> Result<(), PretrainConfigError> {
        let setting = Setting::parse(assignment)?;
        if let Some(size) = setting.key.strip_prefix("model_hparam_overrides.") {
            self.model_hparam_overrides
                .insert(size.to_owned(), setting.value);
            return Ok(());
        }
        Ok(self.assign(setting)?)
    }

    fn assign(&mut self, setting: Setting) -> Result<(), SettingError> {
        if OVERRIDES.contains(&setting.key) {
            let suggestion = format!("; did you mean \"model_hparam_overrides.{}\"?", setting.key);
            return Err(SettingError::UnknownKey {
                place: setting.place,
                key: setting.key.to_owned(),
                suggestion,
            });
        }
        if setting.key == "model_size" && setting.value != self.model_size.as_str() {
            let problem = format!(
                "is {}, but the preset is {:?} and carries the hyper-parameters of that size; use \
                 --preset",
                setting.value, self.model_size
            );
            return Err(SettingError::value(&setting.place, setting.key, problem));
        }
        setting.assign(self)
    }

    /// The hyper-parameters as a JSON object.
    pub fn to_map(&self) -> Map<String, Value> {
        to_map(self)
    }

    /// Masked positions of an example at the most: `int((mask_prob + 0.005) · max_seq_length)`.
    pub fn max_predictions_per_seq(&self) -> usize {
        ((self.mask_prob + 0.005) * self.max_seq_length as f64) as usize
    }

    /// What is trained.
    pub fn objective(&self) -> Objective {
        if !self.electra_objective {
            Objective::MaskedLm
        } else if self.uniform_generator {
            Objective::GivenReplacements
        } else if !self.untied_generator {
            Objective::ReplacedTokens(Sharing::Encoder)
        } else if self.untied_generator_embeddings {
            Objective::ReplacedTokens(Sharing::Nothing)
        } else {
            Objective::ReplacedTokens(Sharing::Embeddings)
        }
    }

    /// Refuses what cannot be run, before anything is read or written.
    pub fn validate(&self) -> Result<(), PretrainConfigError> {
        for (on, key) in [
            (self.electric_objective, "electric_objective"),
            (self.two_tower_generator, "two_tower_generator"),
        ] {
            if on {
                let leave = "false";
                return Err(PretrainConfigError::NotBuilt { key, leave });
            }
        }
        let check = SettingError::check;
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let share = |v: f64| v > 0.0 && v < 1.0;
        check(
            share(self.mask_prob),
            "mask_prob",
            "must lie between 0 and 1",
        )?;
        check(
            positive(self.learning_rate),
            "learning_rate",
            "must be above 0",
        )?;
        check(positive(self.temperature), "temperature", "must be above 0")?;
        check(
            self.weight_decay_rate.is_finite() && self.weight_decay_rate >= 0.0,
            "weight_decay_rate",
            "must not be negative",
        )?;
        check(
            self.adam_beta2 >= 0.0 && (self.adam_beta2 as f32) < 1.0,
            "adam_beta2",
            "must be from 0 up to clearly below 1",
        )?;
        check(
            self.gen_weight.is_finite() && self.gen_weight >= 0.0,
            "gen_weight",
            "must not be negative",
        )?;
        check(
            self.disc_weight.is_finite() && self.disc_weight >= 0.0,
            "disc_weight",
            "must not be negative",
        )?;
        check(
            self.lr_decay_power.is_finite() && self.lr_decay_power >= 0.0,
            "lr_decay_power",
            "must not be negative",
        )?;
        check(
            (0.0..1.0).contains(&self.held_out),
            "held_out",
            "must be a share of the documents, from 0 up to below 1",
        )?;
        check(
            self.max_seq_length >= SHORTEST,
            "max_seq_length",
            "must be at least 5, [CLS] and [SEP] among them",
        )?;
        for (key, value) in [
            ("num_train_steps", self.num_train_steps),
            ("train_batch_size", self.train_batch_size as u64),
            ("eval_batch_size", self.eval_batch_size as u64),
            ("num_eval_steps", self.num_eval_steps as u64),
            ("save_checkpoints_steps", self.save_checkpoints_steps),
            (
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps as u64,
            ),
            ("max_skipped_steps", self.max_skipped_steps.into()),
        ] {
            check(value > 0, key, "must be at least 1")?;
        }
        check(
            self.gradient_accumulation_steps
                <= self.train_batch_tokens.unwrap_or(self.train_batch_size),
            "gradient_accumulation_steps",
            "must not be above what a batch can be cut into",
        )?;
        if let Some(tokens) = self.train_batch_tokens {
            check(
                tokens >= self.max_seq_length,
                "train_batch_tokens",
                "must hold at least one example of max_seq_length tokens",
            )?;
        }
        check(
            positive(self.generator_layers) && positive(self.generator_hidden_size),
            "generator_hidden_size",
            "and generator_layers must be above 0",
        )?;
        Ok(())
    }

    /// Configurations of generator and discriminator for a vocabulary of `vocab_size`.
    pub fn networks(
        &self,
        vocab_size: usize,
    ) -> Result<(ElectraConfig, ElectraConfig), PretrainConfigError> {
        let p = preset(&self.model_size)?;
        let mut discriminator = ElectraConfig {
            vocab_size,
            hidden_size: p.hidden,
            num_hidden_layers: p.layers,
            num_attention_heads: (p.hidden / 64).max(1),
            intermediate_size: 4 * p.hidden,
            architectures: Some(vec!["ElectraForPreTraining".into()]),
            ..ElectraConfig::default()
        };
        self.apply_overrides(&mut discriminator)?;
        let embedding = self.embedding_size.or(p.embedding);
        discriminator.embedding_size = embedding.unwrap_or(discriminator.hidden_size);
        discriminator.validate()?;
        self.check_positions(&discriminator)?;
        let mut generator = ElectraConfig {
            architectures: Some(vec!["ElectraForMaskedLM".into()]),
            ..discriminator.clone()
        };
        if self.electra_objective && self.untied_generator {
            let hidden =
                (discriminator.hidden_size as f64 * self.generator_hidden_size).round() as usize;
            let layers = (discriminator.num_hidden_layers as f64 * self.generator_layers).round();
            generator.hidden_size = hidden;
            generator.num_hidden_layers = (layers as usize).max(1);
            generator.num_attention_heads = (hidden / 64).max(1);
            generator.intermediate_size = 4 * hidden;
            if self.untied_generator_embeddings {
                // As in the reference: tables of its own are as wide as its layers.
                generator.embedding_size = hidden;
            }
        }
        generator
            .validate()
            .map_err(PretrainConfigError::Generator)?;
        Ok((generator, discriminator))
    }

    /// Applies what may differ from models to begin with: their dropout. Sizes are the models'.
    pub fn apply_to_given(&self, network: &mut ElectraConfig) -> Result<(), PretrainConfigError> {
        let preset = Self::preset(&self.model_size)?;
        let sizes_set = [
            (
                "embedding_size",
                self.embedding_size != preset.embedding_size,
            ),
            (
                "generator_layers",
                self.generator_layers != preset.generator_layers,
            ),
            (
                "generator_hidden_size",
                self.generator_hidden_size != preset.generator_hidden_size,
            ),
        ];
        if self.initialization != Initialization::Random {
            let problem =
                "cannot be set together with --init-from: the models bring their parameters";
            return Err(SettingError::hyper_parameter("initialization", problem).into());
        }
        let overrides = self.model_hparam_overrides.keys();
        let fixed = overrides
            .map(String::as_str)
            .filter(|key| !key.ends_with("dropout_prob"));
        let set = sizes_set
            .iter()
            .filter(|(_, set)| *set)
            .map(|(key, _)| *key);
        if let Some(key) = set.chain(fixed).next() {
            let problem = "cannot be set together with --init-from: sizes are those of the models";
            return Err(SettingError::hyper_parameter(key, problem).into());
        }
        Ok(self.apply_overrides(network)?)
    }

    /// Refuses examples that are longer than the position table of `network`.
    pub fn check_positions(&self, network: &ElectraConfig) -> Result<(), PretrainConfigError> {
        if self.max_seq_length <= network.max_position_embeddings {
            return Ok(());
        }
        let problem = format!(
            "is {}, but the position table has {} entries; lower it or set \
             model_hparam_overrides.max_position_embeddings",
            self.max_seq_length, network.max_position_embeddings
        );
        Err(SettingError::hyper_parameter("max_seq_length", problem).into())
    }

    fn apply_overrides(&self, config: &mut ElectraConfig) -> Result<(), SettingError> {
        let place = "model_hparam_overrides";
        let wrong = |key: &str, problem: &str| SettingError::value(place, key, problem);
        for (key, value) in &self.model_hparam_overrides {
            let size = || {
                value
                    .as_u64()
                    .map(|v| v as usize)
                    .ok_or_else(|| wrong(key, "must be a whole number"))
            };
            let number = || value.as_f64().ok_or_else(|| wrong(key, "must be a number"));
            match key.as_str() {
                "num_hidden_layers" => config.num_hidden_layers = size()?,
                "hidden_size" => config.hidden_size = size()?,
                "num_attention_heads" => config.num_attention_heads = size()?,
                "intermediate_size" => config.intermediate_size = size()?,
                "max_position_embeddings" => config.max_position_embeddings = size()?,
                "type_vocab_size" => config.type_vocab_size = size()?,
                "hidden_dropout_prob" => config.hidden_dropout_prob = number()?,
                "attention_probs_dropout_prob" => config.attention_probs_dropout_prob = number()?,
                "initializer_range" => config.initializer_range = number()?,
                "layer_norm_eps" => config.layer_norm_eps = number()?,
                "hidden_act" => {
                    config.hidden_act = match value.as_str() {
                        Some("gelu") => Activation::Gelu,
                        Some("gelu_new") => Activation::GeluNew,
                        _ => return Err(wrong(key, "must be \"gelu\" or \"gelu_new\"")),
                    }
                }
                _ => {
                    return Err(SettingError::UnknownKey {
                        place: place.into(),
                        key: key.clone(),
                        suggestion: nearest(key, OVERRIDES.into_iter()),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Keys that `model_hparam_overrides` takes.
const OVERRIDES: [&str; 11] = [
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "hidden_act",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_carry_the_published_values() {
        let base = PretrainConfig::preset("base").expect("a preset");
        assert_eq!(
            (
                base.learning_rate,
                base.max_seq_length,
                base.train_batch_size
            ),
            (2e-4, 512, 256)
        );
        assert_eq!(base.max_predictions_per_seq(), 79);
        let (generator, discriminator) = base.networks(30522).expect("networks");
        assert_eq!(
            (generator.hidden_size, generator.num_attention_heads),
            (256, 4)
        );
        assert_eq!(
            (
                discriminator.num_attention_heads,
                discriminator.intermediate_size
            ),
            (12, 3072)
        );

        // Where embeddings are as wide as the layers, they follow them.
        let mut narrow = base.clone();
        for setting in [
            "generator_hidden_size=1/4",
            "model_hparam_overrides.hidden_size=512",
            "model_hparam_overrides.num_attention_heads=8",
        ] {
            narrow.set(setting).expect("a known name");
        }
        let sizes = narrow.networks(30522).expect("networks");
        assert_eq!(sizes.1.embedding_size, 512);

        let large = PretrainConfig::preset("large").expect("a preset");
        assert_eq!((large.mask_prob, large.train_batch_size), (0.25, 2048));
        assert_eq!(large.networks(30522).expect("networks").0.hidden_size, 256);

        let small = PretrainConfig::preset("small").expect("a preset");
        assert_eq!(small.max_predictions_per_seq(), 19);
        let (generator, _) = small.networks(30522).expect("networks");
        assert_eq!(
            (
                generator.hidden_size,
                generator.num_attention_heads,
                generator.intermediate_size
            ),
            (64, 1, 256)
        );
        assert_eq!(generator.embedding_size, 128);

        // Tables of its own are as wide as the generator's layers.
        let mut apart = small.clone();
        for setting in [
            "untied_generator_embeddings=true",
            "generator_hidden_size=1/2",
        ] {
            apart.set(setting).expect("a known name");
        }
        let (generator, discriminator) = apart.networks(30522).expect("networks");
        assert_eq!(
            (generator.embedding_size, discriminator.embedding_size),
            (128, 128)
        );
        assert_eq!(generator.hidden_size, 128);
        apart
            .set("generator_hidden_size=0.25")
            .expect("a known name");
        let (generator, _) = apart.networks(30522).expect("networks");
        assert_eq!((generator.hidden_size, generator.embedding_size), (64, 64));
    }

    fn message(result: Result<(), PretrainConfigError>) -> String {
        result.expect_err("an error").to_string()
    }

    #[test]
    fn wrong_names_and_values_are_refused_by_name() {
        let mut config = PretrainConfig::preset("small").expect("a preset");
        config.set("learning_rate=1e-3").expect("a known name");
        assert_eq!(config.learning_rate, 1e-3);
        let text = message(config.set("learning_rte=1"));
        assert!(
            text.contains("\"learning_rte\"") && text.contains("did you mean \"learning_rate\""),
            "{text}"
        );
        let text = message(config.set("hidden_dropout_prob=0"));
        assert!(
            text.contains("\"model_hparam_overrides.hidden_dropout_prob\""),
            "{text}"
        );
        let text = message(config.set("initialization=1"));
        assert!(text.contains("`random` or `counts`"), "{text}");
        assert!(message(config.set("seed=-1")).contains("\"seed\""));
        assert!(message(config.set("train_batch_size=many")).contains("\"train_batch_size\""));
        assert!(message(config.set("seed")).contains("--set name=value"));
        assert!(PretrainConfig::preset("huge").is_err());
    }

    #[test]
    fn options_that_are_not_built_are_refused() {
        for key in ["electric_objective", "two_tower_generator"] {
            let mut config = PretrainConfig::preset("tiny").expect("a preset");
            config.set(&format!("{key}=true")).expect("a known name");
            let text = message(config.validate());
            assert!(text.contains(key) && text.contains("not built"), "{text}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let mut config = PretrainConfig::preset("base").expect("a preset");
        config.set("generator_hidden_size=0.3").expect("a number");
        let text = config.networks(100).expect_err("230 / 3").to_string();
        assert!(text.contains("the generator, sized by"), "{text}");
        let mut config = PretrainConfig::preset("tiny").expect("a preset");
        config
            .set("model_hparam_overrides.num_attention_heads=3")
            .expect("a known name");
        let text = config.networks(100).expect_err("128 / 3").to_string();
        assert!(
            text.contains("num_attention_heads") || text.contains("hidden_size"),
            "{text}"
        );
        let mut config = PretrainConfig::preset("tiny").expect("a preset");
        config.set("max_seq_length=600").expect("a known name");
        assert!(
            config
                .networks(100)
                .expect_err("600 > 512")
                .to_string()
                .contains("512")
        );
        config
            .set("model_hparam_overrides.hiden_size=4")
            .expect("checked later");
        let text = config.networks(100).expect_err("unknown").to_string();
        assert!(text.contains("did you mean \"hidden_size\""), "{text}");
    }
}
