//! Every backward of the reference against central differences of its forward, in f64.

use electra_engine::backend::*;
use electra_engine::params::{Init, ParamLayout, ParamView};
use electra_engine::reference::Reference;
use electra_engine::rng::{Purpose, Rng};

type Be = Reference<f64>;

const STEP: f64 = 1e-6;
const BOUND: f64 = 1e-6;

/// Numbers in ±1.
fn numbers(site: u32, n: usize) -> Vec<f64> {
    let rng = Rng::new(11, 0);
    (0..n as u32)
        .map(|i| 2.0 * rng.uniform(Purpose::Test, site, i, 0, 0) - 1.0)
        .collect()
}

fn filled(be: &mut Be, site: u32, rows: usize, cols: usize) -> Array {
    let array = be.array(rows, cols);
    be.store(array, &numbers(site, rows * cols));
    array
}

fn ints(be: &mut Be, values: &[u32]) -> Ints {
    let ints = be.ints(values.len());
    be.write_ints(ints, values);
    ints
}

/// Checks the gradient of `Σ w · output` for fixed random `w`, by every element of `inputs` and
/// of the parameters.
///
/// `backward(be, params, d_output, grads)` writes the gradients by `inputs` to `d_inputs`.
fn check(
    be: &mut Be,
    params: &mut Vec<f64>,
    inputs: &[Array],
    d_inputs: &[Array],
    output: Array,
    forward: impl Fn(&mut Be, &Vec<f64>),
    backward: impl Fn(&mut Be, &Vec<f64>, Array, &mut Vec<f64>),
) {
    let weights = numbers(1000, output.rows * output.cols);
    let loss = |be: &mut Be, params: &Vec<f64>| -> f64 {
        forward(be, params);
        be.load(output)
            .iter()
            .zip(&weights)
            .map(|(y, w)| y * w)
            .sum()
    };
    loss(be, params);
    let d_output = be.array(output.rows, output.cols);
    be.store(d_output, &weights);
    let mut grads = vec![0.0; params.len()];
    backward(be, params, d_output, &mut grads);
    let analytic: Vec<Vec<f64>> = d_inputs.iter().map(|&d| be.load(d)).collect();

    let close = |what: String, analytic: f64, up: f64, down: f64| {
        let numeric = (up - down) / (2.0 * STEP);
        assert!(
            (analytic - numeric).abs() <= BOUND * (1.0 + numeric.abs()),
            "{what}: backward says {analytic}, differences say {numeric}"
        );
    };
    for (which, (&input, analytic)) in inputs.iter().zip(&analytic).enumerate() {
        let values = be.load(input);
        for i in 0..values.len() {
            let mut moved = values.clone();
            let [up, down] = [STEP, -STEP].map(|step| {
                moved[i] = values[i] + step;
                be.store(input, &moved);
                loss(be, params)
            });
            close(format!("input {which}[{i}]"), analytic[i], up, down);
        }
        be.store(input, &values);
    }
    for i in 0..params.len() {
        let value = params[i];
        let [up, down] = [STEP, -STEP].map(|step| {
            params[i] = value + step;
            loss(be, params)
        });
        params[i] = value;
        close(format!("parameter {i}"), grads[i], up, down);
    }
}

fn vector(layout: &mut ParamLayout, name: &str, n: usize) -> ParamView {
    layout.push(name, &[n], Init::Zeros, 0)
}

fn linear(layout: &mut ParamLayout, name: &str, out: usize, inputs: usize) -> Linear {
    Linear {
        weight: layout.push(&format!("{name}.w"), &[out, inputs], Init::Zeros, 0),
        bias: vector(layout, &format!("{name}.b"), out),
    }
}

fn norm(layout: &mut ParamLayout, name: &str, n: usize) -> Norm {
    Norm {
        weight: vector(layout, &format!("{name}.g"), n),
        bias: vector(layout, &format!("{name}.h"), n),
        eps: 1e-12,
    }
}

/// Three ragged sequences of `T` = 9 tokens.
fn sequences(be: &mut Be) -> Sequences {
    Sequences {
        cu_seqlens: ints(be, &[0, 1, 5, 9]),
        keys: RowKeys {
            example: ints(be, &[0, 1, 1, 1, 1, 2, 2, 2, 2]),
            position: ints(be, &[0, 0, 1, 2, 3, 0, 1, 2, 3]),
        },
        longest: 4,
    }
}

const T: usize = 9;

fn dropout(rate: f32, site: u32) -> Dropout {
    Dropout {
        rate,
        rng: Rng::new(5, 6),
        site,
    }
}

#[test]
fn linear_layer() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let l = linear(&mut layout, "l", 4, 3);
    let mut params = numbers(0, layout.len());
    let (x, dx, y) = (filled(be, 1, 5, 3), be.array(5, 3), be.array(5, 4));
    check(
        be,
        &mut params,
        &[x],
        &[dx],
        y,
        |be, p| be.linear(p, x, &l, y),
        |be, p, dy, grads| {
            be.linear_backward_params(x, dy, &l, grads);
            be.linear_backward_input(p, dy, &l, dx, false);
        },
    );
}

#[test]
fn accumulated_input_gradient_adds_to_what_is_there() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let l = linear(&mut layout, "l", 4, 3);
    let params = numbers(0, layout.len());
    let (dy, alone, sum) = (filled(be, 1, 5, 4), be.array(5, 3), filled(be, 2, 5, 3));
    let before = be.load(sum);
    be.linear_backward_input(&params, dy, &l, alone, false);
    be.linear_backward_input(&params, dy, &l, sum, true);
    for ((sum, before), alone) in be.load(sum).iter().zip(before).zip(be.load(alone)) {
        assert!((sum - before - alone).abs() < 1e-14);
    }
}

#[test]
fn activations() {
    for activation in [Activation::Gelu, Activation::GeluTanh] {
        let be = &mut Be::new();
        let (x, d, y) = (filled(be, 1, 5, 7), be.array(5, 7), be.array(5, 7));
        let wide: Vec<f64> = be.load(x).iter().map(|v| 5.0 * v).collect();
        be.store(x, &wide);
        check(
            be,
            &mut Vec::new(),
            &[x],
            &[d],
            y,
            |be, _| be.activation(activation, x, y),
            |be, _, dy, _| {
                be.copy(dy, d);
                be.activation_backward(activation, x, d);
            },
        );
    }
}

#[test]
fn layer_norm() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let n = norm(&mut layout, "n", 6);
    let mut params = numbers(0, layout.len());
    let (x, dx, y, stats) = (
        filled(be, 1, 4, 6),
        be.array(4, 6),
        be.array(4, 6),
        be.array(4, 2),
    );
    check(
        be,
        &mut params,
        &[x],
        &[dx],
        y,
        |be, p| be.layer_norm(p, x, &n, y, stats),
        |be, p, dy, grads| be.layer_norm_backward(p, x, stats, &n, dy, dx, grads),
    );
}

#[test]
fn residual_with_dropout() {
    let be = &mut Be::new();
    let s = sequences(be);
    let d = dropout(0.3, 1);
    let (r, x, y) = (filled(be, 1, T, 5), filled(be, 2, T, 5), be.array(T, 5));
    let (dr, dx) = (be.array(T, 5), be.array(T, 5));
    check(
        be,
        &mut Vec::new(),
        &[r, x],
        &[dr, dx],
        y,
        |be, _| be.add(r, x, Some((&d, &s.keys)), y),
        |be, _, dy, _| {
            be.copy(dy, dr);
            be.dropout(dy, &d, &s.keys, dx);
        },
    );
}

#[test]
fn embeddings() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let words = layout.push("words", &[7, 3], Init::Zeros, 0);
    let types = layout.push("types", &[2, 3], Init::Zeros, 0);
    let mut params = numbers(0, layout.len());
    let tables = [
        (words, ints(be, &[6, 0, 6, 2, 1])),
        (types, ints(be, &[0, 1, 1, 0, 1])),
    ];
    let y = be.array(5, 3);
    check(
        be,
        &mut params,
        &[],
        &[],
        y,
        |be, p| be.embed(p, &tables, y),
        |be, _, dy, grads| be.embed_backward(&tables, dy, grads),
    );
}

#[test]
fn attention_with_and_without_dropout() {
    for rate in [None, Some(0.3)] {
        let be = &mut Be::new();
        let s = sequences(be);
        let drop = rate.map(|rate| dropout(rate, 2));
        let (heads, width) = (2, 6);
        let qkv = filled(be, 1, T, 3 * width);
        let d_qkv = be.array(T, 3 * width);
        let thirds = |a: Array| [0, 1, 2].map(|i| a.columns(i * width, width));
        let (y, log_sum) = (be.array(T, width), be.array(T, heads));
        let [q, k, v] = thirds(qkv);
        check(
            be,
            &mut Vec::new(),
            &[qkv],
            &[d_qkv],
            y,
            |be, _| be.attention(q, k, v, heads, &s, drop.as_ref(), y, log_sum),
            |be, _, dy, _| {
                be.attention_backward(
                    [q, k, v],
                    heads,
                    &s,
                    drop.as_ref(),
                    y,
                    log_sum,
                    dy,
                    thirds(d_qkv),
                );
            },
        );
    }
}

