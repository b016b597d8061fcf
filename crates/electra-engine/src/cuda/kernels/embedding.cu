// Embedding sums, and their gradient: token rows sorted by id, then summed id by id, so that the
// order of every sum is fixed.

// y[t] = sum over up to four tables of table[ids[t]].
extern "C" __global__ void embed(const float* table0, const unsigned* ids0, const float* table1,
                                 const unsigned* ids1, const float* table2, const unsigned* ids2,
                                 const float* table3, const unsigned* ids3, unsigned tables, Mat y,
                                 unsigned rows, unsigned cols) {
    unsigned row = warp_row();
    if (row >= rows) {
        return;
    }
    const float* t0 = table0 + (size_t)ids0[row] * cols;
    const float* t1 = tables > 1 ? table1 + (size_t)ids1[row] * cols : t0;
    const float* t2 = tables > 2 ? table2 + (size_t)ids2[row] * cols : t0;
    const float* t3 = tables > 3 ? table3 + (size_t)ids3[row] * cols : t0;
    for (unsigned c = threadIdx.x % 32; c < cols; c += 32) {
        float sum = t0[c];
        if (tables > 1) {
            sum += t1[c];
        }
        if (tables > 2) {
            sum += t2[c];
        }
        if (tables > 3) {
            sum += t3[c];
        }
        put(y, row, c, sum);
    }
}

// A stable radix sort of rows by id, eight bits a pass, in tiles of 256 rows. Without `order` the
// rows are in their own order.
//
// First: how often each digit occurs in each tile, counts[digit][tile].
extern "C" __global__ void sort_count(const unsigned* ids, const unsigned* order, unsigned rows,
                                      unsigned shift, unsigned* counts, unsigned tiles) {
    __shared__ unsigned digits[256];
    unsigned tile = blockIdx.x, i = tile * 256 + threadIdx.x;
    unsigned row = i < rows ? (order ? order[i] : i) : 0;
    digits[threadIdx.x] = i < rows ? ids[row] >> shift & 255 : 256;
    __syncthreads();
    unsigned count = 0;
    for (unsigned j = 0; j < 256; j++) {
        count += digits[j] == threadIdx.x;
    }
    counts[threadIdx.x * tiles + tile] = count;
}

// Second: exclusive sums of the counts, in place, by one block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) sort_scan(unsigned* counts, unsigned len) {
    __shared__ unsigned sums[1024];
    unsigned each = (len + 1023) / 1024, first = threadIdx.x * each;
    unsigned last = first + each < len ? first + each : len;
    unsigned sum = 0;
    for (unsigned i = first; i < last; i++) {
        sum += counts[i];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned d = 1; d < 1024; d *= 2) {
        unsigned before = threadIdx.x >= d ? sums[threadIdx.x - d] : 0;
        __syncthreads();
        sums[threadIdx.x] += before;
        __syncthreads();
    }
    unsigned running = sums[threadIdx.x] - sum;
    for (unsigned i = first; i < last; i++) {
        unsigned count = counts[i];
        counts[i] = running;
        running += count;
    }
}

// Third: every row to its place.
extern "C" __global__ void sort_place(const unsigned* ids, const unsigned* order, unsigned rows,
                                      unsigned shift, const unsigned* counts, unsigned tiles,
                                      unsigned* sorted) {
    __shared__ unsigned digits[256];
    unsigned tile = blockIdx.x, i = tile * 256 + threadIdx.x;
    unsigned row = i < rows ? (order ? order[i] : i) : 0;
    unsigned digit = i < rows ? ids[row] >> shift & 255 : 256;
    digits[threadIdx.x] = digit;
    __syncthreads();
    if (i < rows) {
        unsigned before = 0;
        for (unsigned j = 0; j < threadIdx.x; j++) {
            before += digits[j] == digit;
        }
        sorted[counts[digit * tiles + tile] + before] = row;
    }
}

enum { RUN = 64 };

// Sums runs of equal ids within blocks of 64 sorted rows. A run that lies within its block is
// added to the gradient. One that began before is left in partials[block][0], one that begins
// here and goes on in partials[block][1].
extern "C" __global__ void embed_sum_runs(const unsigned* ids, const unsigned* order, Mat d,
                                          float* grads, float* partials, unsigned rows,
                                          unsigned cols) {
    __shared__ unsigned at[RUN];
    __shared__ unsigned id_of[RUN];
    unsigned first = blockIdx.x * RUN, count = first + RUN < rows ? RUN : rows - first;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        at[i] = order[first + i];
        id_of[i] = ids[at[i]];
    }
    __syncthreads();
    unsigned c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= cols) {
        return;
    }
    unsigned before = first > 0 ? ids[order[first - 1]] : 0xffffffffu;
    unsigned after = first + count < rows ? ids[order[first + count]] : 0xffffffffu;
    float* partial = partials + (size_t)blockIdx.x * 2 * cols + c;
    unsigned i = 0;
    while (i < count) {
        unsigned id = id_of[i], begin = i;
        float sum = 0.0f;
        while (i < count && id_of[i] == id) {
            sum += get(d, at[i], c);
            i++;
        }
        if (begin == 0 && id == before) {
            partial[0] = sum;
        } else if (i == count && id == after) {
            partial[cols] = sum;
        } else {
            grads[(size_t)id * cols + c] += sum;
        }
    }
}

// Adds up the runs that go over several blocks: the block in which one begins does it, for 32
// columns. Eight warps take every eighth block each, so that a run over all rows takes not long.
extern "C" __global__ void __launch_bounds__(256)
    embed_finish_runs(const unsigned* ids, const unsigned* order, const float* partials,
                      float* grads, unsigned rows, unsigned cols) {
    __shared__ float sums[8][32];
    unsigned block = blockIdx.x, last = (block + 1) * RUN;
    unsigned lane = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.y * 32 + lane;
    // The same for all threads of a block.
    if (last >= rows) {
        return;
    }
    unsigned id = ids[order[last - 1]];
    bool begins_here = block == 0 || ids[order[block * RUN - 1]] != id;
    if (ids[order[last]] != id || !begins_here) {
        return;
    }
    // Rows are sorted: bisect for the first block that begins with another id.
    unsigned low = block + 1, high = (rows + RUN - 1) / RUN;
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        if (ids[order[middle * RUN]] == id) {
            low = middle;
        } else {
            high = middle;
        }
    }
    float sum = 0.0f;
    if (c < cols) {
        if (part == 0) {
            sum = partials[((size_t)block * 2 + 1) * cols + c];
        }
        for (unsigned next = block + 1 + part; next < high; next += 8) {
            sum += partials[(size_t)next * 2 * cols + c];
        }
    }
    sums[part][lane] = sum;
    __syncthreads();
    if (part == 0 && c < cols) {
        for (unsigned i = 1; i < 8; i++) {
            sum += sums[i][lane];
        }
        grads[(size_t)id * cols + c] += sum;
    }
}
