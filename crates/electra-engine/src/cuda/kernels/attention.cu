// Attention within sequences, for any head size and element type: a warp takes a query, or in the
// backward of keys and values a key. Scores exist 32 at a time.

enum { HEAD_BLOCKS = 65536 };

// Where a warp works: blocks are (tile of rows of a sequence, head), `tiles` a sequence.
struct Place {
    unsigned start;
    unsigned len;
    unsigned t;
    unsigned head;
    float* room;
};

__device__ __forceinline__ Place attention_place(const unsigned* cu_seqlens, unsigned tiles,
                                                 unsigned words) {
    Place p;
    unsigned sequence = blockIdx.x / tiles;
    p.start = cu_seqlens[sequence];
    p.len = cu_seqlens[sequence + 1] - p.start;
    p.t = blockIdx.x % tiles * 8 + threadIdx.x / 32;
    p.head = blockIdx.y;
    p.room = (float*)DYNAMIC_SHARED + (threadIdx.x / 32) * words;
    return p;
}

__device__ __forceinline__ float dot_row(const float* a, const Mat& b, unsigned row, unsigned column,
                                         unsigned size) {
    float sum = 0.0f;
    for (unsigned c = 0; c < size; c++) {
        sum += a[c] * get(b, row, column + c);
    }
    return sum;
}

// The factor of dropout on the probability of query row `row` for key j.
__device__ __forceinline__ float attention_factor(const DropSpec& drop, unsigned row, unsigned head,
                                                  unsigned j) {
    if (drop.threshold == 0) {
        return 1.0f;
    }
    unsigned example = drop.examples[row], position = drop.positions[row];
    return is_kept(drop, example, position, head * HEAD_BLOCKS, j) ? drop.scale : 0.0f;
}

// y = dropout(softmax(q k' scale)) v, and the log of each row's sum of exponentials.
extern "C" __global__ void attention_any(Mat q, Mat k, Mat v, const unsigned* cu_seqlens, unsigned tiles, DropSpec drop,
                                         Mat y, Mat log_sum, unsigned size, float scale) {
    Place p = attention_place(cu_seqlens, tiles, 2 * size);
    if (p.t >= p.len) {
        return;
    }
    unsigned lane = threadIdx.x % 32, row = p.start + p.t, column = p.head * size;
    float *query = p.room, *sums = p.room + size;
    for (unsigned c = lane; c < size; c += 32) {
        query[c] = get(q, row, column + c);
        sums[c] = 0.0f;
    }
    __syncwarp();
    float max = __uint_as_float(0xff800000u), total = 0.0f;
    for (unsigned j0 = 0; j0 < p.len; j0 += 32) {
        unsigned j = j0 + lane;
        bool inside = j < p.len;
        float score = __uint_as_float(0xff800000u), factor = 0.0f;
        if (inside) {
            score = dot_row(query, k, p.start + j, column, size) * scale;
            factor = attention_factor(drop, row, p.head, j);
        }
        float now = warp_max(score);
        now = (now > max || now != now) ? now : max;
        float shrink = expf(max - now), weight = inside ? expf(score - now) : 0.0f;
        max = now;
        total = total * shrink + warp_sum(weight);
        weight *= factor;
        unsigned count = p.len - j0 < 32 ? p.len - j0 : 32;
        for (unsigned c0 = 0; c0 < size; c0 += 32) {
            unsigned c = c0 + lane;
            float sum = c < size ? sums[c] * shrink : 0.0f;
            for (unsigned i = 0; i < count; i++) {
                float w = __shfl_sync(0xffffffffu, weight, i);
                if (c < size) {
                    sum += w * get(v, p.start + j0 + i, column + c);
                }
            }
            if (c < size) {
                sums[c] = sum;
            }
        }
    }
    for (unsigned c = lane; c < size; c += 32) {
        put(y, row, column + c, sums[c] / total);
    }
    if (lane == 0) {
        put(log_sum, row, p.head, max + logf(total));
    }
}

// delta[row][head] = dy . y of that head, the mean that the backward of softmax takes off.
extern "C" __global__ void attention_delta(Mat y, Mat dy, float* delta, unsigned rows,
                                           unsigned heads, unsigned size) {
    unsigned row = warp_row();
    if (row >= rows) {
        return;
    }
    for (unsigned head = 0; head < heads; head++) {
        float sum = 0.0f;
        for (unsigned c = threadIdx.x % 32; c < size; c += 32) {
            sum += get(y, row, head * size + c) * get(dy, row, head * size + c);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) {
            delta[(size_t)row * heads + head] = sum;
        }
    }
}

