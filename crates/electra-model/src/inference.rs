//! Loaded models that answer: which tokens were replaced, and what stands behind a mask.
//!
//! A loaded model never changes. What a caller needs beside it, arrays as large as the largest
//! batch so far, is in a workspace of the caller's own.

mod encoder_model;

pub use encoder_model::{EncoderModel, EncoderWorkspace};

use crate::config::ElectraConfig;
use crate::discriminator::{Discriminator, DiscriminatorArrays};
use crate::encoder::{EncoderArrays, EncoderInput};
use crate::files::{FileError, ModelDir, ModelKind, Wanted};
use crate::generator::{Generator, GeneratorArrays};
use electra_engine::backend::{Array, Backend, Ints, RowKeys, Sequences};
use electra_engine::batch::PackedBatch;
use electra_engine::params::ParamLayout;
use std::ops::Range;

/// Rows of the vocabulary's logits that are held at once.
const LOGIT_ROWS: usize = 32;

/// A batch that does not fit the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A token that the word table does not have.
    #[error(
        "token id {id} is out of range: the model's word table has {rows} rows; the tokenizer is \
         another model's"
    )]
    Token {
        /// The id.
        id: u32,
        /// Rows of the table.
        rows: usize,
    },
    /// A text that is longer than the position table.
    #[error("a text of {tokens} tokens is longer than the model's {positions} positions")]
    Position {
        /// Tokens of the text.
        tokens: usize,
        /// Rows of the table.
        positions: usize,
    },
    /// A segment that the model does not know.
    #[error("segment {id} is out of range: the model knows {types}")]
    Segment {
        /// The segment.
        id: u32,
        /// Rows of the table.
        types: usize,
    },
    /// A row to fill that is not in the batch.
    #[error("row {row} is not in the batch of {tokens} tokens")]
    Row {
        /// The row.
        row: u32,
        /// Tokens of the batch.
        tokens: usize,
    },
}

/// Refuses what would read beyond a table.
pub(crate) fn check(config: &ElectraConfig, batch: &PackedBatch) -> Result<(), BatchError> {
    let beyond = |ids: &[u32], rows: usize| ids.iter().copied().find(|&id| id as usize >= rows);
    if let Some(id) = beyond(&batch.token_ids, config.vocab_size) {
        let rows = config.vocab_size;
        return Err(BatchError::Token { id, rows });
    }
    if let Some(id) = beyond(&batch.type_ids, config.type_vocab_size) {
        let types = config.type_vocab_size;
        return Err(BatchError::Segment { id, types });
    }
    let positions = config.max_position_embeddings;
    match beyond(&batch.position_ids, positions) {
        Some(_) => Err(BatchError::Position {
            tokens: longest(batch),
            positions,
        }),
        None => Ok(()),
    }
}

fn longest(batch: &PackedBatch) -> usize {
    let lengths = (0..batch.sequences()).map(|s| batch.rows(s).len());
    lengths.max().unwrap_or(0)
}

/// Takes the parameters of `layout`, whose names are those of a state dict, from a folder to the
/// backend, for inference. Layers that an int8 model keeps out of bytes are kept exact.
///
/// # Errors
/// Tensors that are missing, of another shape or not finite.
pub fn load_params<B: Backend>(
    backend: &mut B,
    dir: &ModelDir,
    layout: &mut ParamLayout,
) -> Result<B::Params, FileError> {
    if let Some(quantization) = dir.quantization() {
        quantization.mark(layout);
    }
    let wanted = wanted(layout);
    let tensors: Vec<Wanted> = wanted.iter().map(|(want, _)| *want).collect();
    dir.check(&tensors)?;
    backend.inference_params(layout, |part, values| {
        let inside = wanted
            .iter()
            .filter(|(_, range)| part.contains(&range.start));
        let reads = inside.map(|(want, range)| {
            let place = range.start - part.start..range.end - part.start;
            (want.name, place)
        });
        dir.read_into(reads.collect(), values)
    })
}

