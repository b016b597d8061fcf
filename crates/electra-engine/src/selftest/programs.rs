//! The programs, one or two operators each.

use super::{Bound, Context};
use crate::backend::*;
use crate::params::{Init, ParamLayout, ParamView};
use crate::rng::{Purpose, Rng};
use std::convert::Infallible;
use std::ops::Range;

type Program<B> = fn(&mut Context<B>);

/// Runs all of them.
pub(super) fn all<B: Backend>(c: &mut Context<B>) {
    let programs: [(&'static str, Program<B>); 16] = [
        ("memory", memory),
        ("embed", embed),
        ("linear", linear),
        ("activation", activation),
        ("layer_norm", layer_norm),
        ("dropout", dropout),
        ("attention", attention),
        ("rows", rows),
        ("vocabulary", vocabulary),
        ("vocabulary_sample", vocabulary_sample),
        ("binary_cross_entropy", binary_cross_entropy),
        ("sums", sums),
        ("adamw", adamw),
        ("lamb", lamb),
        ("layer", encoder_layer),
        ("infer_layers", infer_layers),
    ];
    for (name, program) in programs {
        c.program = name;
        program(c);
    }
}

/// Parameters of a linear layer of `rows` outputs, with unit variance of what comes out.
struct Layer<B: Backend> {
    params: B::Params,
    linear: Linear,
    len: usize,
}

fn layer<B: Backend>(c: &mut Context<B>, rows: usize, cols: usize) -> Layer<B> {
    let mut layout = ParamLayout::new();
    // Something before it, so that offsets count.
    layout.push("first", &[3], Init::Zeros, 0);
    let weight = layout.push("weight", &[rows, cols], Init::Zeros, 0);
    let bias = layout.push("bias", &[rows], Init::Zeros, 0);
    layout.register_linear(weight);
    let mut values = c.units(layout.len());
    for value in &mut values[weight.range()] {
        *value /= (cols as f32).sqrt();
    }
    Layer {
        params: c.backend.params(&layout, &values),
        linear: Linear { weight, bias },
        len: layout.len(),
    }
}

fn dropout_of(site: u32) -> Dropout {
    Dropout {
        rate: 0.1,
        rng: Rng::new(5, 9),
        site,
    }
}

fn memory<B: Backend>(c: &mut Context<B>) {
    let (rows, cols) = (c.tokens(), c.hidden());
    let x = c.input(rows, 2 * cols);
    let y = c.backend.array(rows, 2 * cols);
    let half = y.columns(cols, cols);
    c.backend.copy(x.columns(0, cols), half);
    c.keep_array("copy of columns", y, Bound::Moved);
    c.backend.zero(half.first_rows(rows / 2));
    c.keep_array("zero of columns", y, Bound::Moved);
}

fn embed<B: Backend>(c: &mut Context<B>) {
    let (tokens, width) = (c.tokens(), c.case.width);
    let mut layout = ParamLayout::new();
    let sizes = [c.case.entries, 512, 2];
    let names = ["word", "position", "type"];
    let views: Vec<ParamView> = names
        .iter()
        .zip(sizes)
        .map(|(name, n)| layout.push(name, &[n, width], Init::Zeros, 0))
        .collect();
    let values = c.units(layout.len());
    let params = c.backend.params(&layout, &values);
    let tables: Vec<(ParamView, Ints)> = views
        .iter()
        .map(|&view| {
            let ids = c.below(view.rows, tokens);
            (view, c.ints(&ids))
        })
        .collect();
    let y = c.backend.array(tokens, width);
    c.backend.embed(&params, &tables, y);
    c.keep_array("sum", y, Bound::F32(1e-6));
    let dy = c.input(tokens, width);
    let mut grads = c.backend.flat(layout.len());
    c.backend.embed_backward(&tables, dy, &mut grads);
    c.keep_flat("gradients", &grads, layout.len(), Bound::F32(1e-5));
}

fn linear<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden, width) = (c.tokens(), c.hidden(), c.case.width);
    for (inputs, outputs) in [(hidden, width), (width, 1), (width, 3 * hidden)] {
        let layer = layer(c, outputs, inputs);
        let x = c.input(tokens, inputs);
        let y = c.backend.array(tokens, outputs);
        c.backend.linear(&layer.params, x, &layer.linear, y);
        c.keep_array("y", y, Bound::Product(1e-5));
        let dy = c.input(tokens, outputs);
        let dx = c.input(tokens, inputs);
        for accumulate in [true, false] {
            let (params, linear) = (&layer.params, &layer.linear);
            c.backend
                .linear_backward_input(params, dy, linear, dx, accumulate);
            c.keep_array("dx", dx, Bound::Product(1e-5));
        }
        let mut grads = c.backend.flat(layer.len);
        for _ in 0..2 {
            c.backend
                .linear_backward_params(x, dy, &layer.linear, &mut grads);
        }
        c.keep_flat("gradients", &grads, layer.len, Bound::Product(1e-5));
    }
}

