//! Fine-tuned models as directories: what transformers reads, and beside it what it does not know.
//!
//! `config.json` has a key of its own, `electra_tasks`: a list of the tasks with their heads and
//! labels. Where there is none, the directory is transformers' and has one head.

use super::network::TaskNetwork;
use super::{HeadKind, HeadSpec, HeadStyle, reference_width};
use crate::config::ElectraConfig;
use crate::files::{FileError, ModelDir, ModelKind, NamedTensor, Wanted, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The key of `config.json`.
const KEY: &str = "electra_tasks";

/// A task of a fine-tuned model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskEntry {
    /// Its head.
    #[serde(flatten)]
    pub head: HeadSpec,
    /// Names of its classes, labels or tags, in their order.
    #[serde(default)]
    pub labels: Vec<String>,
    /// What else whoever prepares its data must know, as written by whoever fine-tuned.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
}

impl ModelKind {
    /// The kind of model that one such head makes in transformers; `None` where it has no class
    /// that would compute the same.
    pub fn of_head(head: &HeadSpec) -> Option<Self> {
        if head.style != HeadStyle::Hf || head.crf {
            return None;
        }
        Some(match head.kind {
            HeadKind::Classification | HeadKind::MultiLabel | HeadKind::Regression => {
                Self::SequenceClassification
            }
            HeadKind::Tagging => Self::TokenClassification,
            HeadKind::QuestionAnswering => Self::QuestionAnswering,
            HeadKind::MultipleChoice => Self::MultipleChoice,
        })
    }
}

/// Writes the tasks into a configuration: for transformers, where one head makes a model of its
/// own there, and under our key.
pub fn describe(config: &mut ElectraConfig, tasks: &[TaskEntry]) {
    config.id2label = None;
    config.label2id = None;
    config.problem_type = None;
    let alone = match tasks {
        [task] => ModelKind::of_head(&task.head).map(|kind| (task, kind)),
        _ => None,
    };
    let architecture = match alone {
        Some((task, kind)) => {
            match task.head.kind {
                HeadKind::Regression => config.set_labels(["LABEL_0"]),
                HeadKind::QuestionAnswering | HeadKind::MultipleChoice => {}
                _ => config.set_labels(task.labels.iter().cloned()),
            }
            let problem = match task.head.kind {
                HeadKind::Classification => Some("single_label_classification"),
                HeadKind::MultiLabel => Some("multi_label_classification"),
                HeadKind::Regression => Some("regression"),
                _ => None,
            };
            config.problem_type = problem.map(str::to_owned);
            kind.architecture()
        }
        // It reads the encoder and says that there is more.
        None => ModelKind::Encoder.architecture(),
    };
    config.architectures = Some(vec![architecture.to_owned()]);
    config.dtype = Some("float32".into());
    if let Ok(value) = serde_json::to_value(tasks) {
        config.other.insert(KEY.into(), value);
    }
}

/// Writes a network of the flat array `values` to `dir`, without its tokenizer.
///
/// # Errors
/// [`FileError`] of the disk.
pub fn write_task_model(
    dir: &Path,
    config: &ElectraConfig,
    tasks: &[TaskEntry],
    network: &TaskNetwork,
    values: &[f32],
) -> Result<(), FileError> {
    std::fs::create_dir_all(dir).map_err(FileError::write(dir))?;
    let tensors = network.layout.params().iter().map(|p| NamedTensor {
        name: &p.names[0],
        shape: &p.shape,
        values: &values[p.view.range()],
    });
    write_safetensors(&dir.join("model.safetensors"), tensors)?;
    let mut config = config.clone();
    describe(&mut config, tasks);
    Ok(config.write(dir.join("config.json"))?)
}

