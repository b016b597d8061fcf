//! A model directory: `config.json` and weights, as Hugging Face's tools have them.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::dtype::Dtype;
use super::error::FileError;
use super::kind::ModelKind;
use super::quantization::{Quantization, scales_of};
use super::safetensors_file::{NamedTensor, write_safetensors};
use super::tensors::{Read, TensorFile};
use crate::config::ElectraConfig;

/// The names of weights, in the order in which they are looked for.
pub const WEIGHT_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The files of a tokenizer; each is optional, `tokenizer.json` or `vocab.txt` must be there.
pub const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// A tensor that a network asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Its name in transformers' state dict.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Whether the network can do without: a new head, a tied output matrix.
    pub optional: bool,
}

/// What a load left over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Optional tensors that the directory lacks.
    pub missing: Vec<String>,
    /// Tensors in the directory that were not asked for, stray buffers excepted.
    pub unexpected: Vec<String>,
}

/// An opened model directory. Weights are mapped, not read, until [`ModelDir::load`].
#[derive(Debug)]
pub struct ModelDir {
    path: PathBuf,
    config: ElectraConfig,
    kind: ModelKind,
    file: TensorFile,
    /// Present name to the name in the file.
    names: BTreeMap<String, String>,
    quantization: Option<Quantization>,
    /// Of weights in bytes, the name in the file to the scales of its rows.
    scales: BTreeMap<String, Vec<f32>>,
}

impl ModelDir {
    /// Open a folder that holds `config.json` and one of [`WEIGHT_FILES`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let config = read_config(path)?;
        let quantization = Quantization::of(&config, path)?;
        let file = TensorFile::open(weights_in(path)?)?;
        let scales = read_scales(&file, quantization.is_some())?;
        let scales_names: HashSet<String> = scales.keys().map(|weight| scales_of(weight)).collect();
        let is_weight = |name: &&str| !is_stray(name) && !scales_names.contains(*name);
        let mut names = BTreeMap::new();
        for stored in file.names().filter(is_weight) {
            let present = present_name(stored);
            if let Some(other) = names.insert(present.clone(), stored.to_string()) {
                let problem = format!("tensors {other} and {stored} are both {present}");
                return Err(FileError::unsupported(file.path(), problem));
            }
        }
        if !names.keys().any(|name| name.starts_with("electra.")) {
            return Err(FileError::unsupported(file.path(), foreign(&names)));
        }
        let mut kind = ModelKind::from_tensors(names.keys().map(String::as_str));
        let named = config.architectures.iter().flatten().next();
        let named = named.and_then(|name| ModelKind::from_architecture(name));
        if kind == ModelKind::TokenClassification && named == Some(ModelKind::MultipleChoice) {
            // Without `summary_use_proj` both have the same tensors.
            kind = ModelKind::MultipleChoice;
        }
        Ok(Self {
            path: path.into(),
            config,
            kind,
            file,
            names,
            quantization,
            scales,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file the weights are in, or the index of its shards.
    pub fn weights_path(&self) -> &Path {
        self.file.path()
    }

    /// Its `config.json`.
    pub fn config(&self) -> &ElectraConfig {
        &self.config
    }

    /// What it holds, by its tensors; `architectures` in `config.json` may be mistaken, and counts only
    /// between kinds with the same tensors.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// The names of its tensors, in their present form, stray buffers left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file.shape(self.names.get(name)?)
    }

    /// How its weights are stored in bytes, where they are.
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// The length of its weights' files, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file.file_bytes()
    }

    /// The element types of its tensors, each once.
    pub fn dtypes(&self) -> Vec<String> {
        let types = self.names.values().filter_map(|name| self.file.dtype(name));
        let unique: std::collections::BTreeSet<String> = types.map(|t| t.to_string()).collect();
        unique.into_iter().collect()
    }

    /// Refuse a model of another kind than `wanted`, with what to use instead. Every kind serves
    /// where an encoder is wanted.
    pub fn require(&self, wanted: ModelKind) -> Result<(), FileError> {
        if wanted == self.kind || wanted == ModelKind::Encoder {
            return Ok(());
        }
        let advice = match (wanted, self.kind) {
            (ModelKind::Discriminator, ModelKind::Generator) => {
                "it predicts words and has no detection head; use the discriminator that was \
                 trained with it (a `discriminator` folder beside this one, or on the hub the name \
                 that ends in -discriminator)"
            }
            (ModelKind::Generator, ModelKind::Discriminator) => {
                "it tells replaced tokens and cannot predict words; use the generator that was \
                 trained with it (a `generator` folder beside this one, or on the hub the name \
                 that ends in -generator)"
            }
            (ModelKind::Discriminator | ModelKind::Generator, _) => {
                "its pre-training head is gone; use the pre-trained model it was made from"
            }
            (_, kind) if kind.is_pretrained() => "fine-tune it for the task first",
            _ => "it was fine-tuned for another task; fine-tune a pre-trained model for this one",
        };
        Err(FileError::WrongKind {
            path: self.path.clone(),
            holds: format!("{} ({})", self.kind, self.kind.architecture()),
            wanted: wanted.to_string(),
            advice: advice.into(),
        })
    }

