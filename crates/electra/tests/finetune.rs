//! `electra finetune`, `evaluate` and `predict` on tasks, as a user runs them; bad input of every
//! kind.

mod run;

use run::{electra, electra_with_input, golden, write};
use serde_json::Value;
use std::path::Path;

/// Sentences with a boat are of one class, others of another.
fn texts(count: usize) -> String {
    let words = ["river", "stone", "tree", "house", "wind", "bird"];
    let mut lines = String::from("text\tlabel\n");
    for i in 0..count {
        let boat = i % 2 == 0;
        let (a, b) = (words[i % 6], words[(i / 6) % 6]);
        let c = if boat { "boat" } else { words[(i / 3) % 6] };
        lines += &format!("{a} {c} {b}\t{}\n", if boat { "sea" } else { "land" });
    }
    lines
}

/// `finetune` on one file, with what else is given.
fn finetune(dir: &Path, train: &str, more: &[&str]) -> run::Ran {
    let (model, out) = (golden("tiny-discriminator"), dir.join("out"));
    let out = out.display().to_string();
    let mut arguments = vec![
        "finetune",
        "--model",
        &model,
        "--train",
        train,
        "--out",
        &out,
        "--threads",
        "1",
    ];
    arguments.extend(more);
    electra(&arguments)
}

const OWN: [&str; 4] = ["--task", "own", "--kind", "classification"];

/// A model that an epoch on a file of classes has left in `dir`.
fn tuned(dir: &Path, train: &str) -> String {
    let more: Vec<&str> = OWN
        .into_iter()
        .chain(["--set", "num_train_epochs=1"])
        .collect();
    finetune(dir, train, &more).ok();
    dir.join("out").display().to_string()
}

#[test]
fn a_model_is_tuned_scored_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(d, "train.tsv", texts(80));
    let settings = [
        "--set",
        "learning_rate=5e-3",
        "--set",
        "num_train_epochs=6",
        "--json",
    ];
    let more: Vec<&str> = OWN
        .into_iter()
        .chain(["--dev", &train])
        .chain(settings)
        .collect();
    let result = finetune(d, &train, &more).json();
    let tuned = result["scores"]["own"]["accuracy"].as_f64().unwrap();
    assert!(tuned > 0.9, "{result}");
    let model = d.join("out").display().to_string();
    let evaluate = [
        "evaluate",
        "--model",
        &model,
        "--data",
        &train,
        "--json",
        "--threads",
        "1",
    ];
    assert_eq!(
        electra(&evaluate).json()["accuracy"].as_f64().unwrap(),
        tuned
    );

    // Answers come in the order of the lines, however many there are.
    let lines: Vec<String> = texts(3000).lines().skip(1).map(String::from).collect();
    let input: String = lines
        .iter()
        .map(|line| format!("{}\n", line.split('\t').next().unwrap()))
        .collect();
    let predict = [
        "predict",
        "--model",
        &model,
        "--as",
        "classify",
        "--json",
        "--threads",
        "1",
    ];
    let answers = electra_with_input(&predict, input.as_bytes()).json_lines();
    assert_eq!(answers.len(), lines.len());
    let right = |(line, answer): &(&String, &serde_json::Value)| {
        let (text, label) = line.split_once('\t').unwrap();
        assert_eq!(answer["text"], text);
        answer["labels"][0]["label"] == label
    };
    assert!(lines.iter().zip(&answers).filter(right).count() > 2600);
    // A file of the task is one from standard input, too; its labels are not looked at.
    let as_task = [&predict[..], &["--task", "own"]].concat();
    let file = b"text\tlabel\nthe old boat\tsea\nthe hill\tnowhere\n";
    let found = electra_with_input(&as_task, file).json_lines();
    assert_eq!(
        (found.len(), &found[0]["text"]),
        (2, &"the old boat".into())
    );
    let with_micro = [&evaluate[..], &["--metric", "f1_micro"]].concat();
    assert!(electra(&with_micro).json()["f1_micro"].is_number());
    electra(&[&evaluate[..], &["--metric", "bleu"]].concat()).fails(2, &["bleu", "f1_macro"]);
    let tag = ["predict", "--model", &model, "--as", "tag"];
    electra_with_input(&tag, b"a\n").fails(1, &["--as classify"]);
    let submission = [
        "predict",
        "--model",
        &model,
        "--as",
        "classify",
        "--submission",
    ];
    electra_with_input(&submission, b"a\n").fails(1, &["--submission", "--task"]);
}

