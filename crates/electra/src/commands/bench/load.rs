//! `electra bench load`: a model from disk to its first answer, the files in the system's cache.

use super::made_up::{self, Scratch};
use super::measure::{Clock, LengthArgs, RepeatArgs, Work as Done, peak_rss_bytes};
use super::report::{Speed, add_spread, device, object, print};
use crate::commands::export::Stored;
use crate::commands::models;
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::{Result, bail};
use electra_engine::backend::Backend;
use electra_model::files::{ModelDir, Quantization, StoredAs, export};
use electra_model::inference::{EncoderModel, EncoderWorkspace};
use electra_train::config::PretrainConfig;
use electra_train::interrupt::StopFlag;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// A model from disk to its first answer, its files in the system's cache
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory or hub name of a model [default: the preset, untrained]
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    model: Option<String>,
    /// Sizes: tiny, small, base or large
    #[arg(long, default_value = "small")]
    preset: String,
    /// How the preset's weights are stored, as `electra export` writes them
    #[arg(
        long,
        value_enum,
        value_name = "PRECISION",
        default_value = "f32",
        conflicts_with = "model"
    )]
    stored: Stored,
    /// Tokens of what is asked first
    #[arg(long, value_name = "L", default_value = "16")]
    seq: NonZeroUsize,
    #[command(flatten)]
    repeat: RepeatArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the subject.
pub fn run(args: Args, stop: &StopFlag) -> Result<()> {
    let scratch;
    let dir: PathBuf = match &args.model {
        Some(name) => models::folder(name)?,
        None => {
            let preset = PretrainConfig::preset(&args.preset)?;
            scratch = Scratch::new("load")?;
            let whole = made_up::model(&scratch, &preset.networks(made_up::VOCABULARY)?.1)?;
            let stored = match args.stored {
                Stored::F32 => StoredAs::F32,
                Stored::Bf16 => StoredAs::Bf16,
                Stored::Int8 => StoredAs::Int8(Quantization::but(Vec::new())),
            };
            let out = scratch.join("exported");
            export(&ModelDir::open(&whole)?, &stored, &out)?;
            out
        }
    };
    args.device.for_model(&ModelDir::open(&dir)?).run(Load {
        args: &args,
        dir: &dir,
        stop,
    })
}

struct Load<'a> {
    args: &'a Args,
    dir: &'a Path,
    stop: &'a StopFlag,
}

impl Work for Load<'_> {
    const TRAINS: bool = false;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<()> {
        let args = self.args;
        let config = ModelDir::open(self.dir)?.config().clone();
        let (seq, positions) = (args.seq.get(), config.max_position_embeddings);
        if seq > positions {
            bail!("--seq {seq}: the model has {positions} positions");
        }
        let batches = made_up::batches(&[seq], 1, config.vocab_size);
        let once = LengthArgs {
            seconds: None,
            steps: Some(NonZeroUsize::MIN),
            repeat: args.repeat.clone(),
        };
        let clock = Clock::new(&once, 1.0, facts, self.stop)?;
        let repetitions = clock.measure(|| {
            // Everything that an earlier answer left is gone.
            backend.release_arrays();
            let model = EncoderModel::load(backend, &ModelDir::open(self.dir)?)?;
            let (mut workspace, mut states) = (EncoderWorkspace::default(), Vec::new());
            for batch in &batches {
                model.hidden_states(backend, &mut workspace, batch, &mut states)?;
            }
            std::hint::black_box(&states);
            Ok(Done {
                batches: 1.0,
                ..Done::default()
            })
        })?;
        let speed = Speed::of(&repetitions);
        let what = args.model.as_ref().unwrap_or(&args.preset);
        let name = match args.model {
            Some(_) => "model",
            None => "preset",
        };
        let mut fields = object([
            ("bench", "load".into()),
            (name, what.as_str().into()),
            ("seq", seq.into()),
        ]);
        if args.model.is_none() {
            fields.insert("stored".into(), args.stored.name().into());
        }
        fields.extend(device(facts));
        fields.insert("repetitions".into(), repetitions.len().into());
        add_spread(&mut fields, "ms", speed.ms);
        fields.insert("peak_rss_bytes".into(), peak_rss_bytes().into());
        let line = format!(
            "load {what} {}: {:.1} ms ({:.1}–{:.1}) from disk to the first answer",
            facts.on(),
            speed.ms.median,
            speed.ms.min,
            speed.ms.max
        );
        print(args.repeat.json, fields, &line)
    }
}
