// One token through the model: the phases of stream.cu, each of which waits for what it reads of the one before.

__device__ __forceinline__ bool better(float a, u32 i, float b, u32 j) { return a > b || (a == b && i < j); }

// Logits, and the token of the largest one: the first of several.
__device__ __forceinline__ void head_phase(const Step& p, const Shared& s, int position) {
    const int lo = bounds[PHASES].x, n = bounds[PHASES].y;
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
        block_sync();
        if ((threadIdx.x & 31) == 0) {
            values[threadIdx.x >> 5] = value;
            tokens[threadIdx.x >> 5] = token;
        }
        block_sync();
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
                last = atomicInc(p.arrivals, BLOCKS - 1) == BLOCKS - 1;
                __threadfence();
            } else {
                token = token == 0xffffffffu ? 0 : token;
                p.state[0] = position + 1;
                p.state[1] = (int)token;
                if (p.chosen) p.chosen[position] = token;
            }
        }
        block_sync();
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

extern "C" __global__ void __launch_bounds__(THREADS + 32 * FEEDERS, 1) decode(const __grid_constant__ Step p) {
    extern __shared__ __align__(128) u8 memory[];
    const Shared s = carve(memory);
    // By a shuffle, so that the compiler knows all lanes to agree.
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    for (int i = threadIdx.x; i < LAYERS * (int)sizeof(Layer) / 16; i += THREADS + 32 * FEEDERS)
        ((uint4*)s.layers)[i] = ((const uint4*)p.layers)[i];
    // Full once the copy's lane and its bytes have arrived; empty once all lanes of the reading warp have.
    for (int i = threadIdx.x; i < 2 * WARPS * SLOTS; i += THREADS + 32 * FEEDERS) slot_init(shared_address(s.full + i), i < WARPS * SLOTS ? 1 : 32);
    if (threadIdx.x <= PHASES) {
        const int lo = first_row(threadIdx.x, blockIdx.x);
        bounds[threadIdx.x] = make_int2(lo, first_row(threadIdx.x, blockIdx.x + 1) - lo);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    Place at;
    at.head = blockIdx.x / SPLITS;
    at.kv_head = at.head / GROUP;
    at.split = blockIdx.x % SPLITS;
    at.reads_keys = at.head < HEADS;
    at.position = p.position >= 0 ? p.position : __ldcg(p.state);
    __syncthreads();
    if (warp >= WARPS) {
        const int served = lane < WARPS / FEEDERS ? warp - WARPS + lane * FEEDERS : WARPS;
        feed(p, at, s.layers, bounds, shared_address(s.ring), shared_address(s.full), shared_address(s.empty), served);
        return;
    }
    Ring ring;
    ring.slots = s.ring + warp * SLOTS * SLOT;
    ring.full = shared_address(s.full) + warp * SLOTS * 8;
    ring.empty = shared_address(s.empty) + warp * SLOTS * 8;
    ring.at = 0;
    ring.parity = 0;
    const int token = p.token >= 0 ? p.token : __ldcg(p.state + 1);
    for (int i = threadIdx.x; i < HEAD_DIM; i += THREADS)
        turns[i] = __ldg(p.rope + (long long)at.position * HEAD_DIM + i);
#if BARRIER_BUG
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        for (int i = 0; i < 20; i++) __nanosleep(1000);
        *(volatile u32*)p.barrier = 0;
    }
#endif
    block_sync();
#pragma unroll 1
    for (int phase = p.first; phase <= HEAD_PHASE; phase++) {
        const int kind = phase == HEAD_PHASE ? PHASES : phase % PHASES;
        const u32 round = p.round + phase / PHASES;
        if (kind == ATTENTION) {
            attention_phase(p, s, ring, at, phase, round, warp, lane);
        } else {
            products(p, s, ring, phase, kind, round, token, warp, lane);
            if (kind == PHASES) head_phase(p, s, at.position);
            else store_rows(p, s, phase, kind, round);
        }
        // Faster than letting warps without rows to store go ahead (docs/CUDA.md).
        block_sync();
#if BARRIER_BUG
        if (phase < HEAD_PHASE) broken_barrier(p.barrier, (phase - p.first + 1) * BLOCKS);
#endif
    }
}
