//! `metrics.jsonl`: one JSON object a line for each measurement of a run.
//!
//! A number that is not finite is written as `null` and read back as NaN. What a run does not have
//! (RTD in plain MLM mode) is left out.
//!
//! Order that makes a resumed run's file equal an uninterrupted one's: at step `s` first the
//! training line of `s`, then the evaluation line of `s`, then [`MetricsLog::sync`], then the
//! checkpoint of `s`. Resuming at `s` keeps exactly the lines of steps up to `s`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use electra_model::files::atomic::{WriteError, replace_file};

/// Measurements of one training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Steps done, this one included; the first is 1.
    pub step: u64,
    /// `gen_weight · mlm_loss + disc_weight · rtd_loss`.
    #[serde(with = "nullable")]
    pub loss: f32,
    /// Mean cross-entropy of the generator over the masked positions, in nats.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub mlm_loss: Option<f32>,
    /// Mean binary cross-entropy of the discriminator over all tokens, in nats.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_loss: Option<f32>,
    /// Entropy of the rate of replaced tokens, in nats: the RTD loss of a discriminator that has
    /// learned nothing.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_base: Option<f32>,
    /// Learning rate of the step.
    #[serde(with = "nullable")]
    pub lr: f32,
    /// Norm of the gradient of all parameters before clipping.
    #[serde(with = "nullable")]
    pub grad_norm: f32,
    /// Real tokens trained on since step 0.
    pub tokens: u64,
    /// Real tokens a second, over a moving window.
    #[serde(with = "nullable")]
    pub tokens_per_s: f32,
}

/// Measurements of one evaluation on held-out text. In the file every name but `step` is prefixed
/// with `eval_`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalMetrics {
    /// Training steps done.
    pub step: u64,
    /// See [`StepMetrics::mlm_loss`].
    #[serde(
        rename = "eval_mlm_loss",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub mlm_loss: Option<f32>,
    /// See [`StepMetrics::rtd_loss`].
    #[serde(
        rename = "eval_rtd_loss",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_loss: Option<f32>,
    /// See [`StepMetrics::rtd_base`].
    #[serde(
        rename = "eval_rtd_base",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_base: Option<f32>,
    /// Share of masked positions where the generator's most likely token is the original.
    #[serde(
        rename = "eval_mlm_accuracy",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub mlm_accuracy: Option<f32>,
    /// Share of masked positions where the generator's sampled token is the original.
    #[serde(
        rename = "eval_sampled_accuracy",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub sampled_accuracy: Option<f32>,
    /// Share of tokens that the discriminator judges right at threshold 0.5.
    #[serde(
        rename = "eval_rtd_accuracy",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_accuracy: Option<f32>,
    /// Share of tokens judged replaced that are.
    #[serde(
        rename = "eval_rtd_precision",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_precision: Option<f32>,
    /// Share of replaced tokens judged so.
    #[serde(
        rename = "eval_rtd_recall",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_recall: Option<f32>,
    /// Area under the ROC curve: the chance that a replaced token scores above an original one.
    #[serde(
        rename = "eval_rtd_auc",
        default,
        skip_serializing_if = "Option::is_none",
        with = "nullable_option"
    )]
    pub rtd_auc: Option<f32>,
    /// Real tokens evaluated on.
    #[serde(rename = "eval_tokens")]
    pub tokens: u64,
}

