use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::*;
use crate::read::tests::documents;
use crate::read::{TextLayout, expand};
use crate::tokenizer::SPECIAL_TOKENS;
use crate::words::Normalisation;

fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = SPECIAL_TOKENS.map(str::to_owned).to_vec();
    for c in "abcdefghijklmnopqrstuvwxyz0123456789".chars() {
        tokens.push(c.to_string());
        tokens.push(format!("##{c}"));
    }
    Tokenizer::new(tokens, Normalisation::UNCASED, "test".as_ref()).unwrap()
}

/// Several inputs: small ones, one of several blocks, one with a long document in one line, empty
/// documents and lines among them.
fn corpus(dir: &Path) -> Vec<Input> {
    let mut number = 1u64;
    let mut word = move || {
        number = number
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        format!("w{}", (number >> 40) % 5000)
    };
    let mut text = |documents: usize, lines: usize, words: usize| -> String {
        let line = |w: &mut dyn FnMut() -> String| -> String {
            (0..words).map(|_| w()).collect::<Vec<_>>().join(" ")
        };
        let document = |w: &mut dyn FnMut() -> String| -> String {
            (0..lines).map(|_| line(w)).collect::<Vec<_>>().join("\n")
        };
        (0..documents)
            .map(|_| document(&mut word))
            .collect::<Vec<_>>()
            .join("\n\n")
    };
    let files = [
        ("a.txt", text(3, 4, 10)),
        ("b.txt", text(2000, 20, 15)),
        ("c.txt", text(1, 1, 400_000)),
        (
            "d.txt",
            format!("\n\n\u{1}\n\u{2}\n\n{}\n\u{1}\n", text(5, 5, 5)),
        ),
        ("e.txt", String::new()),
        ("f.txt", text(700, 3, 40)),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    let gz = zstd::encode_all(fs::read(dir.join("b.txt")).unwrap().as_slice(), 1).unwrap();
    fs::write(dir.join("g.txt.zst"), gz).unwrap();
    expand(&[dir.to_string_lossy().into_owned()]).unwrap()
}

fn options(threads: usize, share: Share) -> PrepareOptions {
    PrepareOptions {
        threads,
        shard_tokens: 300_000,
        share,
        ..Default::default()
    }
}

fn go(
    inputs: &[Input],
    out: &Path,
    options: &PrepareOptions,
) -> Result<PrepareReport, PrepareError> {
    prepare(inputs, &tokenizer(), out, options, &mut |_| {}, &|| false)
}

/// Every file of a directory by name, hidden ones left out.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if entry.path().is_dir() {
            for (inner, bytes) in self::files(&entry.path()) {
                files.insert(format!("{name}/{inner}"), bytes);
            }
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

#[test]
fn every_token_of_every_document_is_in_the_shards() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = corpus(dir.path());
    let out = tempfile::tempdir().unwrap();
    let report = go(&inputs, out.path(), &options(2, Share::All)).unwrap();
    let corpus = Corpus::open(out.path()).unwrap();
    corpus.verify().unwrap();
    assert!(report.shards > 3);
    let tokenizer = tokenizer();
    corpus.check_tokenizer(&tokenizer.hash()).unwrap();
    let mut at = 0;
    let (mut lines, mut tokens) = (0, 0);
    for document in documents(&inputs, &ReadOptions::default()).unwrap() {
        let wanted: Vec<Vec<u32>> = document
            .lines()
            .map(|line| tokenizer.encode(line))
            .filter(|line| !line.is_empty())
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let (shard, local) = corpus.locate(at);
        let shard = &corpus.shards()[shard];
        let (first, last) = (shard.document_start(local), shard.document_start(local + 1));
        let found: Vec<Vec<u32>> = (first..last)
            .map(|line| {
                let mut ids = Vec::new();
                let range = shard.line_start(line)..shard.line_start(line + 1);
                shard.read(range, corpus.vocab_size(), &mut ids).unwrap();
                ids
            })
            .collect();
        assert!(found == wanted, "document {at}");
        at += 1;
        lines += wanted.len() as u64;
        tokens += wanted.iter().map(Vec::len).sum::<usize>() as u64;
    }
    assert_eq!(
        (report.documents, report.lines, report.tokens),
        (at, lines, tokens)
    );
    assert_eq!(corpus.documents(), at);
}

