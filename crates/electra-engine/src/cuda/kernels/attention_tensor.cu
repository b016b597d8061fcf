// Attention within sequences on tensor cores, in bf16, for heads of 32, 64, 96 and 128 columns
// (after T. Dao, "FlashAttention-2", 2023). A block of four warps takes 64 queries, or in the
// backward of keys and values 64 keys; scores stay in registers.
//
// Fragments: with g = lane / 4 and t = lane % 4 a warp's sums [16, 8 n] lie as s[n][0..4] = rows
// g, g, g + 8, g + 8 and columns 8 n + 2 t, + 1, + 0, + 1. Rounded in pairs they are the left side
// of the next product as they are.

enum { TILE = 64 };

// Rows first .. first + 64 of a matrix to shared memory, zero from `rows` on.
template <int D>
__device__ __forceinline__ void load_tile(bf16* tile, const Mat& m, unsigned row0, unsigned rows,
                                          unsigned first, unsigned column) {
    for (unsigned i = threadIdx.x; i < TILE * (D / 8); i += blockDim.x) {
        unsigned r = i / (D / 8), c = i % (D / 8) * 8;
        uint4 v = {0, 0, 0, 0};
        if (first + r < rows) {
            v = *(const uint4*)((const bf16*)m.data + place(m, row0 + first + r, column + c));
        }
        *(uint4*)(tile + r * (D + 8) + c) = v;
    }
}

// s = a b' for the warp's 16 rows of a tile `a` and the 64 rows of a tile `b`.
template <int D>
__device__ __forceinline__ void scores(float s[8][4], const bf16* a, const bf16* b) {
    unsigned lane = threadIdx.x % 32;
    const bf16* left = a + (threadIdx.x / 32 * 16 + lane % 16) * (D + 8) + lane / 16 * 8;
    const bf16* right = b + (lane / 16 * 8 + lane % 8) * (D + 8) + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[n][i] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned af[4];
        load_matrices(af, left + k * 16);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            unsigned bf[4];
            load_matrices(bf, right + n * 16 * (D + 8) + k * 16);
            mma(s[2 * n], af, bf[0], bf[1]);
            mma(s[2 * n + 1], af, bf[2], bf[3]);
        }
    }
}

// o += p b for the warp's 16 rows of probabilities over 64 and a tile `b` of 64 rows.
template <int D>
__device__ __forceinline__ void accumulate(float o[D / 8][4], const float p[8][4], const bf16* b) {
    unsigned lane = threadIdx.x % 32;
    const bf16* right = b + (lane / 8 % 2 * 8 + lane % 8) * (D + 8) + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        unsigned af[4] = {
            to_bf16_pair(p[2 * k][0], p[2 * k][1]), to_bf16_pair(p[2 * k][2], p[2 * k][3]),
            to_bf16_pair(p[2 * k + 1][0], p[2 * k + 1][1]),
            to_bf16_pair(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            unsigned bf[4];
            load_transposed(bf, right + k * 16 * (D + 8) + n * 16);
            mma(o[2 * n], af, bf[0], bf[1]);
            mma(o[2 * n + 1], af, bf[2], bf[3]);
        }
    }
}

// What dropout keeps of a row's 128 keys from a multiple of 128 on, for the columns of this lane's
// fragments: byte 2 (n % 2) + e of the word, bit n / 2 for the first 64 keys and 4 + n / 2 for the
// others.
__device__ __forceinline__ unsigned kept_columns(const DropSpec& drop, unsigned example,
                                                 unsigned position, unsigned first_block) {
    unsigned t = threadIdx.x % 4, word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        unsigned block = first_block + i / 2 * 8 + 2 * t + i % 2;
        word |= kept_halves(drop, example, position, block) << (8 * i);
    }
    return word;
}

// Writes the warp's sums [16, D] times `factor` of each row.
template <int D>
__device__ __forceinline__ void write_rows(const Mat& m, unsigned row0, unsigned rows, unsigned first,
                                           unsigned column, const float o[D / 8][4],
                                           const float factor[2]) {
    unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        unsigned row = first + lane / 4 + 8 * r;
        if (row < rows) {
            bf16* to = (bf16*)m.data + place(m, row0 + row, column + lane % 4 * 2);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                *(unsigned*)(to + 8 * n) =
                    to_bf16_pair(o[n][2 * r] * factor[r], o[n][2 * r + 1] * factor[r]);
            }
        }
    }
}

template <int D>
__device__ __forceinline__ void attention_forward(const Mat& q, const Mat& k, const Mat& v,
                                                  const unsigned* cu_seqlens, unsigned tiles,
                                                  const DropSpec& drop, const Mat& y,
                                                  const Mat& log_sum, float scale) {
    unsigned sequence = blockIdx.x / tiles, first = blockIdx.x % tiles * TILE;
    unsigned start = cu_seqlens[sequence], len = cu_seqlens[sequence + 1] - start;
    if (first >= len) {
        return;
    }
    bf16* queries = (bf16*)DYNAMIC_SHARED;
    bf16 *keys = queries + TILE * (D + 8), *values = keys + TILE * (D + 8);
    unsigned head = blockIdx.y, column = head * D;
    unsigned lane = threadIdx.x % 32, own = first + threadIdx.x / 32 * 16 + lane / 4;
    const float log2e = 1.44269504f, ln2 = 0.69314718f;
    unsigned example[2], position[2], keeps[2];
    float max[2], total[2], o[D / 8][4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        unsigned row = start + (own + 8 * r < len ? own + 8 * r : len - 1);
        example[r] = drop.threshold ? drop.examples[row] : 0;
        position[r] = drop.threshold ? drop.positions[row] : 0;
        keeps[r] = 0xffffffffu;
        max[r] = __uint_as_float(0xff800000u);
        total[r] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            o[n][i] = 0.0f;
        }
    }
    load_tile<D>(queries, q, start, len, first, column);
    for (unsigned j0 = 0; j0 < len; j0 += TILE) {
        load_tile<D>(keys, k, start, len, j0, column);
        load_tile<D>(values, v, start, len, j0, column);
        __syncthreads();
        float s[8][4];
        scores<D>(s, queries, keys);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float now = max[r];
#pragma unroll
            for (int n = 0; n < 8; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    bool inside = j0 + 8 * n + lane % 4 * 2 + e < len;
                    float score = inside ? s[n][2 * r + e] * (scale * log2e)
                                         : __uint_as_float(0xff800000u);
                    s[n][2 * r + e] = score;
                    now = score > now ? score : now;
                }
            }
#pragma unroll
            for (int d = 1; d < 4; d *= 2) {
                float other = __shfl_xor_sync(0xffffffffu, now, d);
                now = other > now ? other : now;
            }
            float shrink = exp2f(max[r] - now), sum = 0.0f;
            max[r] = now;
            if (drop.threshold && j0 % 128 == 0) {
                keeps[r] = kept_columns(drop, example[r], position[r],
                                        head * HEAD_BLOCKS + j0 / 128 * 16);
            }
            unsigned bits = keeps[r] >> (j0 % 128 / 16);
#pragma unroll
            for (int n = 0; n < 8; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float p = exp2f(s[n][2 * r + e] - now);
                    sum += p;
                    s[n][2 * r + e] = bits >> (8 * (2 * (n % 2) + e) + n / 2) & 1 ? p : 0.0f;
                }
            }
            total[r] = total[r] * shrink + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                o[n][2 * r] *= shrink;
                o[n][2 * r + 1] *= shrink;
            }
        }
        accumulate<D>(o, s, values);
        __syncthreads();
    }
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
        factor[r] = drop.scale / total[r];
        if (lane % 4 == 0 && own + 8 * r < len) {
            put(log_sum, start + own + 8 * r, head, max[r] * ln2 + logf(total[r]));
        }
    }
    write_rows<D>(y, start, len, own - lane / 4, column, o, factor);
}

