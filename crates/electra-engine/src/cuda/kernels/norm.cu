// Layer norm, with the residual sum and dropout before it, both ways. A warp takes a row.

// sum = residual + dropout(x), y = norm(sum), stats = mean and reciprocal deviation. Without a
// residual, y = norm(x). CHUNKS groups of 32 W columns stay in registers; with 0, any number of
// them is read again.
template <int W, int CHUNKS>
__device__ void add_norm_rows(Mat residual, Mat x, DropSpec drop, Mat sum, const float* weight,
                              const float* bias, float eps, Mat y, Mat stats, unsigned rows,
                              unsigned cols) {
    unsigned row = warp_row(), lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    const unsigned chunks = CHUNKS ? CHUNKS : (cols + 32 * W - 1) / (32 * W);
    float kept_values[CHUNKS ? CHUNKS : 1][W];
    float total = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < chunks; i++) {
        unsigned c = (i * 32 + lane) * W;
        float v[W];
        if (c < cols) {
            load<W>(x, row, c, v);
        }
        if (residual.data) {
            drop_columns<W>(drop, row, c, v);
        }
        if (c < cols) {
            if (residual.data) {
                float r[W];
                load<W>(residual, row, c, r);
#pragma unroll
                for (int j = 0; j < W; j++) {
                    v[j] = kept(sum, v[j] + r[j]);
                }
                store<W>(sum, row, c, v);
            }
#pragma unroll
            for (int j = 0; j < W; j++) {
                total += v[j];
                kept_values[CHUNKS ? i : 0][j] = v[j];
            }
        }
    }
    Mat input = residual.data ? sum : x;
    float mean = warp_sum(total) / cols;
    float squares = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < chunks; i++) {
        unsigned c = (i * 32 + lane) * W;
        if (c < cols) {
            float v[W];
            if (!CHUNKS) {
                load<W>(input, row, c, v);
            }
#pragma unroll
            for (int j = 0; j < W; j++) {
                float d = (CHUNKS ? kept_values[CHUNKS ? i : 0][j] : v[j]) - mean;
                squares += d * d;
            }
        }
    }
    float reciprocal = 1.0f / sqrtf(warp_sum(squares) / cols + eps);
#pragma unroll
    for (unsigned i = 0; i < chunks; i++) {
        unsigned c = (i * 32 + lane) * W;
        if (c < cols) {
            float v[W], w[W], b[W];
            if (!CHUNKS) {
                load<W>(input, row, c, v);
            }
            load_vector<W>(weight, c, w);
            load_vector<W>(bias, c, b);
#pragma unroll
            for (int j = 0; j < W; j++) {
                float value = CHUNKS ? kept_values[CHUNKS ? i : 0][j] : v[j];
                v[j] = (value - mean) * reciprocal * w[j] + b[j];
            }
            store<W>(y, row, c, v);
        }
    }
    if (lane == 0) {
        put(stats, row, 0, mean);
        put(stats, row, 1, reciprocal);
    }
}

#define ADD_NORM(NAME, W, CHUNKS)                                                               \
    extern "C" __global__ void NAME(Mat residual, Mat x, DropSpec drop, Mat sum, const float* weight, \
                                    const float* bias, float eps, Mat y, Mat stats,             \
                                    unsigned rows, unsigned cols) {                             \
        add_norm_rows<W, CHUNKS>(residual, x, drop, sum, weight, bias, eps, y, stats, rows,     \
                                 cols);                                                         \
    }
ADD_NORM(add_norm_any, 1, 0)
ADD_NORM(add_norm_256, 8, 1)
ADD_NORM(add_norm_512, 8, 2)
ADD_NORM(add_norm_768, 8, 3)
ADD_NORM(add_norm_1024, 8, 4)

// dx of the norm, and dropped = dropout(dx) where asked for. Adds to nothing: the gradients of
// weight and bias are column sums.
template <int W, int CHUNKS>
__device__ void norm_backward_rows(Mat x, Mat stats, const float* weight, Mat dy, Mat dx, DropSpec drop,
                                   Mat dropped, unsigned rows, unsigned cols) {
    unsigned row = warp_row(), lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    const unsigned chunks = CHUNKS ? CHUNKS : (cols + 32 * W - 1) / (32 * W);
    float hats[CHUNKS ? CHUNKS : 1][W], slopes[CHUNKS ? CHUNKS : 1][W];
    float mean = get(stats, row, 0), reciprocal = get(stats, row, 1);
    float sum = 0.0f, dot = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < chunks; i++) {
        unsigned c = (i * 32 + lane) * W;
        if (c < cols) {
            float v[W], d[W], w[W];
            load<W>(x, row, c, v);
            load<W>(dy, row, c, d);
            load_vector<W>(weight, c, w);
#pragma unroll
            for (int j = 0; j < W; j++) {
                float hat = (v[j] - mean) * reciprocal, slope = d[j] * w[j];
                sum += slope;
                dot += slope * hat;
                hats[CHUNKS ? i : 0][j] = hat;
                slopes[CHUNKS ? i : 0][j] = slope;
            }
        }
    }
    sum = warp_sum(sum) / cols;
    dot = warp_sum(dot) / cols;
