//! Text, tokenizer, shards and models made for a measurement, in a directory that goes with it.

use anyhow::{Context, Result};
use electra_data::prepare::{PrepareOptions, prepare};
use electra_data::read::{Input, ReadOptions, TextLayout};
use electra_data::tokenizer::{MAX_POSITIONS, SPECIAL_TOKENS, Tokenizer};
use electra_data::words::Normalisation;
use electra_engine::batch::PackedBatch;
use electra_engine::params::ParamLayout;
use electra_engine::rng::{Purpose, Rng};
use electra_model::config::ElectraConfig;
use electra_model::discriminator::Discriminator;
use electra_model::files::{ModelKind, NamedTensor, write_model_dir};
use electra_model::init::initial_values;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Entries of a vocabulary: as many as the published models have.
pub const VOCABULARY: usize = 30_522;

/// A directory of this process, removed with all that is in it when it is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it below the system's directory for temporary files.
    pub fn new(name: &str) -> Result<Self> {
        let dir = format!("electra-bench-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(dir);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// A path below it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A word, not a special token, drawn for place `index`.
fn word(index: usize) -> u64 {
    let special = SPECIAL_TOKENS.len() as u64;
    let [high, low] = [index >> 32, index].map(|half| half as u32);
    Rng::new(0, 0).below(VOCABULARY as u64 - special, Purpose::Test, 0, high, low, 0) + special
}

/// Batches of `batch` sequences of random words below `vocabulary`, in the order of `lengths`.
pub fn batches(lengths: &[usize], batch: usize, vocabulary: usize) -> Vec<PackedBatch> {
    let mut drawn = 0;
    let chunks = lengths.chunks(batch).map(|chunk| {
        let mut packed = PackedBatch::new();
        for &length in chunk {
            let ids: Vec<u32> = (drawn..drawn + length)
                .map(|i| (word(i) % vocabulary as u64) as u32)
                .collect();
            drawn += length;
            packed.push(&ids, &vec![0; length]);
        }
        packed
    });
    chunks.collect()
}

/// Writes shards of one document a sequence, `[CLS]` and `[SEP]` counted in `lengths`, every word
/// of which is one token.
pub fn shards(scratch: &Scratch, lengths: &[usize]) -> Result<PathBuf> {
    let special = SPECIAL_TOKENS.iter().map(|name| (*name).to_owned());
    let words = (SPECIAL_TOKENS.len()..VOCABULARY).map(|id| format!("word{id}"));
    let origin = Path::new("made-up vocabulary");
    let tokenizer = Tokenizer::new(
        special.chain(words).collect(),
        Normalisation::UNCASED,
        origin,
    )?;
    let (mut text, mut drawn) = (String::new(), 0);
    for &length in lengths {
        for i in drawn..drawn + length.saturating_sub(2) {
            let space = if i == drawn { "" } else { " " };
            write!(text, "{space}word{}", word(i))?;
        }
        drawn += length;
        text.push('\n');
    }
    let (input, out) = (scratch.join("text.txt"), scratch.join("shards"));
    std::fs::write(&input, text).with_context(|| format!("cannot write {}", input.display()))?;
    let options = PrepareOptions {
        read: ReadOptions {
            layout: TextLayout::Line,
            ..ReadOptions::default()
        },
        ..PrepareOptions::default()
    };
    let input = [Input::File(input)];
    prepare(&input, &tokenizer, &out, &options, &mut |_| (), &|| false)?;
    Ok(out)
}

/// Writes an untrained discriminator.
pub fn model(scratch: &Scratch, config: &ElectraConfig) -> Result<PathBuf> {
    let mut layout = ParamLayout::new();
    Discriminator::declare(&mut layout, config);
    let values = initial_values(&layout, 0);
    let tensors = layout.params().iter().map(|param| NamedTensor {
        name: &param.names[0],
        shape: &param.shape,
        values: &values[param.view.range()],
    });
    let dir = scratch.join("model");
    write_model_dir(&dir, ModelKind::Discriminator, config, tensors)?;
    Ok(dir)
}

/// Writes the tokenizer of the binary's own text, trained on it.
pub fn embedded_tokenizer(text: &Path, dir: &Path) -> Result<()> {
    use electra_data::vocabulary::{VocabularyOptions, WordCounts};
    let mut counts = WordCounts::new(Normalisation::UNCASED);
    let inputs = [Input::File(text.to_owned())];
    counts.add_inputs(&inputs, &ReadOptions::default(), &mut |_| ())?;
    let tokenizer = counts.train(&VocabularyOptions {
        size: 8000,
        min_frequency: 2,
    })?;
    tokenizer.save(dir, MAX_POSITIONS)?;
    Ok(())
}
