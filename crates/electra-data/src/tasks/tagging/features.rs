//! Words to tokens, and their tags to targets.

use crate::tasks::featurizer::{FeatureCounts, Featurizer, Overflow};
use crate::tasks::tagging::in_scheme;
use crate::tasks::{Example, Features, Gold, Sequence, Target, TaskError, error::shown};

/// The windows of a sentence: as many tokens as fit, whole words. In all but the first the first
/// words repeat the last of the window before; every word is asked for in one window, where it has
/// more context.
pub(in crate::tasks) fn features(
    featurizer: &Featurizer,
    number: usize,
    example: &Example,
    words: &[String],
    counts: &mut FeatureCounts,
) -> Result<Vec<Features>, TaskError> {
    let special = featurizer.tokenizer.special();
    let room = featurizer.options.max_seq_length - 2;
    let mut tokens: Vec<u32> = Vec::new();
    // Where each word begins, and where the last ends.
    let mut begins = Vec::with_capacity(words.len() + 1);
    for word in words {
        begins.push(tokens.len());
        let mut ids = featurizer.encode(word)?;
        if ids.is_empty() {
            counts.words_without_tokens += 1;
            ids.push(special.unk);
        }
        if ids.len() > room {
            counts.words_cut += 1;
            ids.truncate(room);
        }
        tokens.append(&mut ids);
    }
    begins.push(tokens.len());
    let tags = match &example.gold {
        None => None,
        Some(Gold::Tags(tags)) => {
            if tags.len() != words.len() {
                return Err(TaskError::Example {
                    place: example.place.clone(),
                    what: format!("{} words but {} tags", words.len(), tags.len()),
                });
            }
            let (written, irregular) = in_scheme(tags, featurizer.labels.scheme());
            counts.entities_begun_inside += irregular;
            let ids = written.iter().enumerate().map(|(word, tag)| {
                counts.note_number(&featurizer.labels, tag);
                let id = featurizer.labels.id(tag);
                id.map(Some).ok_or_else(|| TaskError::UnknownLabel {
                    place: example.place_of_word(word),
                    label: tags[word].clone(),
                    known: shown(featurizer.labels.names()),
                    hint: "",
                })
            });
            Some(ids.collect::<Result<Vec<_>, _>>()?)
        }
        Some(_) => return Err(super::super::featurizer::wrong_gold(example)),
    };
    let mut shown = shown_words(&begins, room);
    if shown.len() > 1 {
        match featurizer.options.overflow {
            Overflow::Truncate => {
                counts.truncated += 1;
                shown.truncate(1);
                shown[0].to = shown[0].last;
                counts.words_left_out += (words.len() - shown[0].last) as u64;
            }
            Overflow::Windows => counts.windowed += 1,
        }
    }
    Ok(shown
        .into_iter()
        .map(
            |Shown {
                 first,
                 last,
                 from,
                 to,
             }| {
                let mut sequence = Sequence::default();
                sequence.token_ids.push(special.cls);
                sequence
                    .token_ids
                    .extend_from_slice(&tokens[begins[first]..begins[last]]);
                sequence.token_ids.push(special.sep);
                let segment = featurizer.options.tagged_segment;
                sequence.type_ids = vec![segment; sequence.token_ids.len()];
                Features {
                    example: number,
                    sequences: vec![sequence],
                    words: (from..to)
                        .map(|w| (begins[w] - begins[first] + 1) as u32)
                        .collect(),
                    context: 0..0,
                    target: tags
                        .as_ref()
                        .map(|tags| Target::Tags(tags[from..to].to_vec())),
                }
            },
        )
        .collect())
}

/// The words of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// First word seen, and one past the last.
    pub(super) first: usize,
    pub(super) last: usize,
    /// First word asked for, and one past the last.
    pub(super) from: usize,
    pub(super) to: usize,
}

/// The windows of `room` tokens over words that begin at `begins` (and end at its last entry). Each
/// word is asked for in one of them; where two show it, the border is in the middle of what both
/// show.
pub(super) fn shown_words(begins: &[usize], room: usize) -> Vec<Shown> {
    let seen = windows(begins, room);
    let mut from = 0;
    (0..seen.len())
        .map(|i| {
            let (first, last) = seen[i];
            let to = match seen.get(i + 1) {
                Some(&(next, _)) => {
                    let middle = (begins[next] + begins[last]).div_ceil(2);
                    (next..last).find(|&w| begins[w] >= middle).unwrap_or(last)
                }
                None => last,
            };
            let asked = Shown {
                first,
                last,
                from,
                to,
            };
            from = to;
            asked
        })
        // Long words may leave a window without any of which it shows more than its neighbours.
        .filter(|shown| shown.from < shown.to || begins.len() == 1)
        .collect()
}

/// First word and one past the last of each window of `room` tokens; no word is longer than that.
/// A window starts about half of the one before on.
fn windows(begins: &[usize], room: usize) -> Vec<(usize, usize)> {
    let words = begins.len() - 1;
    let mut windows = Vec::new();
    let mut first = 0;
    loop {
        let last = (first..words)
            .find(|&w| begins[w + 1] - begins[first] > room)
            .unwrap_or(words);
        windows.push((first, last));
        if last == words {
            return windows;
        }
        let half = begins[first] + (begins[last] - begins[first]) / 2;
        // So far on that the next word fits; none is left between.
        first = (first + 1..last)
            .find(|&w| begins[w] >= half && begins[last + 1] - begins[w] <= room)
            .unwrap_or(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn windows_hold_every_word_and_fit(
            lengths in proptest::collection::vec(1usize..6, 1..40),
            room in 5usize..12,
        ) {
            let mut begins = vec![0];
            for n in &lengths {
                begins.push(begins[begins.len() - 1] + n);
            }
            let shown = shown_words(&begins, room);
            let mut next = 0;
            for s in &shown {
                prop_assert_eq!(s.from, next);
                prop_assert!(s.first <= s.from && s.from < s.to && s.to <= s.last);
                next = s.to;
            }
            prop_assert_eq!(next, lengths.len());
            let windows = windows(&begins, room);
            prop_assert_eq!(windows[0].0, 0);
            prop_assert_eq!(windows[windows.len() - 1].1, lengths.len());
            for w in &windows {
                prop_assert!(w.0 < w.1 && begins[w.1] - begins[w.0] <= room);
            }
            for pair in windows.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 && pair[1].0 <= pair[0].1);
            }
        }
    }
}
