//! What `describe` says of model directories, whole and broken.

use std::path::Path;

use electra_model::config::ElectraConfig;
use electra_model::files::info::describe;
use electra_model::files::{ModelKind, NamedTensor, write_model_dir};

fn config() -> ElectraConfig {
    ElectraConfig {
        vocab_size: 6,
        embedding_size: 4,
        hidden_size: 8,
        num_attention_heads: 2,
        intermediate_size: 16,
        num_hidden_layers: 1,
        max_position_embeddings: 10,
        ..Default::default()
    }
}

/// The tensors that give the sizes away, filled with `value`.
fn write(dir: &Path, value: f32) {
    let tensors: [(&str, &[usize]); 7] = [
        ("electra.embeddings.word_embeddings.weight", &[6, 4]),
        ("electra.embeddings.position_embeddings.weight", &[10, 4]),
        ("electra.embeddings.token_type_embeddings.weight", &[2, 4]),
        (
            "electra.encoder.layer.0.attention.self.query.weight",
            &[8, 8],
        ),
        (
            "electra.encoder.layer.0.intermediate.dense.weight",
            &[16, 8],
        ),
        ("electra.encoder.layer.0.output.dense.weight", &[8, 16]),
        ("discriminator_predictions.dense.weight", &[8, 8]),
    ];
    let values = [value; 128];
    let tensors = tensors.iter().map(|(name, shape)| NamedTensor {
        name,
        shape,
        values: &values[..shape.iter().product()],
    });
    write_model_dir(dir, ModelKind::Discriminator, &config(), tensors).unwrap();
    std::fs::write(
        dir.join("vocab.txt"),
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n",
    )
    .unwrap();
    std::fs::write(
        dir.join("tokenizer_config.json"),
        r#"{"do_lower_case": true, "model_max_length": 10}"#,
    )
    .unwrap();
}

#[test]
fn a_sound_model_is_described_without_problems() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0.0);
    let info = describe(dir.path()).unwrap();
    assert_eq!(info.problems, [""; 0]);
    assert_eq!(info.kind, ModelKind::Discriminator);
    assert_eq!(info.parameters, 24 + 40 + 8 + 64 + 128 + 128 + 64);
    let tokenizer = info.tokenizer.as_ref().unwrap();
    assert_eq!(
        (tokenizer.tokens, tokenizer.lowercase, tokenizer.max_length),
        (6, Some(true), Some(10))
    );
    let text = info.to_string();
    assert!(
        text.contains("a discriminator (ElectraForPreTraining)") && text.contains("none found"),
        "{text}"
    );
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["kind"], "discriminator");
    assert_eq!(json["flops_length"], 10);
}

#[test]
fn problems_are_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let problems_with = |name: &str, text: &str| {
        write(dir.path(), 0.0);
        std::fs::write(dir.path().join(name), text).unwrap();
        describe(dir.path()).unwrap().problems.join("\n")
    };
    let config = config().to_json().unwrap();
    let found = problems_with(
        "config.json",
        &config.replace("\"vocab_size\": 6", "\"vocab_size\": 5"),
    );
    assert!(
        found.contains("vocab.txt has 6 tokens, but the word table only 5 rows"),
        "{found}"
    );
    assert!(
        found.contains("word_embeddings.weight has shape [6, 4], by config.json it has [5, 4]"),
        "{found}"
    );
    let other = config.replace("{\n", "{\n  \"architectures\": [\"ElectraForMaskedLM\"],\n");
    let found = problems_with("config.json", &other);
    assert!(
        found.contains(
            "config.json names ElectraForMaskedLM, but the weights are a discriminator's"
        ),
        "{found}"
    );
    let found = problems_with("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n");
    assert!(found.contains("vocab.txt lacks [MASK]"), "{found}");
    assert!(
        found.contains("has \"a\" twice, the second on line 6"),
        "{found}"
    );
    let found = problems_with("tokenizer.json", "{}");
    assert!(
        found.contains("tokenizer.json is not what a tokenizer writes"),
        "{found}"
    );
    let vocab = r#"{"model": {"vocab": {"[PAD]": 0}}, "normalizer": {"lowercase": false}}"#;
    let found = problems_with("tokenizer.json", vocab);
    assert!(
        found.contains("vocab.txt has 6 tokens and tokenizer.json 1"),
        "{found}"
    );
    assert!(
        found.contains("do_lower_case = true and tokenizer.json lowercase = false"),
        "{found}"
    );
}

#[test]
fn nan_weights_and_a_missing_tokenizer_are_found() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), f32::NAN);
    std::fs::remove_file(dir.path().join("vocab.txt")).unwrap();
    let info = describe(dir.path()).unwrap();
    assert_eq!(info.problems.len(), 8, "{info}");
    assert!(
        info.to_string()
            .contains("query.weight holds NaN at element 0")
    );
    assert!(
        info.to_string()
            .contains("neither tokenizer.json nor vocab.txt")
    );
}
