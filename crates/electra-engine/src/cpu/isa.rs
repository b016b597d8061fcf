//! Instruction sets: what the CPU has, and kernels compiled once for each.

use super::gemm::{Form, STRIP};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{LANES, Portable, Simd};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with BF16 and VNNI, and the matrix unit AMX for products of bf16 and of bytes.
    Amx,
    /// AVX-512 with products of f16, in the place of bf16, and dot products of bytes (FP16, VNNI).
    Avx512Fp16,
    /// AVX-512 (F, BW, DQ, VL) with its dot products of bf16 and of bytes (BF16, VNNI).
    Avx512Bf16,
    /// AVX-512 with its dot products of bytes alone.
    Avx512Vnni,
    /// AVX-512.
    Avx512,
    /// AVX2 with FMA and dot products of bytes (AVX-VNNI).
    Avx2Vnni,
    /// AVX2 with FMA.
    Avx2,
    /// Whatever the compiler makes of plain arrays for the target.
    Portable,
}

impl Isa {
    /// Every instruction set that there is, the best first.
    pub const ALL: [Isa; 8] = [
        Isa::Amx,
        Isa::Avx512Fp16,
        Isa::Avx512Bf16,
        Isa::Avx512Vnni,
        Isa::Avx512,
        Isa::Avx2Vnni,
        Isa::Avx2,
        Isa::Portable,
    ];

    /// Every instruction set of this CPU, the best first.
    pub fn available() -> Vec<Isa> {
        let mut sets = Isa::ALL.to_vec();
        if !has_slow_bf16() {
            // Dot products of bf16 are summed in f32 for nothing.
            let place = |isa| sets.iter().position(|&other| other == isa);
            if let (Some(f16), Some(bf16)) = (place(Isa::Avx512Fp16), place(Isa::Avx512Bf16)) {
                sets.swap(f16, bf16);
            }
        }
        sets.retain(|isa| isa.is_here());
        sets
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn is_here(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Amx => Isa::Avx512Bf16.is_here() && super::amx::is_here(),
            Isa::Avx512Fp16 => Isa::Avx512Vnni.is_here() && has!("avx512fp16"),
            Isa::Avx512Bf16 => Isa::Avx512Vnni.is_here() && has!("avx512bf16"),
            Isa::Avx512Vnni => Isa::Avx512.is_here() && has!("avx512vnni"),
            Isa::Avx512 => {
                let wide = has!("avx512f") && has!("avx512bw");
                Isa::Avx2.is_here() && wide && has!("avx512dq") && has!("avx512vl")
            }
            Isa::Avx2Vnni => Isa::Avx2.is_here() && has!("avxvnni"),
            Isa::Avx2 => has!("avx2") && has!("fma"),
            Isa::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn is_here(self) -> bool {
        self == Isa::Portable
    }

    /// The name that settings and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx",
            Isa::Avx512Fp16 => "avx512-fp16",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512 => "avx512",
            Isa::Avx2Vnni => "avx2-vnni",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// The instruction set of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether there are products of values of sixteen bits: of bf16, or of f16 in its place.
    pub fn has_halves(self) -> bool {
        matches!(self, Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512Fp16)
    }

    /// Whether these are of f16.
    pub fn has_f16(self) -> bool {
        self == Isa::Avx512Fp16
    }

    /// Whether it has a matrix unit.
    pub(crate) fn has_tiles(self) -> bool {
        self == Isa::Amx
    }

    /// Whether products in this form are the matrix unit's.
    pub(crate) fn multiplies_tiles(self, form: Form) -> bool {
        self.has_tiles() && form != Form::F32
    }

    /// Rows of a left side that tasks should take a multiple of.
    pub(crate) fn row_multiple(self, form: Form) -> usize {
        if self.multiplies_tiles(form) {
            2 * LANES
        } else {
            STRIP
        }
    }

    /// Runs a kernel. Every `Isa` in a [`Cpu`](super::Cpu) is one of [`available`](Isa::available).
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Amx | Isa::Avx512Fp16 | Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 => unsafe {
                avx512(kernel)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Avx2Vnni | Isa::Avx2 => unsafe { avx2(kernel) },
            _ => kernel.run::<Portable>(),
        }
    }

    /// Runs a kernel on halves, for which [`has_halves`](Isa::has_halves) must hold.
    pub(crate) fn run_half<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Amx | Isa::Avx512Bf16 => unsafe { avx512_bf16(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Avx512Fp16 => unsafe { avx512_fp16(kernel) },
            #[cfg(target_arch = "x86_64")]
            _ => unreachable!("{} has no products of halves", self.name()),
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run::<Portable>(),
        }
    }

    /// Runs a kernel that multiplies bytes. AVX-512 without VNNI does that no better than AVX2.
    pub(crate) fn run_int8<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Amx | Isa::Avx512Fp16 | Isa::Avx512Bf16 | Isa::Avx512Vnni => unsafe {
                avx512_vnni(kernel)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Avx2Vnni => unsafe { avx2_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Avx512 | Isa::Avx2 => unsafe { avx2(kernel) },
            _ => kernel.run::<Portable>(),
        }
    }

    /// Runs a kernel that reads or writes words of a form.
    pub(crate) fn run_in<K: Kernel>(self, form: Form, kernel: K) -> K::Output {
        match form {
            Form::F32 => self.run(kernel),
            Form::Half => self.run_half(kernel),
            Form::Int8 => self.run_int8(kernel),
        }
    }
}

/// Whether `vdpbf16ps` takes longer than the multiply-adds of f32 that it stands for. It does in
/// Intel's cores that were built with the matrix unit, which many virtual machines hide: there it
/// begins every second cycle (measured: 84 GFLOP/s a core, where f32 has 171). Those cores are the
/// ones of that vendor with AVX512_FP16. Never measured at run time: a run's bits must not hang on it.
#[cfg(target_arch = "x86_64")]
fn has_slow_bf16() -> bool {
    // SAFETY: every x86-64 CPU has the instruction. Newer compilers know that.
    #[allow(unused_unsafe)]
    let id = unsafe { std::arch::x86_64::__cpuid(0) };
    let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
    vendor == b"GenuineIntel" && std::arch::is_x86_feature_detected!("avx512fp16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_slow_bf16() -> bool {
    false
}

/// A computation written once over [`Simd`]. `run` is `#[inline(always)]`, so that it is compiled
/// inside the function that has the instruction set.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<false>>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<false>>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512fp16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512_fp16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<true>>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<false>>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2<false>>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avxvnni,avx2,fma")]
fn avx2_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2<true>>()
}
