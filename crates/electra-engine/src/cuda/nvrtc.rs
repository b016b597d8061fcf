//! Kernels compiled when first used, and kept on disk by architecture and source.

use super::error::CudaError;
use super::libraries::{self, NVRTC};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// NVRTC's word for an architecture or option that it does not know.
const INVALID_OPTION: c_int = 5;

/// The compiler, loaded.
pub(super) struct Nvrtc {
    library: &'static libloading::Library,
}

/// Why a program was not compiled.
#[derive(Debug)]
enum Failure {
    Option,
    Log(String),
}

impl Nvrtc {
    pub(super) fn load() -> Result<Nvrtc, CudaError> {
        let library = libraries::load(&NVRTC)?;
        Ok(Nvrtc { library })
    }

    fn symbol<T: Copy>(&self, name: &str) -> Result<T, String> {
        // SAFETY: the types above are those of nvrtc.h.
        let symbol = unsafe { self.library.get::<T>(name.as_bytes()) };
        symbol.map(|s| *s).map_err(|e| e.to_string())
    }

    /// Major and minor version.
    pub(super) fn version(&self) -> Result<(i32, i32), String> {
        let (mut major, mut minor) = (0, 0);
        let version = self.symbol::<Version>("nvrtcVersion")?;
        // SAFETY: two places for numbers.
        match unsafe { version(&mut major, &mut minor) } {
            0 => Ok((major, minor)),
            code => Err(format!("nvrtcVersion returned {code}")),
        }
    }

    /// Compiles `source` for `sm_MM`, to machine code; where the compiler does not know it yet, to
    /// PTX for `compute_80`, which the driver translates.
    pub(super) fn compile(&self, source: &str, architecture: u32) -> Result<Vec<u8>, CudaError> {
        let error = |log: String| CudaError::Compile {
            architecture: format!("sm_{architecture}"),
            log,
        };
        match self.run(source, &format!("sm_{architecture}"), "nvrtcGetCUBIN") {
            Ok(image) => Ok(image),
            Err(Failure::Option) if architecture > 80 => {
                match self.run(source, "compute_80", "nvrtcGetPTX") {
                    Ok(image) => Ok(image),
                    Err(Failure::Log(log)) => Err(error(log)),
                    Err(Failure::Option) => Err(error("an option is not known".into())),
                }
            }
            Err(Failure::Option) => Err(error("the compiler does not know it".into())),
            Err(Failure::Log(log)) => Err(error(log)),
        }
    }

    fn run(&self, source: &str, target: &str, output: &str) -> Result<Vec<u8>, Failure> {
        let create = self.symbol::<Create>("nvrtcCreateProgram")?;
        let compile = self.symbol::<Compile>("nvrtcCompileProgram")?;
        let destroy = self.symbol::<Destroy>("nvrtcDestroyProgram")?;
        let text = |s: &str| CString::new(s).map_err(|e| e.to_string());
        let (source, name) = (text(source)?, text("electra.cu")?);
        let options = [format!("--gpu-architecture={target}"), "--std=c++17".into()];
        let options = [text(&options[0])?, text(&options[1])?];
        let options = options.each_ref().map(|o| o.as_ptr());
        let mut program: Program = ptr::null_mut();
        // SAFETY: strings end with zero and live long enough; there are no headers.
        unsafe {
            let code = create(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            );
            if code != 0 {
                return Err(format!("nvrtcCreateProgram returned {code}").into());
            }
            let code = compile(program, options.len() as c_int, options.as_ptr());
            let result = match code {
                0 => self.output(program, output).map_err(Failure::from),
                INVALID_OPTION => Err(Failure::Option),
                code => {
                    let log = self.output(program, "nvrtcGetProgramLog")?;
                    let log = String::from_utf8_lossy(&log);
                    Err(Failure::Log(format!("code {code}\n{log}")))
                }
            };
            destroy(&mut program);
            result
        }
    }

