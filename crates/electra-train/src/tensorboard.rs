//! TensorBoard event files with scalars.
//!
//! An event file is a sequence of TFRecords, each a protobuf `Event`. Both formats are small
//! enough to be written here in full.
//!
//! ```text
//! TFRecord   length u64 | masked crc32c of length u32 | bytes | masked crc32c of bytes u32
//! Event      1 wall_time double, 2 step int64, 3 file_version string, 5 summary, 7 session_log
//! Summary    1 value: { 1 tag string, 2 simple_value float }
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::metrics_log::{EvalMetrics, StepMetrics};
use electra_model::files::atomic::{WriteError, replace_file};

const NAME_PREFIX: &str = "events.out.tfevents.";
const NAME_SUFFIX: &str = ".electra";

/// The event file of a run, open for appending.
#[derive(Debug)]
pub struct TensorBoardLog {
    path: PathBuf,
    file: File,
}

impl TensorBoardLog {
    /// Begins a new event file in `dir` for a run that goes on after `checkpoint_step` steps,
    /// `None` for one that begins. Events of earlier files up to that step move into it with
    /// their times; those files are removed, so that no step is there twice.
    ///
    /// # Errors
    /// [`WriteError`] if the directory cannot be read or written.
    pub fn open(dir: &Path, checkpoint_step: Option<u64>) -> Result<Self, WriteError> {
        fs::create_dir_all(dir).map_err(|e| WriteError::new(dir, e))?;
        let earlier = event_files(dir).map_err(|e| WriteError::new(dir, e))?;
        let mut contents = Vec::new();
        push_record(&mut contents, &file_version_event());
        // A TensorBoard that already shows the earlier files forgets their events at this one.
        push_record(&mut contents, &session_start_event());
        // The newest file holds what those before it held: a kill may have left them beside it.
        if let (Some(limit), Some(file)) = (checkpoint_step, earlier.last()) {
            let bytes = fs::read(file).map_err(|e| WriteError::new(file, e))?;
            for event in read_records(&bytes) {
                if let Some(step) = step_of_summary(event)
                    && step <= limit
                {
                    push_record(&mut contents, event);
                }
            }
        }
        let path = dir.join(name_after(earlier.last()));
        replace_file(&path, |writer| writer.write_all(&contents))?;
        for file in &earlier {
            fs::remove_file(file).map_err(|e| WriteError::new(file, e))?;
        }
        let file = File::options().append(true).open(&path);
        let file = file.map_err(|e| WriteError::new(&path, e))?;
        Ok(Self { path, file })
    }

    /// Appends the scalars of a training line, as `train/…`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn step(&mut self, line: &StepMetrics) -> Result<(), WriteError> {
        self.scalars("train", line.step, &line.scalars())
    }

    /// Appends the scalars of an evaluation line, as `eval/…`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn eval(&mut self, line: &EvalMetrics) -> Result<(), WriteError> {
        self.scalars("eval", line.step, &line.scalars())
    }

    /// Appends scalars as `group/name`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn scalars(
        &mut self,
        group: &str,
        step: u64,
        values: &[(&str, f32)],
    ) -> Result<(), WriteError> {
        let mut record = Vec::new();
        push_record(&mut record, &scalars_event(group, step, values));
        self.file
            .write_all(&record)
            .map_err(|e| WriteError::new(&self.path, e))
    }
}

/// The event files of ours in `dir`, oldest first.
fn event_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(NAME_PREFIX) && name.ends_with(NAME_SUFFIX) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// A name that sorts after the earlier file's, as TensorBoard expects of newer files.
fn name_after(earlier: Option<&PathBuf>) -> String {
    let previous = earlier
        .and_then(|path| path.file_name()?.to_str())
        .and_then(|name| {
            name.strip_prefix(NAME_PREFIX)?
                .strip_suffix(NAME_SUFFIX)?
                .parse()
                .ok()
        })
        .unwrap_or(0u64);
    let seconds = (now_seconds() as u64).max(previous.saturating_add(1));
    format!("{NAME_PREFIX}{seconds:010}{NAME_SUFFIX}")
}

fn now_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

