//! Showing how a run goes: a bar on a terminal, plain lines elsewhere.
//!
//! The training loop prints nothing. It calls an [`Observer`], and the binary chooses which.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::metrics_log::{EvalMetrics, StepMetrics};
use electra_model::files::atomic::readable_bytes;

/// What a training step tells an observer.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLine {
    /// Measurements of the step.
    pub metrics: StepMetrics,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Area under the ROC curve of the discriminator, of the newest evaluation or batch.
    pub rtd_auc: Option<f32>,
    /// Share of the machine's peak arithmetic that the model's own operations reach, 0 to 1.
    pub mfu: Option<f32>,
    /// Largest memory of the process so far, in bytes; see [`peak_memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// Estimated seconds to the last step.
    pub seconds_left: Option<f64>,
}

/// Told by a training loop how it goes.
pub trait Observer {
    /// After each step.
    fn on_step(&mut self, line: &StepLine);
    /// After each evaluation.
    fn on_eval(&mut self, line: &EvalMetrics);
    /// Something the user should know: a warning, a checkpoint written.
    fn on_message(&mut self, message: &str);
    /// After the last step, or when the run was stopped.
    fn on_end(&mut self) {}
}

/// What suits stderr: a bar if it is a terminal, else a plain line each `log_steps` steps.
pub fn observer_on_stderr(log_steps: u64) -> Box<dyn Observer> {
    if std::io::stderr().is_terminal() {
        Box::new(BarDisplay::new())
    } else {
        Box::new(PlainDisplay::new(std::io::stderr(), log_steps))
    }
}

/// Plain lines: each `log_steps` steps one, and one for each evaluation and message.
#[derive(Debug)]
pub struct PlainDisplay<W> {
    out: W,
    log_steps: u64,
}

impl<W: Write> PlainDisplay<W> {
    /// Writes to `out`; `log_steps` of 0 counts as 1.
    pub fn new(out: W, log_steps: u64) -> Self {
        Self {
            out,
            log_steps: log_steps.max(1),
        }
    }

    /// A display that cannot be written to must not stop the training.
    fn print(&mut self, line: fmt::Arguments<'_>) {
        let _ = writeln!(self.out, "{line}");
    }
}

impl<W: Write> Observer for PlainDisplay<W> {
    fn on_step(&mut self, line: &StepLine) {
        let step = line.metrics.step;
        if step.is_multiple_of(self.log_steps) || step == line.total_steps {
            let (losses, speed) = (describe_losses(line), describe_speed(line));
            self.print(format_args!(
                "step {step}/{}  {losses}  {speed}",
                line.total_steps
            ));
        }
    }

    fn on_eval(&mut self, line: &EvalMetrics) {
        self.print(format_args!("{}", describe_eval(line)));
    }

    fn on_message(&mut self, message: &str) {
        self.print(format_args!("{message}"));
    }
}

/// A bar on a terminal, on stderr; evaluations and messages scroll by above it.
#[derive(Debug)]
pub struct BarDisplay {
    bar: ProgressBar,
}

impl BarDisplay {
    /// A bar that appears with the first step.
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
        }
    }
}

impl Default for BarDisplay {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for BarDisplay {
    fn on_step(&mut self, line: &StepLine) {
        if self.bar.length().is_none() {
            self.bar.set_length(line.total_steps);
            let template = "{bar:20.cyan/blue} {pos}/{len}  {prefix}\n{wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style.progress_chars("━╸─"));
            }
        }
        self.bar.set_prefix(describe_speed(line));
        self.bar.set_message(describe_losses(line));
        self.bar.set_position(line.metrics.step);
    }

    fn on_eval(&mut self, line: &EvalMetrics) {
        self.bar.println(describe_eval(line));
    }

    fn on_message(&mut self, message: &str) {
        self.bar.println(message);
    }

    fn on_end(&mut self) {
        self.bar.abandon();
    }
}

