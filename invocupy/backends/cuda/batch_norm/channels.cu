#include "cuda.cuh"
// What batch norm computes per channel between its passes: one thread per channel.

// inverse = 1 / sqrt(var + eps), scale = weight * inverse, shift = bias - mean * scale.
KERNEL(BLOCK) fold(InAccum mean, InAccum var, InAccum weight, InAccum bias, OutAccum inverse,
    OutAccum scale, OutAccum shift, ACCUM eps, int channels)
{
    const index_t c = thread_index();
    if (c >= channels) return;
    inverse[c] = 1 / sqrt(var[c] + eps);
    scale[c] = weight[c] * inverse[c];
    shift[c] = bias[c] - mean[c] * scale[c];
}

// For a norm by the moments of the batch: b and c of grad_x.cu, and the gradient of the weight.
KERNEL(BLOCK) coefficients(InAccum scale, InAccum inverse, InAccum mean, InAccum sum_grad,
    InAccum sum_grad_x, OutAccum b, OutAccum c, OutAccum grad_weight, ACCUM count, int channels)
{
    const index_t k = thread_index();
    if (k >= channels) return;
    const ACCUM by_x = -scale[k] * inverse[k] * inverse[k] * sum_grad_x[k] / count;
    b[k] = by_x;
    c[k] = -scale[k] * sum_grad[k] / count - by_x * mean[k];
    grad_weight[k] = sum_grad_x[k] * inverse[k];
}

// new = (1 - momentum) * old + momentum * that of the batch; `unbiased` is the factor that makes
// the variance of the batch unbiased. The new arrays may be the old ones.
KERNEL(BLOCK) running(const ACCUM* old_mean, const ACCUM* old_var, InAccum mean, InAccum var,
    ACCUM* new_mean, ACCUM* new_var, ACCUM momentum, ACCUM unbiased, int channels)
{
    const index_t c = thread_index();
    if (c >= channels) return;
    const ACCUM keep = 1 - momentum;
    new_mean[c] = keep * old_mean[c] + momentum * mean[c];
    new_var[c] = keep * old_var[c] + momentum * (var[c] * unbiased);
}
