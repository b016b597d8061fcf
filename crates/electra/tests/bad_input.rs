//! Bad input of every kind: an exit code, a message that names the place, and never a panic.

mod run;

use run::{copy_dir, electra, electra_with_input, golden, write};
use std::path::Path;

/// Runs `vocab` and `prepare` on one input; both must fail with the message.
#[track_caller]
fn both_fail(dir: &Path, input: &str, stdin: &[u8], parts: &[&str]) {
    let out = dir.join("out").display().to_string();
    let vocab = ["vocab", "--input", input, "--size", "60", "--out", &out];
    electra_with_input(&vocab, stdin).fails(1, parts);
    let out = dir.join("shards").display().to_string();
    let tokenizer = golden("tiny-discriminator");
    let prepare = [
        "prepare",
        "--input",
        input,
        "--tokenizer",
        &tokenizer,
        "--out",
        &out,
    ];
    electra_with_input(&prepare, stdin).fails(1, parts);
    assert!(!dir.join("shards/manifest.json").exists());
    // A run that met bad text keeps what it did, for this input alone.
    let _ = std::fs::remove_dir_all(dir.join("shards"));
}

fn strings<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    arguments.to_vec()
}

#[test]
fn inputs_that_cannot_be_read_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let missing = d.join("missing.txt").display().to_string();
    both_fail(d, &missing, b"", &["missing.txt", "no such file"]);
    both_fail(
        d,
        &write(d, "empty.txt", ""),
        b"",
        &["empty.txt", "no text"],
    );
    both_fail(d, "-", b" \n\n", &["no text"]);
    both_fail(
        d,
        &write(d, "a.bin", "text"),
        b"",
        &["a.bin", "unknown kind of file"],
    );
    both_fail(
        d,
        &write(d, "b.txt", b"ab\0\0cd"),
        b"",
        &["b.txt", "binary"],
    );
    let utf8 = write(d, "c.txt", b"ab\xff cd \xfe\n");
    both_fail(
        d,
        &utf8,
        b"",
        &["c.txt", "2 invalid UTF-8", "byte 2", "loss"],
    );
    both_fail(
        d,
        &write(d, "d.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n"),
        b"",
        &["d.jsonl", "2", "text"],
    );
    both_fail(
        d,
        &write(d, "e.jsonl", "{\"text\": \"a\"\n"),
        b"",
        &["e.jsonl", "1"],
    );
    both_fail(d, &write(d, "f.csv", "a,b\n1,2\n"), b"", &["f.csv", "text"]);
    both_fail(
        d,
        &write(d, "g.parquet", "PAR1 it is not"),
        b"",
        &["g.parquet"],
    );
    both_fail(d, &write(d, "h.txt.gz", "it is not"), b"", &["h.txt.gz"]);
    both_fail(d, &format!("{}/*.none", d.display()), b"", &["*.none"]);
}

#[test]
fn invalid_utf8_is_replaced_and_counted_where_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let input = write(dir.path(), "a.txt", b"the old\xff boat\xfe\n");
    let out = dir.path().join("out").display().to_string();
    let tokenizer = golden("tiny-discriminator");
    let run = electra(&[
        "prepare",
        "--input",
        &input,
        "--tokenizer",
        &tokenizer,
        "--out",
        &out,
        "--lossy",
        "--json",
    ]);
    run.says(&["in the place of 2 invalid UTF-8 sequences"]);
    assert_eq!(run.json()["invalid_utf8"], 2);
    let model = golden("tiny-discriminator");
    let arguments = [
        "predict", "--model", &model, "--as", "detect", "--input", &input,
    ];
    electra(&arguments).fails(
        1,
        &[
            "a.txt, line 1: 2 invalid UTF-8 sequences, the first at byte 7",
            "--lossy",
        ],
    );
    let run = electra(&[&arguments[..], &["--lossy", "--json"]].concat());
    run.says(&["in the place of 2 invalid UTF-8 sequences"]);
    assert_eq!(run.json()["text"], "the old\u{fffd} boat\u{fffd}");
}

#[cfg(unix)]
#[test]
fn files_that_the_system_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let input = write(d, "a.txt", "the old boat\n");
    // A file where a directory should be is refused to everybody, root included.
    let file = write(d, "file", "x");
    let under = format!("{file}/out");
    electra(&["vocab", "--input", &input, "--size", "60", "--out", &under]).fails(1, &["file/out"]);
    let tokenizer = golden("tiny-discriminator");
    electra(&[
        "prepare",
        "--input",
        &input,
        "--tokenizer",
        &tokenizer,
        "--out",
        &under,
    ])
    .fails(1, &["file/out"]);
    let model = golden("tiny-discriminator");
    let predict = |input: &str| {
        electra(&[
            "predict", "--model", &model, "--as", "detect", "--input", input,
        ])
    };
    predict(&d.join("none.txt").display().to_string())
        .fails(1, &["cannot read", "none.txt", "No such file"]);
    predict(&d.display().to_string()).fails(1, &["cannot read", "directory"]);
    predict(&write(d, "b.txt", b"a\n\0\0\n")).says(&["b.txt, line 2", "binary"]);
    let run = predict(&write(d, "empty.txt", ""));
    run.says(&["empty.txt is empty"]);
    assert_eq!(run.ok(), "");
}

