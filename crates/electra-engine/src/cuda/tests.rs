//! The backend on the emulated device, against the reference.

use super::emulator::{Emulator, Order};
use super::{Cuda, Precision, catch};
use crate::backend::Backend;
use crate::reference::Reference;
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

fn check_training(precision: Precision, order: Order, products: bool) -> Option<Vec<Vec<f32>>> {
    let mut backend = emulated(precision, order, products)?;
    let kind = match precision {
        Precision::Bf16 => Products::Bf16Kept,
        _ => Products::F32,
    };
    let ours = selftest::training::trace(&mut backend);
    let exact = selftest::training::trace(&mut Reference::<f64>::new());
    for o in selftest::compare(&ours, &exact, kind) {
        assert!(o.passed(), "{}: {:.1e} > {:.0e}", o.name, o.error, o.bound);
    }
    Some(ours.into_iter().map(|o| o.values).collect())
}

#[test]
fn a_network_trains_as_on_the_reference_whatever_the_order_of_threads() {
    for precision in [Precision::F32, Precision::Bf16] {
        // The second time products are our own kernel's; within one kind, bits are the same.
        for products in [true, false] {
            let rising = check_training(precision, Order::Rising, products);
            let falling = check_training(precision, Order::Falling, products);
            let bits = |values: Option<Vec<Vec<f32>>>| {
                let all = values.into_iter().flatten().flatten();
                all.map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(rising), bits(falling), "{precision:?}");
        }
    }
}

#[test]
fn a_device_without_memory_is_an_error_and_gives_all_of_it_back() {
    let Some(device) = Emulator::new(Order::Rising, true) else {
        return;
    };
    device.capacity.set(1 << 20);
    let device = Rc::new(device);
    let mut backend = Cuda::with_device(device.clone(), Precision::F32);
    let array = backend.array(64, 64);
    let error = catch(|| backend.array(1 << 20, 64)).expect_err("it is too large");
    let error = error.to_string();
    assert!(error.contains("256.0 MiB asked for"), "{error}");
    // What was there before still works.
    backend.write(array, &[1.0; 64 * 64]);
    assert_eq!(backend.sum(array), 4096.0);
    drop(backend);
    assert_eq!(device.in_use.get(), 0);
}
