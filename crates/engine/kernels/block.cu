// What a block of the decode kernel does in a phase, attention apart: its input into shared memory, its warps'
// products, what is stored of them.
//
// Every operation rounds its result to bf16 once, when it is stored; sums are held in float. Sums have a fixed order:
// the same input gives the same bits.

struct Shared {
    u8* ring;
    u64 *full, *empty;  // of every slot
    Layer* layers;
    u16* x;          // the input of the phase's products
    u16* own;        // the residual stream of this block's rows
    float* sums;     // a sum for each task; in attention, values from every warp
    u16 *q, *k, *v;  // of the new token, for this block's query head
    float* reduce;   // 32
    float *top, *total;  // of every warp
};

__device__ __forceinline__ Shared carve(u8* base) {
    Shared s;
    s.ring = base;
    base += WARPS * SLOTS * SLOT;
    s.full = (u64*)base;
    s.empty = s.full + WARPS * SLOTS;
    base += WARPS * SLOTS * 16;
    s.layers = (Layer*)base;
    base += LAYERS * sizeof(Layer);
    s.x = (u16*)base;
    base += X_BYTES;
    s.own = (u16*)base;
    base += OWN_BYTES;
    s.sums = (float*)base;
    base += SUM_BYTES;
    s.q = (u16*)base;
    s.k = s.q + HEAD_DIM;
    s.v = s.k + HEAD_DIM;
    base += 3 * HEAD_DIM * 2;
    s.reduce = (float*)base;
    s.top = s.reduce + 32;
    s.total = s.top + WARPS;
    return s;
}

// A warp's place in its ring.
struct Ring {
    const u8* slots;
    u32 full, empty;
    int at;
    u32 parity;
};

// The slot that is next, once it is full.
__device__ __forceinline__ const u8* next_slot(const Ring& r) {
    slot_wait(r.full + r.at * 8, r.parity);
    return r.slots + r.at * SLOT;
}

// All that this warp reads of the slot is in registers.
__device__ __forceinline__ void done_with_slot(Ring& r, int lane) {
    __syncwarp();
    if (lane == 0) slot_release(r.empty + r.at * 8);
    if (++r.at == SLOTS) {
        r.at = 0;
        r.parity ^= 1;
    }
}

// Where a value is recorded; null where it is not.
__device__ __forceinline__ u16* tap16(const Step& p, int phase, int tap) {
    return TAPS && p.taps ? (u16*)p.taps[phase / PHASES * LAYER_TAPS + tap] : 0;
}
__device__ __forceinline__ u16* tap16_of_model(const Step& p, int tap) {
    return TAPS && p.taps ? (u16*)p.taps[LAYERS * LAYER_TAPS + tap] : 0;
}
__device__ __forceinline__ float* tap32(const Step& p, int place) {
    return TAPS && p.taps ? (float*)p.taps[place] : 0;
}

// Every caller waits for the block once more before the next sum.
__device__ __forceinline__ float block_sum(float x, float* reduce) {
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0) reduce[threadIdx.x >> 5] = x;
    block_sync();
    float total = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) total += reduce[i];
    return total;
}

__shared__ __align__(8) float turns[HEAD_DIM];  // cosines, then sines, of the step's position
__shared__ int2 bounds[PHASES + 1];             // this block's first row of every kind of phase, and how many it has

// Brings norm weights to where all blocks find them soon: between two steps they are forgotten.
__device__ __forceinline__ void prefetch(const float* from, int n) {
    const int i = threadIdx.x * 32;
    if (from && i < n && blockIdx.x == BLOCKS - 1) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}
__device__ __forceinline__ void prefetch_norms(const Step& p, const Shared& s, int phase, int kind) {
    const int layer = phase / PHASES;
    if (kind == QKV) prefetch(s.layers[layer].mlp_norm, D_MODEL);
    if (kind != GATE_UP) return;
    const bool last = layer + 1 == LAYERS;
    prefetch(last ? p.final_norm : s.layers[layer + 1].attn_norm, D_MODEL);
    if (last) return;
    prefetch(s.layers[layer + 1].q_norm, HEAD_DIM);
    prefetch(s.layers[layer + 1].k_norm, HEAD_DIM);
}

