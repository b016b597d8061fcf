//! `electra bench infer`: token ids in, the last hidden states of all tokens out in f32, no head.

use super::batches::{BatchArgs, check_memory, largest};
use super::made_up;
use super::measure::{Clock, LengthArgs, Repetition, Work as Done};
use super::profile::{self, Measured, Outcome};
use super::report::{device, object};
use crate::commands::models;
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::Result;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_model::config::ElectraConfig;
use electra_model::files::ModelDir;
use electra_model::flops::{Head, NetSize, matmul_flops_per_token};
use electra_model::inference::{EncoderModel, EncoderWorkspace};
use electra_train::config::PretrainConfig;
use electra_train::interrupt::StopFlag;
use std::num::NonZeroUsize;

/// Token ids in, all last hidden states out as f32, no head
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory or hub name of a model [default: the preset, untrained]
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    model: Option<String>,
    #[command(flatten)]
    batch: BatchArgs,
    /// Say where the time goes
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    length: LengthArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Sequences of a batch.
const BATCH: usize = 32;
/// Seconds of a repetition.
const SECONDS: f64 = 1.0;

/// Runs the subject.
pub fn run(args: Args, stop: &StopFlag) -> Result<()> {
    let dir = match &args.model {
        Some(name) => Some(ModelDir::open(models::folder(name)?)?),
        None => None,
    };
    let config = match &dir {
        Some(dir) => dir.config().clone(),
        None => {
            let preset = PretrainConfig::preset(&args.batch.preset)?;
            preset.networks(made_up::VOCABULARY)?.1
        }
    };
    let batch = args.batch.batch.map_or(BATCH, NonZeroUsize::get);
    let lengths = args
        .batch
        .lengths(batch, 1..=config.max_position_embeddings)?;
    let words = 10 * config.hidden_size + 2 * config.intermediate_size + 3 * config.embedding_size;
    check_memory(largest(&lengths, batch), words)?;
    let device = match &dir {
        Some(dir) => args.device.for_model(dir),
        None => args.device.clone(),
    };
    device.run(Infer {
        batches: made_up::batches(&lengths, batch, config.vocab_size),
        args: &args,
        dir,
        config,
        stop,
    })
}

struct Infer<'a> {
    args: &'a Args,
    dir: Option<ModelDir>,
    config: ElectraConfig,
    batches: Vec<PackedBatch>,
    stop: &'a StopFlag,
}

impl Work for Infer<'_> {
    const TRAINS: bool = false;
    const RATED: bool = true;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<()> {
        let outcome = profile::measure(&self, self.args.profile, backend, facts)?;
        self.report(facts, &outcome)
    }
}

impl Measured for Infer<'_> {
    fn measure<B: Backend>(
        &self,
        backend: &mut B,
        facts: &Facts,
        warm: impl FnOnce(&mut B),
    ) -> Result<Vec<Repetition>> {
        let model = match &self.dir {
            Some(dir) => EncoderModel::load(backend, dir)?,
            None => EncoderModel::untrained(backend, &self.config, 0),
        };
        let (mut workspace, mut states) = (EncoderWorkspace::default(), Vec::new());
        let work = self.work();
        let mut pass = |backend: &mut B| {
            for batch in &self.batches {
                model.hidden_states(backend, &mut workspace, batch, &mut states)?;
                std::hint::black_box(&states);
            }
            Ok(work)
        };
        let clock = Clock::new(&self.args.length, SECONDS, facts, self.stop)?;
        let passes = clock.warm_up(|| pass(backend))?;
        warm(backend);
        clock.repeat(passes, || pass(backend))
    }
}

impl Infer<'_> {
    /// What one pass over all batches works through.
    fn work(&self) -> Done {
        let net = NetSize::from(&self.config);
        let sequences = self
            .batches
            .iter()
            .flat_map(|batch| (0..batch.sequences()).map(|s| batch.rows(s).len()));
        let flops = sequences.map(|n| n as f64 * matmul_flops_per_token(&net, Head::None, n));
        let tokens: usize = self.batches.iter().map(PackedBatch::tokens).sum();
        Done {
            tokens: tokens as f64,
            batches: self.batches.len() as f64,
            flops: flops.sum(),
        }
    }

    fn report(&self, facts: &Facts, outcome: &Outcome) -> Result<()> {
        let args = self.args;
        let what = args.model.as_ref().unwrap_or(&args.batch.preset);
        let name = match args.model {
            Some(_) => "model",
            None => "preset",
        };
        let mut fields = object([("bench", "infer".into()), (name, what.as_str().into())]);
        let batch = args.batch.batch.map_or(BATCH, NonZeroUsize::get);
        let shape = args.batch.describe(batch, &mut fields);
        fields.extend(device(facts));
        let name = format!("infer {what} {shape} {}", facts.on());
        outcome.print(args.length.repeat.json, fields, &name, "")
    }
}
