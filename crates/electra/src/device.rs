//! `--device`, `--precision` and `--threads`, and the backend that they name.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use electra_engine::backend::Backend;
use electra_engine::cpu::{Cpu, CpuOptions, Isa, Precision as CpuPrecision};
use electra_engine::selftest::Products;
use electra_model::files::ModelDir;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let number = match text {
            "auto" => return Ok(Device::Auto),
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        let error = || "it is auto, cpu, cuda or cuda:N".to_owned();
        number.map(Device::Cuda).ok_or_else(error)
    }
}

/// In what to compute products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16 products, the rest in single precision.
    Bf16,
    /// Single precision with products of 19 bits, on CUDA devices.
    Tf32,
    /// Inference alone: layers' products in bytes, the rest as in bf16.
    Int8,
}

/// Options of everything that computes.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(
        long,
        value_name = "DEVICE",
        default_value = "auto",
        env = "ELECTRA_DEVICE"
    )]
    pub device: Device,
    /// Precision of products [default: f32]
    #[arg(long, value_enum, env = "ELECTRA_PRECISION")]
    pub precision: Option<Precision>,
    /// Threads [default: as many as there are cores]
    #[arg(long, env = "ELECTRA_THREADS")]
    pub threads: Option<NonZeroUsize>,
}

/// Work that any backend can do.
pub trait Work {
    /// Whether it trains, which takes a precision that has gradients.
    const TRAINS: bool;
    /// Whether it says what share of a device's rate it reaches, which then is measured first.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "the CPU's rate is known")
    )]
    const RATED: bool = false;
    /// What comes of it.
    type Output;
    /// Does it.
    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<Self::Output>;
}

/// What is known of the device in use.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `f32`, `tf32`, `bf16` or `int8`, as computed.
    pub precision: &'static str,
    /// The same, as the checks of operators take it.
    pub selftest: Products,
    /// Rows for a report.
    pub environment: Vec<(String, String)>,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set, where the processor computes.
    pub isa: Option<Isa>,
    /// Operations a second of large products, where they were measured when the device was opened.
    pub measured_flops: Option<f64>,
}

impl Facts {
    /// Precision and threads, for people.
    pub fn on(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        format!("{}, {} thread{plural}", self.precision, self.threads)
    }

    /// The precision of products, as the processor's backend names it.
    pub fn products(&self) -> CpuPrecision {
        match self.precision {
            "int8" => CpuPrecision::Int8,
            "bf16" => CpuPrecision::Bf16,
            _ => CpuPrecision::F32,
        }
    }

    /// Operations a second that the device could do in products of its precision: what large ones
    /// reach, or one thread's rate, measured in a moment, times the threads. `None` where it is not
    /// known.
    pub fn peak_flops(&self) -> Option<f64> {
        if self.measured_flops.is_some() {
            return self.measured_flops;
        }
        let rate = self.isa?.peak_gflops(self.products());
        Some(rate * 1e9 * self.threads as f64)
    }
}

/// Most threads that may be asked for.
const MAX_THREADS: usize = 1024;

/// Threads asked for, or as many as there are cores.
///
/// # Errors
/// More than 1,024.
pub fn thread_count(asked: Option<NonZeroUsize>) -> Result<usize> {
    let threads = asked
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get);
    if threads > MAX_THREADS {
        bail!("--threads {threads}: at most {MAX_THREADS}");
    }
    Ok(threads)
}

/// The instruction set that `ELECTRA_ISA` names, if it is set.
///
/// # Errors
/// One that this machine has not.
pub fn asked_isa() -> Result<Option<Isa>> {
    let Ok(name) = std::env::var("ELECTRA_ISA") else {
        return Ok(None);
    };
    let isa = Isa::from_name(&name).with_context(|| {
        let known: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        format!("ELECTRA_ISA={name}: this machine has {}", known.join(", "))
    })?;
    Ok(Some(isa))
}

impl DeviceArgs {
    /// These options for a model: one that is stored in bytes is computed in bytes where nothing
    /// else is asked for, and that is said.
    pub fn for_model(&self, dir: &ModelDir) -> Self {
        let mut these = self.clone();
        if dir.quantization().is_some() && these.precision.is_none() {
            these.precision = Some(Precision::Int8);
            tell!(
                "{} is an int8 model: computing in int8; --precision says otherwise",
                dir.path().display()
            );
        }
        these
    }

