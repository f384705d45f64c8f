// out = scale[c] * x + shift[c] (+ residual), then max(., 0) if RELU. NaN stays NaN.

extern "C" __global__ void __launch_bounds__(BLOCK)
forward(const SCALAR* __restrict__ x, const ACCUM* __restrict__ scale,
        const ACCUM* __restrict__ shift, const SCALAR* __restrict__ residual,
        SCALAR* __restrict__ out, int batch, int channels, int per_plane)
{
    const index_t vector = thread_index();
    const index_t plane = vector / per_plane;
    if (plane >= index_t(batch) * channels) return;
    const int channel = int(plane % channels);
    const long long at = (long long)vector * VECTOR;

    ACCUM value[VECTOR], beside[VECTOR] = {};
    load<VECTOR>(x + at, value);
    if (RESIDUAL) load<VECTOR>(residual + at, beside);
    const ACCUM factor = scale[channel], offset = shift[channel];
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
        value[k] = factor * value[k] + offset;
        if (RESIDUAL) value[k] += beside[k];
        if (RELU && value[k] < 0) value[k] = 0;
    }
    store<VECTOR>(out + at, value);
}
