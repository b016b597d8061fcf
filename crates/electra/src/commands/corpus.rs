//! How `vocab` and `prepare` read their inputs, and how they show where they are.

use anyhow::Result;
use clap::ValueEnum;
use electra_data::read::{Format, ReadOptions, TextLayout};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Kinds of files by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// Plain text
    Txt,
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
    /// Tab-separated values with a header
    Tsv,
    /// Apache Parquet
    Parquet,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Txt => Format::Text,
            FormatName::Jsonl => Format::Jsonl,
            FormatName::Csv => Format::Csv,
            FormatName::Tsv => Format::Tsv,
            FormatName::Parquet => Format::Parquet,
        }
    }
}

/// How inputs are read.
#[derive(Clone, Debug, clap::Args)]
pub struct ReadArgs {
    /// Read every input as this [default: by the name of each; text from standard input]
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// JSON field or table column that holds the text
    #[arg(long, default_value = "text")]
    field: String,
    /// In plain text each line is a document [default: a blank line ends one]
    #[arg(long)]
    one_document_per_line: bool,
    /// Put U+FFFD in place of invalid UTF-8 and go on
    #[arg(long)]
    lossy: bool,
}

impl ReadArgs {
    /// The same for the reader.
    pub fn options(&self) -> ReadOptions {
        ReadOptions {
            format: self.format.map(Format::from),
            layout: match self.one_document_per_line {
                true => TextLayout::Line,
                false => TextLayout::BlankLine,
            },
            field: self.field.clone(),
            lossy: self.lossy,
        }
    }
}

/// Says on stderr how much invalid UTF-8 was replaced.
pub fn report_invalid(count: u64) {
    if count > 0 {
        let sequences = counted(count, "invalid UTF-8 sequence");
        tell!("warning: U+FFFD put in the place of {sequences}");
    }
}

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress through a corpus: on a terminal a line that changes, elsewhere one now and then.
#[derive(Debug)]
pub struct Meter {
    bar: Option<ProgressBar>,
    start: Instant,
    shown: Instant,
}

impl Meter {
    /// Begins to measure.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Meter {
            bar,
            start: Instant::now(),
            shown: Instant::now(),
        }
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Shows that `bytes` of text are done, and `rest`.
    pub fn show(&mut self, bytes: u64, rest: std::fmt::Arguments) {
        let interval = match self.bar {
            Some(_) => Duration::from_millis(100),
            None => LINE_INTERVAL,
        };
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let megabytes = bytes as f64 / 1e6;
        let speed = megabytes / self.seconds().max(1e-9);
        let line = format!("{megabytes:.1} MB of text, {speed:.1} MB/s, {rest}");
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None => tell!("{line}"),
        }
    }

    /// Clears the line of a terminal.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A number with a comma every three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and what is counted, such as `1 shard`.
pub fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// Writes a result to stdout: one JSON object, or a line for people.
pub fn print_result(
    json: bool,
    object: serde_json::Value,
    line: std::fmt::Arguments,
) -> Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{object}")?;
    } else {
        writeln!(stdout, "{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let groups = [7, 123, 1234, 1234567].map(grouped);
        assert_eq!(groups, ["7", "123", "1,234", "1,234,567"]);
        assert_eq!(
            [counted(1, "shard"), counted(0, "shard")],
            ["1 shard", "0 shards"]
        );
    }
}
