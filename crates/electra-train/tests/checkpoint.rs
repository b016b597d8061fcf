//! Checkpoints: whole after any crash, and never believed when damaged.

use std::fs;
use std::path::Path;

use electra_train::checkpoint::{Checkpoint, CheckpointError, CheckpointStore};
use serde_json::{Value, json};

const LEN: usize = 300_000;

fn values(seed: u32, len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| f32::from_bits(0x3f00_0000 ^ (i.wrapping_mul(seed) >> 9)))
        .collect()
}

fn state(step: u64) -> Value {
    json!({ "cursor": step * 16, "seed": u64::MAX, "average": 0.1 + 0.2, "bad_steps": [] })
}

fn save(store: &CheckpointStore, step: u64, len: usize) {
    let (p, m) = (
        values(step as u32 + 3, len),
        values(step as u32 + 5, len / 2),
    );
    store
        .save(
            step,
            &[("params", &p), ("adam_m", &m), ("empty", &[])],
            &state(step),
        )
        .unwrap();
}

fn load(
    store: &CheckpointStore,
    len: usize,
) -> Result<Option<(u64, Vec<String>)>, CheckpointError> {
    let (mut p, mut m) = (vec![0.0; len], vec![0.0; len / 2]);
    let arrays = &mut [
        ("adam_m", &mut m[..]),
        ("empty", &mut []),
        ("params", &mut p[..]),
    ];
    let Some(restored) = store.load_newest_into(arrays)? else {
        return Ok(None);
    };
    assert_eq!(p, values(restored.step as u32 + 3, len));
    assert_eq!(m, values(restored.step as u32 + 5, len / 2));
    assert_eq!(restored.state, state(restored.step));
    Ok(Some((restored.step, restored.warnings)))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_saved_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 5).unwrap();
    assert_eq!(load(&store, LEN).unwrap(), None);
    save(&store, 1000, LEN);
    assert_eq!(load(&store, LEN).unwrap(), Some((1000, vec![])));

    let odd = [f32::NAN, -0.0, f32::INFINITY, f32::MIN_POSITIVE / 2.0];
    let path = store
        .save(123_456_789, &[("odd", &odd)], &state(0))
        .unwrap();
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!((read.step, &read.state), (123_456_789, &state(0)));
    assert_eq!(read.arrays[0].0, "odd");
    assert_eq!(
        read.arrays[0]
            .1
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>(),
        odd.map(f32::to_bits)
    );
}

#[test]
fn a_change_of_any_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 0).unwrap();
    save(&store, 7, 12);
    let path = store.path_of(7);
    assert_eq!(
        names(&path),
        ["arrays.safetensors", "manifest.json", "state.json"]
    );
    for name in names(&path) {
        let file = path.join(&name);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            for bit in [0, 3, 6] {
                let mut altered = whole.clone();
                altered[at] ^= 1 << bit;
                fs::write(&file, &altered).unwrap();
                match Checkpoint::read(&path) {
                    Err(CheckpointError::Damaged { .. }) => {}
                    other => panic!("{name}, byte {at}, bit {bit}: {other:?}"),
                }
            }
        }
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..len]).unwrap();
            let error = Checkpoint::read(&path).unwrap_err().to_string();
            assert!(error.contains(&name), "{name} cut to {len}: {error}");
        }
        fs::write(&file, [&whole[..], b"\0"].concat()).unwrap();
        Checkpoint::read(&path).unwrap_err();
        fs::remove_file(&file).unwrap();
        let error = Checkpoint::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(&name) && error.contains("missing"),
            "{error}"
        );
        fs::write(&file, &whole).unwrap();
    }
    assert_eq!(load(&store, 12).unwrap(), Some((7, vec![])));
}

#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_previous_one_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 2).unwrap();
    save(&store, 10, LEN);
    save(&store, 20, LEN);
    let file = store.path_of(20).join("arrays.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();

    let (step, warnings) = load(&store, LEN).unwrap().unwrap();
    assert_eq!((step, warnings.len()), (10, 1));
    let warning = &warnings[0];
    assert!(
        warning.contains("step-00000020") && warning.contains("`adam_m`"),
        "{warning}"
    );
    assert_eq!(
        names(dir.path()),
        ["damaged-step-00000020", "step-00000010"]
    );

    // The run goes on past the same step, and the damaged one counts for nothing.
    save(&store, 20, LEN);
    save(&store, 30, LEN);
    assert_eq!(store.steps().unwrap(), [20, 30]);
    assert_eq!(load(&store, LEN).unwrap(), Some((30, vec![])));
}

#[test]
fn only_damaged_checkpoints_are_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 2).unwrap();
    for step in [10, 20] {
        save(&store, step, 8);
        fs::write(store.path_of(step).join("state.json"), "{}").unwrap();
    }
    let error = load(&store, 8).unwrap_err().to_string();
    for part in [
        "step-00000010",
        "step-00000020",
        "state.json",
        "another output",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert_eq!(store.steps().unwrap(), [10, 20]);
}

