//! A model directory written anew with its weights in another type.

use std::io::Write;
use std::path::Path;

use electra_engine::quantize::{quantize, row_scale};

use super::atomic::{make_directory, replace_file};
use super::dtype::{Dtype, f32_to_bf16};
use super::error::FileError;
use super::model_dir::{ModelDir, TOKENIZER_FILES, Wanted};
use super::quantization::{self, Quantization, scales_of};
use super::safetensors_file::{TensorHeader, write_tensors};
use crate::config::ElectraConfig;

/// In what weights are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredAs {
    /// All in f32.
    F32,
    /// All in bf16.
    Bf16,
    /// The layers' weights in bytes where [`Quantization::covers`] them, biases and norms in f32,
    /// all others in bf16.
    Int8(Quantization),
}

/// Writes the model of `from`, of any kind, with its tokenizer to the directory `out`, which is new
/// or empty; aside, and renamed when it is whole.
///
/// Errors: `out` holds something; weights that are not finite, or too large for bf16; the disk.
pub fn export(from: &ModelDir, stored: &StoredAs, out: &Path) -> Result<(), FileError> {
    refuse_occupied(out)?;
    make_directory(
        out,
        |source| FileError::write(out)(source),
        |dir| {
            write_weights(from, stored, &dir.join("model.safetensors"))?;
            config_of(from, stored).write(dir.join("config.json"))?;
            for name in TOKENIZER_FILES {
                copy(&from.path().join(name), &dir.join(name))?;
            }
            Ok(())
        },
    )
}

/// Refuses a path at which there is something already.
fn refuse_occupied(out: &Path) -> Result<(), FileError> {
    let occupied = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.exists(),
    };
    if occupied {
        let problem = "it holds something already; remove it or give another directory";
        return Err(FileError::unsupported(out, problem));
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    if !from.exists() {
        return Ok(());
    }
    let bytes = std::fs::read(from).map_err(FileError::read(from))?;
    replace_file(to, |file| file.write_all(&bytes)).map_err(|e| FileError::write(to)(e.source))
}

fn config_of(from: &ModelDir, stored: &StoredAs) -> ElectraConfig {
    let mut config = from.config().clone();
    let (dtype, quantization) = match stored {
        StoredAs::F32 => ("float32", None),
        StoredAs::Bf16 => ("bfloat16", None),
        StoredAs::Int8(quantization) => (quantization::DTYPE, Some(quantization)),
    };
    config.dtype = Some(dtype.into());
    let architecture = || vec![from.kind().architecture().into()];
    config.architectures.get_or_insert_with(architecture);
    Quantization::set(&mut config, quantization);
    config
}

/// What a tensor of the new file is made of.
enum Content {
    /// The tensor of this name, whole.
    Tensor(String),
    /// Its bytes.
    Bytes(String),
    /// The scales of its rows.
    Scales(String),
}

fn write_weights(from: &ModelDir, stored: &StoredAs, path: &Path) -> Result<(), FileError> {
    let names: Vec<&str> = from.names().collect();
    // Alone, the encoder's tensors have no prefix.
    let alone = names.iter().all(|name| name.starts_with("electra."));
    let mut tensors: Vec<(TensorHeader, Content)> = Vec::new();
    for name in names {
        if name == "generator_lm_head.weight" && from.config().tie_word_embeddings {
            continue;
        }
        let shape = from.shape(name).unwrap_or_default();
        let written = name
            .strip_prefix("electra.")
            .filter(|_| alone)
            .unwrap_or(name);
        let header = |name: &str, dtype, shape: &[usize]| TensorHeader {
            name: name.into(),
            dtype,
            shape: shape.into(),
        };
        let own = || name.to_owned();
        let module = name.strip_suffix(".weight");
        match stored {
            StoredAs::Int8(q) if module.is_some_and(|m| q.covers(m)) && shape.len() == 2 => {
                let scales = header(&scales_of(written), Dtype::F32, &shape[..1]);
                tensors.push((scales, Content::Scales(own())));
                tensors.push((header(written, Dtype::I8, shape), Content::Bytes(own())));
            }
            _ => {
                let vector = name.contains("LayerNorm") || name.ends_with(".bias");
                let dtype = match stored {
                    StoredAs::F32 => Dtype::F32,
                    StoredAs::Int8(_) if vector => Dtype::F32,
                    _ => Dtype::Bf16,
                };
                tensors.push((header(written, dtype, shape), Content::Tensor(own())));
            }
        }
    }
    // Every tensor begins at a multiple of its elements' size.
    tensors.sort_by_key(|(header, _)| std::cmp::Reverse(header.dtype.size()));
    let headers: Vec<TensorHeader> = tensors.iter().map(|(header, _)| header.clone()).collect();
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    write_tensors(path, &headers, |i, out| {
        let (header, content) = &tensors[i];
        bytes.clear();
        let (Content::Tensor(name) | Content::Bytes(name) | Content::Scales(name)) = content;
        read(from, name, &mut values)?;
        let cols = from
            .shape(name)
            .and_then(|s| s.last().copied())
            .unwrap_or(0)
            .max(1);
        match content {
            Content::Scales(_) => {
                bytes.extend(
                    values
                        .chunks(cols)
                        .flat_map(|row| row_scale(row).to_le_bytes()),
                );
            }
            Content::Bytes(_) => {
                let mut row_bytes = vec![0; cols];
                for row in values.chunks_exact(cols) {
                    quantize(row, row_scale(row), &mut row_bytes);
                    bytes.extend(row_bytes.iter().map(|b| *b as u8));
                }
            }
            Content::Tensor(_) if header.dtype == Dtype::F32 => {
                bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            }
            Content::Tensor(_) => {
                let large = values
                    .iter()
                    .position(|x| f32_to_bf16(*x) & 0x7fff == 0x7f80);
                if let Some(at) = large {
                    let problem = format!(
                        "tensor {name} holds {} at element {at}, more than bf16 can; export it in f32",
                        values[at]
                    );
                    return Err(FileError::unsupported(from.weights_path(), problem));
                }
                bytes.extend(values.iter().flat_map(|x| f32_to_bf16(*x).to_le_bytes()));
            }
        }
        out.write_all(&bytes).map_err(FileError::write(path))
    })
}

fn read(from: &ModelDir, name: &str, values: &mut Vec<f32>) -> Result<(), FileError> {
    let shape = from.shape(name).unwrap_or_default();
    let want = Wanted {
        name,
        shape,
        optional: false,
    };
    from.load(&[want], |_, read| {
        values.clear();
        values.extend_from_slice(read);
    })?;
    Ok(())
}
