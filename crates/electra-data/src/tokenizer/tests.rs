use std::fs;

use proptest::prelude::*;

use super::*;
use crate::read::{Input, ReadOptions, Reader};
use crate::vocabulary::{VocabularyOptions, WordCounts};

/// A file of the development data beside the repository; `None`, and a note, where it is absent.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{name} of the development data is absent"
    );
    println!("skipped: {name} of the development data is absent");
    None
}

fn small(normalisation: Normalisation) -> Tokenizer {
    let words = "[PAD] [UNK] [CLS] [SEP] [MASK] hello ##llo he wor ##ld world , ! = i é e 中 ##s a";
    let tokens = words.split(' ').map(str::to_owned).collect();
    Tokenizer::new(tokens, normalisation, "test".as_ref()).unwrap()
}

/// The library's tokenizer, taking special tokens in the text for text.
fn library(tokenizer: &Tokenizer) -> tokenizers::Tokenizer {
    let mut library = (*tokenizer.library).clone();
    library.set_encode_special_tokens(true);
    library
}

fn by_library(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let encoding = library(tokenizer).encode_fast(text, false).unwrap();
    encoding.get_ids().to_vec()
}

#[test]
fn ids_offsets_and_text_of_a_sentence() {
    let tokenizer = small(Normalisation::UNCASED);
    assert_eq!(tokenizer.encode("Héllo, WORLDs!"), [5, 11, 10, 18, 12]);
    let spans = tokenizer.encode_with_offsets("Héllo [MASK]!").unwrap();
    let span = |id, start, end| TokenSpan { id, start, end };
    assert_eq!(spans, [span(5, 0, 5), span(4, 6, 12), span(12, 12, 13)]);
    assert_eq!(
        (tokenizer.token(5), tokenizer.token(99)),
        (Some("hello"), None)
    );
    assert_eq!(tokenizer.id("world"), Some(10));
    // In a corpus, what looks like a special token is text.
    assert_eq!(tokenizer.encode("[MASK]"), [1, 1, 1]);
}

#[test]
fn special_cases_of_the_normalisation_are_the_library_s() {
    let texts = [
        "",
        " ",
        "İstanbul ǅ ß ſ K",
        "a\u{301}e\u{301} .\u{301}",
        "≠ \u{338}=",
        "a\u{85}b\u{b}c\u{2028}d",
        "中\u{301}文、。か゛が",
        "\u{fffd}\0a\u{ad}b",
        "[MASK] [CLS]x",
        "ﬁ ½ ① Ω",
        "한국어 텍스트",
        "\u{1100}\u{1161}\u{302e}",
        "e\u{1d165}\u{1d16d}",
        "🤗 👩‍👩‍👧 a\u{200d}b",
        "豈\u{f900}\u{2f800}𠀀",
        "\u{9ff0}\u{9fff}",
        "a\u{640}\u{64b}",
        "ΑΣ ΑΣ. ÀÉ",
        "x\u{1f}y\u{7f}z",
    ];
    for normalisation in flags() {
        let tokenizer = small(normalisation);
        for text in texts {
            assert_eq!(
                tokenizer.encode(text),
                by_library(&tokenizer, text),
                "{text:?}"
            );
        }
        let long = ["a".repeat(100), "a".repeat(101), "é".repeat(101)].join(" ");
        assert_eq!(tokenizer.encode(&long), by_library(&tokenizer, &long));
    }
}

fn flags() -> Vec<Normalisation> {
    let mut all = Vec::new();
    for lower_case in [true, false] {
        for strip_accents in [None, Some(true), Some(false)] {
            for split_chinese in [true, false] {
                all.push(Normalisation {
                    lower_case,
                    strip_accents,
                    split_chinese,
                });
            }
        }
    }
    all
}

