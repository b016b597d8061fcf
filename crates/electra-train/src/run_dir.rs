//! The directory of one run: what it was started with, who works in it now, where its files are.
//!
//! ```text
//! run.json          kind of run and resolved settings
//! metrics.jsonl     one line a measurement
//! tensorboard/      the same as events
//! checkpoints/      what the run goes on from
//! report.html       the run at a glance
//! discriminator/    generator/    the models, as of the last checkpoint
//! .lock             held while a process works here
//! ```

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use electra_model::files::atomic::{WriteError, path_aside, replace_file};

pub(crate) const RUN_FILE: &str = "run.json";
const LOCK_FILE: &str = ".lock";
const FORMAT: u32 = 1;

/// Why a directory cannot be worked in.
#[derive(Debug, Error)]
pub enum RunDirError {
    /// The directory or a file in it cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The directory or a file in it cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory holds files that no run has written.
    #[error(
        "{path} is not empty and is not the directory of a run (it holds `{example}` and no \
         {RUN_FILE}). Choose a new or empty output directory", path = path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the files in it.
        example: String,
    },
    /// There is no run to resume.
    #[error(
        "cannot resume: {path} is not the directory of a run (there is no {RUN_FILE} in it). Check \
         the path, or leave out --resume to start a run there", path = path.display()
    )]
    NoRun {
        /// The directory.
        path: PathBuf,
    },
    /// `run.json` is not what this version writes.
    #[error(
        "{path} is damaged or of another version: {detail}. Restore it from a backup or choose \
         another output directory", path = path.display()
    )]
    BadRunFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The directory is of another kind of run.
    #[error(
        "{path} holds a run of `electra {found}`, this is `electra {expected}`. Choose another \
         output directory", path = path.display()
    )]
    OtherKind {
        /// The directory.
        path: PathBuf,
        /// Kind recorded there.
        found: String,
        /// Kind asked for.
        expected: String,
    },
    /// The directory is of a run with other settings or data.
    #[error(
        "the run in {path} was started with other settings:\n{list}\nGo on with the settings it was \
         started with, or choose another output directory",
        path = path.display(),
        list = changes.iter().map(|c| format!("  {c}")).collect::<Vec<_>>().join("\n")
    )]
    OtherSettings {
        /// The directory.
        path: PathBuf,
        /// Every setting that differs and may not.
        changes: Vec<SettingChange>,
    },
    /// A run whose checkpoints are gone.
    #[error(
        "{path}: this run has written checkpoints, and {checkpoints} holds none any more; to begin \
         again would overwrite its models and metrics. Restore them, or choose another output \
         directory", path = path.display(), checkpoints = checkpoints.display()
    )]
    CheckpointsGone {
        /// The run directory.
        path: PathBuf,
        /// Where the checkpoints were.
        checkpoints: PathBuf,
    },
    /// Another process works in the directory.
    #[error(
        "another process is working in {path}. Wait until it is done, or choose another output \
         directory", path = path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

/// One setting that is not what the run was started with.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingChange {
    /// Dotted name, such as `data.tokenizer_hash`.
    pub key: String,
    /// Value that the run was started with, if it had one.
    pub recorded: Option<Value>,
    /// Value given now, if there is one.
    pub given: Option<Value>,
}

impl fmt::Display for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "not set".to_owned(),
        };
        write!(
            f,
            "{}: {} there, {} now",
            self.key,
            shown(&self.recorded),
            shown(&self.given)
        )
    }
}

/// What a run is started with.
#[derive(Clone, Copy, Debug)]
pub struct RunSettings<'a> {
    /// The subcommand, such as `pretrain`.
    pub kind: &'a str,
    /// Every setting that decides the outcome, defaults resolved, and what identifies the data.
    pub resolved: &'a Map<String, Value>,
    /// What a setting is in a run that says nothing of it, because it was begun before there was one.
    pub defaults: &'a Map<String, Value>,
    /// Settings that may differ when the run goes on; a name covers what is nested below it.
    pub may_change: &'a [&'a str],
    /// `--resume`: the directory must be a run already.
    pub must_exist: bool,
}

/// How a run directory was found.
#[derive(Clone, Debug, PartialEq)]
pub enum Opening {
    /// A new run was begun in it.
    Fresh,
    /// It holds this run already. It goes on from its newest checkpoint, or from step 0 if none
    /// was written yet.
    Existing {
        /// Settings that may change and did; `run.json` holds the new values now.
        changed: Vec<SettingChange>,
    },
}

/// Contents of `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Version of the layout of the run directory.
    pub format: u32,
    /// The subcommand that the run is of.
    pub kind: String,
    /// Version of the program that wrote the file last.
    pub electra_version: String,
    /// Resolved settings.
    pub settings: Map<String, Value>,
}

impl RunFile {
    /// Reads `run.json` of the run in `dir`.
    ///
    /// # Errors
    /// [`RunDirError::NoRun`], [`RunDirError::Read`] or [`RunDirError::BadRunFile`].
    pub fn read(dir: &Path) -> Result<Self, RunDirError> {
        let path = dir.join(RUN_FILE);
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => RunDirError::NoRun {
                path: dir.to_path_buf(),
            },
            _ => RunDirError::Read {
                path: path.clone(),
                source,
            },
        })?;
        let bad = |detail| RunDirError::BadRunFile {
            path: path.clone(),
            detail,
        };
        let file: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if file.format != FORMAT {
            return Err(bad(format!(
                "it has format {}, this version reads format {FORMAT}",
                file.format
            )));
        }
        Ok(file)
    }

    fn write(&self, dir: &Path) -> Result<(), WriteError> {
        replace_file(&dir.join(RUN_FILE), |writer| {
            serde_json::to_writer_pretty(&mut *writer, self)?;
            writer.write_all(b"\n")
        })
    }
}

