#include "cuda.cuh"
// Passes over channels. Arrays are (N, C, H, W) with planes of H*W elements, read and written VECTOR
// elements at a time, which divides H*W. Values per channel are ACCUM.
//
// Sums over a channel take two stages, so that they come out the same each time: a warp goes over
// one of `slices` parts of a channel and writes partial[row][channel][slice]; then one warp for
// each channel puts the slices together. Lanes are put together by shuffles in a fixed order.

// The vectors of one channel of all images, counted from 0 to batch * per_plane - 1.
struct Channel {
    int channel, channels, per_plane;  // per_plane: vectors in a plane

    // Offset of a vector in the array.
    __device__ __forceinline__ long long offset(index_t vector) const
    {
        const index_t image = vector / per_plane;
        return (((long long)image * channels + channel) * per_plane + vector % per_plane) * VECTOR;
    }
};

// Which vectors of which channel a lane goes over: begin, begin + 32, ... below end.
struct Slice {
    Channel of;
    int slice;
    index_t begin, end;
};

__device__ __forceinline__ Slice slice_of(int batch, int channels, int per_plane, int slices)
{
    const index_t warp = thread_index() / 32;
    const index_t vectors = index_t(batch) * per_plane;
    const index_t length = (vectors + slices - 1) / slices;
    const index_t slice = warp % slices;
    return {{int(warp / slices), channels, per_plane},
            int(slice),
            slice * length + threadIdx.x % 32,
            min((slice + 1) * length, vectors)};
}
