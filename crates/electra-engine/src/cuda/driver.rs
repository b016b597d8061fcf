//! A real device, through the driver that is on the machine.

use super::device::{Device, Product};
use super::error::CudaError;
use super::kernels::{self, KERNELS, Shape};
use super::nvrtc;
use super::products::Products;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_void};
use std::time::Duration;

/// A device of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: usize,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// Every device of this machine.
///
/// # Errors
///
/// No driver, or one that does not start.
pub fn devices() -> Result<Vec<CudaDevice>, CudaError> {
    start()?;
    let count = result::device::get_count().map_err(|e| CudaError::DriverFails(name_of(&e)))?;
    (0..count).map(describe).collect()
}

fn name_of(error: &DriverError) -> String {
    let text = error.error_string().ok().map(|s| s.to_string_lossy());
    format!("{:?} ({})", error.0, text.unwrap_or_default())
}

fn start() -> Result<(), CudaError> {
    // SAFETY: only looks for the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match result::init() {
        Ok(()) => Ok(()),
        // A driver without devices: none are counted.
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(CudaError::NoDevice { asked: 0, count: 0 })
        }
        Err(error) => Err(CudaError::DriverFails(name_of(&error))),
    }
}

fn describe(ordinal: i32) -> Result<CudaDevice, CudaError> {
    use sys::CUdevice_attribute::*;
    let error = |e: DriverError| CudaError::DriverFails(name_of(&e));
    let device = result::device::get(ordinal).map_err(error)?;
    // SAFETY: the device is one that the driver just named.
    unsafe {
        let attribute = |which| {
            result::device::get_attribute(device, which)
                .map(|value| value as u32)
                .map_err(error)
        };
        Ok(CudaDevice {
            ordinal: ordinal as usize,
            name: result::device::get_name(device).map_err(error)?,
            capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            memory: result::device::total_mem(device).map_err(error)?,
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        })
    }
}

/// Memory without setting an attribute of the kernel.
const PLAIN_SHARED: u32 = 48 << 10;

/// One device with one stream, on which everything happens in order.
pub(super) struct Driver {
    facts: CudaDevice,
    handle: sys::CUdevice,
    stream: sys::CUstream,
    module: sys::CUmodule,
    functions: Vec<sys::CUfunction>,
    /// Dynamic shared memory that each kernel may take so far.
    shared: RefCell<Vec<u32>>,
    used: Cell<usize>,
    products: Option<Products>,
    /// Once times are asked for: what was launched since, with an event before and one after it.
    launched: RefCell<Option<Vec<Launched>>>,
}

/// Something that was launched, between two events.
struct Launched {
    name: &'static str,
    begin: sys::CUevent,
    end: sys::CUevent,
}

impl Driver {
    /// Opens device `ordinal`, with its kernels and products.
    pub(super) fn open(ordinal: usize, tf32: bool) -> Result<Driver, CudaError> {
        start()?;
        let count = result::device::get_count().map_err(|e| CudaError::DriverFails(name_of(&e)))?;
        if ordinal >= count as usize {
            return Err(CudaError::NoDevice {
                asked: ordinal,
                count: count as usize,
            });
        }
        let facts = describe(ordinal as i32)?;
        let (major, minor) = facts.capability;
        if major < 8 {
            let name = facts.name;
            return Err(CudaError::TooOld { name, major, minor });
        }
        let failed = |what: &str, error: DriverError| CudaError::Call {
            device: format!("cuda:{ordinal}"),
            what: what.to_owned(),
            why: name_of(&error),
        };
        let handle = result::device::get(ordinal as i32).map_err(|e| failed("opening it", e))?;
        // SAFETY: the handle is the device's; the context is released when this is dropped.
        let stream = unsafe {
            let context =
                result::primary_ctx::retain(handle).map_err(|e| failed("its context", e))?;
            result::ctx::set_current(context).map_err(|e| failed("its context", e))?;
            result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(|e| failed("a stream", e))?
        };
        let module = nvrtc::image(
            nvrtc::cache_folder(),
            &kernels::program(),
            major * 10 + minor,
            |image| {
                // PTX, unlike machine code, must end with a zero; one more harms neither.
                let mut image = image.to_vec();
                image.push(0);
                // SAFETY: an image as the compiler made it.
                unsafe { result::module::load_data(image.as_ptr().cast()) }
                    .map_err(|e| failed("loading the kernels", e))
            },
        )?;
        let mut functions = Vec::with_capacity(KERNELS.len());
        for kernel in KERNELS {
            let name = CString::new(kernel.name).expect("a name without zeros");
            // SAFETY: the module is loaded.
            let function = unsafe { result::module::get_function(module, name) };
            functions.push(function.map_err(|e| failed(kernel.name, e))?);
        }
        let mut driver = Driver {
            facts,
            handle,
            stream,
            module,
            shared: RefCell::new(vec![PLAIN_SHARED; functions.len()]),
            functions,
            used: Cell::new(0),
            products: None,
            launched: RefCell::default(),
        };
        let workspace = driver.allocate(Products::WORKSPACE)?;
        let label = format!("cuda:{ordinal}");
        driver.products = Some(Products::new(label, stream.cast(), workspace, tf32)?);
        Ok(driver)
    }

    fn call<T>(&self, what: &str, result: Result<T, DriverError>) -> Result<T, CudaError> {
        result.map_err(|error| CudaError::Call {
            device: self.name(),
            what: what.to_owned(),
            why: name_of(&error),
        })
    }
}

