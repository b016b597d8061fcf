//! `electra bench finetune`: the whole step of fine-tuning a classifier of two classes.

use super::batches::{BatchArgs, check_memory, largest, training_words};
use super::made_up;
use super::measure::{Clock, LengthArgs, Repetition, Work as Done};
use super::profile::{self, Measured, Outcome};
use super::report::{device, object};
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::Result;
use electra_data::tasks::{Features, Sequence, Target};
use electra_engine::backend::Backend;
use electra_engine::rng::Rng;
use electra_model::config::ElectraConfig;
use electra_model::flops::{Head, NetSize, matmul_flops_per_token};
use electra_model::heads::losses::ClassOptions;
use electra_model::heads::network::TaskNetwork;
use electra_model::heads::{HeadKind, HeadSpec, HeadStyle};
use electra_model::init::initial_values;
use electra_train::config::PretrainConfig;
use electra_train::finetune::trainer::{StepSettings, Trainer};
use electra_train::interrupt::StopFlag;
use std::num::NonZeroUsize;

/// The whole step of fine-tuning a text classifier: dropout, loss, backward, clip and AdamW with
/// layerwise learning rates
#[derive(Debug, clap::Args)]
pub struct Args {
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
const SECONDS: f64 = 3.0;
/// Learning rate: it changes the parameters, not the time.
const LEARNING_RATE: f64 = 1e-5;
/// Layerwise decay of the learning rate, as `small` is fine-tuned.
const LAYERWISE_LR_DECAY: f64 = 0.8;

/// Runs the subject.
pub fn run(args: Args, stop: &StopFlag) -> Result<()> {
    let preset = PretrainConfig::preset(&args.batch.preset)?;
    let config = preset.networks(made_up::VOCABULARY)?.1;
    let batch = args.batch.batch.map_or(BATCH, NonZeroUsize::get);
    let lengths = args
        .batch
        .lengths(batch, 1..=config.max_position_embeddings)?;
    check_memory(largest(&lengths, batch), training_words(&config))?;
    let spec = HeadSpec {
        name: "classes".into(),
        kind: HeadKind::Classification,
        style: HeadStyle::Hf,
        outputs: 2,
        crf: false,
        value_scale: 1.0,
        span_width: 0,
    };
    let batches = made_up::batches(&lengths, batch, config.vocab_size)
        .iter()
        .map(|packed| {
            let each = (0..packed.sequences()).map(|s| Features {
                example: s,
                sequences: vec![Sequence {
                    token_ids: packed.token_ids[packed.rows(s)].to_vec(),
                    type_ids: packed.type_ids[packed.rows(s)].to_vec(),
                }],
                words: Vec::new(),
                context: 0..0,
                target: Some(Target::Class(s as u32 % 2)),
            });
            each.collect()
        })
        .collect();
    args.device.run(Finetune {
        network: TaskNetwork::new(&config, &[spec]),
        args: &args,
        batches,
        config,
        stop,
    })
}

struct Finetune<'a> {
    args: &'a Args,
    config: ElectraConfig,
    network: TaskNetwork,
    batches: Vec<Vec<Features>>,
    stop: &'a StopFlag,
}

impl Work for Finetune<'_> {
    const TRAINS: bool = true;
    const RATED: bool = true;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<()> {
        let outcome = profile::measure(&self, self.args.profile, backend, facts)?;
        self.report(facts, &outcome)
    }
}

impl Measured for Finetune<'_> {
    fn measure<B: Backend>(
        &self,
        backend: &mut B,
        facts: &Facts,
        warm: impl FnOnce(&mut B),
    ) -> Result<Vec<Repetition>> {
        let values = initial_values(&self.network.layout, 0);
        let zeros = vec![0.0; values.len()];
        let settings = StepSettings {
            weight_decay_rate: 0.01,
            layerwise_lr_decay: LAYERWISE_LR_DECAY,
            parts: 1,
            compat_google: false,
        };
        let start = [&values[..], &zeros, &zeros];
        let mut trainer = Trainer::new(backend, &self.network, settings, start);
        drop((values, zeros));
        let (work, options) = (self.work(), ClassOptions::default());
        let mut index = 0;
        let mut pass = |backend: &mut B| {
            for batch in &self.batches {
                let features: Vec<&Features> = batch.iter().collect();
                let rng = Rng::new(0, index);
                index += 1;
                trainer.step(backend, 0, &features, &options, &rng, LEARNING_RATE);
            }
            Ok(work)
        };
        let clock = Clock::new(&self.args.length, SECONDS, facts, self.stop)?;
        let passes = clock.warm_up(|| pass(backend))?;
        warm(backend);
        clock.repeat(passes, || pass(backend))
    }
}

impl Finetune<'_> {
    /// What one pass over all batches works through: backward is twice forward.
    fn work(&self) -> Done {
        let (net, head) = (NetSize::from(&self.config), Head::Text { outputs: 2 });
        let (mut tokens, mut flops) = (0.0, 0.0);
        for sequence in self.batches.iter().flatten().flat_map(|f| &f.sequences) {
            let length = sequence.token_ids.len();
            tokens += length as f64;
            flops += 3.0 * length as f64 * matmul_flops_per_token(&net, head, length);
        }
        Done {
            tokens,
            batches: self.batches.len() as f64,
            flops,
        }
    }

    fn report(&self, facts: &Facts, outcome: &Outcome) -> Result<()> {
        let args = self.args;
        let preset = &args.batch.preset;
        let mut fields = object([
            ("bench", "finetune".into()),
            ("preset", preset.as_str().into()),
        ]);
        let batch = args.batch.batch.map_or(BATCH, NonZeroUsize::get);
        let shape = args.batch.describe(batch, &mut fields);
        fields.extend(device(facts));
        let name = format!("finetune {preset} {shape} {}", facts.on());
        outcome.print(args.length.repeat.json, fields, &name, "")
    }
}
