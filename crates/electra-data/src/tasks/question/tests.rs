use proptest::prelude::*;

use super::locate::find;
use super::*;
use crate::tasks::tests::support::{read, shared, tokenizer};
use crate::tasks::{Examples, FeatureOptions, LabelSet, OpenOptions};
use crate::tokenizer::Tokenizer;

fn featurizer(tokenizer: Tokenizer, length: usize, stride: usize, training: bool) -> Featurizer {
    let spec = TaskSpec::by_name("squad").unwrap();
    let options = FeatureOptions {
        max_seq_length: length,
        doc_stride: stride,
        max_query_length: 8,
        training,
        ..FeatureOptions::of(&spec)
    };
    Featurizer::new(
        spec.kind,
        tokenizer,
        LabelSet::new(Vec::new()).unwrap(),
        options,
    )
    .unwrap()
}

/// One question about a context, with answers (text, start).
fn question(context: &str, answers: &[(&str, i64)]) -> Example {
    let answers: Vec<_> = answers
        .iter()
        .map(|(text, start)| serde_json::json!({"text": text, "answer_start": start}))
        .collect();
    let file = serde_json::json!({"version": "1", "data": [{"title": "t", "paragraphs": [{
        "context": context,
        "qas": [{"id": "q", "question": "where was the boat?", "answers": answers}],
    }]}]});
    let mut spec = TaskSpec::by_name("squad2").unwrap();
    spec.unanswerable = true;
    read(&spec, "a.json", file.to_string()).unwrap().remove(0)
}

#[test]
fn answers_not_at_their_offset_are_found_nearest_or_counted() {
    let context = "the boat, the boat and the boat";
    let find = |start| {
        let answer = Answer {
            text: "the boat".into(),
            start: Some(start),
        };
        find(context, &answer)
    };
    assert_eq!(find(10), Some(((10, 18), false)));
    assert_eq!(find(12), Some(((10, 18), true)));
    assert_eq!(find(999), Some(((23, 31), true)));
    assert_eq!(find(-1), Some(((0, 8), true)));
    let f = featurizer(tokenizer(), 40, 20, true);
    let mut counts = FeatureCounts::default();
    let moved = question("the old boat sailed on the seine.", &[("the seine", 3)]);
    let windows = Windows::new(&f, 0, &moved, &mut counts).unwrap();
    let begin = windows.begin as u32;
    assert_eq!(
        windows.features()[0].target,
        Some(Target::Span(Some((begin + 5, begin + 6))))
    );
    let lost = question("the old boat", &[("a river", 0)]);
    assert!(f.features(1, &lost, &mut counts).unwrap().is_empty());
    assert_eq!(counts.answers_moved.count, 1);
    assert_eq!(counts.answers_not_found.count, 1);
    // What cannot be learned from is answered nevertheless.
    let f = featurizer(tokenizer(), 40, 20, false);
    let features = f.features(1, &lost, &mut counts).unwrap();
    assert_eq!((features.len(), &features[0].target), (1, &None));
}

#[test]
fn windows_without_the_answer_have_no_span_and_the_answer_comes_back_in_its_own_characters() {
    let context = "The  old boat; sailed on\nthe Séine in Paris, the old river.";
    let example = question(context, &[("Séine", 29)]);
    let f = featurizer(tokenizer(), 16, 3, true);
    let windows = Windows::new(&f, 0, &example, &mut FeatureCounts::default()).unwrap();
    assert!(windows.features().len() > 3);
    let mut held = 0;
    for (number, features) in windows.features().iter().enumerate() {
        let sequence = &features.sequences[0];
        assert!(sequence.token_ids.len() <= 16);
        assert_eq!(sequence.token_ids.len(), sequence.type_ids.len());
        let Some(Target::Span(Some((first, last)))) = features.target else {
            assert_eq!(features.target, Some(Target::Span(None)));
            continue;
        };
        held += 1;
        let candidate = Candidate {
            window: number,
            start: first as usize,
            end: last as usize,
            score: 1.0,
        };
        let answers = windows.answers(&sure(vec![candidate]), &AnswerOptions::default());
        // Only where the answer's start has the most context may it come from.
        if let Some(best) = answers.best.first() {
            assert_eq!(
                (best.answer.as_str(), best.start, best.end),
                ("Séine", 29, 34)
            );
        }
    }
    assert!(held > 1);
}