#[test]
fn labels_without_a_head_come_from_a_template() {
    let model = golden("tiny-discriminator");
    let predict = [
        "predict",
        "--model",
        &model,
        "--as",
        "classify",
        "--json",
        "--top-k",
        "2",
        "--template",
        "{text} is {label}",
        "--label-words",
        "sea=boat,land=house",
        "--threads",
        "1",
    ];
    let answers = electra_with_input(&predict, b"the river\nthe tree\n").json_lines();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let scores = answer["labels"].as_array().unwrap();
        let sum: f64 = scores.iter().map(|s| s["score"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9 && scores.len() == 2, "{answer}");
    }
    let bad = [
        "predict",
        "--model",
        &model,
        "--as",
        "classify",
        "--template",
        "{text}",
        "--label-words",
        "a,b",
    ];
    electra_with_input(&bad, b"a\n").fails(1, &["--template", "{label}"]);

    // Of a labelled file only the texts are asked about, and the labels are scored.
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "own.tsv", texts(12));
    let asked: Vec<&str> = predict
        .iter()
        .copied()
        .chain(OWN)
        .chain(["--input", &file])
        .collect();
    let answers = electra(&asked).json_lines();
    assert_eq!(answers.len(), 12);
    let mut right = 0;
    for (line, answer) in texts(12).lines().skip(1).zip(&answers) {
        let (text, label) = line.split_once('\t').unwrap();
        assert_eq!(answer["text"], text);
        right += i32::from(answer["labels"][0]["label"] == label);
    }
    let evaluate: Vec<&str> = ["evaluate", "--model", &model, "--data", &file, "--json"]
        .into_iter()
        .chain([
            "--template",
            "{text} is {label}",
            "--label-words",
            "sea=boat,land=house",
        ])
        .chain(OWN)
        .collect();
    let scores = electra(&evaluate).json();
    let accuracy = scores["accuracy"].as_f64().unwrap();
    assert!(
        (accuracy - f64::from(right) / 12.0).abs() < 1e-12,
        "{scores}"
    );
    let twice: Vec<&str> = bad[..bad.len() - 3]
        .iter()
        .copied()
        .chain(["{text} {label}", "--label-words", "a=x,a=y"])
        .collect();
    electra_with_input(&twice, b"a\n").fails(1, &["\"a\"", "twice"]);
    let pair: Vec<&str> = predict.iter().copied().chain(["--pair"]).collect();
    electra_with_input(&pair, b"a\tb\n").fails(1, &["--template", "--pair"]);
}

/// A model with a head for classes and one for tags, in `dir`.
fn two_heads(dir: &Path) -> String {
    let train = write(dir, "train.tsv", texts(24));
    let tagged = write(
        dir,
        "train.conll",
        "the O\nboat B-SEA\n\nthe O\ntree B-LAND\n\n".repeat(4),
    );
    let more = [
        "--task",
        "own",
        "--task",
        "words",
        "--train",
        &tagged,
        "--kind",
        "classification",
        "--kind",
        "tagging",
        "--set",
        "num_train_epochs=1",
        "--dev",
        &train,
        "--dev",
        &tagged,
    ];
    finetune(dir, &train, &more).ok();
    dir.join("out").display().to_string()
}

#[test]
fn of_several_heads_the_one_that_fits_answers_plain_text() {
    let dir = tempfile::tempdir().unwrap();
    let model = two_heads(dir.path());
    let base = [
        "predict",
        "--model",
        &model,
        "--json",
        "--threads",
        "1",
        "--as",
    ];
    let ask = |more: &[&str]| {
        let words: Vec<&str> = base.iter().chain(more).copied().collect();
        electra_with_input(&words, b"the boat\n").json_lines()
    };
    let classes = ask(&["classify"]);
    assert_eq!(classes[0]["text"], "the boat");
    assert_eq!(ask(&["tag"]).len(), 1);
    // --task chooses the head; with --lines the lines stay lines.
    assert_eq!(ask(&["classify", "--task", "own", "--lines"]), classes);
    let lines = write(dir.path(), "one.txt", "the boat\n");
    assert_eq!(
        ask(&["classify", "--task", "own", "--lines", "--input", &lines]),
        classes
    );
}

