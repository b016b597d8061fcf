// Softmax over the vocabulary, on some rows of logits at a time; a block takes a row.

// Log-probability of the target, log of the sum of exponentials, and the most probable entry.
extern "C" __global__ void __launch_bounds__(512) vocabulary_rows(const float* logits, unsigned stride, unsigned entries,
                                           const unsigned* targets, Mat log_prob, Mat log_sum,
                                           unsigned* predicted) {
    __shared__ float greatest[1024];
    __shared__ unsigned at[1024];
    unsigned row = blockIdx.x, thread = threadIdx.x;
    const float* l = logits + (size_t)row * stride;
    float max = __uint_as_float(0xff800000u);
    unsigned best = 0xffffffffu;
    for (unsigned i = thread; i < entries; i += blockDim.x) {
        if (l[i] > max || best == 0xffffffffu) {
            max = l[i];
            best = i;
        }
    }
    greatest[thread] = max;
    at[thread] = best;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half) {
            float other = greatest[thread + half];
            if (other > greatest[thread] ||
                (other == greatest[thread] && at[thread + half] < at[thread])) {
                greatest[thread] = other;
                at[thread] = at[thread + half];
            }
        }
        __syncthreads();
    }
    max = greatest[0];
    float sum = 0.0f;
    for (unsigned i = thread; i < entries; i += blockDim.x) {
        sum += expf(l[i] - max);
    }
    double total = block_sum((double)sum);
    if (thread == 0) {
        float normalizer = (float)((double)max + log(total));
        put(log_sum, row, 0, normalizer);
        put(log_prob, row, 0, l[targets[row]] - normalizer);
        if (predicted) {
            predicted[row] = at[0] < entries ? at[0] : 0;
        }
    }
}

// d = (softmax(logits) - target) scale
extern "C" __global__ void __launch_bounds__(512) vocabulary_gradient(const float* logits, unsigned stride,
                                               unsigned entries, const unsigned* targets,
                                               Mat log_sum, float scale, Mat d) {
    unsigned row = blockIdx.x, target = targets[row];
    const float* l = logits + (size_t)row * stride;
    float normalizer = get(log_sum, row, 0);
    for (unsigned i = threadIdx.x; i < entries; i += blockDim.x) {
        put(d, row, i, (expf(l[i] - normalizer) - (i == target ? 1.0f : 0.0f)) * scale);
    }
}

enum { SEGMENT = 1024, SEGMENTS = 1024 };

// A sample a row, by inversion: the first entry at which the running sum of probabilities passes
// the row's uniform number. `exclude` may be null. At most 2^20 entries.
extern "C" __global__ void __launch_bounds__(512) vocabulary_sample(const float* logits, unsigned stride, unsigned entries,
                                             float scale, const unsigned* exclude, unsigned key0,
                                             unsigned key1, unsigned stream,
                                             const unsigned* examples, const unsigned* positions,
                                             const unsigned* rows, unsigned* sampled) {
    __shared__ double sums[SEGMENTS];
    __shared__ double before[SEGMENT];
    __shared__ double goal, running;
    __shared__ unsigned chosen;
    unsigned row = blockIdx.x, thread = threadIdx.x;
    unsigned without = exclude ? exclude[row] : 0xffffffffu;
    const float* l = logits + (size_t)row * stride;
    float max = __uint_as_float(0xff800000u);
    for (unsigned i = thread; i < entries; i += blockDim.x) {
        if (i != without && l[i] * scale > max) {
            max = l[i] * scale;
        }
    }
    max = block_max(max);
    // Each warp sums whole segments.
    unsigned segments = (entries + SEGMENT - 1) / SEGMENT;
    for (unsigned s = thread / 32; s < segments; s += blockDim.x / 32) {
        double sum = 0.0;
        for (unsigned j = thread % 32; j < SEGMENT; j += 32) {
            unsigned i = s * SEGMENT + j;
            if (i < entries && i != without) {
                sum += (double)expf(l[i] * scale - max);
            }
        }
        sum = warp_sum(sum);
        if (thread % 32 == 0) {
            sums[s] = sum;
        }
    }
    __syncthreads();
    if (thread == 0) {
        double total = 0.0;
        for (unsigned s = 0; s < segments; s++) {
            total += sums[s];
        }
        unsigned from = rows[row];
        goal = uniform(key0, key1, stream, examples[from], positions[from]) * total;
        double sum = 0.0;
        running = 0.0;
        chosen = 0;
        // Where rounding leaves no segment that passes the goal, it is the last with a probability.
        for (unsigned s = 0; s < segments; s++) {
            if (sums[s] > 0.0) {
                chosen = s;
                running = sum;
                sum += sums[s];
                if (sum > goal) {
                    break;
                }
            }
        }
    }
    __syncthreads();
    for (unsigned j = thread; j < SEGMENT; j += blockDim.x) {
        unsigned i = chosen * SEGMENT + j;
        before[j] = i < entries && i != without ? (double)expf(l[i] * scale - max) : 0.0;
    }
    __syncthreads();
    // Each lane of a warp has a part of the segment; the first part in which the sum passes the
    // goal looks for the entry, or the last one with a probability, where rounding leaves none.
    if (thread >= 32) {
        return;
    }
    const unsigned EACH = SEGMENT / 32;
    double own = 0.0;
    for (unsigned j = 0; j < EACH; j++) {
        // Each lane begins elsewhere, so that no two read from one bank.
        own += before[thread * EACH + (j + thread) % EACH];
    }
    double start = running;
    unsigned last = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        double sum = __shfl_sync(0xffffffffu, own, lane);
        if (lane < thread) {
            start += sum;
        }
        if (sum > 0.0) {
            last = lane;
        }
    }
    unsigned passes = own > 0.0 && start + own > goal;
    unsigned first = 32;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (__shfl_sync(0xffffffffu, passes, lane) && first == 32) {
            first = lane;
        }
    }
    if (thread == (first < 32 ? first : last)) {
        double sum = start;
        unsigned choice = 0;
        for (unsigned j = 0; j < EACH; j++) {
            double p = before[thread * EACH + j];
            if (p > 0.0) {
                choice = j;
                sum += p;
                if (sum > goal) {
                    break;
                }
            }
        }
        unsigned entry = chosen * SEGMENT + thread * EACH + choice;
        sampled[row] = entry < entries ? entry : 0;
    }
}
