//! Through which windows a model sees a text that is longer than it takes.

use std::ops::Range;

/// A run of a text's tokens that the model sees at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens seen.
    pub seen: Range<usize>,
    /// Those of them whose answers count: every token counts in one window, the one in which it
    /// stands farthest from an end that is not the text's own.
    pub counted: Range<usize>,
}

/// One window over the first `room` of `tokens`.
pub fn beginning(tokens: usize, room: usize) -> Vec<Window> {
    let seen = 0..tokens.min(room);
    let counted = seen.clone();
    vec![Window { seen, counted }]
}

/// Windows of `room` tokens, each half a window on, the last one at the end of the text.
pub fn overlapping(tokens: usize, room: usize) -> Vec<Window> {
    if tokens <= room {
        return beginning(tokens, room);
    }
    let stride = (room / 2).max(1);
    let last = tokens - room;
    let starts: Vec<usize> = (0..last).step_by(stride).chain([last]).collect();
    let mut from = 0;
    (0..starts.len())
        .map(|i| {
            let seen = starts[i]..starts[i] + room;
            let to = match starts.get(i + 1) {
                Some(next) => (next + seen.end).div_ceil(2),
                None => tokens,
            };
            let counted = from..to;
            from = to;
            Window { seen, counted }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fits_has_one_window_and_a_longer_one_is_cut() {
        assert_eq!(overlapping(5, 5), beginning(5, 5));
        assert_eq!(beginning(0, 5)[0].seen, 0..0);
        assert_eq!(beginning(9, 5)[0].counted, 0..5);
    }

    #[test]
    fn every_token_counts_once_where_it_has_most_context() {
        for room in 1..12 {
            for tokens in 0..60 {
                let windows = overlapping(tokens, room);
                let counted: Vec<usize> = windows.iter().flat_map(|w| w.counted.clone()).collect();
                assert_eq!(
                    counted,
                    (0..tokens).collect::<Vec<_>>(),
                    "{tokens} in {room}"
                );
                let context = |w: &Window, t: usize| {
                    let left = if w.seen.start == 0 {
                        room
                    } else {
                        t - w.seen.start
                    };
                    let right = if w.seen.end == tokens {
                        room
                    } else {
                        w.seen.end - 1 - t
                    };
                    left.min(right)
                };
                for window in &windows {
                    for t in window.counted.clone() {
                        let seeing = windows.iter().filter(|w| w.seen.contains(&t));
                        let best = seeing.map(|w| context(w, t)).max();
                        assert_eq!(Some(context(window, t)), best, "{t} of {tokens} in {room}");
                    }
                }
            }
        }
    }
}
