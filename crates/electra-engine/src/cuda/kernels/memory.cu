// Copies and vectors of ids.

template <int W>
__device__ void copy_rows(Mat x, Mat y, unsigned rows, unsigned cols) {
    unsigned row = warp_row();
    if (row >= rows) {
        return;
    }
    for (unsigned c = threadIdx.x % 32 * W; c < cols; c += 32 * W) {
        float v[W];
        load<W>(x, row, c, v);
        store<W>(y, row, c, v);
    }
}

// y = x
extern "C" __global__ void copy_matrix_1(Mat x, Mat y, unsigned rows, unsigned cols) {
    copy_rows<1>(x, y, rows, cols);
}
extern "C" __global__ void copy_matrix_8(Mat x, Mat y, unsigned rows, unsigned cols) {
    copy_rows<8>(x, y, rows, cols);
}

// y = 0
extern "C" __global__ void zero_matrix(Mat y, unsigned rows, unsigned cols) {
    unsigned row = warp_row();
    if (row >= rows) {
        return;
    }
    for (unsigned c = threadIdx.x % 32; c < cols; c += 32) {
        put(y, row, c, 0.0f);
    }
}

// The bf16 copy of parameters.
extern "C" __global__ void round_vector(const float* x, bf16* y, u64 len) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += step) {
        y[i] = to_bf16(x[i]);
    }
}

// y[m] = x[rows[m]]
extern "C" __global__ void gather_rows(Mat x, const unsigned* rows, Mat y, unsigned count,
                                       unsigned cols) {
    unsigned m = warp_row();
    if (m >= count) {
        return;
    }
    unsigned row = rows[m];
    for (unsigned c = threadIdx.x % 32; c < cols; c += 32) {
        put(y, m, c, get(x, row, c));
    }
}

// x[rows[m]] += d[m]; the rows are distinct.
extern "C" __global__ void scatter_add_rows(Mat d, const unsigned* rows, Mat x, unsigned count,
                                            unsigned cols) {
    unsigned m = warp_row();
    if (m >= count) {
        return;
    }
    unsigned row = rows[m];
    for (unsigned c = threadIdx.x % 32; c < cols; c += 32) {
        put(x, row, c, get(x, row, c) + get(d, m, c));
    }
}

// y[rows[m]] = values[m]; the rows are distinct.
extern "C" __global__ void put_ids(const unsigned* rows, const unsigned* values, unsigned* y,
                                   unsigned count) {
    unsigned m = blockIdx.x * blockDim.x + threadIdx.x;
    if (m < count) {
        y[rows[m]] = values[m];
    }
}

// y[i] = 1 where a[i] and b[i] differ, else 0.
extern "C" __global__ void not_equal(const unsigned* a, const unsigned* b, unsigned* y,
                                     unsigned count) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        y[i] = a[i] != b[i];
    }
}
