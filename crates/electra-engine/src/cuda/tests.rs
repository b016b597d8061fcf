//! The backend on the emulated device, against the reference.

use super::emulator::{Emulator, Order};
use super::{Cuda, Precision};
use crate::selftest::{self, Products};
use std::rc::Rc;

fn emulated(precision: Precision, order: Order, products: bool) -> Option<Cuda> {
    let device = Emulator::new(order, products)?;
    Some(Cuda::with_device(Rc::new(device), precision))
}

fn check(precision: Precision, order: Order, products: bool) {
    let Some(mut backend) = emulated(precision, order, products) else {
        return;
    };
    let kind = match precision {
        Precision::Bf16 => Products::Bf16Kept,
        _ => Products::F32,
    };
    let outcomes = selftest::run(&mut backend, kind);
    let failed: Vec<String> = outcomes
        .iter()
        .filter(|o| !o.passed())
        .map(|o| format!("{}: {:.1e} > {:.0e}", o.name, o.error, o.bound))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_operator_agrees_with_the_reference_in_f32() {
    check(Precision::F32, Order::Rising, true);
}

#[test]
fn every_operator_agrees_with_the_reference_in_bf16() {
    check(Precision::Bf16, Order::Rising, true);
}
