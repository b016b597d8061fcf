//! Items from one source, mapped on several threads, taken in their order.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::PrepareError;

/// Between two looks at whether to stop while nothing comes.
const PATIENCE: Duration = Duration::from_millis(100);

/// Takes items from `next`, one thread at a time; maps each by what `mapper` makes for its thread;
/// gives the results in their order to `sink`. When it returns, `halt` is set, at which a `next`
/// that waits is to end.
///
/// # Errors
/// The first one in the order of the items, [`PrepareError::Panic`] for a thread that panicked
/// among them; [`PrepareError::Interrupted`] within a moment after `stop` says true.
pub(super) fn in_order<T, R: Send, M: FnMut(T) -> R + Send>(
    threads: usize,
    next: impl FnMut() -> Result<Option<T>, PrepareError> + Send,
    mapper: impl Fn() -> M,
    mut sink: impl FnMut(R) -> Result<(), PrepareError>,
    stop: &dyn Fn() -> bool,
    halt: &AtomicBool,
) -> Result<(), PrepareError> {
    let source = Mutex::new((next, 0u64));
    // A permit for each item in flight bounds memory; the sink gives it back.
    let (give, permits) = mpsc::channel();
    for _ in 0..2 * threads + 2 {
        let _ = give.send(());
    }
    let permits = Mutex::new(permits);
    let (send, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (send, source, permits) = (send.clone(), &source, &permits);
            let mut map = mapper();
            scope.spawn(move || {
                loop {
                    let permits = permits.lock().unwrap_or_else(PoisonError::into_inner);
                    if permits.recv().is_err() {
                        return;
                    }
                    drop(permits);
                    let (item, number) = {
                        let mut guard = source.lock().unwrap_or_else(PoisonError::into_inner);
                        let (next, count) = &mut *guard;
                        *count += 1;
                        let item = caught("reading", next).unwrap_or_else(Err);
                        (item, *count - 1)
                    };
                    let result = match item {
                        Ok(None) => return,
                        Ok(Some(item)) => caught("tokenizing", || map(item)),
                        Err(e) => Err(e),
                    };
                    let failed = result.is_err();
                    if send.send((number, result)).is_err() || failed {
                        return;
                    }
                }
            });
        }
        drop(send);
        // Moved in here, so that it is dropped, and the threads end, when this closure returns.
        let give = give;
        let mut waiting = BTreeMap::new();
        let mut due = 0;
        let outcome = loop {
            if stop() {
                break Err(PrepareError::Interrupted);
            }
            match results.recv_timeout(PATIENCE) {
                Ok((number, result)) => waiting.insert(number, result),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
            };
            let mut taken = Ok(());
            while taken.is_ok()
                && let Some(result) = waiting.remove(&due)
            {
                due += 1;
                taken = result.and_then(&mut sink);
                let _ = give.send(());
            }
            if taken.is_err() {
                break taken;
            }
        };
        halt.store(true, Relaxed);
        outcome
    })
}

/// What `work` returns, or its panic as an error.
fn caught<R>(doing: &str, work: impl FnOnce() -> R) -> Result<R, PrepareError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| PrepareError::Panic {
        place: doing.into(),
        what: said(panic.as_ref()),
    })
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it did not say why".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Squares of the numbers below `end`, as far as they came.
    fn squares(
        end: u64,
        next: impl Fn(u64) + Send,
        map: impl Fn(u64) + Copy + Send,
    ) -> (Vec<u64>, Result<(), PrepareError>) {
        let (mut count, mut squares) = (0, Vec::new());
        let outcome = in_order(
            3,
            move || {
                next(count);
                count += 1;
                Ok((count <= end).then_some(count - 1))
            },
            || {
                move |n| {
                    map(n);
                    n * n
                }
            },
            |square| {
                squares.push(square);
                Ok(())
            },
            &|| false,
            &AtomicBool::new(false),
        );
        (squares, outcome)
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let (squares, outcome) = squares(1000, |_| (), |_| ());
        assert!(outcome.is_ok() && squares.iter().copied().eq((0..1000).map(|n| n * n)));
    }

    #[test]
    fn a_panic_is_an_error_and_what_came_before_it_is_kept() {
        let at = |n| assert!(n != 500, "number {n}");
        for (outcome, doing) in [
            (squares(1000, |_| (), at), "tokenizing"),
            (squares(1000, at, |_| ()), "reading"),
        ] {
            let (squares, outcome) = outcome;
            let message = outcome.unwrap_err().to_string();
            assert!(
                message.contains(doing) && message.contains("number 500"),
                "{message}"
            );
            assert_eq!(squares.len(), 500);
        }
    }

    #[test]
    fn a_source_that_says_nothing_can_be_stopped() {
        let (halt, looks) = (AtomicBool::new(false), AtomicBool::new(false));
        let outcome = in_order(
            2,
            || {
                while !halt.load(Relaxed) {
                    looks.store(true, Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None::<u64>)
            },
            || |n| n,
            |_| Ok(()),
            &|| looks.load(Relaxed),
            &halt,
        );
        assert!(matches!(outcome, Err(PrepareError::Interrupted)));
    }
}
