//! Ten steps of each task family against PyTorch and transformers
//! (`tests/golden/finetune_traces.py`): logits, gradients, losses, and the change of every tensor.

use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_engine::cpu::{Cpu, CpuOptions, Isa, Precision};
use electra_engine::reference::Reference;
use electra_engine::rng::Rng;
use electra_model::config::ElectraConfig;
use electra_model::heads::losses::ClassOptions;
use electra_model::heads::network::TaskNetwork;
use electra_model::heads::step::{Targets, TaskInput, TaskLoss, TaskStep};
use electra_model::heads::{HeadKind, HeadSpec};
use electra_train::finetune::layerwise;
use electra_train::optimizer::{OptimizerConfig, TrainingState};
use electra_train::schedule::Schedule;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;

const FAMILIES: [&str; 11] = [
    "classification",
    "classification_weighted",
    "multi_label",
    "regression",
    "tagging",
    "tagging_crf",
    "question_answering",
    "multiple_choice",
    "google_classification",
    "google_tagging",
    "google_question_answering",
];

/// How far a run may be from the trace, relative to the largest value.
const BOUND: f64 = 1e-4;
/// Of changes over ten steps, in L2: a step divides by the root of small numbers.
const CHANGE_BOUND: f64 = 1e-3;

struct Trace {
    bytes: Vec<u8>,
    metadata: std::collections::HashMap<String, String>,
}

impl Trace {
    fn read(family: &str) -> Trace {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden")
            .join(format!("finetune_{family}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = header.metadata().clone().expect("metadata");
        Trace { bytes, metadata }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let tensor = tensors
            .tensor(name)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let words = tensor.data().chunks_exact(4);
        words
            .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
            .collect()
    }

    fn ints(&self, name: &str) -> Vec<u32> {
        self.floats(name).into_iter().map(f32::to_bits).collect()
    }

    fn json<T: serde::de::DeserializeOwned>(&self, key: &str) -> T {
        serde_json::from_str(&self.metadata[key]).expect("JSON")
    }

    /// A flat array of the layout from the trace's tensors under `kind`.
    fn flat(&self, kind: &str, network: &TaskNetwork) -> Vec<f32> {
        let mut flat = vec![0.0; network.layout.len()];
        for param in network.layout.params() {
            let values = self.floats(&format!("{kind}/{}", param.names[0]));
            flat[param.view.range()].copy_from_slice(&values);
        }
        flat
    }

    fn targets(&self, step: usize, kind: HeadKind) -> Targets {
        let name = format!("step{step}/targets");
        let ints = || self.ints(&name);
        match kind {
            HeadKind::Classification | HeadKind::Tagging => {
                let classes = ints().into_iter();
                Targets::Classes(classes.map(|t| (t != u32::MAX).then_some(t)).collect())
            }
            HeadKind::MultiLabel => Targets::Labels(ints().into_iter().map(|t| t != 0).collect()),
            HeadKind::Regression => {
                Targets::Values(self.floats(&name).into_iter().map(f64::from).collect())
            }
            HeadKind::MultipleChoice => Targets::Choices(ints()),
            HeadKind::QuestionAnswering => {
                Targets::Spans(ints().chunks(2).map(|span| (span[0], span[1])).collect())
            }
        }
    }
}

/// Whether the true gradient is zero, since softmax is blind to a sum: what is there is rounding.
fn is_degenerate(gradient: &[f32]) -> bool {
    gradient.iter().all(|g| g.abs() < 1e-6)
}

fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let max = want.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - f64::from(w)).abs();
        assert!(
            error <= BOUND * max + 1e-7,
            "{what}[{i}]: {g} is not {w} (off by {error:e}, largest {max:e})"
        );
    }
}

