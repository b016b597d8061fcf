//! What a pre-training run computes: steps and evaluations. Directories, logs and checkpoints are
//! the loop's ([`crate::pretrain`]).

use crate::evaluation::{Evaluation, label_entropy};
use crate::interrupt::StopFlag;
use crate::job::{JobError, PretrainJob};
use crate::metrics_log::{EvalMetrics, StepMetrics};
use crate::optimizer::{OptimizerConfig, TrainingState};
use crate::replacements::uniform_replacements;
use crate::report::{DetectedToken, SampleDetection};
use electra_data::examples::ExampleError;
use electra_data::masking::MaskedBatch;
use electra_engine::backend::{Adam, Backend};
use electra_engine::batch::PackedBatch;
use electra_engine::rng::Rng;
use electra_model::flops::{NetSize, train_flops_per_token};
use electra_model::pretraining::{Detections, MaskedInput, PretrainingStep, StepOptions, StepSums};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Step number of the random numbers of evaluation: beyond any step of training.
const EVALUATION: u64 = 1 << 62;
/// Steps that are timed to plan a run.
const TIMED_STEPS: u64 = 15;
/// Held-out examples shown in the report.
const SHOWN_EXAMPLES: usize = 8;

/// Where training stands, beside parameters and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Examples read so far.
    pub cursor: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Steps skipped in a row just now.
    pub skipped: u32,
}

/// A finished step.
#[derive(Clone, Debug, PartialEq)]
pub struct Stepped {
    /// Its measures, without speed.
    pub metrics: StepMetrics,
    /// What was not finite, if the step was skipped for it.
    pub skipped: Option<String>,
    /// Length of the sequence that a token of the batch stands in, on average: what attention
    /// costs.
    pub attended: f64,
}

