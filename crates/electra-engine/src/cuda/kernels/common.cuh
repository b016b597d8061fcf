// What every kernel uses: matrices of two element types, random numbers, sums over a warp.
//
// The sources are compiled by NVRTC for a device, and by a C++ compiler with emulator.h for tests.

enum { KIND_F32 = 0, KIND_BF16 = 1 };

typedef unsigned short bf16;
typedef unsigned long long u64;

// A row-major matrix of f32 or bf16; twin of `Mat` in kernels.rs.
struct Mat {
    void* data;
    unsigned stride;
    unsigned kind;
};

// A dropout; twin of `DropSpec` in kernels.rs. Nothing is dropped where threshold is 0.
struct DropSpec {
    const unsigned* examples;
    const unsigned* positions;
    unsigned key0;
    unsigned key1;
    unsigned threshold;
    unsigned stream;
    float scale;
    unsigned unused;
};

#ifndef EMULATED
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

// `low` in the lower half.
__device__ __forceinline__ unsigned to_bf16_pair(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// d += a b for one warp: a [16, 16], b [16, 8] in bf16, d [16, 8] in f32, spread over the lanes as
// PTX's mma.m16n8k16 has them.
__device__ __forceinline__ void mma(float d[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of bf16 from shared memory; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned r[4], const bf16* row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_transposed(unsigned r[4], const bf16* row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

extern __shared__ __align__(16) unsigned char dynamic_shared[];
#define DYNAMIC_SHARED dynamic_shared
#endif

__device__ __forceinline__ float from_bf16(bf16 h) {
    return __uint_as_float((unsigned)h << 16);
}

__device__ __forceinline__ size_t place(const Mat& m, unsigned row, unsigned column) {
    return (size_t)row * m.stride + column;
}

__device__ __forceinline__ float get(const Mat& m, unsigned row, unsigned column) {
    size_t at = place(m, row, column);
    return m.kind == KIND_F32 ? ((const float*)m.data)[at] : from_bf16(((const bf16*)m.data)[at]);
}

__device__ __forceinline__ void put(const Mat& m, unsigned row, unsigned column, float value) {
    size_t at = place(m, row, column);
    if (m.kind == KIND_F32) {
        ((float*)m.data)[at] = value;
    } else {
        ((bf16*)m.data)[at] = to_bf16(value);
    }
}

// W neighbouring columns at once. W is 1, or 8 where address and stride allow (`wide` in
// kernels.rs decides).
template <int W>
__device__ __forceinline__ void load(const Mat& m, unsigned row, unsigned column, float v[W]) {
    if (W == 1) {
        v[0] = get(m, row, column);
        return;
    }
    size_t at = place(m, row, column);
    if (m.kind == KIND_F32) {
        const float4* from = (const float4*)((const float*)m.data + at);
        float4 a = from[0], b = from[1];
        v[0] = a.x, v[1 % W] = a.y, v[2 % W] = a.z, v[3 % W] = a.w;
        v[4 % W] = b.x, v[5 % W] = b.y, v[6 % W] = b.z, v[7 % W] = b.w;
    } else {
        uint4 a = *(const uint4*)((const bf16*)m.data + at);
        unsigned words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[2 * i % W] = __uint_as_float(words[i] << 16);
            v[(2 * i + 1) % W] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
}

template <int W>
__device__ __forceinline__ void store(const Mat& m, unsigned row, unsigned column, const float v[W]) {
    if (W == 1) {
        put(m, row, column, v[0]);
        return;
    }
    size_t at = place(m, row, column);
    if (m.kind == KIND_F32) {
        float4* to = (float4*)((float*)m.data + at);
        to[0] = make_float4(v[0], v[1 % W], v[2 % W], v[3 % W]);
        to[1] = make_float4(v[4 % W], v[5 % W], v[6 % W], v[7 % W]);
    } else {
        uint4 a;
        a.x = to_bf16_pair(v[0], v[1 % W]);
        a.y = to_bf16_pair(v[2 % W], v[3 % W]);
        a.z = to_bf16_pair(v[4 % W], v[5 % W]);
        a.w = to_bf16_pair(v[6 % W], v[7 % W]);
        *(uint4*)((bf16*)m.data + at) = a;
    }
}

// A value as the matrix will keep it.
__device__ __forceinline__ float kept(const Mat& m, float value) {
    return m.kind == KIND_F32 ? value : from_bf16(to_bf16(value));
}

// W neighbouring f32 of a vector: weights and biases, which lie at multiples of 16 elements.
template <int W>
__device__ __forceinline__ void load_vector(const float* from, unsigned column, float v[W]) {
    Mat m = {(void*)from, 0, KIND_F32};
    load<W>(m, 0, column, v);
}

// ---- random numbers: twins of rng.rs and of Dropout::place --------------------------------

struct Words {
    unsigned w[4];
};

__device__ __forceinline__ Words philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3,
                                        unsigned k0, unsigned k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        if (round > 0) {
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        u64 a = (u64)c0 * 0xD2511F53u, b = (u64)c2 * 0xCD9E8D57u;
        unsigned n0 = (unsigned)(b >> 32) ^ c1 ^ k0, n2 = (unsigned)(a >> 32) ^ c3 ^ k1;
        c1 = (unsigned)b;
        c3 = (unsigned)a;
        c0 = n0;
        c2 = n2;
    }
    return {{c0, c1, c2, c3}};
}

// Bit h is set where the block's half h keeps its value: half h decides on column
// `16 h + block % 16` of the block's 128.
__device__ __forceinline__ unsigned kept_halves(const DropSpec& drop, unsigned example,
                                                unsigned position, unsigned block) {
    Words words = philox(block, position, example, drop.stream, drop.key0, drop.key1);
    unsigned bits = 0;
#pragma unroll
    for (int half = 0; half < 8; half++) {
        unsigned draw = words.w[half / 2] >> (16 * (half % 2)) & 0xffffu;
        bits |= (draw >= drop.threshold ? 1u : 0u) << half;
    }
    return bits;
}

// Whether one column is kept.
__device__ __forceinline__ bool is_kept(const DropSpec& drop, unsigned example, unsigned position,
                                        unsigned first_block, unsigned column) {
    unsigned block = first_block + column / 128 * 16 + column % 16;
    return kept_halves(drop, example, position, block) >> (column % 128 / 16) & 1;
}

// Multiplies W columns of a row with dropout's factors. With W = 8 the lanes of a warp have
// neighbouring groups of eight, column = 256 i + 8 lane; each lane draws one block, and the lanes
// exchange what they drew, so all of them must call this.
template <int W>
__device__ __forceinline__ void drop_columns(const DropSpec& drop, unsigned row, unsigned column,
                                             float v[W]) {
    if (drop.threshold == 0) {
        return;
    }
    unsigned example = drop.examples[row], position = drop.positions[row];
    if (W == 1) {
        v[0] = is_kept(drop, example, position, 0, column) ? v[0] * drop.scale : 0.0f;
        return;
    }
    unsigned lane = threadIdx.x % 32;
    // The warp's 256 columns have 32 blocks: lane l draws block l.
    unsigned own = kept_halves(drop, example, position, column / 256 * 32 + lane);
    unsigned source = lane / 16 * 16 + column % 16, half = column % 128 / 16;
#pragma unroll
    for (int i = 0; i < W; i++) {
        unsigned bits = __shfl_sync(0xffffffffu, own, source + i);
        v[i] = bits >> half & 1 ? v[i] * drop.scale : 0.0f;
    }
}

// A number in [0, 1) with 53 bits; twin of Rng::uniform.
__device__ __forceinline__ double uniform(unsigned key0, unsigned key1, unsigned stream,
                                          unsigned example, unsigned position) {
    Words words = philox(0, position, example, stream, key0, key1);
    u64 bits = ((u64)words.w[0] << 32 | words.w[1]) >> 11;
    return (double)bits * (1.0 / 9007199254740992.0);
}

// ---- sums -------------------------------------------------------------------------------

// Sum over the lanes of a warp, the same bits in every lane.
template <typename F>
__device__ __forceinline__ F warp_sum(F x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, d);
    }
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        // Not fmaxf, which would lose what is not a number.
        float y = __shfl_xor_sync(0xffffffffu, x, d);
        x = (y > x || y != y) ? y : x;
    }
    return x;
}

// Sum over a block of at most 1024 threads, the same bits in every thread. All threads call it.
template <typename F>
__device__ __forceinline__ F block_sum(F x) {
    __shared__ F parts[32];
    unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        parts[warp] = x;
    }
    __syncthreads();
    F sum = 0;
    for (unsigned i = 0; i < warps; i++) {
        sum += parts[i];
    }
    return sum;
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        parts[warp] = x;
    }
    __syncthreads();
    float max = parts[0];
    for (unsigned i = 1; i < warps; i++) {
        max = (parts[i] > max || parts[i] != parts[i]) ? parts[i] : max;
    }
    return max;
}

// Row that the warp works on, where a block's eight warps take a row each.
__device__ __forceinline__ unsigned warp_row() {
    return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
}
