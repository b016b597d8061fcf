use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;
use crate::wordpiece::{Encoder, WordPiece};
use crate::words::Normalisation;

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn read(path: &Path, options: &ReadOptions) -> Result<Vec<String>, ReadError> {
    documents(&[Input::File(path.into())], options)
}

/// The documents of some inputs, each as one string.
pub(crate) fn documents(inputs: &[Input], options: &ReadOptions) -> Result<Vec<String>, ReadError> {
    let mut documents = Vec::new();
    for input in inputs {
        let mut reader = Reader::open(input, options)?;
        let mut text = String::new();
        while let Some(end) = reader.piece(&mut text)? {
            match end {
                PieceEnd::Part => {}
                PieceEnd::Line => text.push('\n'),
                PieceEnd::Document => {
                    let document = std::mem::take(&mut text);
                    if !document.trim().is_empty() {
                        documents.push(document.trim_end_matches('\n').to_owned());
                    }
                }
            }
        }
    }
    Ok(documents)
}

fn message(result: Result<Vec<String>, ReadError>) -> String {
    result.unwrap_err().to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet(path: &Path, name: &str, rows: &[Option<&[u8]>]) {
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    use ::parquet::schema::parser::parse_message_type;
    let schema = format!("message m {{ optional binary {name} (UTF8); required int32 n; }}");
    let schema = parse_message_type(&schema).unwrap().into();
    let properties = WriterProperties::builder()
        .set_compression(::parquet::basic::Compression::SNAPPY)
        .build();
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties.into()).unwrap();
    for group in rows.chunks(2) {
        let mut out = writer.next_row_group().unwrap();
        let values: Vec<ByteArray> = group.iter().flatten().map(|b| b.to_vec().into()).collect();
        let levels: Vec<i16> = group.iter().map(|row| i16::from(row.is_some())).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        let mut column = out.next_column().unwrap().unwrap();
        let numbers: Vec<i32> = (0..group.len() as i32).collect();
        column
            .typed::<::parquet::data_type::Int32Type>()
            .write_batch(&numbers, None, None)
            .unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn every_format_gives_the_same_documents_compressed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let texts: [(&str, &str); 4] = [
        ("txt", "First line.\nIts second.\n\nOther one\n"),
        (
            "jsonl",
            "{\"id\":1,\"text\":\"First line.\\nIts second.\"}\n\n{\"text\":null}\n{\"text\":\"Other one\",\"x\":[{}]}\n",
        ),
        (
            "csv",
            "id,text\r\n1,\"First line.\nIts second.\"\r\n2,Other one\r\n",
        ),
        (
            "tsv",
            "text\tid\nFirst line.\t1\nIts second.\t2\nOther one\t3\n",
        ),
    ];
    let options = ReadOptions::default();
    for (extension, text) in texts {
        let wanted: &[&str] = match extension {
            "tsv" => &["First line.", "Its second.", "Other one"],
            _ => &["First line.\nIts second.", "Other one"],
        };
        let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
        for (suffix, bytes) in [
            ("", text.as_bytes().to_vec()),
            (".gz", gzip(text.as_bytes())),
            (".zst", zstd),
        ] {
            let path = write(dir.path(), &format!("a.{extension}{suffix}"), bytes);
            assert_eq!(read(&path, &options).unwrap(), wanted, "{path:?}");
        }
    }
    let path = dir.path().join("a.parquet");
    parquet(
        &path,
        "text",
        &[Some(b"First line.\nIts second."), None, Some(b"Other one")],
    );
    let wanted = ["First line.\nIts second.", "Other one"];
    assert_eq!(read(&path, &options).unwrap(), wanted);
    let gz = write(dir.path(), "b.parquet.gz", gzip(&fs::read(&path).unwrap()));
    assert_eq!(read(&gz, &options).unwrap(), wanted);
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_no_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(
        dir.path(),
        "a.txt",
        b"\xEF\xBB\xBFone\r\ntwo\r\n\r\nthree\r\n",
    );
    assert_eq!(
        read(&path, &ReadOptions::default()).unwrap(),
        ["one\ntwo", "three"]
    );
    let path = write(dir.path(), "a.csv", b"\xEF\xBB\xBFtext,n\r\none,1\r\n");
    assert_eq!(read(&path, &ReadOptions::default()).unwrap(), ["one"]);
    let lines = ReadOptions {
        layout: TextLayout::Line,
        ..Default::default()
    };
    let path = write(dir.path(), "b.txt", "one\r\n \t\r\ntwo");
    assert_eq!(read(&path, &lines).unwrap(), ["one", "two"]);
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let options = ReadOptions::default();
    let gone = dir.path().join("gone.txt");
    assert!(message(read(&gone, &options)).ends_with("gone.txt: no such file or directory"));
    let cases: [(&str, &[u8], &str); 11] = [
        (
            "a.txt",
            b"text\0more",
            "looks binary, not text: NUL byte at offset 4, line 1",
        ),
        ("b.txt", b"\xFF\xFEa\0", "byte order mark of UTF-16"),
        ("c.txt", b"\x1F\x8B\x08\0", "gzip-compressed; name it .gz"),
        ("d.bin", b"text", "unknown kind of file"),
        (
            "e.jsonl",
            b"{\"text\":\"a\"}\n{\"text\":",
            "e.jsonl, line 2: not a JSON object",
        ),
        (
            "f.jsonl",
            b"{\"body\":\"a\",\"id\":1}",
            "no field \"text\"; this object has: body, id",
        ),
        ("g.jsonl", b"{\"text\":1}", "field \"text\" holds no string"),
        (
            "h.csv",
            b"id,body\n1,a\n",
            "no column \"text\"; the header has: id, body",
        ),
        (
            "i.csv",
            b"text,id\na,1\nb\n",
            "line 3: 1 fields where the header has 2",
        ),
        ("j.parquet", b"not parquet", "not a Parquet file"),
        ("k.txt.gz", b"no gzip", "cannot read"),
    ];
    for (name, bytes, wanted) in cases {
        let error = message(read(&write(dir.path(), name, bytes), &options));
        assert!(error.contains(name) && error.contains(wanted), "{error}");
    }
    let path = dir.path().join("l.parquet");
    parquet(&path, "body", &[Some(b"a")]);
    assert!(message(read(&path, &options)).contains("no column \"text\"; the file has: body, n"));
    let number = ReadOptions {
        field: "n".into(),
        ..Default::default()
    };
    assert!(message(read(&path, &number)).contains("does not hold one string a row"));
    assert!(message(read(dir.path(), &options)).contains("cannot read"));
}

#[test]
fn invalid_utf8_is_counted_and_placed_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = b"good\nb\xFFad\n\xE4\xB8\n".to_vec();
    bytes.extend("ä".repeat(200_000).bytes());
    bytes.push(b'\n');
    bytes.push(0xC3);
    let path = write(dir.path(), "a.txt", &bytes);
    let error = message(read(&path, &ReadOptions::default()));
    assert!(
        error.contains("3 invalid UTF-8 sequences, the first at byte 6;"),
        "{error}"
    );
    let lossy = ReadOptions {
        lossy: true,
        ..Default::default()
    };
    let text = read(&path, &lossy).unwrap().remove(0);
    assert!(text.starts_with("good\nb\u{fffd}ad\n\u{fffd}\nää"));
    assert_eq!(text.matches('\u{fffd}').count(), 3);
    let mut reader = Reader::open(&Input::File(path), &lossy).unwrap();
    while reader.piece(&mut String::new()).unwrap().is_some() {}
    assert_eq!(reader.invalid_utf8(), 3);
    let path = dir.path().join("a.parquet");
    parquet(&path, "text", &[Some(b"a"), Some(b"\xFF"), Some(b"\xFE")]);
    let error = message(read(&path, &ReadOptions::default()));
    assert!(
        error.contains("2 invalid UTF-8 sequences, the first at row 2;"),
        "{error}"
    );
}

