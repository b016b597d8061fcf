//! `electra pretrain` as a user runs it: killed, interrupted, resumed, and given what is wrong.

mod run;

use electra_engine::rng::{Purpose, Rng};
use run::{Ran, electra};
use serde_json::Value;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const STEPS: u64 = 60;

/// Shards of a made-up text of 300 documents, and the directory that holds them.
fn corpus() -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a directory");
    let rng = Rng::new(3, 3);
    let mut text = String::new();
    for document in 0..300 {
        for line in 0..3 {
            for word in 0..8 {
                let n = rng.below(50, Purpose::Test, 0, document, line * 10 + word, 0);
                write!(text, "word{n} ").expect("a string grows");
            }
            text.push('\n');
        }
        text.push('\n');
    }
    let input = path(&dir, "text.txt");
    fs::write(&input, text).expect("a writable directory");
    let (vocab, shards) = (path(&dir, "vocab"), path(&dir, "shards"));
    electra(&["vocab", "--input", &input, "--size", "120", "--out", &vocab]).ok();
    electra(&[
        "prepare",
        "--input",
        &input,
        "--tokenizer",
        &vocab,
        "--out",
        &shards,
    ])
    .ok();
    (dir, PathBuf::from(shards))
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

/// Arguments of a short run with networks of its own.
fn arguments(shards: &Path, out: &str) -> Vec<String> {
    let mut all = arguments_without_sizes(shards, out);
    let sizes = r#"model_hparam_overrides={"hidden_size":32,"num_hidden_layers":2,"num_attention_heads":2,"intermediate_size":64}"#;
    for set in [sizes, "embedding_size=16"] {
        all.extend(["--set".into(), set.to_owned()]);
    }
    all
}

/// Arguments of a short run whose networks are given.
fn arguments_without_sizes(shards: &Path, out: &str) -> Vec<String> {
    let steps = format!("num_train_steps={STEPS}");
    let mut all = vec!["pretrain".to_owned(), "--preset".into(), "tiny".into()];
    all.extend([
        "--data".into(),
        shards.display().to_string(),
        "--out".into(),
        out.to_owned(),
    ]);
    for set in [
        "max_seq_length=24",
        "train_batch_size=8",
        &steps,
        "num_warmup_steps=5",
        "save_checkpoints_steps=7",
        "eval_steps=10",
        "held_out=0.05",
    ] {
        all.extend(["--set".into(), set.to_owned()]);
    }
    all
}

fn pretrain(shards: &Path, out: &str, more: &[&str]) -> Ran {
    let mut all = arguments(shards, out);
    all.extend(more.iter().map(|s| (*s).to_owned()));
    electra(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

fn spawn(shards: &Path, out: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_electra"))
        .args(arguments(shards, out))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// The lines of `metrics.jsonl` without what depends on the clock.
fn metrics(out: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(out).join("metrics.jsonl")).expect("metrics");
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).expect(line);
            value.as_object_mut().expect(line).remove("tokens_per_s");
            value
        })
        .collect()
}