#[test]
fn columns_on_the_command_line_are_read_from_whatever_the_model_was_tuned_on() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(d, "train.tsv", texts(24));
    let model = tuned(d, &train);
    let other = write(
        d,
        "other.tsv",
        "text\tbody\tkind\nno\tthe boat\tsea\nno\tthe tree\tland\n",
    );
    let predict = [
        "predict",
        "--model",
        &model,
        "--as",
        "classify",
        "--json",
        "--task",
        "own",
        "--input",
        &other,
        "--text-column",
        "body",
        "--label-column",
        "kind",
    ];
    let answers = electra(&predict).json_lines();
    assert_eq!(
        (&answers[0]["text"], &answers[1]["text"]),
        (&"the boat".into(), &"the tree".into())
    );
    let evaluate = [
        "evaluate",
        "--model",
        &model,
        "--data",
        &other,
        "--text-column",
        "body",
        "--label-column",
        "kind",
        "--json",
    ];
    assert_eq!(electra(&evaluate).json()["examples"], 2);
    let wrong = [
        "evaluate",
        "--model",
        &model,
        "--data",
        &other,
        "--unanswerable",
    ];
    electra(&wrong).fails(1, &["unanswerable", "question answering"]);
}

#[test]
fn a_model_of_questions_that_may_have_no_answer_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let question = |i: usize| {
        let (answers, gone) = match i % 2 {
            0 => (r#"[{"text": "boat", "answer_start": 8}]"#, "false"),
            _ => ("[]", "true"),
        };
        format!(
            r#"{{"context": "the old boat {i}", "qas": [{{"id": "{i}", "question": "what?", "is_impossible": {gone}, "answers": {answers}}}]}}"#
        )
    };
    let paragraphs: Vec<String> = (0..16).map(question).collect();
    let data = format!(
        r#"{{"version": "v2.0", "data": [{{"title": "t", "paragraphs": [{}]}}]}}"#,
        paragraphs.join(", ")
    );
    let train = write(d, "train.json", data);
    let more = [
        "--task",
        "squad2",
        "--dev",
        &train,
        "--set",
        "num_train_epochs=1",
        "--set",
        "max_seq_length=40",
    ];
    finetune(d, &train, &more).ok();
    let model = d.join("out").display().to_string();
    let predict = [
        "predict", "--model", &model, "--as", "answer", "--json", "--top-k", "3",
    ];
    let ask = |more: &[&str]| {
        let words: Vec<&str> = predict.iter().chain(more).copied().collect();
        electra_with_input(&words, b"what?\tthe old boat\n").json_lines()[0].clone()
    };
    let empty = |line: &Value| -> Vec<bool> {
        let answers = line["answers"].as_array().unwrap();
        answers.iter().map(|a| a["answer"] == "").collect()
    };
    // By itself it says how likely none is, among the others; the threshold decides on the first.
    assert!(empty(&ask(&["--null-threshold", "-1e9"]))[0]);
    let never = ask(&["--null-threshold", "inf"]);
    assert!(!empty(&never)[0]);
    assert!(never["null"].is_number());
    let scores: f64 = never["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["score"].as_f64().unwrap())
        .sum();
    assert!(scores > 0.0 && scores < 1.0, "{never}");
    // More answers do not change the score of the first.
    let first = |k: &str| {
        let words = [
            "predict", "--model", &model, "--as", "answer", "--json", "--top-k", k,
        ];
        electra_with_input(&words, b"what?\tthe old boat\n").json_lines()[0]["answers"][0].clone()
    };
    assert_eq!(first("1"), first("50"));
}

#[test]
fn bad_data_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let good = write(d, "good.tsv", texts(20));
    for (name, content, parts) in [
        (
            "column.tsv",
            "words\tlabel\na\tb\n",
            &["column.tsv", "text", "words"][..],
        ),
        ("empty.tsv", "", &["empty.tsv"]),
        ("one.tsv", "text\tlabel\na\tx\nb\tx\n", &["one.tsv", "x"]),
        (
            "nul.tsv",
            "text\tlabel\na\0\0b\tx\n",
            &["nul.tsv", "binary"],
        ),
    ] {
        let path = write(d, name, content);
        finetune(d, &path, &OWN).fails(1, parts);
        assert!(!d.join("out").exists(), "{name}: nothing is begun");
    }
    let other = write(d, "other.tsv", "text\tlabel\na\tsea\nb\tair\n");
    let more: Vec<&str> = OWN.into_iter().chain(["--dev", &other]).collect();
    finetune(d, &good, &more).fails(1, &["other.tsv, line 3", "air"]);
    finetune(d, &good, &["--task", "sts2"]).fails(1, &["sts2", "sst2"]);
    let more: Vec<&str> = OWN.into_iter().chain(["--set", "epochs=1"]).collect();
    finetune(d, &good, &more).fails(1, &["there is no hyper-parameter \"epochs\""]);
    let model = golden("tiny-discriminator");
    let evaluate = ["evaluate", "--model", &model, "--data", &good];
    electra(&evaluate).fails(1, &["a discriminator", "electra finetune"]);
}

