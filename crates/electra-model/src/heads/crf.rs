//! A linear-chain conditional random field over a sequence's tags (Lafferty et al. 2001).
//!
//! The score of a path is the sum of its emissions, of `transitions[from][to]`, of the start's and
//! the end's. Sums over paths are logarithms in f64, forward and backward.

use super::losses::Loss;
use electra_engine::backend::{Array, Backend, Ints};
use electra_engine::params::{Init, ParamLayout, ParamView};

/// Where the parameters lie.
#[derive(Clone, Copy, Debug)]
pub struct Crf {
    /// `[C, C]`, from row to column.
    pub transitions: ParamView,
    /// `[C]`.
    pub start: ParamView,
    /// `[C]`.
    pub end: ParamView,
}

/// The parameters' values, or their gradient.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrfValues {
    /// Number of tags, `C`.
    pub tags: usize,
    /// `[C, C]`.
    pub transitions: Vec<f64>,
    /// `[C]`.
    pub start: Vec<f64>,
    /// `[C]`.
    pub end: Vec<f64>,
}

/// The tag of a word on the best path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Its number.
    pub tag: u32,
    /// Its marginal probability: the share of all paths, by the exponentials of their scores, that
    /// give the word this tag.
    pub probability: f64,
}

/// Logarithms of sums over paths.
struct Lattice {
    /// `[words, C]`: over all that end in a tag at a word.
    forward: Vec<f64>,
    /// `[words, C]`: over all that go on from there.
    backward: Vec<f64>,
    /// Over all.
    all: f64,
}

/// Arrays in which the parameters pass to and from the host.
#[derive(Clone, Copy, Debug)]
pub struct CrfArrays {
    transitions: Array,
    vector: Array,
    rows: Ints,
    first: Ints,
}

impl Crf {
    /// Declares the parameters under `prefix`, all zero: every path equal.
    pub fn declare(layout: &mut ParamLayout, prefix: &str, tags: usize, depth: usize) -> Self {
        let mut push = |name: &str, shape: &[usize]| {
            layout.push(&format!("{prefix}crf.{name}"), shape, Init::Zeros, depth)
        };
        Crf {
            transitions: push("transitions", &[tags, tags]),
            start: push("start_transitions", &[tags]),
            end: push("end_transitions", &[tags]),
        }
    }

    /// Arrays for the exchange of the parameters.
    pub fn arrays<B: Backend>(&self, backend: &mut B) -> CrfArrays {
        let tags = self.transitions.cols;
        let rows = backend.ints(tags);
        backend.write_ints(rows, &(0..tags as u32).collect::<Vec<_>>());
        CrfArrays {
            transitions: backend.array(tags, tags),
            vector: backend.array(1, tags),
            rows,
            first: backend.ints(1),
        }
    }

    /// Copies the parameters to the host.
    pub fn read<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        arrays: &CrfArrays,
    ) -> CrfValues {
        let mut read = |view, ids, array: Array| {
            backend.embed(params, &[(view, ids)], array);
            let mut values = vec![0.0f32; array.rows * array.cols];
            backend.read(array, &mut values);
            values.into_iter().map(f64::from).collect()
        };
        CrfValues {
            tags: self.transitions.cols,
            transitions: read(self.transitions, arrays.rows, arrays.transitions),
            start: read(self.start, arrays.first, arrays.vector),
            end: read(self.end, arrays.first, arrays.vector),
        }
    }

    /// Adds a gradient by the parameters to `grads`.
    pub fn add_gradient<B: Backend>(
        &self,
        backend: &mut B,
        gradient: &CrfValues,
        arrays: &CrfArrays,
        grads: &mut B::Flat,
    ) {
        for (view, ids, array, values) in [
            (
                self.transitions,
                arrays.rows,
                arrays.transitions,
                &gradient.transitions,
            ),
            (self.start, arrays.first, arrays.vector, &gradient.start),
            (self.end, arrays.first, arrays.vector, &gradient.end),
        ] {
            let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
            backend.write(array, &values);
            backend.embed_backward(&[(view, ids)], array, grads);
        }
    }
}

impl CrfValues {
    /// All zero.
    pub fn zeros(tags: usize) -> Self {
        CrfValues {
            tags,
            transitions: vec![0.0; tags * tags],
            start: vec![0.0; tags],
            end: vec![0.0; tags],
        }
    }

    fn transition(&self, from: usize, to: usize) -> f64 {
        self.transitions[from * self.tags + to]
    }

