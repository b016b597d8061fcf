//! What a network said of labelled examples: predictions, scores, and the worst mistakes.

use super::batch::FeatureOutput;
use super::outputs::Outputs;
use electra_data::metrics::Prf;
use electra_data::metrics::classification::{Confusion, Decisions, multi_label};
use electra_data::tasks::classification::{
    Scores, argmax, class_scores, holding, label_scores, softmax, value_scores,
};
use electra_data::tasks::question::Windows;
use electra_data::tasks::tagging::{TagScores, of_entities};
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
    /// How often each class (column) was predicted for each (row), with the classes' names; of
    /// tags by words, those of an entity by its kind.
    pub confusion: Option<(Vec<String>, Vec<Vec<u64>>)>,
    /// Of several labels: how often each was said and held.
    pub decisions: Vec<(String, Decisions)>,
    /// Precision, recall and F1 of each class, kind of entity or other tag.
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
        if metric == Metric::Loss {
            return self.loss;
        }
        let found = self.scores.iter().find(|(m, _)| *m == metric);
        found.map(|(_, value)| *value)
    }
}

/// Mistakes that are kept.
const MISTAKES: usize = 20;
/// Classes up to which a confusion matrix is shown: the parts of speech of a treebank, for one.
const LARGEST_MATRIX: usize = 60;

/// Metrics of tags that are not of entities, such as parts of speech: those of words.
pub const WORD_METRICS: [Metric; 5] = [
    Metric::Accuracy,
    Metric::F1Macro,
    Metric::F1Micro,
    Metric::Mcc,
    Metric::Loss,
];

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
    let matrix = matrix_of(&confusion);
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
            ..Detail::default()
        },
    })
}

