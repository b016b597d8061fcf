//! Predictions as the server of GLUE takes them: a file a task, `index` and `prediction`.

use std::io::{self, Write};
use std::path::Path;

use super::TaskSpec;

/// What GLUE calls the file of a task's predictions, by the test file they are for, which tells
/// MNLI's two apart; `None` for other tasks.
pub fn file_name(task: &str, test_file: &Path) -> Option<&'static str> {
    let name = test_file.file_name().and_then(|n| n.to_str());
    let mismatched = name.is_some_and(|n| n.contains("mismatched") || n.contains("-mm"));
    Some(match task {
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