fn file_version_event() -> Vec<u8> {
    let mut event = Vec::new();
    push_double(&mut event, 1, now_seconds());
    push_bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// `session_log { status: START }` at step 0.
fn session_start_event() -> Vec<u8> {
    let mut event = Vec::new();
    push_double(&mut event, 1, now_seconds());
    push_bytes(&mut event, 7, &[1 << 3, 1]);
    event
}

fn scalars_event(group: &str, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, number) in values {
        let mut value = Vec::new();
        push_bytes(&mut value, 1, format!("{group}/{name}").as_bytes());
        value.push((2 << 3) | 5);
        value.extend_from_slice(&number.to_le_bytes());
        push_bytes(&mut summary, 1, &value);
    }
    let mut event = Vec::new();
    push_double(&mut event, 1, now_seconds());
    event.push(2 << 3);
    push_varint(&mut event, step);
    push_bytes(&mut event, 5, &summary);
    event
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn push_double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push((field << 3) | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn push_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push((field << 3) | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Step of an event if it carries a summary; `None` for other and for malformed events.
fn step_of_summary(event: &[u8]) -> Option<u64> {
    let mut rest = event;
    let (mut step, mut has_summary) = (0, false);
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        let skipped = match key & 7 {
            0 => {
                let value = take_varint(&mut rest)?;
                if key >> 3 == 2 {
                    step = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(take_varint(&mut rest)?).ok()?,
            5 => 4,
            _ => return None,
        };
        rest = rest.get(skipped..)?;
        has_summary |= key >> 3 == 5;
    }
    has_summary.then_some(step)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn push_record(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = (bytes.len() as u64).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(&masked_crc32c(bytes).to_le_bytes());
}

/// The records up to the first that is torn or damaged.
fn read_records(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = file;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let (length_crc, after) = after.split_first_chunk::<4>()?;
        let size = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (bytes, after) = after.split_at_checked(size)?;
        let (crc, after) = after.split_first_chunk::<4>()?;
        if masked_crc32c(length).to_le_bytes() != *length_crc
            || masked_crc32c(bytes).to_le_bytes() != *crc
        {
            return None;
        }
        rest = after;
        Some(bytes)
    })
}

/// The checksum of the TFRecord format: CRC-32C, rotated and shifted by a constant.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| {
        TABLE[(crc as u8 ^ byte) as usize] ^ (crc >> 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 1.0 / step as f32,
            mlm_loss: Some(9.0),
            rtd_loss: None,
            rtd_base: None,
            lr: 1e-3,
            grad_norm: 2.0,
            tokens: 100 * step,
            tokens_per_s: 10.0,
        }
    }

    fn only_file(dir: &Path) -> PathBuf {
        let files = event_files(dir).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
        files[0].clone()
    }

    fn steps(dir: &Path) -> Vec<u64> {
        let bytes = fs::read(only_file(dir)).unwrap();
        read_records(&bytes).filter_map(step_of_summary).collect()
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4, and the usual check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        // From an event file of TensorFlow's own: the record that is 24 bytes long.
        assert_eq!(
            masked_crc32c(&24u64.to_le_bytes()).to_le_bytes(),
            [0xa3, 0x7f, 0x4b, 0x22]
        );
    }

    #[test]
    fn a_resumed_run_has_every_step_once_and_keeps_the_times() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = TensorBoardLog::open(dir.path(), None).unwrap();
        for step in 1..=300 {
            log.step(&line(step)).unwrap();
        }
        let before = fs::read(only_file(dir.path())).unwrap();
        log.file.write_all(&[24, 0, 0]).unwrap();

        let mut log = TensorBoardLog::open(dir.path(), Some(200)).unwrap();
        for step in 201..=250 {
            log.step(&line(step)).unwrap();
        }
        log.eval(&EvalMetrics {
            step: 250,
            rtd_auc: Some(0.7),
            ..Default::default()
        })
        .unwrap();
        assert_eq!(
            steps(dir.path()),
            (1..=250).chain([250]).collect::<Vec<_>>()
        );
        let after = fs::read(only_file(dir.path())).unwrap();
        let records = |bytes| read_records(bytes).skip(2).take(200).collect::<Vec<_>>();
        assert_eq!(records(&after), records(&before));

        TensorBoardLog::open(dir.path(), None).unwrap();
        assert!(steps(dir.path()).is_empty());
    }

    #[test]
    fn a_kill_before_old_files_are_removed_repeats_no_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = TensorBoardLog::open(dir.path(), None).unwrap();
        (1..=3).for_each(|step| log.step(&line(step)).unwrap());
        let old = only_file(dir.path());
        let contents = fs::read(&old).unwrap();
        drop(TensorBoardLog::open(dir.path(), Some(3)).unwrap());
        fs::write(old, contents).unwrap();
        drop(TensorBoardLog::open(dir.path(), Some(3)).unwrap());
        assert_eq!(steps(dir.path()), [1, 2, 3]);
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
        let mut file = Vec::new();
        push_record(&mut file, &scalars_event("train", 300, &[("loss", 1.0)]));
        for at in 0..file.len() {
            for value in [0, 0x7f, 0xff] {
                let mut altered = file.clone();
                altered[at] = value;
                read_records(&altered)
                    .filter_map(step_of_summary)
                    .for_each(drop);
                step_of_summary(&altered);
                step_of_summary(&altered[at..]);
                read_records(&altered[at..]).for_each(drop);
            }
        }
    }
}