fn activation<B: Backend>(c: &mut Context<B>) {
    let (tokens, width) = (c.tokens(), c.case.width);
    let magnitude = 4.0 * c.case.magnitude;
    for activation in [Activation::Gelu, Activation::GeluTanh] {
        let z = c.scaled(tokens, width, magnitude);
        let y = c.backend.array(tokens, width);
        c.backend.activation(activation, z, y);
        c.keep_array("y", y, Bound::F32(1e-6));
        let d = c.input(tokens, width);
        c.backend.activation_backward(activation, z, d);
        c.keep_array("d", d, Bound::F32(3e-6));
    }
}

fn layer_norm<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden) = (c.tokens(), c.hidden());
    let mut layout = ParamLayout::new();
    let weight = layout.push("weight", &[hidden], Init::Ones, 0);
    let bias = layout.push("bias", &[hidden], Init::Zeros, 0);
    let values = c.units(layout.len());
    let params = c.backend.params(&layout, &values);
    let norm = Norm {
        weight,
        bias,
        eps: 1e-12,
    };
    let x = c.input(tokens, hidden);
    let y = c.backend.array(tokens, hidden);
    let stats = c.backend.array(tokens, 2);
    c.backend.layer_norm(&params, x, &norm, y, stats);
    c.keep_array("y", y, Bound::F32(1e-5));
    c.keep_array("statistics", stats, Bound::F32(1e-5));
    let (dy, dx) = (c.input(tokens, hidden), c.backend.array(tokens, hidden));
    let mut grads = c.backend.flat(layout.len());
    c.backend
        .layer_norm_backward(&params, x, stats, &norm, dy, dx, &mut grads);
    c.keep_array("dx", dx, Bound::F32(1e-5));
    c.keep_flat("gradients", &grads, layout.len(), Bound::F32(1e-5));
}

fn dropout<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden) = (c.tokens(), c.hidden());
    let (x, residual) = (c.input(tokens, hidden), c.input(tokens, hidden));
    let (y, keys) = (c.backend.array(tokens, hidden), c.keys());
    let dropout = dropout_of(3);
    c.backend.dropout(x, &dropout, &keys, y);
    c.keep_array("y", y, Bound::F32(1e-6));
    let mut values = vec![0.0; tokens * hidden];
    c.backend.read(y, &mut values);
    let kept = values.iter().map(|&v| f32::from(v != 0.0)).collect();
    c.keep("what is kept", kept, Bound::Exact);
    c.backend.add(residual, x, Some((&dropout, &keys)), y);
    c.keep_array("added", y, Bound::F32(1e-6));
    c.backend.add(residual, x, None, y);
    c.keep_array("plain sum", y, Bound::F32(1e-6));
    c.backend
        .add(residual, x, Some((&dropout, &keys)), residual);
    c.keep_array("onto the residual", residual, Bound::F32(1e-6));
    c.backend.dropout(x, &dropout, &keys, x);
    c.keep_array("in place", x, Bound::F32(1e-6));
}

