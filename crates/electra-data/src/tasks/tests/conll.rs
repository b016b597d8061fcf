//! Files of words and tags: what they are called, what is passed over, where their faults are.

use super::support::{file, read, tokenizer};
use crate::tasks::tagging::Scheme;
use crate::tasks::*;

fn own(columns: Columns) -> TaskSpec {
    TaskSpec::own(OwnTask {
        columns,
        ..OwnTask::new("mine", TaskKind::Tagging)
    })
    .unwrap()
}

fn columns(text: &str, label: &str) -> Columns {
    Columns {
        text: vec![text.parse().unwrap()],
        label: vec![label.parse().unwrap()],
        ..Columns::default()
    }
}

fn refused<T>(result: Result<T, TaskError>) -> String {
    match result {
        Ok(_) => panic!("must fail"),
        Err(e) => e.to_string(),
    }
}

fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// The tags of the first sentence.
fn tags(examples: &[Example]) -> String {
    match &examples[0].gold {
        Some(Gold::Tags(tags)) => tags.join(" "),
        other => panic!("{other:?}"),
    }
}

#[test]
fn words_and_tags_are_read_under_the_names_that_they_are_published_by() {
    let conll2003 = TaskSpec::by_name("conll2003").unwrap();
    let columns =
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nEnd NN B-NP O\n";
    for name in [
        "eng.train",
        "eng.testa",
        "eng.testb",
        "train",
        "eng.train.txt",
    ] {
        let examples = read(&conll2003, name, columns).unwrap();
        assert_eq!(
            (examples.len(), tags(&examples)),
            (2, "B-ORG O".into()),
            "{name}"
        );
    }
    let wnut17 = TaskSpec::by_name("wnut17").unwrap();
    let tabs = "EU\tB-group\nrejects\tO\n";
    for name in [
        "emerging.test.annotated",
        "emerging.dev.conll",
        "wnut17train.conll",
        "demo.train.char.bmes",
        "a.tsv",
    ] {
        let examples = read(&wnut17, name, tabs).unwrap();
        assert_eq!(tags(&examples), "B-group O", "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let m = refused(Examples::open(
        &wnut17,
        folder.path(),
        OpenOptions::default(),
    ));
    assert_has(&m, &["directory", "give a file"]);
    let missing = folder.path().join("eng.train");
    let m = refused(Examples::open(&conll2003, &missing, OpenOptions::default()));
    assert_has(&m, &["eng.train", "no such file"]);
}

#[test]
fn a_format_that_is_given_stands_for_what_the_name_says() {
    let as_format = |spec: &TaskSpec, name: &str, content: &str, format| {
        let (_dir, path) = file(name, content);
        let options = OpenOptions {
            format: Some(format),
            ..OpenOptions::default()
        };
        Examples::read_all(spec, &path, options)
    };
    let words = own(Columns::default());
    for format in [FileFormat::Conll, FileFormat::Tsv] {
        for name in ["a.csv", "a.conllu", "a.jsonl"] {
            let examples = as_format(&words, name, "the O\nboat B-x\n", format).unwrap();
            assert_eq!(tags(&examples), "O B-x", "{name}");
        }
    }
    let row = "{\"tokens\": [\"the\"], \"tags\": [\"B-x\"]}\n";
    let examples = as_format(&words, "a.conll", row, FileFormat::Json).unwrap();
    assert_eq!(tags(&examples), "B-x");
    let universal = "# a\n1\tboat\t_\tVB\n";
    let examples = as_format(&words, "a.txt", universal, FileFormat::ConllU).unwrap();
    assert_eq!(tags(&examples), "VB");
    let classes = TaskSpec::by_name("sst2").unwrap();
    for format in [FileFormat::Conll, FileFormat::ConllU] {
        let m = refused(as_format(&classes, "a.tsv", "a\t1\n", format));
        assert_has(&m, &["a.tsv, format", "for tagging", "sst2 reads .tsv"]);
    }
}

