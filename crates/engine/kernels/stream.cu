// The stream of weights and cached keys that every warp reads, in the order of a forward pass.
//
// What a warp will multiply is known before the activations are: only those need other blocks. So each warp owns a
// ring of slots in shared memory and refills a slot as soon as it is read, across phases and grid barriers. The memory
// never waits for a barrier; a warp at a barrier finds its next slots full.

#define WARPS 16
#define THREADS (WARPS * 32)
#define SLOT 2048

// Phases of a layer, in order; one more, HEAD, follows the last layer.
enum { QKV, ATTENTION, O_PROJ, GATE_UP, DOWN, PHASES };
#define HEAD_PHASE (LAYERS * PHASES)

#define SEGS(n) (((n) + SEG - 1) / SEG)

// Keys of one slot: as many as fit, at most 32, a power of two.
#define SLOT_KEYS (HEAD_DIM > 256 ? 2 : HEAD_DIM > 128 ? 4 : HEAD_DIM > 64 ? 8 : HEAD_DIM > 32 ? 16 : 32)
// Lanes that share a key: eight channels each, a power of two.
#define KEY_LANES (HEAD_DIM > 128 ? 32 : HEAD_DIM > 64 ? 16 : HEAD_DIM > 32 ? 8 : HEAD_DIM > 16 ? 4 : 2)
#define KEYS_AT_ONCE (32 / KEY_LANES)
#define KEY_ROUNDS (SLOT_KEYS / KEYS_AT_ONCE)
#define SPLITS (BLOCKS / KV_HEADS)

// Of a step, for the whole grid.
struct Step {
    const Layer* layers;
    Mat embed, head;
    const float* final_norm;
    const float* rope;         // a row for each position: cosines, then sines
    u16* cache;                // [layer][keys, values][kv head][context][channel]
    u16 *x, *qkv, *heads, *act;
    float* logits;
    float* partial;            // [kv head][split][query head of the group][channels, maximum, sum]
    u32* arrivals;             // [kv head], then one for the last phase; each counts up to its number and wraps
    float* best;               // [block][value, token]
    u32* barrier;              // counts up for ever
    int* state;                // position and token of the next step
    u32* chosen;               // where the best token goes, by position; null: nowhere
    const uint4* schedule;     // what each warp reads, in order: address (two words), bytes, unused
    const u32* starts;         // [block][warp][phase]: where a phase begins in the schedule
    const u64* taps;           // addresses, 0 where off; null: all off
    u32 epoch;                 // what the barrier will have counted when all blocks of this launch start
    int context;
    int token;                 // negative: as the last step chose
    int position;              // negative: after the last step's
    int first, last;           // phases of this launch: first .. last
};

struct Place {
    int position;
    bool reads_keys;
    int kv_head, split;
};

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void slot_init(u32 barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void slot_fill(u32 slot, u32 barrier, u64 from, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(slot),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void slot_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!done);
}

// This block's rows of a phase: pairs of gate and up rows count as two.
__device__ __forceinline__ int rows_of(int kind) {
    return kind == QKV ? QD + 2 * KD : kind == GATE_UP ? FFN : kind == PHASES ? VOCAB : D_MODEL;
}
__device__ __forceinline__ int segs_of(int kind) {
    return kind == O_PROJ ? SEGS(QD) : kind == DOWN ? SEGS(FFN) : SEGS(D_MODEL);
}
__device__ __forceinline__ int width_of(int kind) { return kind == O_PROJ ? QD : kind == DOWN ? FFN : D_MODEL; }
__device__ __forceinline__ int first_row(int kind, int block) {
    const int at = (int)((long long)rows_of(kind) * block / BLOCKS);
    return kind == GATE_UP ? 2 * at : at;
}

// The matrix and row of row r of a phase.
__device__ __forceinline__ const Mat& matrix_of(const Step& p, const Layer* layers, int phase, int kind, int& r) {
    const Mat* m = &layers[phase / PHASES].q;
    switch (kind) {
        case QKV:
            if (r < QD) return m[0];
            r -= QD;
            if (r < KD) return m[1];
            r -= KD;
            return m[2];
        case O_PROJ: return m[3];
        case GATE_UP: {
            const int up = r & 1;
            r >>= 1;
            return m[4 + up];
        }
        case DOWN: return m[6];
        default: return p.head;
    }
}

