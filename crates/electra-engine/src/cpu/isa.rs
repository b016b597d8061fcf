//! Instruction sets: what the CPU has, and kernels compiled once for each.

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 (F, BW, DQ, VL).
    Avx512 {
        /// With its dot products of bf16.
        bf16: bool,
    },
    /// AVX2 with FMA.
    Avx2,
    /// Whatever the compiler makes of plain arrays for the target.
    Portable,
}

impl Isa {
    /// Every instruction set of this CPU, the best first.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                if has!("avx512bf16") {
                    found.push(Isa::Avx512 { bf16: true });
                }
                found.push(Isa::Avx512 { bf16: false });
            }
            if avx2 {
                found.push(Isa::Avx2);
            }
        }
        found.push(Isa::Portable);
        found
    }

    /// The name that settings and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 { bf16: true } => "avx512-bf16",
            Isa::Avx512 { bf16: false } => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// The instruction set of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Isa> {
        [
            Isa::Avx512 { bf16: true },
            Isa::Avx512 { bf16: false },
            Isa::Avx2,
            Isa::Portable,
        ]
        .into_iter()
        .find(|isa| isa.name() == name)
    }

    /// Whether there are products of bf16.
    pub fn has_bf16(self) -> bool {
        self == Isa::Avx512 { bf16: true }
    }

    /// Runs a kernel. Every `Isa` in a [`Cpu`](super::Cpu) is one of [`available`](Isa::available).
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Avx512 { .. } => unsafe { avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Avx2 => unsafe { avx2(kernel) },
            _ => kernel.run::<Portable>(),
        }
    }

    /// Runs a kernel that multiplies bf16, for which [`has_bf16`](Isa::has_bf16) must hold.
    pub(crate) fn run_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.has_bf16(), "{} has no products of bf16", self.name());
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: the CPU has the instructions.
            unsafe { avx512_bf16(kernel) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        kernel.run::<Portable>()
    }
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
    kernel.run::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}