#[test]
fn gathered_and_scattered_rows() {
    let be = &mut Be::new();
    let rows = ints(be, &[4, 0, 2]);
    let (x, dx, y) = (filled(be, 1, 5, 3), be.array(5, 3), be.array(3, 3));
    check(
        be,
        &mut Vec::new(),
        &[x],
        &[dx],
        y,
        |be, _| be.gather_rows(x, rows, y),
        |be, _, dy, _| {
            be.zero(dx);
            be.scatter_add_rows(dy, rows, dx);
        },
    );
}

/// The loss `− scale · Σ log_prob` has no array of outputs: the weights of the check are all
/// `− scale`, so the log-probabilities are summed into a `[1, 1]` array.
#[test]
fn vocabulary_log_probability() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let head = linear(&mut layout, "head", 11, 4);
    let mut params = numbers(0, layout.len());
    let targets = ints(be, &[3, 10, 0]);
    let (x, dx) = (filled(be, 1, 3, 4), be.array(3, 4));
    let (log_prob, log_sum, total) = (be.array(3, 1), be.array(3, 1), be.array(1, 1));
    check(
        be,
        &mut params,
        &[x],
        &[dx],
        total,
        |be, p| {
            be.vocabulary(p, x, &head, targets, log_prob, log_sum, None, None);
            let sum = be.sum(log_prob);
            be.store(total, &[-sum]);
        },
        |be, p, dy, grads| {
            let scale = be.load(dy)[0];
            // The contract takes the scale in f32; the rest is put on in f64.
            be.vocabulary_backward(p, x, &head, targets, log_sum, 1.0, dx, grads);
            let scaled: Vec<f64> = be.load(dx).iter().map(|v| v * scale).collect();
            be.store(dx, &scaled);
            grads.iter_mut().for_each(|g| *g *= scale);
        },
    );
}

#[test]
fn binary_cross_entropy() {
    let be = &mut Be::new();
    let labels = ints(be, &[0, 1, 1, 0]);
    let (x, dx) = (filled(be, 1, 4, 1), be.array(4, 1));
    let (loss, total) = (be.array(4, 1), be.array(1, 1));
    check(
        be,
        &mut Vec::new(),
        &[x],
        &[dx],
        total,
        |be, _| {
            be.binary_cross_entropy(x, labels, loss);
            let sum = be.sum(loss);
            be.store(total, &[sum]);
        },
        |be, _, dy, _| {
            let scale = be.load(dy)[0];
            be.binary_cross_entropy_backward(x, labels, 1.0, dx);
            let scaled: Vec<f64> = be.load(dx).iter().map(|v| v * scale).collect();
            be.store(dx, &scaled);
        },
    );
}

/// Rows that are read alone: of some sequences.
const READ: [u32; 2] = [0, 4];

fn output_rows(be: &mut Be, sequences: &Sequences, spec: &LayerSpec, chosen: &[u32]) -> OutputRows {
    let keys = [sequences.keys.example, sequences.keys.position].map(|of_all| {
        let mut values = vec![0; of_all.len];
        be.read_ints(of_all, &mut values);
        let of_rows: Vec<u32> = chosen.iter().map(|&row| values[row as usize]).collect();
        ints(be, &of_rows)
    });
    OutputRows {
        rows: ints(be, chosen),
        keys: RowKeys {
            example: keys[0],
            position: keys[1],
        },
        arrays: be.row_arrays(spec, chosen.len()),
    }
}

/// A whole layer, and a second one above it, of which all rows are read or some alone.
#[test]
fn layers_with_and_without_dropout() {
    for (rate, chosen) in [
        (0.0, None),
        (0.25, None),
        (0.0, Some(READ)),
        (0.25, Some(READ)),
    ] {
        for activation in [Activation::Gelu, Activation::GeluTanh] {
            let be = &mut Be::new();
            let s = sequences(be);
            let spec = LayerSpec {
                hidden: 4,
                heads: 2,
                intermediate: 6,
                activation,
            };
            let mut layout = ParamLayout::new();
            let layers: Vec<LayerParams> = (0..2)
                .map(|i| LayerParams {
                    qkv: linear(&mut layout, &format!("{i}.qkv"), 12, 4),
                    attention_output: linear(&mut layout, &format!("{i}.o"), 4, 4),
                    attention_norm: norm(&mut layout, &format!("{i}.n"), 4),
                    intermediate: linear(&mut layout, &format!("{i}.i"), 6, 4),
                    output: linear(&mut layout, &format!("{i}.f"), 4, 6),
                    output_norm: norm(&mut layout, &format!("{i}.m"), 4),
                })
                .collect();
            let mut params = numbers(0, layout.len());
            let dropouts: Vec<LayerDropout> = match rate {
                0.0 => Vec::new(),
                rate => (0..2)
                    .map(|i| LayerDropout {
                        attention: dropout(rate, 3 * i),
                        attention_output: dropout(rate, 3 * i + 1),
                        output: dropout(rate, 3 * i + 2),
                    })
                    .collect(),
            };
            let mut keep: Vec<LayerArrays> = (0..2).map(|_| be.layer_arrays(&spec, T)).collect();
            let d = be.layer_gradients(&spec, T);
            let x = filled(be, 1, T, 4);
            let rows = chosen.map(|chosen| {
                be.layers(&params, &spec, &layers, &s, &dropouts, None, x, &keep);
                let rows = output_rows(be, &s, &spec, &chosen);
                let all = be.load(keep[1].output);
                let expected: Vec<f64> = chosen
                    .iter()
                    .flat_map(|&row| all[4 * row as usize..][..4].to_vec())
                    .collect();
                keep[1] = keep[1].with_output_rows(chosen.len());
                let some = Some(&rows);
                let output = be.layers(&params, &spec, &layers, &s, &dropouts, some, x, &keep);
                assert_eq!(be.load(output), expected);
                rows
            });
            let rows = rows.as_ref();
            let by_output = rows.map_or(d.hidden, |rows| rows.arrays.d_hidden);
            check(
                be,
                &mut params,
                &[x],
                &[d.hidden],
                keep[1].output,
                |be, p| {
                    be.layers(p, &spec, &layers, &s, &dropouts, rows, x, &keep);
                },
                |be, p, dy, grads| {
                    be.copy(dy, by_output);
                    for i in (0..2).rev() {
                        let rows = rows.filter(|_| i == 1);
                        let input = if i == 0 { x } else { keep[0].output };
                        let drop = dropouts.get(i);
                        be.layer_backward(
                            p, &spec, &layers[i], &s, drop, rows, input, &keep[i], &d, grads,
                        );
                    }
                },
            );
        }
    }
}

/// AdamW has no backward; its step is checked against the formula written out by hand.
#[test]
fn adamw_takes_the_published_step() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let view = vector(&mut layout, "p", 1);
    let (mut params, mut m, mut v) = (vec![2.0], vec![0.5], vec![0.25]);
    let updates = [ParamUpdate {
        view,
        lr: 0.5,
        decay: 0.25,
    }];
    be.adamw(
        &mut params,
        &vec![4.0],
        &mut m,
        &mut v,
        &Adam::default(),
        0.5,
        &updates,
    );
    let (beta1, beta2, epsilon) = (f64::from(0.9f32), f64::from(0.999f32), f64::from(1e-6f32));
    let want_m = beta1 * 0.5 + (1.0 - beta1) * 2.0;
    let want_v = beta2 * 0.25 + (1.0 - beta2) * 4.0;
    assert!((m[0] - want_m).abs() < 1e-15 && (v[0] - want_v).abs() < 1e-15);
    let want = 2.0 - 0.5 * (want_m / (want_v.sqrt() + epsilon) + 0.25 * 2.0);
    assert!(
        (params[0] - want).abs() < 1e-14,
        "{} is not {want}",
        params[0]
    );
}

