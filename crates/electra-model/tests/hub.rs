//! Models by their hub names, against a small hub on 127.0.0.1.
#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use electra_model::files::hub::{HubError, HubSettings, resolve};
use electra_model::files::{ModelDir, ModelKind};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the repositories `me/model` (its files given) and `me/private` (the same, to the
/// holder of the token `secret`). Weights are redirected, as the real hub does.
struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let files: BTreeMap<String, Vec<u8>> = files
            .iter()
            .map(|(n, b)| (n.to_string(), b.to_vec()))
            .collect();
        let (log, base) = (requests.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is not the hub's concern.
                let _ = answer(stream, &files, &base, &log);
            }
        });
        Self { endpoint, requests }
    }

    fn settings(&self, cache: &Path) -> HubSettings {
        HubSettings {
            endpoint: self.endpoint.clone(),
            cache: cache.into(),
            token: None,
            offline: false,
        }
    }

    fn requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    base: &str,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or("").to_string();
    let (mut from, mut to, mut token) = (0usize, usize::MAX, false);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let lower = line.to_lowercase();
        if let Some(range) = lower.strip_prefix("range: bytes=") {
            let (a, b) = range.split_once('-').unwrap();
            (from, to) = (a.parse().unwrap(), b.parse().unwrap_or(usize::MAX));
        }
        token |= lower == "authorization: bearer secret";
    }
    log.lock().unwrap().push(path.clone());
    let mut reply = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
        )?;
        stream.write_all(body)
    };
    let private = path.contains("/me/private/");
    if private && !token {
        return reply("401 Unauthorized", "", b"");
    }
    if path.ends_with("me/model/revision/main") || path.ends_with("me/private/revision/main") {
        let names: Vec<String> = files
            .keys()
            .map(|n| format!("{{\"rfilename\":\"{n}\"}}"))
            .collect();
        let body = format!(
            "{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}",
            names.join(",")
        );
        return reply(
            "200 OK",
            "Content-Type: application/json\r\n",
            body.as_bytes(),
        );
    }
    let name = path.rsplit('/').next().unwrap_or("");
    let known = path.starts_with("/me/model/resolve/main/") || path.starts_with("/cdn/") || private;
    let Some(body) = files.get(name).filter(|_| known) else {
        return reply("404 Not Found", "", b"");
    };
    let about = format!("x-repo-commit: {COMMIT}\r\nETag: \"etag-of-{name}\"\r\n");
    if name.ends_with(".safetensors") && !path.starts_with("/cdn/") {
        let headers =
            format!("{about}x-linked-etag: \"linked-{name}\"\r\nLocation: {base}/cdn/{name}\r\n");
        return reply("302 Found", &headers, b"");
    }
    let end = to.saturating_add(1).min(body.len());
    let range = format!(
        "{about}Content-Range: bytes {from}-{}/{}\r\n",
        end - 1,
        body.len()
    );
    reply("206 Partial Content", &range, &body[from..end])
}

const FILES: [(&str, &[u8]); 5] = [
    ("config.json", b"{\"model_type\": \"electra\"}"),
    ("model.safetensors", b"weights, a few bytes of them"),
    ("pytorch_model.bin", b"never fetched"),
    ("tokenizer_config.json", b"{}"),
    ("vocab.txt", b"[PAD]\n"),
];

#[test]
fn a_model_is_fetched_once_into_pythons_layout_and_then_found_offline_too() {
    let hub = Hub::start(&FILES);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(cache.path());
    let mut seen = Vec::new();
    let folder = resolve("me/model", &settings, &mut |d| {
        assert!(d.done <= d.total);
        if d.done == d.total {
            seen.push(d.file.to_string());
        }
    })
    .unwrap();
    assert_eq!(
        folder,
        cache
            .path()
            .join("models--me--model/snapshots")
            .join(COMMIT)
    );
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        FILES[1].1
    );
    assert!(
        cache
            .path()
            .join("models--me--model/blobs/linked-model.safetensors")
            .is_file()
    );
    assert_eq!(
        std::fs::read_to_string(cache.path().join("models--me--model/refs/main")).unwrap(),
        COMMIT
    );
    assert!(folder.join("vocab.txt").exists() && !folder.join("pytorch_model.bin").exists());
    assert!(seen.contains(&"model.safetensors".to_string()));

    let before = hub.requests();
    assert_eq!(resolve("me/model", &settings, &mut |_| {}).unwrap(), folder);
    settings.offline = true;
    assert_eq!(resolve("me/model", &settings, &mut |_| {}).unwrap(), folder);
    let commit = format!("me/model@{COMMIT}");
    assert_eq!(resolve(&commit, &settings, &mut |_| {}).unwrap(), folder);
    assert_eq!(hub.requests(), before);
}

