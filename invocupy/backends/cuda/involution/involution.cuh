#include "cuda.cuh"
// What the involution kernels share.
//
// A thread owns COLUMNS consecutive columns of one row. Arrays with rows of x (x and its gradient)
// are read and written VECTOR_X elements at a time, arrays with rows of the result (kernel, out,
// features and their gradients) VECTOR_OUT elements at a time: both divide their row and, where a
// thread starts, its column.
//
// Offsets within a channel are 64-bit, columns, rows and planes are 32-bit.

// What only three dimensions have (DIMS = 3): the planes of a channel, and those of the kernel. The
// code for one and two dimensions is what is left without it.
#if DIMS == 3
#define IN_3D(...) __VA_ARGS__
#else
#define IN_3D(...)
#endif

// Where a thread works. `unit` counts what the batch consists of (groups, or images), each of which
// `shares` threads share at every strip: COLUMNS columns from `column` on of one of `rows` rows of
// a plane. Threads that share a strip are close to each other, because they read the same values.
struct Place {
    index_t unit;
    int share, IN_3D(plane,) row, column;
};

// invocupy.geometry.Geometry, field by field. The sizes that macros carry are not read from here.
struct Geometry {
    int batch, channels, groups, IN_3D(depth,) height, width, IN_3D(kernel_d,) kernel_h, kernel_w;
    int IN_3D(out_d,) out_h, out_w, IN_3D(stride_d,) stride_h, stride_w;
    int IN_3D(padding_d,) padding_h, padding_w, IN_3D(dilation_d,) dilation_h, dilation_w;

    __device__ __forceinline__ int per_group() const { return channels / groups; }

    // From one channel of x, or of the result, to the next.
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

    // Where a thread's columns of the result are in a channel.
    __device__ __forceinline__ long long out_offset(const Place& at) const
    {
        return out_row(IN_3D(at.plane,) at.row) + at.column;
    }
};

// Tap rows, counted through the planes of the kernel: number s * KERNEL_H + u is row u of plane s.
constexpr int TAP_ROWS = IN_3D(KERNEL_D *) KERNEL_H;

// Taps of one tap row that are held in registers at once. Wide kernels go in several parts.
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

// The stretch of a row of x that the taps of COLUMNS columns of the result see: from BEGIN on, as
// counted from element column * STRIDE_W. It starts LEAD elements early, to be aligned.
namespace window {
constexpr int LEAD = (VECTOR_X - PADDING_W % VECTOR_X) % VECTOR_X;
constexpr int BEGIN = -PADDING_W - LEAD;
constexpr int SPAN =
    round_up(LEAD + (COLUMNS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1, VECTOR_X);

// Whether that element is in the row for every column: else padding makes the result too wide.
constexpr bool INSIDE = 2 * PADDING_W <= (KERNEL_W - 1) * DILATION_W;

// The element that column e of the thread sees through tap v.
__host__ __device__ constexpr int seen(int v, int e) { return LEAD + e * STRIDE_W + v * DILATION_W; }
}  // namespace window