    /// Read the wanted tensors, in their order: `out` is called with each one's number and its
    /// values, row-major, all finite. It holds one tensor at a time.
    ///
    /// Everything is checked before anything is read. Errors: a tensor missing that is not
    /// optional; another shape; NaN or infinity, named with its place.
    pub fn load(
        &self,
        wanted: &[Wanted],
        mut out: impl FnMut(usize, &[f32]),
    ) -> Result<LoadReport, FileError> {
        let report = self.check(wanted)?;
        let mut values = Vec::new();
        for (i, want) in wanted.iter().enumerate() {
            if let Some(stored) = self.names.get(want.name) {
                self.read(stored, &mut values)?;
                out(i, &values);
            }
        }
        Ok(report)
    }

    /// Read the wanted tensors at once, each into its range of `values`, by as many threads as
    /// pay. Ranges do not overlap and are as long as their tensors; of tensors that are missing
    /// they keep what was there.
    ///
    /// Errors: those of [`ModelDir::load`].
    ///
    /// # Panics
    /// Ranges that overlap or lie outside.
    pub fn load_into(
        &self,
        wanted: &[(Wanted, Range<usize>)],
        values: &mut [f32],
    ) -> Result<LoadReport, FileError> {
        let tensors: Vec<Wanted> = wanted.iter().map(|(want, _)| *want).collect();
        let report = self.check(&tensors)?;
        let reads = wanted
            .iter()
            .map(|(want, range)| (want.name, range.clone()));
        self.read_into(reads.collect(), values)?;
        Ok(report)
    }

    /// [`load_into`](ModelDir::load_into) for tensors that were [checked](ModelDir::check).
    pub(crate) fn read_into(
        &self,
        mut tensors: Vec<(&str, Range<usize>)>,
        values: &mut [f32],
    ) -> Result<(), FileError> {
        tensors.sort_by_key(|(_, range)| range.start);
        let (mut reads, mut rest, mut end) = (Vec::new(), values, 0);
        for (name, range) in tensors {
            let tail = std::mem::take(&mut rest).split_at_mut(range.start - end).1;
            let (out, tail) = tail.split_at_mut(range.len());
            (rest, end) = (tail, range.end);
            if let Some(stored) = self.names.get(name) {
                let scales = self.scales.get(stored).map(Vec::as_slice);
                reads.push(Read {
                    name: stored,
                    scales,
                    out,
                });
            }
        }
        self.file.read_all(reads)
    }

    /// Read one stored tensor, all finite.
    fn read(&self, stored: &str, values: &mut Vec<f32>) -> Result<(), FileError> {
        values.resize(self.file.elements(stored).unwrap_or(0), 0.0);
        self.file.read_all(vec![Read {
            name: stored,
            scales: self.scales.get(stored).map(Vec::as_slice),
            out: values,
        }])
    }

    /// Compare what is wanted with what is there.
    pub(crate) fn check(&self, wanted: &[Wanted]) -> Result<LoadReport, FileError> {
        let mut report = LoadReport::default();
        let mut needed = Vec::new();
        for want in wanted {
            match self.shape(want.name) {
                Some(shape) if shape == want.shape => {}
                Some(shape) => {
                    return Err(FileError::Shape {
                        path: self.file.path().into(),
                        tensor: want.name.into(),
                        found: shape.into(),
                        wanted: want.shape.into(),
                    });
                }
                None if want.optional => report.missing.push(want.name.into()),
                None => needed.push(want.name.into()),
            }
        }
        if !needed.is_empty() {
            return Err(FileError::MissingTensors {
                path: self.file.path().into(),
                names: needed,
            });
        }
        let asked: HashSet<&str> = wanted.iter().map(|w| w.name).collect();
        let unexpected = self.names().filter(|name| !asked.contains(name));
        report.unexpected = unexpected.map(String::from).collect();
        Ok(report)
    }

    /// The first NaN or infinity of each tensor that holds one, as errors that name it.
    pub fn not_finite(&self) -> Vec<FileError> {
        let mut values = Vec::new();
        let mut found = Vec::new();
        for stored in self.names.values() {
            found.extend(self.read(stored, &mut values).err());
        }
        found
    }
}

