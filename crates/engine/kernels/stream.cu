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
    const u64* taps;           // addresses, 0 where off; null: all off
    u32 epoch;                 // what the barrier will have counted when all blocks of this launch start
    int context;
    int token;                 // negative: as the last step chose
    int position;              // negative: after the last step's
    int first, last;           // phases of this launch: first .. last
};

struct Cursor {
    int phase, kind, t;
    int lo, n;        // rows of this block, and tasks
    int chunk, chunks;
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

__device__ __forceinline__ void enter(Cursor& c, const Layer* layers, const Place& at, int phase) {
    c.phase = phase;
    c.kind = phase == HEAD_PHASE ? PHASES : phase % PHASES;
    c.t = 0;
    if (c.kind == ATTENTION) {
        const int window = (int)layers[phase / PHASES].window;
        const int first = window && at.position >= window ? at.position - window + 1 : 0;
        c.chunk = first / SLOT_KEYS;
        c.chunks = (at.position + SLOT_KEYS - 1) / SLOT_KEYS;
    } else {
        c.lo = first_row(c.kind, blockIdx.x);
        c.n = (first_row(c.kind, blockIdx.x + 1) - c.lo) * segs_of(c.kind);
    }
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

// The next task of this warp: where its bytes are and how many.
__device__ __forceinline__ bool next(Cursor& c, const Step& p, const Place& at, const Layer* layers, int warp,
                                     u64& from, u32& bytes) {
    while (c.phase < p.last) {
        if (c.kind == ATTENTION) {
            const int chunk = c.chunk + ((c.t >> 1) * SPLITS + at.split) * WARPS + warp;
            if (at.reads_keys && chunk < c.chunks) {
                const int key = chunk * SLOT_KEYS;
                const int keys = min(SLOT_KEYS, at.position - key);
                const long long plane = (long long)(c.phase / PHASES * 2 + (c.t & 1)) * KV_HEADS + at.kv_head;
                from = (u64)(p.cache + (plane * p.context + key) * HEAD_DIM);
                bytes = keys * HEAD_DIM * 2;
                c.t++;
                return true;
            }
        } else {
            const int i = c.t * WARPS + warp;
            if (i < c.n) {
                const int segs = segs_of(c.kind), seg = i % segs;
                int row = c.lo + i / segs;
                const Mat& m = matrix_of(p, layers, c.phase, c.kind, row);
                const u32 whole = segment_bytes(m.format, SEG);
                from = m.at + (u64)row * m.stride + seg * whole;
                bytes = seg + 1 < segs ? whole : segment_bytes(m.format, width_of(c.kind) - seg * SEG);
                c.t++;
                return true;
            }
        }
        if (c.phase + 1 >= p.last) {
            c.phase = p.last;
            return false;
        }
        enter(c, layers, at, c.phase + 1);
    }
    return false;
}