// What each warp reads of the weights, in order: the same in every step, so it is written down once. Attention's place
// is marked by an entry of 0 bytes with the layer as its address: keys depend on the position.
extern "C" __global__ void schedule(const __grid_constant__ Step p, uint4* table, u32* starts, int most) {
    const int warp = threadIdx.x, id = blockIdx.x * WARPS + warp;
    u32 at = (u32)id * most;
    for (int phase = 0; phase <= HEAD_PHASE; phase++) {
        starts[id * (HEAD_PHASE + 2) + phase] = at;
        const int kind = phase == HEAD_PHASE ? PHASES : phase % PHASES;
        if (kind == ATTENTION) {
            table[at++] = make_uint4(phase / PHASES, 0, 0, 0);
            continue;
        }
        const int segs = segs_of(kind), lo = first_row(kind, blockIdx.x);
        const int n = (first_row(kind, blockIdx.x + 1) - lo) * segs;
        for (int i = warp; i < n; i += WARPS) {
            const int seg = i % segs;
            int row = lo + i / segs;
            const Mat& m = matrix_of(p, p.layers, phase, kind, row);
            const u32 whole = segment_bytes(m.format, SEG);
            const u64 from = m.at + (u64)row * m.stride + seg * whole;
            const u32 bytes = seg + 1 < segs ? whole : segment_bytes(m.format, width_of(kind) - seg * SEG);
            table[at++] = make_uint4((u32)from, (u32)(from >> 32), bytes, 0);
        }
    }
    starts[id * (HEAD_PHASE + 2) + HEAD_PHASE + 1] = at;
}

// A warp's place in its schedule. Entries are read 32 at a time, one a lane, long before they are needed.
struct Feed {
    u32 at, end, base;  // entries of the table
    uint4 now, then;    // this lane's entry of the running 32 and of the next
    u32 marks;          // which of the running 32 stand for attention
    u64 keys;           // of the running attention phase: the next slot's keys
    u64 plane;          // from keys to values, in bytes
    int left, values;   // keys from the next slot's first one on; whether values are next
};

__device__ __forceinline__ uint4 feed_read(const Step& p, u32 first, u32 end, int lane) {
    return first + lane < end ? __ldg(p.schedule + first + lane) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void feed_start(Feed& f, const Step& p, int warp, int lane) {
    const u32* starts = p.starts + (blockIdx.x * WARPS + warp) * (HEAD_PHASE + 2);
    f.base = starts[p.first];
    f.at = 0;
    f.end = starts[p.last] - f.base;
    f.left = 0;
    f.values = 0;
    f.now = feed_read(p, f.base, f.base + f.end, lane);
    f.then = feed_read(p, f.base + 32, f.base + f.end, lane);
    f.marks = __ballot_sync(0xffffffffu, f.now.z == 0);
}

// Fills a slot with what comes next; the lane that holds the entry does it. Nothing happens after the last entry.
__device__ __forceinline__ void feed_slot(Feed& f, const Step& p, const Place& at, const Layer* layers, int warp,
                                          int lane, u32 slot, u32 barrier) {
    for (;;) {
        if (f.left > 0) {
            if (lane == 0)
                slot_fill(slot, barrier, f.keys + (f.values ? f.plane : 0), min(SLOT_KEYS, f.left) * HEAD_DIM * 2);
            if (f.values) {
                f.left -= SPLITS * WARPS * SLOT_KEYS;
                f.keys += (u64)SPLITS * WARPS * SLOT_KEYS * HEAD_DIM * 2;
            }
            f.values ^= 1;
            return;
        }
        if (f.at >= f.end) return;
        const int i = f.at & 31;
        const bool weights = !(f.marks >> i & 1);
        u32 layer = 0;
        if (weights) {
            if (lane == i) slot_fill(slot, barrier, (u64)f.now.y << 32 | f.now.x, f.now.z);
        } else {
            layer = __shfl_sync(0xffffffffu, f.now.x, i);
        }
        if ((++f.at & 31) == 0) {
            f.now = f.then;
            f.then = feed_read(p, f.base + f.at + 32, f.base + f.end, lane);
            f.marks = __ballot_sync(0xffffffffu, f.now.z == 0);
        }
        if (weights) return;
        if (!at.reads_keys) continue;
        const int window = (int)layers[layer].window;
        const int first = window && at.position >= window ? at.position - window + 1 : 0;
        const int key = (first / SLOT_KEYS + at.split * WARPS + warp) * SLOT_KEYS;
        f.left = at.position - key;
        f.plane = (u64)KV_HEADS * p.context * HEAD_DIM * 2;
        f.keys = (u64)p.cache + (2 * layer * f.plane) + ((u64)at.kv_head * p.context + key) * HEAD_DIM * 2;
    }
}
