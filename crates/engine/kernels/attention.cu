// Attention of one token: every warp goes through its share of the keys with a running maximum, warps and then blocks
// are merged.

// The new token's queries of this block's group, its key and its value: normalised, turned, stored.
__device__ __forceinline__ void rotate(const Step& p, const Shared& s, const Place& at, int phase, int warp, int lane) {
    const Layer& l = s.layers[phase / PHASES];
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
        const float* weight = (is_q ? l.q_norm : l.k_norm) ? head_norms + (is_q ? 0 : HEAD_DIM) : 0;
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
            const float c = turns[i], t = turns[half + i];
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
    float* scores = tap32(p, phase / PHASES * LAYER_TAPS + SCORES);
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

// What the group's heads are given once all their keys were seen: the largest score and the sum of every head lie in
// s.reduce.
__device__ __forceinline__ void tap_probs(const Step& p, const Shared& s, const Place& at, int phase) {
#if TAPS
    float* probs = tap32(p, phase / PHASES * LAYER_TAPS + PROBS);
    const float* scores = tap32(p, phase / PHASES * LAYER_TAPS + SCORES);
    if (!probs) return;
    const int window = (int)s.layers[phase / PHASES].window;
    const int hidden = window && at.position >= window ? at.position - window + 1 : 0;
    for (int g = 0; g < GROUP; g++)
        for (int k = threadIdx.x; k <= at.position; k += THREADS) {
            const long long i = (long long)(at.kv_head * GROUP + g) * (at.position + 1) + k;
            const float weight = exp2_of(__ldcg(scores + i) * LOG2E - s.reduce[g]) / s.reduce[16 + g];
            probs[i] = k < hidden ? 0.0f : weight;
        }
#endif
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
            s.top[g * WARPS + warp] = seen.top[g];
            s.total[g * WARPS + warp] = seen.total[g];
        }
        if (lane < KEY_LANES && lane * 8 < HEAD_DIM) {
            float4* to = (float4*)(s.sums + (warp * GROUP + g) * HEAD_DIM + lane * 8);
            to[0] = make_float4(seen.values[g][0], seen.values[g][1], seen.values[g][2], seen.values[g][3]);
            to[1] = make_float4(seen.values[g][4], seen.values[g][5], seen.values[g][6], seen.values[g][7]);
        }
    }
    __syncthreads();
    // One warp a head: what each warp's values count for.
    if (warp < GROUP) {
        const int i = warp * WARPS + (lane & 15);
        const float mine = s.top[i];
        float top = mine;
#pragma unroll
        for (int o = 8; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
        const float share = top == NEG_INF ? 0.0f : exp2_of(mine - top);
        float total = share * s.total[i];
#pragma unroll
        for (int o = 8; o; o >>= 1) total += __shfl_xor_sync(0xffffffffu, total, o);
        __syncwarp();
        if (lane < 16) s.total[i] = share;
        if (lane == 0) {
            s.reduce[warp] = top;
            s.reduce[16 + warp] = total;
        }
    }
    __syncthreads();
    u16* tap = tap16(p, phase, ATTN_HEADS);
    float* mine = p.partial + ((long long)at.kv_head * SPLITS + at.split) * GROUP * (HEAD_DIM + 2);
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
        const int g = i / HEAD_DIM, c = i % HEAD_DIM;
        float value = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) value += s.total[g * WARPS + w] * s.sums[w * GROUP * HEAD_DIM + i];
        if (splits > 1) {
            mine[g * (HEAD_DIM + 2) + c] = value;
            if (c < 2) mine[g * (HEAD_DIM + 2) + HEAD_DIM + c] = s.reduce[16 * c + g];
            continue;
        }
        const u16 y = narrow(quotient(value, s.reduce[16 + g]));
        p.heads[at.kv_head * GROUP * HEAD_DIM + i] = y;
        if (tap) tap[at.kv_head * GROUP * HEAD_DIM + i] = y;
    }
    if (splits == 1) return tap_probs(p, s, at, phase);
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicInc(p.arrivals + at.kv_head, splits - 1) == splits - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    const float* parts = p.partial + (long long)at.kv_head * SPLITS * GROUP * (HEAD_DIM + 2);
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
        const int g = i / HEAD_DIM, c = i % HEAD_DIM;
        const float* of = parts + g * (HEAD_DIM + 2);
        float top = NEG_INF, total = 0, value = 0;
#pragma unroll 4
        for (int n = 0; n < splits; n++) top = fmaxf(top, __ldcg(of + n * GROUP * (HEAD_DIM + 2) + HEAD_DIM));
#pragma unroll 4
        for (int n = 0; n < splits; n++) {
            const float* part = of + n * GROUP * (HEAD_DIM + 2);
            const float share = exp2_of(__ldcg(part + HEAD_DIM) - top);
            total += share * __ldcg(part + HEAD_DIM + 1);
            value += share * __ldcg(part + c);
        }
        const u16 y = narrow(quotient(value, total));
        p.heads[at.kv_head * GROUP * HEAD_DIM + i] = y;
        if (tap) tap[at.kv_head * GROUP * HEAD_DIM + i] = y;
        if (c == 0) {
            s.reduce[g] = top;
            s.reduce[16 + g] = total;
        }
    }
    __syncthreads();
    tap_probs(p, s, at, phase);
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
    // Slots of cached keys, then, for one warp, the new key.
    bool fresh = at.split == 0 && warp == WARPS - 1;
    for (int chunk = begin + at.split * WARPS + warp; chunk < chunks || fresh; chunk += SPLITS * WARPS) {
        const bool cached = chunk < chunks;
        const int first = cached ? chunk * SLOT_KEYS : at.position;
        const int keys = cached ? min(SLOT_KEYS, at.position - first) : 1;
#pragma unroll 1
        for (int values = 0; values < 2; values++) {
            const u8* from = (const u8*)(values ? s.v : s.k);
            if (cached) {
                from = s.ring + (warp * SLOTS + ring.at) * SLOT;
                slot_wait(ring.full + ring.at * 8, ring.parity);
            }
            load_keys(from, keys, lane, rows);
            if (cached) refill(ring, p, at, s.layers, warp, lane);
            tap_keys(p, at, phase, values ? V_CACHE : K_CACHE, rows, first, keys, lane);
            if (values) add_values(seen, rows, weight);
            else score_keys(p, s, at, phase, seen, rows, first, hidden - first, keys, lane, weight);
        }
        if (!cached) fresh = false;
    }
    merge(p, s, at, phase, seen, splits, warp, lane);
}
