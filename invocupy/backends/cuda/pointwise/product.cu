#include "cuda.cuh"
// out = weight (rows, inside) @ x (inside, columns): for the dense layers of a network's head,
// because CuPy refuses cuBLAS in a CUDA graph.
//
// A block computes TILE * TILE results from one slice of `inside`. It copies DEPTH columns of
// `weight` and DEPTH rows of `x` at a time into shared memory; a thread has DOWN * ACROSS results
// in registers. With one slice they go to `to`, otherwise the sums of each slice to `partial`.

#define TILE 64
#define DEPTH 32
#define ACROSS 4
#define DOWN (TILE * TILE / BLOCK / ACROSS)
#define PITCH (TILE + 2)  // few bank conflicts where a tile is written transposed

KERNEL(BLOCK) product(In x, In weight, Out to, OutAccum partial, int rows, int inside, int columns,
                      int slices, int share)
{
    __shared__ ACCUM left[DEPTH][PITCH], right[DEPTH][PITCH];
    const int wide = (columns + TILE - 1) / TILE, high = (rows + TILE - 1) / TILE;
    const int slice = blockIdx.x / (wide * high), place = blockIdx.x % (wide * high);
    const int top = place / wide * TILE, begin = place % wide * TILE;
    const int first = slice * share, last = first + share < inside ? first + share : inside;
    const int row = threadIdx.x / (TILE / ACROSS) * DOWN;
    const int column = threadIdx.x % (TILE / ACROSS) * ACROSS;
    const bool has_some = top + row < rows && begin + column < columns;
    ACCUM sum[DOWN][ACROSS] = {};
    for (int depth = first; depth < last; depth += DEPTH) {
#pragma unroll 4  // full unrolling takes 100 registers more
        for (int k = 0; k < TILE * DEPTH / BLOCK; ++k) {
            const int i = k * BLOCK + threadIdx.x;
            const int r = top + i / DEPTH, d = depth + i % DEPTH;
            left[i % DEPTH][i / DEPTH] =
                r < rows && d < last ? widen(weight[(long long)r * inside + d]) : ACCUM(0);
            const int e = depth + i / TILE, c = begin + i % TILE;
            right[i / TILE][i % TILE] =
                e < last && c < columns ? widen(x[(long long)e * columns + c]) : ACCUM(0);
        }
        __syncthreads();
        if (has_some) {
#pragma unroll 4
            for (int d = 0; d < DEPTH; ++d) {
                UNROLL(i, DOWN) UNROLL(j, ACROSS)
                    sum[i][j] += left[d][row + i] * right[d][column + j];
            }
        }
        __syncthreads();
    }
    UNROLL(i, DOWN) UNROLL(j, ACROSS) {
        const int r = top + row + i, c = begin + column + j;
        if (r >= rows || c >= columns) continue;
        const long long at = (long long)r * columns + c;
        if (slices == 1)
            to[at] = narrow(sum[i][j]);
        else
            partial[(long long)slice * rows * columns + at] = sum[i][j];
    }
}