#[test]
fn unanswerable_questions_have_no_span_in_any_window() {
    let example = question("the old boat sailed on the river seine in paris.", &[]);
    let f = featurizer(tokenizer(), 16, 3, true);
    for features in f
        .features(0, &example, &mut FeatureCounts::default())
        .unwrap()
    {
        assert_eq!(features.target, Some(Target::Span(None)));
    }
}

#[test]
fn chinese_answers_are_cut_by_characters() {
    let context = "亚辛访问了海湾国家，在北京。";
    let example = question(context, &[("海湾国家", 5)]);
    let f = featurizer(tokenizer(), 60, 20, true);
    let windows = Windows::new(&f, 0, &example, &mut FeatureCounts::default()).unwrap();
    let Some(Target::Span(Some((first, last)))) = windows.features()[0].target else {
        panic!("no span");
    };
    assert_eq!(last - first, 3);
    let tokens = windows.features()[0].sequences[0].token_ids.len();
    let (mut start, mut end) = (vec![0.0; tokens], vec![0.0; tokens]);
    (start[first as usize], end[last as usize]) = (9.0, 9.0);
    let options = AnswerOptions::default();
    let said = windows.candidates(&[(&start, &end)], &options);
    let answers = windows.answers(&said, &options);
    assert_eq!(answers.best[0].answer, "海湾国家");
    assert!(answers.best.len() <= 20);
}

/// What a head says that knows nothing but these.
fn sure(candidates: Vec<Candidate>) -> Said {
    Said {
        candidates,
        log_sum: 0.0,
        null: NullScore::None,
    }
}

/// The answer of the best of all valid pairs of tokens, tried one by one.
fn slow(
    windows: &Windows,
    logits: &[(Vec<f32>, Vec<f32>)],
    options: &AnswerOptions,
) -> Option<(f64, String)> {
    let mut best: Option<(f64, String)> = None;
    for (w, (start, end)) in logits.iter().enumerate() {
        let (from, to) = windows.windows[w].tokens;
        for first in from..to {
            // The window with the most context, by the rule as it is stated.
            let score = |&(a, b): &(usize, usize)| {
                (first - a).min(b - 1 - first) as f64 + 0.01 * (b - a) as f64
            };
            let all: Vec<(usize, usize)> = windows.windows.iter().map(|w| w.tokens).collect();
            let holding = all.iter().filter(|r| r.0 <= first && first < r.1);
            let most = holding.map(score).fold(f64::NEG_INFINITY, f64::max);
            let owner = all
                .iter()
                .position(|r| r.0 <= first && first < r.1 && score(r) == most);
            if owner != Some(w) {
                continue;
            }
            for last in first..to.min(first + options.max_answer_length) {
                let at = |token: usize| windows.begin + token - from;
                let sum = f64::from(start[at(first)]) + f64::from(end[at(last)]);
                if best.as_ref().is_none_or(|b| sum > b.0) {
                    let (a, b) = (windows.spans[first].0, windows.spans[last].1);
                    best = Some((sum, windows.context.chars().skip(a).take(b - a).collect()));
                }
            }
        }
    }
    best
}

