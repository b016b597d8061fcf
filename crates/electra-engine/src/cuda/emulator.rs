//! The kernels on the host, for tests (of other crates with the feature `cuda-emulator`): the same sources, compiled by the system's C++ compiler
//! with `emulator.h`.

use super::device::{Device, Product};
use super::error::CudaError;
use super::kernels::{KERNELS, Kind, Mat, SOURCES, Shape};
use std::alloc::Layout;
use std::cell::Cell;
use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

/// Runs a kernel: number, arguments, grid, threads, shared bytes, order.
type Run = unsafe extern "C" fn(u32, *mut *mut c_void, *const u32, u32, usize, bool);

/// Which of its threads and blocks run first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Rising,
    Falling,
}

/// The compiled kernels, or why there are none.
static LIBRARY: LazyLock<Result<libloading::Library, String>> = LazyLock::new(compile);
/// Which kernels have run in this process.
static LAUNCHED: [AtomicBool; KERNELS.len()] = [const { AtomicBool::new(false) }; KERNELS.len()];
/// Kernels keep their state in the library: one at a time.
static ONE: Mutex<()> = Mutex::new(());

/// The C++ program: sources, and a table of kernels.
fn program() -> String {
    let mut text = format!(
        "#line 1 \"emulator.h\"\n{}\n",
        include_str!("kernels/emulator.h")
    );
    for (name, source) in SOURCES {
        text.push_str(&format!("#line 1 \"{name}\"\n{source}\n"));
    }
    text.push_str(
        "static_assert(sizeof(Mat) == 16 && sizeof(DropSpec) == 40 && sizeof(Chunk) == 24, \"\");\n\
         extern \"C\" void emulate(unsigned kernel, void** arguments, const unsigned* grid,\n\
         unsigned threads, size_t shared, bool falling) {\n\
         emulator::arguments = arguments;\nswitch (kernel) {\n",
    );
    for (index, kernel) in KERNELS.iter().enumerate() {
        let name = kernel.name;
        text.push_str(&format!(
            "case {index}: emulator::body = [](void** a) {{ emulator::call({name}, a); }}; break;\n"
        ));
    }
    text.push_str(
        "}\nemulator::run_grid({grid[0], grid[1], grid[2]}, threads, shared, falling);\n}\n",
    );
    text
}

fn compile() -> Result<libloading::Library, String> {
    let dir = std::env::temp_dir().join(format!("electra-emulator-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let (source, library): (PathBuf, PathBuf) = (dir.join("kernels.cpp"), dir.join("kernels.so"));
    std::fs::write(&source, program()).map_err(|e| e.to_string())?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-shared",
            "-fPIC",
            "-w",
            "-ffp-contract=off",
        ])
        .arg("-o")
        .arg(&library)
        .arg(&source)
        .output()
        .map_err(|e| format!("there is no C++ compiler ({compiler}): {e}"))?;
    if !output.status.success() {
        panic!("{}", String::from_utf8_lossy(&output.stderr));
    }
    // SAFETY: the library is our own and has no initializer of its own.
    let loaded = unsafe { libloading::Library::new(&library) }.map_err(|e| e.to_string());
    let _ = std::fs::remove_dir_all(&dir);
    loaded
}

/// The host as a device.
pub(super) struct Emulator {
    order: Order,
    /// Whether products are computed here, or left to the kernel.
    products: bool,
    pub(super) in_use: Cell<usize>,
    /// Bytes that may be in use.
    pub(super) capacity: Cell<usize>,
}

impl Emulator {
    /// `None`, with the reason printed, where there is no C++ compiler; with `CI=true` that fails.
    pub(super) fn new(order: Order, products: bool) -> Option<Emulator> {
        if let Err(reason) = &*LIBRARY {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}");
            println!("skipped: {reason}");
            return None;
        }
        Some(Emulator {
            order,
            products,
            in_use: Cell::new(0),
            capacity: Cell::new(usize::MAX),
        })
    }
}

/// Kernels that have not run in this process.
#[cfg(test)]
pub(super) fn never_launched() -> Vec<&'static str> {
    let names = KERNELS.iter().zip(&LAUNCHED);
    let never = names.filter(|(_, launched)| !launched.load(Ordering::Relaxed));
    never.map(|(kernel, _)| kernel.name).collect()
}

/// Memory ends where a page without access begins, so that what goes beyond it is seen.
const PAGE: usize = 4096;

fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(16)
}

unsafe extern "C" {
    fn mprotect(address: *mut c_void, bytes: usize, protection: i32) -> i32;
}