// The token's row of the embedding as the input, and of it the rows that this block owns.
__device__ __forceinline__ void embed_input(const Step& p, const Shared& s, int token) {
    u16* whole = blockIdx.x == 0 ? tap16_of_model(p, EMBED) : 0;
    for (int e = threadIdx.x * 8; e < D_MODEL; e += THREADS * 8) {
        float v[8];
        load8_of_row(p.embed, token, e, v);
        const uint4 y = make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7]));
        *(uint4*)(s.x + e) = y;
        if (whole) *(uint4*)(whole + e) = y;
    }
    block_sync();
    for (int i = threadIdx.x; i < bounds[DOWN].y; i += THREADS) s.own[i] = s.x[bounds[DOWN].x + i];
}

// A phase's input into shared memory, normalised where that is due. One copy of this code, of the products' and of what
// stores them serves all phases: a block goes through them once a layer, and instructions have to be fetched too.
__device__ __forceinline__ void read_input(const Step& p, const Shared& s, int phase, int kind, u32 round, int token) {
    const Layer& l = s.layers[min(phase / PHASES, LAYERS - 1)];
    const u64* from = kind == O_PROJ ? p.heads : kind == DOWN ? p.act : kind == GATE_UP ? p.middle : p.out;
    const float* norm = kind == QKV ? l.attn_norm : kind == GATE_UP ? l.mlp_norm : kind == PHASES ? p.final_norm : 0;
    const int n = width_of(kind) / 4;
    float4 weight = make_float4(0, 0, 0, 0);
    if (norm && threadIdx.x < D_MODEL / 4) weight = __ldg((const float4*)norm + threadIdx.x);
    float squares = 0;
    uint2* x = (uint2*)s.x;
    if (phase == 0 || p.first) {
        if (phase == 0) embed_input(p, s, token);
#pragma unroll 1
        for (int i = threadIdx.x; i < n; i += THREADS) {
            if (p.first) x[i] = __ldcg((const uint2*)p.row + i);
            squares += low(x[i].x) * low(x[i].x) + high(x[i].x) * high(x[i].x);
            squares += low(x[i].y) * low(x[i].y) + high(x[i].y) * high(x[i].y);
        }
    } else {
        constexpr int many = 3;
#pragma unroll 1
        for (int first = threadIdx.x; first < n; first += many * THREADS) {
            ulonglong2 words[many];
            bool wait;
            do {
                wait = false;
#pragma unroll
                for (int i = 0; i < many; i++)
                    if (first + i * THREADS < n) words[i] = look_at_two(from + 2 * (first + i * THREADS));
#pragma unroll
                for (int i = 0; i < many; i++)
                    if (first + i * THREADS < n) wait |= early(words[i].x, round) || early(words[i].y, round);
            } while (wait);
#pragma unroll
            for (int i = 0; i < many; i++) {
                if (first + i * THREADS >= n) continue;
                const uint2 y = make_uint2((u32)words[i].x, (u32)words[i].y);
                x[first + i * THREADS] = y;
                squares += low(y.x) * low(y.x) + high(y.x) * high(y.x) + low(y.y) * low(y.y) + high(y.y) * high(y.y);
            }
        }
    }
    if (norm) {
        const float scale = reciprocal_root(block_sum(squares, s.reduce) / D_MODEL + NORM_EPS);
        u16* tap = kind == PHASES ? tap16_of_model(p, FINAL_NORM) : tap16(p, phase, kind == QKV ? ATTN_NORM : MLP_NORM);
#pragma unroll 1
        for (int i = threadIdx.x; i < n; i += THREADS) {
            const float4 w = i == threadIdx.x ? weight : __ldg((const float4*)norm + i);
            const uint2 y = make_uint2(pair(low(x[i].x) * scale * w.x, high(x[i].x) * scale * w.y),
                                       pair(low(x[i].y) * scale * w.z, high(x[i].y) * scale * w.w));
            x[i] = y;
            if (tap && blockIdx.x == 0) ((uint2*)tap)[i] = y;
        }
        prefetch_norms(p, s, phase, kind);
    }
    block_sync();
}

