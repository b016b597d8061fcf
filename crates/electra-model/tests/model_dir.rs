//! Model directories: what they hold is recognised, the wrong kind refused, loading exact.

use std::collections::BTreeMap;
use std::path::Path;

use electra_model::config::ElectraConfig;
use electra_model::files::{ModelDir, ModelKind, NamedTensor, Wanted, write_model_dir};

const WORDS: &str = "electra.embeddings.word_embeddings.weight";

fn config() -> ElectraConfig {
    ElectraConfig {
        vocab_size: 3,
        embedding_size: 2,
        ..Default::default()
    }
}

/// Tensors of three rows of two, element i of each being i.
fn write(dir: &Path, names: &[&str]) {
    let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
    let tensors = names.iter().map(|name| NamedTensor {
        name,
        shape: &[3, 2],
        values: &values,
    });
    write_model_dir(dir, ModelKind::Discriminator, &config(), tensors).unwrap();
}

fn want(name: &str) -> Wanted<'_> {
    Wanted {
        name,
        shape: &[3, 2],
        optional: false,
    }
}

#[test]
fn the_kind_is_found_from_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    for (name, kind) in [
        (
            "discriminator_predictions.dense.weight",
            ModelKind::Discriminator,
        ),
        ("generator_lm_head.bias", ModelKind::Generator),
        (
            "classifier.out_proj.weight",
            ModelKind::SequenceClassification,
        ),
        ("classifier.weight", ModelKind::TokenClassification),
        ("qa_outputs.weight", ModelKind::QuestionAnswering),
        ("sequence_summary.summary.weight", ModelKind::MultipleChoice),
        ("electra.embeddings_project.bias", ModelKind::Encoder),
    ] {
        write(dir.path(), &[WORDS, name]);
        assert_eq!(ModelDir::open(dir.path()).unwrap().kind(), kind, "{name}");
    }
    write(
        dir.path(),
        &[
            WORDS,
            "classifier.weight",
            "sequence_summary.summary.weight",
        ],
    );
    assert_eq!(
        ModelDir::open(dir.path()).unwrap().kind(),
        ModelKind::MultipleChoice
    );
}

#[test]
fn a_discriminator_is_refused_as_a_generator_and_the_reverse() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[WORDS, "discriminator_predictions.dense.weight"],
    );
    let model = ModelDir::open(dir.path()).unwrap();
    model.require(ModelKind::Discriminator).unwrap();
    model.require(ModelKind::Encoder).unwrap();
    let message = model.require(ModelKind::Generator).unwrap_err().to_string();
    assert!(
        message.contains("holds a discriminator (ElectraForPreTraining), not a generator"),
        "{message}"
    );
    assert!(message.contains("-generator"), "{message}");
    let message = model
        .require(ModelKind::QuestionAnswering)
        .unwrap_err()
        .to_string();
    assert!(message.contains("fine-tune it"), "{message}");

    write(dir.path(), &[WORDS, "generator_predictions.dense.weight"]);
    let message = ModelDir::open(dir.path())
        .unwrap()
        .require(ModelKind::Discriminator)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("holds a generator (ElectraForMaskedLM), not a discriminator"),
        "{message}"
    );
    assert!(message.contains("-discriminator"), "{message}");
}

#[test]
fn old_names_and_stray_buffers_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.gamma",
        "embeddings.LayerNorm.beta",
        "embeddings.position_ids",
        "encoder.layer.0.output.dense.bias",
    ];
    write(dir.path(), &names);
    let model = ModelDir::open(dir.path()).unwrap();
    let present = [
        "electra.embeddings.LayerNorm.bias",
        "electra.embeddings.LayerNorm.weight",
        WORDS,
        "electra.encoder.layer.0.output.dense.bias",
    ];
    assert_eq!(model.names().collect::<Vec<_>>(), present);
    let mut got = BTreeMap::new();
    let wanted = [want("electra.embeddings.LayerNorm.weight"), want(WORDS)];
    let report = model
        .load(&wanted, |i, values| drop(got.insert(i, values.to_vec())))
        .unwrap();
    assert_eq!(got[&0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(got.len(), 2);
    assert_eq!(report.unexpected, [present[0], present[3]]);
}

#[test]
fn missing_tensors_are_listed_and_optional_ones_reported() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[WORDS]);
    let model = ModelDir::open(dir.path()).unwrap();
    let tied = Wanted {
        optional: true,
        ..want("generator_lm_head.weight")
    };
    let report = model.load(&[want(WORDS), tied], |_, _| {}).unwrap();
    assert_eq!(report.missing, ["generator_lm_head.weight"]);
    let wanted = [
        want(WORDS),
        want("electra.embeddings_project.weight"),
        want("electra.embeddings_project.bias"),
    ];
    let message = model
        .load(&wanted, |_, _| panic!("nothing is read"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("lacks 2 tensors: electra.embeddings_project.weight, "),
        "{message}"
    );
}

#[test]
fn a_mis_shaped_tensor_is_refused_with_both_shapes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[WORDS]);
    let wide = Wanted {
        shape: &[3, 4],
        ..want(WORDS)
    };
    let message = ModelDir::open(dir.path())
        .unwrap()
        .load(&[wide], |_, _| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("has shape [3, 2] but config.json makes it [3, 4]"),
        "{message}"
    );
}

#[test]
fn a_nan_in_a_wanted_tensor_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = NamedTensor {
        name: WORDS,
        shape: &[1, 2],
        values: &[0.0, f32::NEG_INFINITY],
    };
    write_model_dir(dir.path(), ModelKind::Discriminator, &config(), [tensor]).unwrap();
    let model = ModelDir::open(dir.path()).unwrap();
    let want = Wanted {
        shape: &[1, 2],
        ..want(WORDS)
    };
    let message = model.load(&[want], |_, _| {}).unwrap_err().to_string();
    assert!(
        message.contains(WORDS) && message.contains("holds -inf at element 1"),
        "{message}"
    );
    assert_eq!(model.not_finite().len(), 1);
}

#[test]
fn folders_that_hold_no_model_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let complaint = |path: &Path| ModelDir::open(path).unwrap_err().to_string();
    assert!(complaint(&dir.path().join("absent")).contains("does not exist"));
    assert!(complaint(dir.path()).contains("it has no config.json"));
    write(&dir.path().join("discriminator"), &[WORDS]);
    assert!(complaint(dir.path()).contains("it is a pre-training run; its models are in"));
    config().write(dir.path().join("config.json")).unwrap();
    assert!(complaint(dir.path()).contains("it has no weights; looked for model.safetensors"));
    std::fs::write(dir.path().join("tf_model.h5"), "x").unwrap();
    assert!(complaint(dir.path()).contains("only tf_model.h5"));
    write(dir.path(), &["bert.embeddings.word_embeddings.weight"]);
    assert!(complaint(dir.path()).contains("no ELECTRA encoder"));
}
