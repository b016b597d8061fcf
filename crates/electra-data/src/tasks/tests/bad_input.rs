//! Each fault of a file is named with its place, or handled and counted.

use super::support::{file, read, tokenizer};
use crate::tasks::tagging::Scheme;
use crate::tasks::*;

fn message<T>(result: Result<T, TaskError>) -> String {
    match result {
        Ok(_) => panic!("must fail"),
        Err(e) => e.to_string(),
    }
}

fn named(task: &str) -> TaskSpec {
    TaskSpec::by_name(task).unwrap()
}

fn own(kind: TaskKind) -> TaskSpec {
    TaskSpec::own(OwnTask::new("mine", kind)).unwrap()
}

fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn a_missing_column_is_named_with_what_is_there() {
    let spec = own(TaskKind::Classification);
    let m = message(read(&spec, "a.tsv", "text\tclass\nx\t1\n"));
    assert_has(&m, &["a.tsv, line 1", "no column \"label\"", "\"class\""]);
    let m = message(read(&spec, "a.csv", "a,b\n1,2\n"));
    assert_has(
        &m,
        &["a.csv, line 1", "\"text\", \"label\"", "\"a\", \"b\""],
    );
    let m = message(read(&spec, "a.jsonl", "{\"text\": \"x\"}\n"));
    assert_has(&m, &["a.jsonl, line 1", "\"label\""]);
    let m = message(read(&named("mrpc"), "a.tsv", "1\t2\t3\n"));
    assert_has(&m, &["a.tsv, line 1", "\"#1 String\""]);
    // A header with other names is no example of a form without header.
    for labels in [LabelColumn::Required, LabelColumn::Optional] {
        let (_dir, path) = file("a.tsv", "txt\tlabel\na b\t1\nc d\t0\n");
        let options = OpenOptions {
            labels,
            ..OpenOptions::default()
        };
        let m = message(Examples::open(&named("sst2"), &path, options));
        assert_has(
            &m,
            &[
                "a.tsv, line 1",
                "no column \"sentence\"",
                "\"txt\", \"label\"",
            ],
        );
    }
    // Later lines may lack it too.
    let m = message(read(&spec, "a.tsv", "text\tlabel\nx\t1\ny\n"));
    assert_has(&m, &["a.tsv, line 3", "no column 2 (label)"]);
    let m = message(read(
        &spec,
        "a.jsonl",
        "{\"text\":\"x\",\"label\":1}\n{\"text\":\"y\"}\n",
    ));
    assert_has(&m, &["a.jsonl, line 2", "no \"label\""]);
    let m = message(read(&spec, "a.tsv", "text\tlabel\nx\t\n"));
    assert_has(&m, &["a.tsv, line 2", "label is empty"]);
}

#[test]
fn unknown_labels_are_named_with_their_line() {
    let spec = named("rte");
    let examples = read(
        &spec,
        "a.tsv",
        "label\ttext\thypothesis\nentailment\ta\tb\nmaybe\tc\td\n",
    )
    .unwrap();
    let m = message(LabelSet::of_training(&spec, &examples, Scheme::Bio));
    assert_has(
        &m,
        &[
            "a.tsv, line 3",
            "unknown label \"maybe\"",
            "entailment, not_entailment",
        ],
    );
    let labels = LabelSet::new(vec!["yes".into(), "no".into()]).unwrap();
    let featurizer =
        Featurizer::new(spec.kind, tokenizer(), labels, FeatureOptions::of(&spec)).unwrap();
    let m = message(featurizer.features(0, &examples[0], &mut FeatureCounts::default()));
    assert_has(
        &m,
        &["a.tsv, line 2", "unknown label \"entailment\"", "yes, no"],
    );
    let m = message(read(
        &own(TaskKind::Regression),
        "a.tsv",
        "text\tlabel\nx\tmuch\n",
    ));
    assert_has(&m, &["a.tsv, line 2", "\"much\" is not a number"]);
    for bad in ["nan", "inf"] {
        read(
            &own(TaskKind::Regression),
            "a.tsv",
            format!("text\tlabel\nx\t{bad}\n"),
        )
        .unwrap_err();
    }
}

