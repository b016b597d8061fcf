//! The pre-training loop: batches, steps, evaluations, checkpoints.
//!
//! What a step computes is a function of the settings, the data and the step's number; the state
//! that a checkpoint holds is the parameters, the moments and a cursor into the examples.

use crate::checkpoint::{CheckpointError, CheckpointStore};
use crate::config::MAY_CHANGE;
use crate::evaluation::{Evaluation, label_entropy};
use crate::export::{Network, write_network};
use crate::interrupt::StopFlag;
use crate::job::{JobError, PretrainJob};
use crate::metrics_log::{EvalMetrics, MetricsLine, MetricsLog, MetricsLogError, StepMetrics};
use crate::optimizer::{OptimizerConfig, TrainingState};
use crate::progress::{Observer, Speed, StepLine, peak_memory_bytes};
use crate::replacements::uniform_replacements;
use crate::report::{DetectedToken, Report, ReportError, SampleDetection};
use crate::run_dir::{Opening, RunDir, RunDirError, RunSettings};
use crate::schedule::Schedule;
use crate::tensorboard::TensorBoardLog;
use electra_data::examples::ExampleError;
use electra_data::masking::MaskedBatch;
use electra_data::tokenizer::TokenizerError;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_engine::rng::Rng;
use electra_model::files::FileError;
use electra_model::flops::{NetSize, train_flops_per_token};
use electra_model::pretraining::{Detections, MaskedInput, PretrainingStep, StepOptions, StepSums};
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
    TensorBoard(#[from] crate::atomic_file::WriteError),
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
         (first in {place}); the last checkpoint is intact. Lower learning_rate, raise \
         num_warmup_steps, or use --precision f32"
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
    /// Examples read so far.
    cursor: u64,
    /// Tokens trained on so far.
    tokens: u64,
    /// Steps skipped in a row just now.
    skipped: u32,
    /// Seconds spent in steps, over all starts.
    seconds: f64,
}

