// The peer: involution as the official kernels are designed, written from that design. One thread
// for each element of the result, a grid-stride loop in blocks of 1,024, all sizes compiled in.
// Sums are in ACCUM (the official kernels sum in the type of the arrays, float or double).

#define FOR_EACH(index, count)                                                        \
    for (int index = blockIdx.x * blockDim.x + threadIdx.x; index < (count);          \
         index += blockDim.x * gridDim.x)

#define PER_GROUP (CHANNELS / GROUPS)

extern "C" __global__ void forward(const SCALAR* x, const SCALAR* kernel, SCALAR* out)
{
    FOR_EACH(index, BATCH * CHANNELS * HEIGHT * WIDTH) {
        const int n = index / CHANNELS / HEIGHT / WIDTH;
        const int c = (index / HEIGHT / WIDTH) % CHANNELS;
        const int h = (index / WIDTH) % HEIGHT;
        const int w = index % WIDTH;
        const int g = c / PER_GROUP;
        ACCUM value = 0;
#pragma unroll
        for (int u = 0; u < KERNEL; ++u) {
#pragma unroll
            for (int v = 0; v < KERNEL; ++v) {
                const int y = h - PAD + u, z = w - PAD + v;
                if (y >= 0 && y < HEIGHT && z >= 0 && z < WIDTH) {
                    const int at = ((n * CHANNELS + c) * HEIGHT + y) * WIDTH + z;
                    const int tap =
                        ((((n * GROUPS + g) * KERNEL + u) * KERNEL + v) * HEIGHT + h) * WIDTH + w;
                    value += ACCUM(kernel[tap]) * ACCUM(x[at]);
                }
            }
        }
        out[index] = SCALAR(value);
    }
}

extern "C" __global__ void grad_x(const SCALAR* grad, const SCALAR* kernel, SCALAR* out)
{
    FOR_EACH(index, BATCH * CHANNELS * HEIGHT * WIDTH) {
        const int n = index / CHANNELS / HEIGHT / WIDTH;
        const int c = (index / HEIGHT / WIDTH) % CHANNELS;
        const int h = (index / WIDTH) % HEIGHT;
        const int w = index % WIDTH;
        const int g = c / PER_GROUP;
        ACCUM value = 0;
#pragma unroll
        for (int u = 0; u < KERNEL; ++u) {
#pragma unroll
            for (int v = 0; v < KERNEL; ++v) {
                const int i = h + PAD - u, j = w + PAD - v;
                if (i >= 0 && i < HEIGHT && j >= 0 && j < WIDTH) {
                    const int at = ((n * CHANNELS + c) * HEIGHT + i) * WIDTH + j;
                    const int tap =
                        ((((n * GROUPS + g) * KERNEL + u) * KERNEL + v) * HEIGHT + i) * WIDTH + j;
                    value += ACCUM(kernel[tap]) * ACCUM(grad[at]);
                }
            }
        }
        out[index] = SCALAR(value);
    }
}

extern "C" __global__ void grad_kernel(const SCALAR* grad, const SCALAR* x, SCALAR* out)
{
    FOR_EACH(index, BATCH * GROUPS * KERNEL * KERNEL * HEIGHT * WIDTH) {
        const int g = (index / KERNEL / KERNEL / HEIGHT / WIDTH) % GROUPS;
        const int n = (index / GROUPS / KERNEL / KERNEL / HEIGHT / WIDTH) % BATCH;
        const int u = (index / KERNEL / HEIGHT / WIDTH) % KERNEL;
        const int v = (index / HEIGHT / WIDTH) % KERNEL;
        const int h = (index / WIDTH) % HEIGHT;
        const int w = index % WIDTH;
        const int y = h - PAD + u, z = w - PAD + v;
        ACCUM value = 0;
        if (y >= 0 && y < HEIGHT && z >= 0 && z < WIDTH) {
#pragma unroll
            for (int c = g * PER_GROUP; c < (g + 1) * PER_GROUP; ++c) {
                const int to = ((n * CHANNELS + c) * HEIGHT + h) * WIDTH + w;
                const int from = ((n * CHANNELS + c) * HEIGHT + y) * WIDTH + z;
                value += ACCUM(grad[to]) * ACCUM(x[from]);
            }
        }
        out[index] = SCALAR(value);
    }
}
