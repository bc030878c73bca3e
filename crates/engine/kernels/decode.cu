// One token through the model: the phases of stream.cu with a grid barrier between any two.

__device__ __forceinline__ bool better(float a, u32 i, float b, u32 j) { return a > b || (a == b && i < j); }

// Logits, and the token of the largest one: the first of several.
__device__ __forceinline__ void head_phase(const Step& p, const Shared& s, int position) {
    const int lo = first_row(PHASES, blockIdx.x), n = first_row(PHASES, blockIdx.x + 1) - lo;
    float* tap = tap32(p, LAYERS * LAYER_TAPS + LOGITS);
    float value = NEG_INF;
    u32 token = 0xffffffffu;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float y = row_sum(s, i, SEGS(D_MODEL));
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
        // Acquired once, at the end: an acquiring load would throw the cache away at every look.
        do asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        while ((int)(seen - target) < 0);
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
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
    // By a shuffle, so that the compiler knows all lanes to agree.
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
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
    feed_start(ring.feed, p, warp, lane);
#pragma unroll 1
    for (int i = 0; i < SLOTS; i++)
        feed_slot(ring.feed, p, at, s.layers, warp, lane, ring.slots + i * SLOT, ring.full + i * 8);
    for (int i = threadIdx.x; i < HEAD_DIM; i += THREADS)
        turns[i] = __ldg(p.rope + (long long)at.position * HEAD_DIM + i);
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
    __syncthreads();
    for (int phase = p.first; phase < p.last; phase++) {
        const int kind = phase == HEAD_PHASE ? PHASES : phase % PHASES;
        if (kind == ATTENTION) {
            attention_phase(p, s, ring, at, phase, warp, lane);
        } else {
            if (kind == O_PROJ || kind == DOWN) {
                copy_input(s, kind == O_PROJ ? p.heads : p.act, width_of(kind));
            } else {
                u16* tap = kind == PHASES ? tap16_of_model(p, FINAL_NORM)
                                          : tap16(p, phase, kind == QKV ? ATTN_NORM : MLP_NORM);
                norm_input(p, s, norm, tap, phase == 0, token);
            }
            products(p, s, ring, at, phase, kind, warp, lane);
            if (kind == QKV) qkv_phase(p, s, phase);
            else if (kind == GATE_UP) gate_up_phase(p, s, phase);
            else if (kind == PHASES) head_phase(p, s, at.position);
            else residual_phase(p, s, phase, kind);
        }
        if (phase + 1 == p.last) break;
        read_norm(p, s, phase + 1, norm);
        grid_barrier(p.barrier, p.epoch + (phase - p.first + 1) * BLOCKS);
    }
}
