//! Words and running text to tokens and back to entities.

use super::support::{read, tokenizer};
use crate::tasks::tagging::{Aggregation, Asked, Scheme, TagScores, TaggedText, word_tags};
use crate::tasks::*;

fn featurizer(length: usize, overflow: Overflow, labels: &[&str]) -> Featurizer {
    let spec = TaskSpec::by_name("wnut17").unwrap();
    let options = FeatureOptions {
        max_seq_length: length,
        overflow,
        ..FeatureOptions::of(&spec)
    };
    let labels = LabelSet::new(labels.iter().map(|l| (*l).to_owned()).collect()).unwrap();
    Featurizer::new(spec.kind, tokenizer(), labels, options).unwrap()
}

fn ids(tokens: &str) -> Vec<u32> {
    let tokenizer = tokenizer();
    tokens
        .split(' ')
        .map(|t| tokenizer.id(t).unwrap())
        .collect()
}

#[test]
fn the_first_token_of_a_word_carries_its_tag_and_a_word_without_tokens_is_unknown() {
    let spec = TaskSpec::by_name("wnut17").unwrap();
    let content = "the\tO\nab\tB-x\n\u{200b}\tI-x\nboat\tO\n";
    let examples = read(&spec, "a.conll", content).unwrap();
    let f = featurizer(32, Overflow::Windows, &["O", "B-x", "I-x"]);
    let mut counts = FeatureCounts::default();
    let features = f.features(5, &examples[0], &mut counts).unwrap();
    assert_eq!(features.len(), 1);
    let sequence = &features[0].sequences[0];
    assert_eq!(sequence.token_ids, ids("[CLS] the a ##b [UNK] boat [SEP]"));
    assert_eq!(features[0].words, [1, 2, 4, 5]);
    let tags = vec![Some(0), Some(1), Some(2), Some(0)];
    assert_eq!(features[0].target, Some(Target::Tags(tags)));
    assert_eq!((features[0].example, counts.words_without_tokens), (5, 1));
}

#[test]
fn words_that_do_not_fit_are_counted_or_seen_through_windows() {
    let spec = TaskSpec::by_name("wnut17").unwrap();
    let content = "the\tO\nboat\tO\n".repeat(10);
    let examples = read(&spec, "a.conll", content).unwrap();
    let mut counts = FeatureCounts::default();
    let f = featurizer(8, Overflow::Truncate, &["O", "B-x"]);
    let features = f.features(0, &examples[0], &mut counts).unwrap();
    assert_eq!((features.len(), features[0].words.len()), (1, 6));
    assert_eq!((counts.truncated, counts.words_left_out), (1, 14));
    let f = featurizer(8, Overflow::Windows, &["O", "B-x"]);
    let features = f.features(0, &examples[0], &mut counts).unwrap();
    let words: usize = features.iter().map(|f| f.words.len()).sum();
    assert_eq!((words, counts.windowed), (20, 1));
    // A word longer than the window is cut, and still asked for.
    let long = format!("the\tO\n{}\tB-x\nboat\tO\n", "a".repeat(60));
    let examples = read(&spec, "a.conll", long).unwrap();
    let features = f.features(0, &examples[0], &mut counts).unwrap();
    let words: usize = features.iter().map(|f| f.words.len()).sum();
    assert_eq!((words, counts.words_cut), (3, 1));
}

#[test]
fn tags_are_written_in_the_scheme_of_the_labels() {
    let spec = TaskSpec::by_name("wnut17").unwrap();
    let examples = read(&spec, "a.conll", "the\tB-x\nboat\tI-x\nis\tO\n").unwrap();
    let labels = LabelSet::of_training(&spec, &examples, Scheme::Bioes).unwrap();
    assert_eq!(labels.names(), ["B-x", "E-x", "O"]);
    let m = LabelSet::new(vec!["O".into(), "O".into()]).unwrap_err();
    assert!(m.to_string().contains("\"O\" stands twice"));
    let f = featurizer(16, Overflow::Windows, &["O", "B-x", "E-x"]);
    let features = f.features(0, &examples[0], &mut FeatureCounts::default());
    let tags = vec![Some(1), Some(2), Some(0)];
    assert_eq!(features.unwrap()[0].target, Some(Target::Tags(tags)));
}

