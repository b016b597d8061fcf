//! Files of tasks as users have them: labels by number, tags that are no entities, test files for
//! GLUE's server.

mod run;

use run::{command, electra, golden, write};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::Duration;

/// `finetune` for one epoch on one file, which is its development data too; the model's folder.
fn tuned(dir: &Path, train: &str, more: &[&str]) -> String {
    let (model, out) = (golden("tiny-discriminator"), dir.join("out"));
    let out = out.display().to_string();
    let mut arguments = vec!["finetune", "--model", &model, "--out", &out];
    arguments.extend(["--train", train, "--dev", train, "--threads", "1"]);
    arguments.extend(["--set", "num_train_epochs=1", "--set", "max_restarts=0"]);
    arguments.extend(more);
    electra(&arguments).ok();
    out
}

fn evaluate(model: &str, data: &str) -> run::Ran {
    let common = ["--json", "--threads", "1"];
    electra(&[&["evaluate", "--model", model, "--data", data][..], &common].concat())
}

fn predict(model: &str, task: &str, more: &[&str]) -> run::Ran {
    let common = ["predict", "--model", model, "--as", task, "--threads", "1"];
    electra(&[&common[..], more].concat())
}

#[test]
fn a_file_may_have_the_numbers_of_a_models_labels() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let rows = "text\tlabel\nthe boat\tsea\nthe house\tland\nold boat\tsea\nold tree\tland\n";
    let train = write(d, "train.tsv", rows);
    let model = tuned(d, &train, &["--task", "own", "--kind", "classification"]);
    let named = evaluate(&model, &train);
    assert!(!named.stderr.contains("numbers"), "{}", named.stderr);
    let numbers = rows.replace("\tsea", "\t1").replace("\tland", "\t0");
    let numbered = evaluate(&model, &write(d, "numbers.tsv", &numbers));
    numbered.says(&["0 as land, 1 as sea"]);
    assert_eq!(numbered.json()["loss"], named.json()["loss"]);
    let beyond = write(d, "beyond.tsv", numbers.replace("\t0", "\t2"));
    evaluate(&model, &beyond).fails(1, &["line 3", "unknown label \"2\"", "land, sea"]);
}

#[test]
fn parts_of_speech_are_tags_and_no_entities() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(d, "pos.conllu", "# a\n1\tboat\t_\tVB\n\n1\told\t_\tVBD\n");
    let model = tuned(d, &train, &["--task", "pos", "--kind", "tagging"]);
    let report = std::fs::read_to_string(d.join("out/report.html")).unwrap();
    assert!(report.contains("Confusion matrix"));
    assert!(report.contains("<td>VBD</td>") && !report.contains("<td>BD</td>"));
    let more = ["--task", "pos", "--input", &train, "--json"];
    let lines = predict(&model, "tag", &more).json_lines();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["tokens"][0], "boat");
    let tags = lines[0]["tags"].as_array().unwrap();
    assert_eq!(tags.len(), lines[0]["tokens"].as_array().unwrap().len());
    assert!(lines.iter().all(|line| line.get("entities").is_none()));

    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let rows = "{\"tokens\": [\"old\", \"boat\"], \"ner_tags\": [0, 3]}\n";
    let train = write(d, "ner.jsonl", rows);
    let model = tuned(d, &train, &["--task", "conll2003"]);
    let line = evaluate(&model, &train).json();
    assert!(line["f1"].is_number(), "{line}");
    let more = ["--task", "conll2003", "--input", &train, "--json"];
    let lines = predict(&model, "tag", &more).json_lines();
    assert!(lines[0]["entities"].is_array(), "{lines:?}");
}

/// CoNLL's files have names that no table has; under the name of a table the format says it.
#[test]
fn words_and_tags_are_read_whatever_their_file_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let rows = "the DT B-NP O\nboat NN I-NP B-ORG\n\nold JJ B-NP O\n";
    let train = write(d, "eng.train", rows);
    let model = tuned(d, &train, &["--task", "conll2003"]);
    let scores = evaluate(&model, &train).json();
    let table = write(d, "words.csv", rows);
    evaluate(&model, &table).fails(1, &["words.csv", "no column \"tokens\""]);
    let more = ["--task", "conll2003", "--format", "conll"];
    let ask = [
        "evaluate",
        "--model",
        &model,
        "--data",
        &table,
        "--json",
        "--threads",
        "1",
    ];
    assert_eq!(
        electra(&[&ask[..], &more].concat()).json()["loss"],
        scores["loss"]
    );
    let input = [&more[..], &["--input", &table, "--json"]].concat();
    assert_eq!(predict(&model, "tag", &input).json_lines().len(), 2);
    let classes = write(d, "classes.tsv", "text\tlabel\nthe boat\t1\nold\t0\n");
    let golden = golden("tiny-discriminator");
    let out = d.join("classes").display().to_string();
    let mut arguments = vec![
        "finetune", "--model", &golden, "--out", &out, "--train", &classes,
    ];
    arguments.extend(["--task", "sst2", "--format", "conll"]);
    electra(&arguments).fails(1, &["classes.tsv", "for tagging", "sst2 reads .tsv"]);
    let prepare = [
        "prepare", "--input", &classes, "--out", &out, "--format", "conll",
    ];
    electra(&prepare).fails(2, &["conll", "parquet"]);
    // A tag that the model does not know is named as the file has it, with its line.
    let other = write(d, "eng.testa", rows.replace("B-ORG", "I-SHIP"));
    evaluate(&model, &other).fails(1, &["eng.testa, line 2:", "\"I-SHIP\""]);
}

