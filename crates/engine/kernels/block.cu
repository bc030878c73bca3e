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

// This lane has used all that it reads of the slot. Every lane says so for itself. A read that is under way comes before what
// other threads store after the arrival, but not before what the copy engine does: that needs the fence, and without it keys
// were overwritten while they were read (docs/CUDA.md).
__device__ __forceinline__ void done_with_slot(Ring& r) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    slot_release(r.empty + r.at * 8);
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

// The sums over the warp of two values of every lane: lanes up to 15 get the first, the others the second.
__device__ __forceinline__ float two_sums(float2 of, int lane) {
    float sum = (lane & 16 ? of.y : of.x) + __shfl_xor_sync(0xffffffffu, lane & 16 ? of.x : of.y, 16);
#pragma unroll
    for (int o = 8; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    return sum;
}

// Formats of a phase's matrices, a byte each.
__device__ __forceinline__ u32 formats_of(const Step& p, const Layer* layers, int phase, int kind) {
    if (kind == PHASES) return p.head.format;
    const Mat* m = &layers[phase / PHASES].q;
    if (kind == QKV) return m[0].format | m[1].format << 8 | m[2].format << 16;
    if (kind == GATE_UP) return m[4].format | m[5].format << 8;
    return m[kind == O_PROJ ? 3 : 6].format;
}

// This warp's share of a phase. The first slot's weights are unpacked before the input is waited for.
__device__ __forceinline__ void products(const Step& p, const Shared& s, Ring& ring, int phase, int kind, u32 round,
                                         int token, int warp, int lane) {
    const int width = width_of(kind), segs = segs_of(kind), first = bounds[kind].x;
    Task task = first_task(kind, bounds[kind].y, warp);
    // By a shuffle, so that the compiler knows all lanes to agree.
    const u32 formats = __shfl_sync(0xffffffffu, formats_of(p, s.layers, phase, kind), 0);
    const bool mixed = (formats & 255) != (formats >> 8 & 255);
    Rows weights;
    // The input's segment stays in registers for as long as it is the same.
    Input x;
    int held = -1;
    bool waiting = true;
    // This lane's sums of the slot before, and where their sum over the warp goes: added up while the next one is unpacked.
    float2 sums = make_float2(0, 0);
    int place = -1;
#pragma unroll 1
    while (true) {
        const bool more = task.i < task.end;
        const int length = WHOLE ? SEG : min(SEG, width - task.seg * SEG);
        const u8* slot = 0;
        u32 format = the_format();
        if (more) {
            if (!ONE_FORMAT) {
                const int row = first + task.row;
                const int which = kind == QKV ? (row >= QD) + (row >= QD + KD) : kind == GATE_UP ? row & 1 : 0;
                format = formats >> 8 * which & 255;
            }
            slot = next_slot(ring);
            unpack_rows(format, slot, length, lane, weights);
        }
        const float sum = two_sums(sums, lane);
        if (place >= 0) s.sums[place] = sum;
        if (waiting) read_input(p, s, phase, kind, round, token);
        waiting = false;
        if (!more) break;
        if (task.seg != held) {
            held = task.seg;
            x = input_of(s.x + held * SEG, width - held * SEG, lane);
        }
        sums = multiply(format, slot, weights, x, length, lane);
        done_with_slot(ring);
        const int rows = rows_at_once(task, kind, first, mixed);
        place = lane % 16 == 0 && lane / 16 < rows ? (task.row + lane / 16) * segs + held : -1;
        next_task(task, rows);
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
        const int at = bounds[kind].x + i, mat = place_of(kind, at), within = row_within(kind, at);
        const int row = gated ? within : at;  // of what is stored
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