/// Step number of the random numbers of evaluation: beyond any step of training.
const EVALUATION: u64 = 1 << 62;
/// Steps over which speed is averaged.
const SPEED_WINDOW: usize = 50;
/// Held-out examples shown in the report.
const SHOWN_EXAMPLES: usize = 8;

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
    training: TrainingState<B>,
    step_arrays: PretrainingStep,
    state: State,
    flops_per_token: f64,
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
            params = job.initial_values()?;
        }
        let mut training = TrainingState::new(backend, &job.networks.layout, &params);
        drop(params);
        backend.write_flat(&mut training.first, &first);
        backend.write_flat(&mut training.second, &second);
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
            ..Report::default()
        };
        report.extend(history.lines);
        let mut step_arrays = PretrainingStep::new();
        step_arrays.reserve(backend, &job.networks, job.capacity());
        let run = Run {
            flops_per_token: flops_per_token(job),
            job,
            backend,
            context,
            dir,
            store,
            log,
            events,
            report,
            training,
            step_arrays,
            state,
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
        let mut speed = Speed::start(SPEED_WINDOW, self.state.seconds, self.state.tokens, first);
        let mut last_eval = self.report.eval.last().cloned();
        if first >= total {
            self.context
                .observer
                .on_message(&format!("all {total} steps are done already"));
            self.export()?;
            return Ok(Outcome::Finished(last_eval));
        }
        for index in first..total {
            if self.context.stop.is_requested() {
                self.save(index)?;
                return Ok(Outcome::Interrupted(index));
            }
            let step = index + 1;
            let start = Instant::now();
            let mut metrics = self.step(index, schedule.learning_rate(index))?;
            self.state.seconds += start.elapsed().as_secs_f64();
            speed.record(self.state.seconds, self.state.tokens, step);
            metrics.tokens_per_s = speed.tokens_per_s() as f32;
            self.log.step(&metrics)?;
            self.events.step(&metrics)?;
            self.context.observer.on_step(&StepLine {
                metrics: metrics.clone(),
                total_steps: total,
                rtd_auc: last_eval.as_ref().and_then(|e| e.rtd_auc),
                mfu: self
                    .context
                    .peak_flops
                    .map(|peak| speed.mfu(self.flops_per_token, peak) as f32),
                memory_bytes: peak_memory_bytes(),
                seconds_left: speed.seconds_left(total),
            });
            self.report.extend([MetricsLine::Step(metrics)]);
            let evaluate =
                config.eval_steps > 0 && (step % config.eval_steps == 0 || step == total);
            if evaluate && let Some(metrics) = self.evaluate(step)? {
                self.log.eval(&metrics)?;
                self.events.eval(&metrics)?;
                self.context.observer.on_eval(&metrics);
                self.report.extend([MetricsLine::Eval(metrics.clone())]);
                last_eval = Some(metrics);
            }
            if step % config.save_checkpoints_steps == 0 || step == total {
                self.save(step)?;
            }
        }
        Ok(Outcome::Finished(last_eval))
    }

    /// One step: `index` steps are done. A step whose loss or gradient is not finite changes no
    /// parameter.
    fn step(&mut self, index: u64, lr: f64) -> Result<StepMetrics, PretrainError> {
        let config = &self.job.config;
        let rng = Rng::new(config.seed, index);
        let batch = self.job.train.batch(self.state.cursor)?;
        let tokens = batch.packed.tokens();
        let parts: Vec<(MaskedBatch, u32)> =
            split(batch.packed, config.gradient_accumulation_steps)
                .into_iter()
                .map(|(part, first)| (self.job.masking.mask(part, first, &rng), first))
                .collect();
        let masked: usize = parts.iter().map(|(part, _)| part.masked_rows.len()).sum();
        self.training.zero_grads(self.backend);
        let mut sums = StepSums::default();
        for (part, first) in &parts {
            let options = StepOptions {
                rng,
                dropout: true,
                replacements: None,
                temperature: config.temperature as f32,
                disallow_correct: config.disallow_correct,
                mlm_scale: (config.gen_weight / masked.max(1) as f64) as f32,
                rtd_scale: (config.disc_weight / tokens.max(1) as f64) as f32,
            };
            sums += run_part(
                self.backend,
                self.job,
                &mut self.step_arrays,
                &self.training.params,
                part,
                *first,
                options,
                Some(&mut self.training.grads),
                None,
            );
        }
        let (mlm, rtd) = (
            sums.mlm / masked.max(1) as f64,
            sums.rtd / tokens.max(1) as f64,
        );
        let networks = &self.job.networks;
        let weighted = |on: bool, weight: f64, loss: f64| if on { weight * loss } else { 0.0 };
        let (generator, discriminator) = (
            networks.generator.is_some(),
            networks.discriminator.is_some(),
        );
        let loss = weighted(generator, config.gen_weight, mlm)
            + weighted(discriminator, config.disc_weight, rtd);
        let norm = self.training.gradient_norm(self.backend);
        let place = match norm.non_finite {
            Some(name) => Some(format!("the gradient of {name}")),
            None if !loss.is_finite() || !norm.norm.is_finite() => Some("the loss".to_owned()),
            None => None,
        };
        self.state.cursor = batch.next;
        self.state.tokens += tokens as u64;
        match place {
            None => {
                let optimizer = OptimizerConfig {
                    weight_decay_rate: config.weight_decay_rate,
                    ..OptimizerConfig::default()
                };
                self.training.step(self.backend, &optimizer, norm.norm, lr);
                self.state.skipped = 0;
            }
            Some(place) => {
                self.state.skipped += 1;
                let skipped = self.state.skipped;
                self.context.observer.on_message(&format!(
                    "step {}: {place} is not finite; the step is skipped ({skipped} in a row)",
                    index + 1
                ));
                if skipped >= config.max_skipped_steps {
                    return Err(PretrainError::NotFinite {
                        step: index + 1,
                        skipped,
                        place,
                    });
                }
            }
        }
        let rate = sums.replaced as f64 / tokens.max(1) as f64;
        Ok(StepMetrics {
            step: index + 1,
            loss: loss as f32,
            mlm_loss: generator.then_some(mlm as f32),
            rtd_loss: discriminator.then_some(rtd as f32),
            rtd_base: discriminator.then_some(label_entropy(rate) as f32),
            lr: lr as f32,
            grad_norm: norm.norm as f32,
            tokens: self.state.tokens,
            tokens_per_s: 0.0,
        })
    }

    /// Measures on the held-out part, without dropout; always the same masks. Keeps some examples
    /// for the report.
    fn evaluate(&mut self, step: u64) -> Result<Option<EvalMetrics>, PretrainError> {
        let Some(loader) = &self.job.held_out else {
            return Ok(None);
        };
        let config = &self.job.config;
        let wanted = (config.num_eval_steps as u64).saturating_mul(config.eval_batch_size as u64);
        let (mut cursor, end) = (0, loader.examples().len().min(wanted));
        let rng = Rng::new(config.seed, EVALUATION);
        let mut evaluation = Evaluation::default();
        let mut detections = Detections::default();
        while cursor < end {
            let first = cursor as u32;
            let batch = loader.batch_until(cursor, end)?;
            cursor = batch.next;
            let masked = self.job.masking.mask(batch.packed, first, &rng);
            let options = StepOptions {
                rng,
                dropout: false,
                replacements: None,
                temperature: config.temperature as f32,
                disallow_correct: config.disallow_correct,
                mlm_scale: 0.0,
                rtd_scale: 0.0,
            };
            let sums = run_part(
                self.backend,
                self.job,
                &mut self.step_arrays,
                &self.training.params,
                &masked,
                first,
                options,
                None,
                Some(&mut detections),
            );
            evaluation.add(sums, &detections, &masked.targets);
            if first == 0 && !detections.logits.is_empty() {
                self.report.samples = self.shown(&masked, &detections);
            }
        }
        let networks = &self.job.networks;
        let metrics = evaluation.metrics(
            step,
            self.state.tokens,
            networks.generator.is_some(),
            networks.discriminator.is_some(),
        );
        Ok(Some(metrics))
    }

    fn shown(&self, masked: &MaskedBatch, detections: &Detections) -> Vec<SampleDetection> {
        let text = |id: u32| self.job.tokenizer.token(id).unwrap_or("[UNK]").to_owned();
        let mut seen = masked.original_ids.clone();
        for (&row, &id) in masked.masked_rows.iter().zip(&detections.sampled) {
            seen[row as usize] = id;
        }
        (0..masked.batch.sequences().min(SHOWN_EXAMPLES))
            .map(|s| SampleDetection {
                tokens: masked
                    .batch
                    .rows(s)
                    .map(|row| DetectedToken {
                        text: text(seen[row]),
                        score: 1.0 / (1.0 + (-detections.logits[row]).exp()),
                        original: (detections.labels[row] != 0)
                            .then(|| text(masked.original_ids[row])),
                    })
                    .collect(),
            })
            .collect()
    }

    /// Writes checkpoint, models and report of `step`.
    fn save(&mut self, step: u64) -> Result<(), PretrainError> {
        self.log.sync()?;
        let len = self.job.networks.layout.len();
        let [mut params, mut first, mut second] = [(); 3].map(|()| vec![0.0f32; len]);
        self.backend.read_params(&self.training.params, &mut params);
        self.backend.read_flat(&self.training.first, &mut first);
        self.backend.read_flat(&self.training.second, &mut second);
        let state = serde_json::to_value(&self.state)
            .map_err(|problem| PretrainError::State { step, problem })?;
        let arrays: [(&str, &[f32]); 3] = [
            (ARRAYS[0], &params),
            (ARRAYS[1], &first),
            (ARRAYS[2], &second),
        ];
        self.store.save(step, &arrays, &state)?;
        drop((first, second));
        self.write_models(&params)?;
        self.report.elapsed_seconds = Some(self.state.seconds);
        self.report.write(&self.dir.report())?;
        Ok(())
    }

    fn export(&mut self) -> Result<(), PretrainError> {
        let mut params = vec![0.0; self.job.networks.layout.len()];
        self.backend.read_params(&self.training.params, &mut params);
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
                self.job.tokenizer.save(&dir)?;
            }
        }
        Ok(())
    }
}

