#include "cuda.cuh"
// What the involution kernels share.
//
// A thread computes COLUMNS consecutive columns of one row. Arrays with rows of x (x and its
// gradient) are read and written VECTOR_X elements at a time, arrays with rows of the result
// (kernel, out, features and their gradients) VECTOR_OUT elements at a time. Each divides the
// length of its rows and every column at which a thread starts.
//
// Offsets within a channel are 64-bit, columns, rows and planes are 32-bit.

// Code for three dimensions only (DIMS = 3): for the planes of a channel and of the kernel. The
// code for one and two dimensions is the same without it.
#if DIMS == 3
#define IN_3D(...) __VA_ARGS__
#else
#define IN_3D(...)
#endif

// Where a thread works: on COLUMNS columns from `column` on, in a row of a plane. `unit` numbers
// the groups or images of the batch. `shares` threads divide the work on the columns, and this is
// number `share`; they are neighbours, because they read the same values.
struct Place {
    index_t unit;
    int share, IN_3D(plane,) row, column;
};

// invocupy.geometry.Geometry, field by field. What macros hold is not read from here.
struct Geometry {
    int batch, channels, groups, IN_3D(depth,) height, width, IN_3D(kernel_d,) kernel_h, kernel_w;
    int IN_3D(out_d,) out_h, out_w, IN_3D(stride_d,) stride_h, stride_w;
    int IN_3D(padding_d,) padding_h, padding_w, IN_3D(dilation_d,) dilation_h, dilation_w;

    __device__ __forceinline__ int per_group() const { return channels / groups; }

    // Elements from one channel to the next, of x and of the result.
    __device__ __forceinline__ long long x_step() const
    {
        return (long long)IN_3D(depth *) height * width;
    }
    __device__ __forceinline__ long long out_step() const
    {
        return (long long)IN_3D(out_d *) out_h * out_w;
    }

    // Where a row of a channel begins.
    __device__ __forceinline__ long long x_row(IN_3D(int plane,) int row) const
    {
        return ((long long)IN_3D(plane * height +) row) * width;
    }
    __device__ __forceinline__ long long out_row(IN_3D(int plane,) int row) const
    {
        return ((long long)IN_3D(plane * out_h +) row) * out_w;
    }

    // Where the thread's first column of the result is in a channel.
    __device__ __forceinline__ long long out_offset(const Place& at) const
    {
        return out_row(IN_3D(at.plane,) at.row) + at.column;
    }
};

// Tap rows, counted through the planes of the kernel: s * KERNEL_H + u is row u of plane s.
constexpr int TAP_ROWS = IN_3D(KERNEL_D *) KERNEL_H;

// Taps of one tap row that are in registers at once. The rows of wide kernels are done in PARTS.
constexpr int PARTS = (KERNEL_W + 7) / 8;
constexpr int TAPS = (KERNEL_W + PARTS - 1) / PARTS;

__device__ __forceinline__ Place place(index_t index, int shares, IN_3D(int planes,) int rows,
                                        int width)
{
    const index_t strips = (width - 1) / COLUMNS + 1;
    index_t rest = index / strips;
    Place at;
    at.column = int(index % strips) * COLUMNS;
    at.share = int(rest % shares);
    rest /= shares;
    at.row = int(rest % rows);
    IN_3D(at.plane = int(rest / rows % planes); rest /= planes;)
    at.unit = rest / rows;
    return at;
}

// The stretch of a row of x that the taps of COLUMNS columns of the result read. BEGIN counts from
// element column * STRIDE_W. The stretch starts LEAD elements early, to be aligned.
namespace window {
constexpr int LEAD = (VECTOR_X - PADDING_W % VECTOR_X) % VECTOR_X;
constexpr int BEGIN = -PADDING_W - LEAD;
constexpr int SPAN =
    round_up(LEAD + (COLUMNS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1, VECTOR_X);

// Whether column * STRIDE_W is in the row for every column: else padding makes the row too long.
constexpr bool INSIDE = 2 * PADDING_W <= (KERNEL_W - 1) * DILATION_W;

// The element of the stretch that column e of the thread reads through tap v.
__host__ __device__ constexpr int seen(int v, int e) { return LEAD + e * STRIDE_W + v * DILATION_W; }
}  // namespace window
