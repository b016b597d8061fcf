//! Predictions as the server of GLUE takes them: a file a task, `index` and `prediction`.

use std::path::Path;

use super::{LabelSet, TaskError, TaskSpec};

/// GLUE's tasks.
pub const TASKS: [&str; 9] = [
    "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli",
];

/// What GLUE calls the file of a task's predictions, by the test file they are for, which tells
/// MNLI's two and the diagnostic data apart; `None` for other tasks.
pub fn file_name(task: &str, test_file: &Path) -> Option<&'static str> {
    let name = test_file.file_name().and_then(|n| n.to_str());
    let name = name.unwrap_or_default().to_ascii_lowercase();
    let mismatched = name.contains("mismatched") || name.contains("-mm");
    let diagnostic = name.contains("diagnostic") || name.split('.').next() == Some("ax");
    Some(match task {
        "mnli" if diagnostic => "AX.tsv",
        "cola" => "CoLA.tsv",
        "sst2" => "SST-2.tsv",
        "mrpc" => "MRPC.tsv",
        "stsb" => "STS-B.tsv",
        "qqp" => "QQP.tsv",
        "mnli" if mismatched => "MNLI-mm.tsv",
        "mnli" => "MNLI-m.tsv",
        "qnli" => "QNLI.tsv",
        "rte" => "RTE.tsv",
        "wnli" => "WNLI.tsv",
        _ => return None,
    })
}

/// A model's labels by number as the server calls them.
///
/// # Errors
/// A task that is not GLUE's; labels that are not the task's.
pub fn server_labels(spec: &TaskSpec, labels: &LabelSet) -> Result<LabelSet, TaskError> {
    let refuse = |what: String| Err(TaskError::Options(what));
    if !TASKS.contains(&spec.name.as_str()) {
        return refuse(format!(
            "GLUE's server takes no {}; its tasks are {}",
            spec.name,
            TASKS.join(" ")
        ));
    }
    let Some(known) = &spec.labels else {
        return Ok(labels.clone());
    };
    // Upper or lower case, hyphen or underscore: the same label.
    let plain = |label: &String| label.to_lowercase().replace(['-', ' '], "_");
    let own: Vec<String> = labels.names().iter().map(plain).collect();
    let found = own
        .iter()
        .map(|own| known.iter().find(|k| plain(k) == *own));
    if let Some(found) = found.collect::<Option<Vec<_>>>()
        && found.len() == known.len()
    {
        return LabelSet::new(found.into_iter().cloned().collect());
    }
    // 0 and 1 are numbers of classes, whatever a model calls them.
    if own.len() == known.len() && known[0] == "0" {
        return LabelSet::new(known.clone());
    }
    refuse(format!(
        "GLUE's server takes {} for {}, but the model's labels are {}",
        known.join(", "),
        spec.name,
        labels.names().join(", ")
    ))
}

/// Lines of predictions, in the order of the test file.
#[derive(Clone, Copy, Debug)]
pub struct Submission {
    range: Option<(i32, i32)>,
}

impl Submission {
    /// What stands before the first.
    pub const HEADER: &str = "index\tprediction";

    /// For a task.
    pub fn new(spec: &TaskSpec) -> Self {
        Submission { range: spec.range }
    }

    /// The label of the example with this id.
    pub fn label(&self, id: &str, label: &str) -> String {
        format!("{id}\t{label}")
    }

    /// The number of the example with this id, within the task's range, with three decimals.
    pub fn value(&self, id: &str, value: f64) -> String {
        let value = match self.range {
            Some((least, most)) => value.clamp(f64::from(least), f64::from(most)),
            None => value,
        };
        format!("{id}\t{value:.3}")
    }
}
