//! What a network said of labelled examples: predictions, scores, and the worst mistakes.

use super::batch::FeatureOutput;
use super::job::gold_text;
use super::outputs::Outputs;
use electra_data::metrics::Prf;
use electra_data::metrics::classification::{Confusion, multi_label};
use electra_data::tasks::classification::{
    Scores, argmax, class_scores, holding, label_scores, softmax, value_scores,
};
use electra_data::tasks::question::Windows;
use electra_data::tasks::tagging::TagScores;
use electra_data::tasks::{
    Example, Features, Gold, LabelSet, Metric, Target, TaskError, TaskKind, TaskSpec,
};
use serde::Serialize;

/// A score by name, in the order of output.
pub type NamedScores = Vec<(String, f64)>;

/// An example that the network got wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    /// Its text.
    pub text: String,
    /// What is right.
    pub gold: String,
    /// What was said.
    pub predicted: String,
    /// How bad it is: the probability of the wrong class, the error of a number, the share of
    /// wrong words. The larger the worse.
    pub badness: f64,
}

/// What there is to say of predictions beside scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detail {
    /// How often each class (column) was predicted for each (row), with the classes' names.
    pub confusion: Option<(Vec<String>, Vec<Vec<u64>>)>,
    /// Precision, recall and F1 of each class or kind of entity.
    pub per_class: Vec<(String, Prf)>,
    /// The worst first.
    pub mistakes: Vec<Mistake>,
}

/// Scores of predictions on labelled examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Mean loss, without weights and smoothing.
    pub loss: Option<f64>,
    /// By metric.
    pub scores: Scores,
    /// Whether all predictions are one and the same class though the examples are not.
    pub one_class: bool,
    /// For reports.
    pub detail: Detail,
}

impl Evaluation {
    /// The value of a metric, if it was asked for.
    pub fn score(&self, metric: Metric) -> Option<f64> {
        let found = self.scores.iter().find(|(m, _)| *m == metric);
        found.map(|(_, value)| *value)
    }
}

/// Mistakes that are kept.
const MISTAKES: usize = 20;
/// Classes up to which a confusion matrix is shown.
const LARGEST_MATRIX: usize = 40;

/// Scores a network's outputs on `features` of `examples`, all labelled; of questions `windows` are
/// what the features were made of.
///
/// # Errors
/// A metric that the kind of task does not have.
pub fn evaluate(
    spec: &TaskSpec,
    labels: &LabelSet,
    examples: &[Example],
    features: &[Features],
    windows: &[Windows],
    outputs: &Outputs,
) -> Result<Evaluation, TaskError> {
    let each = &outputs.each;
    let metrics = &spec.metrics;
    let mut evaluation = match spec.kind {
        TaskKind::Classification => classes(labels.names(), examples, features, each, metrics)?,
        TaskKind::MultipleChoice => {
            let most = features.iter().map(|f| f.sequences.len()).max();
            let names: Vec<String> = (0..most.unwrap_or(0)).map(|i| i.to_string()).collect();
            let mut found = classes(&names, examples, features, each, metrics)?;
            // The place of a choice means nothing.
            (found.detail.confusion, found.one_class) = (None, false);
            found.detail.per_class.clear();
            found
        }
        TaskKind::MultiLabel => several_labels(labels.names(), examples, features, each, metrics)?,
        TaskKind::Regression => values(examples, features, each, metrics)?,
        TaskKind::Tagging => tags(labels, examples, features, each, metrics)?,
        TaskKind::QuestionAnswering => {
            super::answers::evaluate(spec, examples, windows, each, metrics)?
        }
    };
    evaluation.loss = outputs.loss;
    let mistakes = &mut evaluation.detail.mistakes;
    mistakes.sort_by(|a, b| b.badness.total_cmp(&a.badness));
    mistakes.truncate(MISTAKES);
    Ok(evaluation)
}

fn classes(
    names: &[String],
    examples: &[Example],
    features: &[Features],
    outputs: &[FeatureOutput],
    metrics: &[Metric],
) -> Result<Evaluation, TaskError> {
    let mut confusion = Confusion::new(names.len());
    let mut mistakes = Vec::new();
    for (features, output) in features.iter().zip(outputs) {
        let Some(Target::Class(gold)) = features.target else {
            continue;
        };
        let predicted = argmax(&output.logits);
        confusion.add(gold, predicted);
        if predicted != gold {
            let example = &examples[features.example];
            mistakes.push(Mistake {
                text: example.text(),
                gold: names[gold as usize].clone(),
                predicted: names[predicted as usize].clone(),
                badness: softmax(&output.logits)[predicted as usize],
            });
        }
    }
    let count = names.len();
    let matrix: Vec<Vec<u64>> = (0..count)
        .map(|g| (0..count).map(|p| confusion.count(g, p)).collect())
        .collect();
    let predicted = (0..count).filter(|&p| matrix.iter().any(|row| row[p] > 0));
    let there = matrix.iter().filter(|row| row.iter().any(|&n| n > 0));
    Ok(Evaluation {
        loss: None,
        scores: class_scores(&confusion, metrics)?,
        one_class: predicted.count() == 1 && there.count() > 1,
        detail: Detail {
            per_class: names.iter().cloned().zip(confusion.per_class()).collect(),
            confusion: (count <= LARGEST_MATRIX).then(|| (names.to_vec(), matrix)),
            mistakes,
        },
    })
}