    /// Sums over the paths of `words` words, at least one.
    fn lattice(&self, emissions: &[f64], words: usize) -> Lattice {
        let tags = self.tags;
        let at = |word: usize, tag: usize| emissions[word * tags + tag];
        let mut forward: Vec<f64> = (0..tags).map(|t| self.start[t] + at(0, t)).collect();
        forward.resize(words * tags, 0.0);
        for w in 1..words {
            for t in 0..tags {
                let before = (0..tags).map(|f| forward[(w - 1) * tags + f] + self.transition(f, t));
                forward[w * tags + t] = log_sum(before) + at(w, t);
            }
        }
        let mut backward = vec![0.0; words * tags];
        backward[(words - 1) * tags..].copy_from_slice(&self.end);
        for w in (0..words - 1).rev() {
            for f in 0..tags {
                let after = (0..tags)
                    .map(|t| self.transition(f, t) + at(w + 1, t) + backward[(w + 1) * tags + t]);
                backward[w * tags + f] = log_sum(after);
            }
        }
        let all = log_sum((0..tags).map(|t| forward[(words - 1) * tags + t] + self.end[t]));
        Lattice {
            forward,
            backward,
            all,
        }
    }

    /// Negative log-likelihood of `path` under `emissions` `[words, C]`; the gradient of
    /// `scale` times it by the emissions, and that by the parameters added to `gradient`.
    pub fn loss(
        &self,
        emissions: &[f64],
        path: &[u32],
        scale: f64,
        gradient: &mut CrfValues,
    ) -> Loss {
        let (tags, words) = (self.tags, path.len());
        if words == 0 {
            return Loss::default();
        }
        let at = |word: usize, tag: usize| emissions[word * tags + tag];
        let Lattice {
            forward,
            backward,
            all,
        } = self.lattice(emissions, words);

        let mut by_emissions: Vec<f64> = forward
            .iter()
            .zip(&backward)
            .map(|(f, b)| scale * (f + b - all).exp())
            .collect();
        for t in 0..tags {
            gradient.start[t] += by_emissions[t];
            gradient.end[t] += by_emissions[(words - 1) * tags + t];
        }
        for w in 1..words {
            for f in 0..tags {
                for t in 0..tags {
                    let log_p = forward[(w - 1) * tags + f]
                        + self.transition(f, t)
                        + at(w, t)
                        + backward[w * tags + t]
                        - all;
                    gradient.transitions[f * tags + t] += scale * log_p.exp();
                }
            }
        }
        let (first, last) = (path[0] as usize, path[words - 1] as usize);
        gradient.start[first] -= scale;
        gradient.end[last] -= scale;
        for pair in path.windows(2) {
            gradient.transitions[pair[0] as usize * tags + pair[1] as usize] -= scale;
        }
        for (w, &tag) in path.iter().enumerate() {
            by_emissions[w * tags + tag as usize] -= scale;
        }
        Loss {
            sum: all - self.score(emissions, path),
            gradient: by_emissions,
        }
    }

    /// Score of a path of at least one word.
    pub fn score(&self, emissions: &[f64], path: &[u32]) -> f64 {
        let (Some(&first), Some(&last)) = (path.first(), path.last()) else {
            return 0.0;
        };
        let emitted: f64 = path
            .iter()
            .enumerate()
            .map(|(w, &tag)| emissions[w * self.tags + tag as usize])
            .sum();
        let moved: f64 = path
            .windows(2)
            .map(|pair| self.transition(pair[0] as usize, pair[1] as usize))
            .sum();
        self.start[first as usize] + emitted + moved + self.end[last as usize]
    }

    /// The path of the highest score, and how likely each of its tags is over all paths.
    pub fn decide(&self, emissions: &[f64]) -> Vec<Decision> {
        let path = self.best_path(emissions);
        if path.is_empty() {
            return Vec::new();
        }
        let lattice = self.lattice(emissions, path.len());
        let each = path.into_iter().enumerate().map(|(word, tag)| {
            let at = word * self.tags + tag as usize;
            let log_p = lattice.forward[at] + lattice.backward[at] - lattice.all;
            // What is certain may come out of the sums as a little more.
            Decision {
                tag,
                probability: log_p.min(0.0).exp(),
            }
        });
        each.collect()
    }

