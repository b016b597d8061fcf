//! `report.html`: a run at a glance, in one file that needs nothing else.

pub(crate) mod chart;
pub(crate) mod html;
pub(crate) mod series;

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::metrics_log::{EvalMetrics, MetricsLine, ProbeMetrics, StepMetrics};
use electra_model::files::atomic::{WriteError, replace_file};

/// Why a report could not be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A curve could not be drawn.
    #[error("cannot draw the curve `{curve}` of the report: {detail}")]
    Draw {
        /// Title of the chart.
        curve: String,
        /// What the drawing library said.
        detail: String,
    },
}

/// Everything that the report shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Heading, such as `small on wiki-shards`.
    pub title: String,
    /// Training lines, by step.
    pub train: Vec<StepMetrics>,
    /// Evaluation lines, by step.
    pub eval: Vec<EvalMetrics>,
    /// Scores of probe tasks, by step.
    pub probes: Vec<ProbeMetrics>,
    /// Resolved settings of the run.
    pub settings: Map<String, Value>,
    /// Names and values of what the run ran on: device, threads, precision, version.
    pub environment: Vec<(String, String)>,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Seconds spent so far, over all starts of the run, if known.
    pub elapsed_seconds: Option<f64>,
    /// Held-out sentences with the discriminator's judgement.
    pub samples: Vec<SampleDetection>,
}

/// One sentence that the discriminator judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleDetection {
    /// Its tokens in order, special ones left out.
    pub tokens: Vec<DetectedToken>,
}

/// One token of such a sentence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DetectedToken {
    /// The token as the discriminator saw it; `##` marks the continuation of a word.
    pub text: String,
    /// Probability of being replaced, 0 to 1.
    pub score: f32,
    /// The original token where it really was replaced.
    pub original: Option<String>,
}

impl Report {
    /// Adds lines of `metrics.jsonl`.
    pub fn extend(&mut self, lines: impl IntoIterator<Item = MetricsLine>) {
        for line in lines {
            match line {
                MetricsLine::Step(line) => self.train.push(line),
                MetricsLine::Eval(line) => self.eval.push(line),
                MetricsLine::Probe(line) => self.probes.push(line),
            }
        }
    }

    /// The whole page.
    ///
    /// # Errors
    /// [`ReportError::Draw`].
    pub fn to_html(&self) -> Result<String, ReportError> {
        html::page(self)
    }

    /// Writes the page to `path`, replacing the one there at once.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let page = self.to_html()?;
        Ok(replace_file(path, |writer| {
            writer.write_all(page.as_bytes())
        })?)
    }
}