/// The tensors of a layout whose names are those of a state dict, each with its place.
pub(crate) fn wanted(layout: &ParamLayout) -> Vec<(Wanted<'_>, Range<usize>)> {
    let params = layout.params().iter();
    let each = params.map(|param| {
        let want = Wanted {
            name: &param.names[0],
            shape: &param.shape,
            optional: false,
        };
        (want, param.view.range())
    });
    each.collect()
}

/// Where a batch lies on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InputArrays {
    tokens: usize,
    sequences: usize,
    token_ids: Ints,
    type_ids: Ints,
    position_ids: Ints,
    /// Only random numbers read it, and there are none here.
    example: Ints,
    cu_seqlens: Ints,
}

impl InputArrays {
    pub(crate) fn new<B: Backend>(backend: &mut B, [tokens, sequences]: [usize; 2]) -> Self {
        InputArrays {
            tokens,
            sequences,
            token_ids: backend.ints(tokens),
            type_ids: backend.ints(tokens),
            position_ids: backend.ints(tokens),
            example: backend.ints(tokens),
            cu_seqlens: backend.ints(sequences + 1),
        }
    }

    /// The size that holds both what these hold and `batch`, where that is more.
    fn grown(these: Option<&Self>, batch: &PackedBatch) -> Option<[usize; 2]> {
        let have = these.map_or([0; 2], |a| [a.tokens, a.sequences]);
        let want = [batch.tokens().max(have[0]), batch.sequences().max(have[1])];
        (want != have).then_some(want)
    }

    pub(crate) fn upload<B: Backend>(&self, backend: &mut B, batch: &PackedBatch) -> EncoderInput {
        let upload = |backend: &mut B, to: Ints, values: &[u32]| {
            let to = to.first(values.len());
            backend.write_ints(to, values);
            to
        };
        let position_ids = upload(backend, self.position_ids, &batch.position_ids);
        EncoderInput {
            token_ids: upload(backend, self.token_ids, &batch.token_ids),
            type_ids: upload(backend, self.type_ids, &batch.type_ids),
            position_ids,
            sequences: Sequences {
                cu_seqlens: upload(backend, self.cu_seqlens, &batch.cu_seqlens),
                keys: RowKeys {
                    example: self.example.first(batch.tokens()),
                    position: position_ids,
                },
                longest: longest(batch),
            },
        }
    }
}

/// A caller's arrays for one model. They are all that its backend holds: a model with another
/// workspace needs another backend.
#[derive(Debug)]
pub struct Workspace<A> {
    arrays: Option<Arrays<A>>,
}

#[derive(Debug)]
struct Arrays<A> {
    input: InputArrays,
    /// The network's, for the largest batch so far.
    whole: A,
    /// The same, cut to the batch in hand.
    cut: A,
}

impl<A> Default for Workspace<A> {
    fn default() -> Self {
        Workspace { arrays: None }
    }
}

impl<A: Clone> Workspace<A> {
    /// Takes `batch` to the device; `make` makes the network's arrays where there are none of its
    /// size. Gives the whole arrays, and those to cut.
    fn upload<B: Backend>(
        &mut self,
        backend: &mut B,
        batch: &PackedBatch,
        make: impl FnOnce(&mut B, usize) -> A,
    ) -> (EncoderInput, &A, &mut A) {
        let arrays = match self.arrays.take() {
            Some(arrays) if InputArrays::grown(Some(&arrays.input), batch).is_none() => arrays,
            old => {
                let old = old.map(|old| old.input);
                let size = InputArrays::grown(old.as_ref(), batch).unwrap_or_default();
                backend.release_arrays();
                let input = InputArrays::new(backend, size);
                let whole = make(backend, size[0]);
                let cut = whole.clone();
                Arrays { input, whole, cut }
            }
        };
        let Arrays { input, whole, cut } = self.arrays.insert(arrays);
        (input.upload(backend, batch), whole, cut)
    }
}

/// A discriminator that tells replaced tokens.
#[derive(Debug)]
pub struct Detector<B: Backend> {
    config: ElectraConfig,
    network: Discriminator,
    params: B::Params,
}

/// A caller's arrays for a [`Detector`].
pub type DetectorWorkspace = Workspace<DiscriminatorArrays>;

