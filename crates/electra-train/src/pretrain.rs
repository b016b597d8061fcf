//! The pre-training loop: batches, steps, evaluations, checkpoints.
//!
//! What a step computes is a function of the settings, the data and the step's number; the state
//! that a checkpoint holds is the parameters, the moments and a cursor into the examples.

use crate::checkpoint::{CheckpointError, CheckpointStore};
use crate::config::MAY_CHANGE;
use crate::export::{Network, tensor, write_network};
use crate::finetune::probe::probe;
use crate::interrupt::StopFlag;
use crate::job::{JobError, PretrainJob};
use crate::metrics_log::{EvalMetrics, MetricsLine, MetricsLog, MetricsLogError, ProbeMetrics};
use crate::progress::{Observer, Speed, StepLine, peak_memory_bytes};
use crate::report::{Report, ReportError, SampleDetection};
use crate::run_dir::{Opening, RunDir, RunDirError, RunSettings};
use crate::schedule::Schedule;
use crate::tensorboard::TensorBoardLog;
use crate::trainer::{Position, Trainer, flops_per_token};
use electra_data::examples::ExampleError;
use electra_data::tokenizer::TokenizerError;
use electra_engine::backend::Backend;
use electra_model::files::FileError;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// It cannot begin.
    #[error(transparent)]
    Job(#[from] JobError),
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
    /// TensorBoard events.
    #[error("TensorBoard events: {0}")]
    TensorBoard(#[from] electra_model::files::atomic::WriteError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The data.
    #[error(transparent)]
    Data(#[from] ExampleError),
    /// A model directory.
    #[error(transparent)]
    Model(#[from] FileError),
    /// The tokenizer of a model directory.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Loss or gradient were not finite too often.
    #[error(
        "stopped at step {step}: loss or gradient were not finite in {skipped} steps in a row \
         (first in {place}); the last checkpoint is intact, and so are its models. Begin a new run \
         with --init-from this one's directory and a lower learning_rate, a longer warm-up or \
         --precision f32"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Steps skipped in a row.
        skipped: u32,
        /// First parameter, or the loss, that was not finite.
        place: String,
    },
}

/// Where the loop works and what it is told from outside.
pub struct RunContext<'a> {
    /// The run directory.
    pub out: &'a Path,
    /// Refuse to begin a new run.
    pub resume_only: bool,
    /// Told about every step.
    pub observer: &'a mut dyn Observer,
    /// Asks the loop to stop after the step under way.
    pub stop: &'a StopFlag,
    /// Name of the precision, one of the settings.
    pub precision: &'a str,
    /// Facts for the report: device, threads, version.
    pub environment: Vec<(String, String)>,
    /// Floating-point operations a second that the device reaches in products, for utilisation.
    pub peak_flops: Option<f64>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// At its last step, with the last evaluation.
    Finished(Option<EvalMetrics>),
    /// Asked to stop; a checkpoint of this step was written.
    Interrupted(u64),
}

/// What a checkpoint holds beside the arrays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    #[serde(flatten)]
    position: Position,
    /// Seconds spent in steps, over all starts.
    seconds: f64,
    /// What the last evaluation showed.
    #[serde(default)]
    samples: Vec<SampleDetection>,
}

/// Steps over which speed is averaged.
const SPEED_WINDOW: usize = 50;
/// Names of the arrays of a checkpoint.
const ARRAYS: [&str; 3] = ["params", "adam_m", "adam_v"];

struct Run<'a, B: Backend> {
    job: &'a PretrainJob,
    backend: &'a mut B,
    context: RunContext<'a>,
    dir: RunDir,
    store: CheckpointStore,
    log: MetricsLog,
    events: TensorBoardLog,
    report: Report,
    trainer: Trainer<'a, B>,
    seconds: f64,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
}

/// Runs `job` in its directory to the end, from the newest checkpoint there or from step 0.
pub fn pretrain<'a, B: Backend>(
    backend: &'a mut B,
    job: &'a PretrainJob,
    context: RunContext<'a>,
) -> Result<Outcome, PretrainError> {
    let (mut run, first) = Run::open(backend, job, context)?;
    let outcome = run.steps(first);
    run.context.observer.on_end();
    outcome
}