fn assert_same_end(whole: &str, other: &str) {
    let end = format!("checkpoints/step-{STEPS:08}/arrays.safetensors");
    for file in [
        end.as_str(),
        "discriminator/model.safetensors",
        "generator/model.safetensors",
        "discriminator/config.json",
        "discriminator/tokenizer.json",
    ] {
        let read = |out: &str| {
            fs::read(Path::new(out).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
        };
        assert!(read(whole) == read(other), "{file} differs");
    }
    let lines = metrics(other);
    assert_eq!(metrics(whole), lines);
    let trained: Vec<u64> = lines
        .iter()
        .filter(|l| l.get("loss").is_some())
        .map(|l| l["step"].as_u64().expect("a number"))
        .collect();
    assert_eq!(trained, (1..=STEPS).collect::<Vec<_>>());
    let evaluated: HashSet<u64> = lines
        .iter()
        .filter(|l| l.get("loss").is_none())
        .map(|l| l["step"].as_u64().expect("a number"))
        .collect();
    assert_eq!(evaluated, (1..=STEPS / 10).map(|i| i * 10).collect());
}

#[test]
fn twenty_kills_at_random_instants_change_nothing() {
    let (dir, shards) = corpus();
    let (whole, killed) = (path(&dir, "whole"), path(&dir, "killed"));
    let begin = Instant::now();
    pretrain(&shards, &whole, &[]).ok();
    let whole_run = begin.elapsed();
    let seed = std::env::var("ELECTRA_KILL_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("ELECTRA_KILL_SEED={seed}");
    let rng = Rng::new(seed, 0);
    let log = Path::new(&killed).join("metrics.jsonl");
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    let checkpoints = Path::new(&killed).join("checkpoints");
    let mut landed = 0;
    for kill in 0..20 {
        let mut child = spawn(&shards, &killed);
        let draw = |what| rng.uniform(Purpose::Test, what, kill, 0, 0);
        // Wait until it trains, so that most kills hit it at work; some come while it starts.
        let first = lines();
        while kill % 5 != 4 && lines() == first && child.try_wait().expect("a process").is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        if kill == 0 {
            let there = fs::read_dir(&checkpoints).map_or(0, Iterator::count);
            assert_eq!(there, 0, "the first kill comes before any checkpoint");
        } else {
            std::thread::sleep(whole_run.mul_f64(0.05 * draw(0)));
        }
        child.kill().expect("a process to kill");
        landed += u32::from(child.wait().expect("it ends").code().is_none());
    }
    assert!(
        landed >= 15,
        "only {landed} of 20 kills hit a process at work"
    );
    pretrain(&shards, &killed, &[]).ok();
    assert_same_end(&whole, &killed);
}

#[cfg(unix)]
#[test]
fn a_signal_writes_a_checkpoint_and_exits_130() {
    let (dir, shards) = corpus();
    let (whole, stopped) = (path(&dir, "whole"), path(&dir, "stopped"));
    pretrain(&shards, &whole, &[]).ok();
    for signal in ["-INT", "-TERM"] {
        let child = spawn(&shards, &stopped);
        let log = Path::new(&stopped).join("metrics.jsonl");
        let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        let before = lines();
        while lines() < before + 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(130), "{signal}");
        let checkpoints =
            fs::read_dir(Path::new(&stopped).join("checkpoints")).expect("checkpoints");
        assert!(checkpoints.count() > 0);
    }
    pretrain(&shards, &stopped, &["--resume"]).ok();
    assert_same_end(&whole, &stopped);
}

#[test]
fn a_run_whose_messages_nobody_reads_goes_on() {
    let (dir, shards) = corpus();
    let out = path(&dir, "run");
    let code = |more: &[&str]| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ended = run::command()
            .args(arguments(&shards, &out))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(writer)
            .status();
        ended.expect("the binary runs").code()
    };
    // A panic would be 101.
    assert_eq!(code(&["--resume"]), Some(1));
    assert_eq!(code(&[]), Some(0));
}

