// What a block of the decode kernel does in a phase, attention apart: its input into shared memory, its warps'
// products, what is stored of them.
//
// Every operation rounds its result to bf16 once, when it is stored; sums are held in float. Sums have a fixed order:
// the same input gives the same bits.

struct Shared {
    u8* ring;
    u64* full;
    Layer* layers;
    u16* x;          // the input of the phase's products
    float* sums;     // a sum for each task; in attention, values of one query head from every warp
    u16 *q, *k, *v;  // of the new token, for this block's kv head
    float* reduce;   // 32
    float *top, *total;  // [warp][query head of the group]
};

__device__ __forceinline__ Shared carve(u8* base) {
    Shared s;
    s.ring = base;
    base += WARPS * SLOTS * SLOT;
    s.full = (u64*)base;
    base += WARPS * SLOTS * 8;
    s.layers = (Layer*)base;
    base += LAYERS * sizeof(Layer);
    s.x = (u16*)base;
    base += X_BYTES;
    s.sums = (float*)base;
    base += SUM_BYTES;
    s.q = (u16*)base;
    s.k = s.q + GROUP * HEAD_DIM;
    s.v = s.k + HEAD_DIM;
    base += (GROUP + 2) * HEAD_DIM * 2;
    s.reduce = (float*)base;
    s.top = s.reduce + 32;
    s.total = s.top + WARPS * GROUP;
    return s;
}

struct Ring {
    u32 slots, full;
    int at;
    u32 parity;
    Feed feed;
};

__device__ __forceinline__ void refill(Ring& r, const Step& p, const Place& at, const Layer* layers, int warp,
                                       int lane) {
    // All lanes have read the slot.
    __syncwarp();
    feed_slot(r.feed, p, at, layers, warp, lane, r.slots + r.at * SLOT, r.full + r.at * 8);
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
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) total += reduce[i];
    return total;
}

// Norm weights of the next phase, read before its barrier.
constexpr int NORM_ROUNDS = (D_MODEL / 2 + THREADS - 1) / THREADS;
struct NormWeights {
    float2 of[NORM_ROUNDS];
};
__shared__ float head_norms[2 * HEAD_DIM];  // of queries, then of keys
__shared__ float turns[HEAD_DIM];            // cosines, then sines, of the step's position

__device__ __forceinline__ void read_norm(const Step& p, const Shared& s, int phase, NormWeights& w) {
    const int kind = phase == HEAD_PHASE ? PHASES : phase % PHASES;
    if (kind == ATTENTION) {
        const Layer& l = s.layers[phase / PHASES];
        for (int i = threadIdx.x; l.q_norm && i < 2 * HEAD_DIM; i += THREADS)
            head_norms[i] = i < HEAD_DIM ? __ldg(l.q_norm + i) : __ldg(l.k_norm + i - HEAD_DIM);
    }
    if (kind != QKV && kind != GATE_UP && kind != PHASES) return;
    const float* from = kind == QKV       ? s.layers[phase / PHASES].attn_norm
                        : kind == GATE_UP ? s.layers[phase / PHASES].mlp_norm
                                          : p.final_norm;
#pragma unroll
    for (int n = 0; n < NORM_ROUNDS; n++) {
        const int i = n * THREADS + threadIdx.x;
        if (i < D_MODEL / 2) w.of[n] = __ldg((const float2*)from + i);
    }
}