impl<'a, B: Backend> Run<'a, B> {
    fn open(
        backend: &'a mut B,
        job: &'a PretrainJob,
        context: RunContext<'a>,
    ) -> Result<(Self, u64), PretrainError> {
        let settings = job.settings(context.precision);
        let (dir, opening) = RunDir::open(
            context.out,
            &RunSettings {
                kind: "pretrain",
                resolved: &settings,
                defaults: &job.defaults(),
                may_change: MAY_CHANGE,
                must_exist: context.resume_only,
            },
        )?;
        let len = job.networks.layout.len();
        let store = CheckpointStore::open(dir.checkpoints(), job.config.keep_checkpoint_max)?;
        let [mut params, mut first, mut second] = [(); 3].map(|()| vec![0.0f32; len]);
        let restored = match opening {
            Opening::Fresh => None,
            Opening::Existing { changed } => {
                for change in changed {
                    context
                        .observer
                        .on_message(&format!("changed setting: {change}"));
                }
                store.load_newest_into(&mut [
                    (ARRAYS[0], &mut params),
                    (ARRAYS[1], &mut first),
                    (ARRAYS[2], &mut second),
                ])?
            }
        };
        let (step, state) = match &restored {
            None => (0, State::default()),
            Some(restored) => {
                for warning in &restored.warnings {
                    context.observer.on_message(warning);
                }
                let (step, state) = (restored.step, restored.state.clone());
                context
                    .observer
                    .on_message(&format!("going on from the checkpoint of step {step}"));
                let state = serde_json::from_value(state)
                    .map_err(|problem| PretrainError::State { step, problem })?;
                (step, state)
            }
        };
        if restored.is_none() {
            dir.refuse_beginning_again()?;
            params = job.initial_values(&mut |message| context.observer.on_message(message))?;
        }
        let trainer = Trainer::new(backend, job, [&params, &first, &second], state.position);
        drop((params, first, second));
        let checkpoint_step = restored.is_some().then_some(step);
        let (log, history) = MetricsLog::open(dir.metrics(), checkpoint_step)?;
        for warning in &history.warnings {
            context.observer.on_message(warning);
        }
        let events = TensorBoardLog::open(&dir.tensorboard(), checkpoint_step)?;
        let mut report = Report {
            title: format!("ELECTRA {} pre-training", job.config.model_size),
            settings,
            environment: context.environment.clone(),
            total_steps: job.config.num_train_steps,
            samples: state.samples,
            ..Report::default()
        };
        report.extend(history.lines);
        let probes = job.probes().map_or(&[][..], |probes| &probes.jobs);
        for note in probes.iter().flat_map(|job| &job.tasks[0].notes) {
            context.observer.on_message(&format!("probe {note}"));
        }
        let run = Run {
            job,
            backend,
            context,
            dir,
            store,
            log,
            events,
            report,
            trainer,
            seconds: state.seconds,
            saved: checkpoint_step,
        };
        Ok((run, step))
    }