/// Columns by number, the text first, the label second.
fn by_number(kind: TaskKind, header: Header) -> TaskSpec {
    let task = OwnTask {
        columns: Columns {
            text: vec![Column::Number(1)],
            label: vec![Column::Number(2)],
            ..Columns::default()
        },
        ..OwnTask::new("mine", kind)
    };
    TaskSpec {
        header,
        ..TaskSpec::own(task).unwrap()
    }
}

#[test]
fn a_header_of_other_names_is_skipped_or_suspected_and_said() {
    let open = |header, content: &str| {
        let (_dir, path) = file("a.tsv", content);
        let spec = by_number(TaskKind::Classification, header);
        let mut reader = Examples::open(&spec, &path, OpenOptions::default()).unwrap();
        let examples: Vec<Example> = reader.by_ref().map(Result::unwrap).collect();
        let note = reader.header_note(&examples);
        (examples.len(), note.unwrap_or_default())
    };
    // Certain: every other label is a number.
    let stars = "review\tstars\na\t5\nb\t1\nc\t5\n";
    let (count, note) = open(Header::Detect, stars);
    assert_eq!(count, 3);
    assert_has(
        &note,
        &["a.tsv", "\"stars\" is no number", "--header false"],
    );
    assert_eq!(open(Header::Absent, stars), (4, String::new()));
    assert_eq!(open(Header::Present, stars), (3, String::new()));
    // Doubtful: it is an example, and said to be odd.
    let verdict = "review\tverdict\na\tgood\nb\tbad\nc\tgood\n";
    let (count, note) = open(Header::Detect, verdict);
    assert_eq!(count, 4);
    assert_has(
        &note,
        &[
            "\"verdict\" of the first row occurs nowhere else",
            "--header true",
        ],
    );
    assert_eq!(open(Header::Absent, verdict), (4, String::new()));
    for fine in ["a\tgood\nb\tbad\nc\tgood\n", "a\tx\nb\t1\nc\ty\n"] {
        assert_eq!(open(Header::Detect, fine), (3, String::new()));
    }
    let values = by_number(TaskKind::Regression, Header::Detect);
    assert_eq!(read(&values, "a.tsv", stars).unwrap().len(), 3);
    let m = message(read(&values, "a.tsv", "review\tstars\n"));
    assert_has(
        &m,
        &[
            "a.tsv, line 1",
            "\"stars\" is not a number",
            "--header true",
        ],
    );
    let spec = by_number(TaskKind::Classification, Header::Detect);
    let examples = read(&spec, "a.tsv", verdict).unwrap();
    let labels = LabelSet::new(vec!["good".into(), "bad".into()]).unwrap();
    assert_has(
        &message(labels.check(&examples)),
        &["line 1", "--header true"],
    );
}

