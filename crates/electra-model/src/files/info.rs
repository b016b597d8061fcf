//! What a model directory holds, for `electra info`.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::atomic::readable_bytes;
use super::error::FileError;
use super::kind::ModelKind;
use super::model_dir::ModelDir;
use super::tokenizer_facts;
pub use super::tokenizer_facts::{SPECIAL_TOKENS, TokenizerFacts};
use crate::config::{Activation, ElectraConfig};
use crate::flops::{Head, NetSize, matmul_flops_per_token};

/// The length of text that operations are counted for, or less where positions are fewer.
const LENGTH: usize = 128;
/// The share of tokens that a generator predicts.
const PREDICTED: f64 = 0.15;

/// What a model directory holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelInfo {
    /// The folder.
    pub path: String,
    /// Which head stands on the encoder.
    pub kind: ModelKind,
    /// The transformers class that loads it.
    pub architecture: String,
    /// The file that holds the weights.
    pub weights: String,
    /// The types of the stored weights, such as `f32`.
    pub dtype: String,
    /// In what they are stored: `int8`, or what `dtype` says.
    pub precision: String,
    /// Of an int8 model, layers whose weights are not in bytes.
    pub kept_exact: Vec<String>,
    /// The length of the weights' files.
    pub bytes: u64,
    /// Layers.
    pub layers: usize,
    /// Width of the encoder.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward blocks.
    pub ffn: usize,
    /// Width of the embeddings.
    pub embedding: usize,
    /// Rows of the word table.
    pub vocab: usize,
    /// The longest text, in tokens.
    pub max_positions: usize,
    /// The activation.
    pub activation: Activation,
    /// Parameters stored; a tied output matrix counts once.
    pub parameters: u64,
    /// Operations of the matrix products of one forward pass, per token.
    pub flops_per_token: f64,
    /// The length of text for which `flops_per_token` holds.
    pub flops_length: usize,
    /// The classes of a fine-tuned classifier.
    pub labels: Vec<String>,
    /// The tokenizer, where there is one.
    pub tokenizer: Option<TokenizerFacts>,
    /// What is wrong, in words; empty where nothing is.
    pub problems: Vec<String>,
}

/// Look into a model directory. Reads every weight once, to find NaN.
///
/// Errors where there is no model to describe; whatever else is wrong is in
/// [`ModelInfo::problems`].
pub fn describe(dir: impl AsRef<Path>) -> Result<ModelInfo, FileError> {
    let model = ModelDir::open(&dir)?;
    let config = model.config();
    let kind = model.kind();
    let mut problems = Vec::new();
    if let Some(named) = config.architectures.iter().flatten().next()
        && ModelKind::from_architecture(named) != Some(kind)
    {
        problems.push(format!(
            "config.json names {named}, but the weights are {kind}'s ({})",
            kind.architecture()
        ));
    }
    check_shapes(&model, &mut problems);
    problems.extend(model.not_finite().iter().map(FileError::to_string));
    let tokenizer = tokenizer_facts::read(model.path(), &mut problems);
    if let Some(tokenizer) = &tokenizer {
        check_vocabulary(tokenizer, config, &mut problems);
    }
    let net = NetSize::from(config);
    let length = LENGTH.min(config.max_position_embeddings);
    let head = match kind {
        ModelKind::Discriminator => Head::Discriminator,
        ModelKind::Generator => Head::Generator {
            predicted: PREDICTED,
        },
        ModelKind::SequenceClassification => Head::Text {
            outputs: config.num_labels(),
        },
        _ => Head::None,
    };
    let classifies = matches!(
        kind,
        ModelKind::SequenceClassification | ModelKind::TokenClassification
    );
    Ok(ModelInfo {
        path: model.path().display().to_string(),
        kind,
        architecture: kind.architecture().into(),
        weights: model
            .weights_path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into(),
        dtype: model.dtypes().join(", "),
        precision: match model.quantization() {
            Some(_) => "int8".into(),
            None => model.dtypes().join(", "),
        },
        kept_exact: model
            .quantization()
            .map_or(Vec::new(), |q| q.modules_to_not_convert.clone()),
        bytes: model.file_bytes(),
        layers: net.layers,
        hidden: net.hidden,
        heads: net.heads,
        ffn: net.ffn,
        embedding: net.embedding,
        vocab: net.vocab,
        max_positions: net.max_positions,
        activation: config.hidden_act,
        parameters: parameters(&model),
        flops_per_token: matmul_flops_per_token(&net, head, length),
        flops_length: length,
        labels: if classifies {
            (0..config.num_labels()).map(|i| config.label(i)).collect()
        } else {
            Vec::new()
        },
        tokenizer,
        problems,
    })
}