// The normalised residual stream into shared memory.
__device__ __forceinline__ void norm_input(const Step& p, const Shared& s, const NormWeights& weights, u16* tap,
                                           bool embed, int token) {
    float squares = 0;
    u32 pairs[NORM_ROUNDS];
    if (embed) {
        u16* whole = tap16_of_model(p, EMBED);
        for (int e = threadIdx.x * 8; e < D_MODEL; e += THREADS * 8) {
            float v[8];
            load8_of_row(p.embed, token, e, v);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const u16 h = narrow(v[i]);
                s.x[e + i] = h;
                if (blockIdx.x == 0) p.x[e + i] = h;
                if (blockIdx.x == 0 && whole) whole[e + i] = h;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < NORM_ROUNDS; n++) {
        const int i = n * THREADS + threadIdx.x;
        pairs[n] = i >= D_MODEL / 2 ? 0 : embed ? ((const u32*)s.x)[i] : __ldcg((const u32*)p.x + i);
    }
#pragma unroll
    for (int n = 0; n < NORM_ROUNDS; n++)
        squares += low(pairs[n]) * low(pairs[n]) + high(pairs[n]) * high(pairs[n]);
    const float scale = reciprocal_root(block_sum(squares, s.reduce) / D_MODEL + NORM_EPS);
#pragma unroll
    for (int n = 0; n < NORM_ROUNDS; n++) {
        const int i = n * THREADS + threadIdx.x;
        if (i >= D_MODEL / 2) continue;
        const u32 y = pair(low(pairs[n]) * scale * weights.of[n].x, high(pairs[n]) * scale * weights.of[n].y);
        ((u32*)s.x)[i] = y;
        if (tap && blockIdx.x == 0) ((u32*)tap)[i] = y;
    }
    __syncthreads();
}

__device__ __forceinline__ void copy_input(const Shared& s, const u16* from, int n) {
    for (int i = threadIdx.x; i < n / 8; i += THREADS) ((uint4*)s.x)[i] = __ldcg((const uint4*)from + i);
    __syncthreads();
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

// This warp's tasks of a phase: each a segment of a row times the same segment of the input. One copy of this code
// serves every phase: instructions have to be fetched too.
__device__ __forceinline__ void products(const Step& p, const Shared& s, Ring& ring, const Place& at, int phase,
                                         int kind, int warp, int lane) {
    constexpr int rounds = SEG / 256;
    const int segs = segs_of(kind), width = width_of(kind);
    const int lo = first_row(kind, blockIdx.x);
    const int n = (first_row(kind, blockIdx.x + 1) - lo) * segs;
    // The input's segment stays in registers for as long as it is the same.
    float kept[rounds * 8];
    int held = -1, seg = warp % segs;
    const int step = WARPS % segs;
    for (int i = warp; i < n; i += WARPS) {
        if (seg != held) {
            held = seg;
#pragma unroll
            for (int it = 0; it < rounds; it++) {
                const int e = seg * SEG + it * 256 + lane * 8;
                const uint4 x = e < width ? *(const uint4*)(s.x + e) : make_uint4(0, 0, 0, 0);
                kept[it * 8 + 0] = low(x.x); kept[it * 8 + 1] = high(x.x);
                kept[it * 8 + 2] = low(x.y); kept[it * 8 + 3] = high(x.y);
                kept[it * 8 + 4] = low(x.z); kept[it * 8 + 5] = high(x.z);
                kept[it * 8 + 6] = low(x.w); kept[it * 8 + 7] = high(x.w);
            }
        }
        u32 format = the_format();
        if (!ONE_FORMAT) {
            int row = lo + i / segs;
            format = matrix_of(p, s.layers, phase, kind, row).format;
        }
        const u8* slot = s.ring + (warp * SLOTS + ring.at) * SLOT;
        const int length = min(SEG, width - seg * SEG);
        slot_wait(ring.full + ring.at * 8, ring.parity);
        float sum0 = 0, sum1 = 0;
#pragma unroll
        for (int it = 0; it < rounds; it++) {
            const int e = it * 256 + lane * 8;
            if (e < length) {
                float w[8];
                load8(format, slot, e, w);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    if (j & 1) sum1 = fmaf(w[j], kept[it * 8 + j], sum1);
                    else sum0 = fmaf(w[j], kept[it * 8 + j], sum0);
                }
            }
        }
        refill(ring, p, at, s.layers, warp, lane);
        const float sum = warp_sum(sum0 + sum1);
        if (lane == 0) s.sums[i] = sum;
        seg += step;
        if (seg >= segs) seg -= segs;
    }
    __syncthreads();
}

__device__ __forceinline__ float row_sum(const Shared& s, int r, int segs) {
    float sum = 0;
    for (int i = 0; i < segs; i++) sum += s.sums[r * segs + i];
    return sum;
}

__device__ __forceinline__ void qkv_phase(const Step& p, const Shared& s, int phase) {
    const Layer& l = s.layers[phase / PHASES];
    const int lo = first_row(QKV, blockIdx.x), n = first_row(QKV, blockIdx.x + 1) - lo;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        int r = lo + i;
        const int which = r < QD ? 0 : r < QD + KD ? 1 : 2;
        const float* bias = which == 0 ? l.q_bias : which == 1 ? l.k_bias : l.v_bias;
        u16* tap = tap16(p, phase, Q_PROJ + which);
        const int within = r - (which == 0 ? 0 : which == 1 ? QD : QD + KD);
        const u16 y = narrow(row_sum(s, i, SEGS(D_MODEL)) + (bias ? bias[within] : 0.0f));
        p.qkv[r] = y;
        if (tap) tap[within] = y;
    }
}

// Adds a projection to the residual stream. Each row has one owner throughout.
__device__ __forceinline__ void residual_phase(const Step& p, const Shared& s, int phase, int kind) {
    const Layer& l = s.layers[phase / PHASES];
    const int lo = first_row(kind, blockIdx.x), n = first_row(kind, blockIdx.x + 1) - lo;
    const float* bias = kind == O_PROJ ? l.o_bias : l.down_bias;
    u16* inner = tap16(p, phase, kind == O_PROJ ? ATTN_OUT : MLP_OUT);
    u16* outer = tap16(p, phase, kind == O_PROJ ? ATTN_RESID : OUT);
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const int r = lo + i;
        const u16 y = narrow(row_sum(s, i, segs_of(kind)) + (bias ? bias[r] : 0.0f));
        const u16 x = narrow(wide(__ldcg(p.x + r)) + wide(y));
        p.x[r] = x;
        if (inner) inner[r] = y;
        if (outer) outer[r] = x;
    }
}

__device__ __forceinline__ void gate_up_phase(const Step& p, const Shared& s, int phase) {
    const Layer& l = s.layers[phase / PHASES];
    const int lo = first_row(GATE_UP, blockIdx.x), n = (first_row(GATE_UP, blockIdx.x + 1) - lo) / 2;
    u16 *gates = tap16(p, phase, GATE), *ups = tap16(p, phase, UP), *acts = tap16(p, phase, MLP_ACT);
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const int r = lo / 2 + i;
        const u16 gate = narrow(row_sum(s, 2 * i, SEGS(D_MODEL)) + (l.gate_bias ? l.gate_bias[r] : 0.0f));
        const u16 up = narrow(row_sum(s, 2 * i + 1, SEGS(D_MODEL)) + (l.up_bias ? l.up_bias[r] : 0.0f));
        const u16 act = narrow(activate(wide(gate)) * wide(up));
        p.act[r] = act;
        if (gates) gates[r] = gate;
        if (ups) ups[r] = up;
        if (acts) acts[r] = act;
    }
}