/// What is unknown is named as the file has it, with the line of its word.
#[test]
fn an_unknown_tag_is_named_as_it_is_written_with_the_line_of_its_word() {
    let spec = own(Columns::default());
    let train = read(&spec, "a.conll", "the\tO\nboat\tB-x\n").unwrap();
    let labels = LabelSet::of_training(&spec, &train, Scheme::Bio).unwrap();
    let options = FeatureOptions::of(&spec);
    let f = Featurizer::new(spec.kind, tokenizer(), labels.clone(), options).unwrap();
    let assert_named = |name: &str, content: &str, parts: &[&str]| {
        let examples = read(&spec, name, content).unwrap();
        let last = examples.len() - 1;
        for m in [
            refused(labels.check(&examples)),
            refused(labels.check_development(&examples)),
            refused(f.features(last, &examples[last], &mut FeatureCounts::default())),
        ] {
            assert_has(&m, parts);
            assert_has(&m, &["B-x, O"]);
            assert!(!m.contains("header"), "{m}");
        }
    };
    assert_named("a.txt", "x I-FOO\n", &["a.txt, line 1:", "\"I-FOO\""]);
    assert_named(
        "a.conll",
        "x O\nx I-FOO\n",
        &["a.conll, line 2:", "\"I-FOO\""],
    );
    assert_named(
        "a.conll",
        "x O\n\n\ny O\nz S-x\nz E-y\n",
        &["a.conll, line 6:", "\"E-y\""],
    );
    // Lines that hold no word are counted.
    let universal = "# a\n1-2\tdu\t_\t_\n1\tde\t_\tO\n# b\n2\tle\t_\tDET\n";
    assert_named("a.conllu", universal, &["a.conllu, line 5:", "\"DET\""]);
    let rows = "{\"tokens\": [\"a\"], \"tags\": [\"O\"]}\n{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\", \"I-y\"]}\n";
    assert_named("a.jsonl", rows, &["a.jsonl, line 2, word 2:", "\"I-y\""]);
}

#[test]
fn conll_u_has_comments_ranges_and_empty_nodes() {
    let content = "# sent_id = 1
# text = du bist
1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\tIN\t_\t3\tcase\t_\t_
2\tle\tle\tDET\tDT\t_\t3\tdet\t_\t_
2.1\tx\tx\tNOUN\tNN\t_\t_\t_\t_\t_

# text = boat
1\t#\tboat\tNOUN\tNN\t_\t0\troot\t_\t_
";
    let tags = |columns: Columns| -> Vec<String> {
        let spec = own(columns);
        let examples = read(&spec, "a.conllu", content).unwrap();
        let gold = |e: &Example| match &e.gold {
            Some(Gold::Tags(tags)) => tags.join(" "),
            other => panic!("{other:?}"),
        };
        assert_eq!(examples[1].place.line, 9);
        examples
            .iter()
            .map(|e| format!("{}|{}", e.text(), gold(e)))
            .collect()
    };
    assert_eq!(tags(Columns::default()), ["de le|ADP DET", "#|NOUN"]);
    assert_eq!(tags(columns("3", "5")), ["de le|IN DT", "boat|NN"]);
    let by_name = columns("lemma", "XPOS");
    assert_eq!(tags(by_name), ["de le|IN DT", "boat|NN"]);
    // The same columns in another file are what they are.
    let spec = own(Columns::default());
    let examples = read(&spec, "a.conll", "#\tO\n1-2\tB-x\n").unwrap();
    assert_eq!(examples[0].text(), "# 1-2");
}

#[test]
fn conll_faults_are_named() {
    let tags = own(Columns::default());
    let m = refused(read(&tags, "a.conll", "x O\ny\n"));
    assert_has(
        &m,
        &["a.conll, line 2", "1 columns where the first line has 2"],
    );
    let m = refused(read(&tags, "a.conll", "x\ny\n"));
    assert_has(&m, &["a.conll, line 1", "no tags"]);
    let m = refused(read(&tags, "a.conll", "x\tO\ny\t\n"));
    assert_has(&m, &["a.conll, line 2", "a word without a tag"]);
    let m = refused(read(
        &tags,
        "a.jsonl",
        r#"{"tokens": ["a","b"], "tags": ["O"]}"#,
    ));
    assert_has(&m, &["a.jsonl, line 1", "2 words but 1 tags"]);
}
