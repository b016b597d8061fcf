//! The published values of the released checkpoints, fetched from the hub (0.9 GB):
//!
//! `ELECTRA_HUB_TESTS=1 cargo test --release -p electra --test released_checkpoints`

mod run;

use run::electra_with_input;
use serde_json::Value;

fn wanted() -> bool {
    let wanted = std::env::var("ELECTRA_HUB_TESTS").as_deref() == Ok("1");
    if !wanted {
        eprintln!(
            "skipped: set ELECTRA_HUB_TESTS=1 to fetch the released checkpoints and test them"
        );
    }
    wanted
}

fn predict(model: &str, task: &str, texts: &str) -> Vec<Value> {
    let arguments = ["predict", "--model", model, "--as", task, "--json"];
    electra_with_input(&arguments, texts.as_bytes()).json_lines()
}

fn scores(line: &Value) -> Vec<(String, f64)> {
    let tokens = line["tokens"].as_array().unwrap();
    let score = |t: &Value| {
        (
            t["token"].as_str().unwrap().to_owned(),
            t["score"].as_f64().unwrap(),
        )
    };
    tokens.iter().map(score).collect()
}

#[test]
fn the_base_discriminator_gives_the_published_probabilities() {
    if !wanted() {
        return;
    }
    let text = "One Two Three Ten Five Six Seven Eight";
    let lines = predict("google/electra-base-discriminator", "detect", text);
    // rust-bert, tests/electra.rs; its first and last value are [CLS]'s and [SEP]'s.
    let published = [
        0.0030, 0.0010, 0.0018, 0.9489, 0.0067, 0.0026, 0.0017, 0.0311,
    ];
    let found = scores(&lines[0]);
    assert_eq!(found.len(), published.len());
    for ((token, score), published) in found.iter().zip(published) {
        assert!(
            (score - published).abs() < 1e-4,
            "{token}: {score}, published {published}"
        );
    }
}

#[test]
fn the_base_generator_fills_as_published() {
    if !wanted() {
        return;
    }
    let texts = "Looks like one [MASK] is missing\nIt was a very nice and [MASK] day\n";
    let lines = predict("google/electra-base-generator", "fill", texts);
    for (line, token) in lines.iter().zip(["thing", "sunny"]) {
        assert_eq!(line["masks"][0][0]["token"], token, "{line}");
    }
}

#[test]
fn the_small_generator_knows_the_capital_of_its_documentation() {
    if !wanted() {
        return;
    }
    let text = "The capital of France is [MASK].";
    let lines = predict("google/electra-small-generator", "fill", text);
    let first = &lines[0]["masks"][0][0];
    assert_eq!(first["token"], "paris", "{first}");
    // The documentation of transformers' ElectraForMaskedLM gives the loss with two digits.
    let loss = -first["score"].as_f64().unwrap().ln();
    assert!((loss - 1.22).abs() < 0.0051, "{loss}");
}

#[test]
fn the_small_discriminator_flags_the_word_of_its_model_card() {
    if !wanted() {
        return;
    }
    let text = "The quick brown fox fake over the lazy dog";
    let lines = predict("google/electra-small-discriminator", "detect", text);
    let flagged: Vec<String> = scores(&lines[0])
        .into_iter()
        .filter(|(_, score)| *score > 0.5)
        .map(|(token, _)| token)
        .collect();
    assert_eq!(flagged, ["fake"]);
}

#[test]
fn bf16_and_int8_say_of_the_released_models_what_f32_says() {
    if !wanted() {
        return;
    }
    let text = "The chef cooked the meal\nOne Two Three Ten Five Six Seven Eight\n\
                The quick brown fox fake over the lazy dog\n";
    for model in ["small", "base"].map(|size| format!("google/electra-{size}-discriminator")) {
        let said = |precision: &str| -> Vec<f64> {
            let arguments = ["predict", "--model", &model, "--as", "detect", "--json"];
            let given = [&arguments[..], &["--precision", precision]].concat();
            let lines = electra_with_input(&given, text.as_bytes()).json_lines();
            lines.iter().flat_map(scores).map(|(_, p)| p).collect()
        };
        let exact = said("f32");
        for (precision, bound) in [("bf16", 0.05), ("int8", 0.1)] {
            let apart = exact
                .iter()
                .zip(said(precision))
                .map(|(a, b)| (a - b).abs());
            let (largest, sum) = apart.fold((0.0f64, 0.0), |(l, s), d| (l.max(d), s + d));
            let mean = sum / exact.len() as f64;
            eprintln!(
                "{model} in {precision}: probabilities {largest:.4} apart at most, {mean:.5} in the mean"
            );
            assert!(largest < bound, "{model} in {precision}: {largest}");
        }
    }
}
