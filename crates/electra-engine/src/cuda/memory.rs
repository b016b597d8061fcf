//! Arrays, ids and parameters on the device, and their way there and back.

use super::device::{Device, Memory, Plain, bytes_of, bytes_of_mut};
use super::error::OrFail;
use super::kernels::{self, Kind, Mat, Ptr, Shape, wide};
use super::{Cuda, Precision};
use crate::backend::{Array, Ints};
use crate::params::{ParamLayout, ParamView};
use std::rc::Rc;

/// An array's memory.
pub(super) struct Slot {
    memory: Memory,
    kind: Kind,
}

/// What memory of the backend's own is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    /// Values on their way between host and device.
    Staging,
    /// Parts of sums.
    Partials,
    /// Descriptions of runs of a flat array, with what becomes of them.
    Chunks,
    /// Those of which norms are taken.
    NormChunks,
    /// Logits over the vocabulary of some rows.
    Logits,
    /// Their gradient.
    LogitGradient,
    /// Counts of a sort.
    Counts,
    /// Rows in order, before and after a pass of the sort.
    Order,
    Ordered,
    /// A number a row and head.
    Delta,
}

const USES: usize = 10;

/// Memory of the backend's own, one piece a use, made larger when more is needed.
pub(super) struct Scratch {
    device: Rc<dyn Device>,
    pieces: [Memory; USES],
}

impl Scratch {
    pub(super) fn new(device: &Rc<dyn Device>) -> Scratch {
        Scratch {
            device: Rc::clone(device),
            pieces: std::array::from_fn(|_| Memory::raw(device, 0)),
        }
    }

    /// Room for `count` values, which are anything.
    pub(super) fn room<T>(&mut self, what: Use, count: usize) -> Ptr<T> {
        let piece = &mut self.pieces[what as usize];
        let bytes = (count * size_of::<T>()).max(16);
        if piece.bytes() < bytes {
            // The old piece goes first, so that both are never there at once.
            *piece = Memory::raw(&self.device, 0);
            *piece = Memory::raw(&self.device, bytes.next_multiple_of(1 << 16));
        }
        piece.ptr()
    }
}

/// Parameters on the device: f32, and in bf16 a rounded copy that products read.
#[derive(Debug)]
pub struct CudaParams {
    pub(super) master: Memory,
    pub(super) rounded: Option<Memory>,
}

impl CudaParams {
    /// A view's values in f32.
    pub(super) fn slice(&self, view: ParamView) -> Ptr<f32> {
        self.master.ptr::<f32>().add(view.offset)
    }

    /// A matrix in the type that goes with `kind`.
    pub(super) fn matrix(&self, view: ParamView, kind: Kind) -> Mat {
        match (&self.rounded, kind) {
            (Some(rounded), Kind::Bf16) => Mat {
                data: rounded.ptr::<u16>().add(view.offset).0,
                stride: view.cols as u32,
                kind,
            },
            _ => Mat::dense(self.slice(view).0, view.cols),
        }
    }

    /// A bias in both types.
    pub(super) fn bias(&self, view: ParamView) -> (Ptr<f32>, Ptr<u16>) {
        let rounded = self.rounded.as_ref().map_or(Ptr::NONE, |r| r.ptr());
        let rounded = match rounded.0 {
            0 => rounded,
            _ => rounded.add(view.offset),
        };
        (self.slice(view), rounded)
    }
}

impl Cuda {
    pub(super) fn new_array(&mut self, rows: usize, cols: usize) -> Array {
        let kind = self.kind(cols);
        self.slots.push(Slot {
            memory: Memory::zeroed(&self.device, rows * cols * kind.bytes()),
            kind,
        });
        Array {
            slot: self.slots.len() as u32 - 1,
            column: 0,
            stride: cols as u32,
            rows,
            cols,
        }
    }

    /// The matrix behind a handle.
    pub(super) fn mat(&self, array: Array) -> Mat {
        let slot = &self.slots[array.slot as usize];
        let (rows, column) = (array.rows, array.column as usize);
        let end = match rows {
            0 => 0,
            rows => (rows - 1) * array.stride as usize + column + array.cols,
        };
        assert!(
            end * slot.kind.bytes() <= slot.memory.bytes(),
            "the array lies within its memory"
        );
        Mat {
            data: slot.memory.address() + (column * slot.kind.bytes()) as u64,
            stride: array.stride,
            kind: slot.kind,
        }
    }

    /// The ids behind a handle.
    pub(super) fn ids(&self, ints: Ints) -> Ptr<u32> {
        let memory = &self.ints[ints.slot as usize];
        assert!(4 * ints.len <= memory.bytes());
        memory.ptr()
    }

    pub(super) fn upload<T: Plain>(&self, to: &Memory, values: &[T]) {
        assert_eq!(size_of_val(values), to.bytes());
        if !values.is_empty() {
            self.device.upload(to.address(), bytes_of(values)).or_fail();
        }
    }

    pub(super) fn download<T: Plain>(&self, from: &Memory, out: &mut [T]) {
        assert_eq!(size_of_val(out), from.bytes());
        if !out.is_empty() {
            self.device
                .download(from.address(), bytes_of_mut(out))
                .or_fail();
        }
    }

