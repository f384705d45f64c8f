#include "expansion/expansion.cuh"
// out = norm(expand(x)), then max(., 0) if RELU. NaN stays NaN. Each block folds the moments of x, from
// the rows of spread.cu, into the weights; block 0 writes them, and mean and variance of expand(x).

KERNEL(BLOCK) expand(In x, InAccum partial, In weight, In bias, In gamma, In beta, Out out,
    OutAccum mean, OutAccum var, OutAccum stats, ACCUM eps, int batch, int per_plane, int rows)
{
    __shared__ __align__(16) ACCUM weights[HIDDEN][ROW];
    ACCUM center[CHANNELS], covariance[PAIRS];
    collect(partial, rows, center, covariance, stats);
    for (int d = threadIdx.x; d < HIDDEN; d += BLOCK) {
        ACCUM w[CHANNELS];
        UNROLL(c, CHANNELS) w[c] = widen(weight[d * CHANNELS + c]);
        const First norm(w, bias ? widen(bias[d]) : ACCUM(0), widen(gamma[d]), center, covariance,
                         eps);
        UNROLL(c, ROW)
            weights[d][c] = c < CHANNELS ? norm.scale * w[c] : c == CHANNELS ? widen(beta[d]) : 0;
        if (blockIdx.x != 0) continue;
        mean[d] = norm.mean;
        var[d] = norm.var;
        UNROLL(k, SUMS) stats[FOLDED + d * SUMS + k] = weights[d][k];
    }
    __syncthreads();
    const index_t vector = thread_index();
    if (vector >= index_t(batch) * per_plane) return;
    const Place here(vector, per_plane);
    ACCUM in[CHANNELS][VECTOR];
    here.load_x(x, center, in);
    SCALAR* const to = out + here.image * HIDDEN * here.plane + here.at;
#pragma unroll 4
    for (int d = 0; d < HIDDEN; ++d) {
        ACCUM w[ROW], z[VECTOR];
        UNROLL(i, ROW) w[i] = weights[d][i];
        normed(w, in, z);
        UNROLL(k, VECTOR)
            if (RELU && z[k] < 0) z[k] = 0;
        store<VECTOR>(to + d * here.plane, z);
    }
}
