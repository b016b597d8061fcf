//! Probes: how well an encoder in training serves a task, without touching it.
//!
//! The loss of pre-training alone does not tell what the encoder is worth. A probe fine-tunes a
//! copy of it on a small labelled set, as `finetune` would in one trial, and scores the result on
//! development data. What it computes is a function of the encoder, the data and the seed.

use super::evaluation::{evaluate_all, selection};
use super::job::FinetuneJob;
use super::run::FinetuneError;
use super::score::NamedScores;
use super::trainer::Trainer;
use crate::interrupt::StopFlag;
use electra_engine::backend::Backend;

/// Prefix of an encoder's tensors in a fine-tuned network.
const ENCODER: &str = "electra.";

/// Fine-tunes the encoder whose tensors `encoder` gives by their names in a model's file, as the
/// one task of `job`, and returns the scores after the last step; `None` if it was asked to stop
/// before. The backend's arrays are the probe's meanwhile: it releases all of them.
///
/// # Errors
/// Steps that are not finite, too many in a row; examples that cannot be scored.
pub fn probe<'v, B: Backend>(
    backend: &mut B,
    job: &FinetuneJob,
    encoder: impl Fn(&str) -> Option<&'v [f32]>,
    stop: &StopFlag,
) -> Result<Option<NamedScores>, FinetuneError> {
    let mut values = job.initial_values(job.config.seed)?;
    for param in job.network.layout.params() {
        let name = &param.names[0];
        if let Some(given) = encoder(name).filter(|_| name.starts_with(ENCODER)) {
            values[param.view.range()].copy_from_slice(given);
        }
    }
    let zeros = vec![0.0; values.len()];
    let arrays = [&values[..], &zeros, &zeros];
    backend.release_arrays();
    let mut trainer = Trainer::new(backend, &job.network, job.step_settings(), arrays);
    drop((values, zeros));
    let scores = steps(backend, job, &mut trainer, stop);
    backend.release_arrays();
    scores
}

fn steps<B: Backend>(
    backend: &mut B,
    job: &FinetuneJob,
    trainer: &mut Trainer<B>,
    stop: &StopFlag,
) -> Result<Option<NamedScores>, FinetuneError> {
    let seed = job.config.seed;
    let plan = job.plan(seed);
    let schedule = job.schedule(&plan);
    let mut skipped = 0;
    for index in 0..plan.total_steps {
        if stop.is_requested() {
            return Ok(None);
        }
        let lr = schedule.learning_rate(index);
        let stepped = trainer.planned_step(backend, &job.tasks, &plan, seed, index, lr);
        match stepped.skipped {
            None => skipped = 0,
            Some(_) if skipped + 1 < job.config.max_skipped_steps => skipped += 1,
            Some(place) => {
                return Err(FinetuneError::NotFinite {
                    step: index + 1,
                    skipped: skipped + 1,
                    place,
                });
            }
        }
    }
    let params = &trainer.training.params;
    let evaluations = evaluate_all(backend, job, &mut trainer.arrays, params)?;
    Ok(Some(selection(job, &evaluations).1))
}
