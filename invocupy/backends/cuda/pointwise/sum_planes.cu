// First stage of the gradient of the bias: partial[slice][channel], the sum of one slice of a
// channel's elements in all images. A warp a slice; lanes are added up in a fixed order.

extern "C" __global__ void __launch_bounds__(BLOCK)
sum_planes(const SCALAR* __restrict__ grad, ACCUM* __restrict__ partial, int batch, int channels,
           int per_plane, int slices)
{
    const index_t warp = (index_t(blockIdx.x) * BLOCK + threadIdx.x) / 32;
    const int channel = int(warp % channels);
    const index_t slice = warp / channels;
    if (slice >= slices) return;
    const index_t vectors = index_t(batch) * per_plane;
    ACCUM sum[VECTOR] = {};
#pragma unroll 4
    for (index_t k = slice * 32 + threadIdx.x % 32; k < vectors; k += index_t(slices) * 32) {
        const long long plane = (long long)(k / per_plane) * channels + channel;
        ACCUM value[VECTOR];
        load<VECTOR, true>(grad + (plane * per_plane + k % per_plane) * VECTOR, value);
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sum[e] += value[e];
    }
#pragma unroll
    for (int e = 1; e < VECTOR; ++e) sum[0] += sum[e];
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], step);
    if (threadIdx.x % 32 == 0) partial[slice * channels + channel] = sum[0];
}
