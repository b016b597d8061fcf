//! A step of fine-tuning: a batch forward and backward, clip, AdamW with layerwise learning rates.

use super::batch::HostBatch;
use super::layerwise;
use super::plan::Plan;
use super::task::Task;
use crate::optimizer::{OptimizerConfig, TrainingState};
use electra_data::tasks::Features;
use electra_engine::backend::Backend;
use electra_engine::rng::Rng;
use electra_model::heads::losses::ClassOptions;
use electra_model::heads::network::TaskNetwork;
use electra_model::heads::step::{TaskLoss, TaskStep};

/// How steps are taken.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings {
    /// Weight decay.
    pub weight_decay_rate: f64,
    /// Layerwise decay of the learning rate.
    pub layerwise_lr_decay: f64,
    /// Micro-batches of a batch.
    pub parts: usize,
    /// The reference's sum over the batch, and its layerwise decay.
    pub compat_google: bool,
}

/// A finished step.
#[derive(Clone, Debug, PartialEq)]
pub struct Stepped {
    /// Mean loss of the batch; with `compat_google` the sum.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the batch.
    pub tokens: usize,
    /// What was not finite, if the step was skipped for it.
    pub skipped: Option<String>,
}

/// A network in training on a device.
pub struct Trainer<'a, B: Backend> {
    network: &'a TaskNetwork,
    /// Parameters, gradients and moments.
    pub training: TrainingState<B>,
    /// Arrays of steps and evaluations.
    pub arrays: TaskStep,
    settings: StepSettings,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// A trainer with these parameters and moments, flat arrays of the layout's length.
    pub fn new(
        backend: &mut B,
        network: &'a TaskNetwork,
        settings: StepSettings,
        [params, first, second]: [&[f32]; 3],
    ) -> Self {
        let mut training = TrainingState::new(backend, &network.layout, params);
        backend.write_flat(&mut training.first, first);
        backend.write_flat(&mut training.second, second);
        let layers = network.encoder.body.layers.len();
        training.set_layerwise(&network.layout, |depth| {
            let decay = settings.layerwise_lr_decay;
            layerwise::factor(depth, layers, decay, settings.compat_google)
        });
        Trainer {
            network,
            training,
            arrays: TaskStep::for_training(),
            settings,
        }
    }

    /// The step of `plan` that follows `index` finished ones, of a trial with `seed`.
    pub fn planned_step(
        &mut self,
        backend: &mut B,
        tasks: &[Task],
        plan: &Plan,
        seed: u64,
        index: u64,
        lr: f64,
    ) -> Stepped {
        let (head, chosen) = plan.batch(index);
        let task = &tasks[head];
        let features: Vec<&Features> = chosen.iter().map(|&i| &task.train[i as usize]).collect();
        let rng = Rng::new(seed, index);
        self.step(backend, head, &features, &task.class_options, &rng, lr)
    }

    /// One step on `features` of task `head`. A step whose loss or gradient is not finite changes
    /// no parameter.
    pub fn step(
        &mut self,
        backend: &mut B,
        head: usize,
        features: &[&Features],
        options: &ClassOptions,
        rng: &Rng,
        lr: f64,
    ) -> Stepped {
        let spec = &self.network.heads[head].spec;
        let share = features.len().div_ceil(self.settings.parts).max(1);
        let mut parts: Vec<HostBatch> = Vec::new();
        let mut sequences = 0;
        for part in features.chunks(share) {
            let batch = HostBatch::new(spec, part, sequences as u32);
            sequences += batch.sequences();
            parts.push(batch);
        }
        let targets = parts.iter().filter_map(|part| part.targets.as_ref());
        let weight: f64 = targets.map(|t| t.weight(options)).sum();
        let scale = match self.settings.compat_google {
            true => 1.0,
            false if weight > 0.0 => 1.0 / weight,
            false => 0.0,
        };
        self.training.begin(backend, scale);
        let tokens = parts.iter().map(HostBatch::tokens).sum();
        let (loss, in_forward, norm) = loop {
            let (loss, in_forward) = self.gradients(backend, head, &parts, options, scale, rng);
            let norm = self.training.gradient_norm(backend);
            if in_forward.is_some() || !self.training.begin_again(backend, &norm) {
                break (loss, in_forward, norm);
            }
        };
        let skipped = match norm.non_finite {
            None if loss.is_finite() && norm.norm.is_finite() => None,
            // What is wrong in forward is wrong in every gradient: it is named first.
            gradient => Some(
                in_forward
                    .or_else(|| self.arrays.first_not_finite(backend))
                    .or(gradient.map(|name| format!("the gradient of {name}")))
                    .unwrap_or_else(|| "the loss".to_owned()),
            ),
        };
        if skipped.is_none() {
            let optimizer = OptimizerConfig {
                weight_decay_rate: self.settings.weight_decay_rate,
                ..OptimizerConfig::default()
            };
            self.training.step(backend, &optimizer, norm.norm, lr);
        }
        Stepped {
            loss,
            grad_norm: norm.norm,
            tokens,
            skipped,
        }
    }

    /// Adds the gradients of a batch's loss. Returns the loss, and what was not finite in a part's
    /// forward pass: later parts leave nothing of it.
    fn gradients(
        &mut self,
        backend: &mut B,
        head: usize,
        parts: &[HostBatch],
        options: &ClassOptions,
        scale: f64,
        rng: &Rng,
    ) -> (f64, Option<String>) {
        let (mut loss, mut in_forward) = (0.0, None);
        for part in parts {
            let Some(targets) = &part.targets else {
                continue;
            };
            let asked = TaskLoss {
                targets,
                options,
                scale: self.training.loss_scale() * scale,
            };
            let output = self.arrays.run(
                backend,
                self.network,
                head,
                &self.training.params,
                &part.input(),
                Some(&asked),
                Some(rng),
                Some(&mut self.training.grads),
            );
            if in_forward.is_none() && !output.loss.is_finite() {
                in_forward = self.arrays.first_not_finite(backend);
            }
            loss += scale * output.loss;
        }
        (loss, in_forward)
    }
}
