//! The trained networks as Hugging Face directories, and back.

use electra_engine::params::ParamLayout;
use electra_model::config::ElectraConfig;
use electra_model::files::{FileError, ModelDir, ModelKind, NamedTensor, Wanted, write_model_dir};
use electra_model::pretraining::{DISCRIMINATOR, GENERATOR};
use std::path::Path;

/// Which of the networks trained together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The generator.
    Generator,
    /// The discriminator.
    Discriminator,
}

impl Network {
    /// Prefix of its names in the layout.
    pub fn prefix(self) -> &'static str {
        match self {
            Network::Generator => GENERATOR,
            Network::Discriminator => DISCRIMINATOR,
        }
    }

    /// What its directory holds.
    pub fn kind(self) -> ModelKind {
        match self {
            Network::Generator => ModelKind::Generator,
            Network::Discriminator => ModelKind::Discriminator,
        }
    }

    /// Name of its directory in a run.
    pub fn directory(self) -> &'static str {
        match self {
            Network::Generator => "generator",
            Network::Discriminator => "discriminator",
        }
    }
}

/// A tensor that is written to, or read from, a network's own file.
struct Tensor<'a> {
    name: &'a str,
    shape: &'a [usize],
    range: std::ops::Range<usize>,
}

/// The network's tensors under the names of its state dict. The output table, tied to the word
/// embeddings, is left out, as transformers does.
fn tensors(layout: &ParamLayout, network: Network) -> impl Iterator<Item = Tensor<'_>> {
    layout.params().iter().filter_map(move |param| {
        let own = param
            .names
            .iter()
            .filter_map(|name| name.strip_prefix(network.prefix()));
        let name = own
            .into_iter()
            .find(|name| *name != "generator_lm_head.weight")?;
        Some(Tensor {
            name,
            shape: &param.shape,
            range: param.view.range(),
        })
    })
}

/// The values of one of the network's tensors, by its name in a model's file.
pub(crate) fn tensor<'v>(
    network: Network,
    layout: &ParamLayout,
    values: &'v [f32],
    name: &str,
) -> Option<&'v [f32]> {
    let found = tensors(layout, network).find(|t| t.name == name)?;
    Some(&values[found.range])
}

/// Writes one network of the flat array `values` to `dir`, without its tokenizer.
pub fn write_network(
    dir: &Path,
    network: Network,
    config: &ElectraConfig,
    layout: &ParamLayout,
    values: &[f32],
) -> Result<(), FileError> {
    let tensors = tensors(layout, network).map(|t| NamedTensor {
        name: t.name,
        shape: t.shape,
        values: &values[t.range],
    });
    write_model_dir(dir, network.kind(), config, tensors)
}

/// Reads one network from `dir` into the flat array `values`. A directory of the other kind, or
/// of another shape, is refused by name.
pub fn read_network(
    dir: &ModelDir,
    network: Network,
    layout: &ParamLayout,
    values: &mut [f32],
) -> Result<(), FileError> {
    dir.require(network.kind())?;
    let tensors: Vec<Tensor> = tensors(layout, network).collect();
    let wanted: Vec<_> = tensors
        .iter()
        .map(|t| {
            let want = Wanted {
                name: t.name,
                shape: t.shape,
                optional: false,
            };
            (want, t.range.clone())
        })
        .collect();
    dir.load_into(&wanted, values)?;
    Ok(())
}

/// BLAKE3 of one network's tensors in `dir`: names and f32 values in the order of the layout,
/// hexadecimal.
pub(crate) fn hash_network(
    dir: &ModelDir,
    network: Network,
    layout: &ParamLayout,
) -> Result<String, FileError> {
    let mut values = vec![0.0; layout.len()];
    read_network(dir, network, layout, &mut values)?;
    let mut hash = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for tensor in tensors(layout, network) {
        hash.update(tensor.name.as_bytes());
        bytes.clear();
        let values = values[tensor.range].iter();
        bytes.extend(values.flat_map(|value| value.to_le_bytes()));
        hash.update(&bytes);
    }
    Ok(hash.finalize().to_hex().to_string())
}
