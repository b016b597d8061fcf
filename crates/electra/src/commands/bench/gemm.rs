//! `electra bench gemm`: the register peak of each type, and each product of a preset beside it.

use super::batches::{BatchArgs, check_memory};
use super::made_up;
use super::measure::{Clock, LengthArgs, Repetition, Spread, Work as Done, register_peak};
use super::one_layer::{OneLayer, filled, sequences, wave};
use super::report::{Speed, add_spread, device, object, print};
use crate::device::{DeviceArgs, Facts, Precision, Work};
use anyhow::Result;
use electra_engine::backend::{Backend, Linear};
use electra_engine::cpu::{Precision as CpuPrecision, barrier_ns};
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
        .lengths_of_one(batch, 1..=discriminator.max_position_embeddings)?;
    let tokens: usize = lengths.iter().sum();
    let masked = ((tokens as f64 * preset.mask_prob) as usize).max(1);
    let mut products = products("discriminator", &discriminator, tokens);
    let hidden = discriminator.hidden_size;
    products.push(Product::new("discriminator: head", tokens, hidden, hidden));
    products.extend(self::products("generator", &generator, tokens));
    let (hidden, embedding) = (generator.hidden_size, generator.embedding_size);
    for (name, rows, cols) in [
        ("generator: head", embedding, hidden),
        ("generator: vocabulary", generator.vocab_size, embedding),
    ] {
        products.push(Product::new(name, masked, rows, cols));
    }
    for product in &products {
        check_memory(product.tokens, 4 * (product.rows + product.cols))?;
    }
    let networks = [("discriminator", discriminator), ("generator", generator)];
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
            lengths: &lengths,
            products: &products,
            networks: &networks,
            stop,
        })?;
    }
    Ok(())
}

/// A product `x Wᵀ` of a network.
#[derive(Debug)]
struct Product {
    name: String,
    /// Rows of x.
    tokens: usize,
    /// Rows of W: outputs.
    rows: usize,
    /// Columns of W: inputs.
    cols: usize,
}

impl Product {
    fn new(name: &str, tokens: usize, rows: usize, cols: usize) -> Self {
        Product {
            name: name.to_owned(),
            tokens,
            rows,
            cols,
        }
    }

    /// Multiplications and additions.
    fn flops(&self) -> f64 {
        2.0 * (self.tokens * self.rows * self.cols) as f64
    }
}

/// Products of a layer, by the names that the backend's clock has for them.
fn layer_products(
    network: &str,
    config: &ElectraConfig,
    tokens: usize,
) -> [(&'static str, Product); 4] {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    [
        ("query, key, value", "query, key, value", 3 * hidden, hidden),
        ("attention output", "attention output", hidden, hidden),
        ("intermediate and activation", "intermediate", wide, hidden),
        ("output", "output", hidden, wide),
    ]
    .map(|(part, name, rows, cols)| {
        let name = format!("{network}: {name}");
        (part, Product::new(&name, tokens, rows, cols))
    })
}

/// Products of a network that every token meets.
fn products(network: &str, config: &ElectraConfig, tokens: usize) -> Vec<Product> {
    let layer = layer_products(network, config, tokens).map(|(_, product)| product);
    let mut products = Vec::from(layer);
    if config.has_projection() {
        let name = format!("{network}: embedding projection");
        let (rows, cols) = (config.hidden_size, config.embedding_size);
        products.push(Product::new(&name, tokens, rows, cols));
    }
    products
}

struct Gemm<'a> {
    args: &'a Args,
    /// Nothing is measured where the device falls back from this precision to another.
    only_as: Option<&'static str>,
    /// Of the sequences of a batch.
    lengths: &'a [usize],
    products: &'a [Product],
    networks: &'a [(&'static str, ElectraConfig); 2],
    stop: &'a StopFlag,
}

impl Work for Gemm<'_> {
    const TRAINS: bool = false;
    const RATED: bool = true;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<()> {
        if self.only_as.is_some_and(|name| name != facts.precision) {
            return Ok(());
        }
        self.registers(facts)?;
        let clock = Clock::new(&self.args.length, SECONDS, facts, self.stop)?;
        if facts.products() == CpuPrecision::Int8 {
            for (network, config) in self.networks {
                self.in_layer(backend, facts, &clock, network, config)?;
            }
            return Ok(());
        }
        for product in self.products {
            self.product(backend, facts, &clock, product)?;
        }
        Ok(())
    }
}

