#include "sgd/sixteen.cuh"
// One step of stochastic gradient descent on up to sixteen arrays. `to` may be `p`, and `velocity`
// may be `old`.
//
//     move = grad + decay * p,  velocity = momentum * old + move,
//     to = p - lr * (move + momentum * velocity if NESTEROV, else velocity)
//
// Without MOMENTUM, velocity is move and is not stored; without `old` (the first step) it is move.
// With `numbers`, those are lr, momentum and decay, which a CUDA graph reads anew at each launch; the
// `decay` of an array is then the factor of the last.

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
    long long begin = first_element();
#define ONE(k) p##k, grad##k, old##k, to##k, velocity##k, decay##k * factor, size##k
#define TURN(k) TRY(size##k, update_one({ONE(k)}, begin, lr, momentum))
    EVERY(TURN)
}
