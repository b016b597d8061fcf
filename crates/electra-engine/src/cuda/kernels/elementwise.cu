// Activations, binary cross-entropy, and sums with dropout.

enum { GELU = 0, GELU_TANH = 1 };

// f(z)
__device__ __forceinline__ float activate(unsigned kind, float z) {
    if (kind == GELU) {
        return z * (0.5f * (1.0f + erff(z * 0.70710678f)));
    }
    float tanh = tanhf(0.79788456f * (z + 0.044715f * z * z * z));
    return 0.5f * z * (1.0f + tanh);
}

// f'(z)
__device__ __forceinline__ float activation_slope(unsigned kind, float z) {
    if (kind == GELU) {
        float cdf = 0.5f * (1.0f + erff(z * 0.70710678f));
        return cdf + z * expf(-0.5f * z * z) * 0.39894228f;
    }
    float tanh = tanhf(0.79788456f * (z + 0.044715f * z * z * z));
    // Where tanh is 1 the next factor may overflow, and 0 times infinity is no number.
    float slope = 1.0f - tanh * tanh;
    float inner = slope == 0.0f ? 0.0f : slope * (0.79788456f * (1.0f + 3.0f * 0.044715f * z * z));
    return 0.5f * (1.0f + tanh) + 0.5f * z * inner;
}

// y = f(z), or with d the gradient: y = f'(z) d.
template <int W>
__device__ void activation_rows(unsigned kind, Mat z, Mat d, Mat y, unsigned rows, unsigned cols) {
    unsigned row = warp_row();
    if (row >= rows) {
        return;
    }
    for (unsigned c = threadIdx.x % 32 * W; c < cols; c += 32 * W) {
        float v[W], slope[W];
        load<W>(z, row, c, v);
        if (d.data) {
            load<W>(d, row, c, slope);
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            v[i] = d.data ? activation_slope(kind, v[i]) * slope[i] : activate(kind, v[i]);
        }
        store<W>(y, row, c, v);
    }
}

extern "C" __global__ void activation_1(unsigned kind, Mat z, Mat d, Mat y, unsigned rows,
                                        unsigned cols) {
    activation_rows<1>(kind, z, d, y, rows, cols);
}
extern "C" __global__ void activation_8(unsigned kind, Mat z, Mat d, Mat y, unsigned rows,
                                        unsigned cols) {
    activation_rows<8>(kind, z, d, y, rows, cols);
}

// y = residual + dropout(x); without a residual y = dropout(x).
template <int W>
__device__ void add_rows(Mat residual, Mat x, DropSpec drop, Mat y, unsigned rows, unsigned cols) {
    unsigned row = warp_row();
    if (row >= rows) {
        return;
    }
    for (unsigned base = 0; base < cols; base += 32 * W) {
        unsigned c = base + threadIdx.x % 32 * W;
        float v[W];
        if (c < cols) {
            load<W>(x, row, c, v);
        }
        drop_columns<W>(drop, row, c, v);
        if (c < cols) {
            if (residual.data) {
                float r[W];
                load<W>(residual, row, c, r);
#pragma unroll
                for (int i = 0; i < W; i++) {
                    v[i] += r[i];
                }
            }
            store<W>(y, row, c, v);
        }
    }
}

extern "C" __global__ void add_dropped_1(Mat residual, Mat x, DropSpec drop, Mat y, unsigned rows,
                                         unsigned cols) {
    add_rows<1>(residual, x, drop, y, rows, cols);
}
extern "C" __global__ void add_dropped_8(Mat residual, Mat x, DropSpec drop, Mat y, unsigned rows,
                                         unsigned cols) {
    add_rows<8>(residual, x, drop, y, rows, cols);
}

// Binary cross-entropy of sigmoid(logit), one logit a row.
extern "C" __global__ void cross_entropy(Mat logits, const unsigned* labels, Mat loss,
                                         unsigned rows) {
    unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        float x = get(logits, row, 0);
        float positive = x < 0.0f ? 0.0f : x;
        put(loss, row, 0, positive - x * (float)labels[row] + log1pf(expf(-fabsf(x))));
    }
}

// Its gradient times `scale`.
extern "C" __global__ void cross_entropy_backward(Mat logits, const unsigned* labels, float scale,
                                                  Mat d, unsigned rows) {
    unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        float sigmoid = 1.0f / (1.0f + expf(-get(logits, row, 0)));
        put(d, row, 0, scale * (sigmoid - (float)labels[row]));
    }
}

// d = f'(z) d in place, and partial sums of it over rows: block (i, j) takes rows i, i + gridDim.x,
// ... by its eight warps, and 256 columns.
extern "C" __global__ void activation_sums(unsigned kind, Mat z, Mat d, float* partials,
                                           unsigned rows, unsigned cols) {
    __shared__ float shared[8][256];
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned first = blockIdx.y * 256, c = first + lane * 8;
    float sums[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        sums[j] = 0.0f;
    }
    if (c < cols) {
        for (unsigned row = blockIdx.x * 8 + warp; row < rows; row += gridDim.x * 8) {
            float v[8], slope[8];
            load<8>(z, row, c, v);
            load<8>(d, row, c, slope);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v[j] = kept(d, activation_slope(kind, v[j]) * slope[j]);
                sums[j] += v[j];
            }
            store<8>(d, row, c, v);
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        shared[warp][lane * 8 + j] = sums[j];
    }
    __syncthreads();
    if (first + threadIdx.x < cols) {
        float sum = 0.0f;
        for (int w = 0; w < 8; w++) {
            sum += shared[w][threadIdx.x];
        }
        partials[(size_t)blockIdx.x * cols + first + threadIdx.x] = sum;
    }
}
