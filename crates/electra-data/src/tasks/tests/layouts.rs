//! The layouts of GLUE's files and of one's own, and the files of predictions.

use super::support::{file, read, tokenizer};
use crate::tasks::submission::{Submission, TASKS, file_name, server_labels};
use crate::tasks::tagging::Scheme;
use crate::tasks::*;

/// Text, second text and label of each example, joined by `|`; `-` for none.
fn summary(spec: &TaskSpec, name: &str, content: &str) -> Vec<String> {
    let (_dir, path) = file(name, content);
    let options = OpenOptions {
        labels: LabelColumn::Optional,
        ..OpenOptions::default()
    };
    Examples::open(spec, &path, options)
        .unwrap()
        .map(|example| {
            let example = example.unwrap();
            let Input::Text { first, second } = &example.input else {
                panic!("no text");
            };
            let gold = match &example.gold {
                None => "-".into(),
                Some(Gold::Class(label)) => label.clone(),
                Some(Gold::Value(value)) => value.to_string(),
                Some(Gold::Labels(labels)) => labels.join("+"),
                Some(other) => panic!("{other:?}"),
            };
            let second = second.as_deref().unwrap_or("-");
            format!("{}|{first}|{second}|{gold}", example.id)
        })
        .collect()
}

#[test]
fn glue_files_are_read_with_and_without_labels() {
    for (task, content, expected) in [
        ("cola", "gj04\t1\t\tA b.\n", "0|A b.|-|1"),
        ("cola", "index\tsentence\n7\tA b.\n", "7|A b.|-|-"),
        ("sst2", "sentence\tlabel\na b\t0\n", "0|a b|-|0"),
        ("sst2", "index\tsentence\n3\ta b\n", "3|a b|-|-"),
        ("sst2", "a b\t0\n", "0|a b|-|0"),
        (
            "mrpc",
            "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t8\t9\ta \"b\tc\n",
            "0|a \"b|c|1",
        ),
        (
            "mrpc",
            "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n4\t8\t9\ta\tc\n",
            "4|a|c|-",
        ),
        (
            "stsb",
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n0\tg\tf\ty\t1\ts\ts\ta\tb\t3.25\n",
            "0|a|b|3.25",
        ),
        (
            "stsb",
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n5\tg\tf\ty\t1\ts\ts\ta\tb\n",
            "5|a|b|-",
        ),
        (
            "qqp",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n",
            "1|a|b|0",
        ),
        ("qqp", "id\tquestion1\tquestion2\n9\ta\tb\n", "9|a|b|-"),
        (
            "mnli",
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n0\t1\t2\tg\tp\tp\tp\tp\ta\tb\tneutral\tneutral\n",
            "0|a|b|neutral",
        ),
        (
            "mnli",
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\n6\t1\t2\tg\tp\tp\tp\tp\ta\tb\n",
            "6|a|b|-",
        ),
        (
            "qnli",
            "index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n",
            "0|a|b|not_entailment",
        ),
        (
            "rte",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
            "0|a|b|entailment",
        ),
        (
            "rte",
            "label\ttext\thypothesis\nentailment\ta\tb\n",
            "0|a|b|entailment",
        ),
        (
            "wnli",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n",
            "0|a|b|1",
        ),
        ("wnli", "index\tsentence1\tsentence2\n2\ta\tb\n", "2|a|b|-"),
    ] {
        let found = summary(&TaskSpec::by_name(task).unwrap(), "a.tsv", content);
        assert_eq!(found, [expected], "{task}");
    }
    // A test file is not taken for training data without a header.
    let sst2 = TaskSpec::by_name("sst2").unwrap();
    let m = read(&sst2, "a.tsv", "index\tsentence\n3\ta b\n")
        .unwrap_err()
        .to_string();
    assert!(m.contains("no column \"label\""), "{m}");
    let mnli = TaskSpec::by_name("mnli").unwrap();
    let content = r#"{"premise": "a", "hypothesis": "b", "label": 2, "idx": 5}
{"premise": "a", "hypothesis": "b", "label": -1, "idx": 6}"#;
    assert_eq!(
        summary(&mnli, "a.jsonl", content),
        ["5|a|b|contradiction", "6|a|b|-"]
    );
}

