//! Products by cuBLASLt.
//!
//! The library is column-major: a row-major product `c = a b` is `c' = b' a'` to it. The algorithm
//! is chosen once for a shape, with the number of tokens rounded up, and kept: another one gives
//! other bits.

use super::device::Product;
use super::error::CudaError;
use super::kernels::{Kind, Mat};
use super::libraries::{self, CUBLASLT};
use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::{self, cudaDataType as Type};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

/// What decides on the algorithm: sizes, types, order, distances of rows, alignment.
type Key = [u64; 13];

/// The library on one stream.
pub(super) struct Products {
    device: String,
    handle: sys::cublasLtHandle_t,
    stream: sys::cudaStream_t,
    workspace: u64,
    tf32: bool,
    /// `None` where the library has nothing for it.
    algorithms: RefCell<HashMap<Key, Option<sys::cublasLtMatmulAlgo_t>>>,
    /// Those products, and what the library says of them.
    refused: RefCell<Vec<String>>,
}

/// One of a product's three matrices as the library takes it.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// `rows` by `cols`, column-major.
    fn new(mat: &Mat, rows: usize, cols: usize) -> Result<Layout, result::CublasError> {
        let (rows, cols) = (rows as u64, cols as u64);
        result::create_matrix_layout(type_of(mat.kind), rows, cols, i64::from(mat.stride))
            .map(Layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), result::CublasError> {
        let value = (ptr::from_ref(value).cast::<c_void>(), size_of::<T>());
        // SAFETY: the value is of the attribute's type.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value.0, value.1) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `describe`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), result::CublasError> {
        let value = (ptr::from_ref(value).cast::<c_void>(), size_of::<T>());
        // SAFETY: the value is of the attribute's type.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value.0, value.1) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `choose`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn type_of(kind: Kind) -> Type {
    match kind {
        Kind::F32 => Type::CUDA_R_32F,
        Kind::Bf16 => Type::CUDA_R_16BF,
    }
}

/// The largest power of two that divides an address, at most 256.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// Tokens for which one algorithm serves: up to the next power of two, from 1024 on the next
/// multiple of 1024.
fn bucket(tokens: usize) -> usize {
    match tokens {
        0..1024 => tokens.next_power_of_two(),
        _ => tokens.next_multiple_of(1024),
    }
}

/// The product with the largest number of tokens that its algorithm serves.
fn rounded(p: &Product) -> Product {
    // The number of tokens is what varies from batch to batch.
    let (m, k) = match p.a_transposed {
        false => (bucket(p.m), p.k),
        true => (p.m, bucket(p.k)),
    };
    Product { m, k, ..*p }
}

fn key(p: &Product) -> Key {
    let mat = |mat: &Mat| u64::from(mat.stride) << 8 | u64::from(alignment(mat.data) / 2);
    [
        p.m as u64,
        p.n as u64,
        p.k as u64,
        mat(&p.a),
        mat(&p.b),
        mat(&p.c),
        p.a.kind as u64,
        p.b.kind as u64,
        p.c.kind as u64,
        p.a_transposed.into(),
        p.b_transposed.into(),
        p.accumulate.into(),
        p.bias.is_some().into(),
    ]
}

/// A product for people: sizes, types and distances of rows, what is transposed, added or biased.
fn said(p: &Product) -> String {
    let mat = |mat: &Mat, transposed: bool| {
        let transposed = if transposed { "ᵀ" } else { "" };
        format!("{:?}/{}{transposed}", mat.kind, mat.stride)
    };
    format!(
        "{} x {} x {}, {} by {} to {}{}{}",
        p.m,
        p.n,
        p.k,
        mat(&p.a, p.a_transposed),
        mat(&p.b, p.b_transposed),
        mat(&p.c, false),
        if p.accumulate { ", added" } else { "" },
        if p.bias.is_some() { ", with bias" } else { "" },
    )
}

impl Products {
    /// Bytes that algorithms may work in; what NVIDIA advises for compute capability 9.0.
    pub(super) const WORKSPACE: usize = 32 << 20;

    pub(super) fn new(
        device: String,
        stream: sys::cudaStream_t,
        workspace: u64,
        tf32: bool,
    ) -> Result<Products, CudaError> {
        // Loaded by its path, it is there for whoever asks by its name.
        libraries::load(&CUBLASLT)?;
        let handle = result::create_handle().map_err(|error| CudaError::Call {
            device: device.clone(),
            what: "starting cuBLASLt".to_owned(),
            why: error.to_string(),
        })?;
        Ok(Products {
            device,
            handle,
            stream,
            workspace,
            tf32,
            algorithms: RefCell::default(),
            refused: RefCell::default(),
        })
    }

    pub(super) fn workspace(&self) -> u64 {
        self.workspace
    }

    /// What the library had nothing for, and why.
    pub(super) fn refused(&self) -> Vec<String> {
        self.refused.borrow().clone()
    }

    /// Computes a product, or returns false where the library has nothing for it.
    pub(super) fn run(&self, p: &Product) -> Result<bool, CudaError> {
        // What was chosen for more tokens need not do for these: then they have an algorithm of
        // their own.
        let mut failed = None;
        for sized in [rounded(p), *p] {
            let Some(algorithm) = self.algorithm(&sized)? else {
                return Ok(false);
            };
            match self.attempt(p, &algorithm) {
                Ok(()) => return Ok(true),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(self.error(p, "computing", error)),
            None => Ok(false),
        }
    }

    /// The algorithm for a product: the one kept, or newly chosen.
    fn algorithm(&self, p: &Product) -> Result<Option<sys::cublasLtMatmulAlgo_t>, CudaError> {
        use sys::cublasStatus_t::{CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED};
        let key = key(p);
        if let Some(&known) = self.algorithms.borrow().get(&key) {
            return Ok(known);
        }
        let chosen = match self.choose(p) {
            Ok(algorithm) => Some(algorithm),
            Err(result::CublasError(
                status @ (CUBLAS_STATUS_NOT_SUPPORTED | CUBLAS_STATUS_INVALID_VALUE),
            )) => {
                let refused = format!("{} ({status:?})", said(p));
                self.refused.borrow_mut().push(refused);
                None
            }
            Err(error) => return Err(self.error(p, "choosing an algorithm for", error)),
        };
        self.algorithms.borrow_mut().insert(key, chosen);
        Ok(chosen)
    }

    fn error(&self, p: &Product, doing: &str, error: result::CublasError) -> CudaError {
        CudaError::Call {
            device: self.device.clone(),
            what: format!("{doing} the product {}", said(p)),
            why: error.to_string(),
        }
    }

    fn describe(&self, p: &Product) -> Result<Description, result::CublasError> {
        use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
        use sys::cublasLtMatmulDescAttributes_t::*;
        let compute = match self.tf32 && p.a.kind == Kind::F32 {
            true => CUBLAS_COMPUTE_32F_FAST_TF32,
            false => CUBLAS_COMPUTE_32F,
        };
        let description = Description(result::create_matmul_desc(compute, Type::CUDA_R_32F)?);
        // The library's first matrix is ours on the right: as it lies in memory it is the
        // transposed one.
        description.set(CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(p.b_transposed))?;
        description.set(CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(p.a_transposed))?;
        if let Some((bias, rounded)) = p.bias {
            let (address, kind) = match p.c.kind {
                Kind::F32 => (bias.0, Type::CUDA_R_32F),
                Kind::Bf16 => (rounded.0, Type::CUDA_R_16BF),
            };
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            description.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            description.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)?;
            description.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &kind)?;
        }
        Ok(description)
    }

    /// Left, right and result as the library takes them.
    fn layouts(&self, p: &Product) -> Result<[Layout; 3], result::CublasError> {
        let stored = |transposed: bool, rows: usize, cols: usize| match transposed {
            false => (cols, rows),
            true => (rows, cols),
        };
        let (left, right) = (
            stored(p.b_transposed, p.k, p.n),
            stored(p.a_transposed, p.m, p.k),
        );
        Ok([
            Layout::new(&p.b, left.0, left.1)?,
            Layout::new(&p.a, right.0, right.1)?,
            Layout::new(&p.c, p.n, p.m)?,
        ])
    }

    fn choose(&self, p: &Product) -> Result<sys::cublasLtMatmulAlgo_t, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t::*;
        let description = self.describe(p)?;
        let [left, right, out] = self.layouts(p)?;
        let preference = Preference(result::create_matmul_pref()?);
        let room = Self::WORKSPACE;
        preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room)?;
        for (attribute, mat) in [
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &p.b),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &p.a),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &p.c),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &p.c),
        ] {
            preference.set(attribute, &alignment(mat.data))?;
        }
        // SAFETY: all of these live until the end of the function.
        let best = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                description.0,
                left.0,
                right.0,
                out.0,
                out.0,
                preference.0,
            )?
        };
        Ok(best.algo)
    }

    fn attempt(
        &self,
        p: &Product,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<(), result::CublasError> {
        let description = self.describe(p)?;
        let [left, right, out] = self.layouts(p)?;
        let (alpha, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: layouts and addresses are those of the product, checked by the operator.
        unsafe {
            result::matmul(
                self.handle,
                description.0,
                ptr::from_ref(&alpha).cast(),
                ptr::from_ref(&beta).cast(),
                p.b.data as *const c_void,
                left.0,
                p.a.data as *const c_void,
                right.0,
                p.c.data as *const c_void,
                out.0,
                p.c.data as *mut c_void,
                out.0,
                algorithm,
                self.workspace as *mut c_void,
                Self::WORKSPACE,
                self.stream,
            )
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_algorithm_serves_neighbouring_numbers_of_tokens() {
        let product = |m: usize, data: u64| Product {
            m,
            n: 256,
            k: 64,
            a: Mat::dense(data, 64),
            a_transposed: false,
            b: Mat::dense(1 << 20, 64),
            b_transposed: true,
            c: Mat::dense(1 << 21, 256),
            accumulate: false,
            bias: None,
        };
        let key = |m, data| key(&rounded(&product(m, data)));
        assert_eq!(key(1025, 4096), key(2048, 4096));
        assert_ne!(key(2048, 4096), key(2049, 4096));
        assert_ne!(key(2048, 4096), key(2048, 4100));
        // What is chosen is chosen for the rounded size, whichever size is met first.
        assert_eq!(rounded(&product(1025, 4096)).m, 2048);
        assert_eq!(alignment(4096 + 8), 8);
    }

    /// Loaded by its path, the library is found by its name. Without a device it does not start.
    #[test]
    fn the_library_is_called_once_it_is_loaded() {
        match Products::new("no device".into(), ptr::null_mut(), 0, false) {
            Ok(_) => {}
            Err(CudaError::Call { what, .. }) => assert_eq!(what, "starting cuBLASLt"),
            Err(error) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "{error}");
                println!("skipped: {error}");
            }
        }
    }
}
