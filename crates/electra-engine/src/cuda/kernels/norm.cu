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