#[test]
fn odd_data_is_taken_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // A byte order mark, mixed line ends, and a line of fifty thousand characters.
    let mut odd = format!("\u{feff}{}", texts(40).replace("land\n", "land\r\n"));
    odd += &format!("{}\tsea\n", "boat ".repeat(10_000));
    let path = write(d, "odd.tsv", odd);
    let more: Vec<&str> = OWN
        .into_iter()
        .chain([
            "--dev",
            &path,
            "--set",
            "num_train_epochs=1",
            "--set",
            "max_restarts=0",
        ])
        .collect();
    let ran = finetune(d, &path, &more);
    ran.says(&["1 examples were cut to the length"]);
    ran.ok();

    let tags = write(
        d,
        "tags.conll",
        "the O\nriver I-PLACE\n\nold O\nhouse B-PLACE\n\n",
    );
    let tuned = tempfile::tempdir().unwrap();
    let more = [
        "--task",
        "own",
        "--kind",
        "tagging",
        "--dev",
        &tags,
        "--set",
        "num_train_epochs=1",
    ];
    let ran = finetune(tuned.path(), &tags, &more);
    ran.says(&["begin with I-"]);
    ran.ok();
}

#[test]
fn a_model_of_pairs_takes_lines_of_two_texts() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let lines: String = (0..16)
        .map(|i| {
            format!(
                "the boat\tthe {}\t{}\n",
                ["river", "tree"][i % 2],
                ["yes", "no"][i % 2]
            )
        })
        .collect();
    let train = write(d, "train.tsv", format!("text\tother\tlabel\n{lines}"));
    let more: Vec<&str> = OWN
        .into_iter()
        .chain([
            "--second-column",
            "other",
            "--dev",
            &train,
            "--set",
            "num_train_epochs=1",
        ])
        .collect();
    finetune(d, &train, &more).ok();
    let model = d.join("out").display().to_string();
    let predict = ["predict", "--model", &model, "--as", "classify", "--json"];
    let answer = &electra_with_input(&predict, b"the boat\tthe river\n").json_lines()[0];
    assert_eq!(answer["text_pair"], "the river");
    electra_with_input(&predict, b"the boat\n").fails(1, &["line 1", "no tab"]);
}

/// What a user may take for an option of what is asked is refused where it would do nothing.
#[test]
fn options_that_would_do_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(d, "train.tsv", texts(24));
    let model = tuned(d, &train);
    let ask = |more: &[&str]| {
        let base = ["predict", "--model", &model, "--as", "classify"];
        let words: Vec<&str> = base.iter().chain(more).copied().collect();
        electra_with_input(&words, b"the boat\n")
    };
    ask(&["--text-column", "text"]).fails(1, &["--task", "--lines"]);
    ask(&["--header", "true"]).fails(1, &["--task", "--lines"]);
    ask(&["--align-to-words", "false"]).fails(1, &["--align-to-words", "--as answer"]);
    ask(&["--pooling", "cls"]).fails(1, &["--pooling", "--as embed"]);
    electra(&[
        "evaluate",
        "--model",
        &model,
        "--data",
        &train,
        "--doc-stride",
        "9",
    ])
    .fails(1, &["--doc-stride", "questions"]);
    ask(&["--task", "another"]).fails(1, &["another", "own"]);
    ask(&["--submission", "--json"]).fails(2, &["--json"]);
    // Of a file the texts become vectors, one a row, the header is none of them.
    let embed = [
        "predict", "--model", &model, "--as", "embed", "--json", "--task", "own", "--input", &train,
    ];
    assert_eq!(electra(&embed).json_lines().len(), 24);
}