/// The same of LAMB, of a tensor that is adapted, one that is not, and one that is zero.
#[test]
fn lamb_takes_the_published_step() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let views = ["adapted", "plain", "zero"].map(|name| vector(&mut layout, name, 2));
    let updates = views.map(|view| ParamUpdate {
        view,
        lr: 0.5,
        decay: 0.25,
    });
    let at = |view: ParamView, i: usize| view.range().start + i;
    let mut params = vec![0.0; layout.len()];
    let mut grads = vec![0.0; layout.len()];
    for view in views {
        grads[at(view, 0)] = 4.0;
        grads[at(view, 1)] = -1.0;
    }
    for view in &views[..2] {
        params[at(*view, 0)] = 2.0;
        params[at(*view, 1)] = 3.0;
    }
    let before = params.clone();
    let (mut m, mut v) = (vec![0.5; layout.len()], vec![0.25; layout.len()]);
    let adam = Adam::default();
    let adapted = [true, false, true];
    be.lamb(
        &mut params,
        &mut grads,
        &mut m,
        &mut v,
        &adam,
        0.5,
        &updates,
        &adapted,
    );
    let (beta1, beta2, epsilon) = (f64::from(0.9f32), f64::from(0.999f32), f64::from(1e-6f32));
    let direction = |p: f64, grad: f64| {
        let m = beta1 * 0.5 + (1.0 - beta1) * 0.5 * grad;
        let v = beta2 * 0.25 + (1.0 - beta2) * (0.5 * grad).powi(2);
        m / (v.sqrt() + epsilon) + 0.25 * p
    };
    for (view, adapted) in views.into_iter().zip(adapted) {
        let p = [0, 1].map(|i| before[at(view, i)]);
        let u = [direction(p[0], 4.0), direction(p[1], -1.0)];
        let ratio = match adapted && p != [0.0; 2] {
            true => p[0].hypot(p[1]) / u[0].hypot(u[1]),
            false => 1.0,
        };
        for i in 0..2 {
            let (got, want) = (params[at(view, i)], p[i] - 0.5 * ratio * u[i]);
            assert!((got - want).abs() < 1e-13, "{got} is not {want}");
        }
    }
}

#[test]
fn dropout_keeps_the_stated_share_at_the_stated_scale() {
    let be = &mut Be::new();
    let (rows, cols) = (1000, 1000);
    let x = be.array(rows, cols);
    be.store(x, &vec![1.0; rows * cols]);
    let keys = RowKeys {
        example: ints(be, &(0..rows as u32).map(|r| r / 100).collect::<Vec<_>>()),
        position: ints(be, &(0..rows as u32).map(|r| r % 100).collect::<Vec<_>>()),
    };
    for rate in [0.1f32, 0.5] {
        let d = dropout(rate, 3);
        let y = be.array(rows, cols);
        be.dropout(x, &d, &keys, y);
        let values = be.load(y);
        let kept = values.iter().filter(|&&v| v != 0.0).count() as f64 / values.len() as f64;
        let deviation = (f64::from(rate) * (1.0 - f64::from(rate)) / 1e6).sqrt();
        assert!(
            (kept - (1.0 - f64::from(rate))).abs() < 4.0 * deviation,
            "kept {kept} at {rate}"
        );
        assert!(values.iter().all(|&v| v == 0.0 || v == d.scale()));
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((mean - 1.0).abs() < 8.0 * deviation / (1.0 - f64::from(rate)));
    }
}

#[test]
fn samples_follow_the_softmax() {
    let be = &mut Be::new();
    let mut layout = ParamLayout::new();
    let head = linear(&mut layout, "head", 5, 1);
    let params: Vec<f64> = {
        let mut p = vec![0.0; layout.len()];
        p[head.bias.range()].copy_from_slice(&[0.0, 1.0, 2.0, -1.0, 0.5]);
        p
    };
    let n = 20_000usize;
    let x = be.array(n, 1);
    let keys = RowKeys {
        example: ints(be, &(0..n as u32).collect::<Vec<_>>()),
        position: ints(be, &vec![0; n]),
    };
    let rows = ints(be, &(0..n as u32).collect::<Vec<_>>());
    let (sampled, targets) = (be.ints(n), be.ints(n));
    let (log_prob, log_sum) = (be.array(n, 1), be.array(n, 1));
    let exclude = ints(be, &vec![2; n]);
    for (temperature, excluded) in [(1.0, None), (2.0, None), (1.0, Some(exclude))] {
        let sample = VocabularySample {
            temperature,
            exclude: excluded,
            rng: Rng::new(1, 2),
            keys,
            rows,
            sampled,
        };
        be.vocabulary(
            &params,
            x,
            &head,
            targets,
            log_prob,
            log_sum,
            None,
            Some(&sample),
        );
        let mut out = vec![0; n];
        be.read_ints(sampled, &mut out);
        let mut weights: Vec<f64> = params[head.bias.range()]
            .iter()
            .map(|b| (b / f64::from(temperature)).exp())
            .collect();
        if excluded.is_some() {
            weights[2] = 0.0;
        }
        let total: f64 = weights.iter().sum();
        for (i, weight) in weights.iter().enumerate() {
            let share = out.iter().filter(|&&s| s as usize == i).count() as f64 / n as f64;
            assert!(
                (share - weight / total).abs() < 0.015,
                "entry {i}: {share} of {}",
                weight / total
            );
        }
    }
}