#[test]
fn running_text_becomes_spans_by_every_strategy() {
    let f = featurizer(32, Overflow::Windows, &["O", "B-x", "I-x", "B-y"]);
    let text = TaggedText::new(&f, 0, "The ab boat, Pa is北京", Asked::Tokens).unwrap();
    // the a ##b boat , p ##a is 北 京
    assert_eq!(text.features()[0].words.len(), 10);
    let best = [0, 1, 3, 2, 0, 3, 0, 0, 1, 2];
    let strength = [4.0, 2.0, 3.0, 4.0, 4.0, 4.0, 2.0, 4.0, 4.0, 4.0];
    let logits: Vec<[f32; 4]> = best
        .iter()
        .zip(strength)
        .map(|(&label, strength)| {
            let mut logits = [0.0; 4];
            logits[label] = strength;
            logits
        })
        .collect();
    let logits: Vec<&[f32]> = logits.iter().map(|l| l.as_slice()).collect();
    let spans = |aggregation| -> Vec<String> {
        text.spans(&logits, f.labels(), aggregation)
            .iter()
            .map(|s| format!("{} {} {}-{}", s.label, s.word, s.start, s.end))
            .collect()
    };
    assert_eq!(
        spans(Aggregation::None),
        [
            "B-x a 4-5",
            "B-y ##b 5-6",
            "I-x boat 7-11",
            "B-y p 13-14",
            "B-x 北 18-19",
            "I-x 京 19-20"
        ]
    );
    assert_eq!(
        spans(Aggregation::Simple),
        [
            "x a 4-5",
            "y ##b 5-6",
            "x boat 7-11",
            "y p 13-14",
            "x 北 京 18-20"
        ]
    );
    assert_eq!(
        spans(Aggregation::First),
        ["x ab boat 4-11", "y pa 13-15", "x 北 京 18-20"]
    );
    assert_eq!(
        spans(Aggregation::Max),
        ["y ab 4-6", "x boat 7-11", "y pa 13-15", "x 北 京 18-20"]
    );
    assert_eq!(
        spans(Aggregation::Average),
        ["y ab 4-6", "x boat 7-11", "y pa 13-15", "x 北 京 18-20"]
    );
    assert_eq!(word_tags(&logits[..2], f.labels()), ["O", "B-x"]);
    // The probabilities that transformers 5.23 gives the same spans.
    let (a, b, sure) = (0.711235, 0.870049, 0.947915);
    for (aggregation, expected) in [
        (Aggregation::None, &[a, b, sure, sure, sure, sure][..]),
        (Aggregation::Simple, &[a, b, sure, sure, sure]),
        (Aggregation::First, &[0.829575, sure, sure]),
        (Aggregation::Average, &[0.483152, sure, 0.522085, sure]),
        (Aggregation::Max, &[b, sure, sure, sure]),
    ] {
        let found = text.spans(&logits, f.labels(), aggregation);
        assert_eq!(found.len(), expected.len());
        for (span, expected) in found.iter().zip(expected) {
            assert!((span.score - expected).abs() < 1e-6, "{span:?} {expected}");
        }
    }
}

/// What a conditional random field decides is of words: what it says of one holds for its tokens.
#[test]
fn where_words_are_asked_for_their_tags_hold_for_all_their_tokens() {
    let f = featurizer(32, Overflow::Windows, &["O", "B-x", "I-x"]);
    let text = TaggedText::new(&f, 0, "The ab boat, Pa is", Asked::Words).unwrap();
    // the a ##b boat , p ##a is
    assert_eq!(text.features()[0].words, [1, 2, 4, 5, 6, 8]);
    let rows = [0, 1, 2, 0, 1, 0].map(|best| {
        let mut row = [f32::NEG_INFINITY; 3];
        row[best] = 0.0;
        row
    });
    let logits: Vec<&[f32]> = rows.iter().map(|row| row.as_slice()).collect();
    for (aggregation, expected) in [
        (
            Aggregation::None,
            &["B-x ab 4-6", "I-x boat 7-11", "B-x pa 13-15"][..],
        ),
        (Aggregation::Simple, &["x ab boat 4-11", "x pa 13-15"]),
        (Aggregation::First, &["x ab boat 4-11", "x pa 13-15"]),
        (Aggregation::Average, &["x ab boat 4-11", "x pa 13-15"]),
    ] {
        let spans = text.spans(&logits, f.labels(), aggregation);
        let shown = spans
            .iter()
            .map(|s| format!("{} {} {}-{}", s.label, s.word, s.start, s.end));
        assert_eq!(shown.collect::<Vec<_>>(), expected);
        assert!(spans.iter().all(|s| s.score == 1.0));
    }
}

