//! Parameters in training: gradients, clipping and the optimizer's step.

use electra_engine::backend::{Adam, Backend, ParamUpdate};
use electra_engine::params::{ParamLayout, ParamView};
use serde::{Deserialize, Serialize};

/// Which optimizer takes the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// The reference's.
    #[default]
    AdamW,
    /// For batches of thousands of sequences: each tensor's step is as long as the learning rate's
    /// share of the tensor; norms and biases as with AdamW.
    Lamb,
}

/// Settings of the optimizer; the defaults are the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Which one.
    pub kind: OptimizerKind,
    /// Added to the update as `weight_decay_rate · p`, norms and biases left out.
    pub weight_decay_rate: f64,
    /// Gradients are scaled down to this global norm.
    pub clip_norm: f64,
    /// Decays of the moments.
    pub adam: Adam,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            weight_decay_rate: 0.01,
            clip_norm: 1.0,
            adam: Adam::default(),
        }
    }
}

/// What a loss scale is divided by where gradients overflow, and how often in a step.
const LESS: f64 = 16.0;
const LOWERINGS: u32 = 3;

/// Parameters, gradients and moments on a device.
#[derive(Debug)]
pub struct TrainingState<B: Backend> {
    /// Parameters.
    pub params: B::Params,
    /// Gradients of the step under way, times its loss scale.
    pub grads: B::Flat,
    /// Adam's first moment.
    pub first: B::Flat,
    /// Adam's second moment.
    pub second: B::Flat,
    views: Vec<ParamView>,
    names: Vec<String>,
    decays: Vec<bool>,
    /// Factor on the learning rate of each tensor.
    lr_factors: Vec<f64>,
    /// Sums of squares of the gradients, one a view.
    squares: Vec<f64>,
    /// What the last step did, one a view.
    updates: Vec<ParamUpdate>,
    /// What the losses of the step under way are multiplied by, and so its gradients.
    loss_scale: f64,
    /// How often it may still be lowered.
    lowerings: u32,
}

/// The gradients of a step, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientNorm {
    /// Euclidean norm over all parameters.
    pub norm: f64,
    /// First parameter whose gradient is not finite.
    pub non_finite: Option<String>,
}

impl<B: Backend> TrainingState<B> {
    /// State at the start of a run; `values` is a flat array of the layout's length.
    pub fn new(backend: &mut B, layout: &ParamLayout, values: &[f32]) -> Self {
        TrainingState {
            params: backend.params(layout, values),
            grads: backend.flat(layout.len()),
            first: backend.flat(layout.len()),
            second: backend.flat(layout.len()),
            views: layout.params().iter().map(|p| p.view).collect(),
            names: layout.params().iter().map(|p| p.names[0].clone()).collect(),
            decays: layout.params().iter().map(|p| p.decay).collect(),
            lr_factors: vec![1.0; layout.params().len()],
            squares: vec![0.0; layout.params().len()],
            updates: Vec::with_capacity(layout.params().len()),
            loss_scale: 1.0,
            lowerings: 0,
        }
    }

    /// Gives each tensor of `layout` a learning rate of its own: `factor` of its depth times the
    /// step's.
    pub fn set_layerwise(&mut self, layout: &ParamLayout, factor: impl Fn(usize) -> f64) {
        let params = layout.params().iter();
        self.lr_factors = params.map(|p| factor(p.depth)).collect();
    }

    /// Begins a step: the gradients are zero, and losses are to be multiplied by
    /// [`loss_scale`](TrainingState::loss_scale), beside a weight of `weight` at most.
    pub fn begin(&mut self, backend: &mut B, weight: f64) {
        self.loss_scale = match weight > 0.0 {
            true => backend.loss_scale(weight),
            false => 1.0,
        };
        self.lowerings = if self.loss_scale == 1.0 { 0 } else { LOWERINGS };
        backend.zero_flat(&mut self.grads);
    }

    /// Begins the step again where gradients are not finite and a lower scale may help: says whether.
    pub fn begin_again(&mut self, backend: &mut B, norm: &GradientNorm) -> bool {
        let again = norm.non_finite.is_some() && self.lowerings > 0;
        if again {
            self.loss_scale /= LESS;
            self.lowerings -= 1;
            backend.zero_flat(&mut self.grads);
        }
        again
    }

    /// What the losses of the step under way are to be multiplied by.
    pub fn loss_scale(&self) -> f64 {
        self.loss_scale
    }

    /// Norm of the gradients, and the first parameter where it is not finite.
    pub fn gradient_norm(&mut self, backend: &mut B) -> GradientNorm {
        let squares = &mut self.squares;
        backend.squared_norms(&self.grads, &self.views, squares);
        let non_finite = squares.iter().position(|s| !s.is_finite());
        GradientNorm {
            norm: squares.iter().sum::<f64>().sqrt() / self.loss_scale,
            non_finite: non_finite.map(|i| self.names[i].clone()),
        }
    }

    /// Clips to the configured norm and takes one step of the optimizer at learning rate `lr`.
    pub fn step(&mut self, backend: &mut B, config: &OptimizerConfig, norm: f64, lr: f64) {
        let clip = if norm > config.clip_norm {
            config.clip_norm / norm
        } else {
            1.0
        };
        let rate = config.weight_decay_rate as f32;
        let update = |((&view, &decay), &factor): ((&ParamView, &bool), &f64)| ParamUpdate {
            view,
            lr: (lr * factor) as f32,
            decay: if decay { rate } else { 0.0 },
        };
        let each = self.views.iter().zip(&self.decays).zip(&self.lr_factors);
        self.updates.clear();
        self.updates.extend(each.map(update));
        let (params, grads) = (&mut self.params, &mut self.grads);
        let (first, second) = (&mut self.first, &mut self.second);
        let scale = (clip / self.loss_scale) as f32;
        let (adam, updates) = (&config.adam, &self.updates);
        match config.kind {
            OptimizerKind::AdamW => {
                backend.adamw(params, grads, first, second, adam, scale, updates);
            }
            OptimizerKind::Lamb => {
                let adapted = &self.decays;
                backend.lamb(params, grads, first, second, adam, scale, updates, adapted);
            }
        }
    }
}