__device__ __forceinline__ void record(u16* tap, int i, u16 first, u16 second) {
    if (tap) *(u32*)(tap + i) = first | (u32)second << 16;
}

__device__ __forceinline__ float dot8(const float w[8], uint4 x, float sum) {
    sum = fmaf(w[0], low(x.x), sum);
    sum = fmaf(w[1], high(x.x), sum);
    sum = fmaf(w[2], low(x.y), sum);
    sum = fmaf(w[3], high(x.y), sum);
    sum = fmaf(w[4], low(x.z), sum);
    sum = fmaf(w[5], high(x.z), sum);
    sum = fmaf(w[6], low(x.w), sum);
    return fmaf(w[7], high(x.w), sum);
}

// The one format of all matrices, if there is but one: known when compiled.
#define ONE_FORMAT ((FORMATS & (FORMATS - 1)) == 0)
__device__ constexpr u32 the_format() {
    u32 f = 0;
    while (!((FORMATS >> f) & 1)) f++;
    return f;
}

// Four values of every lane summed over the warp; lanes 8 v .. 8 v + 8 get the sum of the v-th.
__device__ __forceinline__ float four_sums(float a, float b, float c, float d, int lane) {
    const bool upper = lane & 16, odd = lane & 8;
    const float e = (upper ? c : a) + __shfl_xor_sync(0xffffffffu, upper ? a : c, 16);
    const float f = (upper ? d : b) + __shfl_xor_sync(0xffffffffu, upper ? b : d, 16);
    float sum = (odd ? f : e) + __shfl_xor_sync(0xffffffffu, odd ? e : f, 8);
#pragma unroll
    for (int o = 4; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    return sum;
}

// A segment in one format: nothing branches, so that all of it is under way at once.
template <u32 FORMAT>
__device__ __forceinline__ float product_of(const u8* slot, const float* x, const float* totals, int length, int lane) {
    float sum = 0;
#pragma unroll
    for (int it = 0; it < SEG / 256; it++) {
        // Past the row's end the slot holds what was there before.
        const int e = it * 256 + lane * 8;
        const float more = product8(FORMAT, slot, e, x + it * 8, totals[it]);
        sum += e < length ? more : 0.0f;
    }
    return sum;
}
template <u32 FORMAT = BF16>
__device__ __forceinline__ float product(u32 format, const u8* slot, const float* x, const float* totals, int length,
                                         int lane) {
    if constexpr (FORMAT < Q6_K) {
        if (!HAS(FORMAT) || format != FORMAT) return product<FORMAT + 1>(format, slot, x, totals, length, lane);
    }
    return product_of<FORMAT>(slot, x, totals, length, lane);
}

// This warp's tasks of a phase.
__device__ __forceinline__ void products(const Step& p, const Shared& s, Ring& ring, int phase, int kind, int warp,
                                         int lane) {
    constexpr int rounds = SEG / 256;
    const int width = width_of(kind);
    // The input's segment stays in registers for as long as it is the same.
    float kept[rounds * 8], totals[rounds];
    int held = -1;
    Task task = first_task(kind, warp);
    const int n = bounds[kind].y * task.segs;
    while (task.i < n) {
        // The last of up to four tasks' sums is `a`.
        float a = 0, b = 0, c = 0, d = 0;
        const int first = task.i;
        int count = 0;
#pragma unroll 1
        do {
            if (task.seg != held) {
                held = task.seg;
#pragma unroll
                for (int it = 0; it < rounds; it++) {
                    const int e = held * SEG + it * 256 + lane * 8;
                    const uint4 x = e < width ? *(const uint4*)(s.x + e) : make_uint4(0, 0, 0, 0);
                    kept[it * 8 + 0] = low(x.x); kept[it * 8 + 1] = high(x.x);
                    kept[it * 8 + 2] = low(x.y); kept[it * 8 + 3] = high(x.y);
                    kept[it * 8 + 4] = low(x.z); kept[it * 8 + 5] = high(x.z);
                    kept[it * 8 + 6] = low(x.w); kept[it * 8 + 7] = high(x.w);
                    float total = 0;
#pragma unroll
                    for (int j = 0; j < 8; j++) total += kept[it * 8 + j];
                    totals[it] = total;
                }
            }
            u32 format = the_format();
            if (!ONE_FORMAT) {
                int row = bounds[kind].x + task.row;
                format = matrix_of(p, s.layers, phase, kind, row).format;
            }
            const int length = min(SEG, width - task.seg * SEG);
            const u8* slot = next_slot(ring);
            const float sum = product(format, slot, kept, totals, length, lane);
            done_with_slot(ring, lane);
            d = c;
            c = b;
            b = a;
            a = sum;
            count++;
            next_task(task);
        } while (count < 4 && task.i < n);
        const float sum = four_sums(a, b, c, d, lane);
        const int which = count - 1 - lane / 8;
        if (lane % 8 == 0 && which >= 0) s.sums[first + which * WARPS] = sum;
    }
    block_sync();
}

__device__ __forceinline__ float row_sum(const Shared& s, int r, int segs) {
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < segs; i++) sum += s.sums[r * segs + i];
    return sum;
}

