//! Loaded models give what transformers gave for the same weights, in every form of file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use electra_engine::backend::Backend as _;
use electra_engine::batch::PackedBatch;
use electra_engine::reference::Reference;
use electra_model::files::{FileError, ModelDir, Wanted};
use electra_model::inference::{BatchError, Detector, EncoderModel, Filler, sigmoid};

type Backend = Reference<f32>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

/// The packed texts of a golden directory, and the logits that transformers gave.
struct Expected {
    texts: Vec<(Vec<u32>, Vec<u32>)>,
    logits: Vec<f32>,
}

impl Expected {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(golden(name).join("expected.safetensors")).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let entries: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let words = |tensor: &str| -> Vec<u32> {
            let range = &entries[tensor]["data_offsets"];
            let at = |i: usize| 8 + header + range[i].as_u64().unwrap() as usize;
            bytes[at(0)..at(1)]
                .chunks_exact(4)
                .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        let (ids, types, cu) = (words("token_ids"), words("type_ids"), words("cu_seqlens"));
        Expected {
            texts: cu
                .windows(2)
                .map(|w| w[0] as usize..w[1] as usize)
                .map(|r| (ids[r.clone()].to_vec(), types[r].to_vec()))
                .collect(),
            logits: words("logits").into_iter().map(f32::from_bits).collect(),
        }
    }

    fn batch(&self) -> PackedBatch {
        let mut batch = PackedBatch::new();
        for (ids, types) in &self.texts {
            batch.push(ids, types);
        }
        batch
    }
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-4, "{what} {i}: {a}, expected {b}");
    }
}

#[test]
fn a_detector_gives_the_logits_of_transformers_from_every_form_of_file() {
    let expected = Expected::read("tiny-discriminator");
    for form in ["", "-zip", "-legacy", "-sharded"] {
        let dir = ModelDir::open(golden(&format!("tiny-discriminator{form}"))).unwrap();
        let mut backend = Backend::new();
        let detector = Detector::load(&mut backend, &dir).unwrap();
        let mut workspace = Default::default();
        let logits = detector
            .logits(&mut backend, &mut workspace, &expected.batch())
            .unwrap();
        assert_close(&logits, &expected.logits, form);
        let scores = detector
            .detect(&mut backend, &mut workspace, &expected.batch())
            .unwrap();
        let wanted: Vec<f32> = expected.logits.iter().map(|&x| sigmoid(x)).collect();
        assert_close(&scores, &wanted, form);
    }
}

#[test]
fn a_filler_gives_the_logits_of_transformers_from_every_form_of_file() {
    let expected = Expected::read("tiny-generator");
    let batch = expected.batch();
    let rows: Vec<u32> = (0..batch.tokens() as u32).collect();
    assert!(rows.len() > 32, "more than one run of the head");
    for form in ["", "-zip", "-legacy"] {
        let dir = ModelDir::open(golden(&format!("tiny-generator{form}"))).unwrap();
        let mut backend = Backend::new();
        let filler = Filler::load(&mut backend, &dir).unwrap();
        let mut logits = Vec::new();
        filler
            .logits(
                &mut backend,
                &mut Default::default(),
                &batch,
                &rows,
                |i, row| {
                    assert_eq!(i * row.len(), logits.len());
                    logits.extend_from_slice(row);
                },
            )
            .unwrap();
        assert_close(&logits, &expected.logits, form);
    }
}

#[test]
fn batches_of_any_size_share_a_workspace_and_change_no_result() {
    let expected = Expected::read("tiny-discriminator");
    let dir = ModelDir::open(golden("tiny-discriminator")).unwrap();
    let mut backend = Backend::new();
    let detector = Detector::load(&mut backend, &dir).unwrap();
    let mut workspace = Default::default();
    let mut logits = Vec::new();
    for (ids, types) in &expected.texts {
        let mut batch = PackedBatch::new();
        batch.push(ids, types);
        logits.extend(
            detector
                .logits(&mut backend, &mut workspace, &batch)
                .unwrap(),
        );
    }
    assert_close(&logits, &expected.logits, "one by one");
    let nothing = detector.logits(&mut backend, &mut workspace, &PackedBatch::new());
    assert_eq!(nothing, Ok(Vec::new()));
}

