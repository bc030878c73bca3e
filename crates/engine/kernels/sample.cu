// The choice of a token, by the definition of src/sampler. Each kernel is one pass over the logits; which run depends on
// the options. All sums are of whole numbers and all f64 operations are written one by one, so the result is that of the
// loop on a CPU, bit for bit, whatever the order of the threads.

#define BINS 256
#define PASSES 4  // of 8 bits of a logit's order
#define ONE (1ull << 40)
#define SEGMENT ((VOCAB + BINS - 1) / BINS)
#define NO_TOKEN 0xffffffffu

// `Tally` of cuda/sample.rs: zeroed before each choice.
struct Tally {
    u64 best;   // order of the largest logit, then the complement of its id
    u64 total;  // weight that top-k leaves
    u64 above[PASSES + 1];
    u32 top_k_prefix[PASSES + 1], left[PASSES + 1], top_p_prefix[PASSES + 1];
    u32 pad;
    u32 top_k_count[PASSES][BINS];
    u32 top_p_count[PASSES][BINS];
    u64 top_p_weight[PASSES][BINS];
    u64 segments[BINS];
};

// `ChoiceArgs` of cuda/sample.rs.
struct Choice {
    const float* logits;
    float* row;       // after the penalty; NaN has become minus infinity
    const u32* seen;  // a bit for each id that occurred; null: none did
    Tally* tally;
    u32* chosen;
    double temperature, top_p, min_p;
    u64 bits;
    float penalty;
    u32 top_k;
};

__device__ __forceinline__ u32 order_of(float x) {
    const u32 b = __float_as_uint(x + 0.0f);  // -0 is 0
    return b >> 31 ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ float of_order(u32 o) { return __uint_as_float(o >> 31 ? o & 0x7fffffffu : ~o); }

__device__ u64 weight_of(float x, float largest, double temperature) {
    const double series[12] = {1.0,
                               0.6931471805599453,
                               0.2402265069591007,
                               0.05550410866482158,
                               0.009618129107628477,
                               0.0013333558146428443,
                               0.0001540353039338161,
                               1.525273380405984e-5,
                               1.321548679014431e-6,
                               1.0178086009239699e-7,
                               7.054911620801123e-9,
                               4.4455382718708115e-10};
    if (x == largest) return ONE;
    const double power = __dmul_rn(__ddiv_rn(__dsub_rn((double)x, (double)largest), temperature), 1.4426950408889634);
    if (!(power > -41.0)) return 0;
    const double whole = rint(power), part = __dsub_rn(power, whole);
    double value = 0.0;
#pragma unroll
    for (int n = 11; n >= 0; n--) value = __dadd_rn(__dmul_rn(value, part), series[n]);
    const u64 w = (u64)__dmul_rn(value, __longlong_as_double((1063 + (long long)whole) << 52));
    return w < ONE ? w : ONE;
}

__device__ __forceinline__ float largest_of(const Choice& c) { return of_order((u32)(c.tally->best >> 32)); }

// The first pass: the logits after the penalty, and the best of them.
extern "C" __global__ void sample_row(Choice c) {
    __shared__ u64 best;
    if (threadIdx.x == 0) best = 0;
    __syncthreads();
    u64 mine = 0;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < VOCAB; i += gridDim.x * blockDim.x) {
        float x = c.logits[i];
        if (c.seen && (c.seen[i / 32] >> i % 32 & 1)) x = x < 0.0f ? __fmul_rn(x, c.penalty) : __fdiv_rn(x, c.penalty);
        if (x != x) x = NEG_INF;
        c.row[i] = x;
        const u64 key = (u64)order_of(x) << 32 | (u32)~i;
        mine = key > mine ? key : mine;
    }
    atomicMax(&best, mine);
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(&c.tally->best, best);
}

// Eight more bits of the order of the k-th largest logit, from the counts of the pass before.
__device__ void next_top_k(const Choice& c, int pass, u32& prefix, u32& left) {
    __shared__ u32 count[BINS];
    __shared__ u32 found[2];
    Tally* t = c.tally;
    if (pass == 0) {
        prefix = 0;
        left = c.top_k;
    } else {
        const u32 d = threadIdx.x, wanted = t->left[pass - 1];
        count[d] = t->top_k_count[pass - 1][d];
        __syncthreads();
        u32 above = 0;
        for (u32 e = d + 1; e < BINS; e++) above += count[e];
        if (above < wanted && wanted <= above + count[d]) {
            found[0] = t->top_k_prefix[pass - 1] << 8 | d;
            found[1] = wanted - above;
        }
        __syncthreads();
        prefix = found[0];
        left = found[1];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        t->top_k_prefix[pass] = prefix;
        t->left[pass] = left;
    }
}

// Passes 0 to 3 count; pass 4 only writes down what they found.
extern "C" __global__ void sample_top_k(Choice c, int pass) {
    __shared__ u32 count[BINS];
    u32 prefix, left;
    next_top_k(c, pass, prefix, left);
    if (pass == PASSES) return;
    count[threadIdx.x] = 0;
    __syncthreads();
    const int shift = 24 - 8 * pass;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < VOCAB; i += gridDim.x * blockDim.x) {
        const u32 o = order_of(c.row[i]);
        if ((u64)o >> (shift + 8) == prefix) atomicAdd(&count[o >> shift & 255], 1u);
    }
    __syncthreads();
    if (count[threadIdx.x]) atomicAdd(&c.tally->top_k_count[pass][threadIdx.x], count[threadIdx.x]);
}

// The smallest order that top-k leaves.
__device__ __forceinline__ u32 floor_of(const Choice& c) { return c.top_k ? c.tally->top_k_prefix[PASSES] : 0; }

