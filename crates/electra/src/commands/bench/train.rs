//! `electra bench train`: the whole step of `pretrain`, without its logs and checkpoints.

use super::batches::{BatchArgs, check_memory, largest, training_words};
use super::made_up::{self, Scratch};
use super::measure::{Clock, LengthArgs, Repetition, Spread, Work as Done};
use super::profile::{self, Measured, Outcome};
use super::report::{add_spread, device, object};
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::Result;
use electra_engine::backend::Backend;
use electra_engine::rng::Rng;
use electra_model::flops::{NetSize, train_flops_per_token};
use electra_train::config::PretrainConfig;
use electra_train::interrupt::StopFlag;
use electra_train::job::PretrainJob;
use electra_train::trainer::{Position, Trainer};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

/// The whole step of pre-training: masking, both networks with dropout, sampling, losses,
/// backward, clip and AdamW
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory that `electra prepare` wrote [default: made-up text]
    #[arg(long, conflicts_with = "lengths")]
    data: Option<PathBuf>,
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
const BATCH: usize = 16;
/// Seconds of a repetition.
const SECONDS: f64 = 3.0;
/// Batches of made-up text; more steps read them again.
const BATCHES: usize = 32;
/// Learning rate: it changes the parameters, not the time.
const LEARNING_RATE: f64 = 1e-4;
/// The shortest sequence with a token that can be masked.
const SHORTEST: usize = 3;
/// Examples whose lengths are looked at, spread over all of them.
const COUNTED: u64 = 4096;

/// Runs the subject.
pub fn run(args: Args, stop: &StopFlag) -> Result<()> {
    let mut config = PretrainConfig::preset(&args.batch.preset)?;
    let scratch;
    config.train_batch_size = args.batch.batch.map_or(BATCH, NonZeroUsize::get);
    config.max_seq_length = args.batch.seq.get();
    (config.held_out, config.eval_steps) = (0.0, 0);
    let data = match &args.data {
        Some(data) => data.clone(),
        None => {
            let (generator, discriminator) = config.networks(made_up::VOCABULARY)?;
            let positions = discriminator.max_position_embeddings;
            let batch = config.train_batch_size;
            let mut lengths = args.batch.lengths(batch, SHORTEST..=positions)?;
            // More than that of the text of 32 batches, at ten bytes a token.
            let words = training_words(&generator) + training_words(&discriminator);
            check_memory(largest(&lengths, batch), words)?;
            config.max_seq_length = lengths.iter().copied().max().unwrap_or(0);
            config.validate()?;
            let once = lengths.len();
            let wanted = match args.batch.lengths {
                // All of the file, and full batches.
                Some(_) => once.next_multiple_of(batch),
                None => BATCHES * batch,
            };
            lengths = lengths.into_iter().cycle().take(wanted).collect();
            scratch = Scratch::new("train")?;
            made_up::shards(&scratch, &lengths)?
        }
    };
    let job = PretrainJob::open(config, &data, None, None)?;
    args.device.run(Train {
        args: &args,
        job: &job,
        stop,
    })
}

struct Train<'a> {
    args: &'a Args,
    job: &'a PretrainJob,
    stop: &'a StopFlag,
}

impl Work for Train<'_> {
    const TRAINS: bool = true;
    const RATED: bool = true;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<()> {
        let outcome = profile::measure(&self, self.args.profile, backend, facts)?;
        self.report(facts, &outcome)
    }
}

impl Measured for Train<'_> {
    fn measure<B: Backend>(
        &self,
        backend: &mut B,
        facts: &Facts,
        warm: impl FnOnce(&mut B),
    ) -> Result<Vec<Repetition>> {
        let job = self.job;
        let flops_per_token = self.flops_per_token()?;
        let values = job.initial_values(&mut |_| ())?;
        let zeros = vec![0.0; values.len()];
        let start = [&values[..], &zeros, &zeros];
        let mut trainer = Trainer::new(backend, job, start, Position::default());
        drop((values, zeros));
        let mut index = 0;
        let mut pass = |backend: &mut B| {
            let before = trainer.position.tokens;
            trainer.step(backend, index, LEARNING_RATE)?;
            index += 1;
            let tokens = (trainer.position.tokens - before) as f64;
            Ok(Done {
                tokens,
                batches: 1.0,
                flops: tokens * flops_per_token,
            })
        };
        let clock = Clock::new(&self.args.length, SECONDS, facts, self.stop)?;
        let passes = clock.warm_up(|| pass(backend))?;
        warm(backend);
        clock.repeat(passes, || pass(backend))
    }
}

impl Train<'_> {
    /// Operations of training on one token, by the lengths of the examples.
    fn flops_per_token(&self) -> Result<f64> {
        let (job, networks) = (self.job, &self.job.networks);
        let generator = NetSize::from(&job.generator_config);
        let discriminator = NetSize::from(&job.discriminator_config);
        let examples = job.train.examples();
        let stride = examples.len().div_ceil(COUNTED).max(1);
        let (mut tokens, mut flops) = (0.0, 0.0);
        for number in (0..examples.len()).step_by(stride as usize) {
            let length = examples.length(number)?;
            let masked = job.masking.count(length, length.saturating_sub(2));
            let each = train_flops_per_token(
                networks.discriminator.as_ref().map(|_| &discriminator),
                networks.generator.as_ref().map(|_| &generator),
                masked as f64 / length.max(1) as f64,
                length,
            );
            tokens += length as f64;
            flops += length as f64 * each;
        }
        Ok(flops / f64::max(tokens, 1.0))
    }

    /// Milliseconds that loading, packing and masking a batch take.
    fn data_ms(&self) -> Result<Spread> {
        let (job, mut cursor) = (self.job, 0);
        let mut times = Vec::new();
        for index in 0..BATCHES as u64 {
            let start = Instant::now();
            let batch = job.train.batch(cursor)?;
            cursor = batch.next;
            let rng = Rng::new(job.config.seed, index);
            std::hint::black_box(job.masking.mask(batch.packed, 0, &rng));
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
        Ok(Spread::of(times))
    }

    fn report(&self, facts: &Facts, outcome: &Outcome) -> Result<()> {
        let (args, config) = (self.args, &self.job.config);
        let preset = &args.batch.preset;
        let mut fields = object([
            ("bench", "train".into()),
            ("preset", preset.as_str().into()),
        ]);
        let shape = args.batch.describe(config.train_batch_size, &mut fields);
        if let Some(data) = &args.data {
            fields.insert("data".into(), data.display().to_string().into());
        }
        fields.extend(device(facts));
        let data = self.data_ms()?;
        add_spread(&mut fields, "data_ms", data);
        let name = format!("train {preset} {shape} {}", facts.on());
        let rest = format!(
            "; loading, packing and masking {:.3} ms ({:.2}%)",
            data.median,
            100.0 * data.median / outcome.speed().ms.median
        );
        outcome.print(args.length.repeat.json, fields, &name, &rest)
    }
}
