//! Sixteen lanes of f32 or u32, on each instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// Lanes of a vector, the same on every instruction set: sums over lanes have one order.
pub(crate) const LANES: usize = 16;

/// Vectors of one instruction set.
///
/// The functions may use its instructions, so they are called only from a
/// [`Kernel`](super::isa::Kernel) that [`Isa::run`](super::isa::Isa::run) has started.
pub(crate) trait Simd: Copy + 'static {
    /// Sixteen f32, or sixteen pairs of halves: of bf16, or of f16 on the set that multiplies these.
    type V: Copy;
    /// Sixteen u32.
    type U: Copy;
    /// Vectors side by side in a tile of a product: as many as the registers hold six rows of.
    const TILE: usize;

    /// # Safety
    /// Sixteen f32 can be read at `from`.
    unsafe fn load(from: *const f32) -> Self::V;
    /// The first `n` ≤ 16 lanes; zero in the others.
    ///
    /// # Safety
    /// `n` f32 can be read at `from`.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// Sixteen f32 can be written at `to`.
    unsafe fn store(to: *mut f32, v: Self::V);
    /// # Safety
    /// `n` ≤ 16 f32 can be written at `to`.
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V);

    /// The first sixteen elements, or what there is and zeros.
    #[inline(always)]
    fn read(from: &[f32]) -> Self::V {
        if from.len() >= LANES {
            // SAFETY: the slice is long enough.
            unsafe { Self::load(from.as_ptr()) }
        } else {
            // SAFETY: no more than the slice.
            unsafe { Self::load_first(from.as_ptr(), from.len()) }
        }
    }

    /// Writes the first sixteen elements, or as many as there are.
    #[inline(always)]
    fn write(to: &mut [f32], v: Self::V) {
        if to.len() >= LANES {
            // SAFETY: the slice is long enough.
            unsafe { Self::store(to.as_mut_ptr(), v) }
        } else {
            // SAFETY: no more than the slice.
            unsafe { Self::store_first(to.as_mut_ptr(), to.len(), v) }
        }
    }

    fn splat(x: f32) -> Self::V;
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a b + c`
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater; `b` where either is not a number.
    fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The lesser; `b` where either is not a number.
    fn min(a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(a: Self::V) -> Self::V;
    fn abs(a: Self::V) -> Self::V;
    /// The nearest whole number.
    fn round(a: Self::V) -> Self::V;
    /// `x · 2^n` for whole `n` from −252 to 254.
    fn scale(x: Self::V, n: Self::V) -> Self::V;
    /// `x` where `a < b`, else `y`.
    fn select_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;

    /// Transposes sixteen rows of sixteen words.
    #[inline(always)]
    fn transpose(rows: &mut [Self::V; LANES]) {
        let mut words = [[0.0f32; LANES]; LANES];
        for i in 0..LANES {
            words[i] = Self::lanes(rows[i]);
        }
        for i in 0..LANES {
            let mut column = [0.0f32; LANES];
            for j in 0..LANES {
                column[j] = words[j][i];
            }
            rows[i] = Self::read(&column);
        }
    }

    fn splat_u(x: u32) -> Self::U;
    /// 0, 1, …, 15
    fn iota() -> Self::U;
    fn add_u(a: Self::U, b: Self::U) -> Self::U;
    fn xor_u(a: Self::U, b: Self::U) -> Self::U;
    /// High and low words of `a · b`.
    fn mul_wide(a: Self::U, b: u32) -> (Self::U, Self::U);
    /// `v` where the lower (`half` 0) or upper (1) sixteen bits are at least `threshold` < 2^16,
    /// else zero.
    fn keep(bits: Self::U, half: u32, threshold: u32, v: Self::V) -> Self::V;

    /// Dot products of pairs of halves that may be summed with [`dot_half`](Simd::dot_half) from zero
    /// before their sum has to go through [`sum_of_halves`](Simd::sum_of_halves); any number where
    /// sums are of f32 already.
    const HALF_SPAN: usize = usize::MAX;
    /// `acc +` the dot product of each lane's pair of halves.
    fn dot_half(_acc: Self::V, _a: Self::V, _b: Self::V) -> Self::V {
        unreachable!("no products of halves here")
    }
    /// The f32 that a sum of [`dot_half`](Simd::dot_half) stands for.
    #[inline(always)]
    fn sum_of_halves(sum: Self::V) -> Self::V {
        sum
    }
    /// `acc +` the sum of each lane's pair of halves, in f32.
    #[inline(always)]
    fn add_pair_half(acc: Self::V, pairs: Self::V) -> Self::V {
        let ones = Self::pair_half(Self::splat(1.0), Self::splat(1.0));
        match Self::HALF_SPAN {
            usize::MAX => Self::dot_half(acc, pairs, ones),
            _ => {
                let sum = Self::dot_half(Self::splat(0.0), pairs, ones);
                Self::add(acc, Self::sum_of_halves(sum))
            }
        }
    }
    /// Pairs of halves: one of `low` in the lower half, one of `high` in the upper.
    fn pair_half(_low: Self::V, _high: Self::V) -> Self::V {
        unreachable!("no halves here")
    }
    /// Pairs of halves of thirty-two values in a row.
    fn row_half(_first: Self::V, _second: Self::V) -> Self::V {
        unreachable!("no halves here")
    }

    /// Thirty-two values of pairs of halves in a row: the first sixteen, and the others.
    fn values_half(_pairs: Self::V) -> (Self::V, Self::V) {
        unreachable!("no halves here")
    }
    /// Two rows of thirty-two halves to pairs of one of `low` and one of `high`: for the first sixteen
    /// columns, and for the others.
    fn zip_half(_low: Self::V, _high: Self::V) -> (Self::V, Self::V) {
        unreachable!("no halves here")
    }

    /// `acc +` the dot product of each lane's four bytes: unsigned of `a`, signed of `b`. The bits
    /// of `acc` are an i32.
    #[inline(always)]
    fn dot_int8(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let (mut sums, a, b) = (Self::lanes(acc), Self::lanes(a), Self::lanes(b));
        for i in 0..LANES {
            let (a, b) = (a[i].to_bits().to_le_bytes(), b[i].to_bits().to_le_bytes());
            let mut sum = sums[i].to_bits() as i32;
            for j in 0..4 {
                sum = sum.wrapping_add(i32::from(a[j]) * i32::from(b[j] as i8));
            }
            sums[i] = f32::from_bits(sum as u32);
        }
        Self::read(&sums)
    }
    /// The values of lanes whose bits are an i32.
    #[inline(always)]
    fn from_int(v: Self::V) -> Self::V {
        Self::read(&Self::lanes(v).map(|x| x.to_bits() as i32 as f32))
    }
    /// The whole numbers nearest to sixty-four values, cut at 0 and 255, as bytes in a row.
    #[inline(always)]
    fn bytes(values: [Self::V; 4]) -> Self::V {
        let mut words = [0.0; LANES];
        for (values, words) in values.into_iter().zip(words.chunks_exact_mut(4)) {
            for (four, word) in Self::lanes(Self::round(values)).chunks_exact(4).zip(words) {
                let bytes = [four[0], four[1], four[2], four[3]].map(|x| x as u8);
                *word = f32::from_bits(u32::from_le_bytes(bytes));
            }
        }
        Self::read(&words)
    }

    #[inline(always)]
    fn lanes(v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        Self::write(&mut lanes, v);
        lanes
    }

    /// The sum of the lanes, in a fixed order.
    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        let mut lanes = Self::lanes(v);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The least lane.
    #[inline(always)]
    fn least(v: Self::V) -> f32 {
        -Self::greatest(Self::sub(Self::splat(0.0), v))
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(v: Self::V) -> f32 {
        let mut best = f32::NEG_INFINITY;
        for lane in Self::lanes(v) {
            best = best.max(lane);
        }
        best
    }
}
