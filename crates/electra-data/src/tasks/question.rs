//! Questions: windows over a text, and answers out of it.

mod locate;

use std::sync::Arc;

use serde::Serialize;

use super::classification::{Scores, collect};
use super::featurizer::{FeatureCounts, Featurizer, wrong_gold};
use super::metric::Metric;
use super::{Answer, Example, Features, Gold, Input, Sequence, Target, TaskError, TaskSpec};
use crate::metrics::answers::{
    AnswerScore, Judged, best_threshold, cmrc, mean, squad, squad2, with_threshold,
};
use crate::tokenizer::{TokenSpan, Tokenizer};
use locate::{Located, locate};

/// What part of a text a window shows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    /// First token of the text, and one past the last.
    tokens: (usize, usize),
    /// The tokens of the text, within `tokens`, that have the most context in this window; an
    /// answer may begin there only. It is one run.
    own: (usize, usize),
}

/// A question and its text as the network sees them, and what leads from its outputs back to the
/// text.
#[derive(Clone, Debug)]
pub struct Windows {
    features: Vec<Features>,
    windows: Vec<Window>,
    /// Where the text begins in each sequence.
    begin: usize,
    /// Characters of each token of the text.
    spans: Vec<(usize, usize)>,
    /// Characters of the word that each token of the text is of.
    words: Vec<(usize, usize)>,
    context: Arc<str>,
}

/// How answers are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnswerOptions {
    /// Answers kept, and starts and ends looked at in each window.
    pub n_best: usize,
    /// Tokens of the longest answer.
    pub max_answer_length: usize,
    /// Whether a question may have no answer.
    pub null: bool,
    /// Whether an answer that begins or ends within a word has all of it, as transformers' pipeline
    /// has it.
    pub whole_words: bool,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        AnswerOptions {
            n_best: 20,
            max_answer_length: 30,
            null: false,
            whole_words: false,
        }
    }
}

/// A possible answer, as a head gives it: two places in the sequence of a window, and a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Number of the window.
    pub window: usize,
    /// Its first token, in the window's sequence.
    pub start: usize,
    /// Its last token.
    pub end: usize,
    /// The larger the better.
    pub score: f64,
}

/// What a head says of a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The possible answers.
    pub candidates: Vec<Candidate>,
    /// What is subtracted from a score to make it the logarithm of a probability.
    pub log_sum: f64,
    /// Whether there is an answer at all.
    pub null: NullScore,
}

/// How sure a head is that there is no answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NullScore {
    /// Nothing is said of it.
    None,
    /// On the scale of the candidates' scores; what counts is the difference from the best of
    /// them. Hugging Face's head.
    Same(f64),
    /// On a scale of its own. The reference's joint head: the logit that there is no answer, the
    /// least over the windows.
    Own(f64),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoredAnswer {
    /// The characters of the text, as they stand there; empty for "no answer".
    pub answer: String,
    /// Its probability: that of its beginning times that of its end.
    pub score: f64,
    /// First character in the text.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

/// The answers to a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// The best first, none of them empty, none twice; empty if the text has no token.
    pub best: Vec<ScoredAnswer>,
    /// How sure the network is that there is none; 0 where it does not say.
    pub null: f64,
    /// Probability of "no answer"; 0 where the network does not say.
    pub null_probability: f64,
}

impl Answers {
    /// The best answer, or "" if `null` is above the threshold or there is no candidate.
    pub fn text(&self, threshold: f64) -> &str {
        match self.best.first() {
            Some(best) if self.null <= threshold => &best.answer,
            _ => "",
        }
    }

    /// The best answer whatever speaks for none.
    pub fn best_text(&self) -> &str {
        self.text(f64::INFINITY)
    }
}

/// First token and number of tokens of each window: `room` tokens, `stride` on from the one
/// before.
fn cut(tokens: usize, room: usize, stride: usize) -> Vec<(usize, usize)> {
    let mut windows = Vec::new();
    let mut start = 0;
    loop {
        let end = (start + room).min(tokens);
        windows.push((start, end));
        if end == tokens {
            return windows;
        }
        start += room.min(stride);
    }
}

