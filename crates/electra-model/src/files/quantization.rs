//! Models whose layers' weights are stored in bytes, and what their `config.json` says of it.

use std::path::Path;

use electra_engine::params::ParamLayout;
use serde::{Deserialize, Serialize};

use super::error::FileError;
use crate::config::ElectraConfig;

/// The key of `config.json`.
const KEY: &str = "quantization_config";
/// What follows the name of a weight in bytes in the name of its scales, one a row.
const SCALES: &str = "_scale";
/// Linear layers of an encoder layer, by their names in it.
const LINEARS: [&str; 6] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
];

/// The form that this reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    /// Weights of the layers `[out, in]` from −127 to 127, each row with a scale; a weight is byte
    /// times scale.
    #[serde(rename = "electra_int8")]
    ElectraInt8,
}

/// The `quantization_config` of a model in bytes.
///
/// It has no `quant_method`: with one that it does not know, transformers only warns, and takes
/// bytes for weights; without any it refuses the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantization {
    format: Format,
    /// Linear layers whose weights are not in bytes, and are not to be multiplied in bytes.
    pub modules_to_not_convert: Vec<String>,
}

impl Quantization {
    /// Every layer in bytes but these.
    pub fn but(modules: impl IntoIterator<Item = String>) -> Self {
        Self {
            format: Format::ElectraInt8,
            modules_to_not_convert: modules.into_iter().collect(),
        }
    }

    /// What `config`, of the folder `path`, says.
    pub(crate) fn of(config: &ElectraConfig, path: &Path) -> Result<Option<Self>, FileError> {
        let Some(value) = config.other.get(KEY).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let method = value.get("quant_method").filter(|method| !method.is_null());
        if let Some(method) = method {
            return Err(FileError::unsupported(
                &path.join("config.json"),
                format!(
                    "its weights are quantized by {method}, which is not read; save the model in \
                     float32 with what wrote it"
                ),
            ));
        }
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| {
                FileError::unsupported(
                    &path.join("config.json"),
                    format!("its \"{KEY}\" is not that of an int8 model written by electra ({e})"),
                )
            })
    }

    /// Writes this into `config`, or of `None` that nothing is quantized.
    pub(crate) fn set(config: &mut ElectraConfig, this: Option<&Self>) {
        match this.and_then(|q| serde_json::to_value(q).ok()) {
            Some(value) => config.other.insert(KEY.into(), value),
            None => config.other.remove(KEY),
        };
    }

    /// Whether the linear layer of this name is in bytes.
    pub fn covers(&self, module: &str) -> bool {
        is_layer_linear(module) && !self.modules_to_not_convert.iter().any(|m| m == module)
    }

    /// Says in `layout`, whose names are those of a state dict, which weights are not to be
    /// multiplied in bytes.
    pub fn mark(&self, layout: &mut ParamLayout) {
        for module in &self.modules_to_not_convert {
            let name = format!("{module}.weight");
            if let Some(view) = layout.get(&name).map(|param| param.view) {
                layout.keep_exact(view);
            }
        }
    }
}

/// The name of the scales of the weight called `weight`.
pub(crate) fn scales_of(weight: &str) -> String {
    format!("{weight}{SCALES}")
}

/// Whether a module is a linear layer of an encoder's layer.
fn is_layer_linear(module: &str) -> bool {
    let Some(rest) = module.strip_prefix("electra.encoder.layer.") else {
        return false;
    };
    rest.split_once('.')
        .is_some_and(|(_, name)| LINEARS.contains(&name))
}

/// What `dtype` in `config.json` is of an int8 model. It keeps transformers from such a model too.
pub(crate) const DTYPE: &str = "int8";
