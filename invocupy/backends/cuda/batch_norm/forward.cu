#include "channel.cuh"
// out = scale[c] * x + shift[c] (+ residual), then max(., 0) if RELU. NaN stays NaN.

KERNEL(BLOCK) forward(In x, InAccum scale, InAccum shift, In residual, Out out, int batch,
    int channels, int per_plane)
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
    UNROLL(k, VECTOR) {
        value[k] = factor * value[k] + offset;
        if (RESIDUAL) value[k] += beside[k];
        if (RELU && value[k] < 0) value[k] = 0;
    }
    store<VECTOR>(out + at, value);
}