    /// What `nvrtcGet…` has to say.
    fn output(&self, program: Program, name: &str) -> Result<Vec<u8>, String> {
        let size = self.symbol::<Size>(&format!("{name}Size"))?;
        let get = self.symbol::<Text>(name)?;
        let mut bytes = 0;
        // SAFETY: the program is one, and the room is as large as it says.
        unsafe {
            let code = size(program, &mut bytes);
            if code != 0 {
                return Err(format!("{name}Size returned {code}"));
            }
            let mut out = vec![0u8; bytes];
            match get(program, out.as_mut_ptr().cast()) {
                0 => Ok(out),
                code => Err(format!("{name} returned {code}")),
            }
        }
    }
}

impl From<String> for Failure {
    fn from(log: String) -> Failure {
        Failure::Log(log)
    }
}

/// FNV-1a in 64 bits: names a file, guards nothing.
fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().chain(&[0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Where compiled kernels are kept: the user's folder for such things.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) fn cache_folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("XDG_CACHE_HOME") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    Some(folder.join("electra"))
}

/// Kernels compiled for an architecture, from `folder` if they are there. `usable` says whether
/// the device takes an image: a file that was cut off is made anew.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) fn image<T>(
    folder: Option<PathBuf>,
    source: &str,
    architecture: u32,
    mut usable: impl FnMut(&[u8]) -> Result<T, CudaError>,
) -> Result<T, CudaError> {
    let nvrtc = Nvrtc::load()?;
    let version = format!("{:?}", nvrtc.version());
    let key = hash(&[source.as_bytes(), version.as_bytes()]);
    let path = folder.map(|f| f.join(format!("kernels-sm_{architecture}-{key:016x}.bin")));
    if let Some(path) = &path
        && let Ok(image) = std::fs::read(path)
        && let Ok(module) = usable(&image)
    {
        return Ok(module);
    }
    let image = nvrtc.compile(source, architecture)?;
    if let Some(path) = &path {
        // Without a cache the next run compiles again, which is no error.
        let _ = write_whole(path, &image);
    }
    usable(&image)
}

/// Writes aside and renames, so that nobody reads half a file.
fn write_whole(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&aside, bytes)?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::super::kernels::{KERNELS, program};
    use super::*;

    /// The compiler, or `None` with the reason printed; with `CI=true` a missing one fails.
    fn nvrtc() -> Option<Nvrtc> {
        match Nvrtc::load() {
            Ok(nvrtc) => Some(nvrtc),
            Err(error) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "{error}");
                println!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn all_sources_compile_for_each_architecture() {
        let Some(nvrtc) = nvrtc() else { return };
        for architecture in [80, 90] {
            let image = match nvrtc.compile(&program(), architecture) {
                Ok(image) => image,
                Err(error) => panic!("{error}"),
            };
            for kernel in KERNELS {
                let name = kernel.name.as_bytes();
                assert!(
                    image.windows(name.len()).any(|w| w == name),
                    "{} is not in the image for sm_{architecture}",
                    kernel.name
                );
            }
        }
    }

    #[test]
    fn a_mistake_is_told_with_file_and_line() {
        let Some(nvrtc) = nvrtc() else { return };
        let source = "#line 7 \"norm.cu\"\nextern \"C\" __global__ void f() { oops; }\n";
        let error = nvrtc.compile(source, 90).expect_err("it does not compile");
        let error = error.to_string();
        assert!(
            error.contains("norm.cu(7)") && error.contains("oops"),
            "{error}"
        );
    }

    #[test]
    fn a_compiled_image_is_kept_and_a_damaged_one_made_anew() {
        let Some(_) = nvrtc() else { return };
        let folder = std::env::temp_dir().join(format!("electra-kernels-{}", std::process::id()));
        let source = "extern \"C\" __global__ void f(float* x) { x[0] = 1.0f; }";
        let get = || {
            image(Some(folder.clone()), source, 80, |bytes| {
                match bytes.starts_with(b"\x7fELF") {
                    true => Ok(bytes.to_vec()),
                    false => Err(CudaError::NoDriver),
                }
            })
        };
        let first = get().expect("it compiles");
        let files: Vec<_> = std::fs::read_dir(&folder)
            .expect("the folder")
            .map(|f| f.expect("an entry").path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::write(&files[0], b"half").expect("written");
        assert_eq!(get().expect("it compiles again"), first);
        assert_eq!(std::fs::read(&files[0]).expect("there again"), first);
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
