//! The fine-tuning loop: trials one after the other in one run directory, which is also the best
//! model's.
//!
//! What a step computes is a function of the settings, the data, the trial's seed and the step's
//! number. A checkpoint holds parameters, moments and `State`; what happens at the end of a trial
//! follows from the state, so that a run that is killed anywhere goes on as if it had not been.

use super::evaluation::{best_metric, check_metrics, evaluate_all, selection};
use super::job::{FinetuneJob, FinetuneJobError};
use super::lines::{EvalRecord, FinetuneLine, StepRecord};
use super::plan::Plan;
use super::report::FinetuneReport;
use super::results::{Summary, Trial};
use super::score::Evaluation;
use super::state::{Next, State};
use super::trainer::Trainer;
use crate::checkpoint::{CheckpointError, CheckpointStore};
use crate::finetune::config::{FinetuneConfig, MAY_CHANGE};
use crate::metrics_log::{MetricsLog, MetricsLogError, StepMetrics};
use crate::pretrain::RunContext;
use crate::progress::{Speed, StepLine, peak_memory_bytes};
use crate::report::ReportError;
use crate::run_dir::{Opening, RunDir, RunDirError, RunSettings};
use crate::schedule::Schedule;
use crate::tensorboard::TensorBoardLog;
use electra_data::tasks::TaskError;
use electra_data::tokenizer::TokenizerError;
use electra_engine::backend::Backend;
use electra_model::files::atomic::{WriteError, replace_file};
use electra_model::files::{FileError, ModelDir};
use electra_model::heads::files::{read_values, write_task_model};
use electra_model::heads::step::TaskStep;
use serde_json::{Map, Value};
use std::io::Write;
use std::time::Instant;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum FinetuneError {
    /// It cannot begin.
    #[error(transparent)]
    Job(#[from] FinetuneJobError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The state of a checkpoint is not one of this program's.
    #[error("the checkpoint of step {step} has a state that cannot be read: {problem}")]
    State {
        /// The checkpoint's step.
        step: u64,
        /// What is wrong.
        problem: serde_json::Error,
    },
    /// `metrics.jsonl`.
    #[error(transparent)]
    Metrics(#[from] MetricsLogError),
    /// A file of the run.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The data.
    #[error(transparent)]
    Data(#[from] TaskError),
    /// A model directory.
    #[error(transparent)]
    Model(#[from] FileError),
    /// The tokenizer of the model's directory.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Loss or gradient were not finite too often.
    #[error(
        "stopped at step {step}: loss or gradient were not finite in {skipped} steps in a row \
         (last in {place}); try a lower learning_rate, a longer warmup_proportion or --precision \
         f32"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Steps skipped in a row.
        skipped: u32,
        /// What was not finite.
        place: String,
    },
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Every trial at its best.
    pub trials: Vec<Trial>,
    /// All of them, summed up.
    pub summary: Summary,
    /// The best model on the development data of each task.
    pub evaluations: Vec<Evaluation>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum FinetuneOutcome {
    /// With all its trials.
    Finished(Box<Finished>),
    /// Asked to stop; a checkpoint after so many steps was written.
    Interrupted(u64),
}

/// Steps over which speed is averaged.
const SPEED_WINDOW: usize = 50;
/// Names of the arrays of a checkpoint.
const ARRAYS: [&str; 3] = ["params", "adam_m", "adam_v"];
/// Parameters and moments, flat arrays of the layout's length.
type Arrays = [Vec<f32>; 3];

struct Run<'a, B: Backend> {
    job: &'a FinetuneJob,
    backend: &'a mut B,
    context: RunContext<'a>,
    dir: RunDir,
    store: CheckpointStore,
    log: MetricsLog<FinetuneLine>,
    events: TensorBoardLog,
    lines: Vec<FinetuneLine>,
    settings: Map<String, Value>,
    state: State,
    saved: Option<u64>,
}

/// Runs `job` in its directory to the end, from the newest checkpoint there or from step 0.
///
/// # Errors
/// A [`FinetuneError`].
pub fn finetune<'a, B: Backend>(
    backend: &'a mut B,
    job: &'a FinetuneJob,
    context: RunContext<'a>,
) -> Result<FinetuneOutcome, FinetuneError> {
    let (mut run, arrays) = Run::open(backend, job, context)?;
    let outcome = run.trials(arrays);
    run.context.observer.on_end();
    outcome
}

impl<'a, B: Backend> Run<'a, B> {
    fn open(
        backend: &'a mut B,
        job: &'a FinetuneJob,
        context: RunContext<'a>,
    ) -> Result<(Self, Option<Arrays>), FinetuneError> {
        check_metrics(job)?;
        let settings = job.settings(context.precision);
        let (dir, opening) = RunDir::open(
            context.out,
            &RunSettings {
                kind: "finetune",
                resolved: &settings,
                defaults: &FinetuneConfig::default().to_map(),
                may_change: MAY_CHANGE,
                must_exist: context.resume_only,
            },
        )?;
        let store = CheckpointStore::open(dir.checkpoints(), 1)?;
        let len = job.network.layout.len();
        let mut state = State::default();
        let mut arrays = None;
        let mut saved = None;
        if let Opening::Existing { changed } = opening {
            for change in changed {
                let message = format!("changed setting: {change}");
                context.observer.on_message(&message);
            }
            let [mut params, mut first, mut second] = [(); 3].map(|()| vec![0.0f32; len]);
            let restored = store.load_newest_into(&mut [
                (ARRAYS[0], &mut params),
                (ARRAYS[1], &mut first),
                (ARRAYS[2], &mut second),
            ])?;
            if restored.is_none() {
                dir.refuse_beginning_again()?;
            }
            if let Some(restored) = restored {
                for warning in &restored.warnings {
                    context.observer.on_message(warning);
                }
                let step = restored.step;
                let message = format!("going on from the checkpoint of step {step}");
                context.observer.on_message(&message);
                state = serde_json::from_value(restored.state)
                    .map_err(|problem| FinetuneError::State { step, problem })?;
                arrays = Some([params, first, second]);
                saved = Some(step);
            }
        }
        let (log, history) = MetricsLog::open_lines(dir.metrics(), saved)?;
        for warning in &history.warnings {
            context.observer.on_message(warning);
        }
        let events = TensorBoardLog::open(&dir.tensorboard(), saved)?;
        for note in job.tasks.iter().flat_map(|task| &task.notes) {
            context.observer.on_message(note);
        }
        let run = Run {
            job,
            backend,
            context,
            dir,
            store,
            log,
            events,
            lines: history.lines,
            settings,
            state,
            saved,
        };
        Ok((run, arrays))
    }

    fn trials(&mut self, mut arrays: Option<Arrays>) -> Result<FinetuneOutcome, FinetuneError> {
        while (self.state.trials.len() as u32) < self.job.config.num_trials {
            match self.trial(arrays.take())? {
                Some(step) => return Ok(FinetuneOutcome::Interrupted(step)),
                None => self.backend.release_arrays(),
            }
        }
        self.finish()
    }

    /// One trial, or what is left of it; the step at which it was asked to stop.
    fn trial(&mut self, arrays: Option<Arrays>) -> Result<Option<u64>, FinetuneError> {
        let (job, seed) = (self.job, self.state.seed(self.job.config.seed));
        let config = &job.config;
        let plan = job.plan(seed);
        let [params, first, second] = match arrays {
            Some(arrays) => arrays,
            None => {
                let zeros = || vec![0.0; job.network.layout.len()];
                [job.initial_values(seed)?, zeros(), zeros()]
            }
        };
        let mut trainer = Trainer::new(
            self.backend,
            &job.network,
            job.step_settings(),
            [&params, &first, &second],
        );
        drop((params, first, second));
        let schedule = job.schedule(&plan);
        let mut speed = Speed::start(
            SPEED_WINDOW,
            self.state.seconds,
            self.state.tokens,
            self.state.total,
        );
        loop {
            match self.state.next(&plan, config) {
                Next::GoOn => {}
                Next::Restart => {
                    self.restart(seed);
                    return Ok(None);
                }
                Next::EndTrial => {
                    self.tell_of_early_end(&plan);
                    self.end_trial();
                    return Ok(None);
                }
            }
            if self.context.stop.is_requested() {
                if self.saved != Some(self.state.total) {
                    self.save(&trainer)?;
                }
                return Ok(Some(self.state.total));
            }
            self.step(&mut trainer, &plan, &schedule, &mut speed)?;
            let every = config.save_checkpoints_steps;
            if plan.evaluates(self.state.step) {
                self.evaluate(&mut trainer, &plan)?;
                self.save(&trainer)?;
            } else if every > 0 && self.state.step.is_multiple_of(every) {
                self.save(&trainer)?;
            }
        }
    }

    fn restart(&mut self, seed: u64) {
        let state = &mut self.state;
        state.restarts += 1;
        state.all_restarts += 1;
        state.begin_trial();
        let next = self.state.seed(self.job.config.seed);
        self.context.observer.on_message(&format!(
            "the run with seed {seed} is stuck: it predicts one class for every example; begun \
             again with seed {next}"
        ));
    }

    fn tell_of_early_end(&mut self, plan: &Plan) {
        if self.state.step < plan.total_steps {
            self.context.observer.on_message(&format!(
                "epoch {:.2}/{:.4}: no better {} in the last {} evaluations \
                 (early_stopping_patience); the trial ends",
                plan.epochs(self.state.step),
                plan.epochs(plan.total_steps),
                best_metric(self.job, &self.job.tasks[0]).name(),
                self.state.evals_since_best
            ));
        }
    }

    fn end_trial(&mut self) {
        let stuck = !self.state.left_majority;
        if let Some(best) = self.state.best.take() {
            if best.score.is_nan() {
                let metric = best_metric(self.job, &self.job.tasks[0]).name();
                self.context.observer.on_message(&format!(
                    "the run with seed {} never had a {metric} that is a number: predictions or \
                     labels are all the same, or it diverged (then lower learning_rate)",
                    best.seed
                ));
            }
            if stuck {
                self.context.observer.on_message(&format!(
                    "the run with seed {} predicted one class for every example to its end",
                    best.seed
                ));
            }
            self.state.trials.push(Trial { stuck, ..best });
        }
        self.state.restarts = 0;
        self.state.begin_trial();
    }

    fn step(
        &mut self,
        trainer: &mut Trainer<'a, B>,
        plan: &Plan,
        schedule: &Schedule,
        speed: &mut Speed,
    ) -> Result<(), FinetuneError> {
        let start = Instant::now();
        let (seed, index) = (self.state.seed(self.job.config.seed), self.state.step);
        let lr = schedule.learning_rate(index);
        let stepped = trainer.planned_step(self.backend, &self.job.tasks, plan, seed, index, lr);
        let state = &mut self.state;
        state.step += 1;
        state.total += 1;
        state.tokens += stepped.tokens as u64;
        state.seconds += start.elapsed().as_secs_f64();
        match &stepped.skipped {
            None => {
                state.skipped = 0;
                state.losses = (state.losses.0 + stepped.loss, state.losses.1 + 1);
            }
            Some(place) => {
                state.skipped += 1;
                let (step, skipped) = (state.total, state.skipped);
                if skipped >= self.job.config.max_skipped_steps {
                    return Err(FinetuneError::NotFinite {
                        step,
                        skipped,
                        place: place.clone(),
                    });
                }
                self.context.observer.on_message(&format!(
                    "step {step}: {place} is not finite; the step is skipped ({skipped} in a row)"
                ));
            }
        }
        let state = &self.state;
        speed.record(state.seconds, state.tokens, state.total);
        let record = StepRecord {
            step: state.total,
            trial: state.trials.len() as u32 + 1,
            seed,
            epoch: plan.epochs(state.step),
            loss: stepped.loss as f32,
            lr: lr as f32,
            grad_norm: stepped.grad_norm as f32,
            tokens: state.tokens,
            tokens_per_s: speed.tokens_per_s() as f32,
        };
        let scalars = [
            ("loss", record.loss),
            ("lr", record.lr),
            ("grad_norm", record.grad_norm),
        ];
        self.events.scalars("train", record.step, &scalars)?;
        let trials_left = u64::from(self.job.config.num_trials) - state.trials.len() as u64;
        let total_steps = state.total - state.step + trials_left * plan.total_steps;
        self.context.observer.on_step(&StepLine {
            metrics: StepMetrics {
                step: record.step,
                loss: record.loss,
                mlm_loss: None,
                rtd_loss: None,
                rtd_base: None,
                lr: record.lr,
                grad_norm: record.grad_norm,
                tokens: record.tokens,
                tokens_per_s: record.tokens_per_s,
            },
            total_steps,
            rtd_auc: None,
            mfu: None,
            memory_bytes: peak_memory_bytes(),
            seconds_left: speed.seconds_left(total_steps),
        });
        self.write_line(FinetuneLine::Step(record))
    }

    fn write_line(&mut self, line: FinetuneLine) -> Result<(), FinetuneError> {
        self.log.line(&line)?;
        self.lines.push(line);
        Ok(())
    }

    /// Evaluates every task, keeps the model if it is the best so far, and says so.
    fn evaluate(&mut self, trainer: &mut Trainer<'a, B>, plan: &Plan) -> Result<(), FinetuneError> {
        let (job, seed) = (self.job, self.state.seed(self.job.config.seed));
        let evaluations = evaluate_all(
            self.backend,
            job,
            &mut trainer.arrays,
            &trainer.training.params,
        )?;
        let (score, scores) = selection(job, &evaluations);
        let state = &mut self.state;
        let train_loss = state.losses.0 / state.losses.1.max(1) as f64;
        state.losses = (0.0, 0);
        // Only of a single task of classes is it told.
        state.left_majority |= job.tasks.len() > 1 || !evaluations[0].one_class;
        let better = |than: Option<f64>| {
            than.is_none_or(|than| {
                let larger = best_metric(job, &job.tasks[0]).larger_is_better();
                than.is_nan() || if larger { score > than } else { score < than }
            })
        };
        // A run that may be begun again leaves no model: what says one class for every example can
        // score better than what has learned something.
        let counts = state.left_majority || state.all_restarts >= job.config.max_restarts;
        let best_of_trial = counts && better(state.best.as_ref().map(|b| b.score));
        let best_of_all = counts && better(state.kept);
        if best_of_trial {
            state.best = Some(Trial {
                seed,
                score,
                scores: scores.clone(),
                epoch: plan.epochs(state.step),
                stuck: false,
            });
        }
        let best_so_far = best_of_trial && !score.is_nan();
        if best_so_far {
            state.evals_since_best = 0;
        } else if counts {
            state.evals_since_best += 1;
        }
        if best_of_all {
            state.kept = Some(score);
            let mut values = vec![0.0; job.network.layout.len()];
            self.backend
                .read_params(&trainer.training.params, &mut values);
            let (network, config) = (&job.network, &job.network_config);
            write_task_model(self.dir.root(), config, &job.entries(), network, &values)?;
            job.tokenizer
                .save(self.dir.root(), config.max_position_embeddings)?;
        }
        let state = &self.state;
        let record = EvalRecord {
            step: state.total,
            trial: state.trials.len() as u32 + 1,
            seed,
            epoch: plan.epochs(state.step),
            train_loss: train_loss as f32,
            scores: scores
                .iter()
                .map(|(name, value)| (format!("eval_{name}"), Value::from(*value)))
                .collect(),
        };
        let mut message = format!(
            "trial {}/{} (seed {seed}), epoch {:.2}/{:.4}: train loss {train_loss:.4}",
            record.trial,
            job.config.num_trials,
            record.epoch,
            plan.epochs(plan.total_steps),
        );
        for (name, value) in &scores {
            message += &format!("  {} {value:.4}", name.replace("loss", "dev loss"));
        }
        if best_so_far {
            message += "  (best so far)";
        }
        self.context.observer.on_message(&message);
        let scalars: Vec<(&str, f32)> = scores
            .iter()
            .map(|(name, value)| (name.as_str(), *value as f32))
            .collect();
        self.events.scalars("eval", record.step, &scalars)?;
        self.write_line(FinetuneLine::Eval(record))
    }

    fn save(&mut self, trainer: &Trainer<'a, B>) -> Result<(), FinetuneError> {
        self.log.sync()?;
        let len = self.job.network.layout.len();
        let [mut params, mut first, mut second] = [(); 3].map(|()| vec![0.0f32; len]);
        self.backend
            .read_params(&trainer.training.params, &mut params);
        self.backend.read_flat(&trainer.training.first, &mut first);
        self.backend
            .read_flat(&trainer.training.second, &mut second);
        let step = self.state.total;
        let state = serde_json::to_value(&self.state)
            .map_err(|problem| FinetuneError::State { step, problem })?;
        let arrays: [(&str, &[f32]); 3] = [
            (ARRAYS[0], &params),
            (ARRAYS[1], &first),
            (ARRAYS[2], &second),
        ];
        self.store.save(step, &arrays, &state)?;
        self.saved = Some(step);
        self.write_report(&[])
    }

    /// Evaluates the best model, and writes report and results.
    fn finish(&mut self) -> Result<FinetuneOutcome, FinetuneError> {
        let job = self.job;
        let values = read_values(&ModelDir::open(self.dir.root())?, &job.network)?;
        let params = self.backend.params(&job.network.layout, &values);
        drop(values);
        let mut step = TaskStep::for_inference();
        let evaluations = evaluate_all(self.backend, job, &mut step, &params)?;
        self.backend.release_arrays();
        let larger = best_metric(job, &job.tasks[0]).larger_is_better();
        let trials = self.state.trials.clone();
        let summary = Summary::of(&trials, larger);
        self.write_report(&evaluations)?;
        let names: Vec<&str> = job.tasks.iter().map(|t| t.spec.name.as_str()).collect();
        let results = serde_json::json!({
            "tasks": names,
            "metric": best_metric(job, &job.tasks[0]).name(),
            "summary": &summary,
            "trials": &trials,
        });
        replace_file(&self.dir.root().join("results.json"), |file| {
            serde_json::to_writer_pretty(&mut *file, &results)?;
            file.write_all(b"\n")
        })?;
        Ok(FinetuneOutcome::Finished(Box::new(Finished {
            trials,
            summary,
            evaluations,
        })))
    }

    fn write_report(&self, evaluations: &[Evaluation]) -> Result<(), FinetuneError> {
        let larger = best_metric(self.job, &self.job.tasks[0]).larger_is_better();
        let report = FinetuneReport {
            job: self.job,
            metric: best_metric(self.job, &self.job.tasks[0]),
            lines: &self.lines,
            settings: &self.settings,
            environment: &self.context.environment,
            trials: &self.state.trials,
            summary: Summary::of(&self.state.trials, larger),
            evaluations,
            restarts: self.state.all_restarts,
            seconds: self.state.seconds,
        };
        Ok(report.write(&self.dir.report())?)
    }
}
