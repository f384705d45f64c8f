#include "involution/forward.cuh"
// grad_x[n,c,y,x] = sum over (u,v) of kernel[n,g,u,v,i,j] * grad[n,c,i,j], over the (i,j) that saw
// (y,x) through tap (u,v): i*sh = y + ph - u*dh and j*sw = x + pw - v*dw.
//
// A thread owns COLUMNS columns of one row of CHANNELS channels of a group, as in forward.cuh, but
// of x. COLUMNS is a multiple of the horizontal stride: then it is known to the compiler which LIVE
// of the columns a tap serves, and no lane idles. Rows of x are taken phase by phase of the
// vertical stride, so that neighbouring threads need the same tap rows.

constexpr int LIVE = COLUMNS / STRIDE_W;

// Columns of the result are counted from that of the thread's first column, column / STRIDE_W.
namespace window_x {
__host__ __device__ constexpr int floor_to(int value, int unit)
{
    return value >= 0 ? value / unit * unit : -round_up(-value, unit);
}

// The first column of the result that sees one of the thread's columns through tap v, ...
__host__ __device__ constexpr int first(int v)
{
    return -floor_to(v * DILATION_W - PAD_W, STRIDE_W) / STRIDE_W;
}

// ... and which of the thread's columns that is. The others follow at steps of one and STRIDE_W.
__host__ __device__ constexpr int live(int v) { return first(v) * STRIDE_W + v * DILATION_W - PAD_W; }

// The aligned stretch of the result that all taps need.
constexpr int BEGIN = floor_to(first(KERNEL_W - 1), VECTOR_OUT);
constexpr int SPAN = round_up(first(0) + LIVE - BEGIN, VECTOR_OUT);

// Whether that first column is in the row for every column of x: else the result is too narrow.
constexpr bool INSIDE = 2 * PAD_W >= (KERNEL_W - 1) * DILATION_W;
}  // namespace window_x

// Row r of x when rows are taken phase by phase; past the end for a few r.
__device__ __forceinline__ int phased_row(int r, int height)
{
    const int per_phase = (height - 1) / STRIDE_H + 1;
    return r % per_phase * STRIDE_H + r / per_phase;
}

// Taps: taps(u, i, part, tap) fills tap[t][l] with the values of tap (u, part + t) in row i of the
// result, at the columns first(part + t) + l.
template <class Taps>
__device__ __forceinline__ void grad_x_strip(const SCALAR* grad, const Taps& taps, SCALAR* out,
                                             const Geometry& g, int y, int column,
                                             const Share& mine)
{
    const long long x_plane = g.x_plane(), out_plane = g.out_plane();
    const int position = column / STRIDE_W;
    grad += mine.first * out_plane + position;
    ACCUM sum[CHANNELS][COLUMNS] = {};

#pragma unroll 1
    for (int u = 0; u < KERNEL_H; ++u) {
        const int down = y + PAD_H - u * DILATION_H;
        const int i = down / STRIDE_H;
        if (down < 0 || down % STRIDE_H != 0 || i >= g.out_h) continue;
        const SCALAR* const grad_row = grad + (long long)i * g.out_w;
#pragma unroll
        for (int part = 0; part < KERNEL_W; part += TAPS) {
            ACCUM tap[TAPS][LIVE];
            taps(u, i, part, tap);
            const SCALAR* from = grad_row;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c, from += out_plane) {
                if (ONE_BY_ONE && c >= mine.count) break;
                ACCUM stretch[window_x::SPAN];
                load_run<VECTOR_OUT, window_x::SPAN, false, window_x::INSIDE>(
                    from, position, window_x::BEGIN, g.out_w, stretch);
                UNROLL(t, TAPS) {
                    const int v = part + t;
                    if (v >= KERNEL_W) continue;
                    UNROLL(l, LIVE)
                        sum[c][window_x::live(v) + l * STRIDE_W] +=
                            tap[t][l] * stretch[window_x::first(v) - window_x::BEGIN + l];
                }
            }
        }
    }
    out += mine.first * x_plane + (long long)y * g.width + column;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c, out += x_plane) {
        if (RAGGED && c >= mine.count) break;
        store_run<VECTOR_X, COLUMNS>(out, column, g.width, sum[c]);
    }
}
