#include "cuda.cuh"
// out (N, C + 1, P) = x (N, C, P), with ones as the last channel: one thread per vector.

KERNEL(BLOCK) with_ones(In x, Out out, int batch, int channels, int per_plane)
{
    const index_t vector = thread_index();
    const index_t plane = vector / per_plane, image = plane / (channels + 1);
    if (image >= batch) return;
    ACCUM value[VECTOR];
    UNROLL(k, VECTOR) value[k] = 1;
    if (plane % (channels + 1) != channels)
        load<VECTOR>(x + ((long long)vector - (long long)image * per_plane) * VECTOR, value);
    store<VECTOR>(out + (long long)vector * VECTOR, value);
}
