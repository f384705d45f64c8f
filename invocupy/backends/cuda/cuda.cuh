// What all kernels share: element types, vector loads and stores, and those of a part of a row.
//
// SCALAR is the type of the arrays, ACCUM the type of the arithmetic (float for the half types).

typedef INDEX index_t;  // of a thread or vector: 32 bits if they are enough, else 64

// Arrays that a kernel reads (In...) and writes (Out...); none overlaps another.
typedef const SCALAR* __restrict__ In;
typedef SCALAR* __restrict__ Out;
typedef const ACCUM* __restrict__ InAccum;
typedef ACCUM* __restrict__ OutAccum;

// KERNEL(threads per block, RESIDENT): at least RESIDENT blocks fit on a multiprocessor, which
// limits the registers of a thread; as many as possible without spills (0: the compiler chooses).
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)

// A fully unrolled loop: its counter is a constant in each iteration.
#define UNROLL(k, COUNT) _Pragma("unroll") for (int k = 0; k < (COUNT); ++k)

__device__ __forceinline__ index_t thread_index()
{
    return index_t(blockIdx.x) * BLOCK + threadIdx.x;
}

__device__ __forceinline__ ACCUM warp_sum(ACCUM value)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

template <int BYTES> struct Raw;  // the type that one memory instruction moves
template <> struct Raw<2> { typedef unsigned short type; };
template <> struct Raw<4> { typedef unsigned int type; };
template <> struct Raw<8> { typedef uint2 type; };
template <> struct Raw<16> { typedef uint4 type; };

template <int WIDTH> union Pack {
    typename Raw<WIDTH * sizeof(SCALAR)>::type raw;
    SCALAR element[WIDTH];
};

__device__ __forceinline__ ACCUM widen(SCALAR value) { return static_cast<ACCUM>(value); }
__device__ __forceinline__ SCALAR narrow(ACCUM value) { return static_cast<SCALAR>(value); }

// Loads WIDTH elements with one instruction; the address is a multiple of their size. ONCE marks
// data that is read only once: the caches evict it first, and keep what is read again.
template <int WIDTH, bool ONCE = false>
__device__ __forceinline__ void load(const SCALAR* from, ACCUM* to)
{
    typedef typename Raw<WIDTH * sizeof(SCALAR)>::type raw_t;
    Pack<WIDTH> pack;
    const raw_t* const source = reinterpret_cast<const raw_t*>(from);
    if (ONCE)
        pack.raw = __ldcs(source);
    else
        pack.raw = *source;
    UNROLL(k, WIDTH) to[k] = widen(pack.element[k]);
}

template <int WIDTH>
__device__ __forceinline__ void store(SCALAR* to, const ACCUM* from)
{
    typedef typename Raw<WIDTH * sizeof(SCALAR)>::type raw_t;
    Pack<WIDTH> pack;
    UNROLL(k, WIDTH) pack.element[k] = narrow(from[k]);
    *reinterpret_cast<raw_t*>(to) = pack.raw;
}

// Whether an access at position + away lies within a row of `size` elements. All three are
// multiples of the width of the access. No position is negative, and with INSIDE none is past the
// end: then at most one comparison remains, because `away` is a compile-time constant.
template <bool INSIDE = true>
__device__ __forceinline__ bool in_row(int position, int away, int size)
{
    return (away >= 0 || position + away >= 0) &&
           ((INSIDE && away <= 0) || position + away < size);
}

// Loads COUNT elements of a row from at + offset on; `at` is the element `position` of the row.
// Outside the row they are 0. The compiler drops accesses whose elements are not used.
template <int WIDTH, int COUNT, bool ONCE = false, bool INSIDE = true>
__device__ __forceinline__ void load_run(const SCALAR* at, int position, int offset, int size,
                                         ACCUM* to)
{
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH) {
        if (in_row<INSIDE>(position, offset + k, size)) {
            load<WIDTH, ONCE>(at + offset + k, to + k);
        } else {
            UNROLL(e, WIDTH) to[k + e] = ACCUM(0);
        }
    }
}

// Stores COUNT elements from `at` on, which is the element `position` of a row; those past the end
// of the row are left out.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void store_run(SCALAR* at, int position, int size, const ACCUM* from)
{
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH)
        if (in_row(position, k, size)) store<WIDTH>(at + k, from + k);
}

__host__ __device__ constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }
