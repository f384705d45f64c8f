#include "cuda.cuh"
// out[column] = sum over rows of from[row][column]: a row is the product of an image, or the sums
// of a slice. The order of summation never changes. A warp has eight columns (a sector of memory),
// four lanes for each, so that even a few columns have many loads at once. With `last`, every
// width-th column is written there instead.

KERNEL(BLOCK) sum_rows(InAccum from, Out out, Out last, int rows, int columns, int width)
{
    const index_t warp = thread_index() / 32;
    const int lane = threadIdx.x % 32;
    const long long column = (long long)warp * 8 + lane % 8;
    ACCUM sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (int row = lane / 8; row < rows; row += 4) sum += from[(long long)row * columns + column];
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 8);
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    if (lane >= 8 || column >= columns) return;
    if (last && column % width == width - 1)
        last[column / width] = narrow(sum);
    else
        out[last ? column - column / width : column] = narrow(sum);
}