#[test]
fn threads_and_parts_do_not_show_in_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = corpus(dir.path());
    let alone = tempfile::tempdir().unwrap();
    go(&inputs, alone.path(), &options(1, Share::All)).unwrap();
    let wanted = files(alone.path());
    for of in [1, 2, 3, 7] {
        let out = tempfile::tempdir().unwrap();
        if of == 1 {
            go(&inputs, out.path(), &options(4, Share::All)).unwrap();
        } else {
            for index in (0..of).rev() {
                let error = merge(out.path(), &mut |_| {}, &|| false);
                assert!(match index + 1 == of {
                    true => matches!(error, Err(PrepareError::NoParts { .. })),
                    false => matches!(error, Err(PrepareError::Incomplete { .. })),
                });
                let report = go(&inputs, out.path(), &options(2, Share::Part { index, of }));
                assert_eq!(report.unwrap().outcome, Outcome::PartComplete);
            }
            let report = merge(out.path(), &mut |_| {}, &|| false).unwrap();
            assert_eq!(report.outcome, Outcome::Complete);
        }
        assert!(files(out.path()) == wanted, "{of} parts");
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_and_one_that_is_complete_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = corpus(dir.path());
    let alone = tempfile::tempdir().unwrap();
    let whole = go(&inputs, alone.path(), &options(1, Share::All)).unwrap();
    let out = tempfile::tempdir().unwrap();
    let (mut stops, mut bytes) = (0, 0);
    let options = options(2, Share::All);
    let last = loop {
        let stop = AtomicBool::new(false);
        let mut steps = 0;
        let mut progress = |_: &Progress| {
            steps += 1;
            stop.store(steps >= 3 + stops, Relaxed);
        };
        match prepare(
            &inputs,
            &tokenizer(),
            out.path(),
            &options,
            &mut progress,
            &|| stop.load(Relaxed),
        ) {
            Ok(report) => break report,
            Err(PrepareError::Interrupted) => {
                stops += 1;
                // What a kill leaves behind: a file half written.
                let part = out.path().join("parts/part-00000-of-00001");
                if part.is_dir() {
                    fs::write(part.join("segment-000009.tmp"), "half").unwrap();
                }
            }
            Err(e) => panic!("{e}"),
        }
        bytes += 1;
    };
    assert!(stops > 1 && bytes > 1 && last.text_bytes < whole.text_bytes);
    assert!(files(out.path()) == files(alone.path()));
    let again = go(&inputs, out.path(), &options).unwrap();
    assert_eq!(
        (again.outcome, again.text_bytes),
        (Outcome::AlreadyComplete, 0)
    );
    assert_eq!(again.tokens, whole.tokens);
}

#[test]
fn a_damaged_segment_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = corpus(dir.path());
    let (alone, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    go(&inputs, alone.path(), &options(1, Share::All)).unwrap();
    for index in 0..2 {
        go(
            &inputs,
            out.path(),
            &options(1, Share::Part { index, of: 2 }),
        )
        .unwrap();
    }
    let part = out.path().join("parts/part-00001-of-00002");
    let segment = part.join("segment-000000.bin");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let error = merge(out.path(), &mut |_| {}, &|| false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("its checksum does not hold; remove"),
        "{error}"
    );
    fs::remove_file(part.join("complete")).unwrap();
    go(
        &inputs,
        out.path(),
        &options(1, Share::Part { index: 1, of: 2 }),
    )
    .unwrap();
    merge(out.path(), &mut |_| {}, &|| false).unwrap();
    assert!(files(out.path()) == files(alone.path()));
}

