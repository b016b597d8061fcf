// Sums in double precision, AdamW and LAMB. Chunks are runs of a flat array, each a block's work.

// Twin of `Chunk` in kernels.rs.
struct Chunk {
    u64 offset;
    unsigned len;
    float lr;
    float decay;
    unsigned unused;
};

// One sum a block; the blocks share out the rows.
extern "C" __global__ void sum_matrix(Mat x, unsigned rows, unsigned cols, double* partials) {
    double sum = 0.0;
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) {
            sum += (double)get(x, row, c);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

// The same of one column, where a block's threads take a row each.
extern "C" __global__ void sum_column(Mat x, unsigned rows, double* partials) {
    double sum = 0.0;
    for (unsigned row = blockIdx.x * blockDim.x + threadIdx.x; row < rows;
         row += gridDim.x * blockDim.x) {
        sum += (double)get(x, row, 0);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

// Sum of squares of each chunk.
extern "C" __global__ void sum_squares(const float* flat, const Chunk* chunks, double* partials) {
    Chunk chunk = chunks[blockIdx.x];
    const float* x = flat + chunk.offset;
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < chunk.len; i += blockDim.x) {
        sum += (double)x[i] * (double)x[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

// Adam's direction without bias correction, m / (sqrt(v) + epsilon) + decay p, and new moments.
__device__ float direction(float p, float g, float* first, float* second, float decay, float beta1,
                           float beta2, float epsilon) {
    float m = beta1 * *first + (1.0f - beta1) * g;
    float v = beta2 * *second + (1.0f - beta2) * g * g;
    *first = m;
    *second = v;
    return m / (sqrtf(v) + epsilon) + decay * p;
}

// One step of AdamW; `rounded`, where there is one, gets the bf16 copy.
extern "C" __global__ void adamw(float* params, bf16* rounded, const float* grads, float* first,
                                 float* second, const Chunk* chunks, float grad_scale, float beta1,
                                 float beta2, float epsilon) {
    Chunk chunk = chunks[blockIdx.x];
    for (unsigned j = threadIdx.x; j < chunk.len; j += blockDim.x) {
        u64 i = chunk.offset + j;
        float p = params[i];
        p -= chunk.lr * direction(p, grads[i] * grad_scale, first + i, second + i, chunk.decay,
                                  beta1, beta2, epsilon);
        params[i] = p;
        if (rounded) {
            rounded[i] = to_bf16(p);
        }
    }
}

// Gradients become the direction; parameters stay.
extern "C" __global__ void adam_direction(const float* params, float* grads, float* first,
                                          float* second, const Chunk* chunks, float grad_scale,
                                          float beta1, float beta2, float epsilon) {
    Chunk chunk = chunks[blockIdx.x];
    for (unsigned j = threadIdx.x; j < chunk.len; j += blockDim.x) {
        u64 i = chunk.offset + j;
        grads[i] = direction(params[i], grads[i] * grad_scale, first + i, second + i, chunk.decay,
                             beta1, beta2, epsilon);
    }
}

// A step along given directions.
extern "C" __global__ void descend(float* params, bf16* rounded, const float* directions,
                                   const Chunk* chunks) {
    Chunk chunk = chunks[blockIdx.x];
    for (unsigned j = threadIdx.x; j < chunk.len; j += blockDim.x) {
        u64 i = chunk.offset + j;
        float p = params[i] - chunk.lr * directions[i];
        params[i] = p;
        if (rounded) {
            rounded[i] = to_bf16(p);
        }
    }
}