fn attention<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden, heads) = (c.tokens(), c.hidden(), c.case.heads);
    let sequences = c.sequences();
    // Scores stay where f32 can tell neighbours apart; values take the case's magnitude.
    let scores = c.case.magnitude.min(3.0);
    let qkv = c.scaled(tokens, 3 * hidden, scores);
    let [q, k, mut v] = [0, 1, 2].map(|i| qkv.columns(i * hidden, hidden));
    if c.case.magnitude > 3.0 {
        v = c.input(tokens, hidden);
    }
    for dropout in [None, Some(dropout_of(1))] {
        let dropout = dropout.as_ref();
        let y = c.backend.array(tokens, hidden);
        let log_sum = c.backend.array(tokens, heads);
        c.backend
            .attention(q, k, v, heads, &sequences, dropout, y, log_sum);
        c.keep_array("y", y, Bound::F32(1e-5));
        c.keep_array("log_sum", log_sum, Bound::F32(1e-5));
        let dy = c.input(tokens, hidden);
        let d = c.backend.array(tokens, 3 * hidden);
        let d_qkv = [0, 1, 2].map(|i| d.columns(i * hidden, hidden));
        c.backend
            .attention_backward([q, k, v], heads, &sequences, dropout, y, log_sum, dy, d_qkv);
        for (name, d) in ["dq", "dk", "dv"].into_iter().zip(d_qkv) {
            // In a sequence of one token dq and dk vanish but for rounding: the bound is relative
            // to the whole.
            if tokens > 1 || name == "dv" {
                c.keep_array(name, d, Bound::F32(3e-5));
            }
        }
    }
}

fn rows<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden) = (c.tokens(), c.hidden());
    let chosen: Vec<u32> = (0..tokens as u32).filter(|t| t % 3 == 0).rev().collect();
    let rows = c.ints(&chosen);
    let x = c.input(tokens, hidden);
    let y = c.backend.array(chosen.len(), hidden);
    c.backend.gather_rows(x, rows, y);
    c.keep_array("gathered", y, Bound::Moved);
    c.backend.scatter_add_rows(y, rows, x);
    c.keep_array("scattered", x, Bound::F32(1e-6));
    let (base, values) = (c.below(9, tokens), c.below(9, chosen.len()));
    let (base, values) = (c.ints(&base), c.ints(&values));
    let y = c.backend.ints(tokens);
    c.backend.replace(base, rows, values, y);
    c.keep_ints("replaced", y, Bound::Exact);
    let differ = c.backend.ints(tokens);
    c.backend.not_equal(base, y, differ);
    c.keep_ints("not equal", differ, Bound::Exact);
}

fn vocabulary<B: Backend>(c: &mut Context<B>) {
    let (tokens, width, entries) = (c.tokens(), c.case.width, c.case.entries);
    let head = layer(c, entries, width);
    let magnitude = c.case.magnitude.min(3.0);
    let x = c.scaled(tokens, width, magnitude);
    let targets = c.below(entries, tokens);
    let targets = c.ints(&targets);
    let (log_prob, log_sum) = (c.backend.array(tokens, 1), c.backend.array(tokens, 1));
    let predicted = c.backend.ints(tokens);
    let (params, linear) = (&head.params, &head.linear);
    c.backend.vocabulary(
        params,
        x,
        linear,
        targets,
        log_prob,
        log_sum,
        Some(predicted),
        None,
    );
    c.keep_array("log_prob", log_prob, Bound::Product(1e-5));
    c.keep_array("log_sum", log_sum, Bound::Product(1e-5));
    // How good the predicted entry is: bf16 may choose another one of nearly equal logits.
    c.backend
        .vocabulary(params, x, linear, predicted, log_prob, log_sum, None, None);
    let mut best = vec![0.0; tokens];
    c.backend.read(log_prob, &mut best);
    let best = best.iter().map(|p| p.exp()).collect();
    c.keep("probability of the predicted", best, Bound::Product(1e-5));
    let dx = c.backend.array(tokens, width);
    let mut grads = c.backend.flat(head.len);
    let scale = 1.0 / tokens as f32;
    c.backend
        .vocabulary_backward(params, x, linear, targets, log_sum, scale, dx, &mut grads);
    c.keep_array("dx", dx, Bound::Product(2e-5));
    c.keep_flat("gradients", &grads, head.len, Bound::Product(2e-5));
}

/// The distance of a row's uniform number from the sampled entry's interval of the exact
/// distribution function, computed here.
fn vocabulary_sample<B: Backend>(c: &mut Context<B>) {
    let (tokens, width, entries) = (c.tokens(), c.case.width, c.case.entries);
    let head = layer(c, entries, width);
    let (params, linear) = (&head.params, &head.linear);
    let magnitude = c.case.magnitude.min(2.0);
    let x = c.scaled(tokens, width, magnitude);
    let (keys, all) = (c.keys(), (0..tokens as u32).collect::<Vec<_>>());
    let rows = c.ints(&all);
    let excluded = c.below(entries, tokens);
    let targets = c.ints(&excluded);
    let rng = Rng::new(3, 14);
    for (temperature, exclude) in [
        (1.0, None),
        (1.0, Some(targets)),
        (0.7, Some(targets)),
        (1.6, None),
    ] {
        let sample = VocabularySample {
            temperature,
            exclude,
            rng,
            keys,
            rows,
            sampled: c.backend.ints(tokens),
        };
        let [log_prob, log_sum] = [(); 2].map(|()| c.backend.array(tokens, 1));
        c.backend.vocabulary(
            params,
            x,
            linear,
            targets,
            log_prob,
            log_sum,
            None,
            Some(&sample),
        );
        c.keep_array("log_prob", log_prob, Bound::Product(1e-5));
        c.keep_array("log_sum", log_sum, Bound::Product(1e-5));
        let mut values = vec![0.0; tokens * width];
        let (mut flat, mut ids) = (vec![0.0; head.len], vec![0; tokens]);
        c.backend.read(x, &mut values);
        c.backend.read_params(params, &mut flat);
        c.backend.read_ints(sample.sampled, &mut ids);
        let (mut examples, mut positions) = (vec![0; tokens], vec![0; tokens]);
        c.backend.read_ints(keys.example, &mut examples);
        c.backend.read_ints(keys.position, &mut positions);
        let mut distance = 0.0f64;
        for (m, x) in values.chunks_exact(width).enumerate() {
            let logit = |i: usize| {
                let row = &flat[linear.weight.offset + i * width..][..width];
                let dot = x.iter().zip(row);
                let dot: f64 = dot.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                (dot + f64::from(flat[linear.bias.offset + i])) / f64::from(temperature)
            };
            let mut p: Vec<f64> = (0..entries).map(|i| logit(i).exp()).collect();
            if exclude.is_some() {
                p[excluded[m] as usize] = 0.0;
            }
            let total: f64 = p.iter().sum();
            let before = p[..ids[m] as usize].iter().sum::<f64>() / total;
            let after = before + p[ids[m] as usize] / total;
            let u = rng.uniform(Purpose::Sample, 0, examples[m], positions[m], 0);
            distance = distance.max(before - u).max(u - after);
        }
        // Written beside a 1, so that the error is not relative to the reference's own.
        c.keep("distance", vec![1.0, distance as f32], Bound::Product(1e-5));
    }
}

fn binary_cross_entropy<B: Backend>(c: &mut Context<B>) {
    let tokens = c.tokens();
    let logits = c.input(tokens, 1);
    let labels = c.below(2, tokens);
    let labels = c.ints(&labels);
    let out = c.backend.array(tokens, 1);
    c.backend.binary_cross_entropy(logits, labels, out);
    c.keep_array("loss", out, Bound::F32(1e-6));
    c.backend
        .binary_cross_entropy_backward(logits, labels, 0.3, out);
    c.keep_array("gradient", out, Bound::F32(1e-6));
}

