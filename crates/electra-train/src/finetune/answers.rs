//! Answers to questions: windows' outputs to answers, and their scores.

use super::batch::{FeatureOutput, joint_token};
use super::score::{Detail, Evaluation, Mistake};
use electra_data::tasks::question::{
    AnswerOptions, AnswerScores, Answers, Candidate, NullScore, Said, Windows,
};
use electra_data::tasks::{Example, Gold, Metric, TaskError, TaskSpec};

/// From which logit that there is no answer the reference's head is believed.
pub const JOINT_THRESHOLD: f64 = -2.75;

/// The answers to a question from what either head says of its windows.
pub fn answers(windows: &Windows, outputs: &[FeatureOutput], options: &AnswerOptions) -> Answers {
    let features = windows.features();
    if outputs.iter().any(|output| output.window.is_some()) {
        let mut candidates = Vec::new();
        let mut null = f64::INFINITY;
        for (number, (features, output)) in features.iter().zip(outputs).enumerate() {
            let Some(spans) = &output.window else {
                continue;
            };
            null = null.min(spans.impossible);
            candidates.extend(spans.candidates.iter().map(|span| Candidate {
                window: number,
                start: joint_token(span.first, features) as usize,
                end: joint_token(span.last, features) as usize,
                score: span.score,
            }));
        }
        let null = match options.null {
            true => NullScore::Own(null),
            false => NullScore::None,
        };
        let said = Said {
            candidates,
            // Its scores are logarithms of probabilities.
            log_sum: 0.0,
            null,
        };
        return windows.answers(&said, options);
    }
    let column = |output: &FeatureOutput, end: usize| -> Vec<f32> {
        output.logits.iter().skip(end).step_by(2).copied().collect()
    };
    let logits: Vec<(Vec<f32>, Vec<f32>)> = outputs
        .iter()
        .map(|output| (column(output, 0), column(output, 1)))
        .collect();
    let logits: Vec<(&[f32], &[f32])> = logits
        .iter()
        .map(|(start, end)| (start.as_slice(), end.as_slice()))
        .collect();
    windows.answers(&windows.candidates(&logits, options), options)
}

/// Scores the answers to all questions; `windows` are those of `examples`, and `outputs` those of
/// all windows in a row.
pub fn evaluate(
    spec: &TaskSpec,
    examples: &[Example],
    windows: &[Windows],
    outputs: &[FeatureOutput],
    metrics: &[Metric],
) -> Result<Evaluation, TaskError> {
    let options = AnswerOptions {
        null: spec.unanswerable,
        ..AnswerOptions::default()
    };
    let threshold = match outputs.iter().any(|output| output.window.is_some()) {
        true => JOINT_THRESHOLD,
        false => 0.0,
    };
    let mut scores = AnswerScores::new(spec);
    let mut mistakes = Vec::new();
    let mut rest = outputs;
    for (example, windows) in examples.iter().zip(windows) {
        let (own, others) = rest.split_at(windows.features().len());
        rest = others;
        let Some(Gold::Answers(gold)) = &example.gold else {
            continue;
        };
        let found = answers(windows, own, &options);
        scores.add(gold, &found);
        let said = found.text(threshold);
        let right = match gold.is_empty() {
            true => said.is_empty(),
            false => gold.iter().any(|answer| answer.text == said),
        };
        if !right {
            let sure = match said.is_empty() {
                true => 1.0 - found.best.first().map_or(0.0, |best| best.score),
                false => found.best.first().map_or(0.0, |best| best.score),
            };
            mistakes.push(Mistake {
                text: example.text(),
                gold: super::score::gold_of(example),
                predicted: match said {
                    "" => "(no answer)".to_owned(),
                    said => said.to_owned(),
                },
                badness: sure,
            });
        }
    }
    Ok(Evaluation {
        scores: scores.scores(metrics, threshold)?,
        detail: Detail {
            mistakes,
            ..Detail::default()
        },
        ..Evaluation::default()
    })
}
