#include "cuda.cuh"
// inverse = 1 / sqrt(var + eps), scale = weight * inverse, shift = bias - mean * scale: a thread a
// channel.

extern "C" __global__ void __launch_bounds__(BLOCK)
fold(InAccum mean, InAccum var, InAccum weight, InAccum bias, OutAccum inverse, OutAccum scale,
     OutAccum shift, ACCUM eps, int channels)
{
    const index_t c = thread_index();
    if (c >= channels) return;
    inverse[c] = 1 / sqrt(var[c] + eps);
    scale[c] = weight[c] * inverse[c];
    shift[c] = bias[c] - mean[c] * scale[c];
}
