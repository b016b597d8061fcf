//! What bf16 and int8 cost a model that was trained on real text: it has the outliers and the
//! margins that random weights have not.

mod run;

use electra_data::tokenizer::Tokenizer;
use electra_engine::batch::PackedBatch;
use electra_engine::cpu::{Cpu, CpuOptions, Isa, Precision};
use electra_engine::rng::{Purpose, Rng};
use electra_model::files::{ModelDir, NamedTensor, Wanted, write_model_dir};
use electra_model::inference::Detector;
use electra_train::evaluation::area_under_curve;
use run::{electra, write};
use std::path::Path;

/// The text that the binary carries: a chapter a document, a verse a line.
const TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/asv.txt"));
/// Steps of training; with replacements at random these are enough to find most of them.
const STEPS: &str = "num_train_steps=150";

/// Trains a tiny discriminator on the first chapters.
fn train(dir: &Path, chapters: &[&str]) -> std::path::PathBuf {
    let text = write(dir, "text.txt", chapters.join("\n\n"));
    let [vocab, shards, out] =
        ["vocab", "shards", "run"].map(|n| dir.join(n).display().to_string());
    electra(&["vocab", "--input", &text, "--size", "4000", "--out", &vocab]).ok();
    electra(&[
        "prepare",
        "--input",
        &text,
        "--tokenizer",
        &vocab,
        "--out",
        &shards,
    ])
    .ok();
    let mut arguments = vec![
        "pretrain", "--preset", "tiny", "--data", &shards, "--out", &out,
    ];
    for setting in [
        STEPS,
        "num_warmup_steps=15",
        "uniform_generator=true",
        "eval_steps=150",
        "num_eval_steps=1",
        "save_checkpoints_steps=150",
        "model_hparam_overrides.hidden_dropout_prob=0",
        "model_hparam_overrides.attention_probs_dropout_prob=0",
    ] {
        arguments.extend(["--set", setting]);
    }
    electra(&arguments).ok();
    dir.join("run/discriminator")
}

/// Verses with 15% of their tokens replaced at random, and which.
fn corrupted(dir: &Path, chapters: &[&str], most: usize) -> (PackedBatch, Vec<u32>) {
    let tokenizer = Tokenizer::load(dir, None).expect("a tokenizer");
    let (special, rng) = (tokenizer.special(), Rng::new(3, 0));
    let (mut batch, mut labels) = (PackedBatch::new(), Vec::new());
    for (number, verse) in chapters.iter().flat_map(|c| c.lines()).enumerate() {
        let mut ids = vec![special.cls];
        labels.push(0);
        for (place, id) in tokenizer.encode(verse).into_iter().take(60).enumerate() {
            let draw = |n, k| rng.below(n, Purpose::Test, 0, number as u32, place as u32, k);
            let other = match draw(100, 0) < 15 {
                true => 5 + draw(tokenizer.vocab_size() as u64 - 5, 1) as u32,
                false => id,
            };
            labels.push(u32::from(other != id));
            ids.push(other);
        }
        ids.push(special.sep);
        labels.push(0);
        batch.push(&ids, &vec![0; ids.len()]);
        if batch.tokens() >= most {
            break;
        }
    }
    (batch, labels)
}

fn logits(dir: &Path, precision: Precision, batch: &PackedBatch) -> Vec<f32> {
    let options = CpuOptions {
        precision,
        ..CpuOptions::default()
    };
    let mut backend = Cpu::new(options).expect("a backend");
    let dir = ModelDir::open(dir).unwrap_or_else(|e| panic!("{e}"));
    let detector = Detector::load(&mut backend, &dir).unwrap_or_else(|e| panic!("{e}"));
    let logits = detector.logits(&mut backend, &mut Default::default(), batch);
    logits.expect("a batch that fits")
}

/// Area under the curve, and the share of tokens told right.
fn quality(logits: &[f32], labels: &[u32]) -> (f64, f64) {
    let right = logits
        .iter()
        .zip(labels)
        .filter(|(l, y)| (**l > 0.0) == (**y != 0));
    let accuracy = right.count() as f64 / labels.len() as f64;
    (
        area_under_curve(logits, labels).expect("both kinds"),
        accuracy,
    )
}

fn export(model: &Path, precision: &str, out: &Path) -> serde_json::Value {
    let [model, out] = [model, out].map(|p| p.display().to_string());
    let arguments = [
        "export",
        "--model",
        &model,
        "--precision",
        precision,
        "--out",
        &out,
        "--json",
    ];
    electra(&arguments).json()
}

