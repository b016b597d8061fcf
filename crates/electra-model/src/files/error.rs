//! What can be wrong with a model's files, in words that say where and what to do.

use std::path::{Path, PathBuf};

use crate::config::ConfigError;

/// What can be wrong with a model's files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file is cut short or its parts contradict each other.
    #[error("{path} is damaged: {problem}; copy or download it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        problem: String,
    },
    /// The file is whole but of a kind that is not read.
    #[error("{path} cannot be used: {problem}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is and what to do.
        problem: String,
    },
    /// The folder holds no model.
    #[error("{path} is no model directory: {problem}", path = path.display())]
    NoModel {
        /// The folder.
        path: PathBuf,
        /// What is missing and what is there.
        problem: String,
    },
    /// Tensors that the model needs are not in the file.
    #[error("{path} lacks {}", listed(names, "tensor"), path = path.display())]
    MissingTensors {
        /// The file or folder.
        path: PathBuf,
        /// The names, in the model's order.
        names: Vec<String>,
    },
    /// A tensor has another shape than the model.
    #[error(
        "{path}: tensor {tensor} has shape {found:?} but config.json makes it {wanted:?}; \
         the weights and the config.json belong to different models",
        path = path.display()
    )]
    Shape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape by the configuration.
        wanted: Vec<usize>,
    },
    /// A tensor holds NaN or an infinity.
    #[error(
        "{path}: tensor {tensor} holds {value} at element {index}; \
         its training diverged or the file was altered: use another checkpoint",
        path = path.display()
    )]
    NotFinite {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such element, counted row-major.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A model of one kind was given where another is needed.
    #[error("{path} holds {holds}, not {wanted}: {advice}", path = path.display())]
    WrongKind {
        /// The folder.
        path: PathBuf,
        /// The kind it holds, with its article.
        holds: String,
        /// The kind that was needed, with its article.
        wanted: String,
        /// What to use instead.
        advice: String,
    },
    /// The caller's buffer does not fit the tensor; a mistake in the program.
    #[error("{path}: tensor {tensor} has {found} elements but the buffer has {wanted}", path = path.display())]
    BufferSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Elements in the file.
        found: usize,
        /// Elements in the buffer.
        wanted: usize,
    },
}

impl FileError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action: "read",
            path,
            source,
        }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action: "write",
            path,
            source,
        }
    }

    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn unsupported(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// `"tensor a"`, `"3 tensors: a, b, c"`, with at most eight names.
pub(crate) fn listed(names: &[String], noun: &str) -> String {
    const SHOWN: usize = 8;
    match names {
        [one] => format!("{noun} {one}"),
        _ => {
            let rest = names.len().saturating_sub(SHOWN);
            let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>();
            let more = if rest > 0 {
                format!(" and {rest} more")
            } else {
                String::new()
            };
            format!("{} {noun}s: {}{more}", names.len(), shown.join(", "))
        }
    }
}