proptest! {
    #[test]
    fn the_best_answer_is_that_of_all_pairs_and_windows(
        words in proptest::collection::vec(0usize..6, 1..40),
        values in proptest::collection::vec(-5f32..5.0, 400),
        length in 16usize..30,
        stride in 1usize..12,
        longest in 1usize..6,
    ) {
        let list = ["the", "old", "boat", "xq", "Paris,", "é"];
        let context: Vec<&str> = words.iter().map(|&w| list[w]).collect();
        let example = question(&context.join(" "), &[]);
        let f = featurizer(tokenizer(), length, stride, false);
        let windows = Windows::new(&f, 0, &example, &mut FeatureCounts::default()).unwrap();
        let mut source = values.iter().copied().cycle();
        let logits: Vec<(Vec<f32>, Vec<f32>)> = windows
            .features()
            .iter()
            .map(|f| {
                let n = f.sequences[0].token_ids.len();
                let start = source.by_ref().take(n).collect();
                source.next();
                (start, source.by_ref().take(n).collect())
            })
            .collect();
        let options = AnswerOptions { n_best: 1000, max_answer_length: longest, null: true, whole_words: false };
        let views: Vec<(&[f32], &[f32])> =
            logits.iter().map(|(s, e)| (s.as_slice(), e.as_slice())).collect();
        let answers = windows.answers(&windows.candidates(&views, &options), &options);
        let expected = slow(&windows, &logits, &options);
        let (score, _) = expected.clone().unwrap();
        prop_assert_eq!(&answers.best[0].answer, &expected.unwrap().1);
        let least = logits
            .iter()
            .map(|(s, e)| f64::from(s[0]) + f64::from(e[0]))
            .fold(f64::INFINITY, f64::min);
        prop_assert!((answers.null - (least - score)).abs() < 1e-9);
        let sum: f64 = answers.best.iter().map(|b| b.score).sum::<f64>() + answers.null_probability;
        prop_assert!(sum < 1.0 + 1e-9);
        if let ([(start, end)], [features]) = (logits.as_slice(), windows.features()) {
            // As transformers' pipeline has it: a softmax over the text and [CLS], of starts and of
            // ends.
            let context = features.context.start as usize..features.context.end as usize;
            let log_sum = |x: &[f32]| -> f64 {
                let places = context.clone().chain([0]);
                places.map(|i| f64::from(x[i]).exp()).sum::<f64>().ln()
            };
            let both = log_sum(start) + log_sum(end);
            prop_assert!((answers.best[0].score - (score - both).exp()).abs() < 1e-9);
            prop_assert!((answers.null_probability - (least - both).exp()).abs() < 1e-9);
        }
        prop_assert_eq!(answers.text(answers.null), answers.best_text());
        prop_assert_eq!(answers.text(answers.null - 1e-6), "");
    }
}

/// A likely end where another window has more context counts with the starts of its own window.
#[test]
fn probabilities_of_several_windows_add_up_to_at_most_one() {
    let example = question(&["the boat"; 9].join(" "), &[]);
    let f = featurizer(tokenizer(), 16, 4, false);
    let windows = Windows::new(&f, 0, &example, &mut FeatureCounts::default()).unwrap();
    let first = &windows.windows[0];
    assert!(windows.windows.len() > 1 && first.own.1 < first.tokens.1);
    let flat = windows.features().iter();
    let mut ends: Vec<Vec<f32>> = flat
        .map(|f| vec![0.0; f.sequences[0].token_ids.len()])
        .collect();
    let starts = ends.clone();
    ends[0][windows.begin + first.tokens.1 - 1 - first.tokens.0] = 9.0;
    let logits: Vec<(&[f32], &[f32])> = starts
        .iter()
        .zip(&ends)
        .map(|(s, e)| (&s[..], &e[..]))
        .collect();
    let options = AnswerOptions {
        n_best: 1000,
        null: true,
        ..AnswerOptions::default()
    };
    let answers = windows.answers(&windows.candidates(&logits, &options), &options);
    let sum: f64 = answers.best.iter().map(|b| b.score).sum();
    assert!(
        sum > 0.5 && sum + answers.null_probability < 1.0 + 1e-9,
        "{sum}"
    );
}

#[test]
fn a_joint_head_gives_its_own_candidates_and_null_score() {
    let example = question("the old boat sailed on the seine.", &[]);
    let f = featurizer(tokenizer(), 40, 20, false);
    let windows = Windows::new(&f, 0, &example, &mut FeatureCounts::default()).unwrap();
    let begin = windows.begin;
    let candidate = |start, end, score| Candidate {
        window: 0,
        start,
        end,
        score,
    };
    let candidates = [
        candidate(begin + 1, begin + 2, 3.0),
        candidate(begin, begin, 5.0),
        // Backwards, outside the text, in no window: left out.
        candidate(begin + 2, begin + 1, 9.0),
        candidate(0, 1, 9.0),
        candidate(begin, begin + 90, 9.0),
        Candidate {
            window: 7,
            ..candidate(begin, begin, 9.0)
        },
    ];
    let said = Said {
        log_sum: 6.0,
        null: NullScore::Own(-3.0),
        ..sure(candidates.to_vec())
    };
    let answers = windows.answers(&said, &AnswerOptions::default());
    let null = 1.0 / (1.0 + 3f64.exp());
    assert!((answers.null_probability - null).abs() < 1e-12);
    assert!((answers.best[0].score - (1.0 - null) * (-1f64).exp()).abs() < 1e-12);
    let texts: Vec<&str> = answers.best.iter().map(|b| b.answer.as_str()).collect();
    assert_eq!(texts, ["the", "old boat"]);
    assert_eq!((answers.text(-2.75), answers.text(-3.5)), ("the", ""));
    let empty = question("", &[]);
    let windows = Windows::new(&f, 0, &empty, &mut FeatureCounts::default()).unwrap();
    assert_eq!(windows.features().len(), 1);
    let n = windows.features()[0].sequences[0].token_ids.len();
    let zeros = vec![0.0; n];
    let options = AnswerOptions {
        null: true,
        ..AnswerOptions::default()
    };
    let said = windows.candidates(&[(&zeros, &zeros)], &options);
    let answers = windows.answers(&said, &options);
    assert_eq!((answers.text(0.0), answers.best.len()), ("", 0));
}

