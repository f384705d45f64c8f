#include "involution_block/block.cuh"
// What the kernels of forward share: the weights of the hidden layer, and the involution's kernel.

constexpr int ROW = round_up(2 * CHANNELS + 1 + REDUCED, 4);  // weights per hidden channel

// For each hidden channel: expand and its offset with the first norm folded in, reduce, project.
// scale_of(d, weights of expand, offset) gives the norm's factor, and may add to the offset.
template <typename Scale>
__device__ __forceinline__ void fill(ACCUM (&weights)[HIDDEN][ROW], const SCALAR* expand,
                                     const SCALAR* beta, const SCALAR* reduce,
                                     const SCALAR* project, Scale scale_of)
{
    for (int d = threadIdx.x; d < HIDDEN; d += BLOCK) {
        ACCUM w[CHANNELS], offset = widen(beta[d]);
        UNROLL(c, CHANNELS) w[c] = widen(expand[d * CHANNELS + c]);
        const ACCUM scale = scale_of(d, w, offset);
        UNROLL(c, CHANNELS) {
            weights[d][c] = scale * w[c];
            weights[d][CHANNELS + 1 + REDUCED + c] = widen(project[c * HIDDEN + d]);
        }
        weights[d][CHANNELS] = offset;
        for (int i = 2 * CHANNELS + 1 + REDUCED; i < ROW; ++i) weights[d][i] = 0;
    }
    for (int k = threadIdx.x; k < REDUCED * HIDDEN; k += BLOCK)
        weights[k % HIDDEN][CHANNELS + 1 + k / HIDDEN] = widen(reduce[k]);
}

// relu(norm(expand(x))) of a hidden channel at N pixels.
template <int N>
__device__ __forceinline__ void activate(const ACCUM (&w)[ROW], const ACCUM (&in)[CHANNELS][N],
                                         ACCUM (&h)[N])
{
    UNROLL(k, N) {
        h[k] = w[CHANNELS];
        UNROLL(c, CHANNELS) h[k] += w[c] * in[c][k];
        h[k] = h[k] < 0 ? ACCUM(0) : h[k];  // NaN stays NaN
    }
}

// A norm with known moments: scale * value + shift.
template <int COUNT>
__device__ __forceinline__ void fold(const SCALAR* gamma, const SCALAR* beta, const ACCUM* mean,
                                     const ACCUM* var, ACCUM eps, ACCUM (&scale)[COUNT],
                                     ACCUM (&shift)[COUNT])
{
    static_assert(COUNT <= BLOCK, "a value per thread");
    const int k = threadIdx.x;
    if (k < COUNT) {
        scale[k] = widen(gamma[k]) * inverse_of(var[k], eps);
        shift[k] = widen(beta[k]) - mean[k] * scale[k];
    }
}

// relu(norm(reduced)) of one feature at N pixels, in place.
template <int N>
__device__ __forceinline__ void to_feature(ACCUM scale, ACCUM shift, ACCUM (&value)[N])
{
    UNROLL(k, N) {
        const ACCUM normed = scale * value[k] + shift;
        value[k] = normed < 0 ? ACCUM(0) : normed;
    }
}

// One tap of the kernel at N pixels. WIDTH divides REDUCED.
template <int WIDTH, int N>
__device__ __forceinline__ void tap_at(int tap, const SCALAR* span, const SCALAR* span_bias,
                                       const ACCUM (&feature)[REDUCED][N], ACCUM (&value)[N])
{
    UNROLL(k, N) value[k] = widen(span_bias[tap]);
#pragma unroll
    for (int f = 0; f < REDUCED; f += WIDTH) {
        ACCUM w[WIDTH];
        load<WIDTH>(span + tap * REDUCED + f, w);
        UNROLL(i, WIDTH) UNROLL(k, N) value[k] += w[i] * feature[f + i][k];
    }
}
