//! Every task's development data through the network, and what the best model is chosen by.

use super::job::{FinetuneJob, FinetuneJobError};
use super::outputs::{Outputs, outputs};
use super::score::{Evaluation, NamedScores, evaluate};
use super::task::Task;
use electra_data::tasks::{Metric, TaskError};
use electra_engine::backend::Backend;
use electra_model::heads::step::TaskStep;

/// Refuses metrics that a task does not have, or by which no mean of the tasks can be taken.
///
/// # Errors
/// Which, and of which task.
pub(super) fn check_metrics(job: &FinetuneJob) -> Result<(), FinetuneJobError> {
    for task in &job.tasks {
        // No example, but a metric that the task does not have is refused all the same.
        let none = Outputs::default();
        evaluate(&task.spec, &task.labels, &[], &[], &[], &none)?;
    }
    let metric = best_metric(job, &job.tasks[0]);
    let one_direction = job
        .tasks
        .iter()
        .all(|task| best_metric(job, task).larger_is_better() == metric.larger_is_better());
    match one_direction {
        true => Ok(()),
        false => Err(FinetuneJobError::Options(
            "the tasks' metrics do not agree on whether larger is better; choose one with metric"
                .into(),
        )),
    }
}

/// What the best model of a task is chosen by.
pub(super) fn best_metric(job: &FinetuneJob, task: &Task) -> Metric {
    job.config.metric.unwrap_or(task.spec.best)
}

/// Every task's development data through the network.
pub(super) fn evaluate_all<B: Backend>(
    backend: &mut B,
    job: &FinetuneJob,
    step: &mut TaskStep,
    params: &B::Params,
) -> Result<Vec<Evaluation>, TaskError> {
    let mut all = Vec::with_capacity(job.tasks.len());
    for (head, task) in job.tasks.iter().enumerate() {
        // Training's arrays are large: evaluation takes no more of them than a batch does.
        let tokens = job.tokens_of_batch(task).min(job.config.eval_batch_tokens);
        let outputs = outputs(backend, step, &job.network, head, params, &task.dev, tokens);
        all.push(evaluate(
            &task.spec,
            &task.labels,
            &task.dev_examples,
            &task.dev,
            &task.dev_windows,
            &outputs,
        )?);
    }
    Ok(all)
}

/// The value that the best model is chosen by, and every score by name.
pub(super) fn selection(job: &FinetuneJob, evaluations: &[Evaluation]) -> (f64, NamedScores) {
    let mut all = NamedScores::new();
    let mut sum = 0.0;
    for (task, evaluation) in job.tasks.iter().zip(evaluations) {
        let prefix = match job.tasks.len() {
            1 => String::new(),
            _ => format!("{}_", task.spec.name),
        };
        sum += evaluation.score(best_metric(job, task)).unwrap_or(f64::NAN);
        all.extend(evaluation.loss.map(|loss| (format!("{prefix}loss"), loss)));
        for (metric, value) in &evaluation.scores {
            all.push((format!("{prefix}{}", metric.name()), *value));
        }
    }
    (sum / job.tasks.len() as f64, all)
}