#[test]
fn a_checkpoint_of_another_model_is_refused_by_array() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 0).unwrap();
    save(&store, 1, 8);
    let error = load(&store, 10).unwrap_err().to_string();
    assert!(
        error.contains("`params` has 8 values there, 10 here"),
        "{error}"
    );
    let error = store
        .load_newest_into(&mut [("weights", &mut [])])
        .unwrap_err()
        .to_string();
    assert!(error.contains("no array `weights`"), "{error}");
    let error = store
        .load_newest_into(&mut [("empty", &mut [])])
        .unwrap_err()
        .to_string();
    assert!(error.contains("`params`, this run has none"), "{error}");
}

#[test]
fn the_newest_are_kept_and_none_is_pruned_at_zero() {
    for (keep, left) in [
        (1, vec![100_000_000]),
        (3, vec![20, 99, 100_000_000]),
        (0, vec![1, 20, 99, 100_000_000]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path(), keep).unwrap();
        for step in [1, 20, 99, 100_000_000] {
            save(&store, step, 4);
        }
        assert_eq!(store.steps().unwrap(), left, "keep {keep}");
        assert_eq!(names(dir.path()).len(), left.len());
    }
}

#[test]
fn what_a_killed_process_left_is_cleared_away_and_never_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 2).unwrap();
    save(&store, 10, 8);
    let half = dir.path().join(".tmp-step-00000020");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("arrays.safetensors"), [0; 100]).unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();

    let store = CheckpointStore::open(dir.path(), 2).unwrap();
    assert_eq!(load(&store, 8).unwrap(), Some((10, vec![])));
    assert_eq!(names(dir.path()), ["notes.txt", "step-00000010"]);
}

#[test]
fn saving_a_step_again_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 2).unwrap();
    save(&store, 10, 8);
    save(&store, 10, 8);
    assert_eq!(names(dir.path()), ["step-00000010"]);
    assert_eq!(load(&store, 8).unwrap(), Some((10, vec![])));
}

/// The kernel itself refuses the write: a child process with a limit on file sizes.
#[cfg(unix)]
#[test]
fn a_full_disk_in_the_middle_leaves_the_earlier_checkpoint_and_says_what_to_do() {
    const DIRECTORY: &str = "ELECTRA_TEST_LIMITED_DIRECTORY";
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        let store = CheckpointStore::open(dir, 1).unwrap();
        let error = store
            .save(20, &[("params", &values(1, LEN))], &state(20))
            .unwrap_err();
        println!("message: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path(), 1).unwrap();
    save(&store, 10, 8);
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 600; exec \"$0\" --exact --nocapture \"$1\"",
        ])
        .arg(std::env::current_exe().unwrap())
        .arg("a_full_disk_in_the_middle_leaves_the_earlier_checkpoint_and_says_what_to_do")
        .env(DIRECTORY, dir.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{shown}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for part in [
        ".tmp-step-00000020/arrays.safetensors",
        "(1.2 MB)",
        "ulimit -f",
        "untouched",
    ] {
        assert!(shown.contains(part), "{part} is not in: {shown}");
    }
    assert_eq!(names(dir.path()), ["step-00000010"]);
    assert_eq!(load(&store, 8).unwrap(), Some((10, vec![])));
}

/// A child process saves one checkpoint after the other until it is killed.
#[cfg(unix)]
#[test]
fn a_process_killed_at_any_instant_leaves_its_newest_whole_checkpoint() {
    const DIRECTORY: &str = "ELECTRA_TEST_KILLED_DIRECTORY";
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        let store = CheckpointStore::open(dir, 2).unwrap();
        let begun = load(&store, LEN).unwrap().map_or(0, |(step, _)| step);
        for step in begun + 1.. {
            save(&store, step, LEN);
            println!("saved {step}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut reached = 0;
    // Longer ones only where a machine is too slow to save anything in 120 ms.
    let delays = [1, 5, 9, 14, 22, 31, 43, 57, 80, 120];
    for delay_ms in delays.into_iter().chain((1..=20).map(|i| 500 * i)) {
        if delay_ms > 120 && reached > 0 {
            break;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("a_process_killed_at_any_instant_leaves_its_newest_whole_checkpoint")
            .env(DIRECTORY, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        child.kill().unwrap();
        let shown = child.wait_with_output().unwrap().stdout;
        let shown = String::from_utf8(shown).unwrap();
        let said = shown
            .lines()
            .filter_map(|line| line.strip_prefix("saved ")?.parse().ok())
            .max();
        reached = said.unwrap_or(reached).max(reached);

        let store = CheckpointStore::open(dir.path(), 2).unwrap();
        let found = load(&store, LEN).unwrap().unwrap_or_default();
        assert!(
            found.0 >= reached,
            "killed after {delay_ms} ms: {found:?}, said {reached}"
        );
        assert!(found.1.is_empty(), "{found:?}");
        assert!(
            names(dir.path())
                .iter()
                .all(|name| name.starts_with("step-"))
        );
        assert!(store.steps().unwrap().len() <= 3);
        reached = found.0;
    }
    assert!(reached > 0);
}
