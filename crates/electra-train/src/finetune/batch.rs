//! Examples to packed batches: which rows a head reads, and what it should say of them.

use electra_data::tasks::{Features, Target};
use electra_engine::batch::PackedBatch;
use electra_model::heads::crf::Decision;
use electra_model::heads::step::{Targets, TaskInput};
use electra_model::heads::{HeadKind, HeadSpec, HeadStyle};

/// A batch of one task on the host.
#[derive(Clone, Debug)]
pub struct HostBatch {
    packed: PackedBatch,
    rows: Vec<u32>,
    /// One group of rows each of the features.
    bounds: Vec<u32>,
    first_example: u32,
    /// What is to be predicted; `None` where one of the features does not say.
    pub targets: Option<Targets>,
}

impl HostBatch {
    /// Packs `features` for a head. `first_example` is the number of their first sequence in the
    /// global batch.
    pub fn new(head: &HeadSpec, features: &[&Features], first_example: u32) -> Self {
        let mut packed = PackedBatch::new();
        let mut rows = Vec::new();
        let mut bounds = vec![0];
        for features in features {
            let start = packed.tokens() as u32;
            for sequence in &features.sequences {
                if whole_texts(head.kind) {
                    rows.push(packed.tokens() as u32);
                }
                packed.push(&sequence.token_ids, &sequence.type_ids);
            }
            match head.kind {
                HeadKind::Tagging => rows.extend(features.words.iter().map(|word| start + word)),
                HeadKind::QuestionAnswering if head.style == HeadStyle::Hf => {
                    rows.extend(start..packed.tokens() as u32);
                }
                HeadKind::QuestionAnswering => {
                    rows.push(start);
                    rows.extend(features.context.clone().map(|token| start + token));
                }
                _ => {}
            }
            bounds.push(rows.len() as u32);
        }
        HostBatch {
            packed,
            rows,
            bounds,
            first_example,
            targets: targets(head, features),
        }
    }

    /// As a step takes it.
    pub fn input(&self) -> TaskInput<'_> {
        TaskInput {
            batch: &self.packed,
            rows: &self.rows,
            bounds: &self.bounds,
            first_example: self.first_example,
        }
    }

    /// Tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.packed.tokens()
    }

    /// Sequences of the batch.
    pub fn sequences(&self) -> usize {
        self.packed.sequences()
    }

    /// The rows of each of the features.
    pub fn groups(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.bounds
            .windows(2)
            .map(|group| group[0] as usize..group[1] as usize)
    }
}

/// Whether a head reads one row a sequence, its `[CLS]`.
fn whole_texts(kind: HeadKind) -> bool {
    !matches!(kind, HeadKind::Tagging | HeadKind::QuestionAnswering)
}

/// Row of a token within its window's rows, for the head that reads `[CLS]` and the context.
fn joint_row(token: u32, features: &Features) -> u32 {
    match features.context.contains(&token) {
        true => token - features.context.start + 1,
        false => 0,
    }
}

/// The token that such a row stands for.
pub fn joint_token(row: u32, features: &Features) -> u32 {
    match row {
        0 => 0,
        row => features.context.start + row - 1,
    }
}

fn targets(head: &HeadSpec, features: &[&Features]) -> Option<Targets> {
    let each = || features.iter().map(|f| f.target.as_ref());
    Some(match head.kind {
        HeadKind::Classification => Targets::Classes(
            each()
                .map(|t| match t {
                    Some(Target::Class(class)) => Some(Some(*class)),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        HeadKind::MultipleChoice => Targets::Choices(
            each()
                .map(|t| match t {
                    Some(Target::Class(choice)) => Some(*choice),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        HeadKind::MultiLabel => {
            let mut all = Vec::new();
            for target in each() {
                match target {
                    Some(Target::Labels(labels)) => all.extend(labels),
                    _ => return None,
                }
            }
            Targets::Labels(all)
        }
        HeadKind::Regression => Targets::Values(
            each()
                .map(|t| match t {
                    Some(Target::Value(value)) => Some(*value / f64::from(head.value_scale)),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        HeadKind::Tagging => {
            let mut all = Vec::new();
            for target in each() {
                match target {
                    Some(Target::Tags(tags)) => all.extend(tags),
                    _ => return None,
                }
            }
            Targets::Classes(all)
        }
        HeadKind::QuestionAnswering => Targets::Spans(
            features
                .iter()
                .map(|f| match &f.target {
                    Some(Target::Span(None)) => Some((0, 0)),
                    Some(Target::Span(Some((first, last)))) => Some(match head.style {
                        HeadStyle::Hf => (*first, *last),
                        HeadStyle::Google => (joint_row(*first, f), joint_row(*last, f)),
                    }),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
    })
}

/// What the network says of one of the features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureOutput {
    /// `[rows, outputs]`: a row a text, a choice, a word or, of transformers' head for answers, a
    /// token.
    pub logits: Vec<f32>,
    /// `[rows]` tags, where a conditional random field decides.
    pub tags: Option<Vec<Decision>>,
    /// Spans of the reference's head for answers.
    pub window: Option<electra_model::heads::joint_span::WindowSpans>,
}
