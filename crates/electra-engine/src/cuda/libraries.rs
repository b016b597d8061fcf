//! Where NVIDIA's libraries are: named folders, the system's loader, or the folders that PyTorch's
//! Python packages bring.

use super::error::CudaError;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Folders to look in first, as a list of paths.
const FOLDERS: &str = "ELECTRA_CUDA_LIBRARIES";

/// A library, its names from the newest to the oldest, and who brings it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    names: [&'static str; 2],
    package: &'static str,
    /// Folder under `nvidia/` in packages up to CUDA 12.
    folder: &'static str,
}

/// The compiler of kernels.
pub(super) const NVRTC: Wanted = Wanted {
    names: ["libnvrtc.so.13", "libnvrtc.so.12"],
    package: "nvidia-cuda-nvrtc",
    folder: "cuda_nvrtc",
};

/// Products.
#[cfg(feature = "cuda")]
pub(super) const CUBLASLT: Wanted = Wanted {
    names: ["libcublasLt.so.13", "libcublasLt.so.12"],
    package: "nvidia-cublas",
    folder: "cublas",
};

/// Loads a library. It stays loaded as long as the process runs, so that whoever asks for it by
/// name finds the same.
pub(super) fn load(wanted: &Wanted) -> Result<&'static libloading::Library, CudaError> {
    let mut searched = Vec::new();
    let mut attempt = |path: &Path| {
        // SAFETY: NVIDIA's libraries may be loaded at any time.
        match unsafe { libloading::Library::new(path) } {
            Ok(library) => Some(&*Box::leak(Box::new(library))),
            Err(error) if path.exists() => {
                searched.push(format!("{} ({error})", path.display()));
                None
            }
            Err(_) => {
                searched.push(path.display().to_string());
                None
            }
        }
    };
    let named = std::env::var_os(FOLDERS).unwrap_or_default();
    for folder in std::env::split_paths(&named) {
        for name in wanted.names {
            if let Some(library) = attempt(&folder.join(name)) {
                return Ok(library);
            }
        }
    }
    for name in wanted.names {
        if let Some(library) = attempt(Path::new(name)) {
            return Ok(library);
        }
    }
    for folder in package_folders(python_paths(), wanted) {
        for name in wanted.names {
            let path = folder.join(name);
            if path.exists()
                && let Some(library) = attempt(&path)
            {
                return Ok(library);
            }
        }
    }
    searched.push("the nvidia/ folders of the python3 on PATH".to_owned());
    Err(CudaError::NoLibrary {
        name: wanted.names[0],
        package: wanted.package,
        searched: searched.join(", "),
    })
}

/// Where packages below `paths` would have the library.
fn package_folders(paths: &[PathBuf], wanted: &Wanted) -> Vec<PathBuf> {
    let folders = ["cu13", "cu12", wanted.folder];
    let each = |path: &PathBuf| folders.map(|f| path.join("nvidia").join(f).join("lib"));
    paths.iter().flat_map(each).collect()
}

/// Where the Python on PATH looks for packages; asked once.
fn python_paths() -> &'static [PathBuf] {
    static PATHS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    PATHS.get_or_init(|| {
        ["python3", "python"]
            .into_iter()
            .find_map(|python| {
                let output = Command::new(python)
                    .args(["-c", "import sys; print('\\n'.join(sys.path))"])
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .output()
                    .ok()?;
                let text = String::from_utf8(output.stdout).ok()?;
                let paths: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
                (output.status.success() && !paths.is_empty()).then_some(paths)
            })
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_each_layout_are_looked_at() {
        let folders = package_folders(&[PathBuf::from("/site")], &NVRTC);
        let expected =
            ["cu13", "cu12", "cuda_nvrtc"].map(|f| PathBuf::from(format!("/site/nvidia/{f}/lib")));
        assert_eq!(folders, expected);
    }

    #[test]
    fn a_missing_library_is_named_with_its_package() {
        let wanted = Wanted {
            names: ["libnothing-electra.so.13", "libnothing-electra.so.12"],
            ..NVRTC
        };
        let error = load(&wanted).expect_err("there is no such library");
        let error = error.to_string();
        for part in [
            "libnothing-electra.so.13",
            "pip install nvidia-cuda-nvrtc",
            FOLDERS,
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
