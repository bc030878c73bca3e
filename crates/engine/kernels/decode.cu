// One token through the model: the phases of stream.cu with a grid barrier between any two.
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
    if (lane == 0) {
        u64 from;
        u32 bytes;
        if (feed_next(r.feed, p, at, layers, warp, from, bytes))
            slot_fill(r.slots + r.at * SLOT, r.full + r.at * 8, from, bytes);
    }
    if (++r.at == SLOTS) {
        r.at = 0;
        r.parity ^= 1;
    }
}

__device__ __forceinline__ u16* tap16(const Step& p, int phase, int tap) {
    return p.taps ? (u16*)p.taps[phase / PHASES * LAYER_TAPS + tap] : 0;
}
__device__ __forceinline__ u16* tap16_of_model(const Step& p, int tap) {
    return p.taps ? (u16*)p.taps[LAYERS * LAYER_TAPS + tap] : 0;
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
__device__ __forceinline__ void read_norm(const Step& p, const Shared& s, int phase, NormWeights& w) {
    const int kind = phase == HEAD_PHASE ? PHASES : phase % PHASES;
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

// This warp's tasks of a phase: each a segment of a row times the same segment of the input.
template <int WIDTH>
__device__ __forceinline__ void products(const Step& p, const Shared& s, Ring& ring, const Place& at, int phase,
                                         int kind, int warp, int lane) {
    constexpr int segs = SEGS(WIDTH), rounds = SEG / 256;
    // Where a warp always meets the same segment, its input stays in registers.
    constexpr bool keeps = WARPS % segs == 0 && HEAD_DIM <= 128;
    float kept[keeps ? rounds * 8 : 1];
    if (keeps) {
#pragma unroll
        for (int it = 0; it < rounds; it++) {
            const int e = warp % segs * SEG + it * 256 + lane * 8;
            const uint4 x = e < WIDTH ? *(const uint4*)(s.x + e) : make_uint4(0, 0, 0, 0);
            kept[it * 8 + 0] = low(x.x); kept[it * 8 + 1] = high(x.x);
            kept[it * 8 + 2] = low(x.y); kept[it * 8 + 3] = high(x.y);
            kept[it * 8 + 4] = low(x.z); kept[it * 8 + 5] = high(x.z);
            kept[it * 8 + 6] = low(x.w); kept[it * 8 + 7] = high(x.w);
        }
    }
    const int lo = first_row(kind, blockIdx.x);
    const int n = (first_row(kind, blockIdx.x + 1) - lo) * segs;
    for (int i = warp; i < n; i += WARPS) {
        const int seg = i % segs;
        u32 format = the_format();
        if (!ONE_FORMAT) {
            int row = lo + i / segs;
            format = matrix_of(p, s.layers, phase, kind, row).format;
        }
        const u8* slot = s.ring + (warp * SLOTS + ring.at) * SLOT;
        const int length = segs == 1 ? WIDTH : min(SEG, WIDTH - seg * SEG);
        slot_wait(ring.full + ring.at * 8, ring.parity);
        float sum0 = 0, sum1 = 0;
#pragma unroll
        for (int it = 0; it < rounds; it++) {
            const int e = it * 256 + lane * 8;
            if (e < length) {
                float w[8];
                load8(format, slot, e, w);
                float& sum = it & 1 ? sum1 : sum0;
                if (keeps) {
#pragma unroll
                    for (int j = 0; j < 8; j++) sum = fmaf(w[j], kept[it * 8 + j], sum);
                } else {
                    sum = dot8(w, *(const uint4*)(s.x + seg * SEG + e), sum);
                }
            }
        }
        refill(ring, p, at, s.layers, warp, lane);
        const float sum = warp_sum(sum0 + sum1);
        if (lane == 0) s.sums[i] = sum;
    }
    __syncthreads();
}

template <int WIDTH>
__device__ __forceinline__ float row_sum(const Shared& s, int r) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < SEGS(WIDTH); i++) sum += s.sums[r * SEGS(WIDTH) + i];
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
        const u16 y = narrow(row_sum<D_MODEL>(s, i) + (bias ? bias[within] : 0.0f));
        p.qkv[r] = y;
        if (tap) tap[within] = y;
    }
}