#[test]
fn offline_without_a_cache_says_what_to_do() {
    let hub = Hub::start(&FILES);
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings {
        offline: true,
        ..hub.settings(cache.path())
    };
    let message = resolve("me/model", &settings, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("me/model is not in the cache") && message.contains("HF_HUB_OFFLINE"),
        "{message}"
    );
    assert_eq!(hub.requests(), 0);
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let hub = Hub::start(&FILES);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path());
    let message = resolve("me/modle", &settings, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("has no model me/modle") && message.contains("spelling"),
        "{message}"
    );
    let message = resolve("me/model@v9", &settings, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(message.contains("me/model@v9"), "{message}");
}

#[test]
fn a_private_model_asks_for_a_token_and_is_given_to_its_holder() {
    let hub = Hub::start(&FILES);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(cache.path());
    let message = resolve("me/private", &settings, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("me/private") && message.contains("set HF_TOKEN"),
        "{message}"
    );
    settings.token = Some("wrong".into());
    let message = resolve("me/private", &settings, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(message.contains("that HF_TOKEN is valid"), "{message}");
    settings.token = Some("secret".into());
    let folder = resolve("me/private", &settings, &mut |_| {}).unwrap();
    assert!(folder.join("model.safetensors").exists());
}

#[test]
fn a_repository_without_weights_or_configuration_is_refused_with_what_it_has() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[FILES[0], FILES[4]]);
    let message = resolve("me/model", &hub.settings(cache.path()), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("no weights (model.safetensors")
            && message.contains("it has config.json, vocab.txt"),
        "{message}"
    );
    let hub = Hub::start(&[FILES[1]]);
    let message = resolve("me/model", &hub.settings(cache.path()), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(message.contains("has no config.json"), "{message}");
}

#[test]
fn sharded_weights_are_fetched_whole() {
    let index = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    let files: [(&str, &[u8]); 4] = [
        FILES[0],
        ("model.safetensors.index.json", index),
        ("one.safetensors", b"1"),
        ("two.safetensors", b"2"),
    ];
    let hub = Hub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let folder = resolve("me/model", &hub.settings(cache.path()), &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(folder.join("two.safetensors")).unwrap(), b"2");
}

#[test]
fn an_unreachable_hub_says_so_unless_the_cache_will_do() {
    let hub = Hub::start(&[FILES[0], FILES[1]]);
    let cache = tempfile::tempdir().unwrap();
    let reachable = hub.settings(cache.path());
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let gone = HubSettings {
        endpoint: format!("http://127.0.0.1:{port}"),
        ..reachable.clone()
    };
    let error = resolve("me/model", &gone, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("check the network"), "{error}");
    // Fetched without a tokenizer, which the repository lacks: the hub is asked again, in vain.
    let folder = resolve("me/model", &reachable, &mut |_| {}).unwrap();
    assert_eq!(resolve("me/model", &gone, &mut |_| {}).unwrap(), folder);
}

#[test]
fn a_folder_is_itself() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Hub::start(&[]).settings(dir.path());
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve(path, &settings, &mut |_| {}).unwrap(), dir.path());
}

/// Needs a network: `ELECTRA_HUB_TESTS=1 cargo test --release -p electra-model --test hub`.
#[test]
fn the_released_models_are_fetched_and_recognised() {
    if std::env::var("ELECTRA_HUB_TESTS").is_err() {
        eprintln!("skipped: set ELECTRA_HUB_TESTS=1 to fetch the released models from the hub");
        return;
    }
    let settings = HubSettings::from_env().unwrap();
    for (name, kind) in [
        (
            "google/electra-small-discriminator",
            ModelKind::Discriminator,
        ),
        ("google/electra-small-generator", ModelKind::Generator),
    ] {
        let folder = resolve(name, &settings, &mut |_| {}).unwrap();
        let model = ModelDir::open(&folder).unwrap();
        assert_eq!(model.kind(), kind);
        assert!(model.not_finite().is_empty());
        assert_eq!(model.config().vocab_size, 30522);
    }
}
