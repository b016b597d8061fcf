//! `electra bench operators`: each operator of a pre-training step by itself.

use super::batches::{BatchArgs, check_memory};
use super::made_up;
use super::measure::{Clock, LengthArgs, Work as Done};
use super::one_layer::{OneLayer, filled, sequences, uploaded, wave};
use super::report::{Speed, device, object, print};
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::Result;
use electra_engine::backend::*;
use electra_engine::params::{ParamLayout, ParamView};
use electra_engine::rng::Rng;
use electra_model::config::ElectraConfig;
use electra_train::config::PretrainConfig;
use electra_train::interrupt::StopFlag;
use std::num::NonZeroUsize;

/// Each operator of a pre-training step by itself, at the sizes of a preset's discriminator
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
const BATCH: usize = 16;
/// Seconds of a repetition.
const SECONDS: f64 = 0.1;

/// Runs the subject.
pub fn run(args: Args, stop: &StopFlag) -> Result<()> {
    let preset = PretrainConfig::preset(&args.batch.preset)?;
    let config = preset.networks(made_up::VOCABULARY)?.1;
    let batch = args.batch.batch.map_or(BATCH, NonZeroUsize::get);
    let lengths = args
        .batch
        .lengths_of_one(batch, 1..=config.max_position_embeddings)?;
    let words = 40 * config.hidden_size + 6 * config.intermediate_size;
    check_memory(lengths.iter().sum(), words)?;
    args.device.run(Operators {
        args: &args,
        config: &config,
        mask_prob: preset.mask_prob,
        lengths: &lengths,
        stop,
    })
}

struct Operators<'a> {
    args: &'a Args,
    config: &'a ElectraConfig,
    mask_prob: f64,
    lengths: &'a [usize],
    stop: &'a StopFlag,
}

/// In what an operator's work is counted beside its time.
#[derive(Clone, Copy)]
enum Unit {
    /// Operations in products.
    Flops(f64),
    /// Elements that it reads or writes once.
    Elements(usize),
}

impl Work for Operators<'_> {
    const TRAINS: bool = true;
    const RATED: bool = true;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<()> {
        let clock = Clock::new(&self.args.length, SECONDS, facts, self.stop)?;
        let declared = OneLayer::new(self.config);
        let values: Vec<f32> = (0..declared.layout.len()).map(wave).collect();
        let mut params = backend.params(&declared.layout, &values);
        let sequences = sequences(backend, self.lengths);
        let mut grads = backend.flat(declared.layout.len());
        let on = On {
            bench: &self,
            facts,
            clock: &clock,
        };
        on.layer(backend, &declared, &params, &sequences, &mut grads)?;
        on.vocabulary(backend, &declared, &params, &sequences.keys, &mut grads)?;
        on.optimizer(backend, &declared.layout, &mut params, &grads)
    }
}

impl Operators<'_> {
    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Measures and prints, one operator after the other.
struct On<'a> {
    bench: &'a Operators<'a>,
    facts: &'a Facts,
    clock: &'a Clock<'a>,
}