template <int D>
__device__ __forceinline__ void attention_dq(const Mat& q, const Mat& k, const Mat& v,
                                             const unsigned* cu_seqlens, unsigned tiles,
                                             const DropSpec& drop, const Mat& log_sum,
                                             const float* delta, const Mat& dy, const Mat& dq,
                                             unsigned heads, float scale) {
    unsigned sequence = blockIdx.x / tiles, first = blockIdx.x % tiles * TILE;
    unsigned start = cu_seqlens[sequence], len = cu_seqlens[sequence + 1] - start;
    if (first >= len) {
        return;
    }
    bf16* queries = (bf16*)DYNAMIC_SHARED;
    bf16 *slopes = queries + TILE * (D + 8), *keys = slopes + TILE * (D + 8);
    bf16* values = keys + TILE * (D + 8);
    unsigned head = blockIdx.y, column = head * D;
    unsigned lane = threadIdx.x % 32, own = first + threadIdx.x / 32 * 16 + lane / 4;
    const float log2e = 1.44269504f;
    unsigned example[2], position[2], keeps[2];
    float normalizer[2], mean[2], o[D / 8][4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        unsigned row = start + (own + 8 * r < len ? own + 8 * r : len - 1);
        example[r] = drop.threshold ? drop.examples[row] : 0;
        position[r] = drop.threshold ? drop.positions[row] : 0;
        keeps[r] = 0xffffffffu;
        normalizer[r] = get(log_sum, row, head) * log2e;
        mean[r] = delta[(size_t)row * heads + head];
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            o[n][i] = 0.0f;
        }
    }
    load_tile<D>(queries, q, start, len, first, column);
    load_tile<D>(slopes, dy, start, len, first, column);
    for (unsigned j0 = 0; j0 < len; j0 += TILE) {
        load_tile<D>(keys, k, start, len, j0, column);
        load_tile<D>(values, v, start, len, j0, column);
        __syncthreads();
        float s[8][4], d[8][4];
        scores<D>(s, queries, keys);
        scores<D>(d, slopes, values);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (drop.threshold && j0 % 128 == 0) {
                keeps[r] = kept_columns(drop, example[r], position[r],
                                        head * HEAD_BLOCKS + j0 / 128 * 16);
            }
            unsigned bits = keeps[r] >> (j0 % 128 / 16);
#pragma unroll
            for (int n = 0; n < 8; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    bool inside = j0 + 8 * n + lane % 4 * 2 + e < len;
                    float p = exp2f(s[n][2 * r + e] * (scale * log2e) - normalizer[r]);
                    bool keep = bits >> (8 * (2 * (n % 2) + e) + n / 2) & 1;
                    float slope = keep ? d[n][2 * r + e] * drop.scale : 0.0f;
                    s[n][2 * r + e] = inside ? p * (slope - mean[r]) : 0.0f;
                }
            }
        }
        accumulate<D>(o, s, keys);
        __syncthreads();
    }
    float factor[2] = {scale, scale};
    write_rows<D>(dq, start, len, own - lane / 4, column, o, factor);
}