#[test]
fn names_resolve_to_files_in_a_fixed_order() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::create_dir(dir.path().join("none")).unwrap();
    for name in [
        "b.txt",
        "a.jsonl.gz",
        "c.md",
        ".hidden.txt",
        "sub/z.csv.zst",
    ] {
        write(dir.path(), name, "x");
    }
    let name = |path: &str| dir.path().join(path).to_string_lossy().into_owned();
    let found = |names: &[String]| -> Vec<String> {
        let strip = |input: &Input| match input {
            Input::Stdin => "-".to_owned(),
            Input::File(path) => path.strip_prefix(dir.path()).unwrap().display().to_string(),
        };
        expand(names).unwrap().iter().map(strip).collect()
    };
    assert_eq!(found(&[name("")]), ["a.jsonl.gz", "b.txt", "sub/z.csv.zst"]);
    assert_eq!(found(&[name("*.t?t"), "-".into()]), ["b.txt", "-"]);
    assert_eq!(found(&[name("c.md"), name("b.txt")]), ["c.md", "b.txt"]);
    let error = |names: &str| expand(&[name(names)]).unwrap_err().to_string();
    assert!(error("gone").ends_with("gone: no such file or directory"));
    assert!(error("*.zip").contains("no file of a known kind matches; known: .txt"));
    assert!(error("none").contains("no file of a known kind"));
    assert!(error("[").contains("not a glob pattern"));
}

