#include "cuda.cuh"
// The second stage of grad_weight.cu: one thread per element adds up its slices in order.

KERNEL(BLOCK) sum_slices(InAccum partial, Out grad_weight, Out grad_bias, int rows, int count,
    int slices)
{
    const index_t index = thread_index();
    const index_t size = index_t(rows) * (count + 1);
    if (index >= size) return;
    ACCUM total = 0;
#pragma unroll 4
    for (int slice = 0; slice < slices; ++slice) total += partial[(long long)slice * size + index];
    const long long row = index / (count + 1);
    const int f = int(index % (count + 1));
    if (f < count)
        grad_weight[row * count + f] = narrow(total);
    else
        grad_bias[row] = narrow(total);
}
