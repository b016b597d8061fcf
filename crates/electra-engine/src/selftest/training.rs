//! A small network in training, step by step, on a backend and on the reference.
//!
//! Embeddings, a projection, two layers with dropout, a vocabulary head on some rows and a binary
//! one on all, with norm, clipping and AdamW: every operator of pre-training at its place.

use super::{Bound, Outcome, Output, Products, compare};
use crate::backend::*;
use crate::params::{Init, ParamLayout, ParamView};
use crate::reference::Reference;
use crate::rng::{Purpose, Rng};

const LENGTHS: [usize; 5] = [70, 5, 1, 33, 19];
const HIDDEN: usize = 64;
const EMBEDDING: usize = 40;
const ENTRIES: usize = 300;
const STEPS: u64 = 5;
const SPEC: LayerSpec = LayerSpec {
    hidden: HIDDEN,
    heads: 2,
    intermediate: 128,
    activation: Activation::Gelu,
};

struct Network {
    layout: ParamLayout,
    tables: [ParamView; 2],
    norm: Norm,
    project: Linear,
    layers: Vec<LayerParams>,
    dense: Linear,
    vocabulary: Linear,
    detect: Linear,
}

fn declare() -> Network {
    let mut layout = ParamLayout::new();
    let mut count = 0;
    let mut linear = |layout: &mut ParamLayout, rows: usize, cols: usize| {
        count += 1;
        let init = Init::TruncatedNormal(1.0);
        let weight = layout.push(&format!("linear {count}"), &[rows, cols], init, 0);
        layout.register_linear(weight);
        let name = format!("linear {count} bias");
        let bias = layout.push(&name, &[rows], Init::Zeros, 0);
        Linear { weight, bias }
    };
    let norm = |layout: &mut ParamLayout, name: &str, size: usize| Norm {
        weight: layout.push(&format!("{name} LayerNorm"), &[size], Init::Ones, 0),
        bias: layout.push(&format!("{name} LayerNorm bias"), &[size], Init::Zeros, 0),
        eps: 1e-12,
    };
    let layers = (0..2)
        .map(|i| LayerParams {
            qkv: linear(&mut layout, 3 * HIDDEN, HIDDEN),
            attention_output: linear(&mut layout, HIDDEN, HIDDEN),
            attention_norm: norm(&mut layout, &format!("attention {i}"), HIDDEN),
            intermediate: linear(&mut layout, SPEC.intermediate, HIDDEN),
            output: linear(&mut layout, HIDDEN, SPEC.intermediate),
            output_norm: norm(&mut layout, &format!("output {i}"), HIDDEN),
        })
        .collect();
    let project = linear(&mut layout, HIDDEN, EMBEDDING);
    let dense = linear(&mut layout, EMBEDDING, HIDDEN);
    let detect = linear(&mut layout, 1, HIDDEN);
    let init = Init::TruncatedNormal(1.0);
    let word = layout.push("word", &[ENTRIES, EMBEDDING], init, 0);
    layout.register_linear(word);
    let position = layout.push("position", &[128, EMBEDDING], init, 0);
    Network {
        tables: [word, position],
        norm: norm(&mut layout, "embeddings", EMBEDDING),
        project,
        layers,
        dense,
        vocabulary: Linear {
            weight: word,
            bias: layout.push("vocabulary bias", &[ENTRIES], Init::Zeros, 0),
        },
        detect,
        layout,
    }
}

/// Numbers in -1 to 1, the same for every backend.
fn unit(rng: &Rng, what: u32, i: usize) -> f32 {
    (rng.uniform(Purpose::Test, what, i as u32, 0, 0) * 2.0 - 1.0) as f32
}

fn initial(network: &Network) -> Vec<f32> {
    let rng = Rng::new(11, 0);
    let mut values = vec![0.0; network.layout.len()];
    for param in network.layout.params() {
        for i in param.view.range() {
            values[i] = match param.init {
                Init::Ones => 1.0,
                Init::Zeros => 0.0,
                _ => unit(&rng, 0, i) * 1.7 / (param.view.cols as f32).sqrt(),
            };
        }
    }
    values
}

/// What five steps of training put out on `backend`: losses and gradient norms by step, and
/// the parameters at the end.
pub fn trace<B: Backend>(backend: &mut B) -> Vec<Output> {
    let network = declare();
    let mut params = backend.params(&network.layout, &initial(&network));
    let len = network.layout.len();
    let [mut grads, mut first, mut second] = [(); 3].map(|()| backend.flat(len));
    let tokens: usize = LENGTHS.iter().sum();
    let draws = Rng::new(12, 0);
    let below = |what: u32, i: usize, n: usize| {
        draws.below(n as u64, Purpose::Test, what, i as u32, 0, 0) as u32
    };
    let upload = |backend: &mut B, values: &[u32]| {
        let ints = backend.ints(values.len());
        backend.write_ints(ints, values);
        ints
    };
    let words: Vec<u32> = (0..tokens).map(|t| below(1, t, ENTRIES)).collect();
    let labels: Vec<u32> = (0..tokens)
        .map(|t| u32::from(below(2, t, 7) == 0))
        .collect();
    let masked: Vec<u32> = (0..tokens as u32).filter(|t| t % 6 == 2).collect();
    let targets: Vec<u32> = (0..masked.len()).map(|m| below(3, m, ENTRIES)).collect();
    let examples: Vec<u32> = LENGTHS
        .iter()
        .enumerate()
        .flat_map(|(s, &n)| std::iter::repeat_n(s as u32, n))
        .collect();
    let positions: Vec<u32> = LENGTHS.iter().flat_map(|&n| 0..n as u32).collect();
    let mut starts = vec![0];
    for n in LENGTHS {
        starts.push(starts[starts.len() - 1] + n as u32);
    }
    let (words, labels) = (upload(backend, &words), upload(backend, &labels));
    let (rows, targets) = (upload(backend, &masked), upload(backend, &targets));
    let sequences = Sequences {
        cu_seqlens: upload(backend, &starts),
        keys: RowKeys {
            example: upload(backend, &examples),
            position: upload(backend, &positions),
        },
        longest: LENGTHS.into_iter().max().unwrap_or(0),
    };
    let keys = sequences.keys;
    let tables = [
        (network.tables[0], words),
        (network.tables[1], keys.position),
    ];
    let count = masked.len();
    let sum = backend.array(tokens, EMBEDDING);
    let normed = backend.array(tokens, EMBEDDING);
    let stats = backend.array(tokens, 2);
    let projected = backend.array(tokens, HIDDEN);
    let kept: Vec<LayerArrays> = (0..2)
        .map(|_| backend.layer_arrays(&SPEC, tokens))
        .collect();
    let chosen = backend.array(count, HIDDEN);
    let [dense, active, d_dense] = [(); 3].map(|()| backend.array(count, EMBEDDING));
    let [log_prob, log_sum] = [(); 2].map(|()| backend.array(count, 1));
    let [logits, loss, d_logits] = [(); 3].map(|()| backend.array(tokens, 1));
    let d = backend.layer_gradients(&SPEC, tokens);
    let d_chosen = backend.array(count, HIDDEN);
    let [d_normed, d_sum] = [(); 2].map(|()| backend.array(tokens, EMBEDDING));
    let views: Vec<ParamView> = network.layout.params().iter().map(|p| p.view).collect();
    let updates: Vec<ParamUpdate> = network
        .layout
        .params()
        .iter()
        .map(|p| ParamUpdate {
            view: p.view,
            lr: 1e-3,
            decay: if p.decay { 0.01 } else { 0.0 },
        })
        .collect();
    let mut measured = [const { Vec::new() }; 3];
    for step in 0..STEPS {
        let rng = Rng::new(13, step);
        let dropout = |site: u32| Dropout {
            rate: 0.1,
            rng,
            site,
        };
        let dropouts: Vec<LayerDropout> = (0..2)
            .map(|i| LayerDropout {
                attention: dropout(3 * i + 1),
                attention_output: dropout(3 * i + 2),
                output: dropout(3 * i + 3),
            })
            .collect();
        backend.zero_flat(&mut grads);
        backend.embed(&params, &tables, sum);
        backend.layer_norm(&params, sum, &network.norm, normed, stats);
        backend.dropout(normed, &dropout(0), &keys, normed);
        backend.linear(&params, normed, &network.project, projected);
        let layers = &network.layers;
        let output = backend.layers(
            &params, &SPEC, layers, &sequences, &dropouts, None, projected, &kept,
        );
        backend.gather_rows(output, rows, chosen);
        backend.linear(&params, chosen, &network.dense, dense);
        backend.activation(Activation::GeluTanh, dense, active);
        let head = &network.vocabulary;
        backend.vocabulary(
            &params, active, head, targets, log_prob, log_sum, None, None,
        );
        backend.linear(&params, output, &network.detect, logits);
        backend.binary_cross_entropy(logits, labels, loss);
        measured[0].push((-backend.sum(log_prob) / count as f64) as f32);
        measured[1].push((backend.sum(loss) / tokens as f64) as f32);

        let scale = backend.loss_scale(10.0 / tokens as f64);
        let by_row = (scale / count as f64) as f32;
        let by_token = (scale * 10.0 / tokens as f64) as f32;
        backend.binary_cross_entropy_backward(logits, labels, by_token, d_logits);
        backend.linear_backward_params(output, d_logits, &network.detect, &mut grads);
        backend.linear_backward_input(&params, d_logits, &network.detect, d.hidden, false);
        backend.vocabulary_backward(
            &params, active, head, targets, log_sum, by_row, d_dense, &mut grads,
        );
        backend.activation_backward(Activation::GeluTanh, dense, d_dense);
        backend.linear_backward_params(chosen, d_dense, &network.dense, &mut grads);
        backend.linear_backward_input(&params, d_dense, &network.dense, d_chosen, false);
        backend.scatter_add_rows(d_chosen, rows, d.hidden);
        for i in (0..layers.len()).rev() {
            let input = if i == 0 {
                projected
            } else {
                kept[i - 1].output
            };
            backend.layer_backward(
                &params,
                &SPEC,
                &layers[i],
                &sequences,
                Some(&dropouts[i]),
                None,
                input,
                &kept[i],
                &d,
                &mut grads,
            );
        }
        backend.linear_backward_params(normed, d.hidden, &network.project, &mut grads);
        backend.linear_backward_input(&params, d.hidden, &network.project, d_normed, false);
        backend.dropout(d_normed, &dropout(0), &keys, d_normed);
        backend.layer_norm_backward(
            &params,
            sum,
            stats,
            &network.norm,
            d_normed,
            d_sum,
            &mut grads,
        );
        backend.embed_backward(&tables, d_sum, &mut grads);
        let mut norms = vec![0.0; views.len()];
        backend.squared_norms(&grads, &views, &mut norms);
        let norm = norms.iter().sum::<f64>().sqrt() / scale;
        measured[2].push(norm as f32);
        let clip = ((1.0 / norm).min(1.0) / scale) as f32;
        let adam = Adam::default();
        backend.adamw(
            &mut params,
            &grads,
            &mut first,
            &mut second,
            &adam,
            clip,
            &updates,
        );
    }
    let mut end = vec![0.0; len];
    backend.read_params(&params, &mut end);
    let names = [
        "loss of the vocabulary",
        "loss of detection",
        "gradient norm",
    ];
    let mut outputs: Vec<Output> = names
        .into_iter()
        .zip(measured)
        .map(|(name, values)| output(name, values, Bound::Product(1e-4)))
        .collect();
    outputs.push(output("parameters at the end", end, Bound::Product(1e-3)));
    outputs
}

fn output(name: &str, values: Vec<f32>, bound: Bound) -> Output {
    Output {
        name: format!("training: {name}"),
        values,
        bound,
        magnitude: 1.0,
    }
}

/// Compares a training on `backend` with one on the reference in f64.
pub fn run<B: Backend>(backend: &mut B, products: Products) -> Vec<Outcome> {
    let exact = trace(&mut Reference::<f64>::new());
    compare(&trace(backend), &exact, products)
}
