//! A model by its name on the Hugging Face hub, or by its folder.
//!
//! Files go into the cache that Python's `huggingface_hub` uses, and are found there if Python
//! has fetched them. A model that is in the cache with its tokenizer is used as it is, without
//! asking whether the hub has a newer one; `owner/name@revision` asks for a certain one.

use std::path::{Path, PathBuf};

use super::model_dir::weights_in;
use super::sharded;

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor a name that the hub could have.
    #[error("there is no folder {name:?}, and it is no hub name either ({why})")]
    NotAName {
        /// What was asked for.
        name: String,
        /// What keeps it from being a name.
        why: &'static str,
    },
    /// Offline mode, and the cache lacks the model.
    #[error(
        "{name} is not in the cache {cache} and HF_HUB_OFFLINE forbids to fetch it; \
         unset HF_HUB_OFFLINE, or give the folder of a model",
        cache = cache.display()
    )]
    Offline {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub has no such model or revision.
    #[error("{endpoint} has no model {name}; check the spelling of the name and of the revision")]
    NoSuchModel {
        /// The model, with its revision.
        name: String,
        /// The hub's address.
        endpoint: String,
    },
    /// The hub wants to know who asks; it answers the same where a model does not exist.
    #[error(
        "{endpoint} does not give {name} to {who}: it does not exist, is private or must be agreed to; {advice}"
    )]
    Forbidden {
        /// The model.
        name: String,
        /// The hub's address.
        endpoint: String,
        /// With a token or without.
        who: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The repository is there and lacks a file that a model needs.
    #[error("{name} on the hub has no {file}; it has {}", present.join(", "))]
    MissingFile {
        /// The model.
        name: String,
        /// The file, or the forms of it.
        file: String,
        /// What it has.
        present: Vec<String>,
    },
    /// The hub cannot be reached or answers nonsense.
    #[error(
        "cannot fetch {what} from {endpoint}: {problem}; check the network, HF_ENDPOINT and the proxy, or give a folder"
    )]
    Unreachable {
        /// The model or one of its files.
        what: String,
        /// The hub's address.
        endpoint: String,
        /// The complaint.
        problem: String,
    },
    /// No home directory is known and no variable names the cache.
    #[error("no place for downloaded models: set HF_HOME")]
    NoCache,
    /// A fetched file is unusable.
    #[error(transparent)]
    File(#[from] super::FileError),
    /// Built without the feature `hub`.
    #[error(
        "{name} is not a folder and not in the cache, and this program was built without the feature `hub`"
    )]
    NotBuilt {
        /// The model.
        name: String,
    },
}

/// Where the hub is and where its files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// The hub's address without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--owner--name`.
    pub cache: PathBuf,
    /// The user's token.
    pub token: Option<String>,
    /// Never ask the network.
    pub offline: bool,
}

impl HubSettings {
    /// The settings that Python's library would use in the same environment: `HF_ENDPOINT`;
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `~/.cache/huggingface`; `HF_TOKEN`, else
    /// the file `HF_TOKEN_PATH` or `token` in `HF_HOME`; `HF_HUB_OFFLINE`.
    ///
    /// Errors: [`HubError::NoCache`].
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// [`HubSettings::from_env`] with the environment given as a function.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| {
            variable(name)
                .map(|v| v.trim().to_string())
                .filter(|v| !v.is_empty())
        };
        let home = set("HOME").or_else(|| set("USERPROFILE"));
        let expand = |path: String| match (path.strip_prefix("~/"), &home) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            _ => PathBuf::from(path),
        };
        let base = set("HF_HOME")
            .map(&expand)
            .or_else(|| set("XDG_CACHE_HOME").map(|c| expand(c).join("huggingface")))
            .or_else(|| {
                home.as_ref()
                    .map(|h| Path::new(h).join(".cache/huggingface"))
            });
        let cache = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map(&expand)
            .or_else(|| base.as_ref().map(|b| b.join("hub")))
            .ok_or(HubError::NoCache)?;
        // The links in the cache are made relative, for which both ends must be absolute.
        let cache = std::path::absolute(&cache).unwrap_or(cache);
        let token_file = set("HF_TOKEN_PATH")
            .map(&expand)
            .or_else(|| base.map(|b| b.join("token")));
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| {
                let text = std::fs::read_to_string(token_file?).ok()?;
                Some(text.trim().to_string()).filter(|t| !t.is_empty())
            });
        let on = |name| {
            set(name)
                .is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        Ok(Self {
            endpoint: set("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            cache,
            token,
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
        })
    }
}

/// The state of a download, for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes here.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A name on the hub: `owner/name` or `owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `owner/name`.
    pub repo: String,
    /// A branch, a tag or a commit; `main` where none is given.
    pub revision: String,
}

