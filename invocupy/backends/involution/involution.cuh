// What the involution kernels share.
//
// A thread owns COLUMNS consecutive columns of one row. Arrays with rows of x (x and its gradient)
// are read and written VECTOR_X elements at a time, arrays with rows of the result (kernel, out and
// their gradients) VECTOR_OUT elements at a time; both divide COLUMNS, and each divides its row.
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

// What one thread works on: `plane` counts (batch, group, part of the group) and `row`, `column`
// lie in a plane of `rows` rows, each cut into strips of COLUMNS columns.
struct Place {
    index_t plane;
    int row, column;
};

__device__ __forceinline__ Place place(int rows, int width)
{
    const index_t strips = (width - 1) / COLUMNS + 1;
    const index_t index = index_t(blockIdx.x) * BLOCK + threadIdx.x;
    const index_t line = index / strips;
    return {line / rows, int(line % rows), int(index % strips) * COLUMNS};
}
