#include "involution/involution.cuh"
// out[n,c,i,j] = sum over (u,v) of kernel[n,g,u,v,i,j] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
//
// A thread owns COLUMNS columns of one row of CHANNELS channels of a group. Tap row by tap row it
// gets the kernel values once, and then for each channel the stretch of x that they see.

// The channels that a thread owns: `count` from `first` on, which counts (batch, channel).
struct Share {
    long long first;
    int count;
};

__device__ __forceinline__ int shares_of(const Geometry& g)
{
    return (g.per_group() + CHANNELS - 1) / CHANNELS;
}

__device__ __forceinline__ Share share_of(const Place& at, const Geometry& g)
{
    const int per_group = g.per_group(), begin = at.share * CHANNELS;
    return {(long long)at.unit * per_group + begin, min(CHANNELS, per_group - begin)};
}

// Whether loads of one channel have to wait for the last. Where kernel values fill the registers,
// the compiler would else keep half of the threads out for loads that it has started early.
constexpr bool ONE_BY_ONE = RAGGED || KERNEL_W * COLUMNS > 32;

// Taps: taps(u, part, tap) fills tap[t][e] with the kernel value of tap (u, part + t) at column e.
// With Taps::AHEAD that is called a step before the values are needed: a load from memory then has
// the time of one step to arrive.
template <class Taps>
__device__ __forceinline__ void forward_strip(const SCALAR* x, const Taps& taps, SCALAR* out,
                                              const Geometry& g, const Place& at,
                                              const Share& mine)
{
    const long long x_plane = g.x_plane(), out_plane = g.out_plane();
    x += mine.first * x_plane + at.column * STRIDE_W;
    const int top = at.row * STRIDE_H - PAD_H;
    ACCUM sum[CHANNELS][COLUMNS] = {};

    // The tap rows whose row of x is inside.
    const int begin = top >= 0 ? 0 : (-top + DILATION_H - 1) / DILATION_H;
    const int end = min(KERNEL_H, (g.height - top + DILATION_H - 1) / DILATION_H);
    ACCUM next[TAPS][COLUMNS];
    if (Taps::AHEAD && begin < end) taps(begin, 0, next);

#pragma unroll 1
    for (int u = begin; u < end; ++u) {
        const SCALAR* const x_row = x + (long long)(top + u * DILATION_H) * g.width;
#pragma unroll
        for (int part = 0; part < KERNEL_W; part += TAPS) {
            ACCUM tap[TAPS][COLUMNS];
            if (Taps::AHEAD) {
                UNROLL(t, TAPS)
                    UNROLL(e, COLUMNS) tap[t][e] = next[t][e];
                if (part + TAPS < KERNEL_W)
                    taps(u, part + TAPS, next);
                else if (u + 1 < end)
                    taps(u + 1, 0, next);
            } else {
                taps(u, part, tap);
            }
            const SCALAR* from = x_row;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c, from += x_plane) {
                if (ONE_BY_ONE && c >= mine.count) break;
                ACCUM stretch[window::SPAN];
                load_run<VECTOR_X, window::SPAN, false, window::INSIDE>(
                    from, at.column * STRIDE_W, window::BEGIN, g.width, stretch);
                UNROLL(t, TAPS)
                    if (part + t < KERNEL_W)
                        UNROLL(e, COLUMNS)
                            sum[c][e] += tap[t][e] * stretch[window::seen(part + t, e)];
            }
        }
    }
    out += mine.first * out_plane + (long long)at.row * g.out_w + at.column;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c, out += out_plane) {
        if (RAGGED && c >= mine.count) break;
        store_run<VECTOR_OUT, COLUMNS>(out, at.column, g.out_w, sum[c]);
    }
}