#[test]
fn vocabularies_that_electra_cannot_use() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let input = write(d, "a.txt", "the old boat\n");
    let out = d.join("out").display().to_string();
    let prepare = |tokenizer: &str| {
        electra(&[
            "prepare",
            "--input",
            &input,
            "--tokenizer",
            tokenizer,
            "--out",
            &out,
        ])
    };
    prepare(&d.join("none").display().to_string()).fails(1, &["no tokenizer at", "none"]);
    prepare(&write(d, "empty.txt", "")).fails(1, &["empty.txt", "vocabulary is empty"]);
    let special = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n";
    prepare(&write(d, "lacks.txt", format!("{special}a\n"))).fails(1, &["lacks.txt", "[MASK]"]);
    prepare(&write(
        d,
        "twice.txt",
        format!("{special}[MASK]\na\nb\na\n"),
    ))
    .fails(1, &["twice.txt", "\"a\"", "5 and 7"]);
    prepare(&write(d, "tokenizer.json", "{}")).fails(1, &["tokenizer.json"]);
    assert!(!d.join("out").exists());
    electra(&["prepare", "--merge", "--out", &out]).fails(1, &["out"]);

    electra(&["vocab", "--input", &input, "--size", "5", "--out", &out])
        .fails(1, &["5 entries", "ask for more"]);
    let other = d.join("other");
    write(&other, "thesis.tex", "x");
    let other = other.display().to_string();
    electra(&["vocab", "--input", &input, "--size", "60", "--out", &other])
        .fails(1, &["thesis.tex", "another directory"]);
    let tokenizer = golden("tiny-discriminator");
    electra(&[
        "prepare",
        "--input",
        &input,
        "--tokenizer",
        &tokenizer,
        "--out",
        &other,
    ])
    .fails(1, &["other", "not empty"]);
}

#[test]
fn models_that_are_damaged_or_impossible() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().display().to_string();
    copy_dir(golden("tiny-discriminator"), dir.path());
    let (config, weights) = (
        dir.path().join("config.json"),
        dir.path().join("model.safetensors"),
    );
    let good = std::fs::read_to_string(&config).unwrap();
    let predict = || {
        electra_with_input(
            &strings(&["predict", "--as", "detect", "--model", &model]),
            b"the boat\n",
        )
    };
    predict().ok();
    for (from, to, parts) in [
        (
            "\"num_attention_heads\": 3",
            "\"num_attention_heads\": 5",
            ["config.json", "num_attention_heads"],
        ),
        (
            "\"hidden_size\": 24",
            "\"hidden_size\": \"wide\"",
            ["config.json", "hidden_size"],
        ),
        (
            "\"intermediate_size\": 44",
            "\"intermediate_size\": 45",
            ["shape [24, 44]", "[24, 45]"],
        ),
        (
            "\"max_position_embeddings\": 40",
            "\"max_position_embeddings\": 41",
            ["position_embeddings", "41"],
        ),
        (
            "\"model_type\": \"electra\"",
            "\"model_type\": \"bert\"",
            ["model_type", "bert"],
        ),
        ("{", "{,", ["config.json", "line 1"]),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        std::fs::write(&config, bad).unwrap();
        predict().fails(1, &parts);
    }
    std::fs::write(&config, &good).unwrap();
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 5]).unwrap();
    predict().fails(1, &["model.safetensors", "damaged"]);
    std::fs::write(&weights, &bytes[..4]).unwrap();
    predict().fails(1, &["model.safetensors"]);
    std::fs::remove_file(&weights).unwrap();
    predict().fails(1, &["no weights", "model.safetensors"]);
    std::fs::remove_file(&config).unwrap();
    predict().fails(1, &["no config.json"]);
}

#[test]
fn a_hub_name_without_a_network_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = run::command();
    let output = command
        .args(["predict", "--as", "fill", "--model", "owner/model"])
        .env("HF_HOME", dir.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("owner/model is not in the cache") && stderr.contains("HF_HUB_OFFLINE"),
        "{stderr}"
    );
}

#[test]
fn wrong_usage_exits_2_and_help_exits_0() {
    for (arguments, part) in [
        (
            strings(&["predict", "--model", "x", "--as", "detect", "--frobnicate"]),
            "--frobnicate",
        ),
        (strings(&["predict", "--model", "x"]), "--as"),
        (
            strings(&["predict", "--model", "x", "--as", "sing"]),
            "detect",
        ),
        (
            strings(&["predict", "--model", "x", "--as", "fill", "--top-k", "0"]),
            "--top-k",
        ),
        (
            strings(&["predict", "--model", "x", "--as", "fill", "--long", "maybe"]),
            "truncate",
        ),
        (strings(&["prepare", "--out", "x"]), "--input"),
        (
            strings(&["prepare", "--out", "x", "--merge", "--shard", "0/1"]),
            "--shard",
        ),
        (
            strings(&[
                "prepare",
                "--input",
                "a",
                "--tokenizer",
                "b",
                "--out",
                "x",
                "--shard",
                "2/2",
            ]),
            "the last of 2 is 1/2",
        ),
        (
            strings(&[
                "prepare",
                "--input",
                "a",
                "--tokenizer",
                "b",
                "--out",
                "x",
                "--shard",
                "two",
            ]),
            "I/N",
        ),
        (
            strings(&["vocab", "--input", "a", "--out", "x", "--size", "many"]),
            "--size",
        ),
        (strings(&["vocab", "--out", "x", "--size", "9"]), "--input"),
        (strings(&["sing"]), "sing"),
        (Vec::new(), "Usage"),
    ] {
        let run = electra(&arguments);
        assert_eq!(run.code, 2, "{arguments:?}: {}", run.stderr);
        run.says(&[part]);
    }
    for command in ["vocab", "prepare", "predict", "info"] {
        let help = electra(&[command, "--help"]).ok();
        assert!(help.contains("--json"), "{help}");
    }
}
