use super::*;
use crate::manifest::Plan;

/// A directory of two shards with the given documents of lines of tokens.
pub(crate) fn write_corpus(dir: &Path, vocab_size: u64, shards: &[Vec<Vec<Vec<u32>>>]) {
    let hash = blake3::hash(b"tokenizer");
    let mut entries = Vec::new();
    for (i, documents) in shards.iter().enumerate() {
        let path = dir.join(format!("shard-{i:05}.bin"));
        let mut writer = ShardWriter::create(&path, vocab_size, hash).unwrap();
        for document in documents {
            for line in document {
                let mut bytes = Vec::new();
                put_tokens(line, token_bytes(vocab_size), &mut bytes);
                writer.push(&bytes).unwrap();
                writer.end_line();
            }
            writer.end_document();
        }
        entries.push(writer.finish().unwrap());
    }
    let sum = |count: fn(&ShardEntry) -> u64| entries.iter().map(count).sum();
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        plan: Plan {
            tokenizer_hash: hash.to_hex().to_string(),
            vocab_size,
            shard_tokens: 1,
            format: "auto".into(),
            documents_end: "blank-line".into(),
            field: "text".into(),
            lossy: false,
            inputs: Vec::new(),
        },
        documents: sum(|s| s.documents),
        lines: sum(|s| s.lines),
        tokens: sum(|s| s.tokens),
        shards: entries,
    };
    fs::write(dir.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

fn example(dir: &Path, vocab_size: u64) {
    let document = |from: u32| vec![vec![from, from + 1, from + 2], vec![], vec![from + 3]];
    write_corpus(
        dir,
        vocab_size,
        &[vec![document(10), vec![], document(20)], vec![document(30)]],
    );
}

fn error(dir: &Path) -> String {
    let result = Corpus::open(dir).and_then(|corpus| corpus.verify());
    result.unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read_in_two_bytes_and_in_four() {
    for vocab_size in [1 << 16, (1 << 16) + 1] {
        let dir = tempfile::tempdir().unwrap();
        example(dir.path(), vocab_size);
        let corpus = Corpus::open(dir.path()).unwrap();
        corpus.verify().unwrap();
        assert_eq!(corpus.documents(), 3);
        assert_eq!(corpus.locate(2), (1, 0));
        let shard = &corpus.shards()[0];
        assert_eq!(
            (shard.documents(), shard.lines(), shard.tokens()),
            (2, 4, 8)
        );
        assert_eq!(shard.document_start(1), 2);
        assert_eq!(shard.line_start(3), 7);
        let mut ids = vec![1];
        shard.read(2..5, vocab_size, &mut ids).unwrap();
        assert_eq!(ids, [1, 12, 13, 20]);
    }
}

#[test]
fn each_kind_of_damage_has_its_message() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path(), 1000);
    let path = dir.path().join("shard-00000.bin");
    let good = fs::read(&path).unwrap();
    let damage = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        fs::write(&path, bad).unwrap();
        error(dir.path())
    };
    assert!(damage(0, b'X').contains("shard-00000.bin: not a token shard"));
    assert!(damage(8, 9).contains("shard format 9, but this program reads format 1"));
    assert!(damage(12, 4).contains("does not agree with the manifest"));
    assert!(damage(24, 7).contains("does not agree with the manifest"));
    assert!(damage(48, !good[48]).contains("made with another tokenizer"));
    assert!(
        damage(HEADER + 1, 200).contains("token 51210 at position 0, but the vocabulary has 1000")
    );
    assert!(damage(HEADER, 11).contains("the file was altered"));
    assert!(damage(HEADER + 16, 1).contains("line offset 0 is out of order"));
    assert!(damage(good.len() - 4, 9).contains("document offset 2 is out of order"));
    fs::write(&path, &good[..good.len() - 3]).unwrap();
    let cut = error(dir.path());
    assert!(cut.contains("the file is truncated or has grown"), "{cut}");
    fs::remove_file(&path).unwrap();
    assert!(error(dir.path()).contains("shard-00000.bin: No such file"));
    fs::write(&path, &good).unwrap();
    Corpus::open(dir.path()).unwrap().verify().unwrap();
    let manifest = dir.path().join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replace("\"format_version\":1", "\"format_version\":2"),
    )
    .unwrap();
    assert!(error(dir.path()).contains("format 2, but this program reads format 1"));
    fs::write(&manifest, "{").unwrap();
    assert!(error(dir.path()).contains("manifest.json: not a manifest"));
    fs::remove_file(&manifest).unwrap();
    assert!(error(dir.path()).contains("no manifest.json"));
}

/// Any byte altered is found, and none makes a reader panic.
#[test]
fn any_altered_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path(), 1000);
    let path = dir.path().join("shard-00000.bin");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        for flip in [1, 0x80, 0xFF] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            fs::write(&path, bad).unwrap();
            error(dir.path());
        }
    }
}

#[test]
fn shards_of_another_tokenizer_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path(), 1000);
    let corpus = Corpus::open(dir.path()).unwrap();
    let right = blake3::hash(b"tokenizer").to_hex();
    corpus.check_tokenizer(&right).unwrap();
    let error = corpus.check_tokenizer("0123456789abcdef").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not with 0123456789ab; give that one"),
        "{error}"
    );
}
