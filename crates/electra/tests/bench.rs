//! `electra bench` runs, and prints what its readers count on. How fast is no matter here.

mod run;

use electra_engine::cpu::Isa;
use run::{command, electra, golden, write};
use serde_json::Value;
use tempfile::TempDir;

fn number(line: &Value, name: &str) -> f64 {
    line[name]
        .as_f64()
        .unwrap_or_else(|| panic!("no number {name:?} in {line}"))
}

/// Asserts that `name` has a median within its range, all above 0.
fn assert_spread(line: &Value, name: &str) {
    let [median, min, max] =
        ["", "_min", "_max"].map(|suffix| number(line, &format!("{name}{suffix}")));
    assert!(
        0.0 < min && min <= median && median <= max,
        "{name}: {line}"
    );
}

/// Asserts what `infer` and `train` promise.
fn assert_contract(line: &Value) {
    for name in ["tokens_per_s", "ms"] {
        assert_spread(line, name);
    }
    let [rate, peak] = ["gflops", "gemm_peak_gflops"].map(|name| number(line, name));
    let fraction = number(line, "fraction_of_peak");
    assert!((fraction / (rate / peak) - 1.0).abs() < 1e-3, "{line}");
    assert!(number(line, "peak_rss_bytes") > 1e6, "{line}");
}

fn assert_phases(line: &Value, operators: &[&str]) {
    let phases = line["phases"].as_array().expect("phases");
    let total: f64 = phases.iter().map(|phase| number(phase, "share")).sum();
    assert!((total - 1.0).abs() < 1e-2, "shares come to {total}");
    for operator in operators {
        assert!(
            phases.iter().any(|phase| phase["operator"] == *operator),
            "no {operator}: {line}"
        );
    }
}

const SHORT: [&str; 6] = ["--threads", "2", "--repetitions", "1", "--steps", "1"];

fn bench(subject: &[&str]) -> Vec<Value> {
    electra(&[&["bench"], subject, &["--json"]].concat()).json_lines()
}

