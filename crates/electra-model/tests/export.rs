//! Models written anew in other precisions: what is read back, what is computed, what is refused.

use std::path::{Path, PathBuf};

use electra_engine::batch::PackedBatch;
use electra_engine::cpu::{Cpu, CpuOptions, Isa, Precision};
use electra_model::config::ElectraConfig;
use electra_model::files::{
    FileError, ModelDir, ModelKind, NamedTensor, Quantization, StoredAs, Wanted, export,
    write_model_dir,
};
use electra_model::inference::Detector;
use serde_json::json;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

fn open(path: &Path) -> ModelDir {
    ModelDir::open(path).unwrap_or_else(|e| panic!("{e}"))
}

fn int8(kept: &[&str]) -> StoredAs {
    StoredAs::Int8(Quantization::but(kept.iter().map(|m| m.to_string())))
}

/// Every tensor's name, shape and values.
fn everything(model: &ModelDir) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut all: Vec<_> = model
        .names()
        .map(|name| {
            (
                name.to_string(),
                model.shape(name).unwrap().to_vec(),
                vec![],
            )
        })
        .collect();
    let named = all.clone();
    let wanted: Vec<Wanted> = named
        .iter()
        .map(|(name, shape, _)| Wanted {
            name,
            shape,
            optional: false,
        })
        .collect();
    let report = model.load(&wanted, |i, values| all[i].2 = values.to_vec());
    assert_eq!(report.unwrap(), Default::default());
    all
}

const LAYER: &str = "electra.encoder.layer.0.";

#[test]
fn int8_weights_are_within_half_a_step_and_come_back_as_the_very_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "tiny-discriminator",
        "tiny-generator",
        "tiny-discriminator-legacy",
    ] {
        let (first, second) = (
            dir.path().join(name),
            dir.path().join(name.to_owned() + "2"),
        );
        let kept = format!("{LAYER}intermediate.dense");
        let stored = int8(&[&kept]);
        let from = open(&golden(name));
        export(&from, &stored, &first).unwrap();
        let model = open(&first);
        assert_eq!(model.kind(), from.kind());
        assert_eq!(
            model.quantization().unwrap().modules_to_not_convert,
            std::slice::from_ref(&kept)
        );
        let before = everything(&from);
        let after = everything(&model);
        assert_eq!(
            after.len(),
            before.len()
                - usize::from(
                    name == "tiny-generator"
                        && before.iter().any(|t| t.0 == "generator_lm_head.weight")
                )
        );
        for (name, shape, values) in &after {
            let (_, old_shape, old) = before.iter().find(|t| t.0 == *name).unwrap();
            assert_eq!(shape, old_shape);
            let in_bytes = name.starts_with("electra.encoder.layer.")
                && name.ends_with(".weight")
                && !name.contains("LayerNorm")
                && *name != format!("{kept}.weight");
            let cols = shape.last().copied().unwrap();
            for (row, old) in values.chunks(cols).zip(old.chunks(cols)) {
                let greatest = old.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let exact = name.contains("LayerNorm") || name.ends_with("bias");
                for (x, y) in row.iter().zip(old) {
                    let bound = match (in_bytes, exact) {
                        (true, _) => greatest / 127.0 * 0.501,
                        (false, true) => 0.0,
                        (false, false) => y.abs() / 256.0,
                    };
                    assert!((x - y).abs() <= bound, "{name}: {x} for {y}");
                }
            }
        }
        // Made bytes again, the weights are the same file.
        export(&model, &stored, &second).unwrap();
        let file = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
        assert!(file(&first) == file(&second), "{name}");
        assert!(
            file(&first).len()
                < std::fs::metadata(golden("tiny-discriminator/model.safetensors"))
                    .unwrap()
                    .len() as usize
        );
    }
}

#[test]
fn bf16_and_f32_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let from = open(&golden("tiny-discriminator"));
    let [bf16, f32, again] = ["bf16", "f32", "again"].map(|n| dir.path().join(n));
    export(&from, &StoredAs::F32, &f32).unwrap();
    assert_eq!(everything(&open(&f32)), everything(&from));
    export(&from, &StoredAs::Bf16, &bf16).unwrap();
    assert_eq!(open(&bf16).dtypes(), ["bf16"]);
    assert_eq!(open(&bf16).config().dtype.as_deref(), Some("bfloat16"));
    // What bf16 holds, f32 holds too, and int8 is left behind without a trace.
    export(&open(&bf16), &StoredAs::F32, &again).unwrap();
    assert_eq!(everything(&open(&again)), everything(&open(&bf16)));
    let [bytes, back] = ["bytes", "back"].map(|n| dir.path().join(n));
    export(&from, &int8(&[]), &bytes).unwrap();
    export(&open(&bytes), &StoredAs::F32, &back).unwrap();
    let config = open(&back).config().clone();
    assert_eq!(
        (config.dtype.as_deref(), config.other),
        (Some("float32"), from.config().other.clone())
    );
    assert_eq!(everything(&open(&back)), everything(&open(&bytes)));
}

