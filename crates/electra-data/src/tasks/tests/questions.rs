//! Questions in tables and in JSON of any shape, and what is said of answers that are not found.

use super::support::{read, tokenizer};
use crate::tasks::*;

fn own() -> TaskSpec {
    TaskSpec::own(OwnTask::new("mine", TaskKind::QuestionAnswering)).unwrap()
}

/// What a file holds as answers: of each question the texts with their places, `-` for none.
fn answers_of(spec: &TaskSpec, name: &str, content: &str) -> Result<Vec<String>, String> {
    let examples = read(spec, name, content).map_err(|e| e.to_string())?;
    let said = |example: &Example| {
        let Some(Gold::Answers(answers)) = &example.gold else {
            panic!("{example:?}");
        };
        let each = answers.iter().map(|answer| match answer.start {
            Some(start) => format!("{}@{start}", answer.text),
            None => answer.text.clone(),
        });
        each.collect::<Vec<_>>().join("|")
    };
    Ok(examples.iter().map(said).collect())
}

/// A table of one row that has `cell` in the column of answers.
fn table(name: &str, cell: &str) -> String {
    match name {
        "a.csv" => {
            let cell = cell.replace('"', "\"\"");
            format!("context,question,answers\nin Paris,where,\"{cell}\"\n")
        }
        "a.tsv" => format!("context\tquestion\tanswers\nin Paris\twhere\t{cell}\n"),
        _ => {
            let cell = serde_json::to_string(cell).unwrap();
            format!("{{\"context\": \"in Paris\", \"question\": \"where\", \"answers\": {cell}}}\n")
        }
    }
}

