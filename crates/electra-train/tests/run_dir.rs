//! A run directory belongs to one run and to one process.

use std::fs;
use std::path::Path;

use electra_train::run_dir::{Opening, RunDir, RunDirError, RunFile, RunSettings};
use serde_json::{Map, Value, json};

fn settings() -> Map<String, Value> {
    let value = json!({
        "learning_rate": 5e-4,
        "train_batch_size": 128,
        "keep_checkpoint_max": 5,
        "init_from": null,
        "data": { "path": "shards", "tokenizer_hash": "ab12" },
    });
    value.as_object().unwrap().clone()
}

fn open(
    root: &Path,
    resolved: &Map<String, Value>,
    must_exist: bool,
) -> Result<(RunDir, Opening), RunDirError> {
    let may_change = &["keep_checkpoint_max", "data.path"];
    RunDir::open(
        root,
        &RunSettings {
            kind: "pretrain",
            resolved,
            defaults: &Map::new(),
            may_change,
            must_exist,
        },
    )
}

#[test]
fn the_same_command_finds_its_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("new/run");
    let (run, opening) = open(&root, &settings(), false).unwrap();
    assert_eq!(opening, Opening::Fresh);
    assert_eq!(run.root(), root);
    drop(run);
    for must_exist in [false, true] {
        let (_, opening) = open(&root, &settings(), must_exist).unwrap();
        assert_eq!(opening, Opening::Existing { changed: vec![] });
    }
    assert_eq!(RunFile::read(&root).unwrap().settings, settings());
}

#[test]
fn other_settings_and_data_are_refused_each_by_name_with_both_values() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), &settings(), false).unwrap();
    let mut other = settings();
    other["learning_rate"] = json!(1e-3);
    other["data"]["tokenizer_hash"] = json!("cd34");
    other["keep_checkpoint_max"] = json!(1);
    other.remove("train_batch_size");
    other.insert("temperature".into(), json!(2.0));
    let before = fs::read(dir.path().join("run.json")).unwrap();
    let error = open(dir.path(), &other, false).unwrap_err().to_string();
    for part in [
        "learning_rate: 0.0005 there, 0.001 now",
        "data.tokenizer_hash: \"ab12\" there, \"cd34\" now",
        "train_batch_size: 128 there, not set now",
        "temperature: not set there, 2.0 now",
        "another output directory",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(!error.contains("keep_checkpoint_max"), "{error}");
    assert_eq!(fs::read(dir.path().join("run.json")).unwrap(), before);
}

#[test]
fn settings_that_may_change_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), &settings(), false).unwrap();
    let mut other = settings();
    other["keep_checkpoint_max"] = json!(1);
    other["data"]["path"] = json!("/elsewhere/shards");
    other["train_batch_size"] = json!(128.0);
    other.remove("init_from");
    let (_, opening) = open(dir.path(), &other, true).unwrap();
    let Opening::Existing { changed } = opening else {
        panic!("{opening:?}")
    };
    let mut keys: Vec<_> = changed.iter().map(|change| change.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["data.path", "keep_checkpoint_max"]);
    assert_eq!(
        RunFile::read(dir.path()).unwrap().settings["keep_checkpoint_max"],
        json!(1)
    );
}

#[test]
fn resume_insists_on_a_run() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_path_buf(), dir.path().join("missing")] {
        let error = open(&path, &settings(), true).unwrap_err();
        assert!(matches!(error, RunDirError::NoRun { .. }), "{error}");
        assert!(error.to_string().contains("--resume"), "{error}");
        assert!(!path.join(".lock").exists());
    }
}

#[test]
fn a_directory_with_other_files_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let error = open(dir.path(), &settings(), false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`thesis.tex`") && error.contains("empty output directory"),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_start_killed_before_its_first_file_was_whole_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".lock"), "").unwrap();
    fs::write(dir.path().join(".run.json.tmp"), "{\"form").unwrap();
    assert_eq!(
        open(dir.path(), &settings(), false).unwrap().1,
        Opening::Fresh
    );
}

#[test]
fn another_kind_of_run_and_a_damaged_run_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), &settings(), false).unwrap();
    let resolved = &settings();
    let other = RunSettings {
        kind: "finetune",
        resolved,
        defaults: &Map::new(),
        may_change: &[],
        must_exist: false,
    };
    let error = RunDir::open(dir.path(), &other).unwrap_err().to_string();
    assert!(
        error.contains("electra pretrain") && error.contains("electra finetune"),
        "{error}"
    );

    fs::write(dir.path().join("run.json"), "{\"format\":1").unwrap();
    let error = open(dir.path(), &settings(), false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("run.json is damaged"), "{error}");
}

#[test]
fn two_processes_cannot_work_in_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path(), &settings(), false).unwrap();
    let error = open(dir.path(), &settings(), false).unwrap_err();
    assert!(matches!(error, RunDirError::Locked { .. }), "{error}");
    drop(first);
    open(dir.path(), &settings(), false).unwrap();
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("run")] {
        let error = open(&path, &settings(), false).unwrap_err().to_string();
        assert!(
            error.contains("cannot write") && error.contains("another output"),
            "{error}"
        );
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}

/// Skipped for root, who may write anywhere.
#[cfg(unix)]
#[test]
fn a_directory_without_write_permission_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let locked = dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(locked.join("probe"), "").is_ok() {
        return;
    }
    let error = open(&locked, &settings(), false).unwrap_err().to_string();
    assert!(error.contains("make it writable"), "{error}");
}