impl On<'_> {
    fn layer<B: Backend>(
        &self,
        backend: &mut B,
        declared: &OneLayer,
        params: &B::Params,
        sequences: &Sequences,
        grads: &mut B::Flat,
    ) -> Result<()> {
        let (spec, layer) = (declared.body.spec, &declared.body.layers[0]);
        let (tokens, hidden) = (self.bench.tokens(), spec.hidden);
        let drop = |site| Dropout {
            rate: 0.1,
            rng: Rng::new(2, 4),
            site,
        };
        let dropout = LayerDropout {
            attention: drop(0),
            attention_output: drop(1),
            output: drop(2),
        };
        let keep = backend.layer_arrays(&spec, tokens);
        let d = backend.layer_gradients(&spec, tokens);
        let input = filled(backend, tokens, hidden);
        let gradient: Vec<f32> = (0..tokens * hidden).map(wave).collect();
        backend.write(d.hidden, &gradient);

        let weights = hidden * (4 * hidden + 2 * spec.intermediate);
        let squares: usize = self.bench.lengths.iter().map(|n| n * n).sum();
        let attention = 4.0 * (squares * hidden) as f64;
        let whole = 2.0 * (tokens * weights) as f64 + attention;
        let plain = None;
        self.time(backend, "layer, no dropout", Unit::Flops(whole), |b| {
            b.layer(params, &spec, layer, sequences, plain, None, input, &keep);
        })?;
        let dropped = Some(&dropout);
        self.time(backend, "layer", Unit::Flops(whole), |b| {
            b.layer(params, &spec, layer, sequences, dropped, None, input, &keep);
        })?;
        self.time(backend, "layer, backward", Unit::Flops(2.0 * whole), |b| {
            b.layer_backward(
                params, &spec, layer, sequences, dropped, None, input, &keep, &d, grads,
            );
        })?;

        // The single operators take f32; what a layer keeps may be of another form.
        let [qkv, d_qkv] = [(); 2].map(|()| filled(backend, tokens, 3 * hidden));
        let [context, x, branch] = [(); 3].map(|()| filled(backend, tokens, hidden));
        let [z, activated] = [(); 2].map(|()| filled(backend, tokens, spec.intermediate));
        let thirds = |a: Array| [0, 1, 2].map(|i| a.columns(i * hidden, hidden));
        let ([q, k, v], heads) = (thirds(qkv), spec.heads);
        let (y, sums, drop) = (context, keep.log_sum, Some(&dropout.attention));
        self.time(backend, "attention", Unit::Flops(attention), |b| {
            b.attention(q, k, v, heads, sequences, drop, y, sums);
        })?;
        self.time(
            backend,
            "attention, backward",
            Unit::Flops(2.5 * attention),
            |b| {
                let to = thirds(d_qkv);
                b.attention_backward([q, k, v], heads, sequences, drop, y, sums, d.hidden, to);
            },
        )?;

        let wide = Unit::Elements(tokens * spec.intermediate);
        let activation = spec.activation;
        self.time(backend, "activation", wide, |b| {
            b.activation(activation, z, activated)
        })?;
        self.time(backend, "activation, backward", wide, |b| {
            b.activation_backward(activation, z, activated);
        })?;
        let elements = Unit::Elements(tokens * hidden);
        let (norm, stats) = (&layer.output_norm, keep.output_stats);
        self.time(backend, "layer norm", elements, |b| {
            b.layer_norm(params, x, norm, keep.output, stats);
        })?;
        self.time(backend, "layer norm, backward", elements, |b| {
            b.layer_norm_backward(params, x, stats, norm, d.hidden, branch, grads);
        })?;
        let keys = &sequences.keys;
        self.time(backend, "add with dropout", elements, |b| {
            b.add(input, keep.output, Some((&dropout.output, keys)), branch);
        })
    }

    fn vocabulary<B: Backend>(
        &self,
        backend: &mut B,
        declared: &OneLayer,
        params: &B::Params,
        keys: &RowKeys,
        grads: &mut B::Flat,
    ) -> Result<()> {
        let (config, head) = (self.bench.config, &declared.vocabulary);
        let tokens = self.bench.tokens() as f64;
        let masked = ((tokens * self.bench.mask_prob) as usize).max(1);
        let x = filled(backend, masked, config.embedding_size);
        let dx = backend.array(masked, config.embedding_size);
        let [log_prob, log_sum] = [1; 2].map(|cols| backend.array(masked, cols));
        let targets = uploaded(backend, &(0..masked as u32).collect::<Vec<_>>());
        let sampled = backend.ints(masked);
        let flops = 2.0 * (masked * config.vocab_size * config.embedding_size) as f64;
        let sample = VocabularySample {
            temperature: 1.0,
            exclude: None,
            rng: Rng::new(1, 1),
            keys: *keys,
            rows: targets,
            sampled,
        };
        for (name, sample) in [
            ("vocabulary", None),
            ("vocabulary with sample", Some(&sample)),
        ] {
            self.time(backend, name, Unit::Flops(flops), |b| {
                b.vocabulary(params, x, head, targets, log_prob, log_sum, None, sample);
            })?;
        }
        let scale = 1.0 / masked as f32;
        self.time(
            backend,
            "vocabulary, backward",
            Unit::Flops(3.0 * flops),
            |b| {
                b.vocabulary_backward(params, x, head, targets, log_sum, scale, dx, grads);
            },
        )
    }

    fn optimizer<B: Backend>(
        &self,
        backend: &mut B,
        layout: &ParamLayout,
        params: &mut B::Params,
        grads: &B::Flat,
    ) -> Result<()> {
        let views: Vec<ParamView> = layout.params().iter().map(|p| p.view).collect();
        let each = |&view: &ParamView| ParamUpdate {
            view,
            lr: 1e-4,
            decay: 0.01,
        };
        let updates: Vec<ParamUpdate> = views.iter().map(each).collect();
        let [mut first, mut second] = [(); 2].map(|()| backend.flat(layout.len()));
        let (adam, count) = (Adam::default(), Unit::Elements(layout.count()));
        self.time(backend, "AdamW and packing", count, |b| {
            b.adamw(params, grads, &mut first, &mut second, &adam, 1.0, &updates);
        })?;
        let mut norms = vec![0.0; views.len()];
        self.time(backend, "squared norms", count, |b| {
            b.squared_norms(grads, &views, &mut norms);
        })
    }

    fn time<B: Backend>(
        &self,
        backend: &mut B,
        name: &str,
        unit: Unit,
        mut run: impl FnMut(&mut B),
    ) -> Result<()> {
        let work = Done {
            tokens: self.bench.tokens() as f64,
            batches: 1.0,
            flops: match unit {
                Unit::Flops(flops) => flops,
                Unit::Elements(_) => 0.0,
            },
        };
        let repetitions = self.clock.measure(|| {
            run(backend);
            backend.wait();
            Ok(work)
        })?;
        let speed = Speed::of(&repetitions);
        let mut fields = object([
            ("bench", "operators".into()),
            ("preset", self.bench.args.batch.preset.as_str().into()),
            ("operator", name.into()),
            ("tokens", self.bench.tokens().into()),
        ]);
        fields.extend(device(self.facts));
        fields.insert("repetitions".into(), repetitions.len().into());
        let rate = match unit {
            Unit::Flops(_) => {
                speed.add_rates(&mut fields);
                speed.rate()
            }
            Unit::Elements(count) => {
                let ns = 1e6 * speed.ms.median / count as f64;
                super::report::add_spread(&mut fields, "ms", speed.ms);
                fields.insert("ns_per_element".into(), ns.into());
                format!("{ns:.3} ns an element")
            }
        };
        let line = format!("{name:<32} {:>9.3} ms  {rate}", speed.ms.median);
        print(self.bench.args.length.repeat.json, fields, &line)
    }
}
