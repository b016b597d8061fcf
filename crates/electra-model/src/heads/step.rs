//! One (micro-)batch of a task through encoder and head, forward and backward.

use super::crf::{CrfArrays, CrfValues, Decision};
use super::joint_span::{JointSpanArrays, WindowSpans};
use super::layers::{HeadLayersArrays, HeadLayersGradients};
use super::losses::{
    ClassOptions, Loss, binary_cross_entropy, cross_entropy, grouped_cross_entropy, spans,
    squared_error,
};
use super::network::{Head, HeadNetwork, TaskNetwork};
use crate::encoder::{EncoderArrays, EncoderGradients, EncoderInput};
use electra_engine::backend::*;
use electra_engine::batch::PackedBatch;
use electra_engine::rng::Rng;

/// The batch of one task on the host.
#[derive(Clone, Copy, Debug)]
pub struct TaskInput<'a> {
    /// Its sequences.
    pub batch: &'a PackedBatch,
    /// `[M]` rows that the head reads, ascending.
    pub rows: &'a [u32],
    /// `[G + 1]` where the rows are cut into groups: the words of a sequence, the choices of a
    /// question, the tokens of a window.
    pub bounds: &'a [u32],
    /// Number of the batch's first sequence in the global batch: its dropout's key.
    pub first_example: u32,
}

/// What is to be predicted.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class of each row, where it counts: of texts and of words.
    Classes(Vec<Option<u32>>),
    /// `[M, C]` whether each label holds.
    Labels(Vec<bool>),
    /// A number each row.
    Values(Vec<f64>),
    /// Which row of each group.
    Choices(Vec<u32>),
    /// First and last row of each group; (0, 0) where it holds no answer.
    Spans(Vec<(u32, u32)>),
}

impl Targets {
    /// What a sum of losses is divided by to be a mean: the weight of all rows or groups.
    pub fn weight(&self, options: &ClassOptions) -> f64 {
        match self {
            Targets::Classes(classes) => classes
                .iter()
                .flatten()
                .map(|&class| options.weight(class as usize))
                .sum(),
            Targets::Labels(labels) => labels.len() as f64,
            Targets::Values(values) => values.len() as f64,
            Targets::Choices(choices) => choices.len() as f64,
            Targets::Spans(spans) => spans.len() as f64,
        }
    }
}

/// What is asked of a step beside logits.
#[derive(Clone, Copy, Debug)]
pub struct TaskLoss<'a> {
    /// What is to be predicted.
    pub targets: &'a Targets,
    /// Weights and smoothing of classes.
    pub options: &'a ClassOptions,
    /// Factor on the gradient of the sum of losses.
    pub scale: f64,
}

/// What a step leaves on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskOutput {
    /// Sum of the losses of rows or groups.
    pub loss: f64,
    /// `[M, C]`; none of the reference's head for answers.
    pub logits: Vec<f32>,
    /// `[M]` tags of the best path, where a conditional random field decides.
    pub tags: Option<Vec<Decision>>,
    /// What the reference's head for answers says about each group, in prediction.
    pub windows: Option<Vec<WindowSpans>>,
}

#[derive(Clone, Copy, Debug)]
enum HeadArrays {
    Layers(
        HeadLayersArrays,
        Option<HeadLayersGradients>,
        Option<CrfArrays>,
    ),
    JointSpan(JointSpanArrays),
}

/// Tokens, sequences, rows and groups that there is room for.
type Capacity = [usize; 4];

#[derive(Debug)]
struct Arrays {
    capacity: Capacity,
    token_ids: Ints,
    type_ids: Ints,
    position_ids: Ints,
    example: Ints,
    cu_seqlens: Ints,
    rows: Ints,
    row_example: Ints,
    row_position: Ints,
    row_arrays: RowArrays,
    encoder: EncoderArrays,
    /// The same, cut to the batch.
    cut: EncoderArrays,
    d_encoder: Option<EncoderGradients>,
    heads: Vec<HeadArrays>,
}

/// The device's side of fine-tuning and of prediction: arrays, made anew only when a larger batch
/// comes. They are all that its backend holds.
#[derive(Debug)]
pub struct TaskStep {
    training: bool,
    arrays: Option<Arrays>,
}

impl TaskStep {
    /// For steps with gradients.
    pub fn for_training() -> Self {
        TaskStep {
            training: true,
            arrays: None,
        }
    }

    /// For predictions; takes less memory.
    pub fn for_inference() -> Self {
        TaskStep {
            training: false,
            ..Self::for_training()
        }
    }

    /// Where in forward order the last batch first had a value that is not finite.
    pub fn first_not_finite<B: Backend>(&self, backend: &mut B) -> Option<String> {
        let arrays = self.arrays.as_ref()?;
        arrays.cut.first_not_finite(backend)
    }

    fn reserve<B: Backend>(&mut self, backend: &mut B, network: &TaskNetwork, want: Capacity) {
        let have = self.arrays.as_ref().map_or([0; 4], |a| a.capacity);
        if have.iter().zip(&want).all(|(have, want)| have >= want) {
            return;
        }
        // A little more than asked for: batches grow by small steps.
        let capacity: Capacity =
            std::array::from_fn(|i| have[i].max((want[i] + want[i] / 8).next_multiple_of(16)));
        // Whoever made the old arrays must not keep them beside the new.
        self.arrays = None;
        backend.release_arrays();
        self.arrays = Some(Arrays::new(backend, network, capacity, self.training));
    }

    /// Runs a batch of task `head` forward and, with `grads`, backward: adds the gradient of
    /// `scale · Σ loss`. `rng` turns dropout on. Without `grads` the output has predictions.
    pub fn run<B: Backend>(
        &mut self,
        backend: &mut B,
        network: &TaskNetwork,
        head: usize,
        params: &B::Params,
        input: &TaskInput,
        loss: Option<&TaskLoss>,
        rng: Option<&Rng>,
        grads: Option<&mut B::Flat>,
    ) -> TaskOutput {
        let tokens = input.batch.tokens();
        let groups = input.bounds.len().saturating_sub(1);
        if tokens == 0 || input.rows.is_empty() {
            return TaskOutput::default();
        }
        let rows = input.rows.len();
        let want = [tokens, input.batch.sequences(), rows, groups];
        self.reserve(backend, network, want);
        let Some(arrays) = &mut self.arrays else {
            return TaskOutput::default();
        };
        let (device, rows) = arrays.upload(backend, input);
        let alone = (rows.rows.len < tokens).then_some(rows);
        arrays.cut.cut(&arrays.encoder, tokens, alone);
        let encoder = &mut arrays.cut;
        let hidden = network
            .encoder
            .forward(backend, params, &device, encoder, rng);
        let d_encoder = match (&grads, &arrays.d_encoder) {
            (Some(_), Some(d)) => Some(d.first_rows(tokens)),
            _ => None,
        };
        let d_hidden = d_encoder.as_ref().map(|d| arrays.cut.output_gradient(d));
        if let Some(d_hidden) = d_hidden {
            // There may be no loss to write it.
            backend.zero(d_hidden);
        }
        let on = OnDevice {
            params,
            hidden,
            keys: rows.keys,
            d_hidden,
        };
        let (head, head_arrays) = (&network.heads[head], &arrays.heads[head]);
        let mut grads = grads;
        let output = run_head(
            backend,
            head,
            head_arrays,
            &on,
            input,
            loss,
            rng,
            grads.as_deref_mut(),
        );
        if let (Some(d), Some(grads)) = (d_encoder, grads) {
            network
                .encoder
                .backward(backend, params, &device, &arrays.cut, rng, &d, grads);
        }
        output
    }

    /// The last hidden states of a batch, `[T, H]` row-major.
    pub fn hidden_states<B: Backend>(
        &mut self,
        backend: &mut B,
        network: &TaskNetwork,
        params: &B::Params,
        batch: &PackedBatch,
    ) -> Vec<f32> {
        let (tokens, sequences) = (batch.tokens(), batch.sequences());
        self.reserve(backend, network, [tokens, sequences, 1, 1]);
        let Some(arrays) = self.arrays.as_mut().filter(|_| tokens > 0) else {
            return Vec::new();
        };
        let input = TaskInput {
            batch,
            rows: &[],
            bounds: &[0],
            first_example: 0,
        };
        let (device, _) = arrays.upload(backend, &input);
        arrays.cut.cut(&arrays.encoder, tokens, None);
        let encoder = &mut arrays.cut;
        let hidden = network
            .encoder
            .forward(backend, params, &device, encoder, None);
        let mut values = vec![0.0; hidden.rows * hidden.cols];
        backend.read(hidden, &mut values);
        values
    }
}