#[test]
fn numbers_stand_for_a_models_labels_and_are_said_once() {
    let spec = named("sst2");
    let examples = read(&spec, "a.tsv", "x\t1\ny\t0\nz\t1\n").unwrap();
    let names = || vec!["NEGATIVE".into(), "POSITIVE".into()];
    let labels = LabelSet::new(names()).unwrap().known_by_number();
    labels.check(&examples).unwrap();
    let options = FeatureOptions::of(&spec);
    let f = Featurizer::new(spec.kind, tokenizer(), labels.clone(), options.clone()).unwrap();
    let mut counts = FeatureCounts::default();
    let targets: Vec<_> = examples
        .iter()
        .map(|e| f.features(0, e, &mut counts).unwrap()[0].target.clone())
        .collect();
    let class = |n| Some(Target::Class(n));
    assert_eq!(targets, [class(1), class(0), class(1)]);
    let notes = counts.notes();
    assert_eq!(notes.len(), 1);
    assert_has(&notes[0], &["0 as NEGATIVE, 1 as POSITIVE"]);
    // Beyond the last, written otherwise, or the name of a label.
    for odd in ["2", "01", "-1", "1.0"] {
        assert_eq!(labels.id(odd), None, "{odd}");
    }
    let swapped = LabelSet::new(vec!["1".into(), "0".into()]).unwrap();
    assert_eq!(swapped.known_by_number().id("1"), Some(0));
    // What training found is what there is.
    message(LabelSet::new(names()).unwrap().check(&examples));

    let tags = own(TaskKind::Tagging);
    let row = r#"{"tokens": ["the", "boat"], "tags": [0, 2]}"#;
    let examples = read(&tags, "a.jsonl", row).unwrap();
    let labels = ["O", "B-x", "I-x"].map(String::from).to_vec();
    let labels = LabelSet::new(labels).unwrap().known_by_number();
    labels.check(&examples).unwrap();
    let f = Featurizer::new(tags.kind, tokenizer(), labels, options).unwrap();
    let mut counts = FeatureCounts::default();
    let features = f.features(0, &examples[0], &mut counts).unwrap();
    let expected = Target::Tags(vec![Some(0), Some(2)]);
    assert_eq!(features[0].target, Some(expected));
    assert_has(&counts.notes()[0], &["0 as O, 2 as I-x"]);
}

#[test]
fn a_label_that_only_the_development_file_has_is_refused() {
    let spec = own(TaskKind::Classification);
    let train = read(&spec, "a.tsv", "text\tlabel\nx\t1\ny\t2\n").unwrap();
    let dev = read(&spec, "dev.tsv", "text\tlabel\nx\t1\ny\t3\n").unwrap();
    let labels = LabelSet::of_training(&spec, &train, Scheme::Bio).unwrap();
    let m = message(labels.check_development(&dev));
    assert_has(
        &m,
        &[
            "dev.tsv, line 3",
            "label \"3\" is not in the training data",
            "1, 2",
        ],
    );
    let tags = own(TaskKind::Tagging);
    let train = read(&tags, "a.conll", "x\tB-A\ny\tO\n").unwrap();
    let dev = read(&tags, "dev.conll", "x\tO\n\ny\tB-B\n").unwrap();
    let labels = LabelSet::of_training(&tags, &train, Scheme::Bio).unwrap();
    let m = message(labels.check_development(&dev));
    assert_has(&m, &["dev.conll, line 3", "\"B-B\""]);
}

#[test]
fn empty_files_are_refused() {
    for (name, content) in [
        ("a.tsv", ""),
        ("a.tsv", "\n\n"),
        ("a.tsv", "text\tlabel\n"),
        ("a.csv", ""),
        ("a.jsonl", "\n"),
        ("a.tsv", "\u{feff}"),
    ] {
        let m = message(read(&own(TaskKind::Classification), name, content));
        assert_has(&m, &[name, "holds no example"]);
    }
    let m = message(read(&own(TaskKind::Tagging), "a.conll", "\n\n"));
    assert_has(&m, &["a.conll", "holds no example"]);
    for content in ["", "{\"data\": []}"] {
        let m = message(read(&named("squad"), "a.json", content));
        assert_has(&m, &["a.json", "holds no example"]);
    }
}

/// The hub's test files have −1 where a label should be.
#[test]
fn files_without_labels_are_refused_as_such() {
    let rows = "{\"sentence1\": \"a\", \"sentence2\": \"b\", \"label\": -1.0}\n";
    let m = message(read(&named("stsb"), "a.jsonl", rows));
    assert_has(&m, &["a.jsonl, line 1", "label is empty"]);
    let rows = "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": -1}\n".repeat(2);
    let m = message(read(&named("mnli"), "a.jsonl", &rows));
    assert_has(&m, &["a.jsonl", "holds no example", "2 rows lack a label"]);
}