impl HubName {
    /// Parse a name. Errors: [`HubError::NotAName`].
    pub fn parse(name: &str) -> Result<Self, HubError> {
        let wrong = |why| HubError::NotAName {
            name: name.into(),
            why,
        };
        let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() != 2 {
            return Err(wrong("that has the form owner/name"));
        }
        if parts.iter().any(|p| p.is_empty() || p.starts_with('.')) || repo.contains("..") {
            return Err(wrong("that has the form owner/name"));
        }
        if !repo.chars().all(|c| plain(c) || c == '/') {
            return Err(wrong("only letters, digits, '-', '_' and '.' are in one"));
        }
        let revision_parts = || revision.split('/');
        if revision_parts().any(|p| p.is_empty() || p.starts_with('.'))
            || !revision.chars().all(|c| plain(c) || c == '/')
        {
            return Err(wrong("what follows '@' is no branch, tag or commit"));
        }
        Ok(Self {
            repo: repo.into(),
            revision: revision.into(),
        })
    }

    /// The folder in the cache of the revision last fetched, if it was.
    fn snapshot(&self, cache: &Path) -> Option<PathBuf> {
        let repo = cache.join(format!("models--{}", self.repo.replace('/', "--")));
        let commit = std::fs::read_to_string(repo.join("refs").join(&self.revision))
            .map_or_else(|_| self.revision.clone(), |text| text.trim().to_string());
        if commit.is_empty() || commit.contains(['/', '\\']) || commit.starts_with('.') {
            return None;
        }
        Some(repo.join("snapshots").join(commit)).filter(|path| path.is_dir())
    }
}

/// What of a model is in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Held {
    Nothing,
    /// Configuration and weights.
    Model,
    /// And a tokenizer.
    Everything,
}

fn held(folder: &Path) -> Held {
    let has = |name: &str| folder.join(name).exists();
    let weights = weights_in(folder).is_ok_and(|file| {
        file.extension().is_none_or(|e| e != "json")
            || sharded::shard_names(&file).is_ok_and(|names| names.iter().all(|n| has(n)))
    });
    match has("config.json") && weights {
        false => Held::Nothing,
        true if has("tokenizer.json") || has("vocab.txt") => Held::Everything,
        true => Held::Model,
    }
}

/// The folder of `model`: itself where it is one; else the hub's model of that name, from the
/// cache or fetched into it. `progress` is told of every piece that arrives.
///
/// Errors say what to do; see [`HubError`].
pub fn resolve(
    model: &str,
    settings: &HubSettings,
    progress: &mut dyn FnMut(Download),
) -> Result<PathBuf, HubError> {
    if Path::new(model).exists() {
        return Ok(model.into());
    }
    let name = HubName::parse(model)?;
    let cached = name
        .snapshot(&settings.cache)
        .map(|path| (held(&path), path));
    let usable = match cached {
        Some((Held::Everything, path)) => return Ok(path),
        Some((Held::Model, path)) => Some(path),
        _ => None,
    };
    if settings.offline {
        return usable.ok_or_else(|| HubError::Offline {
            name: model.into(),
            cache: settings.cache.clone(),
        });
    }
    match (fetch(model, &name, settings, progress), usable) {
        // Without a network, what is here is better than nothing.
        (Err(HubError::Unreachable { .. } | HubError::NotBuilt { .. }), Some(path)) => Ok(path),
        (result, _) => result,
    }
}

#[cfg(feature = "hub")]
use super::hub_fetch::fetch;

#[cfg(not(feature = "hub"))]
fn fetch(
    model: &str,
    _: &HubName,
    _: &HubSettings,
    _: &mut dyn FnMut(Download),
) -> Result<PathBuf, HubError> {
    Err(HubError::NotBuilt { name: model.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        let find = |name: &str| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v.to_string())
        };
        HubSettings::from_variables(find).unwrap()
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[_]| settings(variables).cache;
        let home = ("HOME", "/home/a");
        assert_eq!(cache(&[home]), Path::new("/home/a/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[home, ("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[home, ("HF_HOME", "~/hf")]),
            Path::new("/home/a/hf/hub")
        );
        assert_eq!(
            cache(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]),
            Path::new("/c")
        );
        assert!(matches!(
            HubSettings::from_variables(|_| None),
            Err(HubError::NoCache)
        ));
    }

    #[test]
    fn token_endpoint_and_offline_mode_are_taken_from_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from_file\n").unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        let plain = settings(&[home]);
        assert_eq!(plain.token.as_deref(), Some("from_file"));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert!(!plain.offline);
        let set = settings(&[
            home,
            ("HF_TOKEN", " t "),
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(
            (set.token.as_deref(), set.endpoint.as_str(), set.offline),
            (Some("t"), "http://mirror", true)
        );
    }

    #[test]
    fn names_are_parsed_and_paths_are_not_taken_for_names() {
        let name = HubName::parse("google/electra-small-discriminator@refs/pr/1").unwrap();
        assert_eq!(name.repo, "google/electra-small-discriminator");
        assert_eq!(name.revision, "refs/pr/1");
        assert_eq!(HubName::parse("a/b").unwrap().revision, "main");
        for bad in [
            "model", "./a", "../a", "/a/b", "a/b/c", "a/../b", "a b/c", "a/b@../x", "a/b@", "a/",
            "",
        ] {
            let message = HubName::parse(bad).unwrap_err().to_string();
            assert!(message.contains("no folder"), "{bad}: {message}");
        }
    }
}