/// The model with a channel of the values of attention 1024 times as large, and what reads it as
/// much smaller: in f32 the same function to the bit, in bytes nothing is left of all other channels.
fn with_outlier(model: &Path, out: &Path) {
    let dir = ModelDir::open(model).expect("a model");
    let names: Vec<&str> = dir.names().collect();
    let wanted: Vec<Wanted> = names
        .iter()
        .map(|name| Wanted {
            name,
            shape: dir.shape(name).expect("a shape"),
            optional: false,
        })
        .collect();
    let mut values = Vec::new();
    dir.load(&wanted, |_, read| values.push(read.to_vec()))
        .expect("values");
    let (hidden, channel, factor) = (dir.config().hidden_size, 7, 1024.0);
    for (want, values) in wanted.iter().zip(&mut values) {
        match want.name.strip_prefix("electra.encoder.layer.1.attention.") {
            Some("self.value.weight") => {
                let row = &mut values[channel * hidden..][..hidden];
                row.iter_mut().for_each(|x| *x *= factor);
            }
            Some("self.value.bias") => values[channel] *= factor,
            Some("output.dense.weight") => {
                values
                    .chunks_mut(hidden)
                    .for_each(|row| row[channel] /= factor);
            }
            _ => {}
        }
    }
    let tensors = wanted
        .iter()
        .zip(&values)
        .map(|(want, values)| NamedTensor {
            name: want.name,
            shape: want.shape,
            values,
        });
    write_model_dir(out, dir.kind(), dir.config(), tensors).expect("written");
    for name in ["tokenizer.json", "tokenizer_config.json", "vocab.txt"] {
        std::fs::copy(model.join(name), out.join(name)).expect("copied");
    }
}

#[test]
fn bf16_and_int8_hardly_change_what_a_model_trained_on_real_text_says() {
    let chapters: Vec<&str> = TEXT.split_terminator("\n\n").collect();
    let (first, last) = chapters.split_at(chapters.len() * 9 / 10);
    let dir = tempfile::tempdir().expect("a directory");
    let model = train(dir.path(), first);
    let (batch, labels) = corrupted(&model, last, 20_000);
    let [int8, bf16, outlier, saved] =
        ["int8", "bf16", "outlier", "saved"].map(|n| dir.path().join(n));
    let said = export(&model, "int8", &int8);
    assert_eq!(said["kept_exact"], serde_json::json!([]));
    export(&model, "bf16", &bf16);

    let exact = logits(&model, Precision::F32, &batch);
    let (auc, accuracy) = quality(&exact, &labels);
    let spread = (exact.iter().map(|x| f64::from(x * x)).sum::<f64>() / exact.len() as f64).sqrt();
    eprintln!("f32: AUC {auc:.4}, accuracy {accuracy:.4}, root mean square of logits {spread:.2}");
    assert!(auc > 0.85, "{auc}");
    let compared = |name: &str, dir: &Path, precision| {
        let found = logits(dir, precision, &batch);
        let apart = exact
            .iter()
            .zip(&found)
            .map(|(a, b)| f64::from((a - b).abs()));
        let (largest, sum) = apart.fold((0.0f64, 0.0), |(l, s), d| (l.max(d), s + d));
        let mean = sum / exact.len() as f64;
        let (auc_now, accuracy_now) = quality(&found, &labels);
        let (d_auc, d_accuracy) = (auc_now - auc, accuracy_now - accuracy);
        eprintln!(
            "{name}: logits deviate by {largest:.4} at the most, {mean:.5} in the mean; AUC \
             {d_auc:+.5}, accuracy {d_accuracy:+.5}"
        );
        (largest, mean, d_auc.abs(), d_accuracy.abs())
    };
    for (name, dir, precision, bounds) in [
        ("bf16", &model, Precision::Bf16, BF16),
        ("bf16, exported", &bf16, Precision::Bf16, BF16),
        (
            "bf16 exported, computed in f32",
            &bf16,
            Precision::F32,
            BF16,
        ),
        ("int8", &model, Precision::Int8, INT8),
        ("int8, exported", &int8, Precision::Int8, INT8),
        (
            "int8 exported, computed in f32",
            &int8,
            Precision::F32,
            INT8,
        ),
    ] {
        let found = compared(name, dir, precision);
        let within = found.0 <= bounds.0
            && found.1 <= bounds.1
            && found.2 <= bounds.2
            && found.3 <= bounds.3;
        // Where the CPU has neither bf16 nor f16, its products are f32's.
        let same =
            precision == Precision::Bf16 && *dir == model && !Isa::available()[0].has_halves();
        assert!(
            within && (found.1 > 0.0) != same,
            "{name}: {found:?} beyond {bounds:?}"
        );
    }

    // One outlier channel, and int8 loses a layer; export sees it and keeps that layer.
    with_outlier(&model, &outlier);
    assert!(logits(&outlier, Precision::F32, &batch) == exact);
    let said = export(&outlier, "int8", &saved);
    let kept = "electra.encoder.layer.1.attention.output.dense";
    assert_eq!(said["kept_exact"], serde_json::json!([kept]), "{said}");
    let lost = compared("int8 with an outlier", &outlier, Precision::Int8);
    let kept = compared("int8 with an outlier, exported", &saved, Precision::Int8);
    assert!(
        lost.1 > 3.0 * kept.1 && kept.1 <= INT8.1,
        "{lost:?} {kept:?}"
    );
}

/// Bounds of the largest and the mean deviation of logits, and of the changes of AUC and accuracy.
type Bounds = (f64, f64, f64, f64);
const BF16: Bounds = (0.1, 0.01, 0.001, 0.001);
const INT8: Bounds = (0.1, 0.01, 0.001, 0.001);
