//! The model configuration: a struct that *is* the `config.json` of an ELECTRA model, with the
//! keys and defaults of Hugging Face's `ElectraConfig`.
//!
//! Keys that are not ELECTRA's own (files on the hub carry many) are kept in
//! [`ElectraConfig::other`] and written back.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What can be wrong with a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The text is not a JSON object.
    #[error("{place} is not a JSON object: {problem}")]
    NotJson {
        /// The file, or what the caller called the text.
        place: String,
        /// The parser's complaint.
        problem: String,
    },
    /// A key holds a value that no ELECTRA model can have.
    #[error("{place}: \"{key}\" {problem}")]
    Key {
        /// The file, or what the caller called the text.
        place: String,
        /// The key.
        key: String,
        /// What is wrong and what would be right; a continuation of the key's name.
        problem: String,
    },
}

/// The activation of the feed-forward blocks and of the discriminator's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x/2 · (1 + erf(x/√2))`.
    #[default]
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`], as in the original BERT code.
    GeluNew,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gelu => "gelu",
            Self::GeluNew => "gelu_new",
        })
    }
}

/// An ELECTRA network's `config.json`. The default is ELECTRA-small's discriminator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ElectraConfig {
    /// Cross-attention in the layers (decoders only; not supported).
    pub add_cross_attention: bool,
    /// The transformers classes the weights were written by, such as `ElectraForPreTraining`.
    pub architectures: Option<Vec<String>>,
    /// Dropout on the attention probabilities.
    pub attention_probs_dropout_prob: f64,
    /// Beginning-of-sequence token; unused by encoders.
    pub bos_token_id: Option<i64>,
    /// Dropout of the task heads; `None`: `hidden_dropout_prob`.
    pub classifier_dropout: Option<f64>,
    /// Type of the stored weights, `float32`, `float16` or `bfloat16`; informative. Read from
    /// `torch_dtype` as well, its older name.
    pub dtype: Option<String>,
    /// Width of the embedding tables.
    pub embedding_size: usize,
    /// End-of-sequence token or tokens; unused by encoders.
    pub eos_token_id: Option<Value>,
    /// Activation of the feed-forward blocks.
    pub hidden_act: Activation,
    /// Dropout after the embeddings and after each block.
    pub hidden_dropout_prob: f64,
    /// Width of the encoder.
    pub hidden_size: usize,
    /// Names of the classes by number; `None`: `LABEL_0`, `LABEL_1`.
    pub id2label: Option<BTreeMap<u32, String>>,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Width of the feed-forward blocks.
    pub intermediate_size: usize,
    /// Causal attention (not supported).
    pub is_decoder: bool,
    /// The inverse of `id2label`.
    pub label2id: Option<BTreeMap<String, u32>>,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Rows of the position table: the longest sequence.
    pub max_position_embeddings: usize,
    /// Always `electra`.
    pub model_type: String,
    /// Attention heads a layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// The padding token.
    pub pad_token_id: Option<i64>,
    /// `regression`, `single_label_classification` or `multi_label_classification`.
    pub problem_type: Option<String>,
    /// Activation of the multiple-choice summary; `gelu` or none.
    pub summary_activation: Option<String>,
    /// Dropout after the multiple-choice summary.
    pub summary_last_dropout: f64,
    /// Which state the multiple-choice head reads.
    pub summary_type: String,
    /// Whether the multiple-choice summary has a linear layer.
    pub summary_use_proj: bool,
    /// Whether the generator's output matrix is the word embedding table.
    pub tie_word_embeddings: bool,
    /// The release of transformers that wrote the file.
    pub transformers_version: Option<String>,
    /// Rows of the token type table.
    pub type_vocab_size: usize,
    /// Cache of decoders; unused by encoders.
    pub use_cache: bool,
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Keys that are not ELECTRA's, kept as they were.
    #[serde(skip)]
    pub other: BTreeMap<String, Value>,
}

impl Default for ElectraConfig {
    fn default() -> Self {
        Self {
            add_cross_attention: false,
            architectures: None,
            attention_probs_dropout_prob: 0.1,
            bos_token_id: None,
            classifier_dropout: None,
            dtype: Some("float32".into()),
            embedding_size: 128,
            eos_token_id: None,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            hidden_size: 256,
            id2label: None,
            initializer_range: 0.02,
            intermediate_size: 1024,
            is_decoder: false,
            label2id: None,
            layer_norm_eps: 1e-12,
            max_position_embeddings: 512,
            model_type: "electra".into(),
            num_attention_heads: 4,
            num_hidden_layers: 12,
            pad_token_id: Some(0),
            problem_type: None,
            summary_activation: Some("gelu".into()),
            summary_last_dropout: 0.1,
            summary_type: "first".into(),
            summary_use_proj: true,
            tie_word_embeddings: true,
            transformers_version: None,
            type_vocab_size: 2,
            use_cache: true,
            vocab_size: 30522,
            other: BTreeMap::new(),
        }
    }
}

/// The largest value of any size, so that products of two never overflow.
const LARGEST_SIZE: usize = i32::MAX as usize;

impl ElectraConfig {
    /// Read and check a `config.json`. Errors name the file and the key.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::from_json(&text, &path.display().to_string())
    }

    /// Read and check the text of a `config.json`; `place` names it in errors.
    pub fn from_json(text: &str, place: &str) -> Result<Self, ConfigError> {
        let mut keys: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| ConfigError::NotJson {
                place: place.into(),
                problem: e.to_string(),
            })?;
        let wrong = |key: &str, problem: String| ConfigError::Key {
            place: place.into(),
            key: key.into(),
            problem,
        };
        match keys.get("model_type") {
            None | Some(Value::Null) => {
                keys.insert("model_type".into(), "electra".into());
            }
            Some(Value::String(name)) if name == "electra" => {}
            Some(other) => {
                return Err(wrong(
                    "model_type",
                    format!("is {other}; only \"electra\" models are supported"),
                ));
            }
        }
        match keys.remove("position_embedding_type") {
            None | Some(Value::Null) => {}
            Some(Value::String(name)) if name == "absolute" => {}
            Some(other) => {
                return Err(wrong(
                    "position_embedding_type",
                    format!("is {other}; only \"absolute\" is supported"),
                ));
            }
        }
        if let Some(older) = keys.remove("torch_dtype") {
            keys.entry("dtype").or_insert(older);
        }
        keys.entry("dtype").or_insert(Value::Null);
        let labels = keys.remove("num_labels");
        let other = Self::split_off_foreign(&mut keys);
        let mut config: Self = match serde_json::from_value(Value::Object(keys.clone())) {
            Ok(config) => config,
            Err(e) => {
                let (key, problem) = culprit(keys).unwrap_or_else(|| ("?".into(), e.to_string()));
                return Err(wrong(&key, problem));
            }
        };
        config.other = other;
        match labels {
            None | Some(Value::Null) => {}
            Some(count) => match count.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if n <= LARGEST_LABELS => {
                    if config.id2label.is_none() && n != 2 {
                        config.set_labels((0..n).map(|i| format!("LABEL_{i}")));
                    }
                }
                _ => return Err(wrong("num_labels", format!("is {count}; {WANT_LABELS}"))),
            },
        }
        config.check(place)?;
        Ok(config)
    }

    /// Move the keys that are not fields of this struct out of `keys`.
    fn split_off_foreign(keys: &mut Map<String, Value>) -> BTreeMap<String, Value> {
        let own = match serde_json::to_value(Self::default()) {
            Ok(Value::Object(own)) => own,
            _ => Map::new(),
        };
        let names: Vec<String> = keys
            .keys()
            .filter(|k| !own.contains_key(*k))
            .cloned()
            .collect();
        names
            .into_iter()
            .filter_map(|name| keys.remove(&name).map(|value| (name, value)))
            .collect()
    }

    /// Refuse sizes and values that no network can have. [`ElectraConfig::read`] has called this.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check("model configuration")
    }

    fn check(&self, place: &str) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::Key {
                place: place.into(),
                key: key.into(),
                problem,
            })
        };
        for (key, size) in [
            ("vocab_size", self.vocab_size),
            ("embedding_size", self.embedding_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            if size == 0 {
                return wrong(key, "is 0; it must be at least 1".into());
            }
            if size > LARGEST_SIZE {
                return wrong(key, format!("is {size}; the most is {LARGEST_SIZE}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return wrong(
                "hidden_size",
                format!(
                    "is {}, which is not divisible by \"num_attention_heads\" ({})",
                    self.hidden_size, self.num_attention_heads
                ),
            );
        }
        for (key, p) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                self.attention_probs_dropout_prob,
            ),
            ("summary_last_dropout", self.summary_last_dropout),
            ("classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
        ] {
            if !(0.0..1.0).contains(&p) {
                return wrong(
                    key,
                    format!("is {p}; a dropout rate is at least 0 and below 1"),
                );
            }
        }
        for (key, x) in [
            ("layer_norm_eps", self.layer_norm_eps),
            ("initializer_range", self.initializer_range),
        ] {
            if !(x.is_finite() && x >= 0.0) {
                return wrong(key, format!("is {x}; it must be a number not below 0"));
            }
        }
        if self.model_type != "electra" {
            return wrong(
                "model_type",
                format!(
                    "is {:?}; only \"electra\" models are supported",
                    self.model_type
                ),
            );
        }
        for (key, on) in [
            ("is_decoder", self.is_decoder),
            ("add_cross_attention", self.add_cross_attention),
        ] {
            if on {
                return wrong(key, "is true; only encoders are supported".into());
            }
        }
        self.check_labels(place)
    }

    fn check_labels(&self, place: &str) -> Result<(), ConfigError> {
        let Some(names) = &self.id2label else {
            return Ok(());
        };
        let gap = (0u32..).zip(names.keys()).find(|(want, got)| want != *got);
        if names.len() > LARGEST_LABELS || gap.is_some() {
            return Err(ConfigError::Key {
                place: place.into(),
                key: "id2label".into(),
                problem: match gap {
                    Some((want, _)) => format!("has no label {want}; number them from 0 up"),
                    None => format!("has {} labels; {WANT_LABELS}", names.len()),
                },
            });
        }
        Ok(())
    }

    /// The text of the `config.json` as transformers would write it: keys in order, two spaces.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Entry<'a> {
            Value(Value),
            // Through a `Value` its keys would be sorted as text, "10" before "2".
            Labels(&'a BTreeMap<u32, String>),
        }
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (key, value) in &self.other {
            entries.insert(key.clone(), Entry::Value(value.clone()));
        }
        if let Value::Object(own) = serde_json::to_value(self)? {
            for (key, value) in own {
                let silent_if_null = matches!(
                    key.as_str(),
                    "architectures"
                        | "dtype"
                        | "id2label"
                        | "label2id"
                        | "problem_type"
                        | "transformers_version"
                );
                if !(silent_if_null && value.is_null()) {
                    entries.insert(key, Entry::Value(value));
                }
            }
        }
        if let Some(names) = &self.id2label {
            entries.insert("id2label".into(), Entry::Labels(names));
        }
        serde_json::to_string_pretty(&entries).map(|text| text + "\n")
    }

    /// Write a `config.json`, aside and then renamed.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), ConfigError> {
        let path = path.as_ref();
        let failed = |source| ConfigError::Write {
            path: path.into(),
            source,
        };
        let text = self.to_json().map_err(|e| failed(e.into()))?;
        crate::files::atomic::replace_file(path, |file| {
            std::io::Write::write_all(file, text.as_bytes())
        })
        .map_err(|error| failed(error.source))
    }

    /// Width of one attention head. `validate` has seen that it is whole.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Whether `embeddings_project` stands between the embeddings and the first layer.
    pub fn has_projection(&self) -> bool {
        self.embedding_size != self.hidden_size
    }

    /// Dropout of the task heads.
    pub fn head_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }

    /// Number of classes; 2 where the file says nothing, as in transformers.
    pub fn num_labels(&self) -> usize {
        self.id2label.as_ref().map_or(2, BTreeMap::len)
    }

    /// The name of a class; `LABEL_i` where the file gives none.
    pub fn label(&self, class: usize) -> String {
        u32::try_from(class)
            .ok()
            .and_then(|i| self.id2label.as_ref()?.get(&i).cloned())
            .unwrap_or_else(|| format!("LABEL_{class}"))
    }

    /// Set the classes, in order, in `id2label` and `label2id`.
    pub fn set_labels<S: Into<String>>(&mut self, names: impl IntoIterator<Item = S>) {
        let names: BTreeMap<u32, String> =
            (0u32..).zip(names.into_iter().map(Into::into)).collect();
        self.label2id = Some(names.iter().map(|(i, name)| (name.clone(), *i)).collect());
        self.id2label = Some(names);
    }
}

const LARGEST_LABELS: usize = 1 << 20;
const WANT_LABELS: &str = "it must be a whole number up to 1048576";

/// The first key whose value has the wrong type, and what is wrong with it.
fn culprit(keys: Map<String, Value>) -> Option<(String, String)> {
    for (key, value) in keys {
        let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
        let Err(e) = serde_json::from_value::<ElectraConfig>(alone) else {
            continue;
        };
        let problem = if key == "hidden_act" {
            format!("is {value}; supported are \"gelu\" and \"gelu_new\"")
        } else {
            format!("is {value}: {e}")
        };
        return Some((key, problem));
    }
    None
}
