#include "spread/spread.cuh"
// What the passes over the hidden channels share. A thread has the CHANNELS of VECTOR pixels in
// registers. In `stats`, behind the moments of x, are the folded weights (HIDDEN, SUMS): those of
// x - center and, as the last one, the offset.

constexpr int SUMS = CHANNELS + 1, ROW = round_up(SUMS, 4), FOLDED = COVARIANCE + PAIRS;

// Where the pixels of a thread are: `at` in each plane of an image.
struct Place {
    long long image, plane, at;

    __device__ __forceinline__ Place(index_t vector, int per_plane)
        : image(vector / per_plane), plane((long long)per_plane * VECTOR),
          at((long long)(vector % per_plane) * VECTOR) {}

    __device__ __forceinline__ void load_x(const SCALAR* x, const ACCUM* center,
                                           ACCUM (&in)[CHANNELS][VECTOR]) const
    {
        UNROLL(c, CHANNELS) {
            load<VECTOR>(x + (image * CHANNELS + c) * plane + at, in[c]);
            UNROLL(k, VECTOR) in[c][k] -= center[c];
        }
    }
};

// norm(expand(x)) of a hidden channel. The compiler may not choose how `fma` rounds: the gradients
// have the mask of the result, to the bit.
__device__ __forceinline__ void normed(const ACCUM (&w)[ROW], const ACCUM (&in)[CHANNELS][VECTOR],
                                       ACCUM (&z)[VECTOR])
{
    UNROLL(k, VECTOR) {
        z[k] = w[CHANNELS];
        UNROLL(c, CHANNELS) z[k] = fma(w[c], in[c][k], z[k]);
    }
}