impl Driver {
    /// Does `run`, which launches something, between two events if times are asked for.
    fn between<T>(
        &self,
        name: &'static str,
        run: impl FnOnce() -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        if self.launched.borrow().is_none() {
            return run();
        }
        let mark = || {
            let made = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let event = self.call("an event", made)?;
            // SAFETY: event and stream live.
            self.call("an event", unsafe {
                result::event::record(event, self.stream)
            })?;
            Ok(event)
        };
        let begin = mark()?;
        let done = run()?;
        let end = mark()?;
        if let Some(launched) = self.launched.borrow_mut().as_mut() {
            launched.push(Launched { name, begin, end });
        }
        Ok(done)
    }

    /// How long one took, of which nothing runs any more.
    fn taken(&self, launched: &Launched) -> Result<Duration, CudaError> {
        let Launched { begin, end, .. } = *launched;
        // SAFETY: both events were recorded, and are destroyed once.
        let ms = unsafe {
            let ms = result::event::elapsed(begin, end);
            let _ = result::event::destroy(begin);
            let _ = result::event::destroy(end);
            ms
        };
        let seconds = self.call("reading an event", ms)? / 1e3;
        Ok(Duration::from_secs_f32(seconds.max(0.0)))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let products = self.products.take();
        // Events are destroyed as their times are read.
        let _ = self.times();
        // What fails here leaves nothing to be done.
        // SAFETY: nothing of the device is used after this; memory was given back before, as
        // every piece holds on to its device.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            if let Some(products) = products {
                let workspace = products.workspace();
                drop(products);
                self.free(workspace, Products::WORKSPACE);
            }
            let _ = result::module::unload(self.module);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.handle);
        }
    }
}

impl Device for Driver {
    fn name(&self) -> String {
        format!("cuda:{} ({})", self.facts.ordinal, self.facts.name)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        // SAFETY: the context is current on the one thread that has this device.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => {
                self.used.set(self.used.get() + bytes);
                Ok(address)
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.call("asking for memory", result::mem_get_info())?;
                Err(CudaError::OutOfMemory {
                    device: self.name(),
                    asked: bytes,
                    used: self.used.get(),
                    free,
                    total,
                })
            }
            Err(error) => self.call("allocating memory", Err(error)),
        }
    }

    fn free(&self, address: u64, bytes: usize) {
        self.used.set(self.used.get() - bytes);
        // The driver waits for what still uses it. A device that has failed has failed elsewhere.
        // SAFETY: `allocate` gave it, and it is freed once.
        let _ = unsafe { result::free_sync(address) };
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: within memory of `allocate`.
        let done = unsafe { result::memset_d8_async(address, 0, bytes, self.stream) };
        self.call("clearing memory", done)
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        // Pageable memory is staged by the driver before this returns.
        // SAFETY: within memory of `allocate`.
        let done = unsafe { result::memcpy_htod_async(to, bytes, self.stream) };
        self.call("copying to the device", done)
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: within memory of `allocate`; it is waited for before `bytes` is read.
        let done = unsafe {
            result::memcpy_dtoh_async(bytes, from, self.stream)
                .and_then(|()| result::stream::synchronize(self.stream))
        };
        self.call("copying from the device", done)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: both within memory of `allocate`.
        let done = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) };
        self.call("copying on the device", done)
    }

    fn launch(
        &self,
        kernel: usize,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let function = self.functions[kernel];
        let mut shared = self.shared.borrow_mut();
        if shape.shared > shared[kernel] {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of our module.
            let done = unsafe {
                result::function::set_function_attribute(
                    function,
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shape.shared as i32,
                )
            };
            self.call(KERNELS[kernel].name, done)?;
            shared[kernel] = shape.shared;
        }
        let [x, y, z] = shape.grid;
        let name = KERNELS[kernel].name;
        self.between(name, || {
            // SAFETY: number and types of the arguments are those of the kernel, by `kernels!` and
            // its test; what they point to was checked by the operator.
            let done = unsafe {
                result::launch_kernel(
                    function,
                    (x, y, z),
                    (shape.threads, 1, 1),
                    shape.shared,
                    self.stream,
                    arguments,
                )
            };
            self.call(name, done)
        })
    }

    fn product(&self, product: &Product) -> Result<bool, CudaError> {
        let Some(products) = &self.products else {
            return Ok(false);
        };
        let name = match (product.a_transposed, product.b_transposed) {
            (false, true) => "product x Wᵀ",
            (false, false) => "product dy W",
            (true, _) => "product dyᵀ x",
        };
        self.between(name, || products.run(product))
    }

    fn refused(&self) -> Vec<String> {
        self.products
            .as_ref()
            .map_or_else(Vec::new, Products::refused)
    }

    fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        let done = unsafe { result::stream::synchronize(self.stream) };
        self.call("waiting for the device", done)
    }

    fn times(&self) -> Result<Vec<(&'static str, Duration)>, CudaError> {
        self.wait()?;
        let launched = self.launched.borrow_mut().replace(Vec::new());
        let mut times: Vec<(&'static str, Duration)> = Vec::new();
        for one in launched.into_iter().flatten() {
            let taken = self.taken(&one)?;
            match times.iter_mut().find(|(name, _)| *name == one.name) {
                Some((_, time)) => *time += taken,
                None => times.push((one.name, taken)),
            }
        }
        Ok(times)
    }
}
