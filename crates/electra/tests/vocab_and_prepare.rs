//! Text to a vocabulary and to token shards, through the binary.

mod run;

use run::{command, electra, electra_with_input, files, shared_data, write};
use std::io::Write as _;
use std::path::Path;

const TEXT: &str = "The cat sat on the mat.\nIt was warm there.\n\nA dog ran after the cat, \
                    and the cat ran too.\n\nThe warm mat was the dog's.\n";

/// A vocabulary of `text` in `dir/vocab`.
fn vocabulary(dir: &Path, text: &str) -> String {
    let input = write(dir, "vocabulary.txt", text);
    let out = dir.join("vocab").display().to_string();
    electra(&["vocab", "--input", &input, "--size", "80", "--out", &out]).ok();
    out
}

/// Text of `documents` documents that no two are alike.
fn documents(documents: usize) -> String {
    let words = [
        "the", "cat", "sat", "dog", "ran", "warm", "mat", "after", "was", "too",
    ];
    let mut text = String::new();
    for d in 0..documents {
        for line in 0..1 + d % 3 {
            for w in 0..5 + d % 7 {
                text += words[(d * 7 + line * 3 + w * w) % words.len()];
                text += " ";
            }
            text += "\n";
        }
        text += "\n";
    }
    text
}

#[test]
fn vocab_writes_a_tokenizer_and_the_same_one_again() {
    let dir = tempfile::tempdir().unwrap();
    let input = write(dir.path(), "a.txt", TEXT);
    let mut outs = Vec::new();
    for name in ["one", "two"] {
        let out = dir.path().join(name);
        let path = out.display().to_string();
        let result = electra(&[
            "vocab", "--input", &input, "--size", "45", "--out", &path, "--json",
        ])
        .json();
        let entries = result["vocab_size"].as_u64().unwrap();
        assert!((20..=45).contains(&entries), "{result}");
        let vocab = std::fs::read_to_string(out.join("vocab.txt")).unwrap();
        assert_eq!(vocab.lines().count() as u64, entries);
        assert_eq!(result["cased"], false);
        outs.push(files(&out));
    }
    assert_eq!(outs[0], outs[1]);
    let vocab = String::from_utf8(outs[0]["vocab.txt"].clone()).unwrap();
    assert!(
        vocab.starts_with("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"),
        "{vocab}"
    );
    let names: Vec<&String> = outs[0].keys().collect();
    let expected = [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ];
    assert_eq!(names, expected);

    let cased = dir.path().join("cased").display().to_string();
    let run = electra(&[
        "vocab", "--input", &input, "--size", "500", "--out", &cased, "--cased",
    ]);
    run.says(&["fewer than the 500 asked for"]);
    run.ok();
    let vocab = std::fs::read_to_string(Path::new(&cased).join("vocab.txt")).unwrap();
    assert!(vocab.lines().any(|token| token == "T"), "{vocab}");
}

#[test]
fn the_same_documents_in_any_format_give_the_same_shards() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = vocabulary(dir.path(), TEXT);
    let documents: Vec<&str> = TEXT.trim_end().split("\n\n").collect();
    let jsonl: String = documents
        .iter()
        .map(|d| serde_json::json!({ "body": d }).to_string() + "\n")
        .collect();
    let csv = documents.iter().fold("id,body\n".to_owned(), |csv, d| {
        csv + &format!("1,\"{d}\"\n")
    });
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        encoder.write_all(TEXT.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let inputs = [
        write(dir.path(), "in/a.txt", TEXT),
        write(dir.path(), "in/b.txt.gz", gzip),
        write(
            dir.path(),
            "in/c.txt.zst",
            zstd::encode_all(TEXT.as_bytes(), 1).unwrap(),
        ),
        write(dir.path(), "in/d.jsonl", jsonl),
        write(dir.path(), "in/e.csv", csv),
        "-".to_owned(),
    ];
    let mut shards = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let out = dir.path().join(format!("out{i}"));
        let path = out.display().to_string();
        let arguments = [
            "prepare",
            "--input",
            input,
            "--tokenizer",
            &tokenizer,
            "--out",
            &path,
            "--field",
            "body",
            "--json",
        ];
        let result = electra_with_input(&arguments, TEXT.as_bytes()).json();
        assert_eq!(
            (&result["documents"], &result["lines"]),
            (&3.into(), &4.into()),
            "{input}"
        );
        assert_eq!(result["outcome"], "complete");
        assert!(result["tokens"].as_u64() > Some(20), "{result}");
        shards.push(files(&out)["shard-00000.bin"].clone());
    }
    assert!(shards.iter().all(|shard| shard == &shards[0]));

    let out = dir.path().join("by line").display().to_string();
    let result = electra(&[
        "prepare",
        "--input",
        &inputs[0],
        "--tokenizer",
        &tokenizer,
        "--out",
        &out,
        "--json",
        "--one-document-per-line",
    ])
    .json();
    assert_eq!(result["documents"], 4);
}

