#include "cuda.cuh"
// A launch over up to sixteen arrays: a block has BLOCK * EACH consecutive elements of one of them.

#define EVERY(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

// Returns `call` if the block's first element, `begin`, is in this array; else counts it from the
// start of the next one.
#define TRY(size, call)                                                                            \
    if (begin < size) return call;                                                                 \
    begin -= (size + BLOCK * EACH - 1) / (BLOCK * EACH) * (BLOCK * EACH);

__device__ __forceinline__ long long first_element() { return (long long)blockIdx.x * (BLOCK * EACH); }