// dq of one query a warp.
extern "C" __global__ void attention_any_dq(Mat q, Mat k, Mat v, const unsigned* cu_seqlens,
                                            unsigned tiles, DropSpec drop, Mat log_sum, const float* delta, Mat dy,
                                            Mat dq, unsigned heads, unsigned size, float scale) {
    Place p = attention_place(cu_seqlens, tiles, 3 * size);
    if (p.t >= p.len) {
        return;
    }
    unsigned lane = threadIdx.x % 32, row = p.start + p.t, column = p.head * size;
    float *query = p.room, *slope = p.room + size, *sums = p.room + 2 * size;
    for (unsigned c = lane; c < size; c += 32) {
        query[c] = get(q, row, column + c);
        slope[c] = get(dy, row, column + c);
        sums[c] = 0.0f;
    }
    __syncwarp();
    float normalizer = get(log_sum, row, p.head), mean = delta[(size_t)row * heads + p.head];
    for (unsigned j0 = 0; j0 < p.len; j0 += 32) {
        unsigned j = j0 + lane;
        float d_score = 0.0f;
        if (j < p.len) {
            float weight =
                expf(dot_row(query, k, p.start + j, column, size) * scale - normalizer);
            float d = attention_factor(drop, row, p.head, j) *
                dot_row(slope, v, p.start + j, column, size);
            d_score = weight * (d - mean) * scale;
        }
        unsigned count = p.len - j0 < 32 ? p.len - j0 : 32;
        for (unsigned c0 = 0; c0 < size; c0 += 32) {
            unsigned c = c0 + lane;
            float sum = c < size ? sums[c] : 0.0f;
            for (unsigned i = 0; i < count; i++) {
                float w = __shfl_sync(0xffffffffu, d_score, i);
                if (c < size) {
                    sum += w * get(k, p.start + j0 + i, column + c);
                }
            }
            if (c < size) {
                sums[c] = sum;
            }
        }
    }
    for (unsigned c = lane; c < size; c += 32) {
        put(dq, row, column + c, sums[c]);
    }
}

// dk and dv of one key a warp.
extern "C" __global__ void attention_any_dkv(Mat q, Mat k, Mat v, const unsigned* cu_seqlens,
                                             unsigned tiles, DropSpec drop, Mat log_sum, const float* delta, Mat dy,
                                             Mat dk, Mat dv, unsigned heads, unsigned size,
                                             float scale) {
    Place p = attention_place(cu_seqlens, tiles, 4 * size);
    if (p.t >= p.len) {
        return;
    }
    unsigned lane = threadIdx.x % 32, column = p.head * size;
    float *key = p.room, *value = p.room + size;
    float *dk_sums = p.room + 2 * size, *dv_sums = p.room + 3 * size;
    for (unsigned c = lane; c < size; c += 32) {
        key[c] = get(k, p.start + p.t, column + c);
        value[c] = get(v, p.start + p.t, column + c);
        dk_sums[c] = 0.0f;
        dv_sums[c] = 0.0f;
    }
    __syncwarp();
    for (unsigned i0 = 0; i0 < p.len; i0 += 32) {
        unsigned row = p.start + i0 + lane;
        float weight = 0.0f, d_score = 0.0f;
        if (i0 + lane < p.len) {
            float score = dot_row(key, q, row, column, size) * scale;
            float probability = expf(score - get(log_sum, row, p.head));
            float factor = attention_factor(drop, row, p.head, p.t);
            float d = factor * dot_row(value, dy, row, column, size);
            weight = probability * factor;
            d_score = probability * (d - delta[(size_t)row * heads + p.head]) * scale;
        }
        unsigned count = p.len - i0 < 32 ? p.len - i0 : 32;
        for (unsigned c0 = 0; c0 < size; c0 += 32) {
            unsigned c = c0 + lane;
            float a = c < size ? dk_sums[c] : 0.0f, b = c < size ? dv_sums[c] : 0.0f;
            for (unsigned i = 0; i < count; i++) {
                float ws = __shfl_sync(0xffffffffu, d_score, i);
                float wv = __shfl_sync(0xffffffffu, weight, i);
                if (c < size) {
                    a += ws * get(q, p.start + i0 + i, column + c);
                    b += wv * get(dy, p.start + i0 + i, column + c);
                }
            }
            if (c < size) {
                dk_sums[c] = a;
                dv_sums[c] = b;
            }
        }
    }
    for (unsigned c = lane; c < size; c += 32) {
        put(dk, p.start + p.t, column + c, dk_sums[c]);
        put(dv, p.start + p.t, column + c, dv_sums[c]);
    }
}