    fn steps(&mut self, first: u64) -> Result<Outcome, PretrainError> {
        let config = &self.job.config;
        let schedule = Schedule {
            learning_rate: config.learning_rate,
            warmup_steps: config.num_warmup_steps,
            total_steps: config.num_train_steps,
            decay_power: config.lr_decay_power,
        };
        let total = config.num_train_steps;
        let mut speed = Speed::start(
            SPEED_WINDOW,
            self.seconds,
            self.trainer.position.tokens,
            first,
        );
        // What an earlier start was stopped in.
        let measures = |run: &Self| (run.report.eval.len(), run.report.probes.len());
        let before = measures(self);
        if !self.measure(first)? {
            return Ok(Outcome::Interrupted(first));
        }
        if first >= total {
            self.context
                .observer
                .on_message(&format!("all {total} steps are done already"));
            if measures(self) != before {
                self.save(first)?;
            } else {
                self.export()?;
                if !self.dir.report().is_file() {
                    self.write_report()?;
                }
            }
            return Ok(Outcome::Finished(self.report.eval.last().cloned()));
        }
        for index in first..total {
            if self.context.stop.is_requested() {
                if self.saved != Some(index) {
                    self.save(index)?;
                }
                return Ok(Outcome::Interrupted(index));
            }
            let step = index + 1;
            let start = Instant::now();
            let lr = schedule.learning_rate(index);
            let stepped = self.trainer.step(self.backend, index, lr)?;
            if let Some(place) = stepped.skipped {
                self.skipped(step, place)?;
            }
            let mut metrics = stepped.metrics;
            self.seconds += start.elapsed().as_secs_f64();
            speed.record(self.seconds, self.trainer.position.tokens, step);
            metrics.tokens_per_s = speed.tokens_per_s() as f32;
            self.log.step(&metrics)?;
            self.events.step(&metrics)?;
            self.context.observer.on_step(&StepLine {
                metrics: metrics.clone(),
                total_steps: total,
                rtd_auc: self.report.eval.last().and_then(|e| e.rtd_auc),
                mfu: self.context.peak_flops.map(|peak| {
                    speed.mfu(flops_per_token(self.job, stepped.attended), peak) as f32
                }),
                memory_bytes: peak_memory_bytes(),
                seconds_left: speed.seconds_left(total),
            });
            self.report.extend([MetricsLine::Step(metrics)]);
            let measured = self.measure(step)?;
            if step % config.save_checkpoints_steps == 0 || step == total || !measured {
                self.save(step)?;
            }
            if !measured {
                return Ok(Outcome::Interrupted(step));
            }
        }
        Ok(Outcome::Finished(self.report.eval.last().cloned()))
    }

    /// Evaluates and probes after `step`, as far as that is due; `false` if it was asked to stop
    /// meanwhile.
    fn measure(&mut self, step: u64) -> Result<bool, PretrainError> {
        if self.evaluation_is_due(step) && !self.evaluate(step)? {
            return Ok(false);
        }
        Ok(!self.probe_is_due(step) || self.probe(step)?)
    }

    /// Whether `step` is one after which the held-out part is measured, and no measures of it are
    /// there.
    fn evaluation_is_due(&self, step: u64) -> bool {
        let (every, total) = (self.job.config.eval_steps, self.job.config.num_train_steps);
        let at = every > 0 && step > 0 && (step.is_multiple_of(every) || step == total);
        let newest = self.report.eval.last().map(|line| line.step);
        at && self.job.held_out.is_some() && newest.is_none_or(|newest| newest < step)
    }

    /// Measures on the held-out part; `false` if it was asked to stop meanwhile.
    fn evaluate(&mut self, step: u64) -> Result<bool, PretrainError> {
        let stop = self.context.stop;
        let Some((metrics, samples)) = self.trainer.evaluate(self.backend, step, stop)? else {
            return Ok(false);
        };
        self.report.samples = samples;
        self.log.eval(&metrics)?;
        self.events.eval(&metrics)?;
        self.context.observer.on_eval(&metrics);
        self.report.extend([MetricsLine::Eval(metrics)]);
        Ok(true)
    }

    /// Whether `step` is one after which the encoder is probed, and no scores of it are there.
    fn probe_is_due(&self, step: u64) -> bool {
        let Some(probes) = self.job.probes() else {
            return false;
        };
        let every = probes.steps;
        let at = step == self.job.config.num_train_steps
            || (every > 0 && step > 0 && step.is_multiple_of(every));
        let newest = self.report.probes.last().map(|line| line.step);
        at && newest.is_none_or(|newest| newest < step)
    }

