//! Numerics of the ELECTRA system: devices, arrays and operators. Nothing here knows what a
//! generator or a discriminator is.

pub mod backend;
pub mod batch;
pub mod cpu;
#[cfg(any(test, feature = "cuda", feature = "cuda-emulator"))]
pub mod cuda;
pub mod params;
pub mod quantize;
pub mod reference;
pub mod rng;
pub mod selftest;
pub mod timed;
