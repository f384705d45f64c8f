// inverse = 1 / sqrt(var + eps), scale = weight * inverse, shift = bias - mean * scale: a thread a
// channel.

extern "C" __global__ void __launch_bounds__(BLOCK)
fold(const ACCUM* __restrict__ mean, const ACCUM* __restrict__ var,
     const ACCUM* __restrict__ weight, const ACCUM* __restrict__ bias,
     ACCUM* __restrict__ inverse, ACCUM* __restrict__ scale, ACCUM* __restrict__ shift, ACCUM eps,
     int channels)
{
    const index_t c = index_t(blockIdx.x) * BLOCK + threadIdx.x;
    if (c >= channels) return;
    inverse[c] = 1 / sqrt(var[c] + eps);
    scale[c] = weight[c] * inverse[c];
    shift[c] = bias[c] - mean[c] * scale[c];
}
