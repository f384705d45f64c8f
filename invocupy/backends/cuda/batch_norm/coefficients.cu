// The b and c of grad_x.cu for a norm by the batch's own moments, and the gradient of the weight:
// a thread a channel.

extern "C" __global__ void __launch_bounds__(BLOCK)
coefficients(const ACCUM* __restrict__ scale, const ACCUM* __restrict__ inverse,
             const ACCUM* __restrict__ mean, const ACCUM* __restrict__ sum_grad,
             const ACCUM* __restrict__ sum_grad_x, ACCUM* __restrict__ b, ACCUM* __restrict__ c,
             ACCUM* __restrict__ grad_weight, ACCUM count, int channels)
{
    const index_t k = index_t(blockIdx.x) * BLOCK + threadIdx.x;
    if (k >= channels) return;
    const ACCUM by_x = -scale[k] * inverse[k] * inverse[k] * sum_grad_x[k] / count;
    b[k] = by_x;
    c[k] = -scale[k] * sum_grad[k] / count - by_x * mean[k];
    grad_weight[k] = sum_grad_x[k] * inverse[k];
}
