//! Speed of the CPU backend's operators at the shapes of a pre-training step, beside the
//! multiply-add rate of the same threads measured in registers.
//!
//! `cargo run --release -p electra-engine --example cpu_bench -- [threads] [f32|bf16] [tokens]`

use electra_engine::backend::*;
use electra_engine::cpu::{Cpu, CpuOptions, Isa, Precision};
use electra_engine::params::{Init, ParamLayout};
use electra_engine::rng::Rng;
use std::time::Instant;

/// Best time of several runs, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || (begin.elapsed().as_secs_f64() < 1.0 && runs < 100) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    let precision = match args.next().as_deref() {
        Some("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };
    let tokens: usize = args.next().and_then(|a| a.parse().ok()).unwrap_or(2048);
    let mut cpu = Cpu::new(CpuOptions {
        threads: Some(threads),
        precision,
        isa: None,
    })
    .expect("the best instruction set");
    let peak = threads as f64 * Isa::peak_gflops(cpu.isa(), cpu.precision() == Precision::Bf16);
    println!(
        "{} {:?}, {threads} threads, {tokens} tokens: {peak:.0} GFLOP/s in registers",
        cpu.isa().name(),
        cpu.precision()
    );
    let report = |name: &str, seconds: f64, flops: f64| {
        let rate = flops / seconds / 1e9;
        println!(
            "{name:32} {:9.3} ms {rate:7.1} GFLOP/s {:5.1}%",
            seconds * 1e3,
            100.0 * rate / peak
        );
    };

    const HIDDEN: usize = 256;
    const INTERMEDIATE: usize = 1024;
    const VOCABULARY: usize = 30_522;
    const EMBEDDING: usize = 128;
    let mut layout = ParamLayout::new();
    let mut linear = |name: &str, rows: usize, cols: usize| {
        let weight = layout.push(&format!("{name}.weight"), &[rows, cols], Init::Zeros, 0);
        let bias = layout.push(&format!("{name}.bias"), &[rows], Init::Zeros, 0);
        layout.register_linear(weight);
        Linear { weight, bias }
    };
    let qkv = linear("qkv", 3 * HIDDEN, HIDDEN);
    let attention_output = linear("attention_output", HIDDEN, HIDDEN);
    let intermediate = linear("intermediate", INTERMEDIATE, HIDDEN);
    let output = linear("output", HIDDEN, INTERMEDIATE);
    let vocabulary = linear("vocabulary", VOCABULARY, EMBEDDING);
    let norm = Norm {
        weight: layout.push("norm.weight", &[HIDDEN], Init::Ones, 0),
        bias: layout.push("norm.bias", &[HIDDEN], Init::Zeros, 0),
        eps: 1e-12,
    };
    let wave = |i: usize| (i as f32 * 0.37).sin() * 0.05;
    let values: Vec<f32> = (0..layout.len()).map(wave).collect();
    let mut params = cpu.params(&layout, &values);
    let [mut grads, mut first, mut second] = [(); 3].map(|()| cpu.flat(layout.len()));

    let named = [
        ("qkv", qkv),
        ("attention output", attention_output),
        ("intermediate", intermediate),
        ("output", output),
    ];
    for (name, linear) in named {
        let (rows, cols) = (linear.weight.rows, linear.weight.cols);
        let (x, y) = (cpu.array(tokens, cols), cpu.array(tokens, rows));
        cpu.write(x, &(0..tokens * cols).map(wave).collect::<Vec<_>>());
        cpu.write(y, &(0..tokens * rows).map(wave).collect::<Vec<_>>());
        let dx = cpu.array(tokens, cols);
        let flops = 2.0 * (tokens * rows * cols) as f64;
        let seconds = best(|| cpu.linear(&params, x, &linear, y));
        report(&format!("{name}: x Wᵀ"), seconds, flops);
        let seconds = best(|| cpu.linear_backward_input(&params, y, &linear, dx, false));
        report(&format!("{name}: dy W"), seconds, flops);
        let seconds = best(|| cpu.linear_backward_params(x, y, &linear, &mut grads));
        report(&format!("{name}: dyᵀ x"), seconds, flops);
    }

    let spec = LayerSpec {
        hidden: HIDDEN,
        heads: 4,
        intermediate: INTERMEDIATE,
        activation: Activation::Gelu,
    };
    let layer = LayerParams {
        qkv,
        attention_output,
        attention_norm: norm,
        intermediate,
        output,
        output_norm: norm,
    };
    const LENGTH: usize = 128;
    let ids = |cpu: &mut Cpu, values: Vec<u32>| {
        let ints = cpu.ints(values.len());
        cpu.write_ints(ints, &values);
        ints
    };
    let sequences = Sequences {
        cu_seqlens: ids(
            &mut cpu,
            (0..=tokens).step_by(LENGTH).map(|t| t as u32).collect(),
        ),
        keys: RowKeys {
            example: ids(&mut cpu, (0..tokens).map(|t| (t / LENGTH) as u32).collect()),
            position: ids(&mut cpu, (0..tokens).map(|t| (t % LENGTH) as u32).collect()),
        },
        longest: LENGTH,
    };
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
    let keep = cpu.layer_arrays(&spec, tokens);
    let d = cpu.layer_gradients(&spec, tokens);
    let input = cpu.array(tokens, HIDDEN);
    cpu.write(input, &(0..tokens * HIDDEN).map(wave).collect::<Vec<_>>());
    cpu.write(
        d.hidden,
        &(0..tokens * HIDDEN).map(wave).collect::<Vec<_>>(),
    );
    let products = 2.0 * (tokens * 12 * HIDDEN * HIDDEN) as f64;
    let attention = 4.0 * (tokens * LENGTH * HIDDEN) as f64;
    let drop = Some(&dropout);
    let seconds = best(|| cpu.layer(&params, &spec, &layer, &sequences, None, input, &keep));
    report("layer, no dropout", seconds, products + attention);
    let seconds = best(|| cpu.layer(&params, &spec, &layer, &sequences, drop, input, &keep));
    report("layer", seconds, products + attention);
    let seconds = best(|| {
        cpu.layer_backward(
            &params, &spec, &layer, &sequences, drop, input, &keep, &d, &mut grads,
        );
    });
    report("layer backward", seconds, 2.0 * (products + attention));
    // The single operators take arrays of f32; a layer's own may be of another form.
    let f32_array = |cpu: &mut Cpu, cols| cpu.array(tokens, cols);
    let qkv = f32_array(&mut cpu, 3 * HIDDEN);
    let d_qkv = f32_array(&mut cpu, 3 * HIDDEN);
    let [context, branch, sum] = [(); 3].map(|()| f32_array(&mut cpu, HIDDEN));
    let [z, activated] = [(); 2].map(|()| f32_array(&mut cpu, INTERMEDIATE));
    let thirds = |a: Array| [0, 1, 2].map(|i| a.columns(i * HIDDEN, HIDDEN));
    let [q, k, v] = thirds(qkv);
    let attention_dropout = Some(&dropout.attention);
    let (y, sums) = (context, keep.log_sum);
    let seconds = best(|| cpu.attention(q, k, v, 4, &sequences, attention_dropout, y, sums));
    report("attention", seconds, attention);
    let seconds = best(|| {
        let to = thirds(d_qkv);
        cpu.attention_backward(
            [q, k, v],
            4,
            &sequences,
            attention_dropout,
            y,
            sums,
            d.hidden,
            to,
        );
    });
    report("attention backward", seconds, 2.5 * attention);
    let elements = (tokens * INTERMEDIATE) as f64;
    let seconds = best(|| cpu.activation(Activation::Gelu, z, activated));
    println!(
        "{:32} {:9.3} ns an element",
        "gelu",
        seconds / elements * 1e9
    );
    let seconds = best(|| {
        cpu.activation_backward(Activation::Gelu, z, activated);
    });
    println!(
        "{:32} {:9.3} ns an element",
        "gelu backward",
        seconds / elements * 1e9
    );
    let elements = (tokens * HIDDEN) as f64;
    let seconds = best(|| {
        cpu.layer_norm(&params, sum, &norm, keep.output, keep.output_stats);
    });
    println!(
        "{:32} {:9.3} ns an element",
        "layer norm",
        seconds / elements * 1e9
    );
    let seconds = best(|| {
        let stats = keep.output_stats;
        cpu.layer_norm_backward(&params, input, stats, &norm, d.hidden, branch, &mut grads);
    });
    println!(
        "{:32} {:9.3} ns an element",
        "layer norm backward",
        seconds / elements * 1e9
    );
    let keys = &sequences.keys;
    let seconds = best(|| cpu.add(input, keep.output, Some((&dropout.output, keys)), branch));
    println!(
        "{:32} {:9.3} ns an element",
        "add with dropout",
        seconds / elements * 1e9
    );

    let masked = tokens * 15 / 100;
    let x = cpu.array(masked, EMBEDDING);
    cpu.write(x, &(0..masked * EMBEDDING).map(wave).collect::<Vec<_>>());
    let dx = cpu.array(masked, EMBEDDING);
    let (log_prob, log_sum) = (cpu.array(masked, 1), cpu.array(masked, 1));
    let targets = ids(&mut cpu, (0..masked as u32).collect());
    let (sampled, predicted) = (cpu.ints(masked), cpu.ints(masked));
    let flops = 2.0 * (masked * VOCABULARY * EMBEDDING) as f64;
    let sample = |temperature, exclude| VocabularySample {
        temperature,
        exclude,
        rng: Rng::new(1, 1),
        keys: *keys,
        rows: targets,
        sampled,
    };
    let plain = sample(1.0, None);
    let passes = [
        ("log_prob", None, None),
        ("log_prob and predicted", Some(predicted), None),
        ("log_prob and sample", None, Some(plain)),
        ("sample, wrong at 2", None, Some(sample(2.0, Some(targets)))),
    ];
    for (name, predicted, sample) in passes {
        let seconds = best(|| {
            cpu.vocabulary(
                &params,
                x,
                &vocabulary,
                targets,
                log_prob,
                log_sum,
                predicted,
                sample.as_ref(),
            );
        });
        report(&format!("vocabulary {name}"), seconds, flops);
    }
    let seconds = best(|| {
        let scale = 1.0 / masked as f32;
        cpu.vocabulary_backward(
            &params,
            x,
            &vocabulary,
            targets,
            log_sum,
            scale,
            dx,
            &mut grads,
        );
    });
    report("vocabulary backward", seconds, 3.0 * flops);

    let updates: Vec<ParamUpdate> = layout
        .params()
        .iter()
        .map(|p| ParamUpdate {
            view: p.view,
            lr: 1e-4,
            decay: 0.01,
        })
        .collect();
    let adam = Adam::default();
    let seconds = best(|| {
        cpu.adamw(
            &mut params,
            &grads,
            &mut first,
            &mut second,
            &adam,
            1.0,
            &updates,
        );
    });
    let count = layout.count() as f64;
    println!(
        "{:32} {:9.3} ns a parameter",
        "adamw and packing",
        seconds / count * 1e9
    );
    let views: Vec<_> = updates.iter().map(|u| u.view).collect();
    let mut norms = vec![0.0; views.len()];
    let seconds = best(|| {
        cpu.squared_norms(&grads, &views, &mut norms);
    });
    println!(
        "{:32} {:9.3} ns a parameter",
        "squared norms",
        seconds / count * 1e9
    );
}
