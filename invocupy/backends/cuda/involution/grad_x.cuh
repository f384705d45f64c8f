#include "involution/forward.cuh"
// grad_x[n,c,y,x] = sum over (u,v) of kernel[n,g,u,v,i,j] * grad[n,c,i,j], where (i,j) is the
// position of the result that reads (y,x) through tap (u,v), if there is one: i*sh = y + ph - u*dh
// and j*sw = x + pw - v*dw. In three dimensions also d*sd = z + pd - s*dd.
//
// A thread computes COLUMNS columns of one row for CHANNELS channels of a group, as in forward.cuh,
// but of x. COLUMNS is a multiple of the horizontal stride: so the compiler knows to which LIVE of
// the columns a tap contributes, and no lane idles. Rows of x are ordered by their phase, the index
// modulo the vertical stride, so that neighbouring threads need the same tap rows.

constexpr int LIVE = COLUMNS / STRIDE_W;

// Columns of the result are counted from column / STRIDE_W, for the thread's first column of x.
namespace window_x {
__host__ __device__ constexpr int floor_to(int value, int unit)
{
    return value >= 0 ? value / unit * unit : -round_up(-value, unit);
}

// The first column of the result that reads one of the thread's columns through tap v, ...
__host__ __device__ constexpr int first(int v)
{
    return -floor_to(v * DILATION_W - PADDING_W, STRIDE_W) / STRIDE_W;
}

// ... and which of the thread's columns it reads. The others follow in steps of 1 and STRIDE_W.
__host__ __device__ constexpr int live(int v)
{
    return first(v) * STRIDE_W + v * DILATION_W - PADDING_W;
}

// The aligned stretch of the result that all taps need.
constexpr int BEGIN = floor_to(first(KERNEL_W - 1), VECTOR_OUT);
constexpr int SPAN = round_up(first(0) + LIVE - BEGIN, VECTOR_OUT);

// Whether column / STRIDE_W is in the row for every column of x: else the result is too narrow.
constexpr bool INSIDE = 2 * PADDING_W >= (KERNEL_W - 1) * DILATION_W;
}  // namespace window_x

// Row r of x if rows are ordered by phase; past the end for a few r.
__device__ __forceinline__ int phased_row(int r, int height)
{
    const int per_phase = (height - 1) / STRIDE_H + 1;
    return r % per_phase * STRIDE_H + r / per_phase;
}

// taps(r, i, part, tap) fills tap[t][l] with the values of tap part + t of tap row r in row i (of
// plane d) of the result, at the columns first(part + t) + l.
template <class Taps>
__device__ __forceinline__ void grad_x_strip(const SCALAR* grad, const Taps& taps, SCALAR* out,
                                             const Geometry& g, const Place& at, int y,
                                             const Share& mine)
{
    const long long x_step = g.x_step(), out_step = g.out_step();
    const int position = at.column / STRIDE_W;
    grad += mine.first * out_step + position;
    ACCUM sum[CHANNELS][COLUMNS] = {};

#pragma unroll 1
    for (int r = 0; r < TAP_ROWS; ++r) {
        const int down = y + PADDING_H - (r IN_3D(% KERNEL_H)) * DILATION_H;
        const int i = down / STRIDE_H;
        if (down < 0 || down % STRIDE_H != 0 || i >= g.out_h) continue;
        IN_3D(const int deep = at.plane + PADDING_D - r / KERNEL_H * DILATION_D;
              const int d = deep / STRIDE_D;
              if (deep < 0 || deep % STRIDE_D != 0 || d >= g.out_d) continue;)
        const SCALAR* const grad_row = grad + g.out_row(IN_3D(d,) i);
#pragma unroll
        for (int part = 0; part < KERNEL_W; part += TAPS) {
            ACCUM tap[TAPS][LIVE];
            taps(r, IN_3D(d,) i, part, tap);
            const SCALAR* from = grad_row;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c, from += out_step) {
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
    out += mine.first * x_step + g.x_row(IN_3D(at.plane,) y) + at.column;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c, out += x_step) {
        if (RAGGED && c >= mine.count) break;
        store_run<VECTOR_X, COLUMNS>(out, at.column, g.width, sum[c]);
    }
}