/// Runs the trace and compares everything.
fn replay<B: Backend>(backend: &mut B, family: &str) {
    let trace = Trace::read(family);
    let config = ElectraConfig::from_json(&trace.metadata["config"], family).expect("config");
    let spec: HeadSpec = trace.json("head");
    let network = TaskNetwork::new(&config, std::slice::from_ref(&spec));
    let hyper: Value = trace.json("hyperparameters");
    let number = |key: &str| hyper[key].as_f64().unwrap_or_else(|| panic!("{key}"));
    let options = ClassOptions {
        class_weights: serde_json::from_value(hyper["class_weights"].clone()).expect("weights"),
        label_smoothing: number("label_smoothing"),
    };
    let schedule = Schedule {
        learning_rate: number("learning_rate"),
        warmup_steps: number("num_warmup_steps") as u64,
        total_steps: number("num_train_steps") as u64,
        decay_power: 1.0,
    };
    let start = trace.flat("param", &network);
    let mut state = TrainingState::new(backend, &network.layout, &start);
    let (layers, decay) = (config.num_hidden_layers, number("layerwise_lr_decay"));
    state.set_layerwise(&network.layout, |depth| {
        layerwise::factor(depth, layers, decay, false)
    });
    let mut step = TaskStep::for_training();
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for s in 0..10 {
        let get = |name: &str| trace.ints(&format!("step{s}/{name}"));
        let (tokens, types, cu) = (get("token_ids"), get("type_ids"), get("cu_seqlens"));
        let mut batch = PackedBatch::new();
        for w in cu.windows(2) {
            let rows = w[0] as usize..w[1] as usize;
            batch.push(&tokens[rows.clone()], &types[rows]);
        }
        let (rows, bounds) = (get("rows"), get("bounds"));
        let input = TaskInput {
            batch: &batch,
            rows: &rows,
            bounds: &bounds,
            first_example: 0,
        };
        let targets = trace.targets(s, spec.kind);
        let weight = targets.weight(&options);
        let loss = TaskLoss {
            targets: &targets,
            options: &options,
            scale: 1.0 / weight,
        };
        state.begin(backend, loss.scale);
        // Dropout is on, at the configuration's rate of zero.
        let rng = Rng::new(0, s as u64);
        let params = &state.params;
        let output = step.run(
            backend,
            &network,
            0,
            params,
            &input,
            Some(&loss),
            Some(&rng),
            Some(&mut state.grads),
        );
        losses.push((output.loss / weight) as f32);
        let norm = state.gradient_norm(backend);
        assert_eq!(norm.non_finite, None);
        norms.push(norm.norm as f32);
        if s == 0 {
            if spec.span_width == 512 {
                assert_close("logits", &output.logits, &trace.floats("logits"));
            }
            let mut grads = vec![0.0; network.layout.len()];
            backend.read_flat(&state.grads, &mut grads);
            let want = trace.flat("grad", &network);
            for param in network.layout.params() {
                let (name, range) = (&param.names[0], param.view.range());
                if is_degenerate(&want[range.clone()]) {
                    let largest = grads[range].iter().fold(0f32, |m, v| m.max(v.abs()));
                    assert!(largest < 1e-6, "{family}: {name}: {largest:e}");
                } else {
                    let what = format!("{family}: gradient of {name}");
                    assert_close(&what, &grads[range.clone()], &want[range]);
                }
            }
        }
        let lr = schedule.learning_rate(s as u64);
        state.step(backend, &OptimizerConfig::default(), norm.norm, lr);
    }
    assert_close(
        &format!("{family}: losses"),
        &losses,
        &trace.floats("losses"),
    );
    assert_close(
        &format!("{family}: norms"),
        &norms,
        &trace.floats("grad_norm"),
    );
    let mut end = vec![0.0; network.layout.len()];
    backend.read_params(&state.params, &mut end);
    let (want, first) = (trace.flat("final", &network), trace.flat("grad", &network));
    for param in network.layout.params() {
        let name = &param.names[0];
        if is_degenerate(&first[param.view.range()]) {
            continue;
        }
        let (mut off, mut moved) = (0.0f64, 0.0f64);
        for i in param.view.range() {
            off += (f64::from(end[i]) - f64::from(want[i])).powi(2);
            moved += (f64::from(want[i]) - f64::from(start[i])).powi(2);
        }
        let error = (off / moved.max(1e-30)).sqrt();
        assert!(
            error <= CHANGE_BOUND,
            "{family}: change of {name}: {error:e}"
        );
    }
}

#[test]
fn every_family_follows_pytorch_in_the_reference_in_f64() {
    for family in FAMILIES {
        replay(&mut Reference::<f64>::new(), family);
    }
}

#[test]
fn every_family_follows_pytorch_in_the_reference_in_f32() {
    for family in FAMILIES {
        replay(&mut Reference::<f32>::new(), family);
    }
}

#[test]
fn every_family_follows_pytorch_on_the_cpu() {
    for isa in Isa::available() {
        let mut cpu = Cpu::new(CpuOptions {
            threads: Some(2),
            precision: Precision::F32,
            isa: Some(isa),
        })
        .expect("a CPU");
        for family in FAMILIES {
            replay(&mut cpu, family);
        }
    }
}
