//! The kinds of ELECTRA models, as transformers' classes divide them.

use std::fmt;

use serde::Serialize;

/// What a model directory holds: the encoder and which head on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// With the replaced token detection head: `discriminator_predictions.*`.
    Discriminator,
    /// With the masked language modelling head: `generator_predictions.*`, `generator_lm_head.*`.
    Generator,
    /// The encoder alone.
    Encoder,
    /// With a head for whole texts: `classifier.{dense,out_proj}.*`.
    SequenceClassification,
    /// With a head for every token: `classifier.*`.
    TokenClassification,
    /// With start and end of an answer: `qa_outputs.*`.
    QuestionAnswering,
    /// With a score a choice: `sequence_summary.*`, `classifier.*`.
    MultipleChoice,
}

impl ModelKind {
    const ALL: [Self; 7] = [
        Self::Discriminator,
        Self::Generator,
        Self::Encoder,
        Self::SequenceClassification,
        Self::TokenClassification,
        Self::QuestionAnswering,
        Self::MultipleChoice,
    ];

    /// The transformers class of this kind, as in `architectures` of a `config.json`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Discriminator => "ElectraForPreTraining",
            Self::Generator => "ElectraForMaskedLM",
            Self::Encoder => "ElectraModel",
            Self::SequenceClassification => "ElectraForSequenceClassification",
            Self::TokenClassification => "ElectraForTokenClassification",
            Self::QuestionAnswering => "ElectraForQuestionAnswering",
            Self::MultipleChoice => "ElectraForMultipleChoice",
        }
    }

    /// The kind of a transformers class.
    pub fn from_architecture(name: &str) -> Option<Self> {
        if name == "ElectraForCausalLM" {
            return Some(Self::Generator);
        }
        Self::ALL
            .into_iter()
            .find(|kind| kind.architecture() == name)
    }

    /// The kind by its tensors, whose names are in their present form.
    pub fn from_tensors<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut kind = Self::Encoder;
        for name in names {
            // A classifier alone is the weakest sign: multiple choice has one too.
            let sign = if name.starts_with("discriminator_predictions.") {
                Self::Discriminator
            } else if name.starts_with("generator_predictions.")
                || name.starts_with("generator_lm_head.")
            {
                Self::Generator
            } else if name.starts_with("qa_outputs.") {
                Self::QuestionAnswering
            } else if name.starts_with("sequence_summary.") {
                Self::MultipleChoice
            } else if name.starts_with("classifier.out_proj.") {
                Self::SequenceClassification
            } else if name == "classifier.weight" && kind == Self::Encoder {
                Self::TokenClassification
            } else {
                continue;
            };
            kind = sign;
        }
        kind
    }

    /// Whether this kind is pre-trained rather than fine-tuned.
    pub fn is_pretrained(self) -> bool {
        matches!(self, Self::Discriminator | Self::Generator | Self::Encoder)
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discriminator => "a discriminator",
            Self::Generator => "a generator",
            Self::Encoder => "an encoder without a head",
            Self::SequenceClassification => "a text classifier",
            Self::TokenClassification => "a token classifier",
            Self::QuestionAnswering => "a question answering model",
            Self::MultipleChoice => "a multiple choice model",
        })
    }
}