#[test]
fn other_work_in_the_directory_is_refused_by_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "one two\n\nthree\n").unwrap();
    let inputs = [Input::File(path.clone())];
    for complete in [true, false] {
        let out = tempfile::tempdir().unwrap();
        let share = if complete {
            Share::All
        } else {
            Share::Part { index: 0, of: 2 }
        };
        let base = options(1, share);
        fs::write(&path, "one two\n\nthree\n").unwrap();
        go(&inputs, out.path(), &base).unwrap();
        let error = |inputs: &[Input], options: &PrepareOptions, wanted: &str| {
            let error = go(inputs, out.path(), options).unwrap_err().to_string();
            let what_to_do = match complete {
                true => "holds other work".to_owned(),
                false => format!("remove {}", out.path().join("parts").display()),
            };
            assert!(
                error.contains(&what_to_do) && error.contains(wanted),
                "{error}"
            );
        };
        let mut other = base.clone();
        other.shard_tokens = 5;
        error(&inputs, &other, "tokens a shard: 300000 there, 5 now");
        let mut other = base.clone();
        other.read.layout = TextLayout::Line;
        error(
            &inputs,
            &other,
            "end of documents: blank-line there, line now",
        );
        let twice = [inputs[0].clone(), inputs[0].clone()];
        error(&twice, &base, "number of inputs: 1 there, 2 now");
        let mut lossy = base.clone();
        lossy.read.lossy = true;
        go(&inputs, out.path(), &lossy).unwrap();
        fs::write(&path, "one\n").unwrap();
        error(&inputs, &lossy, "a.txt of 15 bytes there, 4 now");
        if !complete {
            let other = options(1, Share::Part { index: 0, of: 3 });
            fs::write(&path, "one two\n\nthree\n").unwrap();
            error(
                &inputs,
                &PrepareOptions {
                    read: lossy.read,
                    ..other
                },
                "number of parts",
            );
        }
    }
}

/// Changes a byte in the middle of a file and nothing else that a look from outside would show.
fn edit_in_the_middle(path: &Path) {
    let times = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] = if bytes[middle] == b'w' { b'x' } else { b'w' };
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(times).unwrap();
}

#[test]
fn an_edit_anywhere_in_an_input_is_noticed_and_a_touched_or_copied_one_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for wait in [0, 2100] {
        let text = "one two three\n".repeat(20_000);
        let path = dir.path().join("a.txt");
        fs::write(&path, &text).unwrap();
        let inputs = [Input::File(path.clone())];
        // Once as fresh as can be, once so old that its time says that nothing was written.
        std::thread::sleep(std::time::Duration::from_millis(wait));
        let out = tempfile::tempdir().unwrap();
        let base = options(1, Share::All);
        go(&inputs, out.path(), &base).unwrap();
        let rerun = |inputs: &[Input]| go(inputs, out.path(), &base);
        let same = |inputs: &[Input]| {
            let report = rerun(inputs).unwrap();
            assert_eq!(report.outcome, Outcome::AlreadyComplete);
        };
        same(&inputs);
        fs::write(&path, &text).unwrap();
        same(&inputs);
        fs::create_dir_all(dir.path().join("copy")).unwrap();
        let copy = dir.path().join("copy/a.txt");
        fs::copy(&path, &copy).unwrap();
        same(&[Input::File(copy)]);
        same(&inputs);
        edit_in_the_middle(&path);
        let error = rerun(&inputs).unwrap_err().to_string();
        assert!(
            error.contains("input 1: the content of a.txt has changed"),
            "{error}"
        );
        fs::write(&path, &text).unwrap();
        same(&inputs);
    }
}

#[test]
fn an_old_file_is_not_read_again_to_know_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "one two three\n").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let out = tempfile::tempdir().unwrap();
    let (inputs, base) = ([Input::File(path)], options(1, Share::All));
    go(&inputs, out.path(), &base).unwrap();
    // A hash that the file does not have tells whether it is asked for.
    let manifest = out.path().join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let at = text.find("\"blake3\": \"").unwrap() + 11;
    let other = text[..at].to_owned() + &"0".repeat(64) + &text[at + 64..];
    fs::write(&manifest, other).unwrap();
    let report = go(&inputs, out.path(), &base).unwrap();
    assert_eq!(report.outcome, Outcome::AlreadyComplete);
    fs::remove_file(out.path().join(".inputs.json")).unwrap();
    let error = go(&inputs, out.path(), &base).unwrap_err().to_string();
    assert!(error.contains("has changed"), "{error}");
}