impl StepMetrics {
    /// The measurements that there are, by the names of the file.
    pub fn scalars(&self) -> Vec<(&'static str, f32)> {
        let optional = [
            ("mlm_loss", self.mlm_loss),
            ("rtd_loss", self.rtd_loss),
            ("rtd_base", self.rtd_base),
        ];
        let mut scalars = vec![("loss", self.loss)];
        scalars.extend(
            optional
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        scalars.extend([
            ("lr", self.lr),
            ("grad_norm", self.grad_norm),
            ("tokens", self.tokens as f32),
            ("tokens_per_s", self.tokens_per_s),
        ]);
        scalars
    }
}

impl EvalMetrics {
    /// The measurements of quality that there are, by their names without `eval_`.
    pub fn scalars(&self) -> Vec<(&'static str, f32)> {
        [
            ("mlm_loss", self.mlm_loss),
            ("rtd_loss", self.rtd_loss),
            ("rtd_base", self.rtd_base),
            ("mlm_accuracy", self.mlm_accuracy),
            ("sampled_accuracy", self.sampled_accuracy),
            ("rtd_accuracy", self.rtd_accuracy),
            ("rtd_precision", self.rtd_precision),
            ("rtd_recall", self.rtd_recall),
            ("rtd_auc", self.rtd_auc),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

/// Scores of the probe tasks: of copies of the encoder, fine-tuned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct ProbeMetrics {
    /// Training steps done.
    pub step: u64,
    /// By `TASK_SCORE`, `sst2_accuracy` for one, in their order. In the file every name is prefixed
    /// with `probe_`.
    pub scores: Vec<(String, f64)>,
}

/// Prefix of a probe's scores in the file.
const PROBE: &str = "probe_";

impl TryFrom<Map<String, Value>> for ProbeMetrics {
    type Error = String;

    fn try_from(line: Map<String, Value>) -> Result<Self, String> {
        let mut probe = ProbeMetrics::default();
        for (name, value) in line {
            match name.strip_prefix(PROBE) {
                Some(name) => {
                    let score = match value {
                        Value::Null => Some(f64::NAN),
                        value => value.as_f64(),
                    };
                    let score = score.ok_or_else(|| format!("{name} is no number"))?;
                    probe.scores.push((name.to_owned(), score));
                }
                None if name == "step" => {
                    probe.step = value.as_u64().ok_or("step is no whole number")?;
                }
                None => return Err(format!("{name} is no score of a probe")),
            }
        }
        match probe.step > 0 && !probe.scores.is_empty() {
            true => Ok(probe),
            false => Err("step or scores are missing".into()),
        }
    }
}

impl From<ProbeMetrics> for Map<String, Value> {
    fn from(probe: ProbeMetrics) -> Self {
        let scores = probe.scores.into_iter();
        let scores = scores.map(|(name, score)| (format!("{PROBE}{name}"), score.into()));
        std::iter::once(("step".to_owned(), probe.step.into()))
            .chain(scores)
            .collect()
    }
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetricsLine {
    /// A training line.
    Step(StepMetrics),
    /// An evaluation line.
    Eval(EvalMetrics),
    /// Scores of probes.
    Probe(ProbeMetrics),
}

impl MetricsLine {
    /// Steps done when it was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(line) => line.step,
            Self::Eval(line) => line.step,
            Self::Probe(line) => line.step,
        }
    }
}

/// A line of the file of some kind of run.
pub trait LogLine: Serialize + DeserializeOwned {
    /// Steps done when it was written.
    fn step(&self) -> u64;
}

impl LogLine for MetricsLine {
    fn step(&self) -> u64 {
        self.step()
    }
}

/// What can go wrong with the file.
#[derive(Debug, Error)]
pub enum MetricsLogError {
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// `metrics.jsonl`, open for appending; of pre-training unless said otherwise.
#[derive(Debug)]
pub struct MetricsLog<L = MetricsLine> {
    path: PathBuf,
    file: File,
    lines: PhantomData<L>,
}

/// What [`MetricsLog::open`] found in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsHistory<L = MetricsLine> {
    /// The lines that were kept, in their order.
    pub lines: Vec<L>,
    /// What had to be dropped though the checkpoint vouches for it, a line each, for the user.
    pub warnings: Vec<String>,
}

impl MetricsLog {
    /// [`MetricsLog::open_lines`] of pre-training.
    ///
    /// # Errors
    /// As there.
    pub fn open(
        path: impl Into<PathBuf>,
        checkpoint_step: Option<u64>,
    ) -> Result<(Self, MetricsHistory), MetricsLogError> {
        Self::open_lines(path, checkpoint_step)
    }

    /// Appends a training line. After a kill of the process it is in the file.
    ///
    /// # Errors
    /// [`MetricsLogError::Write`].
    pub fn step(&mut self, line: &StepMetrics) -> Result<(), MetricsLogError> {
        self.append(serde_json::to_vec(line))
    }

    /// Appends an evaluation line. After a kill of the process it is in the file.
    ///
    /// # Errors
    /// [`MetricsLogError::Write`].
    pub fn eval(&mut self, line: &EvalMetrics) -> Result<(), MetricsLogError> {
        self.append(serde_json::to_vec(line))
    }

