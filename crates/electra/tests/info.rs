//! `electra info` says what a directory holds, and what is wrong with it.

mod run;

use run::{copy_dir, electra, golden, write};
use serde_json::json;

fn info(path: &str) -> serde_json::Value {
    electra(&["info", path, "--json"]).json()
}

#[test]
fn a_model_is_described_with_its_problems() {
    let found = info(&golden("tiny-generator"));
    assert_eq!(found["holds"], "model");
    assert_eq!(found["kind"], "generator");
    assert_eq!(found["vocab"], 101);
    assert_eq!(found["problems"], json!([]));
    let text = electra(&["info", &golden("tiny-discriminator")]).ok();
    assert!(
        text.contains("ElectraForPreTraining") && text.contains("none found"),
        "{text}"
    );

    let dir = tempfile::tempdir().unwrap();
    copy_dir(golden("tiny-discriminator"), dir.path());
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, &bytes).unwrap();
    let model = dir.path().display().to_string();
    let problems = info(&model)["problems"].to_string();
    assert!(
        problems.contains("NaN") && problems.contains("model.safetensors"),
        "{problems}"
    );
    let arguments = ["predict", "--as", "detect", "--model", &model];
    electra(&arguments).fails(1, &["holds NaN at element", "model.safetensors"]);
}

#[test]
fn shards_are_verified_and_a_tokenizer_is_described() {
    let dir = tempfile::tempdir().unwrap();
    let input = write(dir.path(), "a.txt", "one two three\n\nfour five\n");
    let [vocab, out] = ["vocab", "out"].map(|n| dir.path().join(n).display().to_string());
    electra(&["vocab", "--input", &input, "--size", "60", "--out", &vocab]).ok();
    let found = info(&vocab);
    assert_eq!(
        (&found["holds"], &found["lowercase"]),
        (&json!("tokenizer"), &json!(true))
    );
    let prepare = [
        "prepare",
        "--input",
        &input,
        "--tokenizer",
        &vocab,
        "--out",
        &out,
    ];
    electra(&[&prepare[..], &["--shard", "0/2"]].concat()).ok();
    electra(&["info", &out]).fails(1, &["in the making", "--merge"]);
    std::fs::remove_dir_all(&out).unwrap();
    electra(&prepare).ok();
    let found = info(&out);
    assert_eq!(
        (&found["holds"], &found["documents"]),
        (&json!("shards"), &json!(2))
    );
    assert_eq!(found["problems"], json!([]));

    let shard = dir.path().join("out/shard-00000.bin");
    let good = std::fs::read(&shard).unwrap();
    let mut bad = good.clone();
    bad[128..130].copy_from_slice(&60_000_u16.to_le_bytes());
    std::fs::write(&shard, &bad).unwrap();
    let problems = info(&out)["problems"].to_string();
    assert!(problems.contains("token 60000 at position 0"), "{problems}");
    bad[128..130].copy_from_slice(&[5, 0]);
    bad[130..132].copy_from_slice(&[5, 0]);
    std::fs::write(&shard, &bad).unwrap();
    let problems = info(&out)["problems"].to_string();
    assert!(problems.contains("checksum"), "{problems}");
    std::fs::write(&shard, &good[..good.len() - 1]).unwrap();
    let text = electra(&["info", &out]).ok();
    assert!(text.contains("truncated"), "{text}");
}

#[test]
fn a_run_is_described_with_its_last_measurements() {
    let dir = tempfile::tempdir().unwrap();
    let settings = json!({ "num_train_steps": 100, "seed": 7 });
    let run = json!({ "format": 1, "kind": "pretrain", "electra_version": "0.1.0", "settings": settings });
    write(dir.path(), "run.json", run.to_string());
    let step = |n: u32| json!({ "step": n, "loss": 3.5, "lr": 0.1, "grad_norm": 1.0, "tokens": 64 * n, "tokens_per_s": 10.0 });
    let eval = json!({ "step": 20, "eval_mlm_loss": 4.5, "eval_tokens": 64 });
    write(
        dir.path(),
        "metrics.jsonl",
        format!("{}\n{eval}\n{}\n", step(20), step(21)),
    );
    std::fs::create_dir_all(dir.path().join("checkpoints/step-00000020")).unwrap();
    let path = dir.path().display().to_string();
    let found = info(&path);
    assert_eq!(
        (&found["holds"], &found["kind"]),
        (&json!("run"), &json!("pretrain"))
    );
    assert_eq!(
        (&found["steps"], &found["last_checkpoint"]),
        (&json!(21), &json!(20))
    );
    assert_eq!(found["last_evaluation"]["eval_mlm_loss"], 4.5);
    let text = electra(&["info", &path]).ok();
    assert!(
        text.contains("21 of 100") && text.contains("seed = 7"),
        "{text}"
    );
    write(dir.path(), "run.json", "{");
    electra(&["info", &path]).fails(1, &["run.json is damaged"]);
}

#[test]
fn anything_else_is_named_and_no_directory_means_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    electra(&["info", &path]).fails(1, &[&path, "neither a model (config.json)"]);
    let file = write(dir.path(), "a.txt", "x");
    electra(&["info", &file]).fails(1, &["a.txt is a file"]);
    electra(&["info", "no/such/folder"]).fails(1, &["there is no folder \"no/such/folder\""]);
    let machine = electra(&["info", "--json"]).json();
    assert!(machine["cores"].as_u64() > Some(0));
}

#[test]
fn devices_are_listed_and_one_that_is_not_there_is_named() {
    let listed = electra(&["info", "--devices", "--json"]).json();
    assert_eq!(listed["devices"][0]["device"], "cpu");
    // Whether built with CUDA or not, whether there is a driver or not: a reason, or devices.
    let cuda = listed["devices"].as_array().map_or(0, Vec::len) > 1;
    assert_eq!(listed["no_cuda"].is_string(), !cuda, "{listed}");
    let model = golden("tiny-discriminator");
    let arguments = ["predict", "--as", "detect", "--model", &model, "--device"];
    let on = |device: &'static str| electra(&[&arguments[..], &[device]].concat());
    on("cuda:99").fails(1, &["cuda"]);
    on("gpu").fails(2, &["auto, cpu, cuda or cuda:N"]);
    let text = electra(&["info", "--selftest", "--devices"]);
    text.fails(2, &["cannot be used with"]);
}

#[test]
fn the_checks_pass_on_the_cpu() {
    let arguments = ["info", "--selftest", "--device", "cpu", "--json"];
    let checked = electra(&arguments).json();
    assert_eq!(checked["failed"], 0, "{checked}");
    assert!(checked["checks"].as_u64() > Some(500), "{checked}");
    let training = checked["outcomes"].to_string();
    assert!(training.contains("training: parameters at the end"));
}