/// The tokens for which each window is the one with the most context: the smaller of the numbers
/// of tokens before and after, a longer window being better by a hundredth a token, the first of
/// equals.
fn owners(windows: &[(usize, usize)], tokens: usize) -> Vec<(usize, usize)> {
    let mut own: Vec<Option<(usize, usize)>> = vec![None; windows.len()];
    let mut first = 0;
    for token in 0..tokens {
        while windows[first].1 <= token {
            first += 1;
        }
        let mut best = (first, f64::NEG_INFINITY);
        for (i, &(from, to)) in windows.iter().enumerate().skip(first) {
            if from > token {
                break;
            }
            if to <= token {
                continue;
            }
            let score = (token - from).min(to - 1 - token) as f64 + 0.01 * (to - from) as f64;
            if score > best.1 {
                best = (i, score);
            }
        }
        let range = own[best.0].get_or_insert((token, token));
        range.1 = token + 1;
    }
    own.into_iter()
        .zip(windows)
        .map(|(own, window)| own.unwrap_or((window.0, window.0)))
        .collect()
}

impl Windows {
    /// The windows of a question. In training, one whose answer cannot be found in the text has
    /// none; it is counted. Every window of a question with an answer that does not hold it whole
    /// has the target `Span(None)`, and so have all windows of one without answer.
    ///
    /// # Errors
    /// An example of another kind.
    pub fn new(
        featurizer: &Featurizer,
        number: usize,
        example: &Example,
        counts: &mut FeatureCounts,
    ) -> Result<Self, TaskError> {
        let Input::Question {
            question, context, ..
        } = &example.input
        else {
            return Err(wrong_gold(example));
        };
        let options = &featurizer.options;
        let special = featurizer.tokenizer.special();
        let mut query = featurizer.encode(question.trim_start())?;
        if query.len() > options.max_query_length {
            counts.truncated += 1;
            query.truncate(options.max_query_length);
        }
        let tokens: Vec<TokenSpan> = featurizer.tokenizer.encode_with_offsets(context)?;
        let answer = match &example.gold {
            None => None,
            Some(Gold::Answers(answers)) => Some(locate(context, answers, &tokens)),
            Some(_) => return Err(wrong_gold(example)),
        };
        match answer {
            Some(Located::At { moved: true, .. }) => counts.answers_moved.add(example),
            Some(Located::Lost) => counts.answers_not_found.add(example),
            _ => {}
        }
        let mut windows = Windows {
            features: Vec::new(),
            windows: Vec::new(),
            begin: query.len() + 2,
            spans: tokens.iter().map(|t| (t.start, t.end)).collect(),
            words: words_of(&featurizer.tokenizer, &tokens),
            context: context.clone(),
        };
        // An answer that is nowhere teaches nothing; a development question is still answered.
        let lost = matches!(answer, Some(Located::Lost));
        if lost && options.training {
            return Ok(windows);
        }
        let room = options.max_seq_length - query.len() - 3;
        let ranges = cut(tokens.len(), room, options.doc_stride);
        counts.windowed += u64::from(ranges.len() > 1);
        for (&(from, to), own) in ranges.iter().zip(owners(&ranges, tokens.len())) {
            let mut sequence = Sequence::default();
            sequence.token_ids.push(special.cls);
            sequence.token_ids.extend_from_slice(&query);
            sequence.token_ids.push(special.sep);
            sequence.type_ids = vec![0; sequence.token_ids.len()];
            sequence
                .token_ids
                .extend(tokens[from..to].iter().map(|t| t.id));
            sequence.token_ids.push(special.sep);
            sequence.type_ids.resize(sequence.token_ids.len(), 1);
            let place = |token: usize| (windows.begin + token - from) as u32;
            let target = match answer {
                None | Some(Located::Lost) => None,
                Some(Located::At { first, last, .. }) if from <= first && last < to => {
                    Some(Target::Span(Some((place(first), place(last)))))
                }
                Some(_) => Some(Target::Span(None)),
            };
            windows.features.push(Features {
                example: number,
                sequences: vec![sequence],
                words: Vec::new(),
                context: place(from)..place(to),
                target,
            });
            windows.windows.push(Window {
                tokens: (from, to),
                own,
            });
        }
        Ok(windows)
    }

    /// What the network sees: one sequence a window.
    pub fn features(&self) -> &[Features] {
        &self.features
    }

    /// The same, owned.
    pub fn into_features(self) -> Vec<Features> {
        self.features
    }

    /// What a head says that scores starts and ends apart; the score of "no answer" is that of
    /// `[CLS]` in the window where it is least. `logits[window] = (start, end)`, each `[tokens]`.
    ///
    /// A start counts where its token has the most context, with every end of the same window. Of all
    /// these pairs, and those with `[CLS]`, probabilities are a softmax: in a text of one window they
    /// are those of transformers' pipeline, which multiplies one of starts and one of ends.
    ///
    /// # Panics
    /// If there are not as many logits as tokens.
    pub fn candidates(&self, logits: &[(&[f32], &[f32])], options: &AnswerOptions) -> Said {
        assert_eq!(logits.len(), self.windows.len(), "logits a window");
        let mut candidates = Vec::new();
        let mut null = f64::INFINITY;
        // Of `[CLS]` where it is least: start, end, log of the sum over that window's ends.
        let mut cls = [f64::NEG_INFINITY; 3];
        // Of each window the logs of the sums over the starts that count and over the ends.
        let mut sums = Vec::new();
        for (number, (features, (start, end))) in self.features.iter().zip(logits).enumerate() {
            let tokens = features.sequences[0].token_ids.len();
            assert!(
                start.len() == tokens && end.len() == tokens,
                "{tokens} logits"
            );
            let of_cls = f64::from(start[0]) + f64::from(end[0]);
            let context = features.context.start as usize..features.context.end as usize;
            let window = &self.windows[number];
            let place = |token: usize| context.start + token - window.tokens.0;
            let counted = place(window.own.0)..place(window.own.1);
            let of_ends = log_sum(end[context.clone()].iter().map(|&x| f64::from(x)));
            let of_starts = log_sum(start[counted].iter().map(|&x| f64::from(x)));
            sums.push([of_starts, of_ends]);
            if of_cls < null {
                null = of_cls;
                cls = [f64::from(start[0]), f64::from(end[0]), of_ends];
            }
            let ends = best_places(end, context.clone(), options.n_best);
            for first in best_places(start, context, options.n_best) {
                for &last in &ends {
                    if last >= first && last - first < options.max_answer_length {
                        candidates.push(Candidate {
                            window: number,
                            start: first,
                            end: last,
                            score: f64::from(start[first]) + f64::from(end[last]),
                        });
                    }
                }
            }
        }
        let [cls_start, cls_end, cls_ends] = cls;
        let pairs = |[starts, ends]: [f64; 2]| starts + log_sum([ends, cls_end].into_iter());
        let of_cls = pairs([cls_start, cls_ends]);
        Said {
            candidates,
            log_sum: log_sum(sums.into_iter().map(pairs).chain([of_cls])),
            null: match options.null {
                true => NullScore::Same(null),
                false => NullScore::None,
            },
        }
    }

    /// The answers among any head's candidates. Those that begin where another window has more
    /// context, lie outside the text, end before they begin or are too long are left out.
    pub fn answers(&self, said: &Said, options: &AnswerOptions) -> Answers {
        let mut valid: Vec<(&Candidate, usize, usize)> = said
            .candidates
            .iter()
            .filter_map(|c| {
                let window = self.windows.get(c.window)?;
                let first = (c.start.checked_sub(self.begin)?) + window.tokens.0;
                let last = (c.end.checked_sub(self.begin)?) + window.tokens.0;
                let fits = first >= window.own.0
                    && first < window.own.1
                    && last >= first
                    && last < window.tokens.1
                    && last - first < options.max_answer_length
                    && !c.score.is_nan();
                fits.then_some((c, first, last))
            })
            .collect();
        valid.sort_by(|a, b| {
            b.0.score
                .total_cmp(&a.0.score)
                .then(a.1.cmp(&b.1))
                .then(a.2.cmp(&b.2))
        });
        let mut best: Vec<ScoredAnswer> = Vec::new();
        for (candidate, first, last) in valid {
            if best.len() == options.n_best {
                break;
            }
            let spans = match options.whole_words {
                true => &self.words,
                false => &self.spans,
            };
            let (start, end) = (spans[first].0, spans[last].1);
            let answer: String = self
                .context
                .chars()
                .skip(start)
                .take(end.saturating_sub(start))
                .collect();
            if !answer.is_empty() && best.iter().all(|b| b.answer != answer) {
                best.push(ScoredAnswer {
                    answer,
                    score: candidate.score,
                    start,
                    end,
                });
            }
        }
        let top = best.first().map(|b| b.score);
        let probability = |score: f64| (score - said.log_sum).exp();
        let (null, null_probability) = match (said.null, top) {
            (NullScore::None, _) => (0.0, 0.0),
            (NullScore::Own(logit), _) => (logit, 1.0 / (1.0 + (-logit).exp())),
            (NullScore::Same(null), Some(top)) => (null - top, probability(null)),
            (NullScore::Same(null), None) => (f64::INFINITY, probability(null)),
        };
        // A head that says first whether there is an answer means its spans under that condition.
        let share = match said.null {
            NullScore::Own(_) => 1.0 - null_probability,
            _ => 1.0,
        };
        for answer in &mut best {
            answer.score = share * probability(answer.score);
        }
        Answers {
            best,
            null,
            null_probability,
        }
    }
}