#[test]
fn a_run_that_was_stopped_does_again_what_has_changed_since() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = corpus(dir.path());
    let base = options(2, Share::All);
    // Where the edited file is before, within and after what was done when the run stopped.
    for (name, again) in [("a.txt", true), ("b.txt", true), ("f.txt", false)] {
        let out = tempfile::tempdir().unwrap();
        let blocks = std::cell::Cell::new(0);
        let mut progress = |_: &Progress| blocks.set(blocks.get() + 1);
        let stopped = prepare(
            &inputs,
            &tokenizer(),
            out.path(),
            &base,
            &mut progress,
            &|| blocks.get() >= 3,
        );
        assert!(matches!(stopped, Err(PrepareError::Interrupted)));
        edit_in_the_middle(&dir.path().join(name));
        let report = go(&inputs, out.path(), &base).unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        if again {
            assert_eq!(report.again.as_deref(), Some(name));
        }
        let fresh = tempfile::tempdir().unwrap();
        go(&inputs, fresh.path(), &base).unwrap();
        assert!(files(out.path()) == files(fresh.path()), "{name}");
    }
}

#[test]
fn corrected_text_goes_on_where_bad_text_ended_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("a.txt"), dir.path().join("b.txt"));
    fs::write(&good, "one two\n".repeat(300_000)).unwrap();
    let text = "three four\n".repeat(200_000);
    fs::write(&bad, [text.as_bytes(), b"\xFF\n"].concat()).unwrap();
    let inputs = [Input::File(good.clone()), Input::File(bad.clone())];
    let out = tempfile::tempdir().unwrap();
    let base = options(2, Share::All);
    let error = go(&inputs, out.path(), &base).unwrap_err();
    assert!(error.to_string().contains("invalid UTF-8"), "{error}");
    fs::write(&bad, &text).unwrap();
    let report = go(&inputs, out.path(), &base).unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(report.again.as_deref(), Some("b.txt"));
    assert!(report.text_bytes < 2_400_000, "{report:?}");
    let fresh = tempfile::tempdir().unwrap();
    go(&inputs, fresh.path(), &base).unwrap();
    assert!(files(out.path()) == files(fresh.path()));

    // Where nothing was done yet, anything may come in its place.
    let out = tempfile::tempdir().unwrap();
    fs::write(&bad, b"\xFF\n").unwrap();
    go(&inputs[1..], out.path(), &base).unwrap_err();
    let report = go(&inputs[..1], out.path(), &base).unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
}

#[test]
fn parts_of_different_contents_are_not_merged_and_one_of_them_can_catch_up() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = corpus(dir.path());
    let out = tempfile::tempdir().unwrap();
    let part = |index: u32| {
        go(
            &inputs,
            out.path(),
            &options(2, Share::Part { index, of: 2 }),
        )
        .unwrap()
    };
    part(0);
    // Another machine's copy, with another time.
    let shared = dir.path().join("c.txt");
    let before = fs::read(&shared).unwrap();
    let mut copy: Vec<_> = inputs.to_vec();
    for input in &mut copy {
        let Input::File(path) = input else { continue };
        let other = path.with_file_name("other");
        fs::create_dir_all(&other).unwrap();
        let to = other.join(path.file_name().unwrap());
        fs::copy(&*path, &to).unwrap();
        *path = to;
    }
    let second = options(2, Share::Part { index: 1, of: 2 });
    go(&copy, out.path(), &second).unwrap();
    for path in ["a.txt", "b.txt", "d.txt", "f.txt", "g.txt.zst", "c.txt"] {
        edit_in_the_middle(&dir.path().join(path));
    }
    let again = part(0);
    assert_eq!(again.again.as_deref(), Some("a.txt"));
    let error = merge(out.path(), &mut |_| {}, &|| false).unwrap_err();
    assert!(
        matches!(&error, PrepareError::PartsDiffer { first, second, .. } if first != second),
        "{error}"
    );
    let caught_up = part(1);
    assert!(caught_up.again.is_some() && caught_up.text_bytes > 0);
    merge(out.path(), &mut |_| {}, &|| false).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    go(&inputs, fresh.path(), &options(1, Share::All)).unwrap();
    assert!(files(out.path()) == files(fresh.path()));
    assert_ne!(fs::read(&shared).unwrap(), before);
}

#[test]
fn a_merge_of_nothing_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = merge(&dir.path().join("gone"), &mut |_| {}, &|| false).unwrap_err();
    assert!(
        error.to_string().contains("gone: no such directory"),
        "{error}"
    );
    let error = merge(dir.path(), &mut |_| {}, &|| false).unwrap_err();
    assert!(
        error.to_string().contains("no parts in it to merge"),
        "{error}"
    );
}

