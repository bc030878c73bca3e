// Attention of one token: every warp goes through its share of the keys with a running maximum, warps and then blocks
// are merged.

// The new token's query, key and value of this block's head: normalised, turned, stored. A warp each.
__device__ __forceinline__ void rotate(const Step& p, const Shared& s, const Place& at, int phase, u32 round, int warp,
                                       int lane) {
    const Layer& l = s.layers[phase / PHASES];
    const bool is_q = warp == 0, is_v = warp == 2, owner = at.split == 0 && (is_q || at.head % GROUP == 0);
    if (warp < 3) {
        const u64* from = p.qkv + (is_q ? at.head * HEAD_DIM : QD + at.kv_head * HEAD_DIM + (is_v ? KD : 0)) / 2;
        const long long plane = (long long)(phase / PHASES * 2 + is_v) * KV_HEADS + at.kv_head;
        u32* cached = (u32*)(p.cache + (plane * p.context + at.position) * HEAD_DIM);
        u32* out = (u32*)(is_q ? s.q : is_v ? s.v : s.k);
        constexpr int half = HEAD_DIM / 4, each = (half + 31) / 32;  // pairs
        const float2* norms = (const float2*)(is_q ? l.q_norm : is_v ? 0 : l.k_norm);
        u32 a[each], b[each];
        float2 v[each], w[each];
        float squares = 0;
#pragma unroll
        for (int n = 0; n < each; n++) {
            const int i = n * 32 + lane;
            a[n] = b[n] = 0;
            if (i < half) {
                if (norms) {
                    v[n] = __ldg(norms + i);
                    w[n] = __ldg(norms + half + i);
                }
                u64 first, second;
                do {
                    first = look(from + i);
                    second = look(from + half + i);
                } while (early(first, round) || early(second, round));
                a[n] = (u32)first;
                b[n] = (u32)second;
            }
            squares += low(a[n]) * low(a[n]) + high(a[n]) * high(a[n]) + low(b[n]) * low(b[n]) + high(b[n]) * high(b[n]);
        }
        const int place = is_q ? at.head * HEAD_DIM : at.kv_head * HEAD_DIM;
        u32* normed = (u32*)(owner && !is_v ? tap16(p, phase, is_q ? Q_NORM : K_NORM) : 0);
        u32* turned = (u32*)(owner && !is_v ? tap16(p, phase, is_q ? Q_ROPE : K_ROPE) : 0);
        const float scale = reciprocal_root(warp_sum(squares) / HEAD_DIM + NORM_EPS);
#pragma unroll
        for (int n = 0; n < each; n++) {
            const int i = n * 32 + lane;
            if (i >= half) continue;
            u32 x = a[n], y = b[n];
            if (norms) {
                x = pair(low(x) * scale * v[n].x, high(x) * scale * v[n].y);
                y = pair(low(y) * scale * w[n].x, high(y) * scale * w[n].y);
                if (normed) {
                    normed[place / 2 + i] = x;
                    normed[place / 2 + half + i] = y;
                }
            }
            if (!is_v) {
                const float2 c = ((const float2*)turns)[i], t = ((const float2*)turns)[half + i];
                const u32 z = pair(low(x) * c.x - low(y) * t.x, high(x) * c.y - high(y) * t.y);
                y = pair(low(y) * c.x + low(x) * t.x, high(y) * c.y + high(x) * t.y);
                x = z;
            }
            out[i] = x;
            out[half + i] = y;
            if (!is_q && owner) {
                cached[i] = x;
                cached[half + i] = y;
            }
            if (turned) {
                turned[place / 2 + i] = x;
                turned[place / 2 + half + i] = y;
            }
        }
    }
    block_sync();
}