    /// Fine-tunes a copy of the encoder for each probe task; `false` if it was asked to stop
    /// meanwhile.
    fn probe(&mut self, step: u64) -> Result<bool, PretrainError> {
        let (job, stop) = (self.job, self.context.stop);
        let jobs = job.probes().map_or(&[][..], |probes| &probes.jobs);
        let (network, layout) = (job.main_network(), &job.networks.layout);
        let results = self.trainer.lend(self.backend, |backend, params| {
            let mut values = vec![0.0; layout.len()];
            backend.read_params(params, &mut values);
            let encoder = |name: &str| tensor(network, layout, &values, name);
            let probed = jobs.iter().map(|job| {
                let task = job.tasks[0].spec.name.as_str();
                (task, probe(backend, job, encoder, stop))
            });
            probed.collect::<Vec<_>>()
        });
        let mut metrics = ProbeMetrics {
            step,
            scores: Vec::new(),
        };
        for (task, result) in results {
            match result {
                Ok(Some(scores)) => metrics.scores.extend(
                    scores
                        .into_iter()
                        .map(|(name, score)| (format!("{task}_{name}"), score)),
                ),
                Ok(None) => return Ok(false),
                // Nothing that a probe does is worth losing a run for.
                Err(problem) => {
                    let message = format!("the probe {task} at step {step} failed: {problem}");
                    self.context.observer.on_message(&message);
                }
            }
        }
        if metrics.scores.is_empty() {
            return Ok(true);
        }
        let mut message = format!("probe at step {step}:");
        for (name, score) in &metrics.scores {
            message += &format!("  {name} {score:.4}");
        }
        self.context.observer.on_message(&message);
        let scalars: Vec<(&str, f32)> = metrics
            .scores
            .iter()
            .map(|(name, score)| (name.as_str(), *score as f32))
            .collect();
        self.events.scalars("probe", step, &scalars)?;
        self.log.probe(&metrics)?;
        self.report.extend([MetricsLine::Probe(metrics)]);
        Ok(true)
    }

    /// Says that a step was skipped because `place` was not finite; too many in a row are an error.
    fn skipped(&mut self, step: u64, place: String) -> Result<(), PretrainError> {
        let skipped = self.trainer.position.skipped;
        self.context.observer.on_message(&format!(
            "step {step}: {place} is not finite; the step is skipped ({skipped} in a row)"
        ));
        match skipped < self.job.config.max_skipped_steps {
            true => Ok(()),
            false => Err(PretrainError::NotFinite {
                step,
                skipped,
                place,
            }),
        }
    }

    /// Writes checkpoint, models and report of `step`.
    fn save(&mut self, step: u64) -> Result<(), PretrainError> {
        self.log.sync()?;
        let len = self.job.networks.layout.len();
        let [mut params, mut first, mut second] = [(); 3].map(|()| vec![0.0f32; len]);
        self.backend
            .read_params(&self.trainer.training.params, &mut params);
        self.backend
            .read_flat(&self.trainer.training.first, &mut first);
        self.backend
            .read_flat(&self.trainer.training.second, &mut second);
        let state = serde_json::to_value(State {
            position: self.trainer.position.clone(),
            seconds: self.seconds,
            samples: self.report.samples.clone(),
        })
        .map_err(|problem| PretrainError::State { step, problem })?;
        let arrays: [(&str, &[f32]); 3] = [
            (ARRAYS[0], &params),
            (ARRAYS[1], &first),
            (ARRAYS[2], &second),
        ];
        self.store.save(step, &arrays, &state)?;
        self.saved = Some(step);
        drop((first, second));
        self.write_models(&params)?;
        self.write_report()
    }

    fn write_report(&mut self) -> Result<(), PretrainError> {
        self.report.elapsed_seconds = Some(self.seconds);
        Ok(self.report.write(&self.dir.report())?)
    }

    fn export(&mut self) -> Result<(), PretrainError> {
        let mut params = vec![0.0; self.job.networks.layout.len()];
        self.backend
            .read_params(&self.trainer.training.params, &mut params);
        self.write_models(&params)
    }

    fn write_models(&self, params: &[f32]) -> Result<(), PretrainError> {
        let networks = &self.job.networks;
        for (network, config, present) in [
            (
                Network::Discriminator,
                &self.job.discriminator_config,
                networks.discriminator.is_some(),
            ),
            (
                Network::Generator,
                &self.job.generator_config,
                networks.generator.is_some(),
            ),
        ] {
            if present {
                let dir = self.dir.model(network.directory());
                write_network(&dir, network, config, &networks.layout, params)?;
                self.job
                    .tokenizer
                    .save(&dir, config.max_position_embeddings)?;
            }
        }
        Ok(())
    }
}
