//! Repetitions of warm work, timed, with the rate of the registers measured between them.

use crate::device::Facts;
use anyhow::{Result, bail};
use electra_engine::cpu::{Isa, Precision};
use electra_train::interrupt::StopFlag;
use std::num::NonZeroUsize;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How often to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct RepeatArgs {
    /// Repetitions; their median and range are given
    #[arg(long, value_name = "N", default_value = "5")]
    pub repetitions: NonZeroUsize,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// How long to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct LengthArgs {
    /// Seconds that a repetition takes, about [default: as the subject needs]
    #[arg(long, conflicts_with = "steps")]
    pub seconds: Option<f64>,
    /// Passes that a repetition takes, instead of a time
    #[arg(long, value_name = "N")]
    pub steps: Option<NonZeroUsize>,
    #[command(flatten)]
    pub repeat: RepeatArgs,
}

/// Someone asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// What a pass, or several together, worked through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Real tokens.
    pub tokens: f64,
    /// Batches.
    pub batches: f64,
    /// Operations in matrix products.
    pub flops: f64,
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.tokens += other.tokens;
        self.batches += other.batches;
        self.flops += other.flops;
    }
}

/// A repetition.
#[derive(Clone, Copy, Debug)]
pub struct Repetition {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Passes in it.
    pub passes: usize,
    /// What they worked through.
    pub work: Work,
    /// Billions of multiplies and adds a second that the registers of the same threads reached
    /// just before, in the type of the products.
    pub peak_gflops: Option<f64>,
}

/// Median, least and most of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Spread {
            median: (middle(last / 2) + middle(values.len() / 2)) / 2.0,
            min: middle(0),
            max: middle(last),
        }
    }
}

/// Measures one kind of work.
#[derive(Debug)]
pub struct Clock<'a> {
    repetitions: usize,
    steps: Option<usize>,
    seconds: f64,
    /// Instruction set, threads, and whether products are of bf16: whose registers to measure.
    registers: Option<(Isa, usize, Precision)>,
    /// Billions of operations a second of large products, where the device has no registers of ours.
    products: Option<f64>,
    stop: &'a StopFlag,
}

impl<'a> Clock<'a> {
    /// A clock for work on the device of `facts`; `seconds` is the length of a repetition where
    /// the user gives none.
    ///
    /// # Errors
    /// A length that is no time.
    pub fn new(args: &LengthArgs, seconds: f64, facts: &Facts, stop: &'a StopFlag) -> Result<Self> {
        let seconds = args.seconds.unwrap_or(seconds);
        if !(seconds > 0.0 && seconds.is_finite()) {
            bail!("--seconds {seconds}: must be above 0");
        }
        Ok(Clock {
            repetitions: args.repeat.repetitions.get(),
            steps: args.steps.map(NonZeroUsize::get),
            seconds,
            registers: facts.isa.map(|isa| (isa, facts.threads, facts.products())),
            products: facts.measured_flops.map(|flops| flops / 1e9),
            stop,
        })
    }

    /// Runs `pass` until everything is warm: at least twice, and for half a repetition. Returns
    /// the passes that a repetition is to take.
    pub fn warm_up(&self, mut pass: impl FnMut() -> Result<Work>) -> Result<usize> {
        let start = Instant::now();
        let mut last = 0.0;
        for passes in 0.. {
            let elapsed = start.elapsed().as_secs_f64();
            if passes >= 2 && (self.steps.is_some() || elapsed >= self.seconds / 2.0) {
                break;
            }
            self.go_on()?;
            pass()?;
            last = start.elapsed().as_secs_f64() - elapsed;
        }
        let fitting = (self.seconds / last.max(1e-9)).ceil() as usize;
        Ok(self.steps.unwrap_or(fitting).max(1))
    }

    /// Times repetitions of `passes` passes each.
    pub fn repeat(
        &self,
        passes: usize,
        mut pass: impl FnMut() -> Result<Work>,
    ) -> Result<Vec<Repetition>> {
        let mut repetitions = Vec::with_capacity(self.repetitions);
        for _ in 0..self.repetitions {
            let peak_gflops = self
                .registers
                .map(|(isa, threads, precision)| register_peak(isa, threads, precision))
                .or(self.products);
            let mut work = Work::default();
            let start = Instant::now();
            for _ in 0..passes {
                self.go_on()?;
                work += pass()?;
            }
            repetitions.push(Repetition {
                seconds: start.elapsed().as_secs_f64(),
                passes,
                work,
                peak_gflops,
            });
        }
        Ok(repetitions)
    }

    /// Warms up, then times.
    pub fn measure(&self, mut pass: impl FnMut() -> Result<Work>) -> Result<Vec<Repetition>> {
        let passes = self.warm_up(&mut pass)?;
        self.repeat(passes, pass)
    }

    fn go_on(&self) -> Result<()> {
        match self.stop.is_requested() {
            true => Err(Interrupted.into()),
            false => Ok(()),
        }
    }
}

/// Billions of multiplies and adds a second of `threads` cores at once, in registers; of fewer where the
/// system grants fewer threads.
pub fn register_peak(isa: Isa, threads: usize, precision: Precision) -> f64 {
    let together = AtomicBool::new(false);
    let one = || {
        while !together.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        isa.peak_gflops(precision)
    };
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, one).ok();
        let others: Vec<_> = (1..threads).map_while(spawn).collect();
        together.store(true, Ordering::Release);
        let own = one();
        own + others
            .into_iter()
            .filter_map(|t| t.join().ok())
            .sum::<f64>()
    })
}

/// Most memory that this process has held so far, where the system says.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_and_the_range() {
        let spread = |values: &[f64]| {
            let s = Spread::of(values.iter().copied());
            (s.median, s.min, s.max)
        };
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
        assert_eq!(spread(&[7.0]), (7.0, 7.0, 7.0));
    }
}