fn sums<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden) = (c.tokens(), c.hidden());
    let x = c.input(tokens, hidden);
    let mut values = c.units(40_000);
    for value in &mut values {
        *value *= c.case.magnitude;
    }
    // Beside the sum of magnitudes, which cancellation does not touch.
    let size = values[..tokens.min(100)].iter().map(|v| v.abs()).sum();
    let sum = c.backend.sum(x) as f32;
    c.keep("sum", vec![size, sum], Bound::F32(1e-6));
    let mut flat = c.backend.flat(values.len());
    c.backend.write_flat(&mut flat, &values);
    let views = [(0, 1), (16, 39_000), (39_984, 16)].map(|(offset, cols)| ParamView {
        offset,
        rows: 1,
        cols,
    });
    let mut norms = [0.0; 3];
    c.backend.squared_norms(&flat, &views, &mut norms);
    for norm in norms {
        c.keep("squared norm", vec![norm as f32], Bound::F32(1e-6));
    }
}

fn adamw<B: Backend>(c: &mut Context<B>) {
    optimizer(c, false);
}

fn lamb<B: Backend>(c: &mut Context<B>) {
    optimizer(c, true);
}

/// Two steps, and products with what they leave.
fn optimizer<B: Backend>(c: &mut Context<B>, layerwise: bool) {
    let (tokens, hidden, width) = (c.tokens(), c.hidden(), c.case.width);
    let mut layer = layer(c, width, hidden);
    let magnitude = c.case.magnitude;
    let [mut grads, mut first, mut second] = [0, 1, 2].map(|i| {
        let mut values = c.units(layer.len);
        for value in &mut values {
            *value *= magnitude;
            if i == 2 {
                *value *= *value;
            }
        }
        let mut flat = c.backend.flat(layer.len);
        c.backend.write_flat(&mut flat, &values);
        flat
    });
    let Linear { weight, bias } = layer.linear;
    let updates = [(weight, 0.01), (bias, 0.0)].map(|(view, decay)| ParamUpdate {
        view,
        lr: 1e-3,
        decay,
    });
    // Makes the weight's packed form for backward, which the step must renew.
    let dx = c.backend.array(tokens, hidden);
    let dy = c.input(tokens, width);
    let linear = &layer.linear;
    c.backend
        .linear_backward_input(&layer.params, dy, linear, dx, false);
    let adam = Adam::default();
    for _ in 0..2 {
        let (params, m, v) = (&mut layer.params, &mut first, &mut second);
        if layerwise {
            let adapted = [true, false];
            c.backend
                .lamb(params, &mut grads, m, v, &adam, 0.5, &updates, &adapted);
            c.keep_flat("direction", &grads, layer.len, Bound::F32(1e-5));
        } else {
            c.backend.adamw(params, &grads, m, v, &adam, 0.5, &updates);
        }
    }
    let mut values = vec![0.0; layer.len];
    c.backend.read_params(&layer.params, &mut values);
    c.keep("parameters", values, Bound::F32(1e-5));
    c.keep_flat("first moment", &first, layer.len, Bound::F32(1e-6));
    c.keep_flat("second moment", &second, layer.len, Bound::F32(1e-6));
    let linear = &layer.linear;
    let x = c.input(tokens, hidden);
    let y = c.backend.array(tokens, width);
    c.backend.linear(&layer.params, x, linear, y);
    c.keep_array("product after it", y, Bound::Product(1e-5));
    c.backend
        .linear_backward_input(&layer.params, dy, linear, dx, false);
    c.keep_array("backward after it", dx, Bound::Product(1e-5));
    c.backend.zero_flat(&mut grads);
    c.keep_flat("zeros", &grads, layer.len, Bound::Exact);
}

