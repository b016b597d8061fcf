//! Examples to what a network sees of them.

use std::collections::BTreeMap;

use super::error::shown;
use super::{
    Example, Features, Gold, Input, LabelSet, Target, TaskError, TaskKind, TaskSpec, question,
    tagging, texts,
};
use crate::tokenizer::{SPECIAL_TOKENS, Tokenizer};

/// What is done with a sentence whose words do not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is seen through several windows; every word is asked for once.
    #[default]
    Windows,
    /// The words that do not fit are left out, and counted.
    Truncate,
}

/// How features are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureOptions {
    /// Tokens of a sequence, special ones counted.
    pub max_seq_length: usize,
    /// Tokens from the start of one window of a question's text to the next, as the reference
    /// counts (transformers' `stride` is what two windows share).
    pub doc_stride: usize,
    /// Tokens of a question; what is more is cut.
    pub max_query_length: usize,
    /// Tagging: what becomes of words that do not fit.
    pub overflow: Overflow,
    /// Tagging: segment of every token; the reference has 1 where others have 0.
    pub tagged_segment: u32,
    /// Whether examples are to be learned from: those without a label are refused, questions whose
    /// answer is not in the text left out and counted.
    pub training: bool,
}

impl FeatureOptions {
    /// A task's defaults.
    pub fn of(spec: &TaskSpec) -> Self {
        FeatureOptions {
            max_seq_length: spec.max_seq_length,
            doc_stride: spec.doc_stride,
            max_query_length: 64,
            overflow: Overflow::Windows,
            tagged_segment: 0,
            training: false,
        }
    }
}

/// Questions that something holds of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// How many.
    pub count: u64,
    /// What the first is called, and where it stands; empty if there is none.
    pub first: String,
}

impl Questions {
    /// Counts one.
    pub(super) fn add(&mut self, question: &Example) {
        if self.count == 0 {
            self.first = format!("{:?} ({})", question.id, question.place);
        }
        self.count += 1;
    }
}

/// What had to be done to fit examples to a network. Say it once, after reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureCounts {
    /// Examples of which something was cut.
    pub truncated: u64,
    /// Sentences and texts seen through several windows.
    pub windowed: u64,
    /// Words that did not fit.
    pub words_left_out: u64,
    /// Words longer than a window, cut.
    pub words_cut: u64,
    /// Words that have no token (control characters); `[UNK]` stands for them.
    pub words_without_tokens: u64,
    /// Entities that began with `I-` or `E-`; they were read as entities.
    pub entities_begun_inside: u64,
    /// Those whose answer was not where it was said to be, or not said to be anywhere, and was found
    /// in the text.
    pub answers_moved: Questions,
    /// Those whose answer is nowhere in the text.
    pub answers_not_found: Questions,
    /// Labels that the data gives by number, with their names.
    pub labels_by_number: BTreeMap<u32, String>,
}

impl FeatureCounts {
    /// What happened, in words; empty if nothing did.
    pub fn notes(&self) -> Vec<String> {
        let by_number: Vec<String> = self
            .labels_by_number
            .iter()
            .map(|(number, name)| format!("{number} as {name}"))
            .collect();
        let by_number = (!by_number.is_empty()).then(|| {
            format!(
                "labels are numbers, read as the model's numbers of its labels: {}",
                shown(&by_number)
            )
        });
        let counts = [
            (self.truncated, "examples were cut to the length"),
            (self.windowed, "examples are seen through several windows"),
            (self.words_left_out, "words did not fit and were left out"),
            (
                self.words_cut,
                "words were longer than a window and were cut",
            ),
            (
                self.words_without_tokens,
                "words have no token; [UNK] stands for them",
            ),
            (
                self.entities_begun_inside,
                "entities begin with I- or E-; they were read as entities",
            ),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"));
        let questions = [
            (
                &self.answers_moved,
                "answers were not at their offset, or had none, and were found in the text",
            ),
            (
                &self.answers_not_found,
                "questions have an answer that is not in the text",
            ),
        ]
        .into_iter()
        .filter(|(questions, _)| questions.count > 0)
        .map(|(Questions { count, first }, what)| {
            format!("{count} {what}; the first question is {first}")
        });
        by_number
            .into_iter()
            .chain(counts)
            .chain(questions)
            .collect()
    }

    /// Notes a label if data gives it by number.
    pub(super) fn note_number(&mut self, labels: &LabelSet, label: &str) {
        if let Some(number) = labels.number(label)
            && !self.labels_by_number.contains_key(&number)
        {
            let name = labels.names()[number as usize].clone();
            self.labels_by_number.insert(number, name);
        }
    }
}

/// Makes features of a task's examples.
#[derive(Clone, Debug)]
pub struct Featurizer {
    pub(super) tokenizer: Tokenizer,
    pub(super) labels: LabelSet,
    pub(super) options: FeatureOptions,
    kind: TaskKind,
}

impl Featurizer {
    /// For a task's kind, with labels by number.
    ///
    /// # Errors
    /// A length that leaves no room for text.
    pub fn new(
        kind: TaskKind,
        tokenizer: Tokenizer,
        labels: LabelSet,
        options: FeatureOptions,
    ) -> Result<Self, TaskError> {
        let least = match kind {
            TaskKind::QuestionAnswering => options.max_query_length + 4,
            _ => 5,
        };
        if options.max_seq_length < least {
            return Err(TaskError::Options(format!(
                "max_seq_length {} leaves no room for text; it must be at least {least}",
                options.max_seq_length
            )));
        }
        if options.doc_stride == 0 {
            return Err(TaskError::Options("doc_stride must be at least 1".into()));
        }
        Ok(Featurizer {
            tokenizer,
            labels,
            options,
            kind,
        })
    }

