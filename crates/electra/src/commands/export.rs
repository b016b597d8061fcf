//! `electra export`: a model written anew with smaller weights.

use super::{models, predict};

use crate::device::{asked_isa, thread_count};
use crate::embedded;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use electra_data::tokenizer::Tokenizer;
use electra_engine::batch::PackedBatch;
use electra_engine::cpu::{Cpu, CpuOptions, CpuParams, Isa, Precision as CpuPrecision};
use electra_model::files::atomic::readable_bytes;
use electra_model::files::{ModelDir, Quantization, StoredAs, export};
use electra_model::sensitivity::{Effect, Probe, THRESHOLD, relative_deviation};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write a model anew with its weights in another precision
///
/// bf16 models are half as large and load in transformers. int8 models are smaller still and are
/// computed in int8; layers that would lose too much on sample text stay in bf16.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a model, or its name on the hub
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Precision of the stored weights
    #[arg(long, value_enum)]
    precision: Stored,
    /// Directory to write, new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Text, of which the first 1,024 tokens show which layers lose too much in int8; one text a
    /// line [default: verses inside the binary]
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// Threads [default: as many as there are cores]
    #[arg(long, env = "ELECTRA_THREADS")]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// In what weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Stored {
    /// Single precision
    F32,
    /// bfloat16
    Bf16,
    /// Those of layers as bytes, the rest in bfloat16
    Int8,
}

impl Stored {
    /// As options have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Stored::F32 => "f32",
            Stored::Bf16 => "bf16",
            Stored::Int8 => "int8",
        }
    }
}

/// Tokens of sample text: beyond, the deviations change little.
const SAMPLE_TOKENS: usize = 1024;
/// Tokens of one text of the sample.
const TEXT_TOKENS: usize = 128;
/// Verses between two of the sample, so that it comes from all of the text.
const VERSE_STEP: usize = 331;
/// Share of unknown tokens above which a sample says little.
const UNKNOWN: f64 = 0.3;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let dir = ModelDir::open(models::folder(&args.model)?)?;
    if args.sample.is_some() && args.precision != Stored::Int8 {
        bail!("--sample: only --precision int8 looks at text");
    }
    let mut measured = None;
    let stored = match args.precision {
        Stored::F32 => StoredAs::F32,
        Stored::Bf16 => StoredAs::Bf16,
        Stored::Int8 => {
            if dir.quantization().is_some() {
                bail!(
                    "{} is an int8 model already; export the model that it was made from",
                    dir.path().display()
                );
            }
            let found = measured.insert(measure(&args, &dir)?);
            StoredAs::Int8(Quantization::but(found.kept.clone()))
        }
    };
    export(&dir, &stored, &args.out)?;
    let written = ModelDir::open(&args.out)?;
    let (before, after) = (dir.file_bytes(), written.file_bytes());
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let mut object = json!({ "out": args.out, "bytes": after, "bytes_before": before });
        if let Some(found) = measured {
            object["kept_exact"] = found.kept.into();
            object["deviation"] = found.deviation.into();
            object["products"] = found
                .effects
                .iter()
                .map(|e| json!({ "modules": e.modules, "deviation": e.deviation }))
                .collect();
        }
        writeln!(stdout, "{object}")?;
    } else {
        writeln!(
            stdout,
            "{}: weights of {} from {}",
            args.out.display(),
            readable_bytes(after),
            readable_bytes(before)
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What int8 costs.
struct Measured {
    /// Modules that are not to be computed in bytes.
    kept: Vec<String>,
    /// Relative deviation of the last hidden states with all others in bytes.
    deviation: f64,
    /// Of each product alone in bytes.
    effects: Vec<Effect>,
}

/// Finds the layers that lose too much.
fn measure(args: &Args, dir: &ModelDir) -> Result<Measured> {
    let tokenizer = predict::tokenizer_of(dir)?;
    let batch = sample(args.sample.as_deref(), dir, &tokenizer)?;
    // Without products of halves all but bytes is f32, so that nothing else shows in the deviations.
    let asked = asked_isa()?;
    let mut isas = asked.into_iter().chain(Isa::available());
    let isa = isas.find(|isa| !isa.has_halves());
    if let (Some(asked), Some(isa)) = (asked, isa)
        && asked != isa
    {
        tell!(
            "ELECTRA_ISA={}: its bf16 would show in what is measured; using {}",
            asked.name(),
            isa.name()
        );
    }
    let mut backend = Cpu::new(CpuOptions {
        threads: Some(thread_count(args.threads)?),
        precision: CpuPrecision::Int8,
        isa,
    })?;
    let tokens = batch.tokens();
    let mut probe = Probe::<Cpu>::new(&mut backend, dir, batch, CpuParams::keep_exact)?;
    tell!("measuring on {tokens} tokens what int8 costs in each layer");
    let effects = probe.effects(&mut backend);
    let largest = effects.iter().map(|e| e.deviation).fold(0.0, f64::max);
    let mut kept = Vec::new();
    for effect in effects
        .iter()
        .filter(|e| e.deviation.is_nan() || e.deviation > THRESHOLD)
    {
        tell!(
            "stays in bf16: {} (alone in int8, the last hidden states deviate by {:.3} of their \
             size; the limit is {THRESHOLD})",
            effect.modules.join(", "),
            effect.deviation
        );
        kept.extend(effect.modules.iter().cloned());
    }
    let exact = probe.states(&mut backend, |_| false);
    let quantized = probe.states(&mut backend, |these| {
        !these.iter().any(|m| kept.contains(m))
    });
    let deviation = relative_deviation(&quantized, &exact, dir.config().hidden_size);
    tell!(
        "the last hidden states deviate by {deviation:.4} of their size in int8; by at most \
         {largest:.4} with one product alone in int8"
    );
    Ok(Measured {
        kept,
        deviation,
        effects,
    })
}

/// Tokens of the sample text.
fn sample(path: Option<&Path>, dir: &ModelDir, tokenizer: &Tokenizer) -> Result<PackedBatch> {
    let mut batch = PackedBatch::new();
    let special = tokenizer.special();
    let longest = TEXT_TOKENS.min(dir.config().max_position_embeddings) - 2;
    let (mut unknown, mut all) = (0, 0);
    let mut add = |text: &str| -> Result<bool> {
        let mut ids = tokenizer.encode(text);
        ids.truncate(longest);
        if ids.is_empty() {
            return Ok(true);
        }
        unknown += ids.iter().filter(|&&id| id == special.unk).count();
        all += ids.len();
        ids.insert(0, special.cls);
        ids.push(special.sep);
        batch.push(&ids, &vec![0; ids.len()]);
        Ok(batch.tokens() < SAMPLE_TOKENS)
    };
    match path {
        Some(path) => {
            let name = path.display();
            let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
            for line in BufReader::new(file).lines() {
                if !add(&line.with_context(|| format!("cannot read {name}"))?)? {
                    break;
                }
            }
        }
        None => {
            for verse in embedded::TEXT.lines().step_by(VERSE_STEP) {
                if !add(verse)? {
                    break;
                }
            }
        }
    }
    if all == 0 {
        bail!("the sample holds no text");
    }
    if unknown as f64 > UNKNOWN * all as f64 {
        tell!(
            "warning: {unknown} of the sample's {all} tokens are unknown to the model; give text \
             like its own with --sample"
        );
    }
    Ok(batch)
}
