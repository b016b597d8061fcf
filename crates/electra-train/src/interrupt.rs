//! Asking a training loop to stop: a flag that the binary sets from its signal handler and that the
//! loop reads once a step.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A request to stop after the step in progress. Clones share one flag.
///
/// The library installs no signal handler. The binary does, calls [`StopFlag::request`] in it, and
/// may end the process at once when that returns more than 1.
#[derive(Clone, Debug, Default)]
pub struct StopFlag {
    requests: Arc<AtomicUsize>,
}

impl StopFlag {
    /// A flag that nobody has set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop. Returns how many times this was asked so far, this time included.
    pub fn request(&self) -> usize {
        self.requests.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether anybody asked to stop.
    pub fn is_requested(&self) -> bool {
        self.requests.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_flag_and_requests_are_counted() {
        let in_the_loop = StopFlag::new();
        let in_the_handler = in_the_loop.clone();
        assert!(!in_the_loop.is_requested());
        assert_eq!(in_the_handler.request(), 1);
        assert!(in_the_loop.is_requested());
        assert_eq!(in_the_handler.request(), 2);
    }
}