template <int D>
__device__ __forceinline__ void attention_dkv(const Mat& q, const Mat& k, const Mat& v,
                                              const unsigned* cu_seqlens, unsigned tiles,
                                              const DropSpec& drop, const Mat& log_sum,
                                              const float* delta, const Mat& dy, const Mat& dk,
                                              const Mat& dv, unsigned heads, float scale) {
    unsigned sequence = blockIdx.x / tiles, first = blockIdx.x % tiles * TILE;
    unsigned start = cu_seqlens[sequence], len = cu_seqlens[sequence + 1] - start;
    if (first >= len) {
        return;
    }
    bf16* queries = (bf16*)DYNAMIC_SHARED;
    bf16 *slopes = queries + TILE * (D + 8), *keys = slopes + TILE * (D + 8);
    bf16* values = keys + TILE * (D + 8);
    float *normalizers = (float*)(values + TILE * (D + 8)), *means = normalizers + TILE;
    // Byte [query][key % 16], a bit for each 16 of 128 keys.
    unsigned char* keeps = (unsigned char*)(means + TILE);
    unsigned head = blockIdx.y, column = head * D, warp = threadIdx.x / 32;
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float log2e = 1.44269504f;
    float o_keys[D / 8][4], o_values[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            o_keys[n][i] = 0.0f;
            o_values[n][i] = 0.0f;
        }
    }
    load_tile<D>(keys, k, start, len, first, column);
    load_tile<D>(values, v, start, len, first, column);
    unsigned half = (first + warp * 16) % 128 / 16;
    for (unsigned i0 = 0; i0 < len; i0 += TILE) {
        load_tile<D>(queries, q, start, len, i0, column);
        load_tile<D>(slopes, dy, start, len, i0, column);
        if (threadIdx.x < TILE) {
            unsigned row = i0 + threadIdx.x;
            // Beyond the sequence probabilities are zero.
            normalizers[threadIdx.x] = row < len ? get(log_sum, start + row, head) * log2e
                                                 : __uint_as_float(0x7f800000u);
            means[threadIdx.x] = row < len ? delta[(size_t)(start + row) * heads + head] : 0.0f;
        }
        if (drop.threshold) {
            for (unsigned i = threadIdx.x; i < TILE * 16; i += blockDim.x) {
                unsigned row = i0 + i / 16;
                if (row < len) {
                    keeps[i] = kept_halves(drop, drop.examples[start + row],
                                           drop.positions[start + row],
                                           head * HEAD_BLOCKS + first / 128 * 16 + i % 16);
                }
            }
        }
        __syncthreads();
        // Rows are keys, columns queries.
        float s[8][4], d[8][4];
        scores<D>(s, keys, queries);
        scores<D>(d, values, slopes);
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                unsigned query = 8 * n + 2 * t + i % 2;
                float p = exp2f(s[n][i] * (scale * log2e) - normalizers[query]);
                bool keep = true;
                if (drop.threshold) {
                    keep = keeps[query * 16 + g + i / 2 * 8] >> half & 1;
                }
                float slope = keep ? d[n][i] * drop.scale : 0.0f;
                d[n][i] = p == 0.0f ? 0.0f : p * (slope - means[query]);
                s[n][i] = keep ? p : 0.0f;
            }
        }
        accumulate<D>(o_values, s, slopes);
        accumulate<D>(o_keys, d, queries);
        __syncthreads();
    }
    float key_factor[2] = {scale, scale}, value_factor[2] = {drop.scale, drop.scale};
    write_rows<D>(dk, start, len, first + warp * 16, column, o_keys, key_factor);
    write_rows<D>(dv, start, len, first + warp * 16, column, o_values, value_factor);
}

#define FORWARD(NAME, D)                                                                        \
    extern "C" __global__ void __launch_bounds__(128) NAME(                                     \
        Mat q, Mat k, Mat v, const unsigned* cu_seqlens, unsigned tiles, DropSpec drop, Mat y,  \
        Mat log_sum, float scale) {                                                             \
        attention_forward<D>(q, k, v, cu_seqlens, tiles, drop, y, log_sum, scale);              \
    }
FORWARD(attention_tensor_32, 32)
FORWARD(attention_tensor_64, 64)
FORWARD(attention_tensor_96, 96)
FORWARD(attention_tensor_128, 128)

#define BACKWARD_QUERIES(NAME, D)                                                               \
    extern "C" __global__ void __launch_bounds__(128) NAME(                                     \
        Mat q, Mat k, Mat v, const unsigned* cu_seqlens, unsigned tiles, DropSpec drop,         \
        Mat log_sum, const float* delta, Mat dy, Mat dq, unsigned heads, float scale) {         \
        attention_dq<D>(q, k, v, cu_seqlens, tiles, drop, log_sum, delta, dy, dq, heads, scale); \
    }
BACKWARD_QUERIES(attention_tensor_dq_32, 32)
BACKWARD_QUERIES(attention_tensor_dq_64, 64)
BACKWARD_QUERIES(attention_tensor_dq_96, 96)
BACKWARD_QUERIES(attention_tensor_dq_128, 128)

#define BACKWARD_KEYS(NAME, D)                                                                  \
    extern "C" __global__ void __launch_bounds__(128) NAME(                                     \
        Mat q, Mat k, Mat v, const unsigned* cu_seqlens, unsigned tiles, DropSpec drop,         \
        Mat log_sum, const float* delta, Mat dy, Mat dk, Mat dv, unsigned heads, float scale) { \
        attention_dkv<D>(q, k, v, cu_seqlens, tiles, drop, log_sum, delta, dy, dk, dv, heads,   \
                         scale);                                                                \
    }
BACKWARD_KEYS(attention_tensor_dkv_32, 32)
BACKWARD_KEYS(attention_tensor_dkv_64, 64)
BACKWARD_KEYS(attention_tensor_dkv_96, 96)
BACKWARD_KEYS(attention_tensor_dkv_128, 128)
