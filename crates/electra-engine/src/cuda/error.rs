//! What can go wrong with a device.

/// Why a device is not there, or what it failed at.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// This machine has no NVIDIA driver.
    #[error(
        "there is no NVIDIA driver on this machine (libcuda.so.1 was not found); use --device cpu"
    )]
    NoDriver,
    /// The driver is there and does not work.
    #[error("the NVIDIA driver does not start: {0}")]
    DriverFails(String),
    /// There are fewer devices.
    #[error("there is no device cuda:{asked}: this machine has {count}, counted from 0")]
    NoDevice {
        /// Number asked for.
        asked: usize,
        /// How many there are.
        count: usize,
    },
    /// The device is older than the kernels.
    #[error("{name} has compute capability {major}.{minor}; 8.0 is the least that works here")]
    TooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        major: u32,
        /// Its second part.
        minor: u32,
    },
    /// A library is missing.
    #[error(
        "{name} was not found; install it (`pip install {package}`, or PyTorch with CUDA, which \
         brings it) and name its folder in ELECTRA_CUDA_LIBRARIES or LD_LIBRARY_PATH. Looked in: \
         {searched}"
    )]
    NoLibrary {
        /// File name.
        name: &'static str,
        /// Python package that brings it.
        package: &'static str,
        /// Where it was looked for.
        searched: String,
    },
    /// The kernels do not compile.
    #[error("the kernels do not compile for {architecture}: {log}")]
    Compile {
        /// The device's architecture.
        architecture: String,
        /// The compiler's words.
        log: String,
    },
    /// No memory is left on the device.
    #[error(
        "out of memory on {device}: {} asked for, {} in use by this process, {} of {} free; lower \
         the number of tokens a batch (train_batch_size or max_seq_length), or raise \
         gradient_accumulation_steps, which cuts a batch into parts and changes nothing else, or set \
         gradient_checkpointing=true, which takes more time and changes nothing else",
        size(*.asked), size(*.used), size(*.free), size(*.total)
    )]
    OutOfMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        asked: usize,
        /// Bytes that this process has on the device.
        used: usize,
        /// Bytes free.
        free: usize,
        /// Bytes that the device has.
        total: usize,
    },
    /// A call of the driver or of a library failed.
    #[error("{what} failed on {device}: {why}")]
    Call {
        /// The device.
        device: String,
        /// What was called.
        what: String,
        /// What came back.
        why: String,
    },
}

/// Bytes for people.
fn size(bytes: usize) -> String {
    match bytes {
        0..0x10_0000 => format!("{bytes} bytes"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
        _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// Ends an operator that cannot go on. The contract's methods return nothing, so the error is
/// unwound, without a panic's message, to [`catch`].
pub(super) fn fail(error: CudaError) -> ! {
    std::panic::resume_unwind(Box::new(error))
}

/// Does `work` and returns the device's error if it met one. Other panics go on.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, CudaError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|payload| match payload
        .downcast::<CudaError>(
    ) {
        Ok(error) => *error,
        Err(payload) => std::panic::resume_unwind(payload),
    })
}

/// Unwraps what a device returned.
pub(super) trait OrFail<T> {
    fn or_fail(self) -> T;
}

impl<T> OrFail<T> for Result<T, CudaError> {
    fn or_fail(self) -> T {
        self.unwrap_or_else(|error| fail(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_says_how_much_and_what_to_lower() {
        let fails = || -> u32 {
            fail(CudaError::OutOfMemory {
                device: "cuda:0".into(),
                asked: 3 << 30,
                used: 5 << 20,
                free: 1 << 30,
                total: 4 << 30,
            })
        };
        let error = catch(fails).expect_err("it fails");
        let error = error.to_string();
        for part in [
            "3.00 GiB asked",
            "5.0 MiB in use",
            "1.00 GiB of 4.00 GiB",
            "train_batch_size",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