impl Arrays {
    fn new<B: Backend>(
        backend: &mut B,
        network: &TaskNetwork,
        capacity: Capacity,
        training: bool,
    ) -> Self {
        let [tokens, sequences, rows, groups] = capacity;
        let encoder = &network.encoder;
        let heads = network.heads.iter().map(|head| match &head.network {
            HeadNetwork::Layers(layers) => HeadArrays::Layers(
                HeadLayersArrays::new(backend, layers, rows),
                training.then(|| HeadLayersGradients::new(backend, layers, rows)),
                head.crf.map(|crf| crf.arrays(backend)),
            ),
            HeadNetwork::JointSpan(joint) => {
                HeadArrays::JointSpan(JointSpanArrays::new(backend, joint, rows, groups))
            }
        });
        let heads = heads.collect();
        let encoder_arrays = match training {
            true => EncoderArrays::for_training(backend, encoder, tokens),
            false => EncoderArrays::for_inference(backend, encoder, tokens),
        };
        Arrays {
            capacity,
            heads,
            token_ids: backend.ints(tokens),
            type_ids: backend.ints(tokens),
            position_ids: backend.ints(tokens),
            example: backend.ints(tokens),
            cu_seqlens: backend.ints(sequences + 1),
            rows: backend.ints(rows),
            row_example: backend.ints(rows),
            row_position: backend.ints(rows),
            row_arrays: encoder.row_arrays(backend, rows),
            cut: encoder_arrays.clone(),
            encoder: encoder_arrays,
            d_encoder: training.then(|| EncoderGradients::new(backend, encoder, tokens)),
        }
    }

    fn upload<B: Backend>(&self, backend: &mut B, input: &TaskInput) -> (EncoderInput, OutputRows) {
        let batch = input.batch;
        let upload = |backend: &mut B, to: Ints, values: &[u32]| {
            let to = to.first(values.len());
            backend.write_ints(to, values);
            to
        };
        let sequences = 0..batch.sequences();
        let example: Vec<u32> = sequences
            .clone()
            .flat_map(|s| batch.rows(s).map(move |_| input.first_example + s as u32))
            .collect();
        let of_rows = |values: &[u32]| -> Vec<u32> {
            input.rows.iter().map(|&r| values[r as usize]).collect()
        };
        let position_ids = upload(backend, self.position_ids, &batch.position_ids);
        let device = EncoderInput {
            token_ids: upload(backend, self.token_ids, &batch.token_ids),
            type_ids: upload(backend, self.type_ids, &batch.type_ids),
            position_ids,
            sequences: Sequences {
                cu_seqlens: upload(backend, self.cu_seqlens, &batch.cu_seqlens),
                keys: RowKeys {
                    example: upload(backend, self.example, &example),
                    position: position_ids,
                },
                longest: sequences.map(|s| batch.rows(s).len()).max().unwrap_or(0),
            },
        };
        let keys = RowKeys {
            example: upload(backend, self.row_example, &of_rows(&example)),
            position: upload(backend, self.row_position, &of_rows(&batch.position_ids)),
        };
        let rows = OutputRows {
            rows: upload(backend, self.rows, input.rows),
            keys,
            arrays: self.row_arrays.first_rows(input.rows.len()),
        };
        (device, rows)
    }
}

/// What a head reads on the device, `[M, H]`, and where its gradient goes.
struct OnDevice<'a, P> {
    params: &'a P,
    hidden: Array,
    keys: RowKeys,
    d_hidden: Option<Array>,
}

fn run_head<B: Backend>(
    backend: &mut B,
    head: &Head,
    arrays: &HeadArrays,
    on: &OnDevice<B::Params>,
    input: &TaskInput,
    loss: Option<&TaskLoss>,
    rng: Option<&Rng>,
    grads: Option<&mut B::Flat>,
) -> TaskOutput {
    let (rows, bounds) = (input.rows.len(), input.bounds);
    match (&head.network, arrays) {
        (HeadNetwork::JointSpan(joint), HeadArrays::JointSpan(arrays)) => {
            let a = arrays.first_rows(rows, bounds.len() - 1);
            let predict = grads.is_none();
            let grads = on.d_hidden.zip(grads);
            let mut output = TaskOutput::default();
            if let Some(TaskLoss {
                targets: Targets::Spans(spans),
                scale,
                ..
            }) = loss
            {
                output.loss = joint.loss(
                    backend, on.params, on.hidden, bounds, spans, *scale, &a, grads,
                );
            }
            if predict {
                let spans = joint.predict(backend, on.params, on.hidden, bounds, &a);
                output.windows = Some(spans);
            }
            output
        }
        (HeadNetwork::Layers(layers), HeadArrays::Layers(arrays, d, crf_arrays)) => {
            let a = arrays.first_rows(rows);
            let out = layers.forward(backend, on.params, on.hidden, &on.keys, &a, rng);
            let mut logits = vec![0.0; out.rows * out.cols];
            backend.read(out, &mut logits);
            let mut output = TaskOutput::default();
            let mut gradient = Vec::new();
            let mut grads = grads;
            if let (Some(crf), Some(crf_arrays)) = (&head.crf, crf_arrays) {
                let values = crf.read(backend, on.params, crf_arrays);
                if grads.is_none() {
                    output.tags = Some(best_paths(&values, &logits, bounds));
                }
                if let Some(loss) = loss {
                    let mut by_params = CrfValues::zeros(values.tags);
                    let found = crf_loss(&values, &logits, bounds, loss, &mut by_params);
                    (output.loss, gradient) = (found.sum, found.gradient);
                    if let Some(grads) = grads.as_deref_mut() {
                        crf.add_gradient(backend, &by_params, crf_arrays, grads);
                    }
                }
            } else if let Some(loss) = loss {
                let found = row_loss(&logits, out.cols, bounds, loss);
                (output.loss, gradient) = (found.sum, found.gradient);
            }
            output.logits = logits;
            if let (Some(d), Some(grads), Some(d_hidden)) = (d, grads, on.d_hidden)
                && loss.is_some()
            {
                let d = d.first_rows(rows);
                let gradient: Vec<f32> = gradient.into_iter().map(|x| x as f32).collect();
                backend.write(d.logits, &gradient);
                let (params, keys) = (on.params, &on.keys);
                layers.backward(backend, params, keys, &a, rng, &d, d_hidden, grads);
            }
            output
        }
        // Arrays are made from the same heads.
        _ => TaskOutput::default(),
    }
}

/// Loss of the heads whose rows, or groups of rows, stand for themselves.
fn row_loss(logits: &[f32], outputs: usize, bounds: &[u32], loss: &TaskLoss) -> Loss {
    let scale = loss.scale;
    match loss.targets {
        Targets::Classes(classes) => cross_entropy(logits, outputs, classes, loss.options, scale),
        Targets::Labels(labels) => binary_cross_entropy(logits, labels, scale),
        Targets::Values(values) => squared_error(logits, values, scale),
        Targets::Choices(choices) => {
            let logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
            grouped_cross_entropy(&logits, bounds, choices, scale)
        }
        Targets::Spans(answers) => spans(logits, bounds, answers, scale),
    }
}

/// Loss of the paths of all groups; words without a tag are left out of their path.
fn crf_loss(
    values: &CrfValues,
    logits: &[f32],
    bounds: &[u32],
    loss: &TaskLoss,
    by_params: &mut CrfValues,
) -> Loss {
    let tags = values.tags;
    let mut all = Loss {
        sum: 0.0,
        gradient: vec![0.0; logits.len()],
    };
    let Targets::Classes(classes) = loss.targets else {
        return all;
    };
    for group in bounds.windows(2) {
        let words: Vec<(usize, u32)> = (group[0] as usize..group[1] as usize)
            .filter_map(|row| Some((row, classes[row]?)))
            .collect();
        let path: Vec<u32> = words.iter().map(|w| w.1).collect();
        let emissions: Vec<f64> = words
            .iter()
            .flat_map(|&(row, _)| &logits[row * tags..][..tags])
            .map(|&x| f64::from(x))
            .collect();
        let one = values.loss(&emissions, &path, loss.scale, by_params);
        all.sum += one.sum;
        for (gradient, &(row, _)) in one.gradient.chunks_exact(tags).zip(&words) {
            all.gradient[row * tags..][..tags].copy_from_slice(gradient);
        }
    }
    all
}

/// The best path of each group.
fn best_paths(values: &CrfValues, logits: &[f32], bounds: &[u32]) -> Vec<Decision> {
    let tags = values.tags;
    let paths = bounds.windows(2).flat_map(|group| {
        let rows = group[0] as usize * tags..group[1] as usize * tags;
        let emissions: Vec<f64> = logits[rows].iter().map(|&x| f64::from(x)).collect();
        values.decide(&emissions)
    });
    paths.collect()
}
