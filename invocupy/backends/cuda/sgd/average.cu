#include "sgd/sixteen.cuh"
// Moving averages of up to sixteen arrays: to = old + share * (p - old), where `to` may be `old`. Those
// of half types are float32. With `number`, share is *number, which a CUDA graph reads anew at each
// launch.

struct Array {
    const SCALAR* p;
    const ACCUM* old;
    ACCUM* to;
    long long size;
};

__device__ __forceinline__ void average_one(const Array& a, long long begin, ACCUM share)
{
    UNROLL(k, EACH) {
        const long long i = begin + k * BLOCK + threadIdx.x;
        if (i >= a.size) return;
        a.to[i] = a.old[i] + share * (widen(a.p[i]) - a.old[i]);
    }
}

#define PARAMETERS(k) const SCALAR* p##k, const ACCUM *old##k, ACCUM *to##k, long long size##k,

KERNEL(BLOCK) average(EVERY(PARAMETERS) const double* number, ACCUM share)
{
    if (number) share = ACCUM(*number);
    long long begin = first_element();
#define TURN(k) TRY(size##k, average_one({p##k, old##k, to##k, size##k}, begin, share))
    EVERY(TURN)
}
