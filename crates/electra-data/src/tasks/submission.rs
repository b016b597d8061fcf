//! Predictions as the server of GLUE takes them: a file a task, `index` and `prediction`.

use std::io::{self, Write};
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

/// Writes predictions in order.
pub struct Submission<W: Write> {
    out: W,
    range: Option<(i32, i32)>,
}

impl<W: Write> Submission<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Those of writing.
    pub fn new(spec: &TaskSpec, mut out: W) -> io::Result<Self> {
        writeln!(out, "index\tprediction")?;
        Ok(Submission {
            out,
            range: spec.range,
        })
    }

    /// The label of the example with this id.
    ///
    /// # Errors
    /// Those of writing.
    pub fn label(&mut self, id: &str, label: &str) -> io::Result<()> {
        writeln!(self.out, "{id}\t{label}")
    }

    /// The number of the example with this id, within the task's range, with three decimals.
    ///
    /// # Errors
    /// Those of writing.
    pub fn value(&mut self, id: &str, value: f64) -> io::Result<()> {
        let value = match self.range {
            Some((least, most)) => value.clamp(f64::from(least), f64::from(most)),
            None => value,
        };
        writeln!(self.out, "{id}\t{value:.3}")
    }

    /// Writes what is left and gives the writer back.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}
