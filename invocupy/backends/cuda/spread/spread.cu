#include "spread/spread.cuh"
// First stage of the mean and covariance of x: each warp writes one row of partial[value][row] with
// the count, the means, and the sums of products of distances from the means, of its pixels.

extern "C" __global__ void __launch_bounds__(BLOCK)
spread(In x, OutAccum partial, int batch, int per_plane, int rows)
{
    const index_t row = thread_index() / 32, vectors = index_t(batch) * per_plane;
    if (row >= rows) return;
    const index_t length = (vectors + rows - 1) / rows, end = min((row + 1) * length, vectors);
    Spread sum = {};
    for (index_t vector = row * length + threadIdx.x % 32; vector < end; vector += 32) {
        const long long image = vector / per_plane;
        const SCALAR* from = x + (image * CHANNELS * per_plane + vector % per_plane) * VECTOR;
        ACCUM value[CHANNELS][VECTOR];
        UNROLL(c, CHANNELS) load<VECTOR>(from + (long long)c * per_plane * VECTOR, value[c]);
        UNROLL(k, VECTOR) {
            Spread pixel = {};
            pixel.count = 1;
            UNROLL(c, CHANNELS) pixel.mean[c] = value[c][k];
            sum.add(pixel);
        }
    }
    sum.add_lanes();
    if (threadIdx.x % 32 == 0) {
        partial[row] = sum.count;
        UNROLL(c, CHANNELS) partial[(1 + c) * rows + row] = sum.mean[c];
        UNROLL(k, PAIRS) partial[(1 + CHANNELS + k) * rows + row] = sum.product[k];
    }
}
