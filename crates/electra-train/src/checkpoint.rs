//! Checkpoints of a run: written so that a crash at any instant leaves the earlier ones whole, read
//! so that truncation and alteration are noticed and named.
//!
//! ```text
//! checkpoints/step-00001000/
//!   arrays.safetensors   every array, f32; readable by any safetensors library
//!   state.json           what else the loop needs to go on: counters, cursor, seed
//!   manifest.json        step, names, lengths and BLAKE3 checksums of all the above
//! ```
//!
//! A checkpoint is written into `.tmp-step-00001000`, synced file by file, then renamed. Only when
//! the renamed directory is durable are older ones removed.

mod files;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use electra_model::files::atomic::{WriteError, sync_directory};
use files::ReadFailure;

const STEP_PREFIX: &str = "step-";
const TEMPORARY_PREFIX: &str = ".tmp-";
const DAMAGED_PREFIX: &str = "damaged-";

/// What can go wrong with checkpoints.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A checkpoint could not be written, or an old one not removed.
    #[error("{0}. Earlier checkpoints are untouched")]
    Write(#[from] WriteError),
    /// A checkpoint could not be read for a reason outside of it, such as missing permission.
    #[error(
        "cannot read {path}: {source}. Try again; to go on from an earlier checkpoint instead, move \
         this one away", path = path.display()
    )]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A checkpoint is whole, but of a model with other arrays.
    #[error(
        "{path} is a checkpoint of another model: {detail}. Use the settings that this run was \
         started with, or another output directory", path = path.display()
    )]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// Which array differs and how.
        detail: String,
    },
    /// A checkpoint is truncated or altered.
    #[error("checkpoint {path} is damaged: {detail}", path = path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// Which file, and what is wrong with it.
        detail: String,
    },
    /// There are checkpoints, and not one of them can be used.
    #[error(
        "no checkpoint in {dir} can be used:\n  {problems}\nRestore one from a backup, or choose \
         another output directory", dir = dir.display(), problems = problems.join("\n  ")
    )]
    NoneUsable {
        /// The directory of all checkpoints.
        dir: PathBuf,
        /// One line for each damaged checkpoint, newest first.
        problems: Vec<String>,
    },
    /// Two arrays to be saved have the same name.
    #[error("two arrays of a checkpoint are both named `{0}`")]
    DuplicateName(String),
}

/// A whole checkpoint in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Steps done when it was written.
    pub step: u64,
    /// Names and values of the flat arrays (such as `params`, `adam_m`, `adam_v`), in the order in
    /// which they were saved.
    pub arrays: Vec<(String, Vec<f32>)>,
    /// What else the loop needs to go on.
    pub state: Value,
}

impl Checkpoint {
    /// Reads and checks the checkpoint in directory `dir` (one `step-…`). It takes as much memory
    /// as the arrays are long; to resume, [`CheckpointStore::load_newest_into`] takes none.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] or [`CheckpointError::Read`].
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        files::read_owned(dir).map_err(|failure| failure.into_error(dir))
    }
}

/// What was restored from a checkpoint, beside the arrays.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// Steps done when the checkpoint was written.
    pub step: u64,
    /// What the loop gave to [`CheckpointStore::save`].
    pub state: Value,
    /// Damaged newer checkpoints that were passed over, a line each, to be shown to the user.
    pub warnings: Vec<String>,
}

/// The checkpoints of one run.
#[derive(Debug)]
pub struct CheckpointStore {
    dir: PathBuf,
    keep_max: usize,
}

impl CheckpointStore {
    /// Opens (or creates) the directory of a run's checkpoints, and clears away what an interrupted
    /// write left in it. `keep_max`: how many of the newest to keep, 0 for all. Only one process
    /// may have it open; [`crate::run_dir::RunDir`] sees to that.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] or [`CheckpointError::Read`].
    pub fn open(dir: impl Into<PathBuf>, keep_max: usize) -> Result<Self, CheckpointError> {
        let store = Self {
            dir: dir.into(),
            keep_max,
        };
        fs::create_dir_all(&store.dir).map_err(|e| WriteError::new(&store.dir, e))?;
        for name in store.entry_names()? {
            if name.starts_with(TEMPORARY_PREFIX) {
                let path = store.dir.join(name);
                fs::remove_dir_all(&path).map_err(|e| WriteError::new(path, e))?;
            }
        }
        Ok(store)
    }

