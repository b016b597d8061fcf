//! What a measured batch looks like: a preset, a number of sequences, and their lengths.

use anyhow::{Context, Result, bail};
use electra_model::config::ElectraConfig;
use electra_model::files::atomic::readable_bytes;
use electra_train::progress::available_memory_bytes;
use serde_json::{Map, Value};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Most sequences of a batch.
const MAX_BATCH: usize = 1 << 20;

/// The shape of a batch.
#[derive(Clone, Debug, clap::Args)]
pub struct BatchArgs {
    /// Sizes: tiny, small, base or large
    #[arg(long, default_value = "small")]
    pub preset: String,
    /// Sequences of a batch [default: 32, in training 16]
    #[arg(long, value_name = "B")]
    pub batch: Option<NonZeroUsize>,
    /// Tokens of a sequence, special ones included
    #[arg(long, value_name = "L", default_value = "128")]
    pub seq: NonZeroUsize,
    /// A file with the length of one sequence a line, instead of --seq: ragged batches in its order
    #[arg(long, value_name = "FILE", conflicts_with = "seq")]
    pub lengths: Option<PathBuf>,
}

impl BatchArgs {
    /// The lengths of all sequences: `batch` times `--seq`, or those of the file.
    ///
    /// # Errors
    /// Too many sequences; a file that cannot be read or is empty; a length that is not in
    /// `allowed`.
    pub fn lengths(&self, batch: usize, allowed: RangeInclusive<usize>) -> Result<Vec<usize>> {
        if batch > MAX_BATCH {
            bail!("--batch {batch}: at most {MAX_BATCH}");
        }
        if let Some(path) = &self.lengths {
            return read_lengths(path, allowed);
        }
        let (seq, most) = (self.seq.get(), *allowed.end());
        if !allowed.contains(&seq) {
            let least = *allowed.start();
            bail!("--seq {seq}: a sequence has from {least} to {most} tokens here");
        }
        Ok(vec![seq; batch])
    }

    /// As [`lengths`](BatchArgs::lengths), for what times a single batch.
    ///
    /// # Errors
    /// As there; or the file has more sequences than a batch.
    pub fn lengths_of_one(
        &self,
        batch: usize,
        allowed: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        let lengths = self.lengths(batch, allowed)?;
        match (&self.lengths, lengths.len()) {
            (Some(path), count) if count > batch => bail!(
                "{}: {count} sequences, and one batch of {batch} is timed here; shorten the file or \
                 raise --batch",
                path.display()
            ),
            _ => Ok(lengths),
        }
    }

    /// Adds the shape to `fields`, and returns it for people.
    pub fn describe(&self, batch: usize, fields: &mut Map<String, Value>) -> String {
        fields.insert("batch".into(), batch.into());
        match &self.lengths {
            Some(path) => {
                fields.insert("lengths".into(), path.display().to_string().into());
                format!("{batch} ragged")
            }
            None => {
                fields.insert("seq".into(), self.seq.get().into());
                format!("{batch}×{}", self.seq)
            }
        }
    }
}

/// Tokens of the largest batch of `batch` sequences.
pub fn largest(lengths: &[usize], batch: usize) -> usize {
    let sums = lengths.chunks(batch).map(|chunk| chunk.iter().sum());
    sums.max().unwrap_or(0)
}

/// f32 that a training step keeps of one token of a network, about: of each layer what backward
/// reads, and once what one layer's forward and backward need.
pub fn training_words(config: &ElectraConfig) -> usize {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    config.num_hidden_layers * (8 * hidden + wide) + 16 * hidden + 3 * wide
}

/// Refuses work on `tokens` that takes more memory than is free, at `words` f32 a token.
///
/// # Errors
/// There is less.
pub fn check_memory(tokens: usize, words: usize) -> Result<()> {
    let needed = (tokens as u64).saturating_mul(4 * words as u64);
    match available_memory_bytes() {
        Some(free) if needed > free => bail!(
            "this takes about {}, but {} are free; lower --batch or --seq",
            readable_bytes(needed),
            readable_bytes(free)
        ),
        _ => Ok(()),
    }
}

fn read_lengths(path: &Path, allowed: RangeInclusive<usize>) -> Result<Vec<usize>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let mut lengths = Vec::new();
    for (i, line) in text.lines().enumerate() {
        match line.trim().parse() {
            Ok(length) if allowed.contains(&length) => lengths.push(length),
            _ => bail!(
                "{shown}, line {}: expected the length of one sequence, a whole number from {} to \
                 {}, found {line:?}",
                i + 1,
                allowed.start(),
                allowed.end()
            ),
        }
    }
    if lengths.is_empty() {
        bail!("{shown} is empty; expected the length of one sequence a line");
    }
    Ok(lengths)
}
