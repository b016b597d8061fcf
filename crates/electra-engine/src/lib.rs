//! Numerics of the ELECTRA system: devices, arrays and operators. Nothing here knows what a
//! generator or a discriminator is.

pub mod batch;
pub mod rng;