/// A vocabulary of single characters tells any difference in words.
fn characters(normalisation: Normalisation, text: &str) -> Tokenizer {
    let mut tokens: Vec<String> = SPECIAL_TOKENS.map(str::to_owned).to_vec();
    let mut scratch = String::new();
    let mut seen = std::collections::BTreeSet::new();
    normalisation.words(text, &mut scratch, |word| seen.extend(word.chars()));
    for c in seen {
        tokens.push(c.to_string());
        tokens.push(format!("##{c}"));
    }
    Tokenizer::new(tokens, normalisation, "test".as_ref()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_unicode_gets_the_library_s_ids(
        text in prop::collection::vec(prop_oneof![
            any::<char>(),
            prop::char::range('\u{20}', '\u{7e}'),
            prop::char::range('\u{a0}', '\u{36f}'),
            prop::char::range('\u{2000}', '\u{303f}'),
            prop::sample::select(vec![' ', '.', 'a', '\u{301}', '中', '\u{85}', '\n', '≠']),
        ], 0..60),
        flag in 0usize..12,
    ) {
        let text: String = text.into_iter().collect();
        let tokenizer = characters(flags()[flag], &text);
        prop_assert_eq!(tokenizer.encode(&text), by_library(&tokenizer, &text));
    }
}

/// Every character, alone and between letters.
#[test]
fn every_character_gets_the_library_s_ids() {
    let all: Vec<char> = (1..=0x10_FFFF).filter_map(char::from_u32).collect();
    for normalisation in [Normalisation::UNCASED, Normalisation::CASED] {
        for block in all.chunks(4096) {
            let text: String = block
                .iter()
                .flat_map(|&c| ['a', c, 'b', ' ', c, ' '])
                .collect();
            let tokenizer = characters(normalisation, &text);
            assert!(
                tokenizer.encode(&text) == by_library(&tokenizer, &text),
                "between {:?} and {:?}",
                block.first(),
                block.last()
            );
        }
    }
}

#[test]
fn real_text_gets_the_library_s_ids() {
    let Some(vocabulary) = shared("vocab/bert-base-uncased.txt") else {
        return;
    };
    for lower_case in [true, false] {
        let tokenizer = Tokenizer::load(&vocabulary, Some(lower_case)).unwrap();
        let (mut encoder, library) = (tokenizer.encoder(), library(&tokenizer));
        for name in ["en_wiki", "en_brown", "zh_reviews"] {
            let Some(path) = shared(&format!("pretrain/{name}.txt")) else {
                return;
            };
            let mut reader = Reader::open(&Input::File(path), &ReadOptions::default()).unwrap();
            let mut text = String::new();
            let mut bytes = 0;
            while bytes < 1 << 20 && reader.piece(&mut text).unwrap().is_some() {
                let mut ids = Vec::new();
                encoder.encode(&text, &mut ids);
                let wanted = library.encode_fast(text.as_str(), false).unwrap();
                assert_eq!(ids, wanted.get_ids(), "{text}");
                bytes += text.len();
                text.clear();
            }
        }
    }
}

#[test]
fn what_is_saved_loads_as_the_same_tokenizer_from_any_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    for normalisation in flags() {
        let tokenizer = small(normalisation);
        tokenizer.save(dir.path(), MAX_POSITIONS).unwrap();
        let hash = tokenizer.hash();
        assert_eq!(Tokenizer::load(dir.path(), None).unwrap().hash(), hash);
        let json = dir.path().join("tokenizer.json");
        assert_eq!(Tokenizer::load(&json, None).unwrap().hash(), hash);
        fs::remove_file(&json).unwrap();
        assert_eq!(Tokenizer::load(dir.path(), None).unwrap().hash(), hash);
    }
    assert_ne!(
        small(Normalisation::CASED).hash(),
        small(Normalisation::UNCASED).hash()
    );
    let vocabulary = dir.path().join("vocab.txt");
    let loaded = Tokenizer::load(&vocabulary, Some(false)).unwrap();
    assert_eq!(loaded.hash(), small(Normalisation::CASED).hash());
}

