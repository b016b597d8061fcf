//! The backend on the emulated device, against the reference.

use super::emulator::{Emulator, Order, never_launched};
use super::{Cuda, Precision, catch};
use crate::backend::*;
use crate::params::{Init, ParamLayout};
use crate::reference::Reference;
use crate::rng::{Purpose, Rng};
use crate::selftest::{self, Bound, Output, Products};
use std::rc::Rc;

fn emulated(precision: Precision, order: Order, products: bool) -> Option<Cuda> {
    let device = Emulator::new(order, products)?;
    Some(Cuda::with_device(Rc::new(device), precision))
}

fn check(precision: Precision, order: Order, products: bool) {
    let Some(mut backend) = emulated(precision, order, products) else {
        return;
    };
    let kind = match precision {
        Precision::Bf16 => Products::Bf16Kept,
        _ => Products::F32,
    };
    let outcomes = selftest::run(&mut backend, kind);
    let failed: Vec<String> = outcomes
        .iter()
        .filter(|o| !o.passed())
        .map(|o| format!("{}: {:.1e} > {:.0e}", o.name, o.error, o.bound))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// One test, because it asks at the end whether every kernel has run.
#[test]
fn every_kernel_runs_and_all_agrees_with_the_reference() {
    check(Precision::F32, Order::Rising, true);
    check(Precision::Bf16, Order::Falling, true);
    layers_of_the_sizes_that_models_have();
    a_network_in_training_whatever_the_order_of_threads();
    if emulated(Precision::F32, Order::Rising, true).is_some() {
        let never = never_launched();
        assert!(never.is_empty(), "never run: {}", never.join(", "));
    }
}

fn check_training(precision: Precision, order: Order, products: bool) -> Option<Vec<Vec<f32>>> {
    let mut backend = emulated(precision, order, products)?;
    let kind = match precision {
        Precision::Bf16 => Products::Bf16Kept,
        _ => Products::F32,
    };
    let ours = selftest::training::trace(&mut backend);
    let exact = selftest::training::trace(&mut Reference::<f64>::new());
    for o in selftest::compare(&ours, &exact, kind) {
        assert!(o.passed(), "{}: {:.1e} > {:.0e}", o.name, o.error, o.bound);
    }
    Some(ours.into_iter().map(|o| o.values).collect())
}

fn a_network_in_training_whatever_the_order_of_threads() {
    for precision in [Precision::F32, Precision::Bf16] {
        // The second time products are our own kernel's; within one kind, bits are the same.
        for products in [true, false] {
            let rising = check_training(precision, Order::Rising, products);
            let falling = check_training(precision, Order::Falling, products);
            let bits = |values: Option<Vec<Vec<f32>>>| {
                let all = values.into_iter().flatten().flatten();
                all.map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(rising), bits(falling), "{precision:?}");
        }
    }
}

#[test]
fn a_device_without_memory_is_an_error_and_gives_all_of_it_back() {
    let Some(device) = Emulator::new(Order::Rising, true) else {
        return;
    };
    device.capacity.set(1 << 20);
    let device = Rc::new(device);
    let mut backend = Cuda::with_device(device.clone(), Precision::F32);
    let array = backend.array(64, 64);
    let error = catch(|| backend.array(1 << 20, 64)).expect_err("it is too large");
    let error = error.to_string();
    assert!(error.contains("256.0 MiB asked for"), "{error}");
    // What was there before still works.
    backend.write(array, &[1.0; 64 * 64]);
    assert_eq!(backend.sum(array), 4096.0);
    drop(backend);
    assert_eq!(device.in_use.get(), 0);
}

/// A layer forward and backward: output, gradient by the input, gradients of parameters.
fn layer<B: Backend>(backend: &mut B, spec: &LayerSpec, lengths: &[usize]) -> Vec<Output> {
    let (hidden, inner) = (spec.hidden, spec.intermediate);
    let tokens: usize = lengths.iter().sum();
    let mut layout = ParamLayout::new();
    let mut linear = |rows: usize, cols: usize| {
        let name = format!("{}", layout.params().len());
        let weight = layout.push(&name, &[rows, cols], Init::Zeros, 0);
        layout.register_linear(weight);
        let name = format!("{} bias", layout.params().len());
        let bias = layout.push(&name, &[rows], Init::Zeros, 0);
        Linear { weight, bias }
    };
    let (qkv, attention_output) = (linear(3 * hidden, hidden), linear(hidden, hidden));
    let (intermediate, output) = (linear(inner, hidden), linear(hidden, inner));
    let mut norm = |name: &str| Norm {
        weight: layout.push(name, &[hidden], Init::Ones, 0),
        bias: layout.push(&format!("{name} bias"), &[hidden], Init::Zeros, 0),
        eps: 1e-12,
    };
    let params = LayerParams {
        qkv,
        attention_output,
        attention_norm: norm("first"),
        intermediate,
        output,
        output_norm: norm("second"),
    };
    let rng = Rng::new(21, 0);
    let unit =
        |what: u32, i: usize| (rng.uniform(Purpose::Test, what, i as u32, 0, 0) * 2.0 - 1.0) as f32;
    let units = |what: u32, n: usize| (0..n).map(|i| unit(what, i)).collect::<Vec<_>>();
    let mut values = units(0, layout.len());
    for param in layout.params() {
        for value in &mut values[param.view.range()] {
            *value *= 1.7 / (param.view.cols as f32).sqrt();
            *value += if param.init == Init::Ones { 1.0 } else { 0.0 };
        }
    }
    let held = backend.params(&layout, &values);
    let ints = |backend: &mut B, values: &[u32]| {
        let ints = backend.ints(values.len());
        backend.write_ints(ints, values);
        ints
    };
    let mut starts = vec![0];
    for &n in lengths {
        starts.push(starts[starts.len() - 1] + n as u32);
    }
    let examples: Vec<u32> = lengths
        .iter()
        .enumerate()
        .flat_map(|(s, &n)| std::iter::repeat_n(7 + s as u32, n))
        .collect();
    let positions: Vec<u32> = lengths.iter().flat_map(|&n| 0..n as u32).collect();
    let sequences = Sequences {
        cu_seqlens: ints(backend, &starts),
        keys: RowKeys {
            example: ints(backend, &examples),
            position: ints(backend, &positions),
        },
        longest: lengths.iter().copied().max().unwrap_or(0),
    };
    let dropout = |site: u32| Dropout {
        rate: 0.1,
        rng: Rng::new(22, 1),
        site,
    };
    let dropout = LayerDropout {
        attention: dropout(1),
        attention_output: dropout(2),
        output: dropout(3),
    };
    let keep = backend.layer_arrays(spec, tokens);
    let d = backend.layer_gradients(spec, tokens);
    let input = backend.array(tokens, hidden);
    backend.write(input, &units(1, tokens * hidden));
    backend.write(d.hidden, &units(2, tokens * hidden));
    backend.layer(
        &held,
        spec,
        &params,
        &sequences,
        Some(&dropout),
        None,
        input,
        &keep,
    );
    let mut grads = backend.flat(layout.len());
    backend.layer_backward(
        &held,
        spec,
        &params,
        &sequences,
        Some(&dropout),
        None,
        input,
        &keep,
        &d,
        &mut grads,
    );
    let mut outputs = Vec::new();
    for (name, array) in [("output", keep.output), ("gradient by the input", d.hidden)] {
        let mut values = vec![0.0; tokens * hidden];
        backend.read(array, &mut values);
        outputs.push((name, values));
    }
    let mut values = vec![0.0; layout.len()];
    backend.read_flat(&grads, &mut values);
    outputs.push(("gradients", values));
    // The norm by itself, which the layer has in one with other things.
    let (norm, y, stats) = (&params.output_norm, keep.output, keep.output_stats);
    backend.layer_norm(&held, input, norm, y, stats);
    backend.layer_norm_backward(
        &held,
        input,
        stats,
        norm,
        d.output_branch,
        d.residual,
        &mut grads,
    );
    let keys = &sequences.keys;
    backend.dropout(input, &dropout.output, keys, d.output_branch);
    for (name, array) in [
        ("norm", y),
        ("gradient by the norm's input", d.residual),
        ("dropout", d.output_branch),
    ] {
        let mut values = vec![0.0; tokens * hidden];
        backend.read(array, &mut values);
        outputs.push((name, values));
    }
    backend.release_arrays();
    outputs
        .into_iter()
        .map(|(name, values)| Output {
            name: format!("layer of {} and {} heads: {name}", hidden, spec.heads),
            values,
            bound: Bound::Product(1e-4),
            magnitude: 1.0,
        })
        .collect()
}

fn layers_of_the_sizes_that_models_have() {
    // Each number of columns that norms have a kernel for, each head size of tensor cores, and
    // sequences over one, two and more tiles; and columns that are read one by one.
    let cases: [(usize, usize, &[usize]); 6] = [
        (36, 3, &[9, 20]),
        (256, 4, &[130, 3, 64]),
        (384, 4, &[70, 1]),
        (768, 12, &[9, 1]),
        (1024, 8, &[5]),
        (1152, 9, &[3]),
    ];
    for precision in [Precision::F32, Precision::Bf16] {
        for (hidden, heads, lengths) in cases {
            let Some(mut backend) = emulated(precision, Order::Rising, true) else {
                return;
            };
            let kind = match precision {
                Precision::Bf16 => Products::Bf16Kept,
                _ => Products::F32,
            };
            let spec = LayerSpec {
                hidden,
                heads,
                intermediate: 160,
                activation: Activation::Gelu,
            };
            let ours = layer(&mut backend, &spec, lengths);
            let exact = layer(&mut Reference::<f64>::new(), &spec, lengths);
            for o in selftest::compare(&ours, &exact, kind) {
                assert!(
                    o.passed(),
                    "{precision:?} {}: {:.1e} > {:.0e}",
                    o.name,
                    o.error,
                    o.bound
                );
            }
        }
    }
}
