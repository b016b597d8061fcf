// CUDA's language for a C++ compiler, so that tests can run the kernels without a device.
//
// A block's threads are fibers on one thread of the host. They run until a barrier or the exchange
// of a warp stops them, in rising or falling order: a result that depends on the order is a bug.
// Shared memory is set to no number before each block. A barrier that not all threads reach ends
// the process.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <utility>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#define EMULATED 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
#ifdef __x86_64__
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    char* stack;
    State state;
    dim3 index;
};

struct Slot {
    unsigned long long word;
    unsigned fragment[6];
    const void* address;
};

const unsigned MAX_THREADS = 1024;
const size_t STACK = 96 * 1024;
static Fiber fibers[MAX_THREADS];
static Slot slots[MAX_THREADS];
static unsigned current;
static void (*body)(void**);
static void** arguments;
static unsigned char* shared_memory;
static size_t shared_room;

#ifdef __x86_64__
static void* scheduler;
extern "C" void emulator_switch(void** from, void* to);
asm(".text\n"
    ".type emulator_switch, @function\n"
    "emulator_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");
static void enter(Fiber& f) {
    emulator_switch(&scheduler, f.stack_pointer);
}
static void leave(Fiber& f) {
    emulator_switch(&f.stack_pointer, scheduler);
}
#else
static ucontext_t scheduler;
static void enter(Fiber& f) {
    swapcontext(&scheduler, &f.context);
}
static void leave(Fiber& f) {
    swapcontext(&f.context, &scheduler);
}
#endif

static void begin() {
    body(arguments);
    fibers[current].state = DONE;
    leave(fibers[current]);
    abort();
}

static void prepare(Fiber& f) {
    if (!f.stack) {
        f.stack = (char*)malloc(STACK);
    }
#ifdef __x86_64__
    void** top = (void**)((uintptr_t)(f.stack + STACK) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = (void*)begin;
    f.stack_pointer = top - 6;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, begin, 0);
#endif
    f.state = READY;
}

static void wait(State state) {
    Fiber& f = fibers[current];
    f.state = state;
    leave(f);
}

// Lets go the threads `first .. last` if all that are not done wait for `state`.
static bool release(unsigned first, unsigned last, State state) {
    bool any = false;
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].state != DONE && fibers[i].state != state) {
            return false;
        }
        any |= fibers[i].state == state;
    }
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].state == state) {
            fibers[i].state = READY;
        }
    }
    return any;
}

static void run_block(unsigned threads, bool falling) {
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].index = {i, 0, 0};
        prepare(fibers[i]);
    }
    for (;;) {
        bool moved = false, alive = false;
        for (unsigned n = 0; n < threads; n++) {
            unsigned i = falling ? threads - 1 - n : n;
            if (fibers[i].state == READY) {
                current = i;
                threadIdx = fibers[i].index;
                enter(fibers[i]);
                moved = true;
            }
            alive |= fibers[i].state != DONE;
        }
        if (!alive) {
            return;
        }
        for (unsigned first = 0; first < threads; first += 32) {
            moved |= release(first, first + 32 < threads ? first + 32 : threads, AT_WARP);
        }
        moved |= release(0, threads, AT_BLOCK);
        if (!moved) {
            fprintf(stderr, "emulated kernel: not every thread reaches the barrier\n");
            abort();
        }
    }
}

// Dynamic shared memory that ends where a page without access begins.
static void make_shared(size_t bytes) {
    const size_t page = 4096, most = 256 * 1024;
    static unsigned char* pages = nullptr;
    if (!pages) {
        pages = (unsigned char*)mmap(nullptr, most + page, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(pages + most, page, PROT_NONE);
    }
    if (bytes > most) {
        fprintf(stderr, "emulated kernel: %zu bytes of shared memory\n", bytes);
        abort();
    }
    shared_room = (bytes + 15) / 16 * 16;
    shared_memory = pages + most - shared_room;
}

static void run_grid(dim3 grid, unsigned threads, size_t shared, bool falling) {
    if (threads == 0 || threads > MAX_THREADS || threads % 32 != 0) {
        fprintf(stderr, "emulated kernel: %u threads a block\n", threads);
        abort();
    }
    gridDim = grid;
    blockDim = {threads, 1, 1};
    make_shared(shared);
    unsigned long long blocks = (unsigned long long)grid.x * grid.y * grid.z;
    for (unsigned long long n = 0; n < blocks; n++) {
        unsigned long long b = falling ? blocks - 1 - n : n;
        blockIdx = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                    (unsigned)(b / grid.x / grid.y)};
        memset(shared_memory, 0xff, shared_room);
        run_block(threads, falling);
    }
}

template <typename... P, size_t... I>
static void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*(P*)arguments[I]...);
}

template <typename... P>
static void call(void (*kernel)(P...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<P...>());
}

} // namespace emulator

#define DYNAMIC_SHARED (emulator::shared_memory)

static inline void __syncthreads() {
    emulator::wait(emulator::AT_BLOCK);
}
static inline void __syncwarp(unsigned = 0xffffffffu) {
    emulator::wait(emulator::AT_WARP);
}

template <typename F>
static inline F emulated_exchange(F value, unsigned lane) {
    using namespace emulator;
    unsigned self = current;
    memcpy(&slots[self].word, &value, sizeof(F));
    __syncwarp();
    F out;
    memcpy(&out, &slots[self / 32 * 32 + lane % 32].word, sizeof(F));
    __syncwarp();
    return out;
}
template <typename F>
static inline F __shfl_sync(unsigned, F value, unsigned lane) {
    return emulated_exchange(value, lane);
}
template <typename F>
static inline F __shfl_xor_sync(unsigned, F value, unsigned mask) {
    return emulated_exchange(value, threadIdx.x % 32 ^ mask);
}

static inline float __uint_as_float(unsigned u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float exp2_approximate(float x) {
    return exp2f(x);
}

static inline unsigned short to_bf16(float x) {
    unsigned u = __float_as_uint(x);
    if (x != x) {
        return 0x7fff;
    }
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
static inline unsigned to_bf16_pair(float low, float high) {
    return (unsigned)to_bf16(low) | (unsigned)to_bf16(high) << 16;
}

static inline float emulated_half(unsigned word, unsigned which) {
    return __uint_as_float(which ? word & 0xffff0000u : word << 16);
}

// As PTX gives the fragments of mma.m16n8k16: with g = lane / 4 and t = lane % 4, a[0..4] hold rows
// g, g + 8, g, g + 8 and columns 2 t, 2 t, 2 t + 8, 2 t + 8; b rows 2 t and 2 t + 8 of column g; d
// rows g, g, g + 8, g + 8 and columns 2 t, 2 t + 1.
static inline void mma(float d[4], const unsigned a[4], unsigned b0, unsigned b1) {
    using namespace emulator;
    unsigned self = current, first = self / 32 * 32, lane = self % 32;
    for (int i = 0; i < 4; i++) {
        slots[self].fragment[i] = a[i];
    }
    slots[self].fragment[4] = b0;
    slots[self].fragment[5] = b1;
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = d[i];
        for (unsigned k = 0; k < 16; k++) {
            const Slot& left = slots[first + row % 8 * 4 + k % 8 / 2];
            const Slot& right = slots[first + column * 4 + k % 8 / 2];
            sum += emulated_half(left.fragment[row / 8 + k / 8 * 2], k % 2) *
                emulated_half(right.fragment[4 + k / 8], k % 2);
        }
        d[i] = sum;
    }
    __syncwarp();
}

static inline void emulated_matrices(unsigned r[4], const void* row, bool transposed) {
    using namespace emulator;
    unsigned self = current, first = self / 32 * 32, lane = self % 32;
    if ((uintptr_t)row % 16) {
        fprintf(stderr, "emulated kernel: a matrix's row is not at a multiple of 16 bytes\n");
        abort();
    }
    slots[self].address = row;
    __syncwarp();
    for (unsigned i = 0; i < 4; i++) {
        unsigned short pair[2];
        for (unsigned e = 0; e < 2; e++) {
            unsigned line = transposed ? lane % 4 * 2 + e : lane / 4;
            unsigned column = transposed ? lane / 4 : lane % 4 * 2 + e;
            pair[e] = ((const unsigned short*)slots[first + i * 8 + line].address)[column];
        }
        r[i] = pair[0] | (unsigned)pair[1] << 16;
    }
    __syncwarp();
}
static inline void load_matrices(unsigned r[4], const unsigned short* row) {
    emulated_matrices(r, row, false);
}
static inline void load_transposed(unsigned r[4], const unsigned short* row) {
    emulated_matrices(r, row, true);
}