fn several_labels(
    names: &[String],
    examples: &[Example],
    features: &[Features],
    outputs: &[FeatureOutput],
    metrics: &[Metric],
) -> Result<Evaluation, TaskError> {
    let (mut gold, mut predicted) = (Vec::new(), Vec::new());
    let mut mistakes = Vec::new();
    let listed = |holds: &[bool]| {
        let names = names.iter().zip(holds).filter(|(_, holds)| **holds);
        names
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (features, output) in features.iter().zip(outputs) {
        let Some(Target::Labels(labels)) = &features.target else {
            continue;
        };
        let found = holding(&output.logits);
        let wrong = found.iter().zip(labels).filter(|(a, b)| a != b).count();
        if wrong > 0 {
            mistakes.push(Mistake {
                text: examples[features.example].text(),
                gold: listed(labels),
                predicted: listed(&found),
                badness: wrong as f64 / labels.len() as f64,
            });
        }
        gold.push(labels.clone());
        predicted.push(found);
    }
    let per_label = multi_label(&gold, &predicted).per_label;
    Ok(Evaluation {
        scores: label_scores(&gold, &predicted, metrics)?,
        detail: Detail {
            confusion: None,
            per_class: names.iter().cloned().zip(per_label).collect(),
            mistakes,
        },
        ..Evaluation::default()
    })
}

fn values(
    examples: &[Example],
    features: &[Features],
    outputs: &[FeatureOutput],
    metrics: &[Metric],
) -> Result<Evaluation, TaskError> {
    let (mut gold, mut predicted) = (Vec::new(), Vec::new());
    let mut mistakes = Vec::new();
    for (features, output) in features.iter().zip(outputs) {
        let (Some(Target::Value(value)), Some(&found)) = (&features.target, output.logits.first())
        else {
            continue;
        };
        let found = f64::from(found);
        mistakes.push(Mistake {
            text: examples[features.example].text(),
            gold: format!("{value:.3}"),
            predicted: format!("{found:.3}"),
            badness: (found - value).abs(),
        });
        gold.push(*value);
        predicted.push(found);
    }
    Ok(Evaluation {
        scores: value_scores(&gold, &predicted, metrics)?,
        detail: Detail {
            mistakes,
            ..Detail::default()
        },
        ..Evaluation::default()
    })
}

/// The tags of one of the features, by number: those of the best path, else the likeliest.
pub fn tags_of(output: &FeatureOutput, labels: usize) -> Vec<u32> {
    match &output.tags {
        Some(tags) => tags.clone(),
        None => output.logits.chunks_exact(labels).map(argmax).collect(),
    }
}

fn tags(
    labels: &LabelSet,
    examples: &[Example],
    features: &[Features],
    outputs: &[FeatureOutput],
    metrics: &[Metric],
) -> Result<Evaluation, TaskError> {
    let name = |tag: u32| labels.names()[tag as usize].clone();
    let mut scores = TagScores::default();
    let mut mistakes = Vec::new();
    let mut windows = features.iter().zip(outputs).peekable();
    while let Some((first, output)) = windows.next() {
        // The windows of one sentence are one sentence.
        let mut all = vec![(first, output)];
        while let Some(next) = windows.next_if(|(f, _)| f.example == first.example) {
            all.push(next);
        }
        let (mut gold, mut predicted) = (Vec::new(), Vec::new());
        for (features, output) in all {
            let Some(Target::Tags(tags)) = &features.target else {
                continue;
            };
            for (tag, found) in tags.iter().zip(tags_of(output, labels.len())) {
                if let Some(tag) = tag {
                    gold.push(name(*tag));
                    predicted.push(name(found));
                }
            }
        }
        let wrong = gold.iter().zip(&predicted).filter(|(a, b)| a != b).count();
        if wrong > 0 {
            mistakes.push(Mistake {
                text: examples[first.example].text(),
                gold: gold.join(" "),
                predicted: predicted.join(" "),
                badness: wrong as f64 / gold.len() as f64,
            });
        }
        scores.add(gold, predicted);
    }
    Ok(Evaluation {
        scores: scores.scores(metrics)?,
        detail: Detail {
            confusion: None,
            per_class: scores.entities().per_kind(),
            mistakes,
        },
        ..Evaluation::default()
    })
}

/// The gold of an example as text; empty where it has none.
pub fn gold_of(example: &Example) -> String {
    example
        .gold
        .as_ref()
        .map_or_else(String::new, |gold: &Gold| gold_text(gold))
}
