//! Where the time of fused methods goes, over all threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A part of a fused method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Qkv,
    Attention,
    AttentionOutput,
    Norm,
    Intermediate,
    Output,
    NormBackward,
    OutputBackward,
    IntermediateBackward,
    AttentionOutputBackward,
    AttentionBackward,
    QkvBackward,
    Weights,
}

/// Names of the parts, in their order.
const NAMES: [&str; 13] = [
    "query, key, value",
    "attention",
    "attention output",
    "residual and norm",
    "intermediate and activation",
    "output",
    "norm and dropout backward",
    "output and activation backward",
    "intermediate backward",
    "attention output backward",
    "attention backward",
    "query, key, value backward",
    "gradients of weights",
];

/// Adds up the time of each part; off, and free, until it is first asked.
#[derive(Debug, Default)]
pub(super) struct PartClock {
    on: AtomicBool,
    nanos: [AtomicU64; NAMES.len()],
}

impl PartClock {
    /// Begins a thread's measurement.
    pub(super) fn start(&self) -> Lap<'_> {
        let on = self.on.load(Ordering::Relaxed);
        Lap {
            running: on.then(|| (self, Instant::now())),
        }
    }

    /// Thread time of each part that took any since the last call; the first call turns it on.
    pub(super) fn take(&self) -> Vec<(&'static str, Duration)> {
        self.on.store(true, Ordering::Relaxed);
        let taken = self.nanos.iter().map(|n| n.swap(0, Ordering::Relaxed));
        NAMES
            .into_iter()
            .zip(taken)
            .filter(|(_, nanos)| *nanos > 0)
            .map(|(name, nanos)| (name, Duration::from_nanos(nanos)))
            .collect()
    }
}

/// One thread's measurement.
pub(super) struct Lap<'a> {
    running: Option<(&'a PartClock, Instant)>,
}

impl Lap<'_> {
    /// What was done since the last call, or the beginning, belongs to `part`.
    pub(super) fn done(&mut self, part: Part) {
        if let Some((clock, since)) = &mut self.running {
            let now = Instant::now();
            let nanos = (now - *since).as_nanos() as u64;
            clock.nanos[part as usize].fetch_add(nanos, Ordering::Relaxed);
            *since = now;
        }
    }
}