impl<B: Backend> Detector<B> {
    /// Takes the discriminator in `dir` to the backend.
    ///
    /// # Errors
    /// A model of another kind; tensors that are missing, of another shape or not finite.
    pub fn load(backend: &mut B, dir: &ModelDir) -> Result<Self, FileError> {
        let config = dir.config().clone();
        let mut layout = ParamLayout::new();
        let network = Discriminator::declare(&mut layout, &config);
        dir.require(ModelKind::Discriminator)?;
        Ok(Detector {
            config,
            network,
            params: load_params(backend, dir, &mut layout)?,
        })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &ElectraConfig {
        &self.config
    }

    /// `[T]` logit that a token was replaced; [`sigmoid`] makes it a probability.
    ///
    /// # Errors
    /// A token, segment or position that the model has no row for.
    pub fn logits(
        &self,
        backend: &mut B,
        workspace: &mut DetectorWorkspace,
        batch: &PackedBatch,
    ) -> Result<Vec<f32>, BatchError> {
        check(&self.config, batch)?;
        let mut logits = vec![0.0; batch.tokens()];
        if logits.is_empty() {
            return Ok(logits);
        }
        let network = &self.network;
        let (input, whole, arrays) = workspace.upload(backend, batch, |backend, tokens| {
            let encoder = EncoderArrays::for_inference(backend, &network.encoder, tokens);
            DiscriminatorArrays::new(backend, network, encoder, tokens)
        });
        arrays.cut(whole, batch.tokens());
        let out = network.forward(backend, &self.params, &input, arrays, None);
        backend.read(out, &mut logits);
        Ok(logits)
    }

    /// `[T]` probability that a token was replaced.
    ///
    /// # Errors
    /// As for [`Detector::logits`].
    pub fn detect(
        &self,
        backend: &mut B,
        workspace: &mut DetectorWorkspace,
        batch: &PackedBatch,
    ) -> Result<Vec<f32>, BatchError> {
        let mut scores = self.logits(backend, workspace, batch)?;
        scores.iter_mut().for_each(|x| *x = sigmoid(*x));
        Ok(scores)
    }
}

/// `1 / (1 + exp(−x))`.
pub fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

/// A token that could stand behind a mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Vocabulary id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
}

/// A generator that predicts words.
#[derive(Debug)]
pub struct Filler<B: Backend> {
    config: ElectraConfig,
    network: Generator,
    params: B::Params,
}

/// What a [`Filler`] computes on.
#[derive(Clone, Debug)]
pub struct FillerArrays {
    network: GeneratorArrays,
    rows: Ints,
    /// `[M, H]` these rows of the encoder's output.
    chosen: Array,
    logits: Array,
}

/// A caller's arrays for a [`Filler`].
pub type FillerWorkspace = Workspace<FillerArrays>;

