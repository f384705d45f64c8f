#include "channel.cuh"
// grad_x = a[c] * h + b[c] * x + c[c], where h is grad, or 0 where MASKED and not out > 0. If
// RESIDUAL, h is also stored as the gradient of the residual.

KERNEL(BLOCK) grad_x(In grad, In x, In out, InAccum a, InAccum b, InAccum c, Out to,
    Out to_residual, int batch, int channels, int per_plane)
{
    const index_t vector = thread_index();
    const index_t plane = vector / per_plane;
    if (plane >= index_t(batch) * channels) return;
    const int channel = int(plane % channels);
    const long long at = (long long)vector * VECTOR;

    ACCUM h[VECTOR], value[VECTOR], mask[VECTOR];
    load<VECTOR>(grad + at, h);
    load<VECTOR>(x + at, value);
    if (MASKED) load<VECTOR>(out + at, mask);
    const ACCUM by_h = a[channel], by_x = b[channel], offset = c[channel];
    UNROLL(k, VECTOR) {
        if (MASKED && !(mask[k] > 0)) h[k] = 0;
        value[k] = by_h * h[k] + by_x * value[k] + offset;
    }
    store<VECTOR>(to + at, value);
    if (RESIDUAL) store<VECTOR>(to_residual + at, h);
}