// Adds a projection to the residual stream. Each row has one owner throughout.
template <int WIDTH>
__device__ __forceinline__ void residual_phase(const Step& p, const Shared& s, int phase, int kind) {
    const Layer& l = s.layers[phase / PHASES];
    const int lo = first_row(kind, blockIdx.x), n = first_row(kind, blockIdx.x + 1) - lo;
    const float* bias = kind == O_PROJ ? l.o_bias : l.down_bias;
    u16* inner = tap16(p, phase, kind == O_PROJ ? ATTN_OUT : MLP_OUT);
    u16* outer = tap16(p, phase, kind == O_PROJ ? ATTN_RESID : OUT);
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const int r = lo + i;
        const u16 y = narrow(row_sum<WIDTH>(s, i) + (bias ? bias[r] : 0.0f));
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
        const u16 gate = narrow(row_sum<D_MODEL>(s, 2 * i) + (l.gate_bias ? l.gate_bias[r] : 0.0f));
        const u16 up = narrow(row_sum<D_MODEL>(s, 2 * i + 1) + (l.up_bias ? l.up_bias[r] : 0.0f));
        const u16 act = narrow(activate(wide(gate)) * wide(up));
        p.act[r] = act;
        if (gates) gates[r] = gate;
        if (ups) ups[r] = up;
        if (acts) acts[r] = act;
    }
}

// The new token's queries of this block's group, its key and its value: normalised, turned, stored.
__device__ __forceinline__ void rotate(const Step& p, const Shared& s, const Place& at, int phase, int warp, int lane) {
    const Layer& l = s.layers[phase / PHASES];
    const float* angles = p.rope + (long long)at.position * HEAD_DIM;
    const bool owner = at.split == 0;
    for (int j = warp; j < GROUP + 2; j += WARPS) {
        const int head = at.kv_head * GROUP + j;
        const bool is_q = j < GROUP, is_k = j == GROUP;
        const int from = is_q ? head * HEAD_DIM : QD + at.kv_head * HEAD_DIM + (is_k ? 0 : KD);
        const long long plane = (long long)(phase / PHASES * 2 + (is_k ? 0 : 1)) * KV_HEADS + at.kv_head;
        u16* cached = p.cache + (plane * p.context + at.position) * HEAD_DIM;
        u16* out = is_q ? s.q + j * HEAD_DIM : is_k ? s.k : s.v;
        if (!is_q && !is_k) {
            for (int i = lane; i < HEAD_DIM; i += 32) {
                const u16 v = __ldcg(p.qkv + from + i);
                out[i] = v;
                if (owner) cached[i] = v;
            }
            continue;
        }
        constexpr int half = HEAD_DIM / 2, each = (half + 31) / 32;
        float a[each], b[each];
        float squares = 0;
#pragma unroll
        for (int n = 0; n < each; n++) {
            const int i = n * 32 + lane;
            a[n] = i < half ? wide(__ldcg(p.qkv + from + i)) : 0.0f;
            b[n] = i < half ? wide(__ldcg(p.qkv + from + i + half)) : 0.0f;
            squares += a[n] * a[n] + b[n] * b[n];
        }
        const int place = is_q ? head * HEAD_DIM : at.kv_head * HEAD_DIM;
        u16* normed = owner ? tap16(p, phase, is_q ? Q_NORM : K_NORM) : 0;
        u16* turned = owner ? tap16(p, phase, is_q ? Q_ROPE : K_ROPE) : 0;
        const float* weight = is_q ? l.q_norm : l.k_norm;
        const float scale = weight ? reciprocal_root(warp_sum(squares) / HEAD_DIM + NORM_EPS) : 1.0f;
#pragma unroll
        for (int n = 0; n < each; n++) {
            const int i = n * 32 + lane;
            if (i >= half) continue;
            if (weight) {
                a[n] = rounded(a[n] * scale * weight[i]);
                b[n] = rounded(b[n] * scale * weight[i + half]);
                if (normed) {
                    normed[place + i] = narrow(a[n]);
                    normed[place + i + half] = narrow(b[n]);
                }
            }
            const float c = angles[i], t = angles[half + i];
            const u16 y = narrow(a[n] * c - b[n] * t), z = narrow(b[n] * c + a[n] * t);
            out[i] = y;
            out[i + half] = z;
            if (is_k && owner) {
                cached[i] = y;
                cached[i + half] = z;
            }
            if (turned) {
                turned[place + i] = y;
                turned[place + i + half] = z;
            }
        }
    }
    __syncthreads();
}

// What a warp has seen of its keys, for every query head of the group: the largest score, the sum of exponentials
// (each lane its own keys) and the weighted values (each lane eight channels of its own keys).
struct Seen {
    float top[GROUP], total[GROUP], values[GROUP][8];
};

__device__ __forceinline__ void load_keys(const u8* from, int keys, int lane, uint4 out[KEY_ROUNDS]) {
    const int channel = lane % KEY_LANES * 8;
#pragma unroll
    for (int it = 0; it < KEY_ROUNDS; it++) {
        const int key = it * KEYS_AT_ONCE + lane / KEY_LANES;
        out[it] = key < keys && channel < HEAD_DIM ? *(const uint4*)(from + (key * HEAD_DIM + channel) * 2)
                                                   : make_uint4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ float dot_packed(uint4 a, uint4 b) {
    float w[8] = {low(a.x), high(a.x), low(a.y), high(a.y), low(a.z), high(a.z), low(a.w), high(a.w)};
    return dot8(w, b, 0.0f);
}

// Weights of one slot's keys; `visible` of them from `hidden` on.
__device__ __forceinline__ void score_keys(const Step& p, const Shared& s, const Place& at, int phase, Seen& seen,
                                           const uint4 k[KEY_ROUNDS], int first, int hidden, int keys, int lane,
                                           float weight[GROUP][KEY_ROUNDS]) {
    const int channel = lane % KEY_LANES * 8;
    float* scores = p.taps ? (float*)p.taps[phase / PHASES * LAYER_TAPS + SCORES] : 0;
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        const uint4 q = channel < HEAD_DIM ? *(const uint4*)(s.q + g * HEAD_DIM + channel) : make_uint4(0, 0, 0, 0);
        float top = NEG_INF;
#pragma unroll
        for (int it = 0; it < KEY_ROUNDS; it++) {
            const int key = it * KEYS_AT_ONCE + lane / KEY_LANES;
            float score = dot_packed(k[it], q);
#pragma unroll
            for (int o = KEY_LANES / 2; o; o >>= 1) score += __shfl_xor_sync(0xffffffffu, score, o);
            score *= SCALE;
            const bool visible = key < keys && key >= hidden;
            if (scores && key < keys && channel == 0)
                scores[(long long)(at.kv_head * GROUP + g) * (at.position + 1) + first + key] = score;
            weight[g][it] = visible ? score * LOG2E : NEG_INF;
            top = fmaxf(top, weight[g][it]);
        }
#pragma unroll
        for (int o = KEY_LANES; o < 32; o <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
        // A slot in which no key is visible changes nothing.
        top = fmaxf(seen.top[g], top);
        const float shrink = top == NEG_INF ? 1.0f : exp2_of(seen.top[g] - top);
        seen.top[g] = top;
        seen.total[g] *= shrink;
#pragma unroll
        for (int i = 0; i < 8; i++) seen.values[g][i] *= shrink;
#pragma unroll
        for (int it = 0; it < KEY_ROUNDS; it++) {
            weight[g][it] = top == NEG_INF ? 0.0f : exp2_of(weight[g][it] - top);
            seen.total[g] += weight[g][it];
        }
    }
}

__device__ __forceinline__ void add_values(Seen& seen, const uint4 v[KEY_ROUNDS],
                                           const float weight[GROUP][KEY_ROUNDS]) {
#pragma unroll
    for (int it = 0; it < KEY_ROUNDS; it++) {
        const float w[8] = {low(v[it].x), high(v[it].x), low(v[it].y), high(v[it].y),
                            low(v[it].z), high(v[it].z), low(v[it].w), high(v[it].w)};
#pragma unroll
        for (int g = 0; g < GROUP; g++)
#pragma unroll
            for (int i = 0; i < 8; i++) seen.values[g][i] = fmaf(weight[g][it], w[i], seen.values[g][i]);
    }
}

__device__ __forceinline__ void tap_keys(const Step& p, const Place& at, int phase, int tap, const uint4 v[KEY_ROUNDS],
                                         int first, int keys, int lane) {
    u16* out = tap16(p, phase, tap);
    const int channel = lane % KEY_LANES * 8;
    if (!out || channel >= HEAD_DIM) return;
#pragma unroll
    for (int it = 0; it < KEY_ROUNDS; it++) {
        const int key = it * KEYS_AT_ONCE + lane / KEY_LANES;
        if (key < keys)
            *(uint4*)(out + ((long long)(first + key) * KV_HEADS + at.kv_head) * HEAD_DIM + channel) = v[it];
    }
}

// The group's outputs, from every warp of this block and, for long contexts, every block of this kv head.
__device__ __forceinline__ void merge(const Step& p, const Shared& s, const Place& at, int phase, Seen& seen,
                                      int splits, int warp, int lane) {
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
#pragma unroll
        for (int o = KEY_LANES; o < 32; o <<= 1) {
            seen.total[g] += __shfl_xor_sync(0xffffffffu, seen.total[g], o);
#pragma unroll
            for (int i = 0; i < 8; i++) seen.values[g][i] += __shfl_xor_sync(0xffffffffu, seen.values[g][i], o);
        }
        if (lane == 0) {
            s.top[warp * GROUP + g] = seen.top[g];
            s.total[warp * GROUP + g] = seen.total[g];
        }
    }
    u16* tap = tap16(p, phase, ATTN_HEADS);
    float* probs = p.taps ? (float*)p.taps[phase / PHASES * LAYER_TAPS + PROBS] : 0;
    const float* scores = p.taps ? (const float*)p.taps[phase / PHASES * LAYER_TAPS + SCORES] : 0;
    const int window = (int)s.layers[phase / PHASES].window;
    const int hidden = window && at.position >= window ? at.position - window + 1 : 0;
    float* mine = p.partial + (long long)at.kv_head * SPLITS * GROUP * (HEAD_DIM + 2);
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        __syncthreads();
        const int channel = lane * 8;
        if (lane < KEY_LANES && channel < HEAD_DIM) {
#pragma unroll
            for (int i = 0; i < 8; i++) s.sums[warp * HEAD_DIM + channel + i] = seen.values[g][i];
        }
        __syncthreads();
        float top = NEG_INF, total = 0, value = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, s.top[w * GROUP + g]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float share = top == NEG_INF ? 0.0f : exp2_of(s.top[w * GROUP + g] - top);
            total += share * s.total[w * GROUP + g];
            if (threadIdx.x < HEAD_DIM) value += share * s.sums[w * HEAD_DIM + threadIdx.x];
        }
        const int head = at.kv_head * GROUP + g;
        if (splits > 1) {
            float* out = mine + (at.split * GROUP + g) * (HEAD_DIM + 2);
            if (threadIdx.x < HEAD_DIM) out[threadIdx.x] = value;
            if (threadIdx.x == 0) {
                out[HEAD_DIM] = top;
                out[HEAD_DIM + 1] = total;
            }
            continue;
        }
        if (threadIdx.x < HEAD_DIM) {
            const u16 y = narrow(value / total);
            p.heads[head * HEAD_DIM + threadIdx.x] = y;
            if (tap) tap[head * HEAD_DIM + threadIdx.x] = y;
        }
        if (probs)
            for (int k = threadIdx.x; k <= at.position; k += THREADS) {
                const long long i = (long long)head * (at.position + 1) + k;
                probs[i] = k < hidden ? 0.0f : exp2_of(__ldcg(scores + i) * LOG2E - top) / total;
            }
    }
    if (splits == 1) return;
    __syncthreads();
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(p.arrivals + at.kv_head, splits - 1) == splits - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    for (int g = 0; g < GROUP; g++) {
        const int head = at.kv_head * GROUP + g;
        float top = NEG_INF, total = 0, value = 0;
        for (int i = 0; i < splits; i++)
            top = fmaxf(top, __ldcg(mine + (i * GROUP + g) * (HEAD_DIM + 2) + HEAD_DIM));
        for (int i = 0; i < splits; i++) {
            const float* part = mine + (i * GROUP + g) * (HEAD_DIM + 2);
            const float share = exp2_of(__ldcg(part + HEAD_DIM) - top);
            total += share * __ldcg(part + HEAD_DIM + 1);
            if (threadIdx.x < HEAD_DIM) value += share * __ldcg(part + threadIdx.x);
        }
        if (threadIdx.x < HEAD_DIM) {
            const u16 y = narrow(value / total);
            p.heads[head * HEAD_DIM + threadIdx.x] = y;
            if (tap) tap[head * HEAD_DIM + threadIdx.x] = y;
        }
        if (probs)
            for (int k = threadIdx.x; k <= at.position; k += THREADS) {
                const long long i = (long long)head * (at.position + 1) + k;
                probs[i] = k < hidden ? 0.0f : exp2_of(__ldcg(scores + i) * LOG2E - top) / total;
            }
    }
}

