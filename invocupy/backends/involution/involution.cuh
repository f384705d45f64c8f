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
};

// Taps of one tap row that are held in registers at once. Wide kernels go in several parts.
constexpr int PARTS = (KERNEL_W + 7) / 8;
constexpr int TAPS = (KERNEL_W + PARTS - 1) / PARTS;

// Where a thread works: `plane` counts what the caller splits the batch into, and `row`, `column`
// lie in a plane of `rows` rows, each cut into strips of COLUMNS columns.
struct Place {
    index_t plane;
    int row, column;
};

__device__ __forceinline__ Place place(index_t index, int rows, int width)
{
    const index_t strips = (width - 1) / COLUMNS + 1;
    const index_t line = index / strips;
    return {line / rows, int(line % rows), int(index % strips) * COLUMNS};
}

__device__ __forceinline__ index_t thread_index()
{
    return index_t(blockIdx.x) * BLOCK + threadIdx.x;
}

// The stretch of a row of x that the taps of COLUMNS columns of the result see. It starts LEAD
// elements early, to be aligned.
namespace window {
constexpr int LEAD = (VECTOR_X - PAD_W % VECTOR_X) % VECTOR_X;
constexpr int SPAN =
    round_up(LEAD + (COLUMNS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1, VECTOR_X);

__device__ __forceinline__ int first(int column) { return column * STRIDE_W - PAD_W - LEAD; }

// The element that column e of the thread sees through tap v.
__host__ __device__ constexpr int seen(int v, int e) { return LEAD + e * STRIDE_W + v * DILATION_W; }
}  // namespace window
