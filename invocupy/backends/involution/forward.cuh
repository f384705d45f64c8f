// out[n,c,i,j] = sum over (u,v) of kernel[n,g,u,v,i,j] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
//
// A thread owns COLUMNS columns of one row of CHANNELS channels of a group. Tap row by tap row it
// gets the kernel values once, and then for each channel the stretch of x that they see.

// Which channels of which group a thread owns; `group` counts (batch, group).
struct Share {
    index_t group;
    int begin, count;      // channels of the group
    long long channel;     // the first of them, counting (batch, channel)
};

__device__ __forceinline__ Share share(index_t plane, const Geometry& g)
{
    const int per_group = g.channels / g.groups;
    const int shares = (per_group + CHANNELS - 1) / CHANNELS;
    const index_t group = plane / shares;
    const int begin = int(plane % shares) * CHANNELS;
    return {group, begin, RAGGED ? min(CHANNELS, per_group - begin) : CHANNELS,
            (long long)group * per_group + begin};
}

// Taps: taps(u, part, tap) fills tap[t][e] with the kernel values of tap (u, part + t).
template <class Taps>
__device__ __forceinline__ void forward_strip(const SCALAR* x, const Taps& taps, SCALAR* out,
                                              const Geometry& g, const Place& at,
                                              const Share& mine)
{
    const long long x_plane = (long long)g.height * g.width;
    const long long out_plane = (long long)g.out_h * g.out_w;
    x += mine.channel * x_plane;
    out += mine.channel * out_plane + (long long)at.row * g.out_w;

    const int top = at.row * STRIDE_H - PAD_H;
    ACCUM sum[CHANNELS][COLUMNS] = {};

#pragma unroll 1
    for (int u = 0; u < KERNEL_H; ++u) {
        const int y = top + u * DILATION_H;
        if (y < 0 || y >= g.height) continue;
        const SCALAR* const x_row = x + (long long)y * g.width;
#pragma unroll
        for (int part = 0; part < KERNEL_W; part += TAPS) {
            ACCUM tap[TAPS][COLUMNS];
            taps(u, part, tap);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                if (c >= mine.count) break;
                ACCUM stretch[window::SPAN];
                load_run<VECTOR_X, window::SPAN>(x_row + c * x_plane, window::first(at.column),
                                                 g.width, stretch);
#pragma unroll
                for (int t = 0; t < TAPS; ++t)
                    if (part + t < KERNEL_W)
#pragma unroll
                        for (int e = 0; e < COLUMNS; ++e)
                            sum[c][e] += tap[t][e] * stretch[window::seen(part + t, e)];
            }
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        if (c >= mine.count) break;
        store_run<VECTOR_OUT, COLUMNS>(out + c * out_plane, at.column, g.out_w, sum[c]);
    }
}