/// Input of a layer. Scores of thousands would leave softmax no gradient but rounding errors, and
/// where two of them are close, another word to look at.
fn layer_input<B: Backend>(c: &mut Context<B>) -> Array {
    let (tokens, hidden) = (c.tokens(), c.hidden());
    let magnitude = c.case.magnitude.min(3.0);
    c.scaled(tokens, hidden, magnitude)
}

/// Parameters of an encoder layer.
fn declare_layer<B: Backend>(c: &Context<B>, layout: &mut ParamLayout, name: &str) -> LayerParams {
    let (hidden, width) = (c.hidden(), c.case.width);
    let mut linear = |parts: &[&str], rows: usize, cols: usize| {
        let named = |kind: &str| -> Vec<String> {
            let name_of = |part| format!("{name}.{part}.{kind}");
            parts.iter().map(name_of).collect()
        };
        let mut push = |kind, shape: &[usize]| {
            let names = named(kind);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            layout.push_adjacent(&names, shape, Init::Zeros, 0)
        };
        let (weight, bias) = (push("w", &[rows, cols]), push("b", &[rows]));
        layout.register_layer_linear(weight);
        Linear { weight, bias }
    };
    let qkv = linear(&["query", "key", "value"], hidden, hidden);
    let attention_output = linear(&["attention_output"], hidden, hidden);
    let intermediate = linear(&["intermediate"], width, hidden);
    let output = linear(&["output"], hidden, width);
    let mut norm = |part: &str| Norm {
        weight: layout.push(&format!("{name}.{part}.w"), &[hidden], Init::Ones, 0),
        bias: layout.push(&format!("{name}.{part}.b"), &[hidden], Init::Zeros, 0),
        eps: 1e-12,
    };
    LayerParams {
        qkv,
        attention_output,
        attention_norm: norm("attention_norm"),
        intermediate,
        output,
        output_norm: norm("output_norm"),
    }
}

/// Values of layers, with unit variance of what products put out.
fn layer_values<B: Backend>(
    c: &mut Context<B>,
    layout: &ParamLayout,
    layers: &[LayerParams],
) -> Vec<f32> {
    let mut values = c.units(layout.len());
    for layer in layers {
        for linear in [
            &layer.qkv,
            &layer.attention_output,
            &layer.intermediate,
            &layer.output,
        ] {
            for value in &mut values[linear.weight.range()] {
                *value /= (linear.weight.cols as f32).sqrt();
            }
        }
        for norm in [&layer.attention_norm, &layer.output_norm] {
            for value in &mut values[norm.weight.range()] {
                *value = 1.0 + 0.2 * *value;
            }
        }
    }
    values
}

fn layer_spec<B: Backend>(c: &Context<B>, activation: Activation) -> LayerSpec {
    LayerSpec {
        hidden: c.hidden(),
        heads: c.case.heads,
        intermediate: c.case.width,
        activation,
    }
}

fn encoder_layer<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden) = (c.tokens(), c.hidden());
    let mut layout = ParamLayout::new();
    let layer = declare_layer(c, &mut layout, "layer");
    let values = layer_values(c, &layout, &[layer]);
    let params = c.backend.params(&layout, &values);
    let sequences = c.sequences();
    let dropout = LayerDropout {
        attention: dropout_of(1),
        attention_output: dropout_of(2),
        output: dropout_of(3),
    };
    for (activation, dropout, chosen) in [
        (Activation::Gelu, None, None),
        (Activation::GeluTanh, Some(&dropout), None),
        (Activation::Gelu, Some(&dropout), Some([2, 3])),
        (Activation::Gelu, None, Some([tokens - 1, 1])),
        (Activation::Gelu, None, Some([tokens, 1])),
    ] {
        let spec = layer_spec(c, activation);
        let mut keep = c.backend.layer_arrays(&spec, tokens);
        let d = c.backend.layer_gradients(&spec, tokens);
        let input = layer_input(c);
        let rows = chosen.map(|chosen| output_rows(c, &spec, chosen));
        let rows = rows.as_ref();
        if let Some(rows) = rows {
            keep = keep.with_output_rows(rows.rows.len);
        }
        c.backend.layer(
            &params, &spec, &layer, &sequences, dropout, rows, input, &keep,
        );
        c.keep_array("output", keep.output, Bound::Chain(3e-5));
        // A plain gradient: one of the input's magnitude may drown the layer's own.
        let dy = c.scaled(keep.output.rows, hidden, 1.0);
        let by_output = rows.map_or(d.hidden, |rows| rows.arrays.d_hidden);
        c.backend.copy(dy, by_output);
        let mut grads = c.backend.flat(layout.len());
        c.backend.layer_backward(
            &params, &spec, &layer, &sequences, dropout, rows, input, &keep, &d, &mut grads,
        );
        c.keep_array("gradient by the input", d.hidden, Bound::Chain(1e-4));
        keep_gradients(c, &layout, &grads);
    }
}

