// Attention of a prompt on tensor cores, without the matrix of scores: keys and values come by in tiles, sums are
// corrected when a larger score appears (Milakov and Gimelshein, 2018, arXiv:1805.02867; Dao et al., 2022,
// arXiv:2205.14135).
//
// Weights are rounded to bf16 for the product with the values. The number subtracted from the scores is kept whole, so
// that corrections are powers of two and rounding does not depend on when the largest score came by.

#define TILE 64
#define PADDED ((HEAD_DIM + 15) / 16 * 16)
#define PITCH (PADDED + 8)

__device__ __forceinline__ void mma(float c[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A tile of rows from `first` on, zeros beyond `keys`.
__device__ __forceinline__ void tile_in(u16* to, const u16* from, int first, int keys) {
    constexpr int parts = PADDED / 8;
    for (int i = threadIdx.x; i < TILE * parts; i += 128) {
        const int row = i / parts, part = i % parts;
        const bool there = first + row < keys && part * 8 < HEAD_DIM;
        *(uint4*)(to + row * PITCH + part * 8) =
            there ? *(const uint4*)(from + (long long)(first + row) * HEAD_DIM + part * 8) : make_uint4(0, 0, 0, 0);
    }
}

extern "C" __global__ void __launch_bounds__(128)
    flash(const u16* q, const u16* cached_keys, const u16* cached_values, u16* out, float* scores, float* sums, int rows,
          int position, int context, int window) {
    __shared__ __align__(16) u16 k_tile[TILE * PITCH];
    __shared__ __align__(16) u16 v_tile[TILE * PITCH];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    // The last rows have most keys: they start first.
    const int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, kv_head = head / GROUP;
    const int row0 = block * TILE + warp * 16 + group, row1 = row0 + 8;
    const u16* keys = cached_keys + (long long)kv_head * context * HEAD_DIM;
    const u16* values = cached_values + (long long)kv_head * context * HEAD_DIM;

    u32 a[PADDED / 16][4];
#pragma unroll
    for (int s = 0; s < PADDED / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = i & 1 ? row1 : row0, c = s * 16 + (i >> 1) * 8 + quad * 2;
            a[s][i] = row < rows && c < HEAD_DIM
                          ? *(const u32*)(q + ((long long)row * HEADS + head) * HEAD_DIM + c) : 0;
        }
    float o[HEAD_DIM / 8][4];
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[n][i] = 0;
    float top[2] = {-1e30f, -1e30f}, total[2] = {0, 0};

    const int last_row = min(rows, block * TILE + TILE) - 1;
    const int end = position + last_row + 1;  // keys that the last row sees
    const int begin = window ? max(0, position + block * TILE - window + 1) : 0;
    for (int first = begin / TILE * TILE; first < end; first += TILE) {
        __syncthreads();
        tile_in(k_tile, keys, first, end);
        tile_in(v_tile, values, first, end);
        __syncthreads();
        float s[TILE / 8][4];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = 0;
#pragma unroll
            for (int step = 0; step < PADDED / 16; step++) {
                const u16* b = k_tile + (n * 8 + group) * PITCH + step * 16 + quad * 2;
                mma(s[n], a[step], *(const u32*)b, *(const u32*)(b + 8));
            }
        }
        float largest[2] = {NEG_INF, NEG_INF};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = i < 2 ? row0 : row1, key = first + n * 8 + quad * 2 + (i & 1);
                const float score = s[n][i] * SCALE;
                if (scores && row < rows && key < position + rows)
                    scores[((long long)head * rows + row) * (position + rows) + key] =
                        key <= position + row ? score : NEG_INF;
                const bool visible = key <= position + row && (!window || key > position + row - window);
                s[n][i] = visible ? score * LOG2E : NEG_INF;
                largest[i >> 1] = fmaxf(largest[i >> 1], s[n][i]);
            }
        float shrink[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffffu, largest[h], 1));
            largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffffu, largest[h], 2));
            const float now = fmaxf(top[h], ceilf(largest[h]));
            shrink[h] = exp2_of(top[h] - now);
            top[h] = now;
            total[h] *= shrink[h];
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[n][i] *= shrink[i >> 1];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // Rounded as it will be multiplied, so that the weights used add up to one.
                s[n][i] = rounded(exp2_of(s[n][i] - top[i >> 1]));
                total[i >> 1] += s[n][i];
            }
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
            const u32 p[4] = {pair(s[2 * step][0], s[2 * step][1]), pair(s[2 * step][2], s[2 * step][3]),
                              pair(s[2 * step + 1][0], s[2 * step + 1][1]), pair(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                u32 b0, b1;
                const u32 from = (u32)__cvta_generic_to_shared(v_tile + (step * 16 + (lane & 15)) * PITCH + n * 8);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                             : "=r"(b0), "=r"(b1)
                             : "r"(from));
                mma(o[n], p, b0, b1);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
        const int row = h ? row1 : row0;
        if (row >= rows) continue;
        if (sums && quad == 0) {
            sums[((long long)head * rows + row) * 2] = top[h];
            sums[((long long)head * rows + row) * 2 + 1] = total[h];
        }
        u16* to = out + ((long long)row * HEADS + head) * HEAD_DIM;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
            *(u32*)(to + n * 8 + quad * 2) = pair(o[n][2 * h] / total[h], o[n][2 * h + 1] / total[h]);
    }
}

// The weights that `flash` multiplied values with, from the scores, maxima and sums that it left.
extern "C" __global__ void probs_tap(const float* scores, const float* sums, float* out, int rows, int position,
                                     int window) {
    const int row = blockIdx.x, head = blockIdx.y, keys = position + rows;
    const long long line = (long long)head * rows + row;
    const float top = sums[line * 2], total = sums[line * 2 + 1];
    for (int key = threadIdx.x; key < keys; key += blockDim.x) {
        const bool visible = key <= position + row && (!window || key > position + row - window);
        out[line * keys + key] = visible ? rounded(exp2_of(scores[line * keys + key] * LOG2E - top)) / total : 0.0f;
    }
}
