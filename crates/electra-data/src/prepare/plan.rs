//! The plan of a directory: what it is made from, and which part has which block.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::segments::holds_segments;
use super::{PrepareError, PrepareOptions, io_error, refuse_foreign};
use crate::manifest::{InputEntry, Plan};
use crate::read::{Input, ReadError, TextLayout};
use crate::tokenizer::Tokenizer;
use electra_model::files::atomic::put_in_place;

/// The folder of unfinished work.
pub(super) const PARTS: &str = "parts";
/// An empty file by which a directory is known as prepare's, whatever a kill leaves of the rest.
pub(super) const MARK: &str = ".prepare";
/// What they are parts of, in that folder.
pub(super) const PLAN: &str = "plan.json";

/// `parts/plan.json`.
#[derive(Serialize, Deserialize)]
struct PlanFile {
    parts: u32,
    plan: Plan,
}

/// The work of one directory.
pub(super) struct Job {
    pub(super) out: PathBuf,
    pub(super) plan: Plan,
    pub(super) parts: u32,
}

/// The plan that these inputs and options make.
pub(super) fn plan(
    inputs: &[Input],
    tokenizer: &Tokenizer,
    options: &PrepareOptions,
) -> Result<Plan, PrepareError> {
    let read = &options.read;
    Ok(Plan {
        tokenizer_hash: tokenizer.hash(),
        vocab_size: tokenizer.vocab_size() as u64,
        shard_tokens: options.shard_tokens.max(1),
        format: read.format.map_or("auto", |format| format.name()).into(),
        documents_end: match read.layout {
            TextLayout::BlankLine => "blank-line",
            TextLayout::Line => "line",
        }
        .into(),
        field: read.field.clone(),
        lossy: read.lossy,
        inputs: inputs.iter().map(entry).collect::<Result<_, _>>()?,
    })
}

fn entry(input: &Input) -> Result<InputEntry, ReadError> {
    let Input::File(path) = input else {
        return Ok(InputEntry {
            name: "-".into(),
            bytes: 0,
            blake3: None,
        });
    };
    let metadata = path.metadata().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ReadError::Missing { path: path.clone() },
        _ => ReadError::Io {
            path: path.clone(),
            source,
        },
    })?;
    Ok(InputEntry {
        name: path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        bytes: metadata.len(),
        blake3: None,
    })
}

/// In what a plan differs from the one that is there. What was read strictly holds nothing that
/// lossy reading would change, so strict work may go on lossily.
pub(super) fn difference(there: &Plan, wanted: &Plan) -> Option<String> {
    let mut wanted = wanted.clone();
    wanted.lossy &= there.lossy;
    there.difference(&wanted)
}

/// Removes the folder of unfinished work, if it is there.
pub(super) fn remove_parts(out: &Path) -> Result<(), PrepareError> {
    let parts = out.join(PARTS);
    match fs::remove_dir_all(&parts) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error(&parts)(e)),
        _ => Ok(()),
    }
}

/// Takes the lock `path` for as long as the file lives.
pub(super) fn lock(path: &Path) -> Result<File, PrepareError> {
    let file = File::create(path).map_err(io_error(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PrepareError::Busy { path: path.into() }),
        // A file system without locks: go without.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Makes sure that nobody works on a part, and says whether any block of one is done.
fn idle(folder: &Path) -> Result<bool, PrepareError> {
    let mut done = false;
    for part in fs::read_dir(folder).map_err(io_error(folder))? {
        let part = part.map_err(io_error(folder))?.path();
        if part.is_dir() {
            lock(&part.join("lock"))?;
            done |= holds_segments(&part);
        }
    }
    Ok(done)
}

impl Job {
    /// Begins the work in `out`, or takes it up. Unfinished work on something else is removed if
    /// no block of it is done or `start_over` says so.
    pub(super) fn begin(
        out: &Path,
        plan: Plan,
        parts: u32,
        start_over: bool,
    ) -> Result<Self, PrepareError> {
        refuse_foreign(out)?;
        let mark = out.join(MARK);
        let marked = fs::create_dir_all(out).and_then(|()| File::create(&mark));
        marked.map_err(io_error(&mark))?;
        let folder = out.join(PARTS);
        let path = folder.join(PLAN);
        if let Some(there) = read_plan(&path)? {
            let difference = difference(&there.plan, &plan).or_else(|| {
                (there.parts != parts)
                    .then(|| format!("number of parts: {} there, {parts} now", there.parts))
                    // One part has all blocks, whatever the sizes.
                    .or_else(|| (parts > 1).then(|| there.plan.size_difference(&plan))?)
            });
            if start_over || difference.is_some() {
                let done = idle(&folder)?;
                if let Some(difference) = difference
                    && done
                    && !start_over
                {
                    return Err(PrepareError::Unfinished {
                        dir: out.into(),
                        difference,
                        parts: folder,
                    });
                }
                remove_parts(out)?;
            }
        }
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let file = PlanFile { parts, plan };
        let text = serde_json::to_vec_pretty(&file).map_err(|e| io_error(&path)(e.into()))?;
        if fs::read(&path).ok().as_ref() != Some(&text) {
            // Parts that start at the same moment each write the same plan.
            let aside = folder.join(format!("plan.{}.tmp", std::process::id()));
            let written = fs::write(&aside, &text).and_then(|()| {
                File::open(&aside)?.sync_all()?;
                put_in_place(&aside, &path)
            });
            written.map_err(io_error(&path))?;
        }
        Ok(Job {
            out: out.into(),
            plan: file.plan,
            parts,
        })
    }

    /// The work that lies in `out`.
    pub(super) fn resume(out: &Path) -> Result<Self, PrepareError> {
        let path = out.join(PARTS).join(PLAN);
        let there = read_plan(&path)?.ok_or_else(|| PrepareError::NoParts { dir: out.into() })?;
        Ok(Job {
            out: out.into(),
            plan: there.plan,
            parts: there.parts,
        })
    }

    /// The folder of a part.
    pub(super) fn part_dir(&self, part: u32) -> PathBuf {
        self.out
            .join(PARTS)
            .join(format!("part-{part:05}-of-{:05}", self.parts))
    }

    /// The part that block `block` of input `input` belongs to.
    ///
    /// Inputs are laid end to end by their sizes on disk and divided evenly; the blocks of an
    /// input are spread over its stretch by their numbers' bits reversed, which is even however
    /// many blocks there turn out to be.
    pub(super) fn owner(&self, input: usize, block: u32) -> u32 {
        let size = |entry: &InputEntry| u128::from(entry.bytes.max(1));
        let before: u128 = self.plan.inputs[..input].iter().map(size).sum();
        let total: u128 = self.plan.inputs.iter().map(size).sum();
        let place =
            (before << 32) + u128::from(block.reverse_bits()) * size(&self.plan.inputs[input]);
        (place * u128::from(self.parts) / (total << 32)) as u32
    }

    /// Whether a part has blocks in an input.
    pub(super) fn touches(&self, input: usize, part: u32) -> bool {
        (self.owner(input, 0)..=self.owner(input, u32::MAX)).contains(&part)
    }
}

fn read_plan(path: &Path) -> Result<Option<PlanFile>, PrepareError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path)(e)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| io_error(path)(e.into()))
}