    pub(super) fn clear(&self, memory: &Memory) {
        if memory.bytes() > 0 {
            self.device
                .clear(memory.address(), memory.bytes())
                .or_fail();
        }
    }

    fn copy_mat(&self, x: Mat, y: Mat, rows: usize, cols: usize) {
        let kernel = match wide(cols, &[x, y]) {
            true => kernels::copy_matrix_8,
            false => kernels::copy_matrix_1,
        };
        kernel(
            &*self.device,
            Shape::rows(rows),
            x,
            y,
            rows as u32,
            cols as u32,
        )
        .or_fail();
    }

    pub(super) fn write_array(&mut self, to: Array, values: &[f32]) {
        assert_eq!(values.len(), to.rows * to.cols);
        if values.is_empty() {
            return;
        }
        let staging = self.scratch.room::<f32>(Use::Staging, values.len());
        self.device.upload(staging.0, bytes_of(values)).or_fail();
        let from = Mat::dense(staging.0, to.cols);
        self.copy_mat(from, self.mat(to), to.rows, to.cols);
    }

    pub(super) fn read_array(&mut self, from: Array, out: &mut [f32]) {
        assert_eq!(out.len(), from.rows * from.cols);
        if out.is_empty() {
            return;
        }
        let staging = self.scratch.room::<f32>(Use::Staging, out.len());
        let to = Mat::dense(staging.0, from.cols);
        self.copy_mat(self.mat(from), to, from.rows, from.cols);
        self.device.download(staging.0, bytes_of_mut(out)).or_fail();
    }

    pub(super) fn write_ids(&mut self, to: Ints, values: &[u32]) {
        assert_eq!(values.len(), to.len);
        if !values.is_empty() {
            self.device
                .upload(self.ids(to).0, bytes_of(values))
                .or_fail();
        }
    }

    pub(super) fn read_ids(&mut self, from: Ints, out: &mut [u32]) {
        assert_eq!(out.len(), from.len);
        if !out.is_empty() {
            self.device
                .download(self.ids(from).0, bytes_of_mut(out))
                .or_fail();
        }
    }

    pub(super) fn zero_array(&mut self, array: Array) {
        let (y, rows, cols) = (self.mat(array), array.rows, array.cols);
        if array.stride as usize == cols {
            if rows * cols > 0 {
                self.device
                    .clear(y.data, rows * cols * y.kind.bytes())
                    .or_fail();
            }
            return;
        }
        kernels::zero_matrix(
            &*self.device,
            Shape::rows(rows),
            y,
            rows as u32,
            cols as u32,
        )
        .or_fail();
    }

    pub(super) fn copy_array(&mut self, x: Array, y: Array) {
        assert!(x.rows == y.rows && x.cols == y.cols);
        self.copy_mat(self.mat(x), self.mat(y), x.rows, x.cols);
    }

    pub(super) fn new_params(&mut self, layout: &ParamLayout, values: &[f32]) -> CudaParams {
        assert_eq!(values.len(), layout.len());
        let master = Memory::raw(&self.device, 4 * values.len());
        self.upload(&master, values);
        let rounded = (self.precision == Precision::Bf16).then(|| {
            let rounded = Memory::raw(&self.device, 2 * values.len());
            let blocks = values.len().div_ceil(256).min(4096);
            kernels::round_vector(
                &*self.device,
                Shape::new([blocks, 1, 1], 256),
                master.ptr(),
                rounded.ptr(),
                values.len() as u64,
            )
            .or_fail();
            rounded
        });
        CudaParams { master, rounded }
    }

    pub(super) fn gather(&mut self, x: Array, rows: Ints, y: Array) {
        assert!(rows.len == y.rows && x.cols == y.cols);
        kernels::gather_rows(
            &*self.device,
            Shape::rows(y.rows),
            self.mat(x),
            self.ids(rows),
            self.mat(y),
            y.rows as u32,
            y.cols as u32,
        )
        .or_fail();
    }

    pub(super) fn scatter_add(&mut self, dy: Array, rows: Ints, dx: Array) {
        assert!(rows.len == dy.rows && dx.cols == dy.cols);
        kernels::scatter_add_rows(
            &*self.device,
            Shape::rows(dy.rows),
            self.mat(dy),
            self.ids(rows),
            self.mat(dx),
            dy.rows as u32,
            dy.cols as u32,
        )
        .or_fail();
    }

    pub(super) fn replace_ids(&mut self, base: Ints, rows: Ints, values: Ints, y: Ints) {
        assert!(base.len == y.len && rows.len == values.len);
        if base.len > 0 && base.slot != y.slot {
            self.device
                .copy(self.ids(base).0, self.ids(y).0, 4 * base.len)
                .or_fail();
        }
        kernels::put_ids(
            &*self.device,
            Shape::elements(rows.len),
            self.ids(rows),
            self.ids(values),
            self.ids(y),
            rows.len as u32,
        )
        .or_fail();
    }

    pub(super) fn compare_ids(&mut self, a: Ints, b: Ints, y: Ints) {
        assert!(a.len == y.len && b.len == y.len);
        kernels::not_equal(
            &*self.device,
            Shape::elements(y.len),
            self.ids(a),
            self.ids(b),
            self.ids(y),
            y.len as u32,
        )
        .or_fail();
    }
}
