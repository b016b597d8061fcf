//! Where a fine-tuning run stands: all that decides what follows, apart from parameters and moments.

use super::config::FinetuneConfig;
use super::plan::Plan;
use super::results::Trial;
use serde::{Deserialize, Serialize};

/// What a restart adds to the seed: beyond the seeds of any sensible number of trials.
const RESTART_SEED: u64 = 1000;

/// What a checkpoint holds beside the arrays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Finished trials.
    pub trials: Vec<Trial>,
    /// Times that the trial under way was begun again.
    pub restarts: u32,
    /// Times that any trial was.
    pub all_restarts: u32,
    /// Steps done in the trial under way.
    pub step: u64,
    /// Steps done over all trials.
    pub total: u64,
    /// Tokens trained on in the trial under way.
    pub tokens: u64,
    /// Seconds spent in steps, over all starts.
    pub seconds: f64,
    /// Sum and number of losses since the last evaluation.
    pub losses: (f64, u64),
    /// The trial under way at its best.
    pub best: Option<Trial>,
    /// Evaluations since then.
    pub evals_since_best: u32,
    /// Whether the trial under way ever predicted more than one class.
    pub left_majority: bool,
    /// Score of the model in the run's directory.
    pub kept: Option<f64>,
    /// Steps skipped in a row just now.
    pub skipped: u32,
}

/// What is to be done after an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    GoOn,
    Restart,
    EndTrial,
}

impl State {
    /// Seed of the trial under way, of a run whose first trial has `first`.
    pub fn seed(&self, first: u64) -> u64 {
        first
            .wrapping_add(self.trials.len() as u64)
            .wrapping_add(RESTART_SEED * u64::from(self.restarts))
    }

    /// What follows from the state.
    pub fn next(&self, plan: &Plan, config: &FinetuneConfig) -> Next {
        if self.step == 0 || !plan.evaluates(self.step) {
            return Next::GoOn;
        }
        let stuck = !self.left_majority && 2 * self.step >= plan.total_steps;
        if stuck && self.all_restarts < config.max_restarts {
            return Next::Restart;
        }
        let patience = config.early_stopping_patience;
        let stop_early = patience > 0 && self.evals_since_best >= patience;
        match stop_early || self.step >= plan.total_steps {
            true => Next::EndTrial,
            false => Next::GoOn,
        }
    }

    /// Sets what belongs to the trial under way to its beginning.
    pub fn begin_trial(&mut self) {
        *self = State {
            trials: std::mem::take(&mut self.trials),
            restarts: self.restarts,
            all_restarts: self.all_restarts,
            total: self.total,
            seconds: self.seconds,
            kept: self.kept,
            ..State::default()
        };
    }
}