#[test]
fn one_class_only_is_refused() {
    let spec = own(TaskKind::Classification);
    let examples = read(&spec, "a.tsv", "text\tlabel\nx\t1\ny\t1\n").unwrap();
    let m = message(LabelSet::of_training(&spec, &examples, Scheme::Bio));
    assert_has(&m, &["a.tsv", "every example has the label \"1\""]);
    let known = read(&named("sst2"), "a.tsv", "x\t1\ny\t1\n").unwrap();
    message(LabelSet::of_training(&named("sst2"), &known, Scheme::Bio));
    let tags = own(TaskKind::Tagging);
    let examples = read(&tags, "a.conll", "x\tO\n").unwrap();
    let m = message(LabelSet::of_training(&tags, &examples, Scheme::Bio));
    assert_has(&m, &["\"O\""]);
}

#[test]
fn lines_of_50_000_characters_are_read_and_cut_to_the_length() {
    let spec = named("sst2");
    let long = "the old boat ".repeat(4000);
    let word = "x".repeat(50_000);
    let examples = read(&spec, "a.tsv", format!("{long}\t1\n{word}\t0\n")).unwrap();
    let labels = LabelSet::of_training(&spec, &examples, Scheme::Bio).unwrap();
    let featurizer =
        Featurizer::new(spec.kind, tokenizer(), labels, FeatureOptions::of(&spec)).unwrap();
    let mut counts = FeatureCounts::default();
    let first = featurizer.features(0, &examples[0], &mut counts).unwrap();
    assert_eq!(first[0].sequences[0].token_ids.len(), 128);
    let second = featurizer.features(1, &examples[1], &mut counts).unwrap();
    assert_eq!(second[0].sequences[0].token_ids.len(), 3);
    assert_eq!(counts.truncated, 1);
    assert_eq!(counts.notes(), ["1 examples were cut to the length"]);
    let tags = own(TaskKind::Tagging);
    let line = format!("{word}\tO\nthe\tB-A\n");
    assert_eq!(read(&tags, "a.conll", line).unwrap().len(), 1);
}

#[test]
fn entities_that_begin_with_i_are_read_and_counted() {
    let spec = own(TaskKind::Tagging);
    let examples = read(&spec, "a.conll", "the\tI-A\nold\tI-A\nboat\tB-A\n").unwrap();
    let labels = LabelSet::of_training(&spec, &examples, Scheme::Bio).unwrap();
    assert_eq!(labels.names(), ["B-A", "I-A"]);
    let featurizer =
        Featurizer::new(spec.kind, tokenizer(), labels, FeatureOptions::of(&spec)).unwrap();
    let mut counts = FeatureCounts::default();
    let features = featurizer.features(0, &examples[0], &mut counts).unwrap();
    assert_eq!(
        features[0].target,
        Some(Target::Tags(vec![Some(0), Some(1), Some(0)]))
    );
    assert_eq!(counts.entities_begun_inside, 1);
}

#[test]
fn nul_bytes_and_invalid_utf8_are_named_with_their_line() {
    let spec = named("sst2");
    let m = message(read(&spec, "a.tsv", b"a\t1\nb\0c\t0\n"));
    assert_has(&m, &["a.tsv", "NUL byte at offset 5, line 2"]);
    let late = format!("{}b\0c\t0\n", "a\t1\n".repeat(5000));
    let m = message(read(&spec, "a.tsv", late));
    assert_has(&m, &["a.tsv, line 5001", "NUL byte at byte 1"]);
    let m = message(read(&spec, "a.tsv", b"a\t1\nb\xffc\t0\n"));
    assert_has(&m, &["a.tsv, line 2", "invalid UTF-8 at byte 1"]);
    let m = message(read(
        &own(TaskKind::Classification),
        "a.csv",
        b"text,label\nb\xffc,0\n",
    ));
    assert_has(&m, &["a.csv, line 2", "invalid UTF-8"]);
    let (_dir, path) = file("a.tsv", b"a\t1\nb\xffc\t0\n");
    let options = OpenOptions {
        lossy: true,
        ..OpenOptions::default()
    };
    let mut examples = Examples::open(&spec, &path, options).unwrap();
    let read: Vec<Example> = examples.by_ref().map(Result::unwrap).collect();
    assert_eq!(read[1].text(), "b\u{fffd}c");
    assert_eq!(examples.invalid_utf8(), 1);
    let m = message(super::support::read(
        &named("squad"),
        "a.json",
        b"{\"data\": [\n{\"paragraphs\": [{\"context\": \"\xff\"}]}]}",
    ));
    assert_has(&m, &["a.json, line 2", "invalid UTF-8"]);
}