    /// Opens the backend and does `work` on it.
    pub fn run<W: Work>(&self, work: W) -> Result<W::Output> {
        self.say_what_the_environment_set();
        if W::TRAINS && self.precision == Some(Precision::Int8) {
            bail!("--precision int8 serves inference; training takes f32 or bf16");
        }
        match self.device {
            Device::Cuda(number) => self.run_on_cuda(number, work),
            Device::Auto if cuda_is_there() => self.run_on_cuda(0, work),
            Device::Auto | Device::Cpu => self.run_on_cpu(work),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn run_on_cuda<W: Work>(&self, number: usize, _: W) -> Result<W::Output> {
        bail!(
            "--device cuda:{number}: this electra was built without CUDA; use --device cpu, or \
             build with `cargo build --release --features cuda`"
        )
    }

    #[cfg(feature = "cuda")]
    fn run_on_cuda<W: Work>(&self, number: usize, work: W) -> Result<W::Output> {
        use electra_engine::cuda::{self, Cuda, Precision as CudaPrecision};
        let (precision, name, products) = match self.precision.unwrap_or(Precision::F32) {
            Precision::F32 => (CudaPrecision::F32, "f32", Products::F32),
            Precision::Tf32 => (CudaPrecision::Tf32, "tf32", Products::Tf32),
            Precision::Bf16 => (CudaPrecision::Bf16, "bf16", Products::Bf16Kept),
            Precision::Int8 => {
                bail!("--precision int8: only the CPU has it; CUDA devices have bf16")
            }
        };
        // Everything that the device meets on its way comes out here.
        let done = cuda::catch(|| -> Result<W::Output> {
            let mut backend = Cuda::new(number, precision)?;
            let row = |key: &str, value: String| (key.to_owned(), value);
            let facts = Facts {
                precision: name,
                selftest: products,
                environment: vec![
                    row("device", backend.device_name()),
                    row("precision", name.to_owned()),
                    row("electra", env!("CARGO_PKG_VERSION").to_owned()),
                ],
                threads: 1,
                isa: None,
                measured_flops: W::RATED.then(|| backend.peak_flops()),
            };
            let done = work.run(&mut backend, &facts);
            for product in backend.refused_products() {
                tell!(
                    "cuBLASLt has nothing for the product {product}: electra's own kernel computed \
                     it, many times slower; please report this"
                );
            }
            done
        });
        done?
    }

    fn run_on_cpu<W: Work>(&self, work: W) -> Result<W::Output> {
        let isa = asked_isa()?;
        if let Some(isa) = isa {
            tell!("using ELECTRA_ISA={}", isa.name());
        }
        let threads = thread_count(self.threads)?;
        let mut backend = Cpu::new(CpuOptions {
            threads: Some(threads),
            precision: match self.precision.unwrap_or(Precision::F32) {
                Precision::F32 => CpuPrecision::F32,
                Precision::Bf16 => CpuPrecision::Bf16,
                Precision::Int8 => CpuPrecision::Int8,
                Precision::Tf32 => bail!("--precision tf32: only CUDA devices have it"),
            },
            isa,
        })?;
        if let Some(notice) = backend.notice() {
            tell!("{notice}");
        }
        let precision = match backend.precision() {
            CpuPrecision::F32 => "f32",
            CpuPrecision::Bf16 => "bf16",
            CpuPrecision::Int8 => "int8",
        };
        // As many as the system granted.
        let threads = backend.threads();
        let row = |key: &str, value: String| (key.to_owned(), value);
        let facts = Facts {
            precision,
            selftest: backend.products(),
            environment: vec![
                row("device", format!("cpu ({})", backend.isa().name())),
                row("threads", threads.to_string()),
                row("precision", precision.to_owned()),
                row("electra", env!("CARGO_PKG_VERSION").to_owned()),
            ],
            threads,
            isa: Some(backend.isa()),
            measured_flops: None,
        };
        let done = work.run(&mut backend, &facts)?;
        // Training names what is no number itself.
        if backend.overflowed() && !W::TRAINS {
            bail!(
                "some results are no numbers: activations were beyond 65,504, where f16 ends; use \
                 --precision f32, or ELECTRA_ISA={} with --precision bf16",
                Isa::Avx512Bf16.name()
            );
        }
        Ok(done)
    }

    fn say_what_the_environment_set(&self) {
        for name in ["ELECTRA_DEVICE", "ELECTRA_PRECISION", "ELECTRA_THREADS"] {
            if let Ok(value) = std::env::var(name) {
                tell!("{name}={value} is set and holds where no option says otherwise");
            }
        }
    }
}

/// Whether this build knows CUDA and the machine has a device. Where a driver is there and does not
/// work, says so.
fn cuda_is_there() -> bool {
    #[cfg(feature = "cuda")]
    match electra_engine::cuda::devices() {
        Ok(devices) => return !devices.is_empty(),
        Err(error) => tell!("computing on the CPU: {error}"),
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_with_a_number_or_without() {
        assert_eq!("auto".parse(), Ok(Device::Auto));
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:-1", ""] {
            let error = wrong.parse::<Device>().expect_err(wrong);
            assert!(error.contains("cuda:N"), "{error}");
        }
    }
}
