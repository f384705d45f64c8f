#include "cuda.cuh"
// Passes over channels. Arrays are (N, C, H, W). Planes of H*W elements are read and written in
// vectors of VECTOR elements, which divides H*W. Values per channel are ACCUM.
//
// A sum over a channel takes two stages, in an order that never changes: each warp sums one of
// `slices` parts of a channel and writes partial[row][channel][slice]; then one warp per channel
// combines the slices. Shuffles combine the lanes of a warp, also in a fixed order.

// The vectors of one channel in all images, numbered from 0 to batch * per_plane - 1.
struct Channel {
    int channel, channels, per_plane;  // per_plane: vectors in a plane

    // Offset of a vector in the array.
    __device__ __forceinline__ long long offset(index_t vector) const
    {
        const index_t image = vector / per_plane;
        return (((long long)image * channels + channel) * per_plane + vector % per_plane) * VECTOR;
    }
};

// The vectors of a channel that a lane sums: begin, begin + 32, ... below end.
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