#[test]
fn the_segment_of_tagged_tokens_may_be_the_reference_s() {
    let spec = TaskSpec::by_name("wnut17").unwrap();
    let examples = read(&spec, "a.conll", "the\tO\nboat\tO\n").unwrap();
    for segment in [0, 1] {
        let options = FeatureOptions {
            tagged_segment: segment,
            ..FeatureOptions::of(&spec)
        };
        let labels = LabelSet::new(vec!["O".into()]).unwrap();
        let f = Featurizer::new(spec.kind, tokenizer(), labels, options).unwrap();
        let mut counts = FeatureCounts::default();
        let features = f.features(0, &examples[0], &mut counts).unwrap();
        assert_eq!(features[0].sequences[0].type_ids, [segment; 4]);
        let text = TaggedText::new(&f, 0, "the boat", Asked::Tokens).unwrap();
        assert_eq!(text.features()[0].sequences[0].type_ids, [segment; 4]);
    }
}

#[test]
fn every_token_of_a_long_text_is_asked_for_once() {
    let f = featurizer(8, Overflow::Windows, &["O", "B-x"]);
    let line = format!("the old boat {} on the river. ", "q".repeat(20)).repeat(5);
    let text = TaggedText::new(&f, 0, &line, Asked::Tokens).unwrap();
    let asked: Vec<u32> = text
        .features()
        .iter()
        .flat_map(|f| {
            f.words
                .iter()
                .map(|&w| f.sequences[0].token_ids[w as usize])
        })
        .collect();
    assert_eq!(asked, tokenizer().encode(&line));
    assert_eq!(
        TaggedText::new(&f, 0, "", Asked::Tokens)
            .unwrap()
            .features()
            .len(),
        1
    );
}

#[test]
fn scores_of_tags_are_by_entity_and_by_word() {
    let list = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
    let mut scores = TagScores::default();
    scores.add(list("B-x I-x O B-y"), list("B-x I-x O O"));
    scores.add(list("O B-x"), list("O I-x"));
    let metrics = [
        Metric::F1,
        Metric::Precision,
        Metric::Recall,
        Metric::F1Strict,
        Metric::Accuracy,
    ];
    let found: Vec<f64> = scores
        .scores(&metrics)
        .unwrap()
        .into_iter()
        .map(|s| s.1)
        .collect();
    let expected = [0.8, 1.0, 2.0 / 3.0, 0.5, 4.0 / 6.0];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
    assert!(scores.scores(&[Metric::Pearson]).is_err());
}

#[test]
fn labels_without_a_prefix_are_kinds_with_their_whole_names() {
    let f = featurizer(32, Overflow::Windows, &["NN", "VB", "PRP$"]);
    let text = TaggedText::new(&f, 0, "the boat sailed", Asked::Tokens).unwrap();
    // the boat sailed
    let logits: [&[f32]; 3] = [&[4.0, 0.0, 0.0], &[4.0, 0.0, 0.0], &[0.0, 0.0, 4.0]];
    for aggregation in [Aggregation::Simple, Aggregation::First, Aggregation::Max] {
        let spans = text.spans(&logits, f.labels(), aggregation);
        let found: Vec<String> = spans
            .iter()
            .map(|s| format!("{} {}", s.label, s.word))
            .collect();
        // As transformers has it: neighbours of one label are one span.
        assert_eq!(found, ["NN the boat", "PRP$ sailed"]);
    }
}