#[test]
fn a_number_that_is_no_label_among_numbers_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let stars = |labels: [&str; 2]| {
        let lines = texts(24).replace("\tsea", &format!("\t{}", labels[0]));
        lines.replace("\tland", &format!("\t{}", labels[1]))
    };
    let train = write(d, "train.tsv", stars(["1", "2"]));
    let model = tuned(d, &train);
    let other = write(d, "other.tsv", stars(["0", "1"]));
    let evaluate = ["evaluate", "--model", &model, "--data", &other];
    electra(&evaluate).fails(1, &["\"0\"", "1, 2"]);
}

#[test]
fn the_positive_class_of_a_template_is_the_task_s() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..12)
        .map(|i| {
            format!(
                "the {}\t{}\n",
                ["boat", "tree", "red bird"][i % 3],
                u8::from(i % 3 > 0)
            )
        })
        .collect();
    let data = write(
        dir.path(),
        "dev.tsv",
        format!("#1 String\tlabel\n{rows}").replace("#1 String", "text"),
    );
    let f1 = |words: &str| {
        let model = golden("tiny-discriminator");
        let evaluate = [
            "evaluate",
            "--model",
            &model,
            "--task",
            "chnsenticorp",
            "--data",
            &data,
            "--template",
            "{text} {label}",
            "--label-words",
            words,
            "--json",
        ];
        electra(&evaluate).json()["f1"].as_f64().unwrap()
    };
    assert_eq!(f1("0=boat,1=house"), f1("1=house,0=boat"));
}

#[test]
fn several_tasks_of_one_s_own_have_what_fits_each() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(d, "train.tsv", texts(24));
    let question = r#"{"context": "the old boat", "question": "what?", "answers": {"text": [], "answer_start": []}}"#;
    let answered = r#"{"context": "the old boat", "question": "who?", "answers": {"text": ["boat"], "answer_start": [8]}}"#;
    let text = |i: usize| format!("{question}\n{answered}\n").replace("old", &format!("ol{i}"));
    let asked = write(d, "asked.jsonl", (0..4).map(text).collect::<String>());
    let more = [
        "--task",
        "own",
        "--kind",
        "classification",
        "--dev",
        &train,
        "--task",
        "ask",
        "--kind",
        "question-answering",
        "--unanswerable",
        "--train",
        &asked,
        "--dev",
        &asked,
        "--set",
        "num_train_epochs=1",
        "--set",
        "max_seq_length=40",
    ];
    finetune(d, &train, &more).ok();
    // A task without a development file has a part held out.
    let (mut held, more) = (more.to_vec(), d.join("held"));
    let at = held.iter().position(|&word| word == asked).unwrap() + 2;
    held[at] = "none";
    std::fs::create_dir(&more).unwrap();
    let ran = finetune(&more, &train, &held);
    ran.says(&["warning: ask: no development file is given; ", "held out"]);
    assert!(
        !ran.stderr.contains("own: no development file"),
        "{}",
        ran.stderr
    );
    ran.ok();
    // What fits none of them is refused.
    let more = [
        "--task",
        "a",
        "--task",
        "b",
        "--kind",
        "classification",
        "--unanswerable",
        "--train",
        &train,
    ];
    finetune(d, &train, &more).fails(1, &["unanswerable"]);
}

#[test]
fn what_shots_and_test_files_lack_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(d, "train.tsv", texts(24));
    let shots = [
        "--shots",
        "15",
        "--set",
        "num_train_epochs=1",
        "--dev",
        &train,
    ];
    let ran = finetune(d, &train, &[&OWN[..], &shots].concat());
    ran.says(&["2 of 2 labels have fewer than the 15", "\"land\", has 12"]);
    ran.ok();
    // A tenth is a tenth of few examples, too.
    let held = d.join("held");
    std::fs::create_dir(&held).unwrap();
    let ran = finetune(&held, &train, &[&OWN[..], &shots[2..4]].concat());
    ran.says(&["warning: own: no development file is given; 3 examples"]);
    ran.ok();
}