#[test]
fn decisions_on_each_of_several_labels_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(
        d,
        "topics.tsv",
        "text\tlabels\nthe boat\tsea,old\nthe tree\told\n",
    );
    let columns = ["--label-column", "labels"];
    tuned(
        d,
        &train,
        &[&["--task", "topics", "--kind", "multi-label"][..], &columns].concat(),
    );
    let report = std::fs::read_to_string(d.join("out/report.html")).unwrap();
    assert!(report.contains("<th>False negatives</th>"));
}

#[test]
fn a_submission_has_a_line_for_every_row_in_a_file_of_the_servers_name() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(
        d,
        "train.tsv",
        "sentence\tlabel\nthe boat\t1\nthe tree\t0\n",
    );
    let model = tuned(d, &train, &["--task", "sst2"]);
    let test = write(
        d,
        "test.tsv",
        "index\tsentence\n0\tthe boat\n1\n2\tthe tree\n",
    );
    let input = ["--task", "sst2", "--input", &test, "--submission"];
    let ran = predict(&model, "classify", &input);
    ran.says(&["1 rows lack a text"]);
    let lines = ran.ok();
    let ids: Vec<&str> = lines
        .lines()
        .map(|l| l.split('\t').next().unwrap())
        .collect();
    assert_eq!(ids, ["index", "0", "1", "2"]);

    let folder = d.join("glue").display().to_string();
    let with = |folder: &str| predict(&model, "classify", &[&input[..], &[folder]].concat());
    with(&folder).fails(1, &["no such directory", "glue/ makes it"]);
    assert_eq!(with(&format!("{folder}/")).ok(), "");
    let written = std::fs::read_to_string(d.join("glue/SST-2.tsv")).unwrap();
    assert_eq!(written, lines);
    with(&folder).ok();

    let broken = write(d, "broken.tsv", "index\tsentence\n0\ta\n\tb\n");
    let more = [
        "--task",
        "sst2",
        "--input",
        &broken,
        "--submission",
        &folder,
    ];
    predict(&model, "classify", &more).fails(1, &["broken.tsv, line 3", "no id"]);
    assert_eq!(
        std::fs::read_to_string(d.join("glue/SST-2.tsv")).unwrap(),
        lines
    );
    let other = ["--task", "cola", "--input", &train, "--submission"];
    predict(&model, "classify", &other).fails(1, &["no head for cola", "sst2"]);
    // Nor does the server take every task.
    let (folder, text) = (d.join("imdb"), ["--text-column", "sentence"]);
    std::fs::create_dir(&folder).unwrap();
    let model_of_imdb = tuned(&folder, &train, &[&["--task", "imdb"][..], &text].concat());
    let other = ["--task", "imdb", "--input", &train, "--submission"];
    let other = predict(&model_of_imdb, "classify", &[&other[..], &text].concat());
    other.fails(1, &["GLUE", "imdb", "cola sst2"]);
    // Scores of another task's file are a user's to ask for, and said to be that.
    let other = ["evaluate", "--model", &model, "--data", &train, "--task"];
    let other = electra(
        &[
            &other[..],
            &["cola", "--text-column", "1", "--label-column", "2"],
        ]
        .concat(),
    );
    other.says(&["fine-tuned for sst2", "cola"]);
    predict(&model, "tag", &input).fails(1, &["--submission", "--as classify"]);
}

#[test]
fn a_pipe_s_examples_are_answered_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let train = write(
        d,
        "train.conll",
        "the O\nboat B-SEA\n\nthe O\ntree B-LAND\n",
    );
    let model = tuned(d, &train, &["--task", "own", "--kind", "tagging"]);
    let mut child = command()
        .args(["predict", "--model", &model, "--as", "tag", "--task", "own"])
        .args(["--json", "--threads", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (sender, answers) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            sender.send(line.unwrap()).unwrap();
        }
    });
    for word in ["boat", "tree", "river"] {
        write!(input, "old\n{word}\n\n").unwrap();
        input.flush().unwrap();
        // The input is still open.
        let answer = answers.recv_timeout(Duration::from_secs(120)).unwrap();
        assert!(answer.contains(word), "{answer}");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
    assert!(answers.try_recv().is_err());
}

#[test]
fn a_header_of_other_names_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let model = golden("tiny-discriminator");
    let rows = "review\tstars\nthe boat\t5\nthe tree\t1\nold boat\t5\nold tree\t1\n";
    let train = write(d, "train.tsv", rows);
    let out = d.join("out").display().to_string();
    let mut arguments = vec!["finetune", "--model", &model, "--out", &out];
    arguments.extend(["--train", &train, "--dev", &train, "--threads", "1"]);
    arguments.extend(["--set", "num_train_epochs=1", "--set", "max_restarts=0"]);
    arguments.extend(["--task", "own", "--kind", "classification"]);
    arguments.extend(["--text-column", "1", "--label-column", "2"]);
    let ran = electra(&arguments);
    ran.says(&["taken for a header", "\"stars\"", "--header false"]);
    ran.ok();
    let config = std::fs::read_to_string(d.join("out/config.json")).unwrap();
    assert!(!config.contains("stars"), "{config}");
    let ran = evaluate(&out, &train);
    ran.says(&["taken for a header"]);
    assert_eq!(ran.json()["examples"], 4);
}