#[test]
fn byte_order_marks_and_mixed_line_ends_change_nothing() {
    let spec = named("mrpc");
    let plain = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta \"b\tc\n0\t3\t4\td\te\n";
    let expected = read(&spec, "a.tsv", plain).unwrap();
    let mixed =
        "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t1\t2\ta \"b\tc\n0\t3\t4\td\te\r";
    let found = read(&spec, "a.tsv", mixed).unwrap();
    let inputs = |list: &[Example]| -> Vec<_> {
        list.iter()
            .map(|e| (e.place.line, e.input.clone(), e.gold.clone()))
            .collect()
    };
    assert_eq!(inputs(&found), inputs(&expected));
    let Input::Text { first, .. } = &expected[0].input else {
        panic!("no text");
    };
    assert_eq!(first, "a \"b");
    // Old Macs end lines with a return; where anything else ends them it is a character.
    let mac = read(&spec, "a.tsv", plain.replace('\n', "\r")).unwrap();
    assert_eq!(inputs(&mac), inputs(&expected));
    let inside = read(&spec, "a.tsv", plain.replace("a \"b", "a\rb")).unwrap();
    assert_eq!(inside.len(), 2);
    assert_eq!(inside[0].text(), "a\rb ⫽ c");
    let tags = own(TaskKind::Tagging);
    let a = read(&tags, "a.conll", "x O\r\ny B-A\r\n\r\nz O").unwrap();
    assert_eq!(a.len(), 2);
    assert_eq!(a[0].gold, Some(Gold::Tags(vec!["O".into(), "B-A".into()])));
}

#[test]
fn squad_faults_are_named() {
    let squad = named("squad");
    for (content, what) in [
        ("[1]", "not a JSON object"),
        (
            "{\n\"version\": 1}",
            "expected an object with an array \"data\"",
        ),
        ("{\"data\": [{\"paragraphs\": [", "the file ends inside"),
        ("{\"data\": [\n{\"paragraphs\": 3}]}", "line 2"),
        ("{\"version\": 1}", "no column \"context\""),
        (
            "{\"data\": [\n{\"paragraphs\": [{\"context\": \"c\",\n \"qas\": [{\"id\": 1}]}]}]}",
            "missing field `question`",
        ),
        (
            "{\"data\": [{\"paragraphs\": [{\"context\": \"c\", \"qas\": [{\"id\": \"q1\", \"question\": \"q\"}]}]}]}",
            "question \"q1\" has no \"answers\"",
        ),
        (
            "{\"data\": [{\"paragraphs\": [{\"context\": \"c\", \"qas\": [{\"id\": \"q1\", \"question\": \"q\", \"answers\": []}]}]}]}",
            "use squad2",
        ),
    ] {
        let m = message(read(&squad, "a.json", content));
        assert_has(&m, &["a.json", "line", what]);
    }
}

