//! `electra predict` on the tiny golden models: shapes, offsets, order, long texts, pipes.

mod run;

use run::{command, copy_dir, electra_with_input, golden};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::process::Stdio;

fn predict(model: &str, task: &str, more: &[&str], input: &str) -> run::Ran {
    let model = golden(model);
    let mut arguments = vec!["predict", "--model", &model, "--as", task, "--json"];
    arguments.extend(more);
    electra_with_input(&arguments, input.as_bytes())
}

fn detect(more: &[&str], input: &str) -> Vec<Value> {
    predict("tiny-discriminator", "detect", more, input).json_lines()
}

/// Scores of the one line of `detect`.
fn scores(line: &Value) -> Vec<f64> {
    let tokens = line["tokens"].as_array().unwrap();
    tokens
        .iter()
        .map(|t| t["score"].as_f64().unwrap())
        .collect()
}

/// A text of `n` tokens of the tiny vocabulary.
fn words(n: usize) -> String {
    let words = ["old", "river", "boat", "the", "bird", "sing", "7", "wind"];
    let text: Vec<&str> = (0..n)
        .map(|i| words[(i * i + i / 3) % words.len()])
        .collect();
    text.join(" ")
}

#[test]
fn detect_scores_each_token_with_offsets_in_code_points() {
    let lines = detect(&[], "Café Wind, 水!\n\nthe old boat\n");
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["text"], "Café Wind, 水!");
    assert_eq!(lines[1], json!({ "text": "", "tokens": [] }));
    let tokens = lines[0]["tokens"].as_array().unwrap();
    let spans: Vec<(&str, u64, u64)> = tokens
        .iter()
        .map(|t| {
            (
                t["token"].as_str().unwrap(),
                t["start"].as_u64().unwrap(),
                t["end"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("c", 0, 1),
        ("##a", 1, 2),
        ("##f", 2, 3),
        ("##e", 3, 4),
        ("wind", 5, 9),
        (",", 9, 10),
        ("[UNK]", 11, 12),
        ("!", 12, 13),
    ];
    assert_eq!(spans, expected);
    for score in scores(&lines[0]) {
        assert!((0.0..=1.0).contains(&score));
    }
    let keys: Vec<&String> = lines[2]["tokens"][0].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 4);
}

#[test]
fn results_come_in_the_order_of_the_input_and_do_not_depend_on_the_batch() {
    let texts: Vec<String> = (0..300).map(|i| words(1 + (i * 7) % 37)).collect();
    let input = texts.join("\n");
    let all = detect(&[], &input);
    let small = detect(&["--batch-size", "1", "--threads", "1"], &input);
    assert_eq!(all, small);
    for (line, text) in all.iter().zip(&texts) {
        assert_eq!(line["text"], text.as_str());
        assert_eq!(scores(line).len(), text.split(' ').count());
    }
    let alone = detect(&[], &texts[17]);
    assert_eq!(alone[0], all[17]);
}

#[test]
fn scores_are_those_of_transformers() {
    // The first text of the golden file: sigmoid of its logits, [CLS] and [SEP] left out.
    let bytes = std::fs::read(golden("tiny-discriminator") + "/expected.safetensors").unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let floats = |name: &str| -> Vec<u32> {
        let at =
            |i: usize| entries[name]["data_offsets"][i].as_u64().unwrap() as usize + 8 + header;
        let words = bytes[at(0)..at(1)].chunks_exact(4);
        words
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let length = floats("cu_seqlens")[1] as usize;
    let logits = &floats("logits")[1..length - 1];
    let found = scores(&detect(&[], "The old boat sleeps on the river.")[0]);
    assert_eq!(found.len(), logits.len());
    for (score, &logit) in found.iter().zip(logits) {
        let wanted = 1.0 / (1.0 + (-f64::from(f32::from_bits(logit))).exp());
        assert!((score - wanted).abs() < 1e-4, "{score}, expected {wanted}");
    }
}

#[test]
fn long_texts_are_truncated_with_one_warning_or_windowed_or_refused() {
    let input = format!("{}\n{}\n{}\n", words(38), words(39), words(100));
    let run = predict("tiny-discriminator", "detect", &[], &input);
    run.says(&["2 of 3 texts truncated to the first 38 tokens"]);
    assert_eq!(run.stderr.matches("truncated").count(), 1);
    let lines = run.json_lines();
    let lengths: Vec<usize> = lines.iter().map(|line| scores(line).len()).collect();
    assert_eq!(lengths, [38, 38, 38]);

    let run = predict(
        "tiny-discriminator",
        "detect",
        &["--long", "window"],
        &input,
    );
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    let windowed = run.json_lines();
    let lengths: Vec<usize> = windowed.iter().map(|line| scores(line).len()).collect();
    assert_eq!(lengths, [38, 39, 100]);
    assert_eq!(windowed[0], lines[0]);
    // The beginning of a windowed text is seen as in a truncated one, its end as the end alone.
    assert_eq!(scores(&windowed[2])[..20], scores(&lines[2])[..20]);
    let text = words(100);
    let end: Vec<&str> = text.split(' ').skip(62).collect();
    let alone = &detect(&[], &end.join(" "))[0];
    assert_eq!(scores(&windowed[2])[90..], scores(alone)[28..]);

    let run = predict("tiny-discriminator", "detect", &["--long", "error"], &input);
    assert_eq!(run.code, 1);
    run.says(&[
        "standard input, line 2: 39 tokens, but the model takes 38",
        "--long",
    ]);
    assert_eq!(
        run.stdout.lines().count(),
        1,
        "what stands before it is answered"
    );
}

#[test]
fn fill_gives_the_most_probable_tokens_for_each_mask() {
    let input = "the [MASK] boat\nno mask\n\na [MASK] and [MASK] !\n";
    let run = predict("tiny-generator", "fill", &["--top-k", "3"], input);
    run.says(&["2 of 4 texts have no [MASK]"]);
    let lines = run.json_lines();
    let counts: Vec<usize> = lines
        .iter()
        .map(|l| l["masks"].as_array().unwrap().len())
        .collect();
    assert_eq!(counts, [1, 0, 0, 2]);
    for mask in lines.iter().flat_map(|l| l["masks"].as_array().unwrap()) {
        let scores: Vec<f64> = mask
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["score"].as_f64().unwrap())
            .collect();
        assert_eq!(scores.len(), 3);
        assert!(
            scores.is_sorted_by(|a, b| a >= b) && scores[0] <= 1.0,
            "{scores:?}"
        );
    }
    let all = predict("tiny-generator", "fill", &["--top-k", "1000"], "the [MASK]").json_lines();
    let all = all[0]["masks"][0].as_array().unwrap();
    assert_eq!(all.len(), 101);
    let sum: f64 = all.iter().map(|c| c["score"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-4, "{sum}");
}

#[test]
fn a_mask_beyond_the_cut_keeps_its_place_and_a_window_fills_it() {
    let input = format!("[MASK] {} [MASK]\n", words(60));
    let lines = predict("tiny-generator", "fill", &[], &input).json_lines();
    let masks = lines[0]["masks"].as_array().unwrap();
    assert_eq!(masks[0].as_array().unwrap().len(), 5);
    assert_eq!(masks[1], json!([]));
    let lines = predict("tiny-generator", "fill", &["--long", "window"], &input).json_lines();
    assert_eq!(lines[0]["masks"][1].as_array().unwrap().len(), 5);
}

#[test]
fn without_json_a_pipe_gets_plain_tables() {
    let model = golden("tiny-discriminator");
    let arguments = ["predict", "--model", &model, "--as", "detect"];
    let out = electra_with_input(&arguments, "the café\n".as_bytes()).ok();
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows[0][1..], ["0", "3", "the"]);
    assert_eq!(rows.len(), 6, "five tokens and a blank line: {out}");
    assert!(!out.contains('\x1b'));
    let model = golden("tiny-generator");
    let arguments = ["predict", "--model", &model, "--as", "fill", "--top-k", "2"];
    let out = electra_with_input(&arguments, b"a [MASK] boat").ok();
    assert!(out.starts_with("a [MASK] boat\n  1\t0."), "{out}");
    assert_eq!(out.lines().count(), 3);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = command()
        .args([
            "predict",
            "--as",
            "detect",
            "--json",
            "--model",
            &golden("tiny-discriminator"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let line = words(30) + "\n";
        while stdin.write_all(line.as_bytes()).is_ok() {}
    });
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    let ended = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    assert!(
        !stderr.contains("error") && !stderr.contains("panicked"),
        "{stderr}"
    );
}

#[test]
fn answers_come_line_by_line_where_the_input_does() {
    let mut child = command()
        .args([
            "predict",
            "--as",
            "detect",
            "--json",
            "--model",
            &golden("tiny-discriminator"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    for text in ["the boat", "a bird"] {
        writeln!(stdin, "{text}").unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert!(line.contains(text), "{line}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_wrong_kind_of_model_and_a_foreign_tokenizer_are_refused() {
    let holds = "holds a discriminator (ElectraForPreTraining), not a generator";
    predict("tiny-discriminator", "fill", &[], "x").fails(1, &[holds, "-generator"]);
    let holds = "holds a generator (ElectraForMaskedLM), not a discriminator";
    predict("tiny-generator", "detect", &[], "x").fails(1, &[holds, "-discriminator"]);

    let dir = tempfile::tempdir().unwrap();
    copy_dir(golden("tiny-discriminator"), dir.path());
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let vocab = std::fs::read_to_string(dir.path().join("vocab.txt")).unwrap();
    let model = dir.path().display().to_string();
    let arguments = ["predict", "--model", &model, "--as", "detect", "--json"];
    std::fs::write(dir.path().join("vocab.txt"), vocab.clone() + "more\n").unwrap();
    electra_with_input(&arguments, b"the").fails(1, &["102 tokens", "101 rows", "another model's"]);
    std::fs::write(
        dir.path().join("vocab.txt"),
        vocab.trim_end().rsplit_once('\n').unwrap().0,
    )
    .unwrap();
    let run = electra_with_input(&arguments, b"the");
    run.says(&["100 tokens", "101 rows"]);
    run.ok();
    std::fs::remove_file(dir.path().join("vocab.txt")).unwrap();
    electra_with_input(&arguments, b"the").fails(1, &["no tokenizer at"]);
}

#[test]
fn a_hub_name_is_found_in_the_cache_that_python_shares() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--owner--tiny");
    run::write(&repo, "refs/main", "abc123");
    copy_dir(golden("tiny-generator"), &repo.join("snapshots/abc123"));
    for arguments in [
        &["info", "owner/tiny", "--json"][..],
        &["predict", "--model", "owner/tiny", "--as", "fill", "--json"],
    ] {
        let output = command()
            .args(arguments)
            .env_remove("HF_HUB_CACHE")
            .env("HF_HOME", home.path())
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
    }
}