#[test]
fn a_cell_of_answers_is_a_text_or_written_as_json_or_python() {
    for (cell, expected) in [
        ("Paris", "Paris"),
        (" in Paris ", "in Paris"),
        ("1912", "1912"),
        ("[sic] Paris", "[sic] Paris"),
        (r#"{"text": ["Paris"], "answer_start": [3]}"#, "Paris@3"),
        (r#"{"text": "Paris", "answer_start": 3}"#, "Paris@3"),
        (
            r#"[{"text": "Paris", "answer_start": 3}, {"text": "in"}]"#,
            "Paris@3|in",
        ),
        (r#"["Paris", "in Paris"]"#, "Paris|in Paris"),
        ("{'text': ['Paris'], 'answer_start': [0]}", "Paris@0"),
        ("[{'answer_start': 3, 'text': \"l'Été\"},]", "l'Été@3"),
        ("['Paris', 'it\\'s \\u00c9t\\xe9']", "Paris|it's Été"),
        (
            "{'text': array(['Paris', 'in'], dtype=object), 'answer_start': array([3, 0], dtype=int32)}",
            "Paris@3|in@0",
        ),
        (
            "{'text': np.array(['Paris'], dtype='<U5'), 'answer_start': [np.int64(3)]}",
            "Paris@3",
        ),
        ("{'text': ('Paris',), 'answer_start': None}", "Paris"),
        (
            "{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}",
            "",
        ),
        ("[]", ""),
        ("", ""),
    ] {
        let spec = own().with_unanswerable().unwrap();
        for name in ["a.csv", "a.tsv", "a.jsonl"] {
            let found = answers_of(&spec, name, &table(name, cell));
            assert_eq!(found, Ok(vec![expected.to_owned()]), "{name}: {cell}");
        }
    }
    let null = r#"{"context": "in Paris", "question": "where", "answers": null}"#;
    let spec = own().with_unanswerable().unwrap();
    assert_eq!(answers_of(&spec, "a.jsonl", null), Ok(vec!["".to_owned()]));
    // Where each question has an answer an empty cell is none.
    let m = answers_of(&own(), "a.csv", &table("a.csv", "")).unwrap_err();
    assert!(
        m.contains("a.csv, line 2") && m.contains("has no answer"),
        "{m}"
    );
    let deep = "[".repeat(100_000);
    for cell in [
        "{'text': ['Paris}",
        "{'answer_start': [0]}",
        "[[1]]",
        "[None]",
        "{1: 2}",
    ] {
        let m = answers_of(&own(), "a.tsv", &table("a.tsv", cell)).unwrap_err();
        assert!(
            m.contains("a.tsv, line 2: the answers are neither"),
            "{cell}: {m}"
        );
    }
    assert_eq!(
        answers_of(&own(), "a.tsv", &table("a.tsv", &deep)),
        Ok(vec![deep])
    );
}

#[test]
fn where_an_answer_begins_may_stand_in_a_column_of_its_own() {
    let csv = |header: &str, rows: &str| format!("context,question,{header}\n{rows}");
    let rows = "in Paris,where,Paris,3\nin Rome,where,Rome,\n";
    for text in ["answer_text", "answer", "answers"] {
        let found = answers_of(&own(), "a.csv", &csv(&format!("{text},answer_start"), rows));
        assert_eq!(found.unwrap(), ["Paris@3", "Rome"], "{text}");
    }
    let found = answers_of(&own(), "a.csv", &csv("answer", "in Paris,where,Paris\n"));
    assert_eq!(found.unwrap(), ["Paris"]);
    let row = r#"{"context": "in Paris", "question": "where", "answer_text": "Paris", "answer_start": 3.0}"#;
    assert_eq!(answers_of(&own(), "a.jsonl", row).unwrap(), ["Paris@3"]);
    let row = row
        .replace("\"Paris\",", "[\"Paris\", \"in\"],")
        .replace("3.0", "[3, 0]");
    assert_eq!(
        answers_of(&own(), "a.jsonl", &row).unwrap(),
        ["Paris@3|in@0"]
    );
    // By other names, and by number.
    for (label, start, header) in [("reply", "begin", "reply,begin"), ("3", "4", "a,b")] {
        let columns = Columns {
            label: vec![label.parse().unwrap()],
            start: Some(start.parse().unwrap()),
            ..Columns::default()
        };
        let spec = own().with_columns(columns).unwrap();
        assert_eq!(
            answers_of(&spec, "a.csv", &csv(header, rows)).unwrap(),
            ["Paris@3", "Rome"]
        );
        if start == "begin" {
            let m = answers_of(&spec, "a.csv", &csv("reply,answer_start", rows)).unwrap_err();
            assert!(m.contains("no column \"begin\""), "{m}");
        }
    }
    let m = answers_of(
        &own(),
        "a.csv",
        &csv("answer,answer_start", "in Paris,where,Paris,soon\n"),
    );
    let m = m.unwrap_err();
    assert!(
        m.contains("a.csv, line 2") && m.contains("\"soon\" is not where"),
        "{m}"
    );
    let m = answers_of(&own(), "a.csv", &csv("reply", "in Paris,where,Paris\n")).unwrap_err();
    assert!(
        m.contains("\"answers\"") && m.contains("\"answer_text\""),
        "{m}"
    );
}

#[test]
fn a_file_of_json_is_what_its_content_says() {
    let row = |answer: &str| {
        format!(
            "{{\"context\": \"in Paris: \\\"data\\\":[\", \"question\": \"where\", \"answers\": {answer}}}"
        )
    };
    let squad = r#"{"version": {"data": [1]}, "data": [{"paragraphs": [{"context": "in Paris", "qas":
        [{"id": 1, "question": "where", "answers": [{"text": "Paris", "answer_start": 3}]}]}]}]}"#;
    let lines = format!("{}\n{}\n", row("\"Paris\""), row("[\"in\"]"));
    let list = format!(" [\n{},\n{}\n]", row("\"Paris\""), row("[\"in\"]"));
    for name in ["a.json", "a.jsonl"] {
        assert_eq!(answers_of(&own(), name, squad).unwrap(), ["Paris@3"]);
        let spread = squad.replace(", \"data\":", ",\n \"data\" :\n");
        assert_eq!(answers_of(&own(), name, &spread).unwrap(), ["Paris@3"]);
        assert_eq!(answers_of(&own(), name, &lines).unwrap(), ["Paris", "in"]);
        assert_eq!(answers_of(&own(), name, &list).unwrap(), ["Paris", "in"]);
    }
    let options = OpenOptions {
        format: Some(FileFormat::Json),
        ..OpenOptions::default()
    };
    let (_dir, path) = super::support::file("questions", squad);
    assert_eq!(Examples::read_all(&own(), &path, options).unwrap().len(), 1);
}

#[test]
fn answers_that_moved_or_are_lost_are_counted_and_the_first_is_named() {
    let row = |id: &str, answer: &str| format!("{id},in paris,where,{answer}\n");
    let rows = [
        row("q1", "{'text': ['paris'], 'answer_start': [3]}")
            .replace(",{", ",\"{")
            .replace("}\n", "}\"\n"),
        row("q2", "paris"),
        row("q3", "rome"),
        row("q4", "in"),
        row("q5", "oslo"),
    ];
    let content = format!("id,context,question,answers\n{}", rows.concat());
    let spec = own();
    let examples = read(&spec, "a.csv", content).unwrap();
    let options = FeatureOptions {
        training: true,
        ..FeatureOptions::of(&spec)
    };
    let labels = LabelSet::new(Vec::new()).unwrap();
    let f = Featurizer::new(spec.kind, tokenizer(), labels, options).unwrap();
    let mut counts = FeatureCounts::default();
    let learned: usize = examples
        .iter()
        .map(|e| f.features(0, e, &mut counts).unwrap().len())
        .sum();
    assert_eq!(learned, 3);
    let notes = counts.notes();
    assert_eq!(notes.len(), 2);
    for (note, parts) in notes.iter().zip([
        [
            "2 answers were not at their offset, or had none",
            "\"q2\"",
            "line 3)",
        ],
        [
            "2 questions have an answer that is not in the text",
            "\"q3\"",
            "line 4)",
        ],
    ]) {
        assert!(parts.iter().all(|part| note.contains(part)), "{note}");
    }
}