__device__ __forceinline__ void attention_phase(const Step& p, const Shared& s, Ring& ring, const Place& at, int phase,
                                                int warp, int lane) {
    const int window = (int)s.layers[phase / PHASES].window;
    const int hidden = window && at.position >= window ? at.position - window + 1 : 0;
    const int begin = hidden / SLOT_KEYS, chunks = (at.position + SLOT_KEYS - 1) / SLOT_KEYS;
    const int splits = min(SPLITS, max(1, (chunks - begin + WARPS - 1) / WARPS));
    if (!at.reads_keys || at.split >= splits) return;
    rotate(p, s, at, phase, warp, lane);
    Seen seen;
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        seen.top[g] = NEG_INF;
        seen.total[g] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) seen.values[g][i] = 0;
    }
    uint4 rows[KEY_ROUNDS];
    float weight[GROUP][KEY_ROUNDS];
    for (int chunk = begin + at.split * WARPS + warp; chunk < chunks; chunk += SPLITS * WARPS) {
        const int first = chunk * SLOT_KEYS, keys = min(SLOT_KEYS, at.position - first);
        slot_wait(ring.full + ring.at * 8, ring.parity);
        load_keys(s.ring + (warp * SLOTS + ring.at) * SLOT, keys, lane, rows);
        refill(ring, p, at, s.layers, warp, lane);
        tap_keys(p, at, phase, K_CACHE, rows, first, keys, lane);
        score_keys(p, s, at, phase, seen, rows, first, hidden - first, keys, lane, weight);
        slot_wait(ring.full + ring.at * 8, ring.parity);
        load_keys(s.ring + (warp * SLOTS + ring.at) * SLOT, keys, lane, rows);
        refill(ring, p, at, s.layers, warp, lane);
        tap_keys(p, at, phase, V_CACHE, rows, first, keys, lane);
        add_values(seen, rows, weight);
    }
    if (at.split == 0 && warp == WARPS - 1) {
        load_keys((const u8*)s.k, 1, lane, rows);
        tap_keys(p, at, phase, K_CACHE, rows, at.position, 1, lane);
        score_keys(p, s, at, phase, seen, rows, at.position, 0, 1, lane, weight);
        load_keys((const u8*)s.v, 1, lane, rows);
        tap_keys(p, at, phase, V_CACHE, rows, at.position, 1, lane);
        add_values(seen, rows, weight);
    }
    merge(p, s, at, phase, seen, splits, warp, lane);
}