#[test]
fn wrong_settings_are_named() {
    let (dir, shards) = corpus();
    let out = path(&dir, "run");
    let fails = |more: &[&str], parts: &[&str]| pretrain(&shards, &out, more).fails(1, parts);
    fails(
        &["--set", "learning_rte=1"],
        &["learning_rte", "did you mean \"learning_rate\""],
    );
    fails(&["--set", "seed=x"], &["\"seed\"", "wrong type"]);
    fails(
        &["--set", "mask_prob=1.5"],
        &["mask_prob", "between 0 and 1"],
    );
    fails(
        &["--set", "two_tower_generator=true"],
        &["two_tower_generator", "not built"],
    );
    fails(&["--set", "max_seq_length=600"], &["max_seq_length", "512"]);
    fails(
        &["--set", "model_hparam_overrides.num_attention_heads=5"],
        &["num_attention_heads", "32"],
    );
    fails(
        &["--set", "train_batch_size=100000"],
        &["too small for one batch"],
    );
    electra(&["pretrain", "--preset", "huge", "--data", "x", "--out", &out])
        .fails(1, &["huge", "tiny, small, base and large"]);
    fails(
        &[
            "--set",
            "model_hparam_overrides.intermediate_size=500000000",
        ],
        &["of memory", "are free"],
    );
    fails(&["--threads", "100000"], &["--threads 100000"]);
    fails(
        &["--set", "model_size=base"],
        &["model_size", "use --preset"],
    );
    let config = path(&dir, "config.json");
    fs::write(&config, r#"{"train_batch_sise": 3}"#).expect("a writable directory");
    fails(
        &["--config", &config],
        &[
            &config,
            "train_batch_sise",
            "did you mean \"train_batch_size\"",
        ],
    );
    fs::write(&config, r#"{"learning_rate": "fast"}"#).expect("a writable directory");
    fails(&["--config", &config], &[&config, "learning_rate"]);
    fs::write(&config, "{").expect("a writable directory");
    fails(&["--config", &config], &[&config, "not JSON"]);
    fails(
        &["--config", &path(&dir, "nowhere.json")],
        &["nowhere.json"],
    );
    assert!(!Path::new(&out).exists(), "a refused run leaves nothing");
    electra(&["pretrain", "--data", "x", "--out", "y", "--no-such-flag"])
        .fails(2, &["--no-such-flag"]);
}

#[test]
fn models_are_measured_without_training_them() {
    let (dir, shards) = corpus();
    let out = path(&dir, "run");
    pretrain(&shards, &out, &[]).ok();
    let last = metrics(&out)
        .into_iter()
        .rfind(|line| line.get("eval_mlm_loss").is_some())
        .expect("an evaluation");
    // Settings of measuring are the run's.
    let data = shards.display().to_string();
    let command = [
        "pretrain",
        "--evaluate",
        "--init-from",
        &out,
        "--data",
        &data,
    ];
    let mut all = command.map(str::to_owned).to_vec();
    let before = fs::read_dir(&out).expect("the run").count();
    let measured = electra(&[&all[..], &["--json".to_owned()]].concat()).json();
    for name in ["eval_mlm_loss", "eval_rtd_loss", "eval_rtd_auc"] {
        assert_eq!(measured[name], last[name], "{name}");
    }
    let shown = electra(&all).ok();
    assert!(
        shown.contains("mlm_loss") && !shown.contains("eval_"),
        "{shown}"
    );
    assert_eq!(fs::read_dir(&out).expect("the run").count(), before);
    all.extend(["--set", "held_out=0"].map(str::to_owned));
    electra(&all).fails(1, &["held_out is 0"]);
}

#[test]
fn probes_are_recorded_and_wrong_ones_named() {
    let (dir, shards) = corpus();
    let labelled = path(&dir, "labelled.tsv");
    let row = |i: usize| format!("word{} word{}\t{}\n", i % 50, i * 7 % 50, i % 2);
    fs::write(&labelled, (0..100).map(row).collect::<String>()).expect("a file");
    let out = path(&dir, "run");
    for (probe, code, parts) in [
        ("sst2", 2, vec!["TASK=FILE", "sst2"]),
        ("sst2=", 2, vec!["TASK=FILE"]),
        ("sst3=x.tsv", 1, vec!["--probe sst3", "sst2"]),
        ("sst2=nowhere.tsv", 1, vec!["--probe", "nowhere.tsv"]),
    ] {
        pretrain(&shards, &out, &["--probe", probe]).fails(code, &parts);
        assert!(!Path::new(&out).exists(), "{probe}");
    }
    pretrain(&shards, &out, &["--probe_steps", "5"]).fails(2, &["--probe"]);
    let probe = format!("sst2={labelled}");
    let ran = pretrain(&shards, &out, &["--probe", &probe, "--probe-steps", "25"]);
    ran.says(&["held out", "probe at step 50:", "sst2_accuracy"]);
    ran.ok();
    let steps: Vec<u64> = metrics(&out)
        .iter()
        .filter(|line| line["probe_sst2_accuracy"].is_number())
        .filter_map(|line| line["step"].as_u64())
        .collect();
    assert_eq!(steps, [25, 50, STEPS]);
}

#[test]
fn wrong_data_is_named() {
    let (dir, shards) = corpus();
    let out = path(&dir, "run");
    pretrain(&dir.path().join("nowhere"), &out, &[]).fails(1, &["nowhere"]);
    let vocab = path(&dir, "other-vocab");
    let text = path(&dir, "text.txt");
    electra(&["vocab", "--input", &text, "--size", "60", "--out", &vocab]).ok();
    pretrain(&shards, &out, &["--tokenizer", &vocab]).fails(1, &["tokenizer"]);

    let shard = fs::read_dir(&shards)
        .expect("shards")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().contains("shard"))
        })
        .expect("a shard");
    let name = shard
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let intact = fs::read(&shard).expect("a shard");
    fs::write(&shard, &intact[..intact.len() - 9]).expect("a writable shard");
    pretrain(&shards, &out, &[]).fails(1, &[&name]);
    let mut altered = intact.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 0x40;
    fs::write(&shard, &altered).expect("a writable shard");
    pretrain(&shards, &out, &[]).fails(1, &[&name]);
    assert!(!Path::new(&out).exists(), "a refused run leaves nothing");
}