/// Runs one masked (micro-)batch through the networks.
fn run_part<B: Backend>(
    backend: &mut B,
    job: &PretrainJob,
    arrays: &mut PretrainingStep,
    params: &B::Params,
    masked: &MaskedBatch,
    first_example: u32,
    options: StepOptions,
    grads: Option<&mut B::Flat>,
    detections: Option<&mut Detections>,
) -> StepSums {
    let given = job.config.uniform_generator.then(|| {
        uniform_replacements(
            masked,
            first_example,
            job.tokenizer.vocab_size(),
            &job.tokenizer.special(),
            job.config.disallow_correct,
            &options.rng,
        )
    });
    let input = MaskedInput {
        batch: &masked.batch,
        original_ids: &masked.original_ids,
        masked_rows: &masked.masked_rows,
        targets: &masked.targets,
        first_example,
    };
    let options = StepOptions {
        replacements: given.as_deref(),
        ..options
    };
    arrays.run(
        backend,
        &job.networks,
        params,
        &input,
        &options,
        grads,
        detections,
    )
}

/// Splits a batch into `parts` runs of whole sequences, each with the number of its first.
fn split(batch: PackedBatch, parts: usize) -> Vec<(PackedBatch, u32)> {
    if parts == 1 {
        return vec![(batch, 0)];
    }
    let sequences = batch.sequences();
    (0..parts)
        .map(|p| (p * sequences / parts, (p + 1) * sequences / parts))
        .filter(|(start, end)| start < end)
        .map(|(start, end)| {
            let mut part = PackedBatch::new();
            for s in start..end {
                let rows = batch.rows(s);
                part.push(&batch.token_ids[rows.clone()], &batch.type_ids[rows]);
            }
            (part, start as u32)
        })
        .collect()
}

/// Operations of training on one token, by the product's own count.
fn flops_per_token(job: &PretrainJob) -> f64 {
    let networks = &job.networks;
    let generator = NetSize::from(&job.generator_config);
    let discriminator = NetSize::from(&job.discriminator_config);
    train_flops_per_token(
        networks.discriminator.as_ref().map(|_| &discriminator),
        networks.generator.as_ref().map(|_| &generator),
        job.config.mask_prob,
        job.config.max_seq_length,
    )
}