impl Gemm<'_> {
    /// What the registers do on one thread and on all, and what it takes to have all work together.
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
                "{:<52} {:>14.1} GFLOP/s ({:.1}–{:.1}) on {threads} threads",
                format!("registers, {} {}", isa.name(), facts.precision),
                peak.median,
                peak.min,
                peak.max
            );
            print(self.args.length.repeat.json, fields, &line)?;
        }
        let repetitions = 0..self.args.length.repeat.repetitions.get();
        let barrier = Spread::of(repetitions.map(|_| barrier_ns(facts.threads)));
        let mut fields = object([("bench", "gemm".into()), ("product", "barrier".into())]);
        fields.extend(device(facts));
        add_spread(&mut fields, "ns", barrier);
        let line = format!(
            "{:<52} {:>14.0} ns ({:.0}–{:.0}) on {} threads",
            "barrier", barrier.median, barrier.min, barrier.max, facts.threads
        );
        print(self.args.length.repeat.json, fields, &line)
    }

    /// Products in bytes, which there are inside of whole layers alone: a layer is timed, and the
    /// time shared out as its parts took it. A product's part has its epilogue, and the quantization of
    /// its input, but where a norm does that.
    fn in_layer<B: Backend>(
        &self,
        backend: &mut B,
        facts: &Facts,
        clock: &Clock,
        network: &str,
        config: &ElectraConfig,
    ) -> Result<()> {
        let one = OneLayer::new(config);
        let (spec, layers) = (one.body.spec, &one.body.layers[..]);
        let tokens = self.lengths.iter().sum();
        let values: Vec<f32> = (0..one.layout.len()).map(wave).collect();
        let params = backend.params(&one.layout, &values);
        let sequences = sequences(backend, self.lengths);
        let input = filled(backend, tokens, spec.hidden);
        let work = [(); 2].map(|()| backend.layer_arrays(&spec, tokens));
        let pass = |backend: &mut B| {
            backend.infer_layers(&params, &spec, layers, &sequences, None, input, &work);
            Ok(Done {
                tokens: tokens as f64,
                batches: 1.0,
                flops: 0.0,
            })
        };
        let passes = clock.warm_up(|| pass(backend))?;
        backend.parts();
        let repetitions = clock.repeat(passes, || pass(backend))?;
        let parts = backend.parts();
        backend.release_arrays();
        let all: f64 = parts.iter().map(|(_, time)| time.as_secs_f64()).sum();
        for (part, product) in layer_products(network, config, tokens) {
            let of_part = parts.iter().filter(|(name, _)| *name == part);
            let share = of_part.map(|(_, time)| time.as_secs_f64()).sum::<f64>() / all;
            let own = repetitions.iter().map(|repetition| {
                let mut own = *repetition;
                own.seconds *= share;
                own.work.flops = product.flops() * own.work.batches;
                own
            });
            let own: Vec<Repetition> = own.collect();
            self.report(facts, &product, "x Wᵀ in a layer", &own)?;
        }
        Ok(())
    }

    /// Forward and both backwards of one linear layer.
    fn product<B: Backend>(
        &self,
        backend: &mut B,
        facts: &Facts,
        clock: &Clock,
        product: &Product,
    ) -> Result<()> {
        let &Product {
            tokens, rows, cols, ..
        } = product;
        let mut layout = ParamLayout::new();
        let weight = layout.push("weight", &[rows, cols], Init::Zeros, 0);
        let bias = layout.push("bias", &[rows], Init::Zeros, 0);
        layout.register_linear(weight);
        let linear = Linear { weight, bias };
        let values: Vec<f32> = (0..layout.len()).map(wave).collect();
        let params = backend.params(&layout, &values);
        let mut grads = backend.flat(layout.len());
        let x = filled(backend, tokens, cols);
        let dy = filled(backend, tokens, rows);
        let (dx, y) = (backend.array(tokens, cols), backend.array(tokens, rows));
        let work = Done {
            tokens: tokens as f64,
            batches: 1.0,
            flops: product.flops(),
        };
        let forward = clock.measure(|| {
            backend.linear(&params, x, &linear, y);
            backend.wait();
            Ok(work)
        })?;
        let input = clock.measure(|| {
            backend.linear_backward_input(&params, dy, &linear, dx, false);
            backend.wait();
            Ok(work)
        })?;
        let gradient = clock.measure(|| {
            backend.linear_backward_params(x, dy, &linear, &mut grads);
            backend.wait();
            Ok(work)
        })?;
        backend.release_arrays();
        let parts = [("x Wᵀ", forward), ("dy W", input), ("dyᵀ x", gradient)];
        for (part, repetitions) in parts {
            self.report(facts, product, part, &repetitions)?;
        }
        Ok(())
    }

    fn report(
        &self,
        facts: &Facts,
        product: &Product,
        part: &str,
        repetitions: &[Repetition],
    ) -> Result<()> {
        let speed = Speed::of(repetitions);
        let &Product {
            tokens, rows, cols, ..
        } = product;
        let name = format!("{}: {part}", product.name);
        let mut fields = object([
            ("bench", "gemm".into()),
            ("preset", self.args.batch.preset.as_str().into()),
            ("product", name.as_str().into()),
            ("tokens", tokens.into()),
            ("weight", vec![rows, cols].into()),
        ]);
        fields.extend(device(facts));
        fields.insert("repetitions".into(), repetitions.len().into());
        speed.add_rates(&mut fields);
        let line = format!(
            "{name:<52} {:>14} {:>9.3} ms  {}",
            format!("{tokens}×{rows}×{cols}"),
            speed.ms.median,
            speed.rate()
        );
        print(self.args.length.repeat.json, fields, &line)
    }
}