/// Networks in training on a device.
pub struct Trainer<'a, B: Backend> {
    job: &'a PretrainJob,
    /// Parameters, gradients and moments.
    pub training: TrainingState<B>,
    arrays: PretrainingStep,
    /// The next step's batch, made while the device was at work on the last one.
    ahead: Option<Made>,
    /// Where training stands.
    pub position: Position,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// A trainer with these parameters and moments, flat arrays of the layout's length.
    pub fn new(
        backend: &mut B,
        job: &'a PretrainJob,
        [params, first, second]: [&[f32]; 3],
        position: Position,
    ) -> Self {
        let mut training = TrainingState::new(backend, &job.networks.layout, params);
        backend.write_flat(&mut training.first, first);
        backend.write_flat(&mut training.second, second);
        let mut arrays = PretrainingStep::new();
        arrays.reserve(backend, &job.networks, job.capacity());
        Trainer {
            job,
            training,
            arrays,
            ahead: None,
            position,
        }
    }

    /// Lends the backend to `work`, with the parameters as they are: arrays of steps are made anew
    /// afterwards, so it may release all that there are.
    pub fn lend<R>(&mut self, backend: &mut B, work: impl FnOnce(&mut B, &B::Params) -> R) -> R {
        let result = work(backend, &self.training.params);
        backend.release_arrays();
        self.arrays = PretrainingStep::new();
        self.arrays
            .reserve(backend, &self.job.networks, self.job.capacity());
        result
    }

    /// One step: `index` steps are done. A step whose loss or gradient is not finite changes no
    /// parameter.
    pub fn step(&mut self, backend: &mut B, index: u64, lr: f64) -> Result<Stepped, ExampleError> {
        let (job, config) = (self.job, &self.job.config);
        let place = (index, self.position.cursor);
        let ahead = self.ahead.take().filter(|made| made.place == place);
        let batch = ahead.unwrap_or_else(|| Made::new(job, place)).batch?;
        let StepBatch { tokens, next, .. } = batch;
        let masked: usize = batch.parts.iter().map(|(p, _)| p.masked_rows.len()).sum();
        let weights = [(config.gen_weight, masked), (config.disc_weight, tokens)];
        let [mlm_weight, rtd_weight] = weights.map(|(weight, n)| weight / n.max(1) as f64);
        self.training.begin(backend, mlm_weight.max(rtd_weight));
        let (sums, in_forward, norm) = loop {
            let (sums, in_forward) =
                self.gradients(backend, index, &batch, [mlm_weight, rtd_weight]);
            let norm = self.training.gradient_norm(backend);
            if in_forward.is_some() || !self.training.begin_again(backend, &norm) {
                break (sums, in_forward, norm);
            }
        };
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
        let place = match norm.non_finite {
            None if loss.is_finite() && norm.norm.is_finite() => None,
            // What is wrong in forward is wrong in every gradient: it is named first.
            gradient => Some(
                in_forward
                    .or_else(|| self.arrays.first_not_finite(backend))
                    .or(gradient.map(|name| format!("the gradient of {name}")))
                    .unwrap_or_else(|| "the loss".to_owned()),
            ),
        };
        self.position.cursor = next;
        self.position.tokens += tokens as u64;
        if place.is_some() {
            self.position.skipped += 1;
        } else {
            self.position.skipped = 0;
            let optimizer = OptimizerConfig {
                kind: config.optimizer,
                weight_decay_rate: config.weight_decay_rate,
                adam: Adam {
                    beta2: config.adam_beta2 as f32,
                    ..Adam::default()
                },
                ..OptimizerConfig::default()
            };
            self.training.step(backend, &optimizer, norm.norm, lr);
        }
        let rate = sums.replaced as f64 / tokens.max(1) as f64;
        let metrics = StepMetrics {
            step: index + 1,
            loss: loss as f32,
            mlm_loss: generator.then_some(mlm as f32),
            rtd_loss: discriminator.then_some(rtd as f32),
            rtd_base: discriminator.then_some(label_entropy(rate) as f32),
            lr: lr as f32,
            grad_norm: norm.norm as f32,
            tokens: self.position.tokens,
            tokens_per_s: 0.0,
        };
        Ok(Stepped {
            metrics,
            skipped: place,
            attended: batch.attended,
        })
    }

    /// Adds the gradients of a step's losses, of tokens with these weights, and makes the next step's batch
    /// meanwhile. Returns the losses, and what was not finite in a part's forward pass: later parts
    /// leave nothing of it.
    fn gradients(
        &mut self,
        backend: &mut B,
        index: u64,
        batch: &StepBatch,
        weights: [f64; 2],
    ) -> (StepSums, Option<String>) {
        let (job, config) = (self.job, &self.job.config);
        let [mlm_scale, rtd_scale] = weights.map(|w| (w * self.training.loss_scale()) as f32);
        let options = StepOptions {
            rng: Rng::new(config.seed, index),
            dropout: true,
            replacements: None,
            temperature: config.temperature as f32,
            disallow_correct: config.disallow_correct,
            mlm_scale,
            rtd_scale,
        };
        let (mut sums, mut in_forward) = (StepSums::default(), None);
        for (i, (part, first)) in batch.parts.iter().enumerate() {
            let (params, grads) = (&self.training.params, &mut self.training.grads);
            let launched = with_input(job, part, *first, options, |input, options| {
                let networks = &job.networks;
                let grads = Some(grads);
                self.arrays
                    .launch(backend, networks, params, input, options, grads, false)
            });
            if i + 1 == batch.parts.len() && self.ahead.is_none() {
                self.ahead = Some(Made::new(job, (index + 1, batch.next)));
            }
            if let Some(launched) = launched {
                let part = self.arrays.finish(backend, launched, None);
                if in_forward.is_none() && !(part.mlm + part.rtd).is_finite() {
                    in_forward = self.arrays.first_not_finite(backend);
                }
                sums += part;
            }
        }
        (sums, in_forward)
    }

    /// Measures on the held-out part, without dropout; always the same masks. Also some
    /// examples to show. `None` where nothing is held out, or where it was asked to stop meanwhile.
    pub fn evaluate(
        &mut self,
        backend: &mut B,
        step: u64,
        stop: &StopFlag,
    ) -> Result<Option<(EvalMetrics, Vec<SampleDetection>)>, ExampleError> {
        let Some(loader) = &self.job.held_out else {
            return Ok(None);
        };
        let config = &self.job.config;
        let wanted = (config.num_eval_steps as u64).saturating_mul(config.eval_batch_size as u64);
        let (mut cursor, end) = (0, loader.examples().len().min(wanted));
        let rng = Rng::new(config.seed, EVALUATION);
        let mut evaluation = Evaluation::default();
        let mut detections = Detections::default();
        let mut samples = Vec::new();
        while cursor < end {
            if stop.is_requested() {
                return Ok(None);
            }
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
            let (job, params) = (self.job, &self.training.params);
            let sums = with_input(job, &masked, first, options, |input, options| {
                let (networks, shown) = (&job.networks, Some(&mut detections));
                self.arrays
                    .run(backend, networks, params, input, options, None, shown)
            });
            evaluation.add(sums, &detections, &masked.targets);
            if first == 0 && !detections.logits.is_empty() {
                samples = self.shown(&masked, &detections);
            }
        }
        let networks = &self.job.networks;
        let metrics = evaluation.metrics(
            step,
            self.position.tokens,
            networks.generator.is_some(),
            networks.discriminator.is_some(),
        );
        Ok(Some((metrics, samples)))
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
            .filter(|sample: &SampleDetection| sample.tokens.iter().all(|t| t.score.is_finite()))
            .collect()
    }
}