/// Counts by row of what is right and column of what was predicted.
fn matrix_of(confusion: &Confusion) -> Vec<Vec<u64>> {
    let count = confusion.classes();
    (0..count)
        .map(|g| (0..count).map(|p| confusion.count(g, p)).collect())
        .collect()
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
    let scores = multi_label(&gold, &predicted);
    Ok(Evaluation {
        scores: label_scores(&gold, &predicted, metrics)?,
        detail: Detail {
            decisions: names.iter().cloned().zip(scores.decisions).collect(),
            per_class: names.iter().cloned().zip(scores.per_label).collect(),
            mistakes,
            ..Detail::default()
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
        Some(tags) => tags.iter().map(|decision| decision.tag).collect(),
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
    let entities = of_entities(labels.names());
    let (classes, class_of) = tag_classes(labels.names(), entities);
    let mut confusion = Confusion::new(classes.len());
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
                    confusion.add(class_of[*tag as usize], class_of[found as usize]);
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
    // Tags that are not of entities are classes of words: `seqeval` would read their first letters
    // as prefixes.
    let (scores, per_class) = if entities {
        (scores.scores(metrics)?, scores.entities().per_kind())
    } else {
        let of_words = metrics.iter().copied().filter(|m| WORD_METRICS.contains(m));
        let of_words: Vec<Metric> = of_words.collect();
        let names = classes.iter().cloned();
        let each = names.zip(confusion.per_class());
        (class_scores(&confusion, &of_words)?, each.collect())
    };
    Ok(Evaluation {
        scores,
        detail: Detail {
            confusion: (classes.len() <= LARGEST_MATRIX)
                .then(|| (classes.clone(), matrix_of(&confusion))),
            per_class,
            mistakes,
            ..Detail::default()
        },
        ..Evaluation::default()
    })
}

/// What words are counted by, and which of them each tag is: its kind where tags are of entities,
/// else the tag itself.
fn tag_classes(tags: &[String], entities: bool) -> (Vec<String>, Vec<u32>) {
    let mut classes: Vec<String> = Vec::new();
    let class_of = tags
        .iter()
        .map(|tag| {
            let class = match tag.split_once('-') {
                Some((_, kind)) if entities => kind,
                _ => tag,
            };
            let known = classes.iter().position(|c| c == class);
            known.unwrap_or_else(|| {
                classes.push(class.to_owned());
                classes.len() - 1
            }) as u32
        })
        .collect();
    (classes, class_of)
}

/// Gold class names of an example, for reports.
fn gold_text(gold: &Gold) -> String {
    match gold {
        Gold::Class(label) => label.clone(),
        Gold::Labels(labels) => labels.join(", "),
        Gold::Value(value) => value.to_string(),
        Gold::Tags(tags) => tags.join(" "),
        Gold::Answers(answers) => answers
            .first()
            .map_or("(no answer)".into(), |a| a.text.clone()),
        Gold::Choice(choice) => choice.to_string(),
    }
}

/// The gold of an example as text; empty where it has none.
pub fn gold_of(example: &Example) -> String {
    example
        .gold
        .as_ref()
        .map_or_else(String::new, |gold: &Gold| gold_text(gold))
}

#[cfg(test)]
mod tests {
    use super::*;
    use electra_data::tasks::{Input, OwnTask, Place, Sequence};
    use electra_model::heads::crf::Decision;

    /// What a network that says `found` is scored at on words of tags `gold`.
    fn tagged(names: &[&str], gold: &[u32], found: &[u32]) -> Evaluation {
        let labels = LabelSet::new(names.iter().map(|&n| n.to_owned()).collect()).expect("labels");
        let spec = TaskSpec::own(OwnTask::new("own", TaskKind::Tagging)).expect("a task");
        let example = Example {
            place: Place {
                path: std::path::Path::new("a.conll").into(),
                line: 1,
                word: None,
            },
            id: "0".into(),
            lines: Vec::new(),
            input: Input::Words(vec!["boat".into(); gold.len()]),
            gold: None,
        };
        let features = Features {
            example: 0,
            sequences: vec![Sequence::default()],
            words: (1..=gold.len() as u32).collect(),
            context: 0..0,
            target: Some(Target::Tags(gold.iter().map(|&g| Some(g)).collect())),
        };
        let outputs = Outputs {
            each: vec![FeatureOutput {
                tags: Some(
                    found
                        .iter()
                        .map(|&tag| Decision {
                            tag,
                            probability: 1.0,
                        })
                        .collect(),
                ),
                ..FeatureOutput::default()
            }],
            loss: None,
        };
        evaluate(&spec, &labels, &[example], &[features], &[], &outputs).expect("scores")
    }

    #[test]
    fn words_of_entities_are_counted_by_kind() {
        let names = ["B-x", "B-y", "I-x", "I-y", "O"];
        let found = tagged(&names, &[0, 2, 4, 1, 4], &[0, 3, 4, 1, 1]);
        let (classes, matrix) = found.detail.confusion.expect("few kinds");
        assert_eq!(classes, ["x", "y", "O"]);
        assert_eq!(matrix, [[1, 1, 0], [0, 1, 0], [0, 1, 1]]);
        let kinds: Vec<&str> = found
            .detail
            .per_class
            .iter()
            .map(|c| c.0.as_str())
            .collect();
        assert_eq!(kinds, ["x", "y"]);
        assert!(found.scores.iter().any(|(metric, _)| *metric == Metric::F1));
    }

    #[test]
    fn other_tags_are_classes_of_words_with_their_whole_names() {
        let found = tagged(&["NN", "VB", "VBD"], &[0, 1, 2, 2], &[0, 2, 2, 2]);
        let per_class = &found.detail.per_class;
        let names: Vec<&str> = per_class.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(names, ["NN", "VB", "VBD"]);
        let past = per_class[2].1;
        assert_eq!(
            (past.precision, past.recall, past.support),
            (2.0 / 3.0, 1.0, 2)
        );
        assert_eq!(found.scores, [(Metric::Accuracy, 0.75)]);
        let (_, matrix) = found.detail.confusion.expect("few tags");
        assert_eq!(matrix, [[1, 0, 0], [0, 0, 1], [0, 0, 2]]);
        // Too many to show.
        let many: Vec<String> = (0..61).map(|i| format!("T{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(tagged(&many, &[3], &[4]).detail.confusion, None);
    }

    #[test]
    fn several_labels_are_counted_each_by_itself() {
        let names = ["a".to_owned(), "b".to_owned()];
        let logits = [[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]];
        let gold = [[true, true], [false, true], [false, false]];
        let example = |text: &str| Example {
            place: Place {
                path: std::path::Path::new("a.tsv").into(),
                line: 1,
                word: None,
            },
            id: "0".into(),
            lines: Vec::new(),
            input: Input::Text {
                first: text.into(),
                second: None,
            },
            gold: None,
        };
        let (mut features, mut outputs) = (Vec::new(), Vec::new());
        for (i, (gold, logits)) in gold.iter().zip(logits).enumerate() {
            features.push(Features {
                example: i,
                sequences: vec![Sequence::default()],
                words: Vec::new(),
                context: 0..0,
                target: Some(Target::Labels(gold.to_vec())),
            });
            outputs.push(FeatureOutput {
                logits: logits.to_vec(),
                ..FeatureOutput::default()
            });
        }
        let examples = [example("x"), example("y"), example("z")];
        let found = several_labels(&names, &examples, &features, &outputs, &[Metric::F1Micro]);
        let decisions = found.expect("scores").detail.decisions;
        let counts = |d: &Decisions| {
            let negatives = [d.false_negatives, d.true_negatives];
            [
                d.true_positives,
                d.false_positives,
                negatives[0],
                negatives[1],
            ]
        };
        assert_eq!(
            (decisions[0].0.as_str(), counts(&decisions[0].1)),
            ("a", [1, 1, 0, 1])
        );
        assert_eq!(
            (decisions[1].0.as_str(), counts(&decisions[1].1)),
            ("b", [1, 0, 1, 1])
        );
    }
}
