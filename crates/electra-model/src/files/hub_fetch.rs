//! Fetching a model's files from the hub, through the crate `hf-hub`.

use std::path::PathBuf;

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::hub::{Download, HubError, HubName, HubSettings};
use super::model_dir::{TOKENIZER_FILES, WEIGHT_FILES};
use super::sharded;

/// Attempts after a broken download; each goes on where the last one stopped.
const RETRIES: usize = 3;

/// Fetch what the cache lacks of a model: configuration, one form of the weights, tokenizer.
/// Returns the folder of its current commit.
pub(super) fn fetch(
    model: &str,
    name: &HubName,
    settings: &HubSettings,
    progress: &mut dyn FnMut(Download),
) -> Result<PathBuf, HubError> {
    let failed = |what: &str, error: ApiError| explain(model, what, settings, error);
    let cache = Cache::new(settings.cache.clone());
    let repo = Repo::with_revision(name.repo.clone(), RepoType::Model, name.revision.clone());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_progress(false)
        .with_retries(RETRIES)
        .build()
        .map_err(|e| failed(model, e))?
        .repo(repo.clone());
    let about = api.info().map_err(|e| failed(model, e))?;
    let present: Vec<String> = about.siblings.into_iter().map(|s| s.rfilename).collect();
    let has = |file: &str| present.iter().any(|p| p == file);
    let missing = |file: String| HubError::MissingFile {
        name: model.into(),
        file,
        present: present.clone(),
    };
    if !has("config.json") {
        return Err(missing("config.json".into()));
    }
    let Some(weights) = WEIGHT_FILES.into_iter().find(|file| has(file)) else {
        return Err(missing(format!("weights ({})", WEIGHT_FILES.join(", "))));
    };

    let folder = cache.repo(repo).pointer_path(&about.sha);
    let mut get = |file: &str| match folder.join(file).exists() {
        true => Ok(()),
        false => {
            download(&api, file, progress).map_err(|e| failed(&format!("{file} of {model}"), e))
        }
    };
    get("config.json")?;
    for file in TOKENIZER_FILES.into_iter().filter(|file| has(file)) {
        get(file)?;
    }
    get(weights)?;
    if weights.ends_with(".json") {
        for shard in sharded::shard_names(&folder.join(weights))? {
            if !has(&shard) {
                return Err(missing(shard));
            }
            get(&shard)?;
        }
    }
    Ok(folder)
}

fn download(api: &ApiRepo, file: &str, tell: &mut dyn FnMut(Download)) -> Result<(), ApiError> {
    struct Teller<'a> {
        file: &'a str,
        done: u64,
        total: u64,
        tell: &'a mut dyn FnMut(Download),
    }
    impl Progress for Teller<'_> {
        fn init(&mut self, size: usize, _: &str) {
            (self.done, self.total) = (0, size as u64);
        }
        fn update(&mut self, size: usize) {
            self.done += size as u64;
            (self.tell)(Download {
                file: self.file,
                done: self.done,
                total: self.total,
            });
        }
        fn finish(&mut self) {}
    }
    let teller = Teller {
        file,
        done: 0,
        total: 0,
        tell,
    };
    api.download_with_progress(file, teller).map(drop)
}

fn explain(model: &str, what: &str, settings: &HubSettings, error: ApiError) -> HubError {
    let status = match &error {
        ApiError::RequestError(e) => match e.as_ref() {
            ureq::Error::StatusCode(status) => Some(*status),
            _ => None,
        },
        _ => None,
    };
    let endpoint = settings.endpoint.clone();
    match (status, &settings.token) {
        (Some(404), _) => HubError::NoSuchModel {
            name: what.into(),
            endpoint,
        },
        (Some(401 | 403), None) => HubError::Forbidden {
            name: model.into(),
            endpoint,
            who: "strangers",
            advice: "check its name, or set HF_TOKEN to a token of your account (or run `hf auth login`)",
        },
        (Some(401 | 403), Some(_)) => HubError::Forbidden {
            name: model.into(),
            endpoint,
            who: "the holder of your token",
            advice: "check its name, that HF_TOKEN is valid, and the model's page",
        },
        _ => HubError::Unreachable {
            what: what.into(),
            endpoint,
            problem: error.to_string(),
        },
    }
}