/// Of each token the characters of its word: a token that begins with `##` goes on with the one before.
fn words_of(tokenizer: &Tokenizer, tokens: &[TokenSpan]) -> Vec<(usize, usize)> {
    let goes_on = |token: &TokenSpan| {
        tokenizer
            .token(token.id)
            .is_some_and(|t| t.starts_with("##"))
    };
    let mut words: Vec<(usize, usize)> = Vec::with_capacity(tokens.len());
    for token in tokens {
        let start = match words.last() {
            Some(before) if goes_on(token) => before.0,
            _ => token.start,
        };
        words.push((start, token.end));
    }
    for i in (1..words.len()).rev() {
        if goes_on(&tokens[i]) {
            words[i - 1].1 = words[i].1;
        }
    }
    words
}

/// `ln Σ exp(x)`.
fn log_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
    match most {
        f64::NEG_INFINITY => most,
        _ => most + values.map(|x| (x - most).exp()).sum::<f64>().ln(),
    }
}

/// The places of the `n` greatest values in a range, greatest first, the earlier of equals.
fn best_places(values: &[f32], range: std::ops::Range<usize>, n: usize) -> Vec<usize> {
    let mut places: Vec<usize> = range.filter(|&i| !values[i].is_nan()).collect();
    places.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    places.truncate(n);
    places
}

/// Scores of answers. With thresholds, scores are those at the fixed one; `best_…` those at the
/// best.
#[derive(Clone, Debug, Default)]
pub struct AnswerScores {
    judged: Vec<Judged>,
    chinese: bool,
    null: bool,
}

impl AnswerScores {
    /// For a task: by SQuAD 1.1's script, 2.0's where questions may have no answer, CMRC's for
    /// Chinese.
    pub fn new(spec: &TaskSpec) -> Self {
        AnswerScores {
            judged: Vec::new(),
            chinese: spec.chinese_answers,
            null: spec.unanswerable,
        }
    }

    /// Counts a question with its given answers; returns the score of the best answer, whatever
    /// speaks for none.
    pub fn add(&mut self, gold: &[Answer], answers: &Answers) -> AnswerScore {
        let texts: Vec<&str> = gold.iter().map(|a| a.text.as_str()).collect();
        let text = answers.best_text();
        let score = match (self.chinese, self.null) {
            (true, _) if texts.is_empty() => squad2(&texts, text),
            (true, _) => cmrc(&texts, text),
            (false, true) => squad2(&texts, text),
            (false, false) => squad(&texts, text),
        };
        self.judged.push(Judged {
            score,
            answerable: !texts.is_empty(),
            answered: !text.is_empty(),
            null: answers.null,
        });
        score
    }

    /// The threshold for "no answer" with the best F1; 0 where every question has an answer.
    pub fn best_threshold(&self) -> f64 {
        if self.null {
            best_threshold(&self.judged, |s| s.f1).threshold
        } else {
            0.0
        }
    }

    /// The asked-for metrics, those without `best_` at `threshold`.
    ///
    /// # Errors
    /// A metric that answers do not have.
    pub fn scores(&self, metrics: &[Metric], threshold: f64) -> Result<Scores, TaskError> {
        let threshold = if self.null { threshold } else { f64::INFINITY };
        let fixed = mean(&with_threshold(&self.judged, threshold));
        let best = |of: fn(&AnswerScore) -> f64| {
            if self.null {
                best_threshold(&self.judged, of).score
            } else {
                of(&fixed)
            }
        };
        collect(metrics, |metric| {
            Some(match metric {
                Metric::ExactMatch => fixed.exact,
                Metric::F1 => fixed.f1,
                Metric::BestExactMatch => best(|s| s.exact),
                Metric::BestF1 => best(|s| s.f1),
                _ => return None,
            })
        })
    }
}

#[cfg(test)]
mod tests;
