// Linear layers beside the big products: sums over rows, layers of few outputs, and a product of
// our own for shapes and machines that cuBLASLt has nothing for.

enum { COLUMN_SUM = 0, COLUMN_NORM = 1, COLUMN_WEIGHTED = 2 };

// Partial sums over rows: block (i, j) takes rows i, i + gridDim.x, ... by its eight warps, and
// 32 W columns.
//
// COLUMN_SUM: partials[i][c] = sum of d. COLUMN_NORM: the same, and in partials[i][cols + c] the
// sum of d (x - mean) / deviation. COLUMN_WEIGHTED: sum of d times x[row][which].
template <int W, int MODE>
__device__ void column_partials(Mat d, Mat x, Mat stats, unsigned which, float* partials,
                                unsigned rows, unsigned cols) {
    enum { SUMS = MODE == COLUMN_NORM ? 2 : 1 };
    __shared__ float shared[8][32 * W];
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned first = blockIdx.y * 32 * W, c = first + lane * W;
    float sums[SUMS][W];
#pragma unroll
    for (int k = 0; k < SUMS; k++) {
#pragma unroll
        for (int j = 0; j < W; j++) {
            sums[k][j] = 0.0f;
        }
    }
    if (c < cols) {
        for (unsigned row = blockIdx.x * 8 + warp; row < rows; row += gridDim.x * 8) {
            float v[W];
            load<W>(d, row, c, v);
            if (MODE == COLUMN_NORM) {
                float h[W];
                load<W>(x, row, c, h);
                float mean = get(stats, row, 0), reciprocal = get(stats, row, 1);
#pragma unroll
                for (int j = 0; j < W; j++) {
                    sums[SUMS - 1][j] += v[j] * ((h[j] - mean) * reciprocal);
                }
            }
            float factor = MODE == COLUMN_WEIGHTED ? get(x, row, which) : 1.0f;
#pragma unroll
            for (int j = 0; j < W; j++) {
                sums[0][j] += v[j] * factor;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < SUMS; k++) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < W; j++) {
            shared[warp][lane * W + j] = sums[k][j];
        }
        __syncthreads();
        for (unsigned j = threadIdx.x; j < 32 * W && first + j < cols; j += blockDim.x) {
            float sum = 0.0f;
            for (int i = 0; i < 8; i++) {
                sum += shared[i][j];
            }
            partials[((size_t)blockIdx.x * SUMS + k) * cols + first + j] = sum;
        }
    }
}

#define COLUMNS(NAME, W, MODE)                                                                  \
    extern "C" __global__ void NAME(Mat d, Mat x, Mat stats, unsigned which, float* partials,   \
                                    unsigned rows, unsigned cols) {                             \
        column_partials<W, MODE>(d, x, stats, which, partials, rows, cols);                     \
    }
COLUMNS(column_sum_1, 1, COLUMN_SUM)
COLUMNS(column_sum_8, 8, COLUMN_SUM)
COLUMNS(column_norm_1, 1, COLUMN_NORM)
COLUMNS(column_norm_8, 8, COLUMN_NORM)
COLUMNS(column_weighted_1, 1, COLUMN_WEIGHTED)
COLUMNS(column_weighted_8, 8, COLUMN_WEIGHTED)

// out_y[c] += sum over i of partials[i][y][c] for y = blockIdx.y, by blocks of 32 columns x 8.
extern "C" __global__ void add_partials(const float* partials, unsigned count, float* out0,
                                        float* out1, float* out2, unsigned cols) {
    __shared__ float shared[8][32];
    unsigned lane = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float* out = blockIdx.y == 0 ? out0 : blockIdx.y == 1 ? out1 : out2;
    const float* from = partials + (size_t)blockIdx.y * cols;
    size_t stride = (size_t)gridDim.y * cols;
    float sum = 0.0f;
    if (c < cols) {
        for (unsigned i = part; i < count; i += 8) {
            sum += from[i * stride + c];
        }
    }
    shared[part][lane] = sum;
    __syncthreads();
    if (part == 0 && c < cols) {
        for (int i = 1; i < 8; i++) {
            sum += shared[i][lane];
        }
        out[c] += sum;
    }
}

enum { THIN = 16 };

// y = x W' + b for at most 16 outputs; a warp takes a row.
extern "C" __global__ void thin_forward(Mat x, const float* weight, const float* bias, Mat y,
                                        unsigned rows, unsigned inputs, unsigned outputs) {
    unsigned row = warp_row(), lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    float sums[THIN];
#pragma unroll
    for (int o = 0; o < THIN; o++) {
        sums[o] = 0.0f;
    }
    for (unsigned c = lane; c < inputs; c += 32) {
        float v = get(x, row, c);
#pragma unroll
        for (int o = 0; o < THIN; o++) {
            if (o < outputs) {
                sums[o] += v * weight[(size_t)o * inputs + c];
            }
        }
    }
#pragma unroll
    for (int o = 0; o < THIN; o++) {
        if (o < outputs) {
            float sum = warp_sum(sums[o]);
            if (lane == 0) {
                put(y, row, o, sum + bias[o]);
            }
        }
    }
}

// dx = dy W, or dx += dy W, for at most 16 outputs.
extern "C" __global__ void thin_backward_input(Mat dy, const float* weight, Mat dx,
                                               unsigned accumulate, unsigned rows, unsigned inputs,
                                               unsigned outputs) {
    unsigned row = warp_row(), lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    for (unsigned c = lane; c < inputs; c += 32) {
        float sum = accumulate ? get(dx, row, c) : 0.0f;
        for (unsigned o = 0; o < outputs; o++) {
            sum += get(dy, row, o) * weight[(size_t)o * inputs + c];
        }
        put(dx, row, c, sum);
    }
}

// c = a b + bias, or c += a b: c [m, n]. a is [m, k], or with a_transposed [k, m]; b is [k, n], or
// with b_transposed [n, k]. Blocks of 64 x 64 by 256 threads.
extern "C" __global__ void product(Mat a, unsigned a_transposed, Mat b, unsigned b_transposed, Mat c,
                                   const float* bias, unsigned accumulate, unsigned m, unsigned n,
                                   unsigned k) {
    __shared__ float left[16][65], right[16][65];
    unsigned row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
    unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sums[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            sums[i][j] = 0.0f;
        }
    }
    for (unsigned k0 = 0; k0 < k; k0 += 16) {
        for (unsigned i = threadIdx.x; i < 1024; i += 256) {
            // Neighbouring threads read neighbouring elements, whichever way the matrix lies.
            unsigned kk = a_transposed ? i / 64 : i % 16, r = a_transposed ? i % 64 : i / 16;
            bool inside = row0 + r < m && k0 + kk < k;
            left[kk][r] = !inside ? 0.0f
                : a_transposed ? get(a, k0 + kk, row0 + r) : get(a, row0 + r, k0 + kk);
            kk = b_transposed ? i % 16 : i / 64;
            r = b_transposed ? i / 16 : i % 64;
            inside = column0 + r < n && k0 + kk < k;
            right[kk][r] = !inside ? 0.0f
                : b_transposed ? get(b, column0 + r, k0 + kk) : get(b, k0 + kk, column0 + r);
        }
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < 16; kk++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sums[i][j] += left[kk][ty + 16 * i] * right[kk][tx + 16 * j];
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            unsigned row = row0 + ty + 16 * i, column = column0 + tx + 16 * j;
            if (row < m && column < n) {
                float sum = sums[i][j];
                if (bias) {
                    sum += bias[column];
                }
                if (accumulate) {
                    sum += get(c, row, column);
                }
                put(c, row, column, sum);
            }
        }
    }
}
