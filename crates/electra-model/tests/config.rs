//! `config.json`: transformers' keys and defaults, and what is refused.

use electra_model::config::ElectraConfig;
use serde_json::{Map, Value};

fn complaint(text: &str) -> String {
    match ElectraConfig::from_json(text, "config.json") {
        Ok(_) => panic!("accepted {text}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn an_empty_object_is_electra_small() {
    let config = ElectraConfig::from_json("{}", "x").unwrap();
    assert_eq!((config.hidden_size, config.embedding_size), (256, 128));
    assert_eq!((config.head_size(), config.num_labels()), (64, 2));
    assert!(config.has_projection());
}

#[test]
fn keys_of_others_are_kept_and_old_names_understood() {
    let text = r#"{"torch_dtype": "float16", "position_embedding_type": "absolute",
        "gradient_checkpointing": false, "num_labels": 12, "task_specific_params": {"a": 1}}"#;
    let config = ElectraConfig::from_json(text, "x").unwrap();
    assert_eq!(config.dtype.as_deref(), Some("float16"));
    assert_eq!(config.num_labels(), 12);
    let written = config.to_json().unwrap();
    assert!(written.contains("\"task_specific_params\": {\n    \"a\": 1"));
    assert!(written.find("\"2\": \"LABEL_2\"") < written.find("\"10\": \"LABEL_10\""));
    assert!(written.contains("\"layer_norm_eps\": 1e-12"));
    assert_eq!(ElectraConfig::from_json(&written, "x").unwrap(), config);
}

#[test]
fn a_default_config_is_written_as_transformers_writes_it() {
    let config = ElectraConfig {
        architectures: Some(vec!["ElectraForPreTraining".into()]),
        ..Default::default()
    };
    let keys: Map<String, Value> = serde_json::from_str(&config.to_json().unwrap()).unwrap();
    let got: Vec<&str> = keys.keys().map(String::as_str).collect();
    let want = "add_cross_attention architectures attention_probs_dropout_prob bos_token_id \
        classifier_dropout dtype embedding_size eos_token_id hidden_act hidden_dropout_prob \
        hidden_size initializer_range intermediate_size is_decoder layer_norm_eps \
        max_position_embeddings model_type num_attention_heads num_hidden_layers pad_token_id \
        summary_activation summary_last_dropout summary_type summary_use_proj \
        tie_word_embeddings type_vocab_size use_cache vocab_size";
    assert_eq!(got, want.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn a_wrong_type_names_its_key() {
    let message = complaint(r#"{"hidden_size": "wide"}"#);
    assert_eq!(
        message,
        "config.json: \"hidden_size\" is \"wide\": invalid type: string \"wide\", expected usize"
    );
    assert!(complaint(r#"{"num_hidden_layers": -1}"#).contains("\"num_hidden_layers\" is -1"));
    assert!(complaint(r#"{"num_labels": "two"}"#).contains("\"num_labels\" is \"two\""));
}

#[test]
fn unknown_activations_and_models_name_what_is_supported() {
    assert_eq!(
        complaint(r#"{"hidden_act": "relu"}"#),
        "config.json: \"hidden_act\" is \"relu\"; supported are \"gelu\" and \"gelu_new\""
    );
    assert!(complaint(r#"{"model_type": "bert"}"#).contains("only \"electra\""));
    assert!(complaint(r#"{"position_embedding_type": "relative_key"}"#).contains("absolute"));
    assert!(complaint(r#"{"is_decoder": true}"#).contains("only encoders"));
}

#[test]
fn impossible_sizes_are_refused() {
    assert!(complaint(r#"{"hidden_size": 250}"#).contains("not divisible by"));
    assert!(complaint(r#"{"vocab_size": 0}"#).contains("\"vocab_size\" is 0"));
    assert!(complaint(r#"{"vocab_size": 99999999999}"#).contains("the most is"));
    assert!(complaint(r#"{"hidden_dropout_prob": 1.0}"#).contains("below 1"));
    assert!(complaint(r#"{"id2label": {"0": "a", "2": "b"}}"#).contains("no label 1"));
}

#[test]
fn text_that_is_no_json_is_refused_with_its_place() {
    assert!(complaint("{").starts_with("config.json is not a JSON object: EOF"));
    assert!(complaint("[1]").starts_with("config.json is not a JSON object"));
}
