//! What a network says of many examples, in batches of about so many tokens.

use super::batch::{FeatureOutput, HostBatch};
use electra_data::tasks::Features;
use electra_engine::backend::Backend;
use electra_model::heads::HeadKind;
use electra_model::heads::losses::ClassOptions;
use electra_model::heads::network::TaskNetwork;
use electra_model::heads::step::{TaskLoss, TaskStep};

/// Outputs of features, in their order.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// One each; of a regression the values themselves.
    pub each: Vec<FeatureOutput>,
    /// Mean loss of those that say what is to be predicted; `None` if none does.
    pub loss: Option<f64>,
}

/// Runs `features` through encoder and head `head`, without dropout, `batch_tokens` tokens or one
/// of the features at a time.
pub fn outputs<B: Backend>(
    backend: &mut B,
    step: &mut TaskStep,
    network: &TaskNetwork,
    head: usize,
    params: &B::Params,
    features: &[Features],
    batch_tokens: usize,
) -> Outputs {
    let spec = &network.heads[head].spec;
    let options = ClassOptions::default();
    let (mut each, mut sum, mut weight) = (Vec::with_capacity(features.len()), 0.0, 0.0);
    let mut first = 0;
    while first < features.len() {
        let mut tokens = 0;
        // Features without a target, such as the windows of a question whose answer is not in its
        // text, are computed apart: a batch has a loss where all of its features have a target.
        let labelled = features[first].target.is_some();
        let fitting = features[first..].iter().take_while(|f| {
            tokens += length(f);
            tokens <= batch_tokens && f.target.is_some() == labelled
        });
        let count = fitting.count().max(1);
        let part: Vec<&Features> = features[first..first + count].iter().collect();
        first += count;
        let batch = HostBatch::new(spec, &part, 0);
        let loss = batch.targets.as_ref().map(|targets| TaskLoss {
            targets,
            options: &options,
            scale: 0.0,
        });
        let output = step.run(
            backend,
            network,
            head,
            params,
            &batch.input(),
            loss.as_ref(),
            None,
            None,
        );
        if let Some(loss) = &loss {
            sum += output.loss;
            weight += loss.targets.weight(&options);
        }
        let mut windows = output.windows.into_iter().flatten();
        for rows in batch.groups() {
            let mut logits = match output.logits.is_empty() {
                true => Vec::new(),
                false => output.logits[rows.start * spec.outputs..rows.end * spec.outputs].to_vec(),
            };
            if spec.kind == HeadKind::Regression {
                logits
                    .iter_mut()
                    .for_each(|value| *value *= spec.value_scale);
            }
            each.push(FeatureOutput {
                logits,
                tags: output.tags.as_ref().map(|tags| tags[rows].to_vec()),
                window: windows.next(),
            });
        }
    }
    Outputs {
        each,
        loss: (weight > 0.0).then(|| sum / weight),
    }
}

/// Tokens of all sequences.
fn length(features: &Features) -> usize {
    features.sequences.iter().map(|s| s.token_ids.len()).sum()
}
