//! The CPU backend against the reference, on every instruction set, precision and number of
//! threads that this machine can run.

use electra_engine::backend::*;
use electra_engine::cpu::{Cpu, CpuOptions, CpuParams, Isa, Precision};
use electra_engine::params::{Init, ParamLayout};
use electra_engine::reference::Reference;
use electra_engine::rng::Rng;
use electra_engine::selftest;
use std::io::Write;

fn cpu(isa: Isa, precision: Precision, threads: usize) -> Cpu {
    Cpu::new(CpuOptions {
        threads: Some(threads),
        precision,
        isa: Some(isa),
    })
    .expect("an instruction set of this CPU")
}

/// Every instruction set with every precision it has.
fn kinds() -> Vec<(Isa, Precision)> {
    let mut kinds = Vec::new();
    for isa in Isa::available() {
        kinds.push((isa, Precision::F32));
        kinds.push((isa, Precision::Int8));
        if isa.has_halves() {
            kinds.push((isa, Precision::Bf16));
        }
    }
    kinds
}

#[test]
fn instruction_sets_are_those_that_the_system_names() {
    let here = Isa::available();
    let missing: Vec<&str> = Isa::ALL
        .into_iter()
        .filter(|isa| !here.contains(isa))
        .map(Isa::name)
        .collect();
    // Past what the harness captures, so that a run says which kernels it did not test.
    if !missing.is_empty() {
        let line = format!(
            "skipped: kernels of {}: not on this CPU\n",
            missing.join(", ")
        );
        std::io::stderr()
            .write_all(line.as_bytes())
            .expect("stderr");
    }
    assert!(here.contains(&Isa::Portable));
    // The system's word for what there is, where it has one.
    let Ok(cpu) = std::fs::read_to_string("/proc/cpuinfo") else {
        return;
    };
    let flags = cpu.lines().find(|line| line.starts_with("flags"));
    let has = |flag: &str| flags.is_some_and(|line| line.split(' ').any(|word| word == flag));
    let wide = has("avx2")
        && has("fma")
        && ["f", "bw", "dq", "vl"]
            .iter()
            .all(|set| has(&format!("avx512{set}")));
    let vnni = wide && has("avx512_vnni");
    for (isa, there) in [
        (Isa::Avx2, has("avx2") && has("fma")),
        (Isa::Avx2Vnni, has("avx2") && has("fma") && has("avx_vnni")),
        (Isa::Avx512, wide),
        (Isa::Avx512Vnni, vnni),
        (Isa::Avx512Bf16, vnni && has("avx512_bf16")),
        (Isa::Avx512Fp16, vnni && has("avx512_fp16")),
    ] {
        assert_eq!(here.contains(&isa), there, "{}", isa.name());
    }
}