#[test]
fn other_known_tasks_are_read_in_their_usual_forms() {
    for (task, name, content, expected) in [
        (
            "chnsenticorp",
            "a.csv",
            "label,review\n1,\"好,\"\"很\"\"好\"\n",
            "0|好,\"很\"好|-|1",
        ),
        (
            "chnsenticorp",
            "a.tsv",
            "label\ttext_a\n0\t不好\n",
            "0|不好|-|0",
        ),
        (
            "imdb",
            "a.csv",
            "review,sentiment\ngood,positive\n",
            "0|good|-|positive",
        ),
        (
            "imdb",
            "a.jsonl",
            "{\"text\": \"good\", \"label\": 1}\n",
            "0|good|-|1",
        ),
        (
            "agnews",
            "a.csv",
            "\"3\",\"Title\",\"Text, here\"\n",
            "0|Title Text, here|-|3",
        ),
        (
            "agnews",
            "a.csv",
            "Class Index,Title,Description\n3,Title,Text\n",
            "0|Title Text|-|3",
        ),
    ] {
        let found = summary(&TaskSpec::by_name(task).unwrap(), name, content);
        assert_eq!(found, [expected], "{task}");
    }
    for task in TaskSpec::names() {
        let spec = TaskSpec::by_name(task).unwrap();
        assert_eq!(spec.name, *task);
        assert!(spec.metrics.contains(&spec.best));
        let again: TaskSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
    }
}

fn own(kind: TaskKind, columns: Columns, header: Header) -> TaskSpec {
    let task = OwnTask {
        columns,
        ..OwnTask::new("mine", kind)
    };
    TaskSpec {
        header,
        ..TaskSpec::own(task).unwrap()
    }
}

fn columns(text: &str, second: &str, label: &str) -> Columns {
    Columns {
        text: vec![text.parse().unwrap()],
        second: (!second.is_empty()).then(|| second.parse().unwrap()),
        label: vec![label.parse().unwrap()],
        ..Columns::default()
    }
}

#[test]
fn columns_are_found_by_name_or_number_with_or_without_header() {
    use TaskKind::Classification;
    let named = own(Classification, columns("b", "a", "c"), Header::Detect);
    assert_eq!(summary(&named, "a.csv", "c,a,b\n1,x,y\n"), ["0|y|x|1"]);
    let numbered = own(Classification, columns("2", "", "1"), Header::Detect);
    assert_eq!(summary(&numbered, "a.csv", "1,x\n2,y\n").len(), 2);
    assert_eq!(summary(&numbered, "a.csv", "Label,x\n2,y\n"), ["0|y|-|2"]);
    let absent = own(Classification, columns("2", "", "1"), Header::Absent);
    assert_eq!(summary(&absent, "a.csv", "label,x\n2,y\n").len(), 2);
    let present = own(Classification, columns("2", "", "1"), Header::Present);
    assert_eq!(summary(&present, "a.csv", "1,x\n2,y\n"), ["0|y|-|2"]);
    // A column may be called by a number.
    let (_dir, path) = file("a.tsv", "x\t1\n");
    let named = own(Classification, columns("text", "", "label"), Header::Absent);
    assert!(Examples::open(&named, &path, OpenOptions::default()).is_err());
}