/// The tasks that the model in `dir` was fine-tuned for.
///
/// # Errors
/// A model that was not fine-tuned; an entry of `config.json` that cannot be read.
pub fn read_tasks(dir: &ModelDir) -> Result<Vec<TaskEntry>, FileError> {
    let config = dir.config();
    let unsupported = |problem: String| FileError::Unsupported {
        path: dir.path().into(),
        problem,
    };
    if let Some(value) = config.other.get(KEY) {
        let tasks: Vec<TaskEntry> = serde_json::from_value(value.clone())
            .map_err(|e| unsupported(format!("\"{KEY}\" in config.json cannot be read: {e}")))?;
        let mut names: Vec<&str> = tasks.iter().map(|t| t.head.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if tasks.is_empty() || names.len() < tasks.len() || tasks.iter().any(|t| !is_sound(t)) {
            return Err(unsupported(format!(
                "\"{KEY}\" in config.json has no task, a name twice, or a head of impossible size"
            )));
        }
        return Ok(tasks);
    }
    let labels = || (0..config.num_labels()).map(|i| config.label(i)).collect();
    let (kind, labels): (HeadKind, Vec<String>) = match dir.kind() {
        ModelKind::SequenceClassification => match config.problem_type.as_deref() {
            Some("regression") => (HeadKind::Regression, Vec::new()),
            Some("multi_label_classification") => (HeadKind::MultiLabel, labels()),
            // As transformers decides where nothing is said.
            None if config.num_labels() == 1 => (HeadKind::Regression, Vec::new()),
            _ => (HeadKind::Classification, labels()),
        },
        ModelKind::TokenClassification => (HeadKind::Tagging, labels()),
        ModelKind::QuestionAnswering => (HeadKind::QuestionAnswering, Vec::new()),
        ModelKind::MultipleChoice => {
            check_summary(config).map_err(unsupported)?;
            (HeadKind::MultipleChoice, Vec::new())
        }
        kind => {
            return Err(unsupported(format!(
                "it is {kind} and was not fine-tuned; run `electra finetune` first"
            )));
        }
    };
    let outputs = match kind {
        HeadKind::Regression | HeadKind::MultipleChoice => 1,
        HeadKind::QuestionAnswering => 2,
        _ => labels.len(),
    };
    Ok(vec![TaskEntry {
        head: HeadSpec {
            name: "task".into(),
            kind,
            style: HeadStyle::Hf,
            outputs,
            crf: false,
            value_scale: 1.0,
            span_width: reference_width(),
        },
        labels,
        settings: BTreeMap::new(),
    }])
}

/// Refuses a head for choices that looks at a text as this program's does not.
fn check_summary(config: &ElectraConfig) -> Result<(), String> {
    let activation = config.summary_activation.as_deref();
    if config.summary_type != "first" {
        return Err(format!(
            "\"summary_type\" in config.json is {:?}; only \"first\", which looks at [CLS], is \
             supported",
            config.summary_type
        ));
    }
    match activation {
        None | Some("" | "gelu") => Ok(()),
        Some(other) => Err(format!(
            "\"summary_activation\" in config.json is {other:?}; only \"gelu\" or none is supported"
        )),
    }
}

/// Largest size of a head that is believed.
const LARGEST: usize = 1 << 20;

fn is_sound(task: &TaskEntry) -> bool {
    let head = &task.head;
    let outputs = match head.kind {
        HeadKind::Regression | HeadKind::MultipleChoice => 1,
        HeadKind::QuestionAnswering => 2,
        _ => task.labels.len(),
    };
    head.outputs == outputs
        && head.value_scale.is_finite()
        && head.value_scale > 0.0
        && (1..=LARGEST).contains(&outputs)
        && (1..=LARGEST).contains(&head.span_width)
}

/// Reads the values of a fine-tuned network from `dir`.
///
/// # Errors
/// Tensors that are missing, of another shape or not finite.
pub fn read_values(dir: &ModelDir, network: &TaskNetwork) -> Result<Vec<f32>, FileError> {
    let mut values = vec![0.0; network.layout.len()];
    load(dir, network, &mut values, |_| false)?;
    Ok(values)
}

/// Reads the encoder in `dir`, whatever head it has, over fresh `values`; the heads stay fresh.
///
/// # Errors
/// As for [`read_values`].
pub fn read_encoder(
    dir: &ModelDir,
    network: &TaskNetwork,
    values: &mut [f32],
) -> Result<(), FileError> {
    load(dir, network, values, |name| !name.starts_with("electra."))
}

fn load(
    dir: &ModelDir,
    network: &TaskNetwork,
    values: &mut [f32],
    leave: impl Fn(&str) -> bool,
) -> Result<(), FileError> {
    let params = network.layout.params();
    let params: Vec<_> = params.iter().filter(|p| !leave(&p.names[0])).collect();
    let wanted: Vec<Wanted> = params
        .iter()
        .map(|p| Wanted {
            name: &p.names[0],
            shape: &p.shape,
            optional: false,
        })
        .collect();
    dir.load(&wanted, |i, read| {
        values[params[i].view.range()].copy_from_slice(read);
    })?;
    Ok(())
}