__device__ __forceinline__ bool better(float a, u32 i, float b, u32 j) { return a > b || (a == b && i < j); }

// Logits, and the token of the largest one: the first of several.
__device__ __forceinline__ void head_phase(const Step& p, const Shared& s, int position) {
    const int lo = first_row(PHASES, blockIdx.x), n = first_row(PHASES, blockIdx.x + 1) - lo;
    float* tap = p.taps ? (float*)p.taps[LAYERS * LAYER_TAPS + LOGITS] : 0;
    float value = NEG_INF;
    u32 token = 0xffffffffu;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float y = row_sum<D_MODEL>(s, i);
        p.logits[lo + i] = y;
        if (tap) tap[lo + i] = y;
        if (better(y, lo + i, value, token)) {
            value = y;
            token = lo + i;
        }
    }
    __shared__ float values[THREADS / 32];
    __shared__ u32 tokens[THREADS / 32];
    __shared__ bool last;
    for (int round = 0;; round++) {
#pragma unroll
        for (int o = 16; o; o >>= 1) {
            const float v = __shfl_xor_sync(0xffffffffu, value, o);
            const u32 t = __shfl_xor_sync(0xffffffffu, token, o);
            if (better(v, t, value, token)) {
                value = v;
                token = t;
            }
        }
        __syncthreads();
        if ((threadIdx.x & 31) == 0) {
            values[threadIdx.x >> 5] = value;
            tokens[threadIdx.x >> 5] = token;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < THREADS / 32; w++)
                if (better(values[w], tokens[w], value, token)) {
                    value = values[w];
                    token = tokens[w];
                }
            if (round == 0) {
                p.best[2 * blockIdx.x] = value;
                p.best[2 * blockIdx.x + 1] = __uint_as_float(token);
                __threadfence();
                last = atomicInc(p.arrivals + KV_HEADS, BLOCKS - 1) == BLOCKS - 1;
                __threadfence();
            } else {
                token = token == 0xffffffffu ? 0 : token;
                p.state[0] = position + 1;
                p.state[1] = (int)token;
                if (p.chosen) p.chosen[position] = token;
            }
        }
        __syncthreads();
        if (round || !last) return;
        value = NEG_INF;
        token = 0xffffffffu;
        for (int b = threadIdx.x; b < BLOCKS; b += THREADS) {
            const float v = __ldcg(p.best + 2 * b);
            const u32 t = __float_as_uint(__ldcg(p.best + 2 * b + 1));
            if (better(v, t, value, token)) {
                value = v;
                token = t;
            }
        }
    }
}