#[test]
fn parts_by_any_number_of_threads_merge_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = vocabulary(dir.path(), TEXT);
    let inputs: Vec<String> = (0..5)
        .map(|i| {
            write(
                dir.path(),
                &format!("in/{i}.txt"),
                documents(4000 + 1000 * i),
            )
        })
        .collect();
    let prepare = |out: &str, more: &[&str]| {
        let mut arguments = vec![
            "prepare",
            "--tokenizer",
            &tokenizer,
            "--out",
            out,
            "--input",
        ];
        arguments.extend(inputs.iter().map(String::as_str));
        arguments.extend(["--shard-tokens", "100000", "--json"]);
        arguments.extend(more);
        electra(&arguments)
    };
    let whole = dir.path().join("whole");
    let result = prepare(&whole.display().to_string(), &["--threads", "2"]).json();
    assert!(result["shards"].as_u64() > Some(1), "{result}");
    let whole = files(&whole);
    for parts in [1, 3] {
        let out = dir.path().join(format!("of {parts}"));
        let path = out.display().to_string();
        for part in (0..parts).rev() {
            let share = format!("{part}/{parts}");
            let result = prepare(&path, &["--shard", &share, "--threads", "1"]).json();
            assert_eq!(result["outcome"], "part_complete");
            if part > 0 {
                let early = electra(&["prepare", "--merge", "--out", &path]);
                early.fails(1, &["parts not complete", "run them first"]);
            }
        }
        let merged = electra(&["prepare", "--merge", "--out", &path, "--json"]).json();
        assert_eq!(merged["tokens"], result["tokens"]);
        assert_eq!(files(&out), whole, "{parts} parts");
    }
}

#[test]
fn a_rerun_does_nothing_and_other_work_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = vocabulary(dir.path(), TEXT);
    let input = write(dir.path(), "a.txt", TEXT);
    let out = dir.path().join("out").display().to_string();
    let prepare = |more: &[&str]| {
        let mut arguments = vec![
            "prepare",
            "--input",
            &input,
            "--tokenizer",
            &tokenizer,
            "--out",
            &out,
            "--json",
        ];
        arguments.extend(more);
        electra(&arguments)
    };
    assert_eq!(prepare(&[]).json()["outcome"], "complete");
    assert_eq!(prepare(&[]).json()["outcome"], "already_complete");
    prepare(&["--cased"]).fails(1, &["holds other work", "tokenizer"]);
    prepare(&["--shard-tokens", "5"]).fails(1, &["holds other work", "tokens a shard"]);
    write(dir.path(), "a.txt", TEXT.to_uppercase());
    prepare(&[]).fails(1, &["the content of a.txt has changed"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_prepare_exits_130_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = vocabulary(dir.path(), TEXT);
    let input = write(dir.path(), "a.txt", documents(300_000));
    let out = dir.path().join("out");
    let start = |out: &Path| {
        let mut command = command();
        command
            .args([
                "prepare",
                "--threads",
                "1",
                "--input",
                &input,
                "--tokenizer",
                &tokenizer,
            ])
            .arg("--out")
            .arg(out);
        command
    };
    let child = start(&out)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // As soon as there is a part to go on with.
    while !out.join("parts").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let kill = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("the same command goes on"), "{stderr}");
    assert!(!out.join("manifest.json").exists());
    assert!(start(&out).output().unwrap().status.success());
    let whole = dir.path().join("whole");
    assert!(start(&whole).output().unwrap().status.success());
    assert_eq!(files(&out), files(&whole));
}

#[cfg(unix)]
#[test]
fn a_prepare_that_waits_for_standard_input_can_be_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = vocabulary(dir.path(), TEXT);
    let out = dir.path().join("out");
    let mut child = command()
        .args(["prepare", "--input", "-", "--tokenizer", &tokenizer])
        .arg("--out")
        .arg(&out)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Open, and silent after the first words.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(TEXT.as_bytes()).unwrap();
    while !out.join("parts").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let kill = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    drop(stdin);
    let arguments = [
        "prepare",
        "--input",
        "-",
        "--tokenizer",
        &tokenizer,
        "--json",
        "--out",
        &out.display().to_string(),
    ];
    let result = electra_with_input(&arguments, TEXT.as_bytes()).json();
    assert_eq!(result["documents"], 3);
}

/// However slowly it comes, an input is the same input.
#[test]
fn a_binary_stream_is_refused_at_any_pace() {
    let dir = tempfile::tempdir().unwrap();
    let (tokenizer, out) = (vocabulary(dir.path(), TEXT), dir.path().join("data"));
    let mut child = command()
        .args([
            "prepare",
            "--input",
            "-",
            "--tokenizer",
            &tokenizer,
            "--out",
        ])
        .arg(&out)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for part in ["the river\n".repeat(100), "a\0b\n".into()] {
        input.write_all(part.as_bytes()).unwrap();
        input.flush().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    drop(input);
    let ended = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(message.contains("NUL byte at offset 1001"), "{message}");
}

#[test]
fn a_merge_of_a_missing_directory_says_what_to_give() {
    electra(&["prepare", "--merge", "--out", "no/such/place"])
        .fails(1, &["no/such/place: no such directory", "--out"]);
}

#[test]
fn real_english_goes_from_text_to_shards() {
    let Some(input) = shared_data("pretrain/en_state_union.txt") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (input, vocab) = (
        input.display().to_string(),
        dir.path().join("v").display().to_string(),
    );
    let trained = electra(&[
        "vocab", "--input", &input, "--size", "4000", "--out", &vocab, "--json",
    ])
    .json();
    assert_eq!(trained["vocab_size"], 4000);
    let out = dir.path().join("shards").display().to_string();
    let result = electra(&[
        "prepare",
        "--input",
        &input,
        "--tokenizer",
        &vocab,
        "--out",
        &out,
        "--json",
    ])
    .json();
    let (bytes, tokens) = (
        result["text_bytes"].as_f64().unwrap(),
        result["tokens"].as_f64().unwrap(),
    );
    let bytes_a_token = bytes / tokens;
    assert!(
        (3.0..7.0).contains(&bytes_a_token),
        "{bytes_a_token} bytes a token"
    );
    let info = electra(&["info", &out, "--json"]).json();
    assert_eq!(info["tokens"], result["tokens"]);
    assert_eq!(info["problems"], serde_json::json!([]));
}