#[test]
fn wrong_directories_are_named_and_left_as_they_are() {
    let (dir, shards) = corpus();
    let out = path(&dir, "run");
    pretrain(&shards, &out, &["--resume"]).fails(1, &[&out]);
    pretrain(&shards, &out, &[]).ok();
    let before = metrics(&out);
    pretrain(&shards, &out, &["--set", "learning_rate=0.5"]).fails(1, &["learning_rate", "0.5"]);
    pretrain(&shards, &out, &["--seed", "9"]).fails(1, &["seed", "9"]);
    assert_eq!(before, metrics(&out));

    let other = path(&dir, "other");
    fs::create_dir(&other).expect("a writable directory");
    fs::write(Path::new(&other).join("thesis.txt"), "mine").expect("a writable directory");
    pretrain(&shards, &other, &[]).fails(1, &[&other]);
    assert_eq!(fs::read_dir(&other).expect("it is there").count(), 1);

    let quickstart = electra(&["quickstart", "--out", &other]);
    quickstart.fails(1, &["thesis.txt", "choose another with --out"]);
    assert_eq!(fs::read_dir(&other).expect("it is there").count(), 1);

    let file = path(&dir, "file");
    fs::write(&file, "").expect("a writable directory");
    pretrain(&shards, &file, &[]).fails(1, &[&file]);
}

#[test]
fn wrong_models_to_begin_with_are_named() {
    let (dir, shards) = corpus();
    let (first, out) = (path(&dir, "first"), path(&dir, "run"));
    pretrain(&shards, &first, &[]).ok();
    let weights = Path::new(&first).join("discriminator/model.safetensors");
    let intact = fs::read(&weights).expect("weights");
    let begin = |from: &str| {
        let mut all = arguments_without_sizes(&shards, &out);
        all.extend(["--init-from".to_owned(), from.to_owned()]);
        electra(&all)
    };
    let fails = |parts: &[&str]| begin(&first).fails(1, parts);
    pretrain(&shards, &out, &["--init-from", &first]).fails(1, &["embedding_size", "--init-from"]);

    // The same number of entries in another order is another vocabulary.
    let vocab = Path::new(&first).join("discriminator/tokenizer.json");
    let words = fs::read_to_string(&vocab).expect("a tokenizer");
    let swapped = words
        .replace("\"word1\"", "\"?\"")
        .replace("\"word2\"", "\"word1\"")
        .replace("\"?\"", "\"word2\"");
    assert_ne!(words, swapped);
    fs::write(&vocab, swapped).expect("writable");
    fails(&["tokenizer", "discriminator"]);
    fs::write(&vocab, words).expect("writable");

    fs::write(&weights, &intact[..intact.len() / 2]).expect("writable");
    fails(&["model.safetensors"]);
    let mut nan = intact.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &nan).expect("writable");
    fails(&["model.safetensors", "NaN"]);
    fs::write(&weights, &intact).expect("writable");

    let config = Path::new(&first).join("discriminator/config.json");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(
        &config,
        text.replace("\"intermediate_size\": 64", "\"intermediate_size\": 96"),
    )
    .expect("writable");
    fails(&["model.safetensors", "output.dense", "96"]);
    fs::write(&config, text).expect("writable");

    begin("no-such-model").fails(1, &["no-such-model"]);
    fs::remove_dir_all(Path::new(&first).join("generator")).expect("writable");
    fails(&["generator"]);
}

#[test]
fn a_run_goes_on_when_the_models_it_began_with_are_gone() {
    let (dir, shards) = corpus();
    let (first, out) = (path(&dir, "first"), path(&dir, "run"));
    pretrain(&shards, &first, &[]).ok();
    let begin = |settings: &[&str]| {
        let mut all = arguments_without_sizes(&shards, &out);
        all.extend(["--init-from".to_owned(), first.clone()]);
        all.extend(settings.iter().map(|s| (*s).to_owned()));
        electra(&all)
    };
    begin(&[]).ok();
    fs::remove_dir_all(&first).expect("writable");
    let again = begin(&[]);
    again.says(&["goes on without", "done already"]);
    again.ok();
    begin(&["--set", "learning_rate=0.5"]).fails(1, &["learning_rate"]);
}
