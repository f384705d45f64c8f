#include "cuda.cuh"
// The b and c of grad_x.cu for a norm by the batch's own moments, and the gradient of the weight:
// a thread a channel.

extern "C" __global__ void __launch_bounds__(BLOCK)
coefficients(InAccum scale, InAccum inverse, InAccum mean, InAccum sum_grad, InAccum sum_grad_x,
             OutAccum b, OutAccum c, OutAccum grad_weight, ACCUM count, int channels)
{
    const index_t k = thread_index();
    if (k >= channels) return;
    const ACCUM by_x = -scale[k] * inverse[k] * inverse[k] * sum_grad_x[k] / count;
    b[k] = by_x;
    c[k] = -scale[k] * sum_grad[k] / count - by_x * mean[k];
    grad_weight[k] = sum_grad_x[k] * inverse[k];
}
