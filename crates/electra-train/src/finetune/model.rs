//! A fine-tuned model that answers.

use super::batch::FeatureOutput;
use super::outputs::{Outputs, outputs};
use super::task::head_kind;
use electra_data::tasks::{Features, LabelSet, TaskError, TaskSpec};
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_model::config::ElectraConfig;
use electra_model::files::{FileError, ModelDir};
use electra_model::heads::files::{TaskEntry, read_tasks};
use electra_model::heads::network::TaskNetwork;
use electra_model::heads::step::TaskStep;
use electra_model::heads::{HeadKind, HeadSpec};
use electra_model::inference::load_params;

/// Why a model cannot do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum TaskModelError {
    /// The model's files.
    #[error(transparent)]
    Model(#[from] FileError),
    /// The task.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The model was not fine-tuned for this.
    #[error("{0}")]
    Options(String),
}

/// What a model's directory says of one of its tasks.
#[derive(Clone, Debug)]
pub struct ModelTask {
    /// Number of its head.
    pub head: usize,
    /// Head and labels.
    pub entry: TaskEntry,
    /// What was fine-tuned on, where we did it.
    pub spec: Option<TaskSpec>,
}

impl ModelTask {
    /// The task called `name` of the model in `dir`; without a name the only one with a head that
    /// `fits`. A model made elsewhere has one task, whatever it is called.
    ///
    /// # Errors
    /// A model that was not fine-tuned, or not for this task.
    pub fn find(
        dir: &ModelDir,
        name: Option<&str>,
        fits: impl Fn(HeadKind) -> bool,
    ) -> Result<Self, TaskModelError> {
        let entries = read_tasks(dir)?;
        let named = |name: &str| entries.iter().position(|e| e.head.name == name);
        let mut fitting = (0..entries.len()).filter(|&head| fits(entries[head].head.kind));
        let head = match (name.and_then(named), fitting.next(), fitting.next()) {
            _ if entries.len() == 1 => 0,
            (Some(head), ..) => head,
            (None, Some(head), None) if name.is_none() => head,
            _ => {
                let names = |heads: &mut dyn Iterator<Item = &TaskEntry>| {
                    let names: Vec<&str> = heads.map(|e| e.head.name.as_str()).collect();
                    names.join(", ")
                };
                let all = names(&mut entries.iter());
                let fitting = names(&mut entries.iter().filter(|e| fits(e.head.kind)));
                let path = dir.path().display();
                return Err(TaskModelError::Options(match (name, fitting.as_str()) {
                    (Some(name), _) => {
                        format!("{path} has no head for {name}; it has heads for {all}")
                    }
                    (None, "") => format!("{path} has no head for this; it has heads for {all}"),
                    (None, _) => format!("{path} has heads for {fitting}; say which with --task"),
                }));
            }
        };
        let entry = entries[head].clone();
        let spec = entry.settings.get("task");
        Ok(ModelTask {
            spec: spec.and_then(|value| serde_json::from_value(value.clone()).ok()),
            head,
            entry,
        })
    }

    /// The labels, for a task: those of the model, or the task's own where the model only
    /// numbers them.
    ///
    /// # Errors
    /// A task of another kind; a label that stands twice.
    pub fn labels(&self, spec: &TaskSpec) -> Result<LabelSet, TaskModelError> {
        if head_kind(spec.kind) != self.entry.head.kind {
            return Err(TaskModelError::Options(format!(
                "{} is a task of {:?}, but the model's head is for {:?}",
                spec.name, spec.kind, self.entry.head.kind
            )));
        }
        let names = &self.entry.labels;
        let numbered = (0..)
            .zip(names)
            .all(|(i, name)| *name == format!("LABEL_{i}"));
        let known = spec
            .numbered_labels()
            .filter(|known| known.len() == names.len());
        let set = LabelSet::new(match known {
            Some(known) if numbered => known.to_vec(),
            _ => names.clone(),
        })?;
        // Of labels that are numbers themselves, a number that is none is another label.
        let words = set.names().iter().all(|name| name.parse::<i64>().is_err());
        Ok(match words {
            true => set.known_by_number(),
            false => set,
        })
    }
}

/// A fine-tuned network on a device.
#[derive(Debug)]
pub struct TaskModel<B: Backend> {
    config: ElectraConfig,
    network: TaskNetwork,
    params: B::Params,
    step: TaskStep,
}

impl<B: Backend> TaskModel<B> {
    /// Takes the model in `dir` to the backend, with all its heads.
    ///
    /// # Errors
    /// A model that was not fine-tuned; tensors that are missing, of another shape or not finite.
    pub fn load(backend: &mut B, dir: &ModelDir) -> Result<Self, FileError> {
        let specs: Vec<_> = read_tasks(dir)?.into_iter().map(|e| e.head).collect();
        Self::with_heads(backend, dir, &specs)
    }

    fn with_heads(backend: &mut B, dir: &ModelDir, specs: &[HeadSpec]) -> Result<Self, FileError> {
        let mut network = TaskNetwork::new(dir.config(), specs);
        Ok(TaskModel {
            config: dir.config().clone(),
            params: load_params(backend, dir, &mut network.layout)?,
            network,
            step: TaskStep::for_inference(),
        })
    }

    /// Takes the encoder of any model to the backend, without a head.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or not finite.
    pub fn load_encoder(backend: &mut B, dir: &ModelDir) -> Result<Self, FileError> {
        Self::with_heads(backend, dir, &[])
    }

    /// Sizes of the network.
    pub fn config(&self) -> &ElectraConfig {
        &self.config
    }

    /// What head `head` says of `features`, about `batch_tokens` tokens at a time.
    ///
    /// # Errors
    /// A sequence that the model has no position or segment for.
    pub fn outputs(
        &mut self,
        backend: &mut B,
        head: usize,
        features: &[Features],
        batch_tokens: usize,
    ) -> Result<Outputs, TaskModelError> {
        check_fit(&self.config, features)?;
        Ok(outputs(
            backend,
            &mut self.step,
            &self.network,
            head,
            &self.params,
            features,
            batch_tokens,
        ))
    }

    /// The last hidden states of a batch, `[T, H]` row-major.
    pub fn hidden_states(&mut self, backend: &mut B, batch: &PackedBatch) -> Vec<f32> {
        self.step
            .hidden_states(backend, &self.network, &self.params, batch)
    }
}

/// Refuses features that the network has no position, segment or word for.
///
/// # Errors
/// What does not fit.
pub fn check_fit(config: &ElectraConfig, features: &[Features]) -> Result<(), TaskModelError> {
    for sequence in features.iter().flat_map(|f| &f.sequences) {
        let (tokens, positions) = (sequence.token_ids.len(), config.max_position_embeddings);
        if tokens > positions {
            return Err(TaskModelError::Options(format!(
                "a text of {tokens} tokens is longer than the model's {positions} positions; lower \
                 max_seq_length"
            )));
        }
        let types = config.type_vocab_size;
        if sequence.type_ids.iter().any(|&id| id as usize >= types) {
            return Err(TaskModelError::Options(format!(
                "the model knows {types} kind of segment, and a pair of texts has two"
            )));
        }
        let rows = config.vocab_size;
        if sequence.token_ids.iter().any(|&id| id as usize >= rows) {
            return Err(TaskModelError::Options(format!(
                "a token is beyond the model's word table of {rows} rows; the tokenizer is another \
                 model's"
            )));
        }
    }
    Ok(())
}

/// Logits of each row of an output.
pub fn rows(output: &FeatureOutput, outputs: usize) -> impl Iterator<Item = &[f32]> {
    output.logits.chunks_exact(outputs)
}