fn parameters(model: &ModelDir) -> u64 {
    let tied = model.config().tie_word_embeddings;
    let counted = model
        .names()
        .filter(|name| !(tied && *name == "generator_lm_head.weight"));
    let sizes = counted.filter_map(|name| model.shape(name));
    sizes
        .map(|shape| shape.iter().map(|d| *d as u64).product::<u64>())
        .sum()
}

/// Compare the tensors that give the sizes away with the configuration.
fn check_shapes(model: &ModelDir, problems: &mut Vec<String>) {
    let c = model.config();
    let (e, h) = (c.embedding_size, c.hidden_size);
    let last = format!(
        "electra.encoder.layer.{}.output.dense.weight",
        c.num_hidden_layers.saturating_sub(1)
    );
    for (name, shape) in [
        (
            "electra.embeddings.word_embeddings.weight",
            vec![c.vocab_size, e],
        ),
        (
            "electra.embeddings.position_embeddings.weight",
            vec![c.max_position_embeddings, e],
        ),
        (
            "electra.embeddings.token_type_embeddings.weight",
            vec![c.type_vocab_size, e],
        ),
        (
            "electra.encoder.layer.0.attention.self.query.weight",
            vec![h, h],
        ),
        (
            "electra.encoder.layer.0.intermediate.dense.weight",
            vec![c.intermediate_size, h],
        ),
        (last.as_str(), vec![h, c.intermediate_size]),
    ] {
        match model.shape(name) {
            None => problems.push(format!("tensor {name} is missing")),
            Some(found) if found != shape => {
                problems.push(format!(
                    "tensor {name} has shape {found:?}, by config.json it has {shape:?}"
                ));
            }
            Some(_) => {}
        }
    }
    let beyond = format!("electra.encoder.layer.{}.", c.num_hidden_layers);
    if model.names().any(|name| name.starts_with(&beyond)) {
        problems.push(format!(
            "the weights have more layers than config.json's {}",
            c.num_hidden_layers
        ));
    }
}

fn check_vocabulary(
    tokenizer: &TokenizerFacts,
    config: &ElectraConfig,
    problems: &mut Vec<String>,
) {
    // A table may be longer than the vocabulary, for the hardware's sake, but never shorter.
    if tokenizer.tokens > config.vocab_size {
        problems.push(format!(
            "{} has {} tokens, but the word table only {} rows (\"vocab_size\" in config.json)",
            tokenizer.file, tokenizer.tokens, config.vocab_size
        ));
    } else if tokenizer.tokens < config.vocab_size {
        problems.push(format!(
            "{} has {} tokens and the word table {} rows: harmless if the table was padded, \
             otherwise the tokenizer is another model's",
            tokenizer.file, tokenizer.tokens, config.vocab_size
        ));
    }
}

impl fmt::Display for ModelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path)?;
        writeln!(f, "  kind        {} ({})", self.kind, self.architecture)?;
        writeln!(
            f,
            "  encoder     {} layers × {}, {} heads, feed-forward {}, {}",
            self.layers, self.hidden, self.heads, self.ffn, self.activation
        )?;
        writeln!(
            f,
            "  embeddings  {} tokens × {}, {} positions",
            self.vocab, self.embedding, self.max_positions
        )?;
        writeln!(
            f,
            "  parameters  {:.2} M in {} ({}, {})",
            self.parameters as f64 / 1e6,
            self.weights,
            self.precision,
            readable_bytes(self.bytes)
        )?;
        if !self.kept_exact.is_empty() {
            writeln!(f, "  not in int8 {}", self.kept_exact.join(", "))?;
        }
        writeln!(
            f,
            "  cost        {:.1} MFLOP a token forward, in texts of {}",
            self.flops_per_token / 1e6,
            self.flops_length
        )?;
        if !self.labels.is_empty() {
            writeln!(f, "  labels      {}", self.labels.join(", "))?;
        }
        if let Some(t) = &self.tokenizer {
            let case = match t.lowercase {
                Some(true) => "uncased",
                Some(false) => "cased",
                None => "case not stated",
            };
            writeln!(
                f,
                "  tokenizer   {} tokens, {case}, from {}",
                t.tokens, t.file
            )?;
        }
        if self.problems.is_empty() {
            return write!(f, "  problems    none found");
        }
        write!(f, "  problems")?;
        for problem in &self.problems {
            write!(f, "\n    - {problem}")?;
        }
        Ok(())
    }
}