#[test]
fn the_most_probable_tokens_are_those_of_the_largest_logits() {
    let expected = Expected::read("tiny-generator");
    let dir = ModelDir::open(golden("tiny-generator")).unwrap();
    let mut backend = Backend::new();
    let filler = Filler::load(&mut backend, &dir).unwrap();
    let size = filler.config().vocab_size;
    let filled = filler
        .fill(
            &mut backend,
            &mut Default::default(),
            &expected.batch(),
            &[5, 3],
            4,
            size,
        )
        .unwrap();
    for (found, row) in filled.iter().zip([5, 3]) {
        let logits = &expected.logits[row * size..][..size];
        let mut ids: Vec<usize> = (0..size).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let found_ids: Vec<usize> = found.iter().map(|c| c.id as usize).collect();
        assert_eq!(found_ids, ids[..4]);
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        for candidate in found {
            let wanted = logits[candidate.id as usize] - sum.ln();
            assert!((candidate.log_prob - wanted).abs() < 1e-4);
        }
    }
}

#[test]
fn the_wrong_kind_and_batches_that_do_not_fit_are_refused() {
    let mut backend = Backend::new();
    let generator = ModelDir::open(golden("tiny-generator")).unwrap();
    let discriminator = ModelDir::open(golden("tiny-discriminator")).unwrap();
    let error = Detector::load(&mut backend, &generator).unwrap_err();
    assert!(matches!(error, FileError::WrongKind { .. }), "{error}");
    let error = Filler::load(&mut backend, &discriminator).unwrap_err();
    assert!(matches!(error, FileError::WrongKind { .. }), "{error}");

    let detector = Detector::load(&mut backend, &discriminator).unwrap();
    let mut refused = |ids: &[u32], types: &[u32]| {
        let mut batch = PackedBatch::new();
        batch.push(ids, types);
        detector
            .logits(&mut backend, &mut Default::default(), &batch)
            .unwrap_err()
    };
    assert_eq!(
        refused(&[2, 101], &[0, 0]),
        BatchError::Token { id: 101, rows: 101 }
    );
    assert_eq!(refused(&[2], &[2]), BatchError::Segment { id: 2, types: 2 });
    let long = BatchError::Position {
        tokens: 41,
        positions: 40,
    };
    assert_eq!(refused(&[2; 41], &[0; 41]), long);
}

/// `y = x Wᵀ + b` of one row.
fn linear(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let rows = weight.chunks_exact(x.len()).zip(bias);
    rows.map(|(w, b)| b + x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>())
        .collect()
}

#[test]
fn an_encoder_gives_the_hidden_states_that_the_detection_head_reads() {
    let expected = Expected::read("tiny-discriminator");
    let dir = ModelDir::open(golden("tiny-discriminator")).unwrap();
    let mut backend = Backend::new();
    let model = EncoderModel::load(&mut backend, &dir).unwrap();
    let hidden = model.config().hidden_size;
    let mut states = Vec::new();
    model
        .hidden_states(
            &mut backend,
            &mut Default::default(),
            &expected.batch(),
            &mut states,
        )
        .unwrap();

    // The head of the same model, on these states, gives the logits that transformers gave.
    let shapes = [vec![hidden, hidden], vec![hidden], vec![1, hidden], vec![1]];
    let names = ["dense", "dense_prediction"].map(|layer| {
        ["weight", "bias"].map(|kind| format!("discriminator_predictions.{layer}.{kind}"))
    });
    let wanted: Vec<Wanted> = names
        .as_flattened()
        .iter()
        .zip(&shapes)
        .map(|(name, shape)| Wanted {
            name,
            shape,
            optional: false,
        })
        .collect();
    let mut head = vec![Vec::new(); 4];
    dir.load(&wanted, |i, values| head[i] = values.to_vec())
        .unwrap();
    let mut activate = Reference::<f32>::new();
    let mut gelu = |x: Vec<f32>| {
        let array = activate.array(1, x.len());
        activate.write(array, &x);
        activate.activation(model.config().hidden_act.into(), array, array);
        let mut y = vec![0.0; x.len()];
        activate.read(array, &mut y);
        y
    };
    let logits: Vec<f32> = states
        .chunks_exact(hidden)
        .map(|row| linear(&gelu(linear(row, &head[0], &head[1])), &head[2], &head[3])[0])
        .collect();
    assert_close(&logits, &expected.logits, "logit");

    let mut beyond = PackedBatch::new();
    beyond.push(&[model.config().vocab_size as u32], &[0]);
    let mut workspace = Default::default();
    let refused = model.hidden_states(&mut backend, &mut workspace, &beyond, &mut states);
    assert!(matches!(refused, Err(BatchError::Token { .. })));
}
