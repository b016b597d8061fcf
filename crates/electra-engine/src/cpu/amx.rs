//! The matrix unit of Intel's CPUs (AMX): its registers and what is done with them.
//!
//! The unit has eight registers of sixteen rows of sixteen words. One with words of a left side, in
//! rows as they lie, times one with words of a packed panel is added to one of sums. Their shape is
//! set once a thread, to whole ones: setting it takes as long as a small product.

use super::gemm::Form;
use super::simd::LANES;
use std::arch::asm;
use std::cell::Cell;

/// Rows, and words of a row, of a register.
pub(super) const SIDE: usize = LANES;

/// Whether CPU and system have the unit, with products of bf16 and of bytes; asks the system for
/// leave to use it.
pub(super) fn is_here() -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        /// AMX-BF16, AMX-TILE, AMX-INT8.
        const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`: without it a thread's first use of
        /// the registers is an error.
        const CALL: i64 = 158;
        const REQUEST: u64 = 0x1023;
        const TILE_DATA: u64 = 18;
        // SAFETY: every x86-64 CPU has the instruction. Newer compilers know that.
        #[allow(unused_unsafe)]
        let features = unsafe {
            match __cpuid(0).eax {
                0..7 => 0,
                _ => __cpuid_count(7, 0).edx,
            }
        };
        if features & FEATURES != FEATURES {
            return false;
        }
        let mut result = CALL;
        // SAFETY: the system call takes two numbers, and sets no memory of this process.
        unsafe {
            asm!("syscall", inlateout("rax") result, in("rdi") REQUEST, in("rsi") TILE_DATA,
                lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// What a register of the left side and one of the right add to one of sums.
pub(super) trait Dot {
    /// Adds the product of registers `A` and `B` to register `C`.
    ///
    /// # Safety
    /// The registers are configured.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>();
}

/// Words of two bf16.
pub(super) struct Pairs;
/// Words of four bytes, unsigned on the left side; sums are i32.
pub(super) struct Fours;

impl Dot for Pairs {
    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>() {
        // SAFETY: reads and writes registers that nothing else uses.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags));
        }
    }
}

impl Dot for Fours {
    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>() {
        // SAFETY: reads and writes registers that nothing else uses.
        unsafe {
            asm!("tdpbusd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags));
        }
    }
}

/// Register `T` from sixteen rows of sixteen words, `step` words apart.
///
/// # Safety
/// They can be read; the registers are configured.
#[inline(always)]
pub(super) unsafe fn load<const T: usize>(from: *const f32, step: usize) {
    // SAFETY: as the caller says.
    unsafe {
        asm!("tileloadd tmm{t}, [{from} + {step}]", t = const T, from = in(reg) from,
            step = in(reg) size_of::<f32>() * step, options(readonly, nostack, preserves_flags));
    }
}

/// Register `T` to sixteen rows of sixteen words, `step` words apart.
///
/// # Safety
/// They can be written; the registers are configured.
#[inline(always)]
pub(super) unsafe fn store<const T: usize>(to: *mut f32, step: usize) {
    // SAFETY: as the caller says.
    unsafe {
        asm!("tilestored [{to} + {step}], tmm{t}", t = const T, to = in(reg) to,
            step = in(reg) size_of::<f32>() * step, options(nostack, preserves_flags));
    }
}

/// Register `T` to zeros.
///
/// # Safety
/// The registers are configured.
#[inline(always)]
pub(super) unsafe fn zero<const T: usize>() {
    // SAFETY: writes a register that nothing else uses.
    unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags)) };
}

thread_local! {
    /// Whether this thread's registers are configured.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// Gives this thread's registers their shape, all of them the same.
pub(super) fn configure() {
    #[repr(C, align(64))]
    struct Palette {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    const BYTES: u16 = (SIDE * size_of::<f32>()) as u16;
    const ROWS: u8 = SIDE as u8;
    // The palette has sixteen places; the unit has eight registers.
    static PALETTE: Palette = Palette {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [
            BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        rows: [
            ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    };
    if !CONFIGURED.get() {
        // SAFETY: the CPU has the unit, since a kernel of it runs; the palette is a valid one.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &PALETTE, options(readonly, nostack, preserves_flags));
        }
        CONFIGURED.set(true);
    }
}

/// Leaves this thread's registers to others, as they were before.
pub(super) fn release() {
    if CONFIGURED.replace(false) {
        // SAFETY: the registers are configured, and hold nothing that is used.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Products of registers, `rounds` times four that do not wait for each other: what `peak.rs` times.
pub(super) fn rounds(form: Form, rounds: usize) {
    configure();
    // SAFETY: the registers are configured; what they hold is used by nobody.
    unsafe {
        zero::<4>();
        zero::<5>();
        zero::<6>();
        zero::<7>();
        for _ in 0..rounds {
            match form {
                Form::Int8 => four::<Fours>(),
                _ => four::<Pairs>(),
            }
        }
    }
    release();
}

/// Operations of a round of [`rounds`], a multiply and an add each.
pub(super) fn round_operations(form: Form) -> usize {
    let values = match form {
        Form::Int8 => 4,
        _ => 2,
    };
    4 * 2 * SIDE * SIDE * SIDE * values
}

/// # Safety
/// The registers are configured.
#[inline(always)]
unsafe fn four<U: Dot>() {
    // SAFETY: as the caller says.
    unsafe {
        U::dot::<0, 4, 6>();
        U::dot::<1, 4, 7>();
        U::dot::<2, 5, 6>();
        U::dot::<3, 5, 7>();
    }
}