// What a phase hands on. A thread a row, then one for every pair of values; each row has one owner throughout.
__device__ __forceinline__ void store_rows(const Step& p, const Shared& s, int phase, int kind, u32 round) {
    const Layer& l = s.layers[phase / PHASES];
    const bool gated = kind == GATE_UP;
    const int segs = segs_of(kind), n = bounds[kind].y;
    // Whole warps stay together: values go from lane to lane.
#pragma unroll 1
    for (int i = threadIdx.x; (i & ~31) < n; i += THREADS) {
        const int row = gated ? bounds[kind].x / 2 + i / 2 : bounds[kind].x + i;
        // The place among a layer's matrices, and the row there.
        int mat = kind == O_PROJ ? 3 : gated ? 4 + (i & 1) : 6, within = row;
        if (kind == QKV) {
            mat = row < QD ? 0 : row < QD + KD ? 1 : 2;
            within = row < QD ? row : row < QD + KD ? row - QD : row - QD - KD;
        }
        float sum = 0;
        if (i < n) {
            const float* bias = (&l.q_bias)[mat];
            sum = row_sum(s, i, segs);
            if (bias) sum += bias[within];
        }
        u16 y = narrow(sum);
        u64* to = p.qkv;
        if (kind != QKV) to = kind == O_PROJ ? p.middle : gated ? p.act : p.out;
        u16* tap = tap16(p, phase, kind == QKV ? Q_PROJ + mat : kind == O_PROJ ? ATTN_OUT : gated ? GATE + (i & 1) : MLP_OUT);
        if (tap && i < n) tap[within] = y;
        if (gated) {
            const u16 up = (u16)__shfl_down_sync(0xffffffffu, (u32)y, 1);
            y = narrow(activate(wide(y)) * wide(up));
        } else if (kind != QKV && i < n) {
            y = narrow(wide(s.own[i]) + wide(y));
            s.own[i] = y;
        }
        tap = gated ? tap16(p, phase, MLP_ACT) : kind == QKV ? 0 : tap16(p, phase, kind == O_PROJ ? ATTN_RESID : OUT);
        if (tap && i < n && !(gated && i & 1)) tap[row] = y;
        const u16 next = (u16)__shfl_down_sync(0xffffffffu, (u32)y, gated ? 2 : 1);
        if (i < n && (i & (gated ? 3 : 1)) == 0) publish(to + row / 2, y | (u32)next << 16, kind == DOWN ? round + 1 : round);
    }
}