/// Lines of any length come in pieces that give the tokens of the whole line.
#[test]
fn long_lines_come_in_small_pieces_with_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = ["[UNK]", "a", "##a", "b", "ä", ".", "中", "中文", "##ä"];
    let vocabulary = vocabulary.map(str::to_owned);
    let pieces = WordPiece::new(&vocabulary, 0, 100, Normalisation::CASED).into();
    let mut encoder = Encoder::new(pieces);
    let words = "aa b.ä aäa ".repeat(100_000);
    let chinese = "中文。文中".repeat(60_000);
    let endless = "a".repeat(3 << 20);
    for text in [
        &words,
        &chinese,
        &endless,
        &format!("{words}\n{chinese} {words}\nb"),
    ] {
        let path = write(dir.path(), "a.txt", text);
        let mut reader = Reader::open(&Input::File(path), &ReadOptions::default()).unwrap();
        let (mut ids, mut piece) = (Vec::new(), String::new());
        let mut lines = 0;
        while let Some(end) = reader.piece(&mut piece).unwrap() {
            assert!(piece.len() <= pieces::WORD_LIMIT);
            encoder.encode(&piece, &mut ids);
            piece.clear();
            lines += usize::from(end == PieceEnd::Line);
        }
        assert_eq!(lines, text.lines().count());
        let mut wanted = Vec::new();
        encoder.encode(text, &mut wanted);
        if text == &endless {
            wanted = vec![0; 3];
        }
        assert!(ids == wanted);
        let path = write(
            dir.path(),
            "a.jsonl",
            serde_json::json!({"text": text}).to_string(),
        );
        assert!(read(&path, &ReadOptions::default()).unwrap() == [text.as_str()]);
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_by_name_is_refused_before_anything_is_read_from_it() {
    let path = PathBuf::from("/dev/null");
    let options = ReadOptions {
        format: Some(Format::Text),
        ..Default::default()
    };
    let message = message(read(&path, &options));
    assert!(
        message.contains("/dev/null") && message.contains("not a regular file"),
        "{message}"
    );
}

#[test]
fn half_a_surrogate_pair_in_an_escape_counts_as_invalid_utf_8() {
    let dir = tempfile::tempdir().unwrap();
    let lines = concat!(
        "{\"text\": \"whole \\ud83d\\ude00, \\\\ud83d\"}\n",
        "{\"text\": \"cut \\ud83d\"}\n",
        "{\"text\": \"\\uDE00 \\ud83d\\u0041\", \"other\": \"\\ud800\"}\n",
    );
    let path = write(dir.path(), "a.jsonl", lines);
    let strict = message(read(&path, &ReadOptions::default()));
    let first = lines.find("\\ud83d\"}\n{\"text\": \"\\uDE00").unwrap();
    for part in ["4 invalid UTF-8", &format!("byte {first};"), "--lossy"] {
        assert!(strict.contains(part), "{part}: {strict}");
    }
    let lossy = ReadOptions {
        lossy: true,
        ..Default::default()
    };
    let texts = read(&path, &lossy).unwrap();
    assert_eq!(
        texts,
        [
            "whole \u{1f600}, \\ud83d",
            "cut \u{fffd}",
            "\u{fffd} \u{fffd}A"
        ]
    );
}