#[test]
fn answers_within_words_are_whole_where_that_is_asked() {
    // Unknown words are spelled: t ##u ##g.
    let example = question("the old tug, and a rug.", &[]);
    let f = featurizer(tokenizer(), 40, 20, false);
    let windows = Windows::new(&f, 0, &example, &mut FeatureCounts::default()).unwrap();
    let found = |first: usize, last: usize, whole_words| {
        let candidate = Candidate {
            window: 0,
            start: windows.begin + first,
            end: windows.begin + last,
            score: 1.0,
        };
        let options = AnswerOptions {
            whole_words,
            ..AnswerOptions::default()
        };
        let answers = windows.answers(&sure(vec![candidate]), &options);
        answers.best[0].answer.clone()
    };
    assert_eq!(
        (found(3, 3, false), found(3, 3, true)),
        ("u".into(), "tug".into())
    );
    assert_eq!(
        (found(1, 2, false), found(1, 2, true)),
        ("old t".into(), "old tug".into())
    );
    // A comma is a word of its own, and so is what stands before it.
    assert_eq!(
        (found(4, 5, false), found(4, 5, true)),
        ("g,".into(), "tug,".into())
    );
    assert_eq!(found(5, 5, true), ",");
}

/// A head that is sure of the target gives back every answer of real questions.
#[test]
fn targets_of_real_questions_lead_back_to_their_answers() {
    let Some(vocabulary) = shared("vocab/bert-base-uncased.txt") else {
        return;
    };
    let tokenizer = Tokenizer::load(&vocabulary, None).unwrap();
    for (task, file, length, least) in [
        ("squad", "xquad/en.json", 192, 0.99),
        ("squad", "xquad/zh.json", 192, 0.99),
        // Its answers are longer than what two windows of 192 share.
        ("cmrc2018", "cmrc2018/trial.json", 512, 0.98),
    ] {
        let Some(path) = shared(&format!("tasks/{file}")) else {
            return;
        };
        let spec = TaskSpec::by_name(task).unwrap();
        let examples = Examples::read_all(&spec, &path, OpenOptions::default()).unwrap();
        let options = FeatureOptions {
            max_seq_length: length,
            ..FeatureOptions::of(&spec)
        };
        let labels = LabelSet::new(Vec::new()).unwrap();
        let f = Featurizer::new(spec.kind, tokenizer.clone(), labels, options).unwrap();
        let mut counts = FeatureCounts::default();
        let mut scores = AnswerScores::new(&spec);
        for (number, example) in examples.iter().enumerate() {
            let windows = Windows::new(&f, number, example, &mut counts).unwrap();
            let mut candidates = Vec::new();
            for (window, features) in windows.features().iter().enumerate() {
                if let Some(Target::Span(Some((start, end)))) = features.target {
                    candidates.push(Candidate {
                        window,
                        start: start as usize,
                        end: end as usize,
                        score: 0.0,
                    });
                }
            }
            let options = AnswerOptions {
                max_answer_length: 200,
                ..AnswerOptions::default()
            };
            let answers = windows.answers(&sure(candidates), &options);
            let Some(Gold::Answers(gold)) = &example.gold else {
                panic!("no answers");
            };
            scores.add(gold, &answers);
        }
        let found = scores
            .scores(&[Metric::F1, Metric::ExactMatch], 0.0)
            .unwrap();
        eprintln!("{file}: {found:?} {counts:?}");
        assert!(found[0].1 > least, "{file}: {found:?}");
        assert_eq!(counts.answers_not_found.count, 0, "{file}");
    }
}
