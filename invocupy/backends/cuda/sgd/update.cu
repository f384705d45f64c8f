#include "cuda.cuh"
// One step of stochastic gradient descent on up to sixteen arrays. `to` may be `p`, and `velocity`
// may be `old`.
//
//     move = grad + decay * p,  velocity = momentum * old + move,
//     to = p - lr * (move + momentum * velocity if NESTEROV, else velocity)
//
// Without MOMENTUM, velocity is move and is not stored; without `old` (the first step) it is move.
// A block updates BLOCK * EACH consecutive elements of one array. With `numbers`, those are lr,
// momentum and decay, which a CUDA graph reads anew at each launch; the `decay` of an array is then
// the factor of the last.

struct Array {
    const SCALAR *p, *grad, *old;
    SCALAR *to, *velocity;
    ACCUM decay;
    long long size;
};

__device__ __forceinline__ void update_one(const Array& a, long long begin, ACCUM lr,
                                           ACCUM momentum)
{
    UNROLL(k, EACH) {
        const long long i = begin + k * BLOCK + threadIdx.x;
        if (i >= a.size) return;
        const ACCUM p = widen(a.p[i]), move = widen(a.grad[i]) + a.decay * p;
        ACCUM step = move;
        if (MOMENTUM) {
            const ACCUM velocity = a.old ? momentum * widen(a.old[i]) + move : move;
            a.velocity[i] = narrow(velocity);
            step = NESTEROV ? move + momentum * velocity : velocity;
        }
        a.to[i] = narrow(p - lr * step);
    }
}

#define EVERY(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define PARAMETERS(k)                                                                    \
    const SCALAR *p##k, const SCALAR *grad##k, const SCALAR *old##k, SCALAR *to##k,                  \
        SCALAR *velocity##k, ACCUM decay##k, long long size##k,

KERNEL(BLOCK) update(EVERY(PARAMETERS) const double* numbers, ACCUM lr, ACCUM momentum)
{
    ACCUM factor = 1;
    if (numbers) {
        lr = ACCUM(numbers[0]);
        momentum = ACCUM(numbers[1]);
        factor = ACCUM(numbers[2]);
    }
    long long begin = (long long)blockIdx.x * (BLOCK * EACH);
#define TURN(k)                                                                                \
    if (begin < size##k)                                                                       \
        return update_one(                                                                     \
            {p##k, grad##k, old##k, to##k, velocity##k, decay##k * factor, size##k}, begin,    \
            lr, momentum);                                                                     \
    begin -= (size##k + BLOCK * EACH - 1) / (BLOCK * EACH) * (BLOCK * EACH);
    EVERY(TURN)
}
