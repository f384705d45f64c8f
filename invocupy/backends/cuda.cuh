// What all kernels share: element types, wide loads and stores, runs of a row.
//
// SCALAR is the type of the arrays, ACCUM the type of the arithmetic (float for the half types).

typedef INDEX index_t;  // counts threads; 32 bits unless there are too many

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
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) to[k] = widen(pack.element[k]);
}

template <int WIDTH>
__device__ __forceinline__ void store(SCALAR* to, const ACCUM* from)
{
    typedef typename Raw<WIDTH * sizeof(SCALAR)>::type raw_t;
    Pack<WIDTH> pack;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) pack.element[k] = narrow(from[k]);
    *reinterpret_cast<raw_t*>(to) = pack.raw;
}

// Elements first .. first + COUNT - 1 of a row of `size` elements, zero where outside of it.
// `first`, `size` and COUNT are multiples of WIDTH, so that each access is wholly in or out.
// An access that the caller makes no use of is dropped by the compiler.
template <int WIDTH, int COUNT, bool ONCE = false>
__device__ __forceinline__ void load_run(const SCALAR* row, int first, int size, ACCUM* to)
{
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH) {
        if (first + k >= 0 && first + k < size) {
            load<WIDTH, ONCE>(row + first + k, to + k);
        } else {
#pragma unroll
            for (int e = 0; e < WIDTH; ++e) to[k + e] = ACCUM(0);
        }
    }
}

template <int WIDTH, int COUNT>
__device__ __forceinline__ void store_run(SCALAR* row, int first, int size, const ACCUM* from)
{
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH)
        if (first + k < size) store<WIDTH>(row + first + k, from + k);
}

__host__ __device__ constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }
