//! `electra bench gemm`: the register peak of each type, and each product of a preset beside it.

use super::batches::BatchArgs;
use super::made_up;
use super::measure::{Clock, LengthArgs, Repetition, Spread, Work as Done, register_peak};
use super::report::{Speed, add_spread, device, object, print};
use crate::device::{DeviceArgs, Facts, Precision, Work};
use anyhow::Result;
use electra_engine::backend::{Backend, Linear};
use electra_engine::cpu::Precision as CpuPrecision;
use electra_engine::params::{Init, ParamLayout};
use electra_model::config::ElectraConfig;
use electra_train::config::PretrainConfig;
use electra_train::interrupt::StopFlag;
use std::num::NonZeroUsize;

/// The rate of the registers in each type, and of each product of a preset, forward and backward
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    length: LengthArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Sequences of a batch.
const BATCH: usize = 32;
/// Seconds of a repetition.
const SECONDS: f64 = 0.1;

/// Runs the subject: in the precision asked for, or in each.
pub fn run(args: Args, stop: &StopFlag) -> Result<()> {
    let preset = PretrainConfig::preset(&args.batch.preset)?;
    let (generator, discriminator) = preset.networks(made_up::VOCABULARY)?;
    let batch = args.batch.batch.map_or(BATCH, NonZeroUsize::get);
    let lengths = args
        .batch
        .lengths(batch, 1..=discriminator.max_position_embeddings)?;
    let tokens = lengths.iter().take(batch).sum();
    let products = [("discriminator", &discriminator), ("generator", &generator)]
        .map(|(network, config)| products(network, config))
        .concat();
    let precisions = match args.device.precision {
        Some(precision) => vec![(precision, None)],
        None => vec![
            (Precision::F32, Some("f32")),
            (Precision::Bf16, Some("bf16")),
            (Precision::Int8, Some("int8")),
        ],
    };
    for (precision, only_as) in precisions {
        let mut device = args.device.clone();
        device.precision = Some(precision);
        device.run(Gemm {
            args: &args,
            only_as,
            tokens,
            products: &products,
            stop,
        })?;
    }
    Ok(())
}

/// A product of a network: name, `[out, in]`.
type Product = (String, [usize; 2]);

fn products(network: &str, config: &ElectraConfig) -> Vec<Product> {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let mut shapes = vec![
        ("query, key, value", [3 * hidden, hidden]),
        ("attention output", [hidden, hidden]),
        ("intermediate", [intermediate, hidden]),
        ("output", [hidden, intermediate]),
    ];
    if config.has_projection() {
        shapes.push(("embedding projection", [hidden, config.embedding_size]));
    }
    let named = shapes.into_iter();
    named
        .map(|(name, shape)| (format!("{network}: {name}"), shape))
        .collect()
}

struct Gemm<'a> {
    args: &'a Args,
    /// Nothing is measured where the device falls back from this precision to another.
    only_as: Option<&'static str>,
    tokens: usize,
    products: &'a [Product],
    stop: &'a StopFlag,
}

impl Work for Gemm<'_> {
    const TRAINS: bool = false;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<()> {
        if self.only_as.is_some_and(|name| name != facts.precision) {
            return Ok(());
        }
        self.registers(facts)?;
        if facts.products() == CpuPrecision::Int8 {
            // Bytes are multiplied inside whole layers alone: `bench infer` times those.
            return Ok(());
        }
        let clock = Clock::new(&self.args.length, SECONDS, facts, self.stop)?;
        for (name, [rows, cols]) in self.products {
            self.product(backend, facts, &clock, name, [*rows, *cols])?;
        }
        Ok(())
    }
}

impl Gemm<'_> {
    /// What the registers do on one thread and on all.
    fn registers(&self, facts: &Facts) -> Result<()> {
        let Some(isa) = facts.isa else {
            return Ok(());
        };
        let mut counts = vec![1, facts.threads];
        counts.dedup();
        for threads in counts {
            let repetitions = 0..self.args.length.repeat.repetitions.get();
            let peak =
                Spread::of(repetitions.map(|_| register_peak(isa, threads, facts.products())));
            let mut fields = object([("bench", "gemm".into()), ("product", "registers".into())]);
            fields.extend(device(facts));
            fields.insert("threads".into(), threads.into());
            add_spread(&mut fields, "gemm_peak_gflops", peak);
            let line = format!(
                "{:<44}{:>30.1} GFLOP/s ({:.1}–{:.1}) on {threads} threads",
                format!("registers, {} {}", isa.name(), facts.precision),
                peak.median,
                peak.min,
                peak.max
            );
            print(self.args.length.repeat.json, fields, &line)?;
        }
        Ok(())
    }

    /// Forward and both backwards of one linear layer.
    fn product<B: Backend>(
        &self,
        backend: &mut B,
        facts: &Facts,
        clock: &Clock,
        name: &str,
        [rows, cols]: [usize; 2],
    ) -> Result<()> {
        let mut layout = ParamLayout::new();
        let weight = layout.push("weight", &[rows, cols], Init::Zeros, 0);
        let bias = layout.push("bias", &[rows], Init::Zeros, 0);
        layout.register_linear(weight);
        let linear = Linear { weight, bias };
        let wave = |i: usize| (i as f32 * 0.37).sin() * 0.05;
        let values: Vec<f32> = (0..layout.len()).map(wave).collect();
        let params = backend.params(&layout, &values);
        let mut grads = backend.flat(layout.len());
        let (tokens, fill) = (self.tokens, |n: usize| (0..n).map(wave).collect::<Vec<_>>());
        let [x, dx] = [cols; 2].map(|cols| backend.array(tokens, cols));
        let [y, dy] = [rows; 2].map(|rows| backend.array(tokens, rows));
        backend.write(x, &fill(tokens * cols));
        backend.write(dy, &fill(tokens * rows));
        let work = Done {
            tokens: tokens as f64,
            batches: 1.0,
            flops: 2.0 * (tokens * rows * cols) as f64,
        };
        let forward = clock.measure(|| {
            backend.linear(&params, x, &linear, y);
            Ok(work)
        })?;
        let input = clock.measure(|| {
            backend.linear_backward_input(&params, dy, &linear, dx, false);
            Ok(work)
        })?;
        let gradient = clock.measure(|| {
            backend.linear_backward_params(x, dy, &linear, &mut grads);
            Ok(work)
        })?;
        backend.release_arrays();
        let parts = [("x Wᵀ", forward), ("dy W", input), ("dyᵀ x", gradient)];
        for (part, repetitions) in parts {
            self.report(
                facts,
                &format!("{name}: {part}"),
                [rows, cols],
                &repetitions,
            )?;
        }
        Ok(())
    }

    fn report(
        &self,
        facts: &Facts,
        name: &str,
        [rows, cols]: [usize; 2],
        repetitions: &[Repetition],
    ) -> Result<()> {
        let speed = Speed::of(repetitions);
        let mut fields = object([
            ("bench", "gemm".into()),
            ("preset", self.args.batch.preset.as_str().into()),
            ("product", name.into()),
            ("tokens", self.tokens.into()),
            ("weight", vec![rows, cols].into()),
        ]);
        fields.extend(device(facts));
        fields.insert("repetitions".into(), repetitions.len().into());
        speed.add_rates(&mut fields);
        let line = format!(
            "{name:<44} {:>14} {:>9.3} ms  {}",
            format!("{}×{rows}×{cols}", self.tokens),
            speed.ms.median,
            speed.rate()
        );
        print(self.args.length.repeat.json, fields, &line)
    }
}