    /// The steps of the checkpoints there are, damaged or not, oldest first.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] if the directory cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let mut steps: Vec<u64> = (self.entry_names()?.iter())
            .filter_map(|name| {
                let digits = name.strip_prefix(STEP_PREFIX)?;
                digits
                    .parse()
                    .ok()
                    .filter(|&step| *name == directory_name(step))
            })
            .collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The directory in which the checkpoint of `step` is or would be.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.dir.join(directory_name(step))
    }

    /// Writes a checkpoint; when it is durable, removes the oldest beyond `keep_max`. Whatever
    /// belongs to the steps up to `step` in other files must be durable before.
    ///
    /// Memory: 1 MiB, however long the arrays are.
    ///
    /// # Errors
    /// [`CheckpointError::Write`], for one if the disk is full: nothing of the new checkpoint is
    /// left then, and the earlier ones are as they were.
    pub fn save(
        &self,
        step: u64,
        arrays: &[(&str, &[f32])],
        state: &Value,
    ) -> Result<PathBuf, CheckpointError> {
        for (i, (name, _)) in arrays.iter().enumerate() {
            if arrays[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(CheckpointError::DuplicateName((*name).to_owned()));
            }
        }
        let name = directory_name(step);
        let temporary = self.dir.join(format!("{TEMPORARY_PREFIX}{name}"));
        let target = self.dir.join(&name);
        let written = files::write(&temporary, step, arrays, state).and_then(|()| {
            // Only a loop that saves one step twice finds something here.
            self.discard(&name)?;
            fs::rename(&temporary, &target)
                .and_then(|()| sync_directory(&self.dir))
                .map_err(|e| WriteError::new(&target, e))
        });
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&temporary);
            return Err(error.into());
        }
        self.prune()?;
        Ok(target)
    }

    /// Restores the newest checkpoint that is whole into `arrays`, whose names and lengths must be
    /// those saved, in any order. `None` if there is no checkpoint yet; `arrays` is untouched then.
    /// A damaged one is passed over with a warning and renamed to `damaged-step-…`.
    ///
    /// # Errors
    /// [`CheckpointError::NoneUsable`], [`CheckpointError::OtherModel`] or
    /// [`CheckpointError::Read`]; the values in `arrays` are then unspecified.
    pub fn load_newest_into(
        &self,
        arrays: &mut [(&str, &mut [f32])],
    ) -> Result<Option<Restored>, CheckpointError> {
        let mut problems = Vec::new();
        let mut damaged = Vec::new();
        for &step in self.steps()?.iter().rev() {
            let path = self.path_of(step);
            match files::read_into(&path, arrays) {
                Ok(state) => {
                    let warnings = (problems.into_iter().zip(damaged))
                        .map(|(problem, step)| self.set_aside(problem, step))
                        .collect();
                    return Ok(Some(Restored {
                        step,
                        state,
                        warnings,
                    }));
                }
                Err(ReadFailure::Damaged(detail)) => {
                    problems.push(format!(
                        "checkpoint {} is damaged: {detail}",
                        path.display()
                    ));
                    damaged.push(step);
                }
                Err(failure) => return Err(failure.into_error(&path)),
            }
        }
        if problems.is_empty() {
            return Ok(None);
        }
        Err(CheckpointError::NoneUsable {
            dir: self.dir.clone(),
            problems,
        })
    }

    /// Takes a damaged checkpoint out of the way of those to come, and says so.
    fn set_aside(&self, problem: String, step: u64) -> String {
        let name = format!("{DAMAGED_PREFIX}{}", directory_name(step));
        let target = self.dir.join(&name);
        let _ = fs::remove_dir_all(&target);
        match fs::rename(self.path_of(step), &target) {
            Ok(()) => format!("{problem}; it is kept as {name} and an earlier one is used"),
            Err(_) => format!("{problem}; an earlier one is used"),
        }
    }

    fn prune(&self) -> Result<(), CheckpointError> {
        if self.keep_max == 0 {
            return Ok(());
        }
        let steps = self.steps()?;
        for &step in &steps[..steps.len().saturating_sub(self.keep_max)] {
            self.discard(&directory_name(step))?;
        }
        Ok(())
    }

    /// Removes a checkpoint if it is there; renamed first, so that a crash leaves no half of it.
    fn discard(&self, name: &str) -> Result<(), WriteError> {
        let path = self.dir.join(name);
        let doomed = self.dir.join(format!("{TEMPORARY_PREFIX}old-{name}"));
        match fs::rename(&path, &doomed) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed
                .and_then(|()| fs::remove_dir_all(&doomed))
                .map_err(|e| WriteError::new(path, e)),
        }
    }

    fn entry_names(&self) -> Result<Vec<String>, CheckpointError> {
        let names = fs::read_dir(&self.dir).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        });
        names.map_err(|source| CheckpointError::Read {
            path: self.dir.clone(),
            source,
        })
    }
}

/// `step-00001000`: eight digits, more where eight do not do.
fn directory_name(step: u64) -> String {
    format!("{STEP_PREFIX}{step:08}")
}