/// The scales of every weight in bytes.
fn read_scales(
    file: &TensorFile,
    quantized: bool,
) -> Result<BTreeMap<String, Vec<f32>>, FileError> {
    let mut scales = BTreeMap::new();
    let of_bytes = |name: &&str| file.dtype(name) == Some(Dtype::I8);
    for weight in file.names().filter(of_bytes) {
        let wrong = |problem: String| {
            let problem = format!("tensor {weight} holds bytes, {problem}");
            FileError::unsupported(file.path(), problem)
        };
        if !quantized {
            let problem = "but the config.json beside it has no \"quantization_config\" of an int8 \
                           model written by electra: it is another model's, or of a kind that is not \
                           read";
            return Err(wrong(problem.into()));
        }
        let name = scales_of(weight);
        let rows = match file.shape(weight) {
            Some([rows, _]) => *rows,
            other => {
                return Err(wrong(format!(
                    "which only a matrix may; its shape is {other:?}"
                )));
            }
        };
        match (file.shape(&name), file.dtype(&name)) {
            (Some([found]), Some(Dtype::F32)) if *found == rows => {}
            (Some(found), Some(dtype)) => {
                return Err(wrong(format!(
                    "and its scales {name} have shape {found:?} in {dtype} instead of [{rows}] in \
                     f32; export the model again"
                )));
            }
            _ => {
                return Err(wrong(format!(
                    "and its scales {name} are missing; export the model again"
                )));
            }
        }
        let mut values = vec![0.0; rows];
        file.read_finite(&name, &mut values)?;
        scales.insert(weight.to_owned(), values);
    }
    Ok(scales)
}

/// Read a folder's `config.json`; where there is none, say what the folder is instead.
pub(crate) fn read_config(path: &Path) -> Result<ElectraConfig, FileError> {
    let config = path.join("config.json");
    if config.exists() {
        return Ok(ElectraConfig::read(config)?);
    }
    let problem = if !path.exists() {
        "it does not exist".into()
    } else if !path.is_dir() {
        "it is a file; give the folder that holds it, with its config.json".into()
    } else if path.join("discriminator/config.json").exists() {
        let (d, g) = (path.join("discriminator"), path.join("generator"));
        format!(
            "it is a pre-training run; its models are in {} and {}",
            d.display(),
            g.display()
        )
    } else {
        "it has no config.json".into()
    };
    Err(FileError::NoModel {
        path: path.into(),
        problem,
    })
}

/// The weights file of a folder.
pub(crate) fn weights_in(path: &Path) -> Result<PathBuf, FileError> {
    if let Some(file) = WEIGHT_FILES
        .iter()
        .map(|name| path.join(name))
        .find(|p| p.exists())
    {
        return Ok(file);
    }
    let others = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot"];
    let problem = match others.iter().find(|name| path.join(name).exists()) {
        Some(other) => format!(
            "of weights it has only {other}, which is not read; save them as model.safetensors \
             with transformers' save_pretrained"
        ),
        None => format!("it has no weights; looked for {}", WEIGHT_FILES.join(", ")),
    };
    Err(FileError::NoModel {
        path: path.into(),
        problem,
    })
}

/// Buffers that older releases of transformers stored among the weights.
fn is_stray(name: &str) -> bool {
    name.ends_with("embeddings.position_ids") || name.ends_with("embeddings.token_type_ids")
}

/// A stored name as today's transformers would write it: layer norms converted from TensorFlow
/// had gamma and beta, and an encoder saved alone lacks the prefix.
fn present_name(stored: &str) -> String {
    let name = match stored.strip_suffix("LayerNorm.gamma") {
        Some(head) => format!("{head}LayerNorm.weight"),
        None => match stored.strip_suffix("LayerNorm.beta") {
            Some(head) => format!("{head}LayerNorm.bias"),
            None => stored.into(),
        },
    };
    let bare = ["embeddings.", "embeddings_project.", "encoder."];
    if bare.iter().any(|prefix| name.starts_with(prefix)) {
        return format!("electra.{name}");
    }
    name
}

fn foreign(names: &BTreeMap<String, String>) -> String {
    let first: Vec<&str> = names.keys().take(3).map(String::as_str).collect();
    if first.is_empty() {
        return "it holds no tensors".into();
    }
    format!(
        "it holds no ELECTRA encoder; tensors are named \"electra.…\" there, and here {}",
        first.join(", ")
    )
}

/// Write `config.json` and `model.safetensors` into `dir`, made if need be; each is replaced as a
/// whole. `architectures` is set to `kind`'s. The tokenizer's files are the caller's.
pub fn write_model_dir<'a>(
    dir: &Path,
    kind: ModelKind,
    config: &ElectraConfig,
    tensors: impl IntoIterator<Item = NamedTensor<'a>>,
) -> Result<(), FileError> {
    std::fs::create_dir_all(dir).map_err(FileError::write(dir))?;
    // Alone, the encoder's tensors have no prefix.
    let alone = kind == ModelKind::Encoder;
    let tensors = tensors.into_iter().map(|t| NamedTensor {
        name: t
            .name
            .strip_prefix("electra.")
            .filter(|_| alone)
            .unwrap_or(t.name),
        ..t
    });
    write_safetensors(&dir.join("model.safetensors"), tensors)?;
    let config = ElectraConfig {
        architectures: Some(vec![kind.architecture().into()]),
        dtype: Some("float32".into()),
        ..config.clone()
    };
    Ok(config.write(dir.join("config.json"))?)
}