    /// Appends the scores of probes. After a kill of the process they are in the file.
    ///
    /// # Errors
    /// [`MetricsLogError::Write`].
    pub fn probe(&mut self, line: &ProbeMetrics) -> Result<(), MetricsLogError> {
        self.append(serde_json::to_vec(line))
    }
}

impl<L: LogLine> MetricsLog<L> {
    /// Opens the file of a run that goes on after `checkpoint_step` steps, `None` for one that
    /// begins. Lines of later steps and a torn last line are removed first, all at once.
    ///
    /// # Errors
    /// [`MetricsLogError`] if the file cannot be read or written.
    pub fn open_lines(
        path: impl Into<PathBuf>,
        checkpoint_step: Option<u64>,
    ) -> Result<(Self, MetricsHistory<L>), MetricsLogError> {
        let path = path.into();
        let mut history = MetricsHistory {
            lines: Vec::new(),
            warnings: Vec::new(),
        };
        let mut kept = Vec::new();
        if let Some(limit) = checkpoint_step {
            for_each_line(&path, |number, text, parsed: Option<L>| match parsed {
                Some(line) if line.step() <= limit => {
                    kept.extend_from_slice(text);
                    history.lines.push(line);
                }
                Some(_) => {}
                None => history.warnings.push(format!(
                    "{}: line {number} is not a measurement and was removed",
                    path.display()
                )),
            })?;
        }
        replace_file(&path, |writer| writer.write_all(&kept))?;
        let file = File::options().append(true).open(&path);
        let file = file.map_err(|e| WriteError::new(&path, e))?;
        let lines = PhantomData;
        Ok((Self { path, file, lines }, history))
    }

    /// Appends a line. After a kill of the process it is in the file.
    ///
    /// # Errors
    /// [`MetricsLogError::Write`].
    pub fn line(&mut self, line: &L) -> Result<(), MetricsLogError> {
        self.append(serde_json::to_vec(line))
    }

    /// Makes what was appended durable against a crash of the machine. To be called before the
    /// checkpoint of the step is saved.
    ///
    /// # Errors
    /// [`MetricsLogError::Write`].
    pub fn sync(&mut self) -> Result<(), MetricsLogError> {
        self.file
            .sync_data()
            .map_err(|e| WriteError::new(&self.path, e).into())
    }

    fn append(&mut self, line: serde_json::Result<Vec<u8>>) -> Result<(), MetricsLogError> {
        let written = line.map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            self.file.write_all(&bytes)
        });
        written.map_err(|e| WriteError::new(&self.path, e).into())
    }
}

/// Reads all measurements of a run; what does not parse (a line being written) is passed over.
///
/// # Errors
/// [`MetricsLogError::Read`] if the file cannot be read. A missing file has no lines.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsLine>, MetricsLogError> {
    let mut lines = Vec::new();
    for_each_line(path, |_, _, parsed: Option<MetricsLine>| {
        lines.extend(parsed)
    })?;
    Ok(lines)
}

/// Calls `each` with number (from 1), text and meaning of each whole line. A last line without its
/// end is torn, and passed over.
fn for_each_line<L: DeserializeOwned>(
    path: &Path,
    mut each: impl FnMut(usize, &[u8], Option<L>),
) -> Result<(), MetricsLogError> {
    let failed = |source| MetricsLogError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        reader.read_until(b'\n', &mut text).map_err(failed)?;
        if text.last() != Some(&b'\n') {
            break;
        }
        each(number, &text, serde_json::from_slice(&text).ok());
    }
    Ok(())
}

/// A number that JSON may not be able to write: null if it is not finite.
pub(crate) mod nullable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + Into<f64> + Serialize,
        S: Serializer,
    {
        match (*value).into().is_finite() {
            true => value.serialize(serializer),
            false => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de> + From<f32>,
        D: Deserializer<'de>,
    {
        Ok(Option::deserialize(deserializer)?.unwrap_or(T::from(f32::NAN)))
    }
}

/// The same for a number that may be left out.
mod nullable_option {
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
        super::nullable::serialize(&value.unwrap_or(f32::NAN), serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f32>, D::Error> {
        super::nullable::deserialize(deserializer).map(Some)
    }
}
