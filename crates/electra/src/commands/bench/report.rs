//! What was measured, as a JSON object or a line for people.

use super::measure::{Repetition, Spread, peak_rss_bytes};
use crate::commands::corpus::grouped;
use crate::device::Facts;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::Write;

/// An object with `fields` in their order.
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// The settings that every measurement on a device has.
pub fn device(facts: &Facts) -> Map<String, Value> {
    object([
        ("precision", facts.precision.into()),
        ("threads", facts.threads.into()),
        ("isa", facts.isa.map(|isa| isa.name()).into()),
    ])
}

/// A number with as many digits as mean something.
pub fn rounded(x: f64) -> Value {
    if !x.is_finite() {
        return Value::Null;
    }
    let digits = (5 - x.abs().max(1e-9).log10().floor() as i32).clamp(0, 9);
    let scale = 10f64.powi(digits);
    json!((x * scale).round() / scale)
}

/// Adds `name`, `name_min` and `name_max`.
pub fn add_spread(object: &mut Map<String, Value>, name: &str, spread: Spread) {
    object.insert(name.to_owned(), rounded(spread.median));
    object.insert(format!("{name}_min"), rounded(spread.min));
    object.insert(format!("{name}_max"), rounded(spread.max));
}

/// Speed of repetitions of one kind of work.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Milliseconds of a batch.
    pub ms: Spread,
    /// Real tokens a second.
    pub tokens_per_s: Spread,
    /// Billions of operations in matrix products a second.
    pub gflops: Spread,
    /// The same of the registers.
    pub peak_gflops: Option<Spread>,
}

impl Speed {
    /// Of at least one repetition.
    pub fn of(repetitions: &[Repetition]) -> Self {
        let spread = |value: fn(&Repetition) -> f64| Spread::of(repetitions.iter().map(value));
        let peaks: Option<Vec<f64>> = repetitions.iter().map(|r| r.peak_gflops).collect();
        Speed {
            ms: spread(|r| 1e3 * r.seconds / r.work.batches),
            tokens_per_s: spread(|r| r.work.tokens / r.seconds),
            gflops: spread(|r| r.work.flops / r.seconds / 1e9),
            peak_gflops: peaks.map(Spread::of),
        }
    }

    /// Share of the registers' rate that was reached.
    pub fn fraction_of_peak(&self) -> Option<f64> {
        Some(self.gflops.median / self.peak_gflops?.median)
    }

    /// Adds time and rates.
    pub fn add_rates(&self, object: &mut Map<String, Value>) {
        add_spread(object, "ms", self.ms);
        object.insert("gflops".into(), rounded(self.gflops.median));
        let peak = self.peak_gflops.map_or(Value::Null, |p| rounded(p.median));
        object.insert("gemm_peak_gflops".into(), peak);
        let fraction = self.fraction_of_peak().map_or(Value::Null, rounded);
        object.insert("fraction_of_peak".into(), fraction);
    }

    /// Adds everything.
    pub fn add_to(&self, object: &mut Map<String, Value>) {
        add_spread(object, "tokens_per_s", self.tokens_per_s);
        self.add_rates(object);
        object.insert("peak_rss_bytes".into(), peak_rss_bytes().into());
    }

    /// Everything, for people.
    pub fn line(&self) -> String {
        let whole = |x: f64| grouped(x.round() as u64);
        let t = self.tokens_per_s;
        let mut line = format!(
            "{} tokens/s ({}–{}), {:.3} ms a batch",
            whole(t.median),
            whole(t.min),
            whole(t.max),
            self.ms.median
        );
        // A String takes everything.
        let _ = write!(line, ", {}", self.rate());
        if let Some(bytes) = peak_rss_bytes() {
            let _ = write!(line, ", at most {} MB", whole(bytes as f64 / 1e6));
        }
        line
    }

    /// The rate beside the registers', for people.
    pub fn rate(&self) -> String {
        let rate = format!("{:.1} GFLOP/s", self.gflops.median);
        match (self.peak_gflops, self.fraction_of_peak()) {
            (Some(peak), Some(share)) => {
                format!("{rate}, {:.1}% of {:.0}", 100.0 * share, peak.median)
            }
            _ => rate,
        }
    }
}

/// Writes one measurement to stdout.
pub fn print(json: bool, object: Map<String, Value>, line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match json {
        true => writeln!(stdout, "{}", Value::Object(object))?,
        false => writeln!(stdout, "{line}")?,
    }
    Ok(())
}