#[test]
fn every_operator_agrees_with_the_reference_by_the_same_bits_on_any_number_of_threads() {
    let exact = selftest::exact();
    let mut failed = Vec::new();
    for (isa, precision) in kinds() {
        let mut backend = cpu(isa, precision, 1);
        let products = backend.products();
        let alone = selftest::outputs(&mut backend);
        for o in selftest::compare(&alone, &exact, products) {
            if !o.passed() {
                let (name, error, bound) = (&o.name, o.error, o.bound);
                failed.push(format!(
                    "{isa:?} {precision:?} {name}: {error:.1e} > {bound:.0e}"
                ));
            }
        }
        for threads in [2, 3] {
            let together = selftest::outputs(&mut cpu(isa, precision, threads));
            for (a, b) in alone.iter().zip(&together) {
                if !same_bits(&a.values, &b.values) {
                    failed.push(format!(
                        "{isa:?} {precision:?}, {threads} threads: {}",
                        a.name
                    ));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Logits that rise by hundreds along the vocabulary, and a row whose one probable entry is left
/// out: no sum overflows or vanishes, and a row's results do not depend on the others.
#[test]
fn a_steep_vocabulary_is_summed_and_sampled_as_the_reference_does() {
    const ENTRIES: usize = 2500;
    const ROWS: usize = 50;
    const SLOPES: [f32; 4] = [0.0, 0.2, -0.2, 3.0];
    let mut layout = ParamLayout::new();
    let weight = layout.push("weight", &[ENTRIES, 1], Init::Zeros, 0);
    let bias = layout.push("bias", &[ENTRIES], Init::Zeros, 0);
    layout.register_linear(weight);
    let mut values = vec![0.0; layout.len()];
    for (i, value) in values[weight.range()].iter_mut().enumerate() {
        *value = i as f32;
    }
    let head = Linear { weight, bias };
    // The target is the most probable entry of the slopes that have one.
    let targets = [7, ENTRIES as u32 - 1, 0, ENTRIES as u32 - 1];
    let input = |row: usize| (SLOPES[row % 4], targets[row % 4]);

    /// Log-probabilities, predicted and sampled entries of some rows.
    fn run<B: Backend>(
        backend: &mut B,
        params: &B::Params,
        head: &Linear,
        rows: std::ops::Range<usize>,
        input: impl Fn(usize) -> (f32, u32),
        temperature: f32,
        left_out: bool,
    ) -> (Vec<f32>, [Vec<u32>; 2]) {
        let mut upload = |values: Vec<u32>| {
            let ints = backend.ints(values.len());
            backend.write_ints(ints, &values);
            ints
        };
        let count = rows.len();
        let targets = upload(rows.clone().map(|r| input(r).1).collect());
        let keys = upload(rows.clone().map(|r| r as u32).collect());
        let each = upload((0..count as u32).collect());
        let (predicted, sampled) = (upload(vec![0; count]), upload(vec![0; count]));
        let [x, log_prob, log_sum] = [(); 3].map(|()| backend.array(count, 1));
        backend.write(x, &rows.map(|r| input(r).0).collect::<Vec<_>>());
        let sample = VocabularySample {
            temperature,
            exclude: left_out.then_some(targets),
            rng: Rng::new(3, 1),
            keys: RowKeys {
                example: keys,
                position: keys,
            },
            rows: each,
            sampled,
        };
        backend.vocabulary(
            params,
            x,
            head,
            targets,
            log_prob,
            log_sum,
            Some(predicted),
            Some(&sample),
        );
        let mut values = vec![0.0; count];
        backend.read(log_prob, &mut values);
        let ids = [predicted, sampled].map(|ints| {
            let mut ids = vec![0; count];
            backend.read_ints(ints, &mut ids);
            ids
        });
        (values, ids)
    }

    let mut reference = Reference::<f64>::new();
    let exact = reference.params(&layout, &values);
    for (temperature, left_out) in [(1.0, false), (1.0, true), (0.2, true), (2.0, false)] {
        let want = run(
            &mut reference,
            &exact,
            &head,
            0..ROWS,
            input,
            temperature,
            left_out,
        );
        for isa in Isa::available() {
            let mut backend = cpu(isa, Precision::F32, 3);
            let params = backend.params(&layout, &values);
            let mut on = |rows| {
                run(
                    &mut backend,
                    &params,
                    &head,
                    rows,
                    input,
                    temperature,
                    left_out,
                )
            };
            let got = on(0..ROWS);
            for row in 0..ROWS {
                let what = format!("{isa:?} row {row} at {temperature}, left out: {left_out}");
                let (log_prob, exact) = (got.0[row], want.0[row]);
                // f32 rounds a logit of thousands to some 1e-4.
                let bound = 2e-5 + 1e-7 * (input(row).0 * ENTRIES as f32).abs();
                let error = (log_prob - exact).abs();
                assert!(error < bound, "{what}: {log_prob} is not {exact}");
                assert_eq!(got.1[0][row], want.1[0][row], "{what}: predicted");
                // Rounding may move a draw over a border between two entries.
                let (entry, exact) = (got.1[1][row], want.1[1][row]);
                assert!(entry.abs_diff(exact) <= 1, "{what}: {entry} is not {exact}");
                let target = input(row).1;
                assert!(!left_out || entry != target, "{what}: drew {entry}");
            }
            for row in [0, 1, 17, 34, 49] {
                let alone = on(row..row + 1);
                assert!(same_bits(&alone.0, &got.0[row..row + 1]), "{isa:?} {row}");
                let ids = [0, 1].map(|i| vec![got.1[i][row]]);
                assert_eq!(alone.1, ids, "{isa:?} row {row} alone");
            }
        }
    }
}

/// A loop that skips bad steps must see them: no function may turn what is no number into one.
#[test]
fn what_is_no_number_stays_so() {
    for (isa, precision) in kinds() {
        let mut backend = cpu(isa, precision, 1);
        let mut layout = ParamLayout::new();
        let weight = layout.push("weight", &[20, 16], Init::Zeros, 0);
        let bias = layout.push("bias", &[20], Init::Zeros, 0);
        layout.register_linear(weight);
        let params = backend.params(&layout, &vec![0.1; layout.len()]);
        let head = Linear { weight, bias };
        for position in [0, 15] {
            let mut values = [0.5; 16];
            values[position] = f32::NAN;
            let x = backend.array(1, 16);
            backend.write(x, &values);
            let [y, log_prob, log_sum] = [16, 1, 1].map(|n| backend.array(1, n));
            let target = backend.ints(1);
            backend.vocabulary(&params, x, &head, target, log_prob, log_sum, None, None);
            assert!(backend.sum(log_prob).is_nan(), "{isa:?} log_prob");
            for f in [Activation::Gelu, Activation::GeluTanh] {
                backend.activation(f, x, y);
                assert!(backend.sum(y).is_nan(), "{isa:?} {f:?}");
            }
            let cu_seqlens = backend.ints(2);
            backend.write_ints(cu_seqlens, &[0, 1]);
            let sequences = Sequences {
                cu_seqlens,
                keys: RowKeys {
                    example: target,
                    position: target,
                },
                longest: 1,
            };
            backend.attention(x, x, x, 1, &sequences, None, y, log_sum);
            assert!(backend.sum(y).is_nan(), "{isa:?} attention");
            assert!(backend.sum(log_sum).is_nan(), "{isa:?} log_sum");
        }
    }
}

/// More rows, columns and tokens than a task packs at once, none of them a multiple. Sixteenths make
/// every product and sum exact in each precision, so that nothing may differ; in f16, which are summed as
/// such, whole numbers do.
#[test]
fn a_weights_gradient_of_many_tiles_is_exact() {
    for [inputs, outputs] in [[330, 602], [602, 330]] {
        a_weights_gradient_is_exact(inputs, outputs, 16, |isa| !isa.has_f16());
        a_weights_gradient_is_exact(inputs, outputs, 1, Isa::has_f16);
    }
}

/// With values from −2 to 2 that are multiples of a part of one.
fn a_weights_gradient_is_exact(
    inputs: usize,
    outputs: usize,
    parts: usize,
    which: fn(Isa) -> bool,
) {
    const TOKENS: usize = 1101;
    let values = |len: usize, seed: usize| -> Vec<f32> {
        (0..len)
            .map(|i| {
                let number = (i * 31 + i / 7 * 13 + seed) % (4 * parts + 1);
                number as f32 / parts as f32 - 2.0
            })
            .collect()
    };
    let (x, dy) = (values(TOKENS * inputs, 3), values(TOKENS * outputs, 11));
    let mut layout = ParamLayout::new();
    let weight = layout.push("weight", &[outputs, inputs], Init::Zeros, 0);
    let bias = layout.push("bias", &[outputs], Init::Zeros, 0);
    layout.register_linear(weight);
    let mut expected = vec![1.0f32; layout.len()];
    for (x, dy) in x.chunks_exact(inputs).zip(dy.chunks_exact(outputs)) {
        for (o, dy) in dy.iter().enumerate() {
            expected[bias.offset + o] += dy;
            let row = weight.offset + o * inputs;
            for (sum, x) in expected[row..row + inputs].iter_mut().zip(x) {
                *sum += dy * x;
            }
        }
    }
    for (isa, precision) in kinds().into_iter().filter(|&(isa, _)| which(isa)) {
        for threads in [1, 3] {
            let mut cpu = cpu(isa, precision, threads);
            let (input, gradient) = (cpu.array(TOKENS, inputs), cpu.array(TOKENS, outputs));
            cpu.write(input, &x);
            cpu.write(gradient, &dy);
            let mut grads = cpu.flat(layout.len());
            cpu.write_flat(&mut grads, &vec![1.0; layout.len()]);
            cpu.linear_backward_params(input, gradient, &Linear { weight, bias }, &mut grads);
            let mut found = vec![0.0; layout.len()];
            cpu.read_flat(&grads, &mut found);
            let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{isa:?} {precision:?} on {threads} threads");
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// An encoder layer with dropout, and sequences to go through it.
struct Layer {
    spec: LayerSpec,
    layout: ParamLayout,
    layer: LayerParams,
    params: CpuParams,
    packed: Sequences,
    dropout: LayerDropout,
    /// Of each row.
    examples: Vec<u32>,
    positions: Vec<u32>,
    cu: Vec<u32>,
    inputs: Vec<f32>,
}

/// A layer of this width and intermediate width, and sequences of these numbers.
fn layer(backend: &mut Cpu, [hidden, width]: [usize; 2], sequences: &[usize]) -> Layer {
    const LENGTHS: [usize; 5] = [3, 130, 1, 57, 100];
    let spec = LayerSpec {
        hidden,
        heads: 4,
        intermediate: width,
        activation: Activation::Gelu,
    };
    let mut layout = ParamLayout::new();
    let mut linear = |name: &str, rows: usize, cols: usize| {
        let weight = layout.push(&format!("{name}.weight"), &[rows, cols], Init::Zeros, 0);
        let bias = layout.push(&format!("{name}.bias"), &[rows], Init::Zeros, 0);
        layout.register_linear(weight);
        Linear { weight, bias }
    };
    let qkv = linear("qkv", 3 * hidden, hidden);
    let attention_output = linear("attention_output", hidden, hidden);
    let intermediate = linear("intermediate", width, hidden);
    let output = linear("output", hidden, width);
    let norm = Norm {
        weight: layout.push("norm.weight", &[hidden], Init::Ones, 0),
        bias: layout.push("norm.bias", &[hidden], Init::Zeros, 0),
        eps: 1e-12,
    };
    let layer = LayerParams {
        qkv,
        attention_output,
        attention_norm: norm,
        intermediate,
        output,
        output_norm: norm,
    };
    let wave = |i: usize| (i as f32 * 0.37).sin() * 0.3;
    let values: Vec<f32> = (0..layout.len()).map(wave).collect();
    let params = backend.params(&layout, &values);

    let (mut cu, mut examples, mut positions, mut inputs) = (vec![0], vec![], vec![], vec![]);
    for &s in sequences {
        let len = LENGTHS[s];
        cu.push(cu[cu.len() - 1] + len as u32);
        examples.extend(std::iter::repeat_n(s as u32, len));
        positions.extend(0..len as u32);
        inputs.extend((0..len * hidden).map(|i| wave(i * 7 + s * 1009) * 3.0));
    }
    let mut upload = |values: &[u32]| {
        let ints = backend.ints(values.len());
        backend.write_ints(ints, values);
        ints
    };
    let packed = Sequences {
        cu_seqlens: upload(&cu),
        keys: RowKeys {
            example: upload(&examples),
            position: upload(&positions),
        },
        longest: 130,
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
    Layer {
        spec,
        layout,
        layer,
        params,
        packed,
        dropout,
        examples,
        positions,
        cu,
        inputs,
    }
}

/// Output of such a layer and the gradient by its input, sequence by sequence.
fn through_a_layer(
    backend: &mut Cpu,
    widths: [usize; 2],
    sequences: &[usize],
) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let l = layer(backend, widths, sequences);
    let (hidden, tokens) = (l.spec.hidden, l.examples.len());
    let keep = backend.layer_arrays(&l.spec, tokens);
    let d = backend.layer_gradients(&l.spec, tokens);
    let input = backend.array(tokens, hidden);
    backend.write(input, &l.inputs);
    let (dropout, packed) = (Some(&l.dropout), &l.packed);
    backend.layer(
        &l.params, &l.spec, &l.layer, packed, dropout, None, input, &keep,
    );
    backend.write(d.hidden, &l.inputs);
    let mut grads = backend.flat(l.layout.len());
    backend.layer_backward(
        &l.params, &l.spec, &l.layer, packed, dropout, None, input, &keep, &d, &mut grads,
    );
    let mut split = |array: Array| {
        let mut values = vec![0.0; tokens * hidden];
        backend.read(array, &mut values);
        l.cu.windows(2)
            .map(|w| values[w[0] as usize * hidden..w[1] as usize * hidden].to_vec())
            .collect()
    };
    (split(keep.output), split(d.hidden))
}

#[test]
fn rows_that_are_read_alone_have_the_same_bits() {
    for (isa, precision) in kinds() {
        for threads in [1, 2] {
            let mut backend = cpu(isa, precision, threads);
            // Whole sequences a thread, and one sequence that all threads share.
            for sequences in [&[0, 1, 2, 3, 4, 4, 3, 1][..], &[1]] {
                let l = layer(&mut backend, [64, 128], sequences);
                let tokens = l.examples.len() as u32;
                let all = read_alone(&mut backend, &l, None);
                let firsts = l.cu[..l.cu.len() - 1].to_vec();
                let thirds = (0..tokens).filter(|t| t % 3 == 1).collect();
                for rows in [firsts, thirds, vec![tokens - 1], vec![]] {
                    let some = read_alone(&mut backend, &l, Some(&rows));
                    for (what, all, some) in [
                        ("training", &all[0], &some[0]),
                        ("inference", &all[1], &some[1]),
                    ] {
                        let same = rows
                            .iter()
                            .zip(some)
                            .all(|(&row, some)| same_bits(&all[row as usize], some));
                        let of = (isa, precision, threads, sequences.len(), rows.len());
                        assert!(some.len() == rows.len() && same, "{what} {of:?}");
                    }
                }
            }
        }
    }
}

/// Rows of the layer's output in training, and of two such layers' in inference.
fn read_alone(backend: &mut Cpu, l: &Layer, chosen: Option<&[u32]>) -> [Vec<Vec<f32>>; 2] {
    let (hidden, tokens) = (l.spec.hidden, l.examples.len());
    let input = backend.array(tokens, hidden);
    backend.write(input, &l.inputs);
    let even = backend.layer_arrays(&l.spec, tokens);
    let odd = backend.layer_arrays(&l.spec, tokens);
    let mut upload = |values: Vec<u32>| {
        let ints = backend.ints(values.len());
        backend.write_ints(ints, &values);
        ints
    };
    let rows = chosen.map(|chosen| {
        let of = |values: &[u32]| chosen.iter().map(|&row| values[row as usize]).collect();
        let keys = RowKeys {
            example: upload(of(&l.examples)),
            position: upload(of(&l.positions)),
        };
        (upload(chosen.to_vec()), keys)
    });
    let rows = rows.map(|(rows, keys)| OutputRows {
        rows,
        keys,
        arrays: backend.row_arrays(&l.spec, rows.len),
    });
    let (rows, dropout) = (rows.as_ref(), Some(&l.dropout));
    let keep = match rows {
        Some(rows) => even.with_output_rows(rows.rows.len),
        None => even,
    };
    backend.layer(
        &l.params, &l.spec, &l.layer, &l.packed, dropout, rows, input, &keep,
    );
    let split = |backend: &mut Cpu, array: Array| -> Vec<Vec<f32>> {
        let mut values = vec![0.0; array.rows * hidden];
        backend.read(array, &mut values);
        values.chunks_exact(hidden).map(<[f32]>::to_vec).collect()
    };
    let trained = split(backend, keep.output);
    let (layers, work) = ([l.layer; 2], [even, odd]);
    let inferred = backend.infer_layers(&l.params, &l.spec, &layers, &l.packed, rows, input, &work);
    [trained, split(backend, inferred)]
}

/// Activations of tens of thousands, and the products of queries and keys after them, are numbers of every
/// form but f16.
#[test]
fn what_f16_has_no_number_for_is_noticed_in_inference() {
    for (isa, precision) in kinds() {
        let mut backend = cpu(isa, precision, 2);
        let mut l = layer(&mut backend, [64, 128], &[3, 0]);
        read_alone(&mut backend, &l, None);
        assert!(!backend.overflowed(), "{isa:?} {precision:?}");
        let hidden = l.spec.hidden;
        l.inputs[..hidden].iter_mut().for_each(|x| *x *= 3e4);
        let f16 = isa.has_f16() && precision != Precision::F32;
        for rows in [None, Some(&[0u32][..])] {
            let [_, inferred] = read_alone(&mut backend, &l, rows);
            assert_eq!(inferred[0][0].is_finite(), !f16, "{isa:?} {precision:?}");
            assert_eq!(backend.overflowed(), f16, "{isa:?} {precision:?}");
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch() {
    for (isa, precision) in kinds() {
        let mut backend = cpu(isa, precision, 2);
        // The second fills the matrix unit's registers, but for the last rows of a sequence.
        for widths in [[48, 80], [64, 128]] {
            let (outputs, gradients) = through_a_layer(&mut backend, widths, &[0, 1, 2, 3, 4]);
            for s in 0..5 {
                let (output, gradient) = through_a_layer(&mut backend, widths, &[s]);
                let what = format!("{isa:?} {precision:?} {widths:?} sequence {s}");
                assert!(same_bits(&output[0], &outputs[s]), "output of {what}");
                assert!(same_bits(&gradient[0], &gradients[s]), "gradient of {what}");
            }
        }
    }
}

#[test]
fn dropout_keeps_its_rate_and_the_expectation_over_a_million_draws() {
    let mut backend = Cpu::new(CpuOptions::default()).expect("the best instruction set");
    let (rows, cols) = (8000, 128);
    let ids: Vec<u32> = (0..rows as u32).collect();
    let ints = backend.ints(rows);
    backend.write_ints(ints, &ids);
    let keys = RowKeys {
        example: ints,
        position: ints,
    };
    let (x, y) = (backend.array(rows, cols), backend.array(rows, cols));
    backend.write(x, &vec![1.0; rows * cols]);
    for rate in [0.1f32, 0.5] {
        let dropout = Dropout {
            rate,
            rng: Rng::new(1, 2),
            site: 7,
        };
        backend.dropout(x, &dropout, &keys, y);
        let mut values = vec![0.0; rows * cols];
        backend.read(y, &mut values);
        let n = values.len() as f64;
        let kept = values.iter().filter(|&&v| v != 0.0).count() as f64 / n;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        // Four standard deviations of a million draws are 0.002 at the most.
        assert!(
            (kept - (1.0 - f64::from(rate))).abs() < 0.002,
            "kept {kept}"
        );
        assert!((mean - 1.0).abs() < 0.004, "mean {mean}");
    }
}

#[test]
fn what_the_cpu_has_not_is_said() {
    let backend = cpu(Isa::Portable, Precision::Bf16, 1);
    assert_eq!(backend.precision(), Precision::F32);
    let notice = backend.notice().expect("a fallback is said");
    assert!(
        notice.contains("f32") && notice.contains("portable"),
        "{notice}"
    );
    assert_eq!(cpu(Isa::Portable, Precision::F32, 1).notice(), None);
    let here = Isa::available();
    for &isa in &here {
        let backend = cpu(isa, Precision::Bf16, 1);
        let notice = backend.notice().unwrap_or_default();
        let said = |what| notice.contains(what);
        assert_eq!(
            said("f32"),
            backend.precision() == Precision::F32,
            "{notice}"
        );
        assert_eq!(said("f16, "), isa.has_f16(), "{notice}");
        assert_eq!(backend.loss_scale(1e-3) > 1.0, isa.has_f16());
    }
    for isa in Isa::available() {
        assert_eq!(Isa::from_name(isa.name()), Some(isa));
    }
}