/// Logits of the golden texts.
fn logits(dir: &Path, isa: Isa, precision: Precision, threads: usize) -> Vec<u32> {
    let options = CpuOptions {
        threads: Some(threads),
        precision,
        isa: Some(isa),
    };
    let mut backend = Cpu::new(options).unwrap();
    let detector = Detector::load(&mut backend, &open(dir)).unwrap();
    let mut batch = PackedBatch::new();
    for len in [3, 17, 1, 30] {
        let ids: Vec<u32> = (0..len).map(|i| 5 + i * 7 % 90).collect();
        batch.push(&ids, &vec![0; ids.len()]);
    }
    let logits = detector.logits(&mut backend, &mut Default::default(), &batch);
    logits.unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn layers_that_are_kept_exact_are_computed_as_without_int8() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("tiny-discriminator");
    let modules = [
        "attention.self.query",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ];
    let layers = open(&from).config().num_hidden_layers;
    let named = |m: &&str| -> Vec<String> {
        (0..layers)
            .map(|i| format!("electra.encoder.layer.{i}.{m}"))
            .collect()
    };
    // Query, key and value are one product: one of them kept keeps all.
    let mark = |name: &str, kept: Vec<String>| {
        let to = dir.path().join(name);
        run_copy(&from, &to, &kept);
        to
    };
    let all = mark("all", modules.iter().flat_map(named).collect());
    let none = mark("none", vec![]);
    let each: Vec<PathBuf> = modules.iter().map(|m| mark(m, named(m))).collect();
    for isa in Isa::available() {
        let best = if isa.has_halves() {
            Precision::Bf16
        } else {
            Precision::F32
        };
        let exact = logits(&from, isa, best, 2);
        assert_eq!(logits(&all, isa, Precision::Int8, 2), exact, "{isa:?}");
        let bytes = logits(&none, isa, Precision::Int8, 2);
        assert_ne!(bytes, exact, "{isa:?}");
        for dir in &each {
            let found = logits(dir, isa, Precision::Int8, 1);
            assert_ne!(found, bytes, "{isa:?} {}", dir.display());
            assert_ne!(found, exact, "{isa:?} {}", dir.display());
            for threads in [2, 3] {
                assert_eq!(logits(dir, isa, Precision::Int8, threads), found, "{isa:?}");
            }
        }
    }
}

/// The same weights in f32, with a `config.json` that says what is not to be computed in bytes.
fn run_copy(from: &Path, to: &Path, kept: &[String]) {
    std::fs::create_dir(to).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let quantization = json!({ "format": "electra_int8", "modules_to_not_convert": kept });
    set_config(to, "quantization_config", quantization);
}

fn set_config(dir: &Path, key: &str, value: serde_json::Value) {
    let path = dir.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
}

/// The tensors of a safetensors file: its header, and the bytes.
fn parts(path: &Path) -> (serde_json::Map<String, serde_json::Value>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    (json, bytes[8 + header..].to_vec())
}

