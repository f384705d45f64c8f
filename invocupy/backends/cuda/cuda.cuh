// What all kernels share: element types, wide loads and stores, runs of a row.
//
// SCALAR is the type of the arrays, ACCUM the type of the arithmetic (float for the half types).

typedef INDEX index_t;  // counts threads; 32 bits unless there are too many

// Arrays that a kernel is given, and that it fills; none overlaps another.
typedef const SCALAR* __restrict__ In;
typedef SCALAR* __restrict__ Out;
typedef const ACCUM* __restrict__ InAccum;
typedef ACCUM* __restrict__ OutAccum;

// A kernel: threads in a block, and blocks RESIDENT on a multiprocessor where more registers would
// keep others out, so many that nothing spills (0: the compiler chooses).
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)

// A loop whose every turn is written out: its counter is known to the compiler.
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

template <int BYTES> struct Raw;  // what one memory instruction moves
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

// WIDTH elements by one instruction; the address is a multiple of their size. What is read only
// ONCE goes through the caches without pushing out what is read again.
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

// Whether the elements of an access that lies `away` from a position are in its row of `size`
// elements. All three are multiples of its width. No position is negative, and with INSIDE none is
// past the end: then one comparison is enough or, since `away` is known to the compiler, none.
template <bool INSIDE = true>
__device__ __forceinline__ bool in_row(int position, int away, int size)
{
    return (away >= 0 || position + away >= 0) &&
           ((INSIDE && away <= 0) || position + away < size);
}

// COUNT elements, of which the first lies `offset` from `at`, which is at `position` of a row; zero
// where outside of the row. An access that the caller makes no use of is dropped by the compiler.
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

// COUNT elements from `at` on, which is at `position` of a row; what is past its end is left out.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void store_run(SCALAR* at, int position, int size, const ACCUM* from)
{
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH)
        if (in_row(position, k, size)) store<WIDTH>(at + k, from + k);
}

__host__ __device__ constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }
