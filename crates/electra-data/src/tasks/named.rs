//! The tasks that are known by name: their files' columns, labels, metrics and defaults.

use super::columns::Form;
use super::layout::Layout;
use super::spec::question_columns;
use super::{Column, Columns, Metric, TaskError, TaskKind, TaskSpec};

/// Names of the tasks known by name.
pub(super) const NAMES: [&str; 19] = [
    "cola",
    "sst2",
    "mrpc",
    "stsb",
    "qqp",
    "mnli",
    "qnli",
    "rte",
    "wnli",
    "squad",
    "squad2",
    "conll2000",
    "conll2003",
    "wnut17",
    "msra",
    "chnsenticorp",
    "cmrc2018",
    "imdb",
    "agnews",
];

/// Kinds of chunks of CoNLL-2000, in the order of the hub's numbers.
const CHUNKS: [&str; 11] = [
    "ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP",
];

/// Kinds of entities of WNUT 17, in the order of the hub's numbers.
const WNUT: [&str; 6] = [
    "corporation",
    "creative-work",
    "group",
    "location",
    "person",
    "product",
];

/// A table with a header: text, second text (or ""), label, id (or "").
fn headed(text: &str, second: &str, label: &str, id: &str) -> Form {
    let some = |name: &str| (!name.is_empty()).then(|| Column::from(name));
    Form {
        columns: Columns {
            text: vec![text.into()],
            second: some(second),
            label: vec![label.into()],
            id: some(id),
            ..Columns::default()
        },
        width: None,
    }
}

/// A table of `width` columns without a header, by the numbers of its columns.
fn bare(width: usize, text: &[usize], second: Option<usize>, label: usize) -> Form {
    Form {
        columns: Columns {
            text: text.iter().map(|&n| Column::Number(n)).collect(),
            second: second.map(Column::Number),
            label: vec![Column::Number(label)],
            ..Columns::default()
        },
        width: Some(width),
    }
}

fn word_columns(tags: &str) -> Columns {
    Columns {
        text: vec!["tokens".into()],
        label: vec![tags.into()],
        id: Some("id".into()),
        ..Columns::default()
    }
}

impl TaskSpec {
    /// A task known by name.
    ///
    /// # Errors
    /// An unknown name; the message has all that are known.
    pub fn by_name(name: &str) -> Result<Self, TaskError> {
        use Metric::{Accuracy, F1, Mcc, Pearson, Spearman};
        let pair = |label: &str| headed("sentence1", "sentence2", label, "index");
        let bits = || Some(vec!["0".to_owned(), "1".to_owned()]);
        let list = |labels: &[&str]| Some(labels.iter().map(|l| (*l).to_owned()).collect());
        let spec = |kind, forms, metrics| Self::base(name, kind, Layout::Table(forms), metrics);
        let classes = |forms, metrics| spec(TaskKind::Classification, forms, metrics);
        let questions = || {
            let layout = Layout::Squad {
                table: question_columns(),
            };
            let mut spec = Self::base(
                name,
                TaskKind::QuestionAnswering,
                layout,
                &[F1, Metric::ExactMatch],
            );
            spec.max_seq_length = 512;
            spec.epochs = 2;
            spec
        };
        let tags = |column, kinds: &[&str]| {
            let layout = Layout::Conll {
                word: 1,
                tag: None,
                table: word_columns(column),
            };
            let both = |kind: &&str| [format!("B-{kind}"), format!("I-{kind}")];
            let outside = std::iter::once("O".to_owned());
            let spec = Self::base(
                name,
                TaskKind::Tagging,
                layout,
                &[
                    F1,
                    Metric::Precision,
                    Metric::Recall,
                    Metric::F1Strict,
                    Accuracy,
                ],
            );
            TaskSpec {
                tag_names: outside.chain(kinds.iter().flat_map(both)).collect(),
                ..spec
            }
        };
        Ok(match name {
            "cola" => TaskSpec {
                labels: bits(),
                ..classes(
                    vec![
                        headed("sentence", "", "label", "index"),
                        bare(4, &[4], None, 2),
                    ],
                    &[Mcc, Accuracy],
                )
            },
            "sst2" => TaskSpec {
                labels: bits(),
                ..classes(
                    vec![
                        headed("sentence", "", "label", "index"),
                        bare(2, &[1], None, 2),
                    ],
                    &[Accuracy],
                )
            },
            "mrpc" => TaskSpec {
                labels: bits(),
                unordered: true,
                ..classes(
                    vec![
                        headed("#1 String", "#2 String", "Quality", "index"),
                        pair("label"),
                    ],
                    &[Accuracy, F1],
                )
            },
            "stsb" => TaskSpec {
                range: Some((0, 5)),
                unordered: true,
                epochs: 10,
                ..spec(
                    TaskKind::Regression,
                    vec![pair("score"), pair("label")],
                    &[Spearman, Pearson, Metric::Mse],
                )
            },
            "qqp" => TaskSpec {
                labels: bits(),
                skip_malformed: true,
                ..classes(
                    vec![
                        headed("question1", "question2", "is_duplicate", "id"),
                        headed("question1", "question2", "label", "idx"),
                    ],
                    &[Accuracy, F1],
                )
            },
            "mnli" => TaskSpec {
                labels: list(&["entailment", "neutral", "contradiction"]),
                skip_malformed: true,
                ..classes(
                    vec![
                        pair("gold_label"),
                        headed("premise", "hypothesis", "label", "idx"),
                    ],
                    &[Accuracy],
                )
            },
            "qnli" => TaskSpec {
                labels: list(&["entailment", "not_entailment"]),
                ..classes(
                    vec![headed("question", "sentence", "label", "index")],
                    &[Accuracy],
                )
            },
            "rte" => TaskSpec {
                labels: list(&["entailment", "not_entailment"]),
                epochs: 10,
                ..classes(
                    vec![pair("label"), headed("text", "hypothesis", "label", "")],
                    &[Accuracy],
                )
            },
            "wnli" => TaskSpec {
                labels: bits(),
                ..classes(vec![pair("label")], &[Accuracy])
            },
            "squad" => questions(),
            "squad2" => TaskSpec {
                unanswerable: true,
                metrics: vec![
                    F1,
                    Metric::ExactMatch,
                    Metric::BestF1,
                    Metric::BestExactMatch,
                ],
                ..questions()
            },
            "cmrc2018" => TaskSpec {
                chinese_answers: true,
                ..questions()
            },
            "conll2000" => TaskSpec {
                max_seq_length: 256,
                ..tags("chunk_tags", &CHUNKS)
            },
            "conll2003" => tags("ner_tags", &["PER", "ORG", "LOC", "MISC"]),
            "wnut17" => tags("ner_tags", &WNUT),
            "msra" => TaskSpec {
                max_seq_length: 256,
                ..tags("ner_tags", &["PER", "ORG", "LOC"])
            },
            "chnsenticorp" => TaskSpec {
                labels: bits(),
                max_seq_length: 256,
                ..classes(
                    vec![
                        headed("review", "", "label", ""),
                        headed("text_a", "", "label", "qid"),
                        headed("text", "", "label", ""),
                    ],
                    &[Accuracy, F1],
                )
            },
            "imdb" => TaskSpec {
                max_seq_length: 512,
                ..classes(
                    vec![
                        headed("text", "", "label", ""),
                        headed("review", "", "sentiment", ""),
                    ],
                    &[Accuracy],
                )
            },
            "agnews" => classes(
                vec![
                    headed("text", "", "label", ""),
                    bare(3, &[2, 3], None, 1),
                    Form {
                        columns: Columns {
                            text: vec!["Title".into(), "Description".into()],
                            label: vec!["Class Index".into()],
                            ..Columns::default()
                        },
                        width: None,
                    },
                ],
                &[Accuracy, Metric::F1Macro],
            ),
            _ => {
                return Err(TaskError::UnknownTask {
                    name: name.into(),
                    known: NAMES.join(" "),
                });
            }
        })
    }
}
