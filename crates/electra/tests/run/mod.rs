//! Runs the `electra` binary as a shell would, and finds the files that tests read.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a run of the binary came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Stdout of a run that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stdout
    }

    /// The one JSON object of a run that must have succeeded.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let mut objects = self.json_lines();
        assert_eq!(objects.len(), 1, "{objects:?}");
        objects.remove(0)
    }

    /// The JSON objects of a run that must have succeeded, one a line.
    #[track_caller]
    pub fn json_lines(self) -> Vec<serde_json::Value> {
        let lines = self.ok();
        let parsed = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect(line));
        parsed.collect()
    }

    /// Asserts an exit code, nothing on stdout, and a message with all of `parts`.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "{}", self.stderr);
        self.says(parts);
    }

    /// Asserts that stderr has all of `parts` and no panic.
    #[track_caller]
    pub fn says(&self, parts: &[&str]) {
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no {part:?} in: {}",
                self.stderr
            );
        }
    }
}

/// The binary, without what the environment would change.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_electra"));
    for name in [
        "ELECTRA_DEVICE",
        "ELECTRA_PRECISION",
        "ELECTRA_THREADS",
        "ELECTRA_ISA",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs `electra` with arguments.
pub fn electra<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Ran {
    electra_with_input(arguments, b"")
}

/// Runs `electra` with arguments and standard input.
pub fn electra_with_input<S: AsRef<std::ffi::OsStr>>(arguments: &[S], input: &[u8]) -> Ran {
    let mut child = command()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A program that fails early does not read its input.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("the binary ends");
    writer.join().expect("written");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

/// A golden model directory.
pub fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    path.join(name).display().to_string()
}

/// A file of the shared data beside the repository; `None`, with the reason printed, where it is
/// not there, but never so in CI.
pub fn shared_data(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{} is missing",
        path.display()
    );
    eprintln!("skipped: {} is not there", path.display());
    None
}

/// Writes a file and returns its path.
pub fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("has a parent")).expect("a directory");
    std::fs::write(&path, content).expect("written");
    path.display().to_string()
}

/// Copies a folder of files.
pub fn copy_dir(from: impl AsRef<Path>, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// Every file of a directory by name, subfolders left out.
pub fn files(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(&path).expect("read"))
        })
        .filter(|(name, _)| !name.starts_with('.'))
        .collect()
}