fn join(path: &Path, header: &serde_json::Map<String, serde_json::Value>, data: &[u8]) {
    let text = serde_json::to_vec(header).unwrap();
    let bytes = [&(text.len() as u64).to_le_bytes()[..], &text, data].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn scales_that_are_missing_misshaped_or_not_finite_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("int8");
    export(&open(&golden("tiny-discriminator")), &int8(&[]), &to).unwrap();
    let file = to.join("model.safetensors");
    let (header, data) = parts(&file);
    let weight = format!("{LAYER}output.dense.weight");
    let scales = format!("{weight}_scale");
    let message = || ModelDir::open(&to).unwrap_err().to_string();

    let mut other = header.clone();
    let entry = other.remove(&scales).unwrap();
    other.insert("electra.other".into(), entry.clone());
    join(&file, &other, &data);
    let text = message();
    assert!(
        text.contains(&weight) && text.contains("are missing"),
        "{text}"
    );

    let mut other = header.clone();
    let rows = entry["shape"][0].as_u64().unwrap();
    other[&scales]["shape"] = json!([rows / 2, 2]);
    join(&file, &other, &data);
    let text = message();
    assert!(
        text.contains(&scales) && text.contains(&format!("instead of [{rows}]")),
        "{text}"
    );

    let mut damaged = data.clone();
    let at = entry["data_offsets"][0].as_u64().unwrap() as usize + 4;
    damaged[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    join(&file, &header, &damaged);
    let text = message();
    assert!(
        text.contains(&scales) && text.contains("holds inf at element 1"),
        "{text}"
    );
    join(&file, &header, &data);
    open(&to);

    set_config(&to, "quantization_config", json!(null));
    let text = message();
    assert!(
        text.contains("holds bytes") && text.contains("quantization_config"),
        "{text}"
    );
    set_config(
        &to,
        "quantization_config",
        json!({ "quant_method": "bitsandbytes" }),
    );
    let text = message();
    assert!(text.contains("quantized by \"bitsandbytes\""), "{text}");
    set_config(
        &to,
        "quantization_config",
        json!({ "format": "electra_int3" }),
    );
    assert!(message().contains("electra_int3"), "{}", message());
}

#[test]
fn a_directory_that_holds_something_is_left_alone_and_nothing_is_left_of_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let from = open(&golden("tiny-discriminator"));
    export(&from, &StoredAs::Bf16, &out).unwrap();
    let before = std::fs::read(out.join("model.safetensors")).unwrap();
    let text = export(&from, &StoredAs::F32, &out).unwrap_err().to_string();
    assert!(text.contains("holds something already"), "{text}");
    assert_eq!(
        std::fs::read(out.join("model.safetensors")).unwrap(),
        before
    );
    assert!(
        ["tokenizer.json", "vocab.txt"]
            .iter()
            .all(|f| out.join(f).exists())
    );

    for (bad, says) in [
        (f32::NAN, "holds NaN at element 1"),
        (f32::MAX, "more than bf16 can"),
    ] {
        let source = dir.path().join("source");
        let tensor = NamedTensor {
            name: "electra.embeddings.word_embeddings.weight",
            shape: &[1, 2],
            values: &[0.0, bad],
        };
        let config = ElectraConfig::default();
        write_model_dir(&source, ModelKind::Discriminator, &config, [tensor]).unwrap();
        let to = dir.path().join("never");
        let text = export(&open(&source), &StoredAs::Bf16, &to)
            .unwrap_err()
            .to_string();
        assert!(text.contains(says), "{text}");
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

#[test]
fn large_tensors_are_read_by_several_threads_and_the_first_bad_value_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, cols) = (3000, 300);
    let shape = [rows, cols];
    let mut values: Vec<f32> = (0..rows * cols).map(|i| i as f32 * 0.5 - 7.0).collect();
    let name = "electra.encoder.layer.0.output.dense.weight";
    let write = |values: &[f32]| {
        let tensors = ["electra.embeddings.word_embeddings.weight", name].map(|name| NamedTensor {
            name,
            shape: &shape,
            values,
        });
        let config = ElectraConfig::default();
        write_model_dir(dir.path(), ModelKind::Discriminator, &config, tensors).unwrap();
    };
    write(&values);
    let want = |name| Wanted {
        name,
        shape: &shape,
        optional: false,
    };
    let size = rows * cols;
    let wanted = [
        (want(name), size + 16..2 * size + 16),
        (want("electra.embeddings.word_embeddings.weight"), 0..size),
    ];
    let mut read = vec![-1.0; 2 * size + 20];
    open(dir.path()).load_into(&wanted, &mut read).unwrap();
    assert!(read[..size] == values && read[size + 16..2 * size + 16] == values);
    assert!(
        read[size..size + 16]
            .iter()
            .chain(&read[2 * size + 16..])
            .all(|x| *x == -1.0)
    );

    let bytes = dir.path().join("int8");
    export(&open(dir.path()), &int8(&[]), &bytes).unwrap();
    let mut again = read.clone();
    open(&bytes).load_into(&wanted, &mut again).unwrap();
    for (row, old) in again[size + 16..].chunks(cols).zip(values.chunks(cols)) {
        let greatest = old.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        for (x, y) in row.iter().zip(old) {
            assert!((x - y).abs() <= greatest / 127.0 * 0.501, "{x} for {y}");
        }
    }

    values[size - 1] = f32::NAN;
    values[size - 300_000] = f32::NEG_INFINITY;
    write(&values);
    let error = open(dir.path()).load_into(&wanted, &mut read).unwrap_err();
    let FileError::NotFinite {
        tensor,
        index,
        value,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (tensor.as_str(), index, value),
        (
            "electra.embeddings.word_embeddings.weight",
            size - 300_000,
            f32::NEG_INFINITY
        )
    );
}