#[test]
fn multi_label_cells_lists_and_columns_are_read() {
    use TaskKind::MultiLabel;
    let one = own(MultiLabel, columns("text", "", "labels"), Header::Detect);
    assert_eq!(
        summary(&one, "a.tsv", "text\tlabels\nx\tb, a\ny\t\n"),
        ["0|x|-|b+a", "1|y|-|"]
    );
    assert_eq!(
        summary(&one, "a.jsonl", r#"{"text": "x", "labels": ["b", "a"]}"#),
        ["0|x|-|b+a"]
    );
    // As pandas writes a list into a cell, with either quote.
    let written = "text\tlabels\nx\t['b, c', \"it's\"]\ny\t[]\nz\t[b]\n";
    assert_eq!(
        summary(&one, "a.tsv", written),
        ["0|x|-|b, c+it's", "1|y|-|", "2|z|-|[b]"]
    );
    let m = read(&one, "a.tsv", "text\tlabels\nx\t[0, 1, 0]\n");
    let m = m.unwrap_err().to_string();
    assert!(m.contains("line 2") && m.contains("--label-column"), "{m}");
    // As transformers' trainer has them: which label a place is, nobody says.
    for list in ["[1.0, 0.0]", "[0, 1, 0]", "[1, 1]"] {
        let content = format!(r#"{{"text": "x", "labels": {list}}}"#);
        let m = read(&one, "a.jsonl", &content).unwrap_err().to_string();
        assert!(m.contains("line 1") && m.contains("--label-column"), "{m}");
    }
    assert_eq!(
        summary(&one, "a.jsonl", r#"{"text": "x", "labels": [0, 1]}"#),
        ["0|x|-|0+1"]
    );
    let mut several = columns("text", "", "a");
    several.label.push("b".into());
    let several = own(MultiLabel, several, Header::Detect);
    let content = "text,a,b\nx,1,0\ny,1,1\n";
    assert_eq!(
        summary(&several, "a.csv", content),
        ["0|x|-|a", "1|y|-|a+b"]
    );
    let examples = read(&several, "a.csv", content).unwrap();
    let labels = LabelSet::of_training(&several, &examples, Scheme::Bio).unwrap();
    let f = Featurizer::new(
        several.kind,
        tokenizer(),
        labels,
        FeatureOptions::of(&several),
    );
    let features = f
        .unwrap()
        .features(0, &examples[0], &mut FeatureCounts::default());
    assert_eq!(
        features.unwrap()[0].target,
        Some(Target::Labels(vec![true, false]))
    );
    let m = read(&several, "a.csv", "text,a,b\nx,1,maybe\n")
        .unwrap_err()
        .to_string();
    assert!(m.contains("line 2") && m.contains("\"maybe\""), "{m}");
}

#[test]
fn choices_are_columns_or_lists_and_the_right_one_a_number_a_letter_a_name_or_a_text() {
    let list = own(TaskKind::MultipleChoice, Columns::default(), Header::Detect);
    let rows = r#"{"text": "the boat", "choices": ["in", "on", "the"], "label": 2}
{"text": "the boat", "choices": ["in", "on"], "label": "B"}
{"text": "the boat", "choices": ["in", "on"], "label": "in"}"#;
    let examples = read(&list, "a.jsonl", rows).unwrap();
    let gold: Vec<_> = examples.iter().map(|e| e.gold.clone().unwrap()).collect();
    assert_eq!(gold, [Gold::Choice(2), Gold::Choice(1), Gold::Choice(0)]);
    let labels = LabelSet::of_training(&list, &examples, Scheme::Bio).unwrap();
    let f = Featurizer::new(list.kind, tokenizer(), labels, FeatureOptions::of(&list)).unwrap();
    let features = f
        .features(0, &examples[0], &mut FeatureCounts::default())
        .unwrap();
    assert_eq!((features.len(), features[0].sequences.len()), (1, 3));
    assert_eq!(features[0].sequences[1].type_ids, [0, 0, 0, 0, 1, 1]);
    assert_eq!(features[0].target, Some(Target::Class(2)));
    // As the hub has ARC, where choices are called 1 to 4 as often as A to D.
    let named = |label: &str| {
        let choices = r#"{"text": ["in", "on"], "label": ["1", "2"]}"#;
        let row = format!(r#"{{"text": "the boat", "choices": {choices}, "label": {label:?}}}"#);
        read(&list, "a.jsonl", row)
    };
    let last = named("2").unwrap();
    assert_eq!(last[0].gold, Some(Gold::Choice(1)));
    let (first, choices) = ("the boat".into(), vec!["in".into(), "on".into()]);
    assert_eq!(last[0].input, Input::Choices { first, choices });
    let m = named("0").unwrap_err().to_string();
    assert!(m.contains("which are called 1, 2"), "{m}");
    let row = r#"{"text": "a", "choices": {"text": ["in", "on"], "label": ["1"]}, "label": "1"}"#;
    let m = read(&list, "a.jsonl", row).unwrap_err().to_string();
    assert!(m.contains("2 choices but 1 names of choices"), "{m}");
    let columns = Columns {
        text: vec!["q".into()],
        choices: vec!["a".into(), "b".into()],
        label: vec!["l".into()],
        ..Columns::default()
    };
    let each = own(TaskKind::MultipleChoice, columns, Header::Detect);
    assert_eq!(read(&each, "a.csv", "q,a,b,l\nx,y,z,1\n").unwrap().len(), 1);
    for (row, what) in [
        ("x,y,z,2", "none of the 2 choices"),
        ("x,y,z,", "label is empty"),
    ] {
        let m = read(&each, "a.csv", format!("q,a,b,l\n{row}\n"))
            .unwrap_err()
            .to_string();
        assert!(m.contains("line 2") && m.contains(what), "{m}");
    }
}

#[test]
fn kinds_refuse_columns_that_are_not_theirs() {
    let refused = |kind, columns| {
        TaskSpec::own(OwnTask {
            columns,
            ..OwnTask::new("mine", kind)
        })
        .unwrap_err()
        .to_string()
    };
    let mut several = columns("text", "", "a");
    several.label.push("b".into());
    assert!(refused(TaskKind::Classification, several).contains("multi-label"));
    assert!(refused(TaskKind::Tagging, columns("a", "b", "c")).contains("second text"));
    let start = Columns {
        start: Some("begin".into()),
        ..Columns::default()
    };
    assert!(refused(TaskKind::Classification, start).contains("for questions"));
}

#[test]
fn compressed_files_and_tables_of_lists_are_read() {
    let spec = TaskSpec::by_name("sst2").unwrap();
    let gz = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        std::io::Write::write_all(&mut encoder, b"a b\t0\n").unwrap();
        encoder.finish().unwrap()
    };
    assert_eq!(read(&spec, "a.tsv.gz", gz).unwrap().len(), 1);
    let zst = zstd::stream::encode_all(&b"a b\t0\n"[..], 0).unwrap();
    assert_eq!(read(&spec, "a.tsv.zst", zst).unwrap().len(), 1);
    let tags = TaskSpec::by_name("wnut17").unwrap();
    let row = r#"{"id": "7", "tokens": ["the", "boat"], "ner_tags": ["O", "B-x"]}"#;
    let examples = read(&tags, "a.jsonl", row).unwrap();
    assert_eq!(examples[0].id, "7");
    assert_eq!(
        examples[0].gold,
        Some(Gold::Tags(vec!["O".into(), "B-x".into()]))
    );
    let squad = TaskSpec::by_name("squad").unwrap();
    let row = r#"{"id": "q", "context": "the boat", "question": "who", "answers": {"text": ["boat"], "answer_start": [4]}}"#;
    let answer = Answer {
        text: "boat".into(),
        start: Some(4),
    };
    assert_eq!(
        read(&squad, "a.jsonl", row).unwrap()[0].gold,
        Some(Gold::Answers(vec![answer]))
    );
}

#[test]
fn a_list_of_json_is_read_as_its_rows() {
    let own = own(
        TaskKind::Classification,
        columns("text", "", "label"),
        Header::Detect,
    );
    let rows = ["0|a, [b] \"c\\|-|x", "1|d|-|y"];
    let list = r#" [
        {"text": "a, [b] \"c\\", "label": "x", "more": [1, {"k": 2}]},
        {"label": "y",
         "text": "d"}
    ]
    "#;
    assert_eq!(summary(&own, "a.json", list), rows);
    assert_eq!(summary(&own, "a.jsonl", list), rows);
    let lines = list.trim().trim_start_matches('[').trim_end_matches(']');
    let lines = lines.replace('\n', " ").replace("},", "}\n");
    assert_eq!(summary(&own, "a.json", &lines), rows);
    let cut = list.trim().trim_end_matches(']');
    let m = read(&own, "a.json", cut).unwrap_err().to_string();
    assert!(m.contains("a.json") && m.contains("cut off"), "{m}");
    let m = read(&own, "a.json", "[1, 2]").unwrap_err().to_string();
    assert!(m.contains("line 1") && m.contains("object"), "{m}");
    let tags = super::super::TaskSpec::by_name("wnut17").unwrap();
    let content = r#"[{"tokens": ["the", "boat"], "ner_tags": [0, 0], "id": "7"}]"#;
    assert_eq!(read(&tags, "a.json", content).unwrap().len(), 1);
}

#[test]
fn numbers_of_the_hubs_tables_are_tags_with_names() {
    let read_tags = |task: &str, column: &str, numbers: &str| {
        let count = numbers.split(',').count();
        let words = vec!["\"the\""; count].join(", ");
        let row = format!("{{\"tokens\": [{words}], \"{column}\": [{numbers}]}}\n");
        let examples = read(&TaskSpec::by_name(task).unwrap(), "a.jsonl", row)?;
        match &examples[0].gold {
            Some(Gold::Tags(tags)) => Ok::<_, TaskError>(tags.join(" ")),
            other => panic!("{other:?}"),
        }
    };
    for (task, column, numbers, expected) in [
        (
            "conll2003",
            "ner_tags",
            "0, 1, 2, 3, 8",
            "O B-PER I-PER B-ORG I-MISC",
        ),
        (
            "conll2000",
            "chunk_tags",
            "11, 12, 21, 1, 19, 22",
            "B-NP I-NP B-VP B-ADJP B-UCP I-VP",
        ),
        (
            "wnut17",
            "ner_tags",
            "0, 3, 4, 9, 12",
            "O B-creative-work I-creative-work B-person I-product",
        ),
        ("msra", "ner_tags", "5, 6", "B-LOC I-LOC"),
        // Names stay what they are.
        ("conll2003", "ner_tags", "\"I-ORG\", \"O\"", "I-ORG O"),
    ] {
        assert_eq!(
            read_tags(task, column, numbers).unwrap(),
            expected,
            "{task}"
        );
    }
    let m = read_tags("msra", "ner_tags", "0, 7")
        .unwrap_err()
        .to_string();
    assert!(m.contains("line 1") && m.contains("no tag 7"), "{m}");
    // Another column of such a task, and a task of one's own, have the tags of their data.
    let pos = TaskSpec::by_name("conll2003")
        .unwrap()
        .with_columns(columns("tokens", "", "pos_tags"))
        .unwrap();
    let row = r#"{"tokens": ["a", "b"], "pos_tags": [0, 3]}"#;
    let gold = read(&pos, "a.jsonl", row).unwrap()[0].gold.clone();
    assert_eq!(gold, Some(Gold::Tags(vec!["0".into(), "3".into()])));
    let spec = own(TaskKind::Tagging, Columns::default(), Header::Detect);
    let row = r#"{"tokens": ["a", "b"], "tags": [0, 3]}"#;
    let gold = read(&spec, "a.jsonl", row).unwrap()[0].gold.clone();
    assert_eq!(gold, Some(Gold::Tags(vec!["0".into(), "3".into()])));
}

#[test]
fn predictions_are_written_as_glue_wants_them() {
    let spec = TaskSpec::by_name("stsb").unwrap();
    let submission = Submission::new(&spec);
    let values = [1.23456, 7.0, -1.0].map(|value| submission.value("3", value));
    assert_eq!(values, ["3\t1.235", "3\t5.000", "3\t0.000"]);
    assert_eq!(submission.label("4", "entailment"), "4\tentailment");
    assert_eq!(Submission::HEADER, "index\tprediction");
    let name = |task, file: &str| file_name(task, std::path::Path::new(file));
    assert_eq!(name("mnli", "MNLI/test_matched.tsv"), Some("MNLI-m.tsv"));
    assert_eq!(
        name("mnli", "MNLI/test_mismatched.tsv"),
        Some("MNLI-mm.tsv")
    );
    assert_eq!(name("squad", "x.json"), None);
    for ax in ["AX/AX.tsv", "diagnostic.tsv", "diagnostic-full.tsv"] {
        assert_eq!(name("mnli", ax), Some("AX.tsv"));
    }
    assert!(TASKS.iter().all(|task| name(task, "test.tsv").is_some()));
    let labels = |task: &str, labels: &[&str]| {
        let labels = LabelSet::new(labels.iter().map(|&l| l.to_owned()).collect()).unwrap();
        let found = server_labels(&TaskSpec::by_name(task).unwrap(), &labels);
        found
            .map(|set| set.names().to_vec())
            .map_err(|e| e.to_string())
    };
    let bits = ["0".to_owned(), "1".to_owned()];
    assert_eq!(labels("sst2", &["NEGATIVE", "POSITIVE"]).unwrap(), bits);
    let own = labels("qnli", &["NOT-ENTAILMENT", "Entailment"]).unwrap();
    assert_eq!(own, ["not_entailment", "entailment"]);
    let wrong = labels("rte", &["yes", "no"]).unwrap_err();
    assert!(
        wrong.contains("entailment, not_entailment") && wrong.contains("yes, no"),
        "{wrong}"
    );
    assert!(
        labels("imdb", &["a", "b"])
            .unwrap_err()
            .contains("cola sst2")
    );
    assert!(labels("stsb", &[]).unwrap().is_empty());
}

#[test]
fn every_row_of_a_test_file_is_an_example_whatever_it_lacks() {
    let content = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n4\t5\n6\t7\t8\tc\td\t-\n9\t8\t7\te\n";
    let (_dir, path) = file("a.tsv", content);
    let options = OpenOptions {
        every_row: true,
        labels: LabelColumn::Optional,
        ..OpenOptions::default()
    };
    let spec = TaskSpec::by_name("qqp").unwrap();
    let mut reader = Examples::open(&spec, &path, options).unwrap();
    let read: Vec<String> = reader
        .by_ref()
        .map(Result::unwrap)
        .map(|e| format!("{} {}", e.id, e.text()))
        .collect();
    assert_eq!(read, ["1 a ⫽ b", "4  ⫽ ", "6 c ⫽ d", "9 e ⫽ "]);
    assert_eq!((reader.skipped(), reader.incomplete()), (0, 2));
}

#[test]
fn parquet_is_read_by_column_with_lists_and_nulls() {
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    let schema = "message m { optional binary sentence (UTF8); required int64 label; optional group tags (LIST) { repeated group list { optional binary element (UTF8); } } }";
    let mut out = Vec::new();
    let schema = parse_message_type(schema).unwrap().into();
    let mut writer = SerializedFileWriter::new(&mut out, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let strings = |list: &[&str]| -> Vec<ByteArray> { list.iter().map(|s| (*s).into()).collect() };
    let mut column = group.next_column().unwrap().unwrap();
    let texts = strings(&["good film", "bad"]);
    column
        .typed::<ByteArrayType>()
        .write_batch(&texts, Some(&[1, 1, 0]), None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(&[1, 0, 1], None, None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let tags = strings(&["O", "B-x", "O"]);
    column
        .typed::<ByteArrayType>()
        .write_batch(&tags, Some(&[3, 3, 3, 0]), Some(&[0, 1, 0, 0]))
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let (_dir, path) = file("a.parquet", &out);
    let spec = TaskSpec::by_name("sst2").unwrap();
    let rows: Vec<_> = Examples::open(&spec, &path, OpenOptions::default())
        .unwrap()
        .collect();
    let first = rows[0].as_ref().unwrap();
    assert_eq!(first.text(), "good film");
    assert_eq!(first.gold, Some(Gold::Class("1".into())));
    let m = rows[2].as_ref().unwrap_err().to_string();
    assert!(
        m.contains("a.parquet, row 3") && m.contains("sentence"),
        "{m}"
    );
    let tagging = own(
        TaskKind::Tagging,
        columns("sentence", "", "tags"),
        Header::Detect,
    );
    let rows: Vec<_> = Examples::open(&tagging, &path, OpenOptions::default())
        .unwrap()
        .collect();
    let gold = rows[0].as_ref().unwrap().gold.clone();
    assert_eq!(gold, Some(Gold::Tags(vec!["O".into(), "B-x".into()])));
}

#[test]
fn folders_called_as_labels_hold_a_file_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("pos/10_9.txt", "\u{feff}fine\nand long\n".as_bytes());
    write("pos/2_8.txt", b"good");
    write("pos/.hidden", b"no text");
    write("neg/0_1", b"bad");
    write("unsup/0_0.txt", b"who knows");
    write("labels.txt", b"beside the folders");
    let spec = TaskSpec::by_name("imdb").unwrap();
    let examples = Examples::read_all(&spec, dir.path(), OpenOptions::default()).unwrap();
    let found: Vec<(String, String, String)> = examples
        .iter()
        .map(|example| {
            let (Input::Text { first, .. }, Some(Gold::Class(label))) =
                (&example.input, &example.gold)
            else {
                panic!("{example:?}")
            };
            let name = example.place.path.file_name().unwrap().to_string_lossy();
            (name.into_owned(), label.clone(), first.clone())
        })
        .collect();
    let expected = [
        ("0_1", "neg", "bad"),
        ("10_9.txt", "pos", "fine\nand long\n"),
        ("2_8.txt", "pos", "good"),
    ];
    let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
    assert_eq!(found, expected);

    let refused = |path: &std::path::Path, format| {
        let options = OpenOptions {
            format,
            ..OpenOptions::default()
        };
        let refused = Examples::read_all(&spec, path, options).unwrap_err();
        refused.to_string()
    };
    let message = refused(dir.path(), Some(FileFormat::Csv));
    assert!(message.contains("--format"), "{message}");
    let write_above = |name: &str| write(&format!("above/{name}"), b"one too high");
    write_above("train/pos/1.txt");
    write_above("test/pos/1.txt");
    let message = refused(&dir.path().join("above"), None);
    assert!(message.contains("above/test"), "{message}");
    write("none/unsup/1.txt", b"no label");
    let message = refused(&dir.path().join("none"), None);
    assert!(message.contains("unsup"), "{message}");
    for made in ["above", "none"] {
        std::fs::remove_dir_all(dir.path().join(made)).unwrap();
    }

    write("pos/3_7.txt", b"broken \xff");
    let refused = Examples::read_all(&spec, dir.path(), OpenOptions::default()).unwrap_err();
    let message = refused.to_string();
    for part in ["3_7.txt", "UTF-8", "--lossy"] {
        assert!(message.contains(part), "{message}");
    }
    let lossy = OpenOptions {
        lossy: true,
        ..OpenOptions::default()
    };
    let mut examples = Examples::open(&spec, dir.path(), lossy).unwrap();
    assert_eq!(examples.by_ref().filter(Result::is_ok).count(), 4);
    assert_eq!(examples.invalid_utf8(), 1);
}