    /// The path of the highest score (Viterbi 1967); the lower tag of equals.
    pub fn best_path(&self, emissions: &[f64]) -> Vec<u32> {
        let tags = self.tags;
        let words = emissions.len() / tags.max(1);
        if words == 0 {
            return Vec::new();
        }
        let mut score: Vec<f64> = (0..tags).map(|t| self.start[t] + emissions[t]).collect();
        let mut came_from = Vec::with_capacity(words * tags);
        for w in 1..words {
            let mut next = Vec::with_capacity(tags);
            for t in 0..tags {
                let (from, best) = best((0..tags).map(|f| score[f] + self.transition(f, t)));
                came_from.push(from as u32);
                next.push(best + emissions[w * tags + t]);
            }
            score = next;
        }
        let (mut tag, _) = best((0..tags).map(|t| score[t] + self.end[t]));
        let mut path = vec![tag as u32];
        for w in (1..words).rev() {
            tag = came_from[(w - 1) * tags + tag] as usize;
            path.push(tag as u32);
        }
        path.reverse();
        path
    }
}

fn log_sum(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = x.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + x.map(|x| (x - largest).exp()).sum::<f64>().ln()
}

/// Number and value of the largest, the first of equals.
fn best(x: impl Iterator<Item = f64>) -> (usize, f64) {
    x.enumerate()
        .fold((0, f64::NEG_INFINITY), |best, (i, value)| {
            if value > best.1 { (i, value) } else { best }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::test_numbers::{assert_is_derivative, numbers};

    const TAGS: usize = 3;

    fn values() -> CrfValues {
        let numbers: Vec<f64> = numbers(5, 15).into_iter().map(f64::from).collect();
        CrfValues {
            tags: TAGS,
            transitions: numbers[..9].to_vec(),
            start: numbers[9..12].to_vec(),
            end: numbers[12..].to_vec(),
        }
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    /// Every path of `words` words.
    fn paths(words: usize) -> Vec<Vec<u32>> {
        (0..TAGS.pow(words as u32))
            .map(|n| {
                (0..words)
                    .map(|w| (n / TAGS.pow(w as u32) % TAGS) as u32)
                    .collect()
            })
            .collect()
    }

    #[test]
    fn loss_and_best_path_are_those_of_enumeration() {
        let crf = values();
        for words in 1..6 {
            let emissions = wide(&numbers(7 + words as u64, words * TAGS));
            let paths = paths(words);
            let scores: Vec<f64> = paths.iter().map(|p| crf.score(&emissions, p)).collect();
            let all = log_sum(scores.iter().copied());
            for (path, score) in paths.iter().zip(&scores) {
                let loss = crf.loss(&emissions, path, 1.0, &mut CrfValues::zeros(TAGS));
                assert!((loss.sum - (all - score)).abs() < 1e-12);
            }
            let (found, _) = best(scores.iter().copied());
            assert_eq!(crf.best_path(&emissions), paths[found]);
            for (word, decision) in crf.decide(&emissions).into_iter().enumerate() {
                assert_eq!(decision.tag, paths[found][word]);
                let through = paths.iter().zip(&scores);
                let through = through.filter(|(path, _)| path[word] == decision.tag);
                let share: f64 = through.map(|(_, score)| (score - all).exp()).sum();
                assert!((decision.probability - share).abs() < 1e-12);
            }
        }
        assert!(crf.decide(&[]).is_empty());
        for seed in 0..200 {
            let certain: Vec<f64> = wide(&numbers(seed, 40 * TAGS))
                .iter()
                .map(|x| 50.0 * x)
                .collect();
            let decided = crf.decide(&certain);
            assert!(
                decided
                    .iter()
                    .all(|d| d.probability > 0.0 && d.probability <= 1.0)
            );
        }
    }

    #[test]
    fn gradients_are_the_derivatives() {
        let crf = values();
        let path = [0, 2, 2, 1];
        let emissions = numbers(11, 4 * TAGS);
        assert_is_derivative(&emissions, 0.6, |x, s| {
            crf.loss(&wide(x), &path, s, &mut CrfValues::zeros(TAGS))
        });
        // By the parameters: nine transitions, three starts, three ends.
        let flat: Vec<f32> = [&crf.transitions, &crf.start, &crf.end]
            .into_iter()
            .flatten()
            .map(|&x| x as f32)
            .collect();
        assert_is_derivative(&flat, 0.6, |x, s| {
            let x = wide(x);
            let crf = CrfValues {
                tags: TAGS,
                transitions: x[..9].to_vec(),
                start: x[9..12].to_vec(),
                end: x[12..].to_vec(),
            };
            let mut gradient = CrfValues::zeros(TAGS);
            let sum = crf.loss(&wide(&emissions), &path, s, &mut gradient).sum;
            let gradient = [gradient.transitions, gradient.start, gradient.end].concat();
            Loss { sum, gradient }
        });
    }
}