// The weight that top-k leaves: what top-p is a share of.
extern "C" __global__ void sample_total(Choice c) {
    __shared__ u64 total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    const u32 floor = floor_of(c);
    const float largest = largest_of(c);
    u64 mine = 0;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < VOCAB; i += gridDim.x * blockDim.x) {
        const float x = c.row[i];
        if (order_of(x) >= floor) mine += weight_of(x, largest, c.temperature);
    }
    atomicAdd(&total, mine);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&c.tally->total, total);
}

// Eight more bits of the order of the smallest logit that top-p keeps: of the values present, the lowest above which less
// than the share lies. Where no value is such, the share is 0, and the largest is kept.
__device__ void next_top_p(const Choice& c, int pass, u32& prefix) {
    __shared__ u64 weight[BINS];
    __shared__ u32 lowest, highest;
    Tally* t = c.tally;
    u64 above = 0;
    prefix = 0;
    if (pass > 0) {
        const u32 d = threadIdx.x;
        weight[d] = t->top_p_weight[pass - 1][d];
        if (d == 0) {
            lowest = BINS;
            highest = 0;
        }
        __syncthreads();
        above = t->above[pass - 1];
        for (u32 e = d + 1; e < BINS; e++) above += weight[e];
        if (t->top_p_count[pass - 1][d]) {
            atomicMax(&highest, d);
            if (__ull2double_rn(above) < __dmul_rn(c.top_p, __ull2double_rn(t->total))) atomicMin(&lowest, d);
        }
        __syncthreads();
        const u32 digit = lowest < BINS ? lowest : highest;
        prefix = t->top_p_prefix[pass - 1] << 8 | digit;
        if (blockIdx.x == 0 && d == digit) {
            t->top_p_prefix[pass] = prefix;
            t->above[pass] = above;
        }
    }
}

extern "C" __global__ void sample_top_p(Choice c, int pass) {
    __shared__ u32 count[BINS];
    __shared__ u64 sums[BINS];
    u32 prefix;
    next_top_p(c, pass, prefix);
    if (pass == PASSES) return;
    count[threadIdx.x] = 0;
    sums[threadIdx.x] = 0;
    __syncthreads();
    const int shift = 24 - 8 * pass;
    const u32 floor = floor_of(c);
    const float largest = largest_of(c);
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < VOCAB; i += gridDim.x * blockDim.x) {
        const float x = c.row[i];
        const u32 o = order_of(x);
        if (o >= floor && (u64)o >> (shift + 8) == prefix) {
            atomicAdd(&count[o >> shift & 255], 1u);
            atomicAdd(&sums[o >> shift & 255], weight_of(x, largest, c.temperature));
        }
    }
    __syncthreads();
    if (count[threadIdx.x]) {
        atomicAdd(&c.tally->top_p_count[pass][threadIdx.x], count[threadIdx.x]);
        atomicAdd(&c.tally->top_p_weight[pass][threadIdx.x], sums[threadIdx.x]);
    }
}

// The weight of a logit, 0 where it is not kept.
__device__ __forceinline__ u64 kept_weight(const Choice& c, float x, u32 smallest, float largest) {
    if (order_of(x) < smallest) return 0;
    const u64 w = weight_of(x, largest, c.temperature);
    return __ull2double_rn(w) >= __dmul_rn(c.min_p, (double)ONE) ? w : 0;
}

__device__ __forceinline__ u32 smallest_of(const Choice& c) {
    return c.top_p < 1.0 ? c.tally->top_p_prefix[PASSES] : floor_of(c);
}

// Sums of stretches of ids, in which the draw is then looked for.
extern "C" __global__ void sample_segments(Choice c) {
    const u32 smallest = smallest_of(c);
    const float largest = largest_of(c);
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < VOCAB; i += gridDim.x * blockDim.x) {
        const u64 w = kept_weight(c, c.row[i], smallest, largest);
        if (w) atomicAdd(&c.tally->segments[i / SEGMENT], w);
    }
}

// One block: the draw, or the best token.
extern "C" __global__ void sample_draw(Choice c) {
    __shared__ u64 sums[BINS];
    __shared__ u64 left;
    __shared__ u32 segment;
    const u64 best = c.tally->best;
    if (of_order((u32)(best >> 32)) == NEG_INF || c.temperature == 0.0) {
        if (threadIdx.x == 0) *c.chosen = c.temperature == 0.0 && of_order((u32)(best >> 32)) != NEG_INF ? ~(u32)best : NO_TOKEN;
        return;
    }
    sums[threadIdx.x] = c.tally->segments[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        u64 total = 0;
        for (u32 s = 0; s < BINS; s++) total += sums[s];
        left = __umul64hi(total, c.bits);
        segment = 0;
        while (segment + 1 < BINS && left >= sums[segment]) left -= sums[segment++];
    }
    __syncthreads();
    const u32 smallest = smallest_of(c), from = segment * SEGMENT;
    const float largest = largest_of(c);
    for (u32 part = 0; part < SEGMENT; part += BINS) {
        const u32 i = from + part + threadIdx.x;
        __syncthreads();
        sums[threadIdx.x] = part + threadIdx.x < SEGMENT && i < VOCAB ? kept_weight(c, c.row[i], smallest, largest) : 0;
        __syncthreads();
        if (threadIdx.x == 0 && left != ~0ull) {
            for (u32 n = 0; n < BINS; n++) {
                if (left < sums[n]) {
                    *c.chosen = from + part + n;
                    left = ~0ull;
                    break;
                }
                left -= sums[n];
            }
        }
    }
}