#pragma unroll
    for (unsigned i = 0; i < chunks; i++) {
        unsigned c = (i * 32 + lane) * W;
        float out[W];
        if (c < cols) {
            float v[W], d[W], w[W];
            if (!CHUNKS) {
                load<W>(x, row, c, v);
                load<W>(dy, row, c, d);
                load_vector<W>(weight, c, w);
            }
#pragma unroll
            for (int j = 0; j < W; j++) {
                float hat = CHUNKS ? hats[CHUNKS ? i : 0][j] : (v[j] - mean) * reciprocal;
                float slope = CHUNKS ? slopes[CHUNKS ? i : 0][j] : d[j] * w[j];
                out[j] = kept(dx, reciprocal * (slope - sum - hat * dot));
            }
            store<W>(dx, row, c, out);
        }
        if (dropped.data) {
            drop_columns<W>(drop, row, c, out);
            if (c < cols) {
                store<W>(dropped, row, c, out);
            }
        }
    }
}

#define NORM_BACKWARD(NAME, W, CHUNKS)                                                         \
    extern "C" __global__ void NAME(Mat x, Mat stats, const float* weight, Mat dy, Mat dx,      \
                                    DropSpec drop, Mat dropped, unsigned rows, unsigned cols) {     \
        norm_backward_rows<W, CHUNKS>(x, stats, weight, dy, dx, drop, dropped, rows, cols);     \
    }
NORM_BACKWARD(norm_backward_any, 1, 0)
NORM_BACKWARD(norm_backward_256, 8, 1)
NORM_BACKWARD(norm_backward_512, 8, 2)
NORM_BACKWARD(norm_backward_768, 8, 3)
NORM_BACKWARD(norm_backward_1024, 8, 4)

// The same for rows blockIdx.x, blockIdx.x + gridDim.x, ... by eight, with the sums over rows that
// go with it: partials[block][0] of dy, the gradient of the norm's bias; [1] of dy times the
// normalised values, that of its weight; [2] of what is written last, that of the bias of the layer
// below. Blocks of 256 threads.
template <int CHUNKS>
__device__ void norm_backward_with_sums(Mat x, Mat stats, const float* weight, Mat dy, Mat dx,
                                        DropSpec drop, Mat dropped, float* partials, unsigned rows,
                                        unsigned cols) {
    __shared__ float shared[8][256];
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sums[3][CHUNKS][8];
#pragma unroll
    for (int k = 0; k < 3; k++) {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums[k][i][j] = 0.0f;
            }
        }
    }
    for (unsigned row = blockIdx.x * 8 + warp; row < rows; row += gridDim.x * 8) {
        float hats[CHUNKS][8], slopes[CHUNKS][8];
        float mean = get(stats, row, 0), reciprocal = get(stats, row, 1);
        float sum = 0.0f, dot = 0.0f;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            unsigned c = (i * 32 + lane) * 8;
            if (c < cols) {
                float v[8], d[8], w[8];
                load<8>(x, row, c, v);
                load<8>(dy, row, c, d);
                load_vector<8>(weight, c, w);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    float hat = (v[j] - mean) * reciprocal, slope = d[j] * w[j];
                    sum += slope;
                    dot += slope * hat;
                    hats[i][j] = hat;
                    slopes[i][j] = slope;
                    sums[0][i][j] += d[j];
                    sums[1][i][j] += d[j] * hat;
                }
            }
        }
        sum = warp_sum(sum) / cols;
        dot = warp_sum(dot) / cols;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            unsigned c = (i * 32 + lane) * 8;
            float out[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                out[j] = 0.0f;
            }
            if (c < cols) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    out[j] = kept(dx, reciprocal * (slopes[i][j] - sum - hats[i][j] * dot));
                }
                store<8>(dx, row, c, out);
            }
            if (dropped.data) {
                drop_columns<8>(drop, row, c, out);
                if (c < cols) {
                    store<8>(dropped, row, c, out);
                }
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums[2][i][j] += out[j];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < 3; k++) {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            __syncthreads();
#pragma unroll
            for (int j = 0; j < 8; j++) {
                shared[warp][lane * 8 + j] = sums[k][i][j];
            }
            __syncthreads();
            unsigned c = i * 256 + threadIdx.x;
            if (c < cols) {
                float sum = 0.0f;
                for (int w = 0; w < 8; w++) {
                    sum += shared[w][threadIdx.x];
                }
                partials[((size_t)blockIdx.x * 3 + k) * cols + c] = sum;
            }
        }
    }
}

#define NORM_SUMS(NAME, CHUNKS)                                                                 \
    extern "C" __global__ void __launch_bounds__(256) NAME(                                     \
        Mat x, Mat stats, const float* weight, Mat dy, Mat dx, DropSpec drop, Mat dropped,      \
        float* partials, unsigned rows, unsigned cols) {                                        \
        norm_backward_with_sums<CHUNKS>(x, stats, weight, dy, dx, drop, dropped, partials,      \
                                        rows, cols);                                            \
    }
NORM_SUMS(norm_sums_256, 1)
NORM_SUMS(norm_sums_512, 2)
NORM_SUMS(norm_sums_768, 3)
NORM_SUMS(norm_sums_1024, 4)