/// The batch of a step.
struct StepBatch {
    /// Micro-batches, each with the number of its first sequence.
    parts: Vec<(MaskedBatch, u32)>,
    /// Tokens of all.
    tokens: usize,
    attended: f64,
    /// The cursor behind it.
    next: u64,
}

/// A batch that was made, or why it could not be.
struct Made {
    /// Number of the step, and the cursor.
    place: (u64, u64),
    batch: Result<StepBatch, ExampleError>,
}

impl Made {
    fn new(job: &PretrainJob, place: (u64, u64)) -> Self {
        let (index, cursor) = place;
        let rng = Rng::new(job.config.seed, index);
        let batch = job.train.batch(cursor).map(|batch| {
            let (tokens, attended) = (batch.packed.tokens(), attended(&batch.packed));
            let mut parts = Vec::with_capacity(job.config.gradient_accumulation_steps);
            let mask = |part, first| parts.push((job.masking.mask(part, first, &rng), first));
            split(batch.packed, job.config.gradient_accumulation_steps, mask);
            StepBatch {
                parts,
                tokens,
                attended,
                next: batch.next,
            }
        });
        Made { place, batch }
    }
}

/// Gives `run` what the networks take of a masked (micro-)batch.
fn with_input<R>(
    job: &PretrainJob,
    masked: &MaskedBatch,
    first_example: u32,
    options: StepOptions,
    run: impl FnOnce(&MaskedInput, &StepOptions) -> R,
) -> R {
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
    run(&input, &options)
}

/// Splits a batch into at most `parts` runs of whole sequences and gives `each` with the number of
/// its first sequence. A run ends with the sequence that brings it to its share of the tokens.
fn split(batch: PackedBatch, parts: usize, mut each: impl FnMut(PackedBatch, u32)) {
    if parts == 1 {
        return each(batch, 0);
    }
    let share = batch.tokens().div_ceil(parts);
    let (mut run, mut first) = (PackedBatch::new(), 0);
    for s in 0..batch.sequences() {
        if run.tokens() >= share {
            each(std::mem::replace(&mut run, PackedBatch::new()), first);
            first = s as u32;
        }
        let rows = batch.rows(s);
        run.push(&batch.token_ids[rows.clone()], &batch.type_ids[rows]);
    }
    each(run, first);
}

/// Median seconds of a training step on this machine, over a few steps of a run that is thrown
/// away.
pub fn seconds_per_step<B: Backend>(backend: &mut B, job: &PretrainJob) -> Result<f64, JobError> {
    let zeros = vec![0.0; job.networks.layout.len()];
    let values = job.initial_values(&mut |_| ())?;
    let mut trainer = Trainer::new(backend, job, [&values, &zeros, &zeros], Position::default());
    let mut seconds = Vec::new();
    for index in 0..TIMED_STEPS {
        let start = Instant::now();
        trainer.step(backend, index, 0.0)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    backend.release_arrays();
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// Length of the sequence that a token stands in, on average over the tokens.
fn attended(batch: &PackedBatch) -> f64 {
    let squares: usize = (0..batch.sequences())
        .map(|s| batch.rows(s).len().pow(2))
        .sum();
    squares as f64 / batch.tokens().max(1) as f64
}

/// Operations of training on one token, by the product's own count, in sequences of a length as
/// [`Stepped::attended`] says it.
pub fn flops_per_token(job: &PretrainJob, attended: f64) -> f64 {
    let networks = &job.networks;
    let generator = NetSize::from(&job.generator_config);
    let discriminator = NetSize::from(&job.discriminator_config);
    train_flops_per_token(
        networks.discriminator.as_ref().map(|_| &discriminator),
        networks.generator.as_ref().map(|_| &generator),
        job.config.mask_prob,
        attended.round() as usize,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sequences_cost_less_attention() {
        let mut batch = PackedBatch::new();
        batch.push(&[1; 6], &[0; 6]);
        batch.push(&[1; 2], &[0; 2]);
        assert_eq!(attended(&batch), (36.0 + 4.0) / 8.0);
        assert_eq!(attended(&PackedBatch::new()), 0.0);
    }
}
