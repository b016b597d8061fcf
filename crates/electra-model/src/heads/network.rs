//! An encoder with a head for each of its tasks.

use super::crf::Crf;
use super::joint_span::JointSpanHead;
use super::layers::HeadLayers;
use super::{
    HeadKind, HeadSpec, HeadStyle, classification, linear, multiple_choice, question_answering,
    token_classification,
};
use crate::config::ElectraConfig;
use crate::encoder::Encoder;
use electra_engine::params::ParamLayout;

/// The layers of a head.
#[derive(Clone, Copy, Debug)]
pub enum HeadNetwork {
    /// Logits row by row.
    Layers(HeadLayers),
    /// The reference's head for answers.
    JointSpan(JointSpanHead),
}

/// A head in a network.
#[derive(Clone, Debug)]
pub struct Head {
    /// What it is.
    pub spec: HeadSpec,
    /// Its layers.
    pub network: HeadNetwork,
    /// What stands on top of a tagging head, if anything.
    pub crf: Option<Crf>,
}

/// A shared encoder, one head a task, and the layout of all their parameters.
#[derive(Clone, Debug)]
pub struct TaskNetwork {
    /// Every parameter under the name of its state dict.
    pub layout: ParamLayout,
    /// The encoder.
    pub encoder: Encoder,
    /// In the order of their tasks.
    pub heads: Vec<Head>,
}

/// Sites of the heads' dropouts begin here, above those of any encoder.
const SITES: u32 = 1 << 20;

impl TaskNetwork {
    /// Declares the heads, then the encoder. One head alone has the names of transformers' state
    /// dict; of several each has `tasks.NAME.` before them.
    pub fn new(config: &ElectraConfig, specs: &[HeadSpec]) -> Self {
        let mut layout = ParamLayout::new();
        let heads = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| {
                let prefix = match specs.len() {
                    1 => String::new(),
                    _ => format!("tasks.{}.", spec.name),
                };
                declare(&mut layout, &prefix, config, spec, SITES + 2 * i as u32)
            })
            .collect();
        let encoder = Encoder::declare(&mut layout, config);
        TaskNetwork {
            layout,
            encoder,
            heads,
        }
    }
}

fn declare(
    layout: &mut ParamLayout,
    prefix: &str,
    config: &ElectraConfig,
    spec: &HeadSpec,
    site: u32,
) -> Head {
    use HeadKind::*;
    let outputs = spec.outputs;
    let network =
        match (spec.style, spec.kind) {
            (HeadStyle::Google, QuestionAnswering) => HeadNetwork::JointSpan(
                JointSpanHead::declare(layout, prefix, config, spec.span_width),
            ),
            (HeadStyle::Google, _) => {
                HeadNetwork::Layers(linear::declare(layout, prefix, config, outputs, site))
            }
            (HeadStyle::Hf, Classification | MultiLabel | Regression) => HeadNetwork::Layers(
                classification::declare(layout, prefix, config, outputs, site),
            ),
            (HeadStyle::Hf, Tagging) => HeadNetwork::Layers(token_classification::declare(
                layout, prefix, config, outputs, site,
            )),
            (HeadStyle::Hf, QuestionAnswering) => {
                HeadNetwork::Layers(question_answering::declare(layout, prefix, config, site))
            }
            (HeadStyle::Hf, MultipleChoice) => {
                HeadNetwork::Layers(multiple_choice::declare(layout, prefix, config, site))
            }
        };
    let depth = config.num_hidden_layers + 2;
    let crf =
        (spec.crf && spec.kind == Tagging).then(|| Crf::declare(layout, prefix, outputs, depth));
    Head {
        spec: spec.clone(),
        network,
        crf,
    }
}
