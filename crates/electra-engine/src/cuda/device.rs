//! What the backend needs of a device: memory, launches and products.
//!
//! [`driver`](super::driver) is the real one. Tests run the same kernels on the host
//! ([`emulator`](super::emulator)).

use super::error::{CudaError, OrFail};
use super::kernels::{Mat, Ptr, Shape};
use std::ffi::c_void;
use std::rc::Rc;
use std::time::Duration;

/// `c = a b + bias`, or `c += a b`, all row-major; c is `[m, n]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// `[m, k]`, or `[k, m]` where transposed.
    pub(super) a: Mat,
    pub(super) a_transposed: bool,
    /// `[k, n]`, or `[n, k]` where transposed.
    pub(super) b: Mat,
    pub(super) b_transposed: bool,
    pub(super) c: Mat,
    pub(super) accumulate: bool,
    /// `[n]` in f32, and the same in bf16 where there is one.
    pub(super) bias: Option<(Ptr<f32>, Ptr<u16>)>,
}

/// A device. Calls are in order; uploads and downloads wait for what was launched before.
pub(super) trait Device {
    /// Its name, for messages.
    fn name(&self) -> String;
    /// New memory, whose values are anything.
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Gives memory back.
    fn free(&self, address: u64, bytes: usize);
    /// Sets bytes to zero.
    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError>;
    /// Copies to the device.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), CudaError>;
    /// Copies from the device.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), CudaError>;
    /// Copies on the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError>;
    /// Launches kernel number `kernel` of [`KERNELS`](super::kernels::KERNELS).
    fn launch(
        &self,
        kernel: usize,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError>;
    /// Computes a product, or returns false if it has nothing for the shape and types.
    fn product(&self, product: &Product) -> Result<bool, CudaError>;
    /// The products that it had nothing for, for people.
    fn refused(&self) -> Vec<String> {
        Vec::new()
    }
    /// Waits for all that was launched.
    fn wait(&self) -> Result<(), CudaError> {
        Ok(())
    }
    /// The device's own time of each kernel and kind of product since the last call, which waits
    /// for them. The first call begins.
    fn times(&self) -> Result<Vec<(&'static str, Duration)>, CudaError> {
        Ok(Vec::new())
    }
}

/// Memory on a device, given back when dropped.
pub struct Memory {
    device: Rc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// `bytes` zeros.
    pub(super) fn zeroed(device: &Rc<dyn Device>, bytes: usize) -> Memory {
        let memory = Memory::raw(device, bytes);
        if bytes > 0 {
            device.clear(memory.address, bytes).or_fail();
        }
        memory
    }

    /// `bytes` of anything.
    pub(super) fn raw(device: &Rc<dyn Device>, bytes: usize) -> Memory {
        let address = match bytes {
            0 => 0,
            bytes => device.allocate(bytes).or_fail(),
        };
        Memory {
            device: Rc::clone(device),
            address,
            bytes,
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn ptr<T>(&self) -> Ptr<T> {
        Ptr::new(self.address)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.device.free(self.address, self.bytes);
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.address)
    }
}

/// The bytes of plain numbers.
pub(super) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding and any bytes of theirs may be read.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of plain numbers, to write to.
pub(super) fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes make a `Plain` value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Types without padding for which any bytes are a value.
///
/// # Safety
///
/// Both must hold.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for f64 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: three words and a double word, without padding.
unsafe impl Plain for super::kernels::Chunk {}
