#include "involution/involution.cuh"
// out[n,c,i,j] = sum over (u,v) of kernel[n,g,u,v,i,j] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
// In three dimensions (s,u,v) are taps and (d,i,j) positions, of which s and d count planes.
//
// A thread computes COLUMNS columns of one row for CHANNELS channels of a group. For each tap row
// it gets the kernel values once, then loads from each channel the stretch of x that they multiply.

// The channels of a thread: `count` from `first` on, numbered through batch and channels.
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

// Whether the loads of a channel wait for the channel before. If kernel values fill the registers,
// early loads would leave room for only half as many threads.
constexpr bool ONE_BY_ONE = RAGGED || KERNEL_W * COLUMNS > 32;

// taps(r, part, tap) fills tap[t][e] with the kernel value of tap part + t of tap row r at column
// e. With Taps::AHEAD it is called one step before the values are needed, so that a load from
// memory has the time of one step to arrive.
template <class Taps>
__device__ __forceinline__ void forward_strip(const SCALAR* x, const Taps& taps, SCALAR* out,
                                              const Geometry& g, const Place& at,
                                              const Share& mine)
{
    const long long x_step = g.x_step(), out_step = g.out_step();
    x += mine.first * x_step + at.column * STRIDE_W;
    const int top = at.row * STRIDE_H - PADDING_H;
    ACCUM sum[CHANNELS][COLUMNS] = {};

    // The tap rows, and the tap planes, that lie inside x.
    const int begin = top >= 0 ? 0 : (-top + DILATION_H - 1) / DILATION_H;
    const int end = min(KERNEL_H, (g.height - top + DILATION_H - 1) / DILATION_H);
    IN_3D(const int front = at.plane * STRIDE_D - PADDING_D;
          const int first = front >= 0 ? 0 : (-front + DILATION_D - 1) / DILATION_D;
          const int last = min(KERNEL_D, (g.depth - front + DILATION_D - 1) / DILATION_D);)
    ACCUM next[TAPS][COLUMNS];
    if (Taps::AHEAD && begin < end IN_3D(&& first < last))
        taps(IN_3D(first * KERNEL_H +) begin, 0, next);

    IN_3D(_Pragma("unroll 1") for (int s = first; s < last; ++s))
#pragma unroll 1
    for (int u = begin; u < end; ++u) {
        const int y = top + u * DILATION_H;
        const SCALAR* const x_row = x + g.x_row(IN_3D(front + s * DILATION_D,) y);
#pragma unroll
        for (int part = 0; part < KERNEL_W; part += TAPS) {
            ACCUM tap[TAPS][COLUMNS];
            if (Taps::AHEAD) {
                UNROLL(t, TAPS)
                    UNROLL(e, COLUMNS) tap[t][e] = next[t][e];
                if (part + TAPS < KERNEL_W)
                    taps(IN_3D(s * KERNEL_H +) u, part + TAPS, next);
                else if (u + 1 < end)
                    taps(IN_3D(s * KERNEL_H +) u + 1, 0, next);
                IN_3D(else if (s + 1 < last) taps((s + 1) * KERNEL_H + begin, 0, next);)
            } else {
                taps(IN_3D(s * KERNEL_H +) u, part, tap);
            }
            const SCALAR* from = x_row;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c, from += x_step) {
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
    out += mine.first * out_step + g.out_row(IN_3D(at.plane,) at.row) + at.column;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c, out += out_step) {
        if (RAGGED && c >= mine.count) break;
        store_run<VECTOR_OUT, COLUMNS>(out, at.column, g.out_w, sum[c]);
    }
}