fn pages(bytes: usize) -> Layout {
    let whole = rounded(bytes).next_multiple_of(PAGE) + PAGE;
    Layout::from_size_align(whole, PAGE).expect("a size that fits")
}

fn value(mat: &Mat, row: usize, column: usize) -> f32 {
    let at = row * mat.stride as usize + column;
    // SAFETY: the caller stays within the matrix.
    unsafe {
        match mat.kind {
            Kind::F32 => (mat.data as *const f32).add(at).read(),
            Kind::Bf16 => f32::from_bits(u32::from((mat.data as *const u16).add(at).read()) << 16),
        }
    }
}

/// To bf16, to the nearest, ties to even.
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    match x.is_nan() {
        true => 0x7fff,
        false => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
    }
}

fn dense(mat: &Mat, transposed: bool, rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| match transposed {
            false => value(mat, i / cols, i % cols),
            true => value(mat, i % cols, i / cols),
        })
        .collect()
}

impl Device for Emulator {
    fn name(&self) -> String {
        "the emulated device".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        if bytes > self.capacity.get() - self.in_use.get() {
            return Err(CudaError::OutOfMemory {
                device: self.name(),
                asked: bytes,
                used: self.in_use.get(),
                free: self.capacity.get() - self.in_use.get(),
                total: self.capacity.get(),
            });
        }
        let layout = pages(bytes);
        // SAFETY: the layout is not empty; the last page is ours.
        unsafe {
            let start = std::alloc::alloc(layout);
            let guard = start.add(layout.size() - PAGE);
            assert_eq!(mprotect(guard.cast(), PAGE, 0), 0);
            let address = guard.sub(rounded(bytes));
            address.write_bytes(0xff, rounded(bytes));
            self.in_use.set(self.in_use.get() + bytes);
            Ok(address as u64)
        }
    }

    fn free(&self, address: u64, bytes: usize) {
        let layout = pages(bytes);
        // SAFETY: `allocate` made it so, and `Memory` frees once.
        unsafe {
            let guard = (address as *mut u8).add(rounded(bytes));
            assert_eq!(mprotect(guard.cast(), PAGE, 3), 0);
            std::alloc::dealloc(guard.sub(layout.size() - PAGE), layout);
        }
        self.in_use.set(self.in_use.get() - bytes);
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: within memory of `allocate`.
        unsafe { (address as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        // SAFETY: within memory of `allocate`.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: within memory of `allocate`.
        unsafe { (from as *const u8).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: within memory of `allocate`.
        unsafe { (to as *mut u8).copy_from(from as *const u8, bytes) };
        Ok(())
    }

    fn launch(
        &self,
        kernel: usize,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        // Limits of every device from compute capability 8.0 on.
        assert!(shape.threads <= 1024 && shape.grid[1] < 65536 && shape.grid[2] < 65536);
        assert!(shape.shared as usize <= 96 << 10, "{shape:?}");
        let Ok(library) = &*LIBRARY else {
            unreachable!("without a library there is no emulator");
        };
        LAUNCHED[kernel].store(true, Ordering::Relaxed);
        let guard = ONE.lock();
        // SAFETY: the table of kernels checks number and types of the arguments.
        unsafe {
            let run = library.get::<Run>(b"emulate\0").expect("our own symbol");
            run(
                kernel as u32,
                arguments.as_mut_ptr(),
                shape.grid.as_ptr(),
                shape.threads,
                shape.shared as usize,
                self.order == Order::Falling,
            );
        }
        drop(guard);
        Ok(())
    }

    fn product(&self, p: &Product) -> Result<bool, CudaError> {
        if !self.products {
            return Ok(false);
        }
        let a = dense(&p.a, p.a_transposed, p.m, p.k);
        let b = dense(&p.b, p.b_transposed, p.k, p.n);
        let mut sums = vec![0.0f32; p.n];
        for (row, a) in a.chunks_exact(p.k).enumerate() {
            sums.fill(0.0);
            for (&a, b) in a.iter().zip(b.chunks_exact(p.n)) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
            for (column, &sum) in sums.iter().enumerate() {
                let mut sum = sum;
                if let Some((bias, _)) = p.bias {
                    sum += value(&Mat::dense(bias.0, p.n), 0, column);
                }
                if p.accumulate {
                    sum += value(&p.c, row, column);
                }
                let at = row * p.c.stride as usize + column;
                // SAFETY: c is [m, n].
                unsafe {
                    match p.c.kind {
                        Kind::F32 => (p.c.data as *mut f32).add(at).write(sum),
                        Kind::Bf16 => (p.c.data as *mut u16).add(at).write(to_bf16(sum)),
                    }
                }
            }
        }
        Ok(true)
    }
}