#[test]
fn bad_requests_and_outputs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let path = dir.path().join("a.txt");
    fs::write(&path, " \n\n\u{1}\n").unwrap();
    let inputs = [Input::File(path.clone())];
    let base = options(1, Share::All);
    let error = |inputs: &[Input], out: &Path, options: &PrepareOptions, wanted: &str| {
        let error = go(inputs, out, options).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    error(&inputs, &out, &base, "no text at all in a.txt");
    // What that leaves may be gone on with.
    error(&inputs, &out, &base, "no text at all in a.txt");
    fs::create_dir(out.join("parts")).unwrap();
    error(&inputs, &out, &base, "no text at all in a.txt");
    error(&[], &out, &base, "no input; name files");
    error(
        &inputs,
        &out,
        &options(1, Share::Part { index: 2, of: 2 }),
        "part 2 of 2",
    );
    let gone = [Input::File(dir.path().join("gone.txt"))];
    error(&gone, &out, &base, "gone.txt: no such file");
    let split = options(1, Share::Part { index: 0, of: 2 });
    error(
        &[Input::Stdin],
        &out,
        &split,
        "standard input cannot be split",
    );
    error(
        &inputs,
        dir.path(),
        &base,
        "not empty, and not a directory of prepare",
    );
    // What is called like shards, but is none of ours, stays.
    for name in [
        "shard-000.jsonl",
        "shard-00000.bin",
        "tokenizer/vocab.txt",
        "parts/a",
    ] {
        let theirs = tempfile::tempdir().unwrap();
        let file = theirs.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "theirs\n").unwrap();
        let wanted = "not empty, and not a directory of prepare";
        error(&inputs, theirs.path(), &base, wanted);
        assert_eq!(fs::read(&file).unwrap(), b"theirs\n");
    }
    error(&inputs, &path, &base, "Not a directory");
    error(
        &inputs,
        Path::new("/proc/none/out"),
        &base,
        "is the directory writable",
    );
    fs::write(&path, b"good\n\xFF\xFF\n").unwrap();
    let fresh = dir.path().join("fresh");
    error(
        &inputs,
        &fresh,
        &base,
        "2 invalid UTF-8 sequences, the first at byte 5",
    );
    let mut lossy = base.clone();
    lossy.read.lossy = true;
    let report = go(&inputs, &fresh, &lossy).unwrap();
    assert_eq!((report.invalid_utf8, report.tokens), (2, 4));
}

#[test]
fn two_processes_do_not_do_the_same_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "one two\n").unwrap();
    let out = tempfile::tempdir().unwrap();
    let inputs = [Input::File(path)];
    let part = |index| options(1, Share::Part { index, of: 2 });
    go(&inputs, out.path(), &part(0)).unwrap();
    let other = out.path().join("parts/part-00001-of-00002");
    fs::create_dir_all(&other).unwrap();
    let lock = fs::File::create(other.join("lock")).unwrap();
    lock.lock().unwrap();
    let error = go(&inputs, out.path(), &part(1)).unwrap_err();
    assert!(
        error.to_string().contains("another process is working"),
        "{error}"
    );
}

#[test]
fn blocks_are_spread_evenly_over_parts() {
    let entry = |bytes| crate::manifest::InputEntry {
        name: "x".into(),
        bytes,
        blake3: None,
    };
    let dir = tempfile::tempdir().unwrap();
    let plan = plan::plan(&[], &tokenizer(), &PrepareOptions::default()).unwrap();
    let job = Job {
        out: dir.path().into(),
        plan: crate::manifest::Plan {
            inputs: vec![entry(100), entry(0), entry(300), entry(100)],
            ..plan
        },
        parts: 5,
    };
    let mut counts = [0; 5];
    for (input, blocks) in [(0, 1000), (1, 1), (2, 3000), (3, 1000)] {
        for block in 0..blocks {
            let owner = job.owner(input, block);
            assert!(job.touches(input, owner));
            counts[owner as usize] += 1;
        }
    }
    assert!(
        counts.iter().all(|&n| (980..1020).contains(&n)),
        "{counts:?}"
    );
    assert!(!job.touches(0, 4) && !job.touches(3, 0));
}