fn bench_one(subject: &[&str]) -> Value {
    let mut lines = bench(&[subject, &SHORT].concat());
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[test]
fn infer_prints_speed_rate_share_and_memory() {
    let shape = ["infer", "--preset", "tiny", "--batch", "2", "--seq", "16"];
    for precision in ["f32", "bf16", "int8"] {
        let line = bench_one(&[&shape[..], &["--precision", precision, "--profile"]].concat());
        assert_contract(&line);
        assert_phases(
            &line,
            &[
                "query, key, value",
                "attention",
                "embed",
                "outside operators",
            ],
        );
        // One repetition: a batch of 32 tokens in so many milliseconds.
        let tokens = number(&line, "tokens_per_s") * number(&line, "ms") / 1e3;
        assert!((tokens - 32.0).abs() < 0.01, "{tokens} tokens a batch");
        // 2 (4 layers of 12 h² + 2 n h) operations a token, without a head.
        let flops = number(&line, "gflops") * 1e9 / number(&line, "tokens_per_s");
        let expected = 2.0 * 4.0 * (12.0 * 128.0 * 128.0 + 2.0 * 16.0 * 128.0);
        assert!((flops / expected - 1.0).abs() < 1e-3, "{flops} a token");
    }
}

#[test]
fn infer_counts_the_real_tokens_of_ragged_batches_of_a_model() {
    let dir = TempDir::new().expect("a directory");
    let lengths = write(dir.path(), "lengths", "5\n9\n3\n");
    let model = golden("tiny-discriminator");
    let line = bench_one(&[
        "infer",
        "--model",
        &model,
        "--batch",
        "2",
        "--lengths",
        &lengths,
    ]);
    assert_contract(&line);
    // 17 tokens in two batches.
    let tokens = number(&line, "tokens_per_s") * number(&line, "ms") / 1e3;
    assert!((tokens - 8.5).abs() < 0.01, "{tokens} tokens a batch");
}

#[test]
fn train_times_the_whole_step() {
    let shape = ["train", "--preset", "tiny", "--batch", "2", "--seq", "16"];
    let line = bench_one(&[&shape[..], &["--profile"]].concat());
    assert_contract(&line);
    assert_spread(&line, "data_ms");
    let parts = [
        "vocabulary",
        "vocabulary_backward",
        "dropout",
        "attention backward",
        "binary_cross_entropy",
        "squared_norms",
        "adamw",
    ];
    assert_phases(&line, &parts);
    let tokens = number(&line, "tokens_per_s") * number(&line, "ms") / 1e3;
    assert!((tokens - 32.0).abs() < 0.01, "{tokens} tokens a step");

    let dir = TempDir::new().expect("a directory");
    let lengths = write(dir.path(), "lengths", "5\n9\n3\n12\n");
    let line = bench_one(&[
        "train",
        "--preset",
        "tiny",
        "--batch",
        "4",
        "--lengths",
        &lengths,
    ]);
    let tokens = number(&line, "tokens_per_s") * number(&line, "ms") / 1e3;
    assert!((tokens - 29.0).abs() < 0.01, "{tokens} tokens a step");
}

#[test]
fn finetune_times_the_whole_step_on_ragged_batches() {
    let dir = TempDir::new().expect("a directory");
    let lengths = write(dir.path(), "lengths", "5\n9\n3\n");
    let shape = ["finetune", "--preset", "tiny", "--batch", "2"];
    let line = bench_one(&[&shape[..], &["--lengths", &lengths, "--profile"]].concat());
    assert_contract(&line);
    let parts = ["dropout", "attention backward", "squared_norms", "adamw"];
    assert_phases(&line, &parts);
    // 17 tokens in two batches.
    let tokens = number(&line, "tokens_per_s") * number(&line, "ms") / 1e3;
    assert!((tokens - 8.5).abs() < 0.01, "{tokens} tokens a batch");
}

#[test]
fn the_environment_forces_an_instruction_set() {
    let with = |isa: &str| {
        let output = command()
            .args(["bench", "infer", "--preset", "tiny", "--batch", "1"])
            .args(["--seq", "16", "--json"])
            .args(SHORT)
            .env("ELECTRA_ISA", isa)
            .output()
            .expect("the binary runs");
        let said = String::from_utf8(output.stderr).expect("stderr is UTF-8");
        (output.status.success(), output.stdout, said)
    };
    let (done, line, said) = with("portable");
    assert!(done && said.contains("ELECTRA_ISA=portable"), "{said}");
    let line: Value = serde_json::from_slice(&line).expect("an object");
    assert_eq!(line["isa"], "portable");
    let (done, _, said) = with("sse9");
    assert!(
        !done && said.contains("sse9") && said.contains("portable"),
        "{said}"
    );
    let here = Isa::available();
    for isa in Isa::ALL.into_iter().filter(|isa| !here.contains(isa)) {
        let (done, _, said) = with(isa.name());
        assert!(
            !done && said.contains(isa.name()) && said.contains("portable"),
            "{said}"
        );
    }
}

/// Lines of `bench gemm` that are a product's.
fn products(lines: &[Value]) -> Vec<&Value> {
    let products = lines.iter().filter(|line| line["weight"].is_array());
    products.collect()
}

#[test]
fn gemm_prints_the_registers_and_every_product_of_a_preset() {
    let shape = ["gemm", "--preset", "tiny", "--batch", "1", "--seq", "16"];
    let lines = bench(&[&shape[..], &["--precision", "f32"], &SHORT].concat());
    let registers: Vec<&Value> = lines
        .iter()
        .filter(|line| line["product"] == "registers")
        .collect();
    assert_eq!(registers.len(), 2, "one thread and two: {lines:?}");
    for line in &registers {
        assert_spread(line, "gemm_peak_gflops");
    }
    let barrier = lines.iter().find(|line| line["product"] == "barrier");
    assert_spread(barrier.expect("a barrier"), "ns");
    // Four linear layers of each network, the generator's projection, both heads and the vocabulary,
    // three products each.
    let products = products(&lines);
    assert_eq!(products.len(), 3 * 12);
    for line in products {
        let weight: Vec<f64> = line["weight"]
            .as_array()
            .expect("a shape")
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        let flops = number(line, "gflops") * number(line, "ms") * 1e6;
        let expected = 2.0 * number(line, "tokens") * weight[0] * weight[1];
        assert!((flops / expected - 1.0).abs() < 1e-2, "{line}");
    }
}

#[test]
fn gemm_times_products_in_bytes_inside_a_layer() {
    let shape = ["gemm", "--preset", "tiny", "--batch", "2", "--seq", "16"];
    let lines = bench(&[&shape[..], &["--precision", "int8"], &SHORT].concat());
    let products = products(&lines);
    assert_eq!(products.len(), 2 * 4, "of a layer of each network");
    for line in products {
        assert!(
            number(line, "gflops") > 0.0 && number(line, "ms") > 0.0,
            "{line}"
        );
        assert_eq!(line["precision"], "int8");
    }
}

#[test]
fn what_does_not_fit_into_memory_is_refused() {
    for subject in ["gemm", "operators", "infer", "train", "finetune"] {
        let arguments = ["bench", subject, "--preset", "base", "--batch", "1000000"];
        electra(&arguments).fails(1, &["lower --batch"]);
    }
}

#[test]
fn operators_prepare_and_load_print_their_times() {
    let shape = [
        "operators",
        "--preset",
        "tiny",
        "--batch",
        "1",
        "--seq",
        "16",
    ];
    let lines = bench(&[&shape[..], &SHORT].concat());
    assert_eq!(lines.len(), 15, "{lines:?}");
    for line in &lines {
        assert_spread(line, "ms");
    }

    let dir = TempDir::new().expect("a directory");
    let text = write(dir.path(), "text.txt", "boat river boat\n\nriver boat\n");
    let vocab = write(
        dir.path(),
        "vocab.txt",
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nboat\nriver\n",
    );
    let given = ["prepare", "--input", &text, "--tokenizer", &vocab];
    let lines = bench(&[&given[..], &["--repetitions", "1"]].concat());
    assert_eq!(
        (&lines[0]["tokens"], &lines[0]["repetitions"]),
        (&5.into(), &1.into())
    );
    for name in ["mb_per_s", "tokens_per_s", "ms"] {
        assert_spread(&lines[0], name);
    }

    let lines = bench(&["load", "--preset", "tiny", "--repetitions", "2"]);
    assert_spread(&lines[0], "ms");
    assert_eq!(lines[0]["repetitions"], 2);
    assert_eq!(
        (&lines[0]["stored"], &lines[0]["precision"]),
        (&"f32".into(), &"f32".into())
    );
    let lines = bench(&[
        "load",
        "--preset",
        "tiny",
        "--stored",
        "int8",
        "--repetitions",
        "1",
    ]);
    assert_eq!(
        (&lines[0]["stored"], &lines[0]["precision"]),
        (&"int8".into(), &"int8".into())
    );
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let wrong = write(dir.path(), "lengths", "5\nfive\n");
    let long = write(dir.path(), "long", "5\n513\n");
    let empty = write(dir.path(), "empty", "");
    for (arguments, parts) in [
        (["infer", "--lengths", &wrong], ["line 2", "\"five\""]),
        (["infer", "--lengths", &long], ["line 2", "1 to 512"]),
        (
            ["infer", "--lengths", &empty],
            ["empty", "one sequence a line"],
        ),
        (["infer", "--seq", "513"], ["--seq 513", "512"]),
        (["infer", "--seconds", "0"], ["--seconds 0", "above 0"]),
        (["infer", "--preset", "huge"], ["\"huge\"", "small"]),
        (
            ["infer", "--batch", "2000000"],
            ["--batch 2000000", "at most"],
        ),
        (
            ["infer", "--batch", "1000000"],
            ["are free", "lower --batch"],
        ),
        (["train", "--seq", "4"], ["max_seq_length", "at least 5"]),
        (["load", "--seq", "513"], ["--seq 513", "512"]),
    ] {
        electra(&[&["bench"], &arguments[..], &["--repetitions", "1"]].concat()).fails(1, &parts);
    }
    let three = write(dir.path(), "three", "5\n9\n3\n");
    for subject in ["gemm", "operators"] {
        let shape = ["--preset", "tiny", "--batch", "2", "--lengths", &three];
        electra(&[&["bench", subject], &shape[..]].concat()).fails(1, &["3 sequences", "--batch"]);
    }
    electra(&["bench", "infer", "--lengths", &three, "--seq", "9"]).fails(2, &["--seq"]);
    for subject in ["train", "finetune", "operators"] {
        let shape = ["--preset", "tiny", "--batch", "1", "--precision", "int8"];
        electra(&[&["bench", subject], &shape[..]].concat()).fails(1, &["int8", "f32 or bf16"]);
    }
    electra(&["bench", "infer", "--model", "m", "--preset", "tiny"]).fails(2, &["--preset"]);
    electra(&["bench", "infer", "--steps", "1", "--seconds", "1"]).fails(2, &["--steps"]);
    electra(&["bench", "prepare", "--input", "a.txt"]).fails(2, &["--tokenizer"]);
}