#[test]
fn unknown_tasks_and_kinds_of_files_are_named() {
    let m = message(TaskSpec::by_name("glue"));
    assert_has(&m, &["\"glue\"", "cola sst2", "agnews"]);
    let m = message(read(&named("sst2"), "a.xls", "x"));
    assert_has(
        &m,
        &[
            "a.xls",
            "unknown kind",
            "sst2 reads .tsv .csv .jsonl .json .parquet .txt",
            "or a directory",
            "--format",
        ],
    );
    let m = message(read(&named("squad"), "a.xls", "x"));
    assert_has(&m, &["a.xls", "unknown kind", ".json is also SQuAD's"]);
    let m = message(read(&named("stsb"), "a.conll", "x"));
    assert_has(&m, &["a.conll", "for tagging", "stsb reads .tsv"]);
    assert!(!m.contains("directory") && !m.contains("SQuAD"), "{m}");
    let m = message(Examples::read_all(
        &named("sst2"),
        std::path::Path::new("nowhere/a.tsv"),
        OpenOptions::default(),
    ));
    assert_has(&m, &["nowhere/a.tsv", "no such file"]);
    let m = message(Examples::read_all(
        &named("sst2"),
        std::path::Path::new("nowhere"),
        OpenOptions::default(),
    ));
    assert_has(&m, &["nowhere", "no such file"]);
    let folder = tempfile::tempdir().unwrap();
    let m = message(Examples::read_all(
        &named("imdb"),
        folder.path(),
        OpenOptions::default(),
    ));
    assert_has(&m, &["directory", "folders", "labels"]);
    let m = message(Examples::read_all(
        &named("stsb"),
        folder.path(),
        OpenOptions::default(),
    ));
    assert_has(&m, &["directory", "give a file"]);
}

#[test]
fn a_quote_that_is_not_closed_is_suspected() {
    let own = own(TaskKind::Classification);
    let m = message(read(&own, "a.csv", "text,label\n\"foo,1\nbar,0\n"));
    assert_has(&m, &["a.csv, line 2", "label", "quote"]);
    let m = message(read(&own, "a.csv", "text,label\nfoo\nbar,0\n"));
    assert!(m.contains("a.csv, line 2") && !m.contains("quote"), "{m}");
}

#[test]
fn rows_of_more_cells_than_the_first_are_counted() {
    let (_dir, path) = file("a.tsv", "text\tlabel\nfoo\t0\t9\nbar\t1\nbaz\t1\t\n");
    let own = own(TaskKind::Classification);
    let mut examples = Examples::open(&own, &path, OpenOptions::default()).unwrap();
    assert_eq!(examples.by_ref().map(Result::unwrap).count(), 3);
    assert_eq!(examples.surplus(), 2);
}

#[test]
fn known_malformed_rows_are_counted() {
    let (_dir, path) = file(
        "a.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n4\t5\n6\t7\t8\tc\td\t1\n",
    );
    let mut examples = Examples::open(&named("qqp"), &path, OpenOptions::default()).unwrap();
    assert_eq!(examples.by_ref().map(Result::unwrap).count(), 2);
    assert_eq!(examples.skipped(), 1);
}

proptest::proptest! {
    #[test]
    fn no_content_of_a_file_panics(
        content in "[\\PC\t\n\r\"{}\\[\\]:,\\\\]{0,60}",
        prefix in proptest::sample::select(vec![
            "", "text\tlabel\n", "label,text\n", "{\"data\": [", "{\"text\": ", "{\"data\": [{\"paragraphs\": [",
        ]),
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..6),
    ) {
        let mut all = format!("{prefix}{content}").into_bytes();
        all.extend(bytes);
        for (kind, names) in [
            (TaskKind::Classification, &["a.tsv", "a.csv", "a.jsonl", "a.parquet", "a.tsv.gz"][..]),
            (TaskKind::Tagging, &["a.conll", "a.jsonl"]),
            (TaskKind::QuestionAnswering, &["a.json", "a.jsonl"]),
        ] {
            for name in names {
                if let Err(e) = read(&own(kind), name, &all) {
                    proptest::prop_assert!(e.to_string().contains(name), "{}", e);
                }
            }
        }
    }
}