// What a warp has seen of its keys: the largest score, the sum of exponentials (each lane its own keys) and the weighted
// values (each lane eight channels of its own keys).
struct Seen {
    float top, total, values[8];
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

// Weights of one slot's keys, those from `hidden` on.
__device__ __forceinline__ void score_keys(const Step& p, const Place& at, int phase, Seen& seen, const float q[8],
                                           const uint4 k[KEY_ROUNDS], int first, int hidden, int keys, int lane,
                                           float weight[KEY_ROUNDS]) {
    float* scores = tap32(p, phase / PHASES * LAYER_TAPS + SCORES);
    float top = NEG_INF;
#pragma unroll
    for (int it = 0; it < KEY_ROUNDS; it++) {
        const int key = it * KEYS_AT_ONCE + lane / KEY_LANES;
        float score = dot8(q, k[it], 0.0f);
#pragma unroll
        for (int o = KEY_LANES / 2; o; o >>= 1) score += __shfl_xor_sync(0xffffffffu, score, o);
        score *= SCALE;
        if (scores && key < keys && lane % KEY_LANES == 0)
            scores[(long long)at.head * (at.position + 1) + first + key] = score;
        weight[it] = key < keys && key >= hidden ? score * LOG2E : NEG_INF;
        top = fmaxf(top, weight[it]);
    }
#pragma unroll
    for (int o = KEY_LANES; o < 32; o <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
    // A slot in which no key is visible changes nothing.
    top = fmaxf(seen.top, top);
    const float shrink = top == NEG_INF ? 1.0f : exp2_of(seen.top - top);
    seen.top = top;
    seen.total *= shrink;
#pragma unroll
    for (int i = 0; i < 8; i++) seen.values[i] *= shrink;
#pragma unroll
    for (int it = 0; it < KEY_ROUNDS; it++) {
        weight[it] = top == NEG_INF ? 0.0f : exp2_of(weight[it] - top);
        seen.total += weight[it];
    }
}

__device__ __forceinline__ void add_values(Seen& seen, const uint4 v[KEY_ROUNDS], const float weight[KEY_ROUNDS]) {
#pragma unroll
    for (int it = 0; it < KEY_ROUNDS; it++) {
        const float w[8] = {low(v[it].x), high(v[it].x), low(v[it].y), high(v[it].y),
                            low(v[it].z), high(v[it].z), low(v[it].w), high(v[it].w)};
#pragma unroll
        for (int i = 0; i < 8; i++) seen.values[i] = fmaf(weight[it], w[i], seen.values[i]);
    }
}

__device__ __forceinline__ void tap_keys(const Step& p, const Place& at, int phase, int tap, const uint4 v[KEY_ROUNDS],
                                         int first, int keys, int lane) {
    u16* out = at.head % GROUP ? 0 : tap16(p, phase, tap);
    const int channel = lane % KEY_LANES * 8;
    if (!out || channel >= HEAD_DIM) return;
#pragma unroll
    for (int it = 0; it < KEY_ROUNDS; it++) {
        const int key = it * KEYS_AT_ONCE + lane / KEY_LANES;
        if (key < keys)
            *(uint4*)(out + ((long long)(first + key) * KV_HEADS + at.kv_head) * HEAD_DIM + channel) = v[it];
    }
}

// What the head's keys are given once all were seen: the largest score and the sum lie in s.reduce.
__device__ __forceinline__ void tap_probs(const Step& p, const Shared& s, const Place& at, int phase) {
#if TAPS
    block_sync();
    float* probs = tap32(p, phase / PHASES * LAYER_TAPS + PROBS);
    const float* scores = tap32(p, phase / PHASES * LAYER_TAPS + SCORES);
    if (!probs) return;
    const int hidden = keys_of(at.position, (int)s.layers[phase / PHASES].window).first;
    for (int k = threadIdx.x; k <= at.position; k += THREADS) {
        const long long i = (long long)at.head * (at.position + 1) + k;
        const float weight = exp2_of(__ldcg(scores + i) * LOG2E - s.reduce[0]) / s.reduce[1];
        probs[i] = k < hidden ? 0.0f : weight;
    }
#endif
}

// What each block's values count for; `reduce` holds the largest score and the sum of this block's own, then of all. Not
// inlined, nor is the next: short contexts need neither.
__device__ __noinline__ void shares(const u64* of, int splits, u32 round, float* out, float* reduce, int lane) {
    float top = NEG_INF, total = 0;
    for (int n = lane; n < splits; n += 32) {
        const float t = n ? __uint_as_float(collect(of + n * (HEAD_DIM + 2), round)) : reduce[0];
        out[n] = t;
        top = fmaxf(top, t);
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
    for (int n = lane; n < splits; n += 32) {
        const float share = exp2_of(out[n] - top);
        total += share * (n ? __uint_as_float(collect(of + n * (HEAD_DIM + 2) + 1, round)) : reduce[1]);
        out[n] = share;
    }
    total = warp_sum(total);
    if (lane == 0) {
        reduce[0] = top;
        reduce[1] = total;
    }
}

// A channel from all blocks.
__device__ __noinline__ float gather(const u64* of, int splits, u32 round, const float* shares, float mine) {
    constexpr int many = 8, stride = HEAD_DIM + 2;
    float value = shares[0] * mine;
    for (int first = 1; first < splits; first += many) {
        u64 a[many];
#pragma unroll
        for (int m = 0; m < many; m++)
            if (first + m < splits) a[m] = look(of + (first + m) * stride);
#pragma unroll
        for (int m = 0; m < many; m++) {
            if (first + m >= splits) continue;
            while (other(a[m], round)) a[m] = look(of + (first + m) * stride);
            value += shares[first + m] * __uint_as_float((u32)a[m]);
        }
    }
    return value;
}

// The head's output, from every warp of this block and, for long contexts, every block of this head.
__device__ __forceinline__ void merge(const Step& p, const Shared& s, const Place& at, int phase, u32 round, Seen& seen,
                                      int splits, int warp, int lane) {
#pragma unroll
    for (int o = KEY_LANES; o < 32; o <<= 1) {
        seen.total += __shfl_xor_sync(0xffffffffu, seen.total, o);
#pragma unroll
        for (int i = 0; i < 8; i++) seen.values[i] += __shfl_xor_sync(0xffffffffu, seen.values[i], o);
    }
    if (lane == 0) {
        s.top[warp] = seen.top;
        s.total[warp] = seen.total;
    }
    if (lane < KEY_LANES && lane * 8 < HEAD_DIM) {
        float4* to = (float4*)(s.sums + warp * HEAD_DIM + lane * 8);
        to[0] = make_float4(seen.values[0], seen.values[1], seen.values[2], seen.values[3]);
        to[1] = make_float4(seen.values[4], seen.values[5], seen.values[6], seen.values[7]);
    }
    block_sync();
    // What each warp's values count for: every thread finds the same.
    float top = NEG_INF, total = 0, value = 0;
    const int c = threadIdx.x;
#pragma unroll
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, s.top[w]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float share = top == NEG_INF ? 0.0f : exp2_of(s.top[w] - top);
        total += share * s.total[w];
        if (c < HEAD_DIM) value += share * s.sums[w * HEAD_DIM + c];
    }
    if (threadIdx.x == 0) {
        s.reduce[0] = top;
        s.reduce[1] = total;
    }
    u64* partial = p.partial + (long long)at.head * SPLITS * (HEAD_DIM + 2);
    if (splits > 1) {
#if TAPS
        // What is recorded of the scores is read by the block that merges.
        __threadfence();
#endif
        block_sync();
        if (at.split) {
            u64* to = partial + (long long)at.split * (HEAD_DIM + 2);
            if (c < HEAD_DIM) publish(to + c, __float_as_uint(value), round);
            if (c < 2) publish(to + HEAD_DIM + c, __float_as_uint(c ? total : top), round);
            return;
        }
        // Shares of the blocks, in place of what the warps left in s.sums.
        if (warp == 0) shares(partial + HEAD_DIM, splits, round, s.sums, s.reduce, lane);
        block_sync();
#if TAPS
        __threadfence();
#endif
        if (c < HEAD_DIM) value = gather(partial + c, splits, round, s.sums, value);
        total = s.reduce[1];
    }
    const u16 y = narrow(quotient(value, total));
    const u16 next = (u16)__shfl_down_sync(0xffffffffu, (u32)y, 1);
    if (c < HEAD_DIM && c % 2 == 0) {
        publish(p.heads + (at.head * HEAD_DIM + c) / 2, y | (u32)next << 16, round);
        record(tap16(p, phase, ATTN_HEADS), at.head * HEAD_DIM + c, y, next);
    }
    tap_probs(p, s, at, phase);
}

__device__ __forceinline__ void attention_phase(const Step& p, const Shared& s, Ring& ring, const Place& at, int phase,
                                                u32 round, int warp, int lane) {
    const Keys of = keys_of(at.position, (int)s.layers[phase / PHASES].window);
    if (!at.reads_keys || at.split >= of.splits) return;
    rotate(p, s, at, phase, round, warp, lane);
    Seen seen;
    seen.top = NEG_INF;
    seen.total = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) seen.values[i] = 0;
    const int channel = lane % KEY_LANES * 8;
    const uint4 h = channel < HEAD_DIM ? *(const uint4*)(s.q + channel) : make_uint4(0, 0, 0, 0);
    const float q[8] = {low(h.x), high(h.x), low(h.y), high(h.y), low(h.z), high(h.z), low(h.w), high(h.w)};
    uint4 rows[KEY_ROUNDS];
    float weight[KEY_ROUNDS];
    // Slots of cached keys, then, for one warp, the new key.
    bool fresh = at.split == 0 && warp == WARPS - 1;
#pragma unroll 1
    for (int chunk = of.begin + at.split * WARPS + warp; chunk < of.end || fresh; chunk += of.splits * WARPS) {
        const bool cached = chunk < of.end;
        const int first = cached ? chunk * SLOT_KEYS : at.position;
        const int keys = cached ? min(SLOT_KEYS, at.position - first) : 1;
#pragma unroll 1
        for (int values = 0; values < 2; values++) {
            const u8* from = cached ? next_slot(ring) : (const u8*)(values ? s.v : s.k);
            load_keys(from, keys, lane, rows);
            tap_keys(p, at, phase, values ? V_CACHE : K_CACHE, rows, first, keys, lane);
            if (values) add_values(seen, rows, weight);
            else score_keys(p, at, phase, seen, q, rows, first, of.first - first, keys, lane, weight);
            __syncwarp();
            if (cached) done_with_slot(ring);
        }
        if (!cached) fresh = false;
    }
    merge(p, s, at, phase, round, seen, of.splits, warp, lane);
}