    /// The labels.
    pub fn labels(&self) -> &LabelSet {
        &self.labels
    }

    /// How features are made.
    pub fn options(&self) -> &FeatureOptions {
        &self.options
    }

    /// The ids of a text; special tokens that it names are recognised, as in transformers.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        if text.contains('[') && SPECIAL_TOKENS.iter().any(|name| text.contains(name)) {
            let spans = self.tokenizer.encode_with_offsets(text)?;
            return Ok(spans.into_iter().map(|s| s.id).collect());
        }
        Ok(self.tokenizer.encode(text))
    }

    /// What the network sees of an example, which has this number: one, several windows, or, of a
    /// question that cannot be learned from, none.
    ///
    /// # Errors
    /// A label that is unknown, missing in training, or not of the task's kind.
    pub fn features(
        &self,
        number: usize,
        example: &Example,
        counts: &mut FeatureCounts,
    ) -> Result<Vec<Features>, TaskError> {
        if self.options.training && example.gold.is_none() {
            return Err(TaskError::Example {
                place: example.place.clone(),
                what: "no label to learn from".into(),
            });
        }
        match (&example.input, self.kind) {
            (Input::Words(words), TaskKind::Tagging) => {
                tagging::features(self, number, example, words, counts)
            }
            (Input::Question { .. }, TaskKind::QuestionAnswering) => {
                Ok(question::Windows::new(self, number, example, counts)?.into_features())
            }
            (Input::Choices { first, choices }, TaskKind::MultipleChoice) => {
                let first = self.encode(first)?;
                let mut sequences = Vec::with_capacity(choices.len());
                let mut cut = false;
                for choice in choices {
                    let choice = self.encode(choice)?;
                    let (sequence, shorter) = self.sequence(first.clone(), Some(choice));
                    sequences.push(sequence);
                    cut |= shorter;
                }
                counts.truncated += u64::from(cut);
                let target = match &example.gold {
                    None => None,
                    Some(Gold::Choice(choice)) => Some(Target::Class(*choice as u32)),
                    Some(_) => return Err(wrong_gold(example)),
                };
                Ok(vec![whole(number, sequences, target)])
            }
            (
                Input::Text { first, second },
                TaskKind::Classification | TaskKind::MultiLabel | TaskKind::Regression,
            ) => {
                let first = self.encode(first)?;
                let second = second.as_deref().map(|s| self.encode(s)).transpose()?;
                let (sequence, cut) = self.sequence(first, second);
                counts.truncated += u64::from(cut);
                let target = self.target(example, counts)?;
                Ok(vec![whole(number, vec![sequence], target)])
            }
            _ => Err(TaskError::Example {
                place: example.place.clone(),
                what: format!("not an example of {:?}", self.kind),
            }),
        }
    }

    fn sequence(&self, first: Vec<u32>, second: Option<Vec<u32>>) -> (super::Sequence, bool) {
        texts::sequence(
            self.tokenizer.special(),
            first,
            second,
            self.options.max_seq_length,
        )
    }

    /// The target of a text.
    fn target(
        &self,
        example: &Example,
        counts: &mut FeatureCounts,
    ) -> Result<Option<Target>, TaskError> {
        let mut id = |label: &String| {
            counts.note_number(&self.labels, label);
            self.labels
                .id(label)
                .ok_or_else(|| TaskError::UnknownLabel {
                    place: example.place.clone(),
                    label: label.clone(),
                    known: shown(self.labels.names()),
                    hint: example.place.header_hint(),
                })
        };
        Ok(match (&example.gold, self.kind) {
            (None, _) => None,
            (Some(Gold::Class(label)), TaskKind::Classification) => Some(Target::Class(id(label)?)),
            (Some(Gold::Labels(labels)), TaskKind::MultiLabel) => {
                let mut holds = vec![false; self.labels.len()];
                for label in labels {
                    holds[id(label)? as usize] = true;
                }
                Some(Target::Labels(holds))
            }
            (Some(Gold::Value(value)), TaskKind::Regression) => Some(Target::Value(*value)),
            _ => return Err(wrong_gold(example)),
        })
    }
}

fn whole(number: usize, sequences: Vec<super::Sequence>, target: Option<Target>) -> Features {
    Features {
        example: number,
        sequences,
        words: Vec::new(),
        context: 0..0,
        target,
    }
}

pub(super) fn wrong_gold(example: &Example) -> TaskError {
    TaskError::Example {
        place: example.place.clone(),
        what: "the label is of another kind of task".into(),
    }
}