/// A run directory that this process works in. No other process can open it before this is dropped
/// or the process ends, however it ends.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Begins a run in `root`, which is created where it does not exist, or finds this very run
    /// there.
    ///
    /// # Errors
    /// A [`RunDirError`] if the directory cannot be written, holds other files, a run of another
    /// kind or with other settings, or is in use. Nothing in it is changed then.
    pub fn open(
        root: impl Into<PathBuf>,
        settings: &RunSettings<'_>,
    ) -> Result<(Self, Opening), RunDirError> {
        let root = root.into();
        let exists = root.join(RUN_FILE).exists();
        if !exists && settings.must_exist {
            return Err(RunDirError::NoRun { path: root });
        }
        if !exists {
            refuse_foreign_files(&root)?;
            fs::create_dir_all(&root).map_err(|e| WriteError::new(&root, e))?;
        }
        let lock = lock(&root)?;
        let given = RunFile {
            format: FORMAT,
            kind: settings.kind.to_owned(),
            electra_version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: settings.resolved.clone(),
        };
        // Looked for again: another process may have begun the run before the lock was ours.
        let opening = match RunFile::read(&root) {
            Ok(recorded) => {
                let changed = allowed_changes(&root, recorded, settings)?;
                if !changed.is_empty() {
                    given.write(&root)?;
                }
                Opening::Existing { changed }
            }
            Err(RunDirError::NoRun { .. }) => {
                given.write(&root)?;
                Opening::Fresh
            }
            Err(error) => return Err(error),
        };
        Ok((Self { root, _lock: lock }, opening))
    }

    /// Refuses to begin at step 0 where a checkpoint has been written before.
    ///
    /// # Errors
    /// [`RunDirError::CheckpointsGone`].
    pub fn refuse_beginning_again(&self) -> Result<(), RunDirError> {
        // Every checkpoint is followed by a report.
        match self.report().exists() {
            false => Ok(()),
            true => Err(RunDirError::CheckpointsGone {
                path: self.root.clone(),
                checkpoints: self.checkpoints(),
            }),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Directory of the TensorBoard events.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Directory of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// `report.html`.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// Directory of an exported model, such as `discriminator`.
    pub fn model(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// Refuses a directory in which anything lies that a killed first start does not leave.
fn refuse_foreign_files(root: &Path) -> Result<(), RunDirError> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(WriteError::new(root, e).into());
        }
        Err(source) => {
            return Err(RunDirError::Read {
                path: root.to_path_buf(),
                source,
            });
        }
    };
    let aside = path_aside(Path::new(RUN_FILE));
    for entry in entries {
        let name = entry
            .map_err(|source| RunDirError::Read {
                path: root.to_path_buf(),
                source,
            })?
            .file_name();
        if name != LOCK_FILE && name != aside.as_os_str() {
            let example = name.to_string_lossy().into_owned();
            return Err(RunDirError::NotEmpty {
                path: root.to_path_buf(),
                example,
            });
        }
    }
    Ok(())
}

fn lock(root: &Path) -> Result<File, RunDirError> {
    let path = root.join(LOCK_FILE);
    let failed = |e| WriteError::new(&path, e);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunDirError::Locked {
            path: root.to_path_buf(),
        }),
        // Some network file systems have no locks; such a run is as safe as its user is careful.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(e)) => Err(failed(e).into()),
    }
}

/// The settings that changed, or an error if one of them may not.
fn allowed_changes(
    root: &Path,
    mut recorded: RunFile,
    settings: &RunSettings<'_>,
) -> Result<Vec<SettingChange>, RunDirError> {
    if recorded.kind != settings.kind {
        return Err(RunDirError::OtherKind {
            path: root.to_path_buf(),
            found: recorded.kind,
            expected: settings.kind.to_owned(),
        });
    }
    for (key, value) in settings.defaults {
        let entry = recorded.settings.entry(key);
        entry.or_insert_with(|| value.clone());
    }
    let mut changes = Vec::new();
    compare_objects("", &recorded.settings, settings.resolved, &mut changes);
    let (allowed, refused): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| {
        settings.may_change.iter().any(|name| {
            change
                .key
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    });
    if refused.is_empty() {
        Ok(allowed)
    } else {
        Err(RunDirError::OtherSettings {
            path: root.to_path_buf(),
            changes: refused,
        })
    }
}

fn compare_objects(
    prefix: &str,
    recorded: &Map<String, Value>,
    given: &Map<String, Value>,
    changes: &mut Vec<SettingChange>,
) {
    let only_given = given.keys().filter(|key| !recorded.contains_key(*key));
    for name in recorded.keys().chain(only_given) {
        let key = format!("{prefix}{name}");
        match (recorded.get(name), given.get(name)) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                compare_objects(&format!("{key}."), a, b, changes);
            }
            (a, b) if same(a, b) => {}
            (a, b) => changes.push(SettingChange {
                key,
                recorded: a.cloned(),
                given: b.cloned(),
            }),
        }
    }
}

/// Equal values; 1 and 1.0 are, a missing value and null are.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a.unwrap_or(&Value::Null), b.unwrap_or(&Value::Null)) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64()
        }
        (a, b) => a == b,
    }
}
