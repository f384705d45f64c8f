#include "cuda.cuh"
// What the involution kernels share.
//
// A thread owns COLUMNS consecutive columns of one row. Arrays with rows of x (x and its gradient)
// are read and written VECTOR_X elements at a time, arrays with rows of the result (kernel, out,
// features and their gradients) VECTOR_OUT elements at a time: both divide their row and, where a
// thread starts, its column.
//
// Offsets from plane to plane are 64-bit, columns and rows are 32-bit.

// invocupy.geometry.Geometry, field by field. The sizes that macros carry are not read from here.
struct Geometry {
    int batch, channels, groups, height, width, kernel_h, kernel_w, out_h, out_w;
    int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

    __device__ __forceinline__ int per_group() const { return channels / groups; }
    __device__ __forceinline__ long long x_plane() const { return (long long)height * width; }
    __device__ __forceinline__ long long out_plane() const { return (long long)out_h * out_w; }

    // Where a thread's columns are in a plane of the result.
    __device__ __forceinline__ long long out_offset(int row, int column) const
    {
        return (long long)row * out_w + column;
    }
};

// Taps of one tap row that are held in registers at once. Wide kernels go in several parts.
constexpr int PARTS = (KERNEL_W + 7) / 8;
constexpr int TAPS = (KERNEL_W + PARTS - 1) / PARTS;

// Where a thread works. `unit` counts what the batch consists of (groups, or images), each of which
// `shares` threads share at every strip: COLUMNS columns from `column` on of one of `rows` rows.
// Threads that share a strip are close to each other, because they read the same values.
struct Place {
    index_t unit;
    int share, row, column;
};

__device__ __forceinline__ Place place(index_t index, int shares, int rows, int width)
{
    const index_t strips = (width - 1) / COLUMNS + 1;
    index_t rest = index / strips;
    Place at;
    at.column = int(index % strips) * COLUMNS;
    at.share = int(rest % shares);
    rest /= shares;
    at.row = int(rest % rows);
    at.unit = rest / rows;
    return at;
}

// The stretch of a row of x that the taps of COLUMNS columns of the result see: from BEGIN on, as
// counted from element column * STRIDE_W. It starts LEAD elements early, to be aligned.
namespace window {
constexpr int LEAD = (VECTOR_X - PAD_W % VECTOR_X) % VECTOR_X;
constexpr int BEGIN = -PAD_W - LEAD;
constexpr int SPAN =
    round_up(LEAD + (COLUMNS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1, VECTOR_X);

// Whether that element is in the row for every column: else padding makes the result too wide.
constexpr bool INSIDE = 2 * PAD_W <= (KERNEL_W - 1) * DILATION_W;

// The element that column e of the thread sees through tap v.
__host__ __device__ constexpr int seen(int v, int e) { return LEAD + e * STRIDE_W + v * DILATION_W; }
}  // namespace window