#[test]
fn bad_vocabularies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.txt");
    let error = |text: &[u8]| {
        fs::write(&path, text).unwrap();
        Tokenizer::load(&path, None).unwrap_err().to_string()
    };
    assert!(error(b"").contains("vocab.txt: the vocabulary is empty"));
    assert!(error(b"\n\n").contains("the vocabulary is empty"));
    assert!(error(b"[PAD]\n\na\n").contains("vocab.txt, line 2: empty token"));
    assert!(error(b"[PAD]\n[UNK]\na\n[CLS]\na\n").contains("\"a\" stands twice, as ids 2 and 4"));
    assert!(error(b"[PAD]\n[UNK]\n[CLS]\n").contains("lacks [SEP] [MASK]; ELECTRA needs"));
    assert!(error(b"a\n\xFF").contains("not UTF-8 at byte 2"));
    let missing = Tokenizer::load(&dir.path().join("gone"), None)
        .unwrap_err()
        .to_string();
    assert!(missing.contains("no tokenizer at"), "{missing}");
    let empty = tempfile::tempdir().unwrap();
    let missing = Tokenizer::load(empty.path(), None).unwrap_err().to_string();
    assert!(
        missing.contains("expected a vocab.txt, or a directory"),
        "{missing}"
    );
}

#[test]
fn other_tokenizers_are_refused_by_the_field_that_differs() {
    let dir = tempfile::tempdir().unwrap();
    small(Normalisation::UNCASED)
        .save(dir.path(), MAX_POSITIONS)
        .unwrap();
    let path = dir.path().join("tokenizer.json");
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, wanted) in [
        (
            "BertNormalizer",
            "NFC",
            "normalizer.type is \"NFC\"; only BERT WordPiece",
        ),
        (
            "\"WordPiece\",\n    \"unk_token\"",
            "\"BPE\",\n    \"unk_token\"",
            "model.type is \"BPE\"",
        ),
        ("\"hello\": 5", "\"hello\": 50", "ids are not 0 to"),
        ("\"hello\": 5", "\"hello\": \"5\"", "is no number"),
        ("{", "", "not valid JSON"),
        (
            "\"special\": true",
            "\"special\": false",
            "is matched inside words",
        ),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(good, bad, "{from}");
        fs::write(&path, bad).unwrap();
        let error = Tokenizer::load(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    fs::write(&path, &good).unwrap();
    fs::write(
        dir.path().join("tokenizer_config.json"),
        "{\"do_lower_case\": \"yes\"}",
    )
    .unwrap();
    let error = Tokenizer::load(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("field do_lower_case is \"yes\""), "{error}");
}

#[test]
fn a_trained_vocabulary_has_its_size_and_order_and_is_the_same_each_time() {
    let text = "the cat sat on the mat, the cats sat on mats; 猫在垫子上 Ünder\n".repeat(20);
    let train = |normalisation, size| {
        let mut counts = WordCounts::new(normalisation);
        for line in text.lines() {
            counts.add(line);
        }
        let options = VocabularyOptions {
            size,
            min_frequency: 2,
        };
        counts.train(&options)
    };
    let tokenizer = train(Normalisation::UNCASED, 80).unwrap();
    assert_eq!(tokenizer.tokens()[..5], SPECIAL_TOKENS);
    assert!(tokenizer.vocab_size() <= 80);
    for token in ["the", "cat", "猫", "under", "t", "##t"] {
        assert!(tokenizer.id(token).is_some(), "{token}");
    }
    assert_eq!(tokenizer.id("Ünder"), None);
    assert!(!tokenizer.encode(&text).contains(&tokenizer.special().unk));
    for _ in 0..3 {
        assert_eq!(
            train(Normalisation::UNCASED, 80).unwrap().hash(),
            tokenizer.hash()
        );
    }
    let cased = train(Normalisation::CASED, 80).unwrap();
    assert!(cased.id("Ü").is_some());
    let mut counts = WordCounts::new(Normalisation::CASED);
    (0..3000).for_each(|n| counts.add(&format!("{n} {}", n % 70)));
    let options = VocabularyOptions {
        size: 200,
        min_frequency: 1,
    };
    assert_eq!(counts.train(&options).unwrap().vocab_size(), 200);
    let error = train(Normalisation::UNCASED, 6).unwrap_err().to_string();
    assert!(error.contains("has no room for characters"), "{error}");
    let options = VocabularyOptions {
        size: 80,
        min_frequency: 2,
    };
    let error = WordCounts::new(Normalisation::CASED)
        .train(&options)
        .unwrap_err();
    assert!(error.to_string().contains("no text to train"), "{error}");
}