/// `loss 25.312  mlm 6.012  rtd 0.386 (base 0.410)  auc 0.612`
fn describe_losses(line: &StepLine) -> String {
    let metrics = &line.metrics;
    let base = metrics
        .rtd_base
        .map_or(String::new(), |base| format!(" (base {base:.3})"));
    let parts = [
        Some(format!("loss {:.3}", metrics.loss)),
        metrics.mlm_loss.map(|loss| format!("mlm {loss:.3}")),
        metrics.rtd_loss.map(|loss| format!("rtd {loss:.3}{base}")),
        line.rtd_auc.map(|auc| format!("auc {auc:.3}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

/// `12.3k tok/s  mfu 41%  512 MB  1h02m left`
fn describe_speed(line: &StepLine) -> String {
    let parts = [
        Some(format!(
            "{} tok/s",
            readable_count(line.metrics.tokens_per_s.into())
        )),
        line.mfu.map(|mfu| format!("mfu {:.0}%", 100.0 * mfu)),
        line.memory_bytes.map(readable_bytes),
        line.seconds_left
            .map(|seconds| format!("{} left", readable_duration(seconds))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

fn describe_eval(line: &EvalMetrics) -> String {
    let mut text = format!("eval at step {}:", line.step);
    for (name, value) in line.scalars() {
        let _ = write!(text, "  {name} {value:.4}");
    }
    text
}

/// A count for people: `950`, `12.3k`, `4.56M`; three digits.
pub fn readable_count(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        x if x >= 999.5e9 => (value / 1e12, "T"),
        x if x >= 999.5e6 => (value / 1e9, "G"),
        x if x >= 999.5e3 => (value / 1e6, "M"),
        x if x >= 999.5 => (value / 1e3, "k"),
        _ => return format!("{value:.0}"),
    };
    let decimals = match scaled.abs() {
        x if x < 9.995 => 2,
        x if x < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$}{unit}")
}

/// A duration in seconds for people: `42s`, `3m05s`, `1h02m`, `2d07h`.
pub fn readable_duration(seconds: f64) -> String {
    // A cast saturates and takes NaN to 0.
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86400, s / 3600 % 24),
    }
}

/// Largest resident memory of this process so far, in bytes; `None` where the system does not say.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kib)
}

/// Memory that is free for new work, in bytes; `None` where the system does not say.
pub fn available_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let machine = 1024 * kib;
    Some(group_memory_bytes(Path::new("/sys/fs/cgroup")).map_or(machine, |left| left.min(machine)))
}

/// Bytes that the control group in `dir`, a container's for one, may take beyond what it has taken;
/// none where there is no limit. What the kernel keeps of files gives way.
fn group_memory_bytes(dir: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, taken) = (number("memory.max")?, number("memory.current")?);
    let stat = read("memory.stat").unwrap_or_default();
    let kept = ["active_file ", "inactive_file ", "slab_reclaimable "];
    let of_files: u64 = stat
        .lines()
        .filter_map(|line| kept.iter().find_map(|name| line.strip_prefix(name)))
        .filter_map(|bytes| bytes.trim().parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(taken.saturating_sub(of_files)))
}

/// Speed over a moving window of steps, whatever unit is counted.
///
/// Time is passed in, in seconds of any steady clock, so that pauses (evaluation, checkpoints) can
/// be left out of it.
#[derive(Clone, Debug)]
pub struct Speed {
    window: usize,
    /// Seconds, tokens and steps at the end of each step in the window and of the one before it.
    marks: VecDeque<(f64, u64, u64)>,
}

impl Speed {
    /// Over the last `window` steps (at least 1), starting now at `seconds` with what a resumed run
    /// has done already.
    pub fn start(window: usize, seconds: f64, tokens: u64, steps: u64) -> Self {
        Self {
            window: window.max(1),
            marks: VecDeque::from([(seconds, tokens, steps)]),
        }
    }

    /// Notes the end of a step; `tokens` and `steps` are totals of the run.
    pub fn record(&mut self, seconds: f64, tokens: u64, steps: u64) {
        if self.marks.len() > self.window {
            self.marks.pop_front();
        }
        self.marks.push_back((seconds, tokens, steps));
    }

    /// Tokens a second, 0 before the first step.
    pub fn tokens_per_s(&self) -> f64 {
        self.over_window(|first, last| last.1.saturating_sub(first.1))
    }

    /// Estimated seconds until `total_steps` are done, `None` before the first step.
    pub fn seconds_left(&self, total_steps: u64) -> Option<f64> {
        let steps_per_s = self.over_window(|first, last| last.2.saturating_sub(first.2));
        let done = self.marks.back().map_or(0, |mark| mark.2);
        (steps_per_s > 0.0).then(|| total_steps.saturating_sub(done) as f64 / steps_per_s)
    }

    /// Model FLOPs utilization, 0 to 1, of a model that takes `flops_per_token` on a machine that
    /// does `peak_flops` a second.
    pub fn mfu(&self, flops_per_token: f64, peak_flops: f64) -> f64 {
        self.tokens_per_s() * flops_per_token / peak_flops
    }

    fn over_window(&self, amount: impl Fn((f64, u64, u64), (f64, u64, u64)) -> u64) -> f64 {
        match (self.marks.front(), self.marks.back()) {
            (Some(&first), Some(&last)) if last.0 > first.0 => {
                amount(first, last) as f64 / (last.0 - first.0)
            }
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_control_group_leaves_counts_what_files_give_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text);
        assert_eq!(group_memory_bytes(dir.path()), None);
        write("memory.max", "max\n").expect("writable");
        write("memory.current", "700\n").expect("writable");
        assert_eq!(group_memory_bytes(dir.path()), None);
        write("memory.max", "1000\n").expect("writable");
        assert_eq!(group_memory_bytes(dir.path()), Some(300));
        write(
            "memory.stat",
            "anon 1\nactive_file 100\ninactive_file 400\n",
        )
        .expect("writable");
        assert_eq!(group_memory_bytes(dir.path()), Some(800));
    }

    fn line(step: u64) -> StepLine {
        StepLine {
            metrics: StepMetrics {
                step,
                loss: 25.312,
                mlm_loss: Some(6.012),
                rtd_loss: Some(0.386),
                rtd_base: Some(0.41),
                lr: 1e-3,
                grad_norm: 1.0,
                tokens: 1000 * step,
                tokens_per_s: 12_345.0,
            },
            total_steps: 25,
            rtd_auc: Some(0.612),
            mfu: Some(0.414),
            memory_bytes: Some(512_000_000),
            seconds_left: Some(3725.0),
        }
    }

    #[test]
    fn plain_lines_hold_everything_and_come_each_log_steps() {
        let mut out = Vec::new();
        let mut display = PlainDisplay::new(&mut out, 10);
        for step in 1..=25 {
            display.on_step(&line(step));
        }
        let auc = EvalMetrics {
            step: 25,
            rtd_auc: Some(0.75),
            ..Default::default()
        };
        display.on_eval(&auc);
        display.on_message("checkpoint written");
        let mlm_only = StepMetrics {
            rtd_loss: None,
            rtd_base: None,
            ..line(25).metrics
        };
        display.on_step(&StepLine {
            metrics: mlm_only,
            rtd_auc: None,
            mfu: None,
            ..line(25)
        });
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "step 10/25  loss 25.312  mlm 6.012  rtd 0.386 (base 0.410)  auc 0.612  12.3k tok/s  \
             mfu 41%  512 MB  1h02m left"
        );
        assert!(lines[1].starts_with("step 20/25") && lines[2].starts_with("step 25/25"));
        assert_eq!(lines[3], "eval at step 25:  rtd_auc 0.7500");
        assert_eq!(lines[4], "checkpoint written");
        assert_eq!(
            lines[5],
            "step 25/25  loss 25.312  mlm 6.012  12.3k tok/s  512 MB  1h02m left"
        );
    }

    #[test]
    fn speed_is_that_of_the_window() {
        let mut speed = Speed::start(2, 100.0, 5000, 50);
        assert_eq!((speed.tokens_per_s(), speed.seconds_left(60)), (0.0, None));
        speed.record(110.0, 5100, 51);
        assert_eq!(speed.tokens_per_s(), 10.0);
        speed.record(111.0, 5200, 52);
        speed.record(112.0, 5300, 53);
        assert_eq!(speed.tokens_per_s(), 100.0);
        assert_eq!(speed.seconds_left(60), Some(7.0));
        assert_eq!(speed.mfu(2e6, 1e9), 0.2);
        assert_eq!(speed.seconds_left(10), Some(0.0));
    }

    #[test]
    fn numbers_are_readable() {
        let counts = [0.0, 999.0, 999.6, 12_345.0, 4_561_000.0, 16.4e9, 1.83e12];
        let shown = ["0", "999", "1.00k", "12.3k", "4.56M", "16.4G", "1.83T"];
        assert_eq!(counts.map(readable_count), shown);
        let seconds = [f64::NAN, 59.4, 60.0, 185.0, 3725.0, 200_000.0];
        assert_eq!(
            seconds.map(readable_duration),
            ["0s", "59s", "1m00s", "3m05s", "1h02m", "2d07h"]
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn peak_memory_is_at_least_what_was_touched() {
        let block = vec![1u8; 50_000_000];
        assert!(peak_memory_bytes().unwrap() >= std::hint::black_box(&block).len() as u64);
    }
}