/// Each weight's gradient by itself, so that a small one is seen beside a large one, with a hundredth of
/// the largest of all at its end: by that it is measured where it is nothing but rounding, as query and
/// key of one token have it. Those of vectors together.
fn keep_gradients<B: Backend>(c: &mut Context<B>, layout: &ParamLayout, grads: &B::Flat) {
    let mut values = vec![0.0; layout.len()];
    c.backend.read_flat(grads, &mut values);
    let largest = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let mut vectors = Vec::new();
    for param in layout.params() {
        let values = &values[param.view.range()];
        match param.shape.len() {
            1 => vectors.extend_from_slice(values),
            _ => {
                let name = format!("gradient of {}", param.names[0]);
                let values = [values, &[largest / 100.0]].concat();
                c.keep(&name, values, Bound::Chain(1e-4));
            }
        }
    }
    c.keep("gradients of vectors", vectors, Bound::Chain(1e-4));
}

/// One in `every` rows from `first` on, perhaps none, to be read alone.
fn output_rows<B: Backend>(
    c: &mut Context<B>,
    spec: &LayerSpec,
    [first, every]: [usize; 2],
) -> OutputRows {
    let chosen: Vec<u32> = (first..c.tokens())
        .step_by(every)
        .map(|row| row as u32)
        .collect();
    let (example, position) = (c.below(9, chosen.len()), c.below(512, chosen.len()));
    OutputRows {
        rows: c.ints(&chosen),
        keys: RowKeys {
            example: c.ints(&example),
            position: c.ints(&position),
        },
        arrays: c.backend.row_arrays(spec, chosen.len()),
    }
}

fn infer_layers<B: Backend>(c: &mut Context<B>) {
    let (tokens, hidden) = (c.tokens(), c.hidden());
    let mut layout = ParamLayout::new();
    let layers = ["first", "second", "third"].map(|name| declare_layer(c, &mut layout, name));
    let values = layer_values(c, &layout, &layers);
    let read = |range: Range<usize>, out: &mut [f32]| {
        out.copy_from_slice(&values[range]);
        Ok::<(), Infallible>(())
    };
    let Ok(params) = c.backend.inference_params(&layout, read);
    let sequences = c.sequences();
    let spec = layer_spec(c, Activation::Gelu);
    let even = c.backend.layer_arrays(&spec, tokens);
    let odd = LayerArrays {
        output: c.backend.array(tokens, hidden),
        ..even
    };
    for chosen in [None, Some([2, 3]), Some([tokens - 1, 1]), Some([tokens, 1])] {
        let input = layer_input(c);
        let rows = chosen.map(|chosen| output_rows(c, &spec, chosen));
        let (rows, work) = (rows.as_ref(), [even, odd]);
        let output = c
            .backend
            .infer_layers(&params, &spec, &layers, &sequences, rows, input, &work);
        c.keep_array("output", output, Bound::Chain(3e-5));
    }
}