// Waits until every block is here. The counter only ever grows: nobody can mistake an earlier barrier for this one.
__device__ __forceinline__ void grid_barrier(u32* counter, u32 target) {
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        u32 seen;
#if BARRIER_BUG
        // Arrivals were thrown away; without a limit this would wait for ever.
        for (int patience = 0; patience < 200; patience++) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
            if (seen >= target) break;
        }
#else
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        while ((int)(seen - target) < 0);
#endif
    }
    __syncthreads();
}

#ifndef PER_SM
#define PER_SM 1
#endif

extern "C" __global__ void __launch_bounds__(THREADS, PER_SM) decode(const __grid_constant__ Step p) {
    extern __shared__ __align__(128) u8 memory[];
    const Shared s = carve(memory);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int i = threadIdx.x; i < LAYERS * (int)sizeof(Layer) / 16; i += THREADS)
        ((uint4*)s.layers)[i] = ((const uint4*)p.layers)[i];
    Ring ring;
    ring.slots = shared_address(s.ring) + warp * SLOTS * SLOT;
    ring.full = shared_address(s.full) + warp * SLOTS * 8;
    ring.at = 0;
    ring.parity = 0;
    if (lane == 0) {
        for (int i = 0; i < SLOTS; i++) slot_init(ring.full + i * 8);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();

    Place at;
    at.kv_head = blockIdx.x / SPLITS;
    at.split = blockIdx.x % SPLITS;
    at.reads_keys = at.kv_head < KV_HEADS;
#if CHAINED
    if (p.first == 0) asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    // Position, token and cache must be those of this step before anything is read by them.
    if (p.first % PHASES == ATTENTION) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    at.position = p.position >= 0 ? p.position : __ldcg(p.state);
    const int token = p.token >= 0 ? p.token : __ldcg(p.state + 1);
    if (lane == 0) {
        feed_start(ring.feed, p, warp);
        for (int i = 0; i < SLOTS; i++) {
            u64 from;
            u32 bytes;
            if (feed_next(ring.feed, p, at, s.layers, warp, from, bytes))
                slot_fill(ring.slots + i * SLOT, ring.full + i * 8, from, bytes);
        }
    }
    __syncwarp();
#if CHAINED
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif

#if BARRIER_BUG
    // The counter is set back while others may have read it already: they pass on what it held from the last launch.
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        for (int i = 0; i < 20; i++) __nanosleep(1000);
        *(volatile u32*)p.barrier = 0;
    }
#endif
    NormWeights norm;
    read_norm(p, s, p.first, norm);
    for (int phase = p.first; phase < p.last; phase++) {
        switch (phase == HEAD_PHASE ? PHASES : phase % PHASES) {
            case QKV:
                norm_input(p, s, norm, tap16(p, phase, ATTN_NORM), phase == 0, token);
                products<D_MODEL>(p, s, ring, at, phase, QKV, warp, lane);
                qkv_phase(p, s, phase);
                break;
            case ATTENTION: attention_phase(p, s, ring, at, phase, warp, lane); break;
            case O_PROJ:
                copy_input(s, p.heads, QD);
                products<QD>(p, s, ring, at, phase, O_PROJ, warp, lane);
                residual_phase<QD>(p, s, phase, O_PROJ);
                break;
            case GATE_UP:
                norm_input(p, s, norm, tap16(p, phase, MLP_NORM), false, 0);
                products<D_MODEL>(p, s, ring, at, phase, GATE_UP, warp, lane);
                gate_up_phase(p, s, phase);
                break;
            case DOWN:
                copy_input(s, p.act, FFN);
                products<FFN>(p, s, ring, at, phase, DOWN, warp, lane);
                residual_phase<FFN>(p, s, phase, DOWN);
                break;
            default:
                norm_input(p, s, norm, tap16_of_model(p, FINAL_NORM), false, 0);
                products<D_MODEL>(p, s, ring, at, phase, PHASES, warp, lane);
                head_phase(p, s, at.position);
                break;
        }
        if (phase + 1 == p.last) break;
        read_norm(p, s, phase + 1, norm);
        grid_barrier(p.barrier, p.epoch + (phase - p.first + 1) * BLOCKS);
    }
}
