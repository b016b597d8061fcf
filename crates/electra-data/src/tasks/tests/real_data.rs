//! The files beside the repository are read whole, with the counts that their makers state.

use super::support::shared;
use crate::tasks::tagging::Scheme;
use crate::tasks::{
    Example, Examples, FeatureCounts, FeatureOptions, Featurizer, Gold, Input, LabelSet,
    OpenOptions, TaskSpec, hold_out,
};
use crate::tokenizer::Tokenizer;

fn read(task: &str, file: &str) -> Option<(TaskSpec, Vec<Example>)> {
    let path = shared(&format!("tasks/{file}"))?;
    let spec = TaskSpec::by_name(task).unwrap();
    let examples = Examples::read_all(&spec, &path, OpenOptions::default()).unwrap();
    Some((spec, examples))
}

#[test]
fn every_file_is_read_whole() {
    for (task, file, count, labels) in [
        ("sst2", "sst2/train.tsv", 6920, "0 1"),
        ("sst2", "sst2/dev.tsv", 872, "0 1"),
        ("sst2", "sst2/test.tsv", 1821, "0 1"),
        ("cola", "cola/in_domain_train.tsv", 8551, "0 1"),
        ("cola", "cola/in_domain_dev.tsv", 527, "0 1"),
        ("cola", "cola/out_of_domain_dev.tsv", 516, "0 1"),
        ("mrpc", "mrpc/train.txt", 4076, "0 1"),
        ("mrpc", "mrpc/test.txt", 1725, "0 1"),
        ("rte", "rte/train.tsv", 3367, "entailment not_entailment"),
        ("rte", "rte/test.tsv", 800, "entailment not_entailment"),
        ("conll2000", "conll2000/train.txt", 8936, ""),
        ("conll2000", "conll2000/test.txt", 2012, ""),
        ("wnut17", "wnut17/train.conll", 3394, ""),
        ("wnut17", "wnut17/dev.conll", 1009, ""),
        ("wnut17", "wnut17/test.conll", 1287, ""),
        (
            "msra",
            "msra_ner/train.txt",
            0,
            "B-LOC B-ORG B-PER I-LOC I-ORG I-PER O",
        ),
        ("chnsenticorp", "chnsenticorp/htl_all.csv", 7766, "0 1"),
        ("squad", "xquad/en.json", 1190, ""),
        ("squad", "xquad/zh.json", 1190, ""),
        ("cmrc2018", "cmrc2018/dev.json", 0, ""),
        ("cmrc2018", "cmrc2018/trial.json", 0, ""),
    ] {
        let Some((spec, examples)) = read(task, file) else {
            return;
        };
        eprintln!("{file}: {}", examples.len());
        if count > 0 {
            assert_eq!(examples.len(), count, "{file}");
        }
        let set = LabelSet::of_training(&spec, &examples, Scheme::Bio).unwrap();
        if !labels.is_empty() {
            assert_eq!(set.names().join(" "), labels, "{file}");
        }
        let empty = examples
            .iter()
            .filter(|e| match &e.input {
                Input::Text { first, second } => {
                    first.trim().is_empty() || second.as_ref().is_some_and(|s| s.trim().is_empty())
                }
                _ => false,
            })
            .count();
        // One hotel review is empty.
        assert_eq!(empty, usize::from(task == "chnsenticorp"), "{file}");
    }
}

#[test]
fn a_tenth_is_held_out_and_no_text_is_on_both_sides() {
    let Some((_, examples)) = read("mrpc", "mrpc/train.txt") else {
        return;
    };
    let all = examples.len();
    let split = hold_out(examples.clone(), 0.1, 0).unwrap();
    let (train, dev) = (split.train, split.held_out);
    assert_eq!(train.len() + dev.len(), all);
    assert!((all / 12..all / 8).contains(&dev.len()), "{}", dev.len());
    let mut backwards = examples;
    backwards.reverse();
    let mut again = hold_out(backwards, 0.1, 0).unwrap().held_out;
    again.reverse();
    assert_eq!(dev, again);
    let (Some((_, questions)), true) = (read("squad", "xquad/en.json"), true) else {
        return;
    };
    let split = hold_out(questions, 0.1, 0).unwrap();
    let contexts = |part: &[Example]| -> std::collections::HashSet<String> {
        part.iter()
            .filter_map(|e| match &e.input {
                Input::Question { context, .. } => Some(context.to_string()),
                _ => None,
            })
            .collect()
    };
    assert!(contexts(&split.train).is_disjoint(&contexts(&split.held_out)));
}

#[test]
fn every_word_of_real_sentences_gets_a_token_and_its_tag() {
    let Some(vocabulary) = shared("vocab/bert-base-uncased.txt") else {
        return;
    };
    let tokenizer = Tokenizer::load(&vocabulary, None).unwrap();
    for (task, file) in [
        ("conll2000", "conll2000/test.txt"),
        ("msra", "msra_ner/dev.txt"),
    ] {
        let Some((spec, examples)) = read(task, file) else {
            return;
        };
        let labels = LabelSet::of_training(&spec, &examples, Scheme::Bioes).unwrap();
        let options = FeatureOptions {
            max_seq_length: 24,
            training: true,
            ..FeatureOptions::of(&spec)
        };
        let featurizer = Featurizer::new(spec.kind, tokenizer.clone(), labels, options).unwrap();
        let mut counts = FeatureCounts::default();
        for (number, example) in examples.iter().enumerate() {
            let Some(Gold::Tags(tags)) = &example.gold else {
                panic!("no tags");
            };
            let features = featurizer.features(number, example, &mut counts).unwrap();
            let words: usize = features.iter().map(|f| f.words.len()).sum();
            assert_eq!(words, tags.len(), "{}", example.place);
            for f in &features {
                assert!(f.sequences[0].token_ids.len() <= 24);
                assert!(f.words.windows(2).all(|w| w[0] < w[1]));
            }
        }
        assert!(counts.windowed > 0);
        assert_eq!(counts.words_left_out, 0);
    }
}
