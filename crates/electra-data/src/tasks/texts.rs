//! One text, a pair, or a beginning with choices, to tokens.

use super::Sequence;
use crate::tokenizer::SpecialIds;

/// `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`, segments 0 and 1, at most `most`
/// tokens; whether something was cut.
pub(super) fn sequence(
    special: SpecialIds,
    mut first: Vec<u32>,
    second: Option<Vec<u32>>,
    most: usize,
) -> (Sequence, bool) {
    let Some(mut second) = second else {
        let cut = first.len() + 2 > most;
        first.truncate(most.saturating_sub(2));
        let mut token_ids = vec![special.cls];
        token_ids.append(&mut first);
        token_ids.push(special.sep);
        let type_ids = vec![0; token_ids.len()];
        return (
            Sequence {
                token_ids,
                type_ids,
            },
            cut,
        );
    };
    let room = most.saturating_sub(3);
    let cut = first.len() + second.len() > room;
    if cut {
        let (a, b) = longest_first(first.len(), second.len(), room);
        first.truncate(a);
        second.truncate(b);
    }
    let mut token_ids = vec![special.cls];
    token_ids.append(&mut first);
    token_ids.push(special.sep);
    let mut type_ids = vec![0; token_ids.len()];
    token_ids.append(&mut second);
    token_ids.push(special.sep);
    type_ids.resize(token_ids.len(), 1);
    (
        Sequence {
            token_ids,
            type_ids,
        },
        cut,
    )
}

/// Lengths of a pair cut to `room` together, by the rule of transformers' fast tokenizers: the
/// longer one gives way until both are equally long; of an odd `room` the longer one gets one
/// more, the second if neither is.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    let swap = first > second;
    let (short, long) = if swap {
        (second, first)
    } else {
        (first, second)
    };
    let (short, long) = if short + short.max(room.saturating_sub(short)) > room {
        (room / 2, room / 2 + room % 2)
    } else {
        (short, (room - short).min(long))
    };
    if swap { (long, short) } else { (short, long) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longer_of_a_pair_gives_way() {
        assert_eq!(longest_first(10, 3, 9), (6, 3));
        assert_eq!(longest_first(3, 10, 9), (3, 6));
        assert_eq!(longest_first(10, 8, 9), (5, 4));
        assert_eq!(longest_first(8, 10, 9), (4, 5));
        assert_eq!(longest_first(8, 8, 9), (4, 5));
        assert_eq!(longest_first(20, 4, 9), (5, 4));
    }

    proptest! {
        #[test]
        fn pairs_fill_the_room(a in 0usize..50, b in 0usize..50, room in 0usize..60) {
            prop_assume!(a + b > room);
            let (x, y) = longest_first(a, b, room);
            prop_assert_eq!(x + y, room);
            prop_assert!(x <= a && y <= b);
        }
    }
}