impl<B: Backend> Filler<B> {
    /// Takes the generator in `dir` to the backend.
    ///
    /// # Errors
    /// A model of another kind, or whose output table is not its word table; tensors that are
    /// missing, of another shape or not finite.
    pub fn load(backend: &mut B, dir: &ModelDir) -> Result<Self, FileError> {
        let config = dir.config().clone();
        dir.require(ModelKind::Generator)?;
        if !config.tie_word_embeddings {
            return Err(FileError::Unsupported {
                path: dir.path().into(),
                problem: "config.json has \"tie_word_embeddings\": false; only generators whose \
                          output table is their word table are supported"
                    .into(),
            });
        }
        let mut layout = ParamLayout::new();
        let network = Generator::declare(&mut layout, &config);
        Ok(Filler {
            config,
            network,
            params: load_params(backend, dir, &mut layout)?,
        })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &ElectraConfig {
        &self.config
    }

    /// Calls `each` with the number of each of `rows`, in order, and its logits `[V]`.
    ///
    /// # Errors
    /// A token, segment or position that the model has no row for; a row beyond the batch.
    pub fn logits(
        &self,
        backend: &mut B,
        workspace: &mut FillerWorkspace,
        batch: &PackedBatch,
        rows: &[u32],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), BatchError> {
        check(&self.config, batch)?;
        let tokens = batch.tokens();
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= tokens) {
            return Err(BatchError::Row { row, tokens });
        }
        if rows.is_empty() {
            return Ok(());
        }
        let (network, entries) = (&self.network, self.config.vocab_size);
        let (input, whole, cut) = workspace.upload(backend, batch, |backend, tokens| {
            filler_arrays(backend, network, tokens, entries)
        });
        let arrays = &mut cut.network;
        // All rows: the same may be asked for twice, and in any order.
        arrays.encoder.cut(&whole.network.encoder, tokens, None);
        let hidden =
            network
                .encoder
                .forward(backend, &self.params, &input, &mut arrays.encoder, None);
        let mut values = vec![0.0; rows.len().min(LOGIT_ROWS) * entries];
        for (chunk, rows) in rows.chunks(LOGIT_ROWS).enumerate() {
            arrays.cut_head(&whole.network, rows.len());
            let logits = whole.logits.first_rows(rows.len());
            let chosen = whole.chosen.first_rows(rows.len());
            let device_rows = whole.rows.first(rows.len());
            backend.write_ints(device_rows, rows);
            backend.gather_rows(hidden, device_rows, chosen);
            network.logits(backend, &self.params, chosen, arrays, logits);
            let values = &mut values[..rows.len() * entries];
            backend.read(logits, values);
            for (i, row) in values.chunks_exact(entries).enumerate() {
                each(chunk * LOGIT_ROWS + i, row);
            }
        }
        Ok(())
    }

    /// The `k` most probable tokens of each of `rows`, the most probable first and the lower id
    /// first of equals; only ids below `vocabulary` are given.
    ///
    /// # Errors
    /// As for [`Filler::logits`].
    pub fn fill(
        &self,
        backend: &mut B,
        workspace: &mut FillerWorkspace,
        batch: &PackedBatch,
        rows: &[u32],
        k: usize,
        vocabulary: usize,
    ) -> Result<Vec<Vec<Candidate>>, BatchError> {
        let mut filled = Vec::with_capacity(rows.len());
        self.logits(backend, workspace, batch, rows, |_, logits| {
            filled.push(most_probable(logits, k, vocabulary));
        })?;
        Ok(filled)
    }
}

fn filler_arrays<B: Backend>(
    backend: &mut B,
    network: &Generator,
    tokens: usize,
    entries: usize,
) -> FillerArrays {
    let encoder = EncoderArrays::for_inference(backend, &network.encoder, tokens);
    FillerArrays {
        network: GeneratorArrays::new(backend, network, encoder, LOGIT_ROWS),
        rows: backend.ints(LOGIT_ROWS),
        chosen: backend.array(LOGIT_ROWS, network.encoder.body.spec.hidden),
        logits: backend.array(LOGIT_ROWS, entries),
    }
}

/// The `k` largest of the first `vocabulary` logits, with log-probabilities under softmax over all.
fn most_probable(logits: &[f32], k: usize, vocabulary: usize) -> Vec<Candidate> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let log_sum = f64::from(largest) + sum.ln();
    let mut ids: Vec<u32> = (0..logits.len().min(vocabulary) as u32).collect();
    let order = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    if k < ids.len() {
        ids.select_nth_unstable_by(k, order);
        ids.truncate(k);
    }
    ids.sort_unstable_by(order);
    let log_prob = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    ids.into_iter()
        .map(|id| Candidate {
            id,
            log_prob: log_prob(id),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_come_first_and_the_lower_of_equals() {
        let logits = [1.0, 3.0, 0.0, 3.0, 9.0];
        let found = most_probable(&logits, 3, 4);
        let ids: Vec<u32> = found.iter().map(|c| c.id).collect();
        assert_eq!(ids, [1, 3, 0]);
        let whole: f32 = most_probable(&logits, 9, 9)
            .iter()
            .map(|c| c.log_prob.exp())
            .sum();
        assert!((whole - 1.0).abs() < 1e-6, "{whole}");
    }
}
