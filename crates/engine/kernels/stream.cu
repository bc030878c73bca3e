// The stream of weights and cached keys that every warp reads, in the order of a forward pass.
//
// What a warp will multiply is known before the activations are: only those need other blocks. So each warp owns a
// ring of slots in shared memory, and a few more warps, the feeders, fill the rings: a lane serves a warp. They run ahead
// of the phases for as long as there is room, and never have more than a few slots of a ring under way: what lies in the
// memory's queues delays the values that blocks hand to each other.

#define THREADS (WARPS * 32)  // those that compute
// Slots of a ring that are under way, at most: of a layer's weights, of the output matrix.
#define UNDER_WAY 1
#define UNDER_WAY_HEAD 3

// Phases of a layer, in order; one more, HEAD, follows the last layer.
enum { QKV, ATTENTION, O_PROJ, GATE_UP, DOWN, PHASES };
#define HEAD_PHASE (LAYERS * PHASES)

#define SEGS(n) (((n) + SEG - 1) / SEG)

// Keys of one slot: a power of two, at most 32, in KEY_BYTES. A ring holds more of them where its slots are filled.
#define KEY_BYTES (SLOT >= 4096 ? 4096 : 2048)
#define KEYS_IN(n) (HEAD_DIM * 2 * (n) <= KEY_BYTES)
#define SLOT_KEYS (KEYS_IN(32) ? 32 : KEYS_IN(16) ? 16 : KEYS_IN(8) ? 8 : KEYS_IN(4) ? 4 : 2)
// Lanes that share a key: eight channels each, a power of two.
#define KEY_LANES (HEAD_DIM > 128 ? 32 : HEAD_DIM > 64 ? 16 : HEAD_DIM > 32 ? 8 : HEAD_DIM > 16 ? 4 : 2)
#define KEYS_AT_ONCE (32 / KEY_LANES)
#define KEY_ROUNDS (SLOT_KEYS / KEYS_AT_ONCE)
#define SPLITS (BLOCKS / HEADS < 64 ? BLOCKS / HEADS : 64)

// Of a step, for the whole grid.
struct Step {
    const Layer* layers;
    Mat embed, head;
    const float* final_norm;
    const float* rope;         // a row for each position: cosines, then sines
    u16* cache;                // [layer][keys, values][kv head][context][channel]
    const u16* row;            // the last layer's output, where only the last phase runs
    // Handed from block to block, as exchange.cu says: after attention, after the MLP, and in between.
    u64 *middle, *out, *qkv, *heads, *act;
    u64* partial;              // [query head][split][channels, maximum, sum]
    float* logits;
    u32* arrivals;             // of the last phase: counts up to the number of blocks and wraps
    float* best;               // [block][value, token]
    int* state;                // position and token of the next step
    u32* chosen;               // where the best token goes, by position; null: nowhere
    const u64* taps;           // addresses, 0 where off; null: all off
    u32* barrier;              // of the bug that is kept
    u32 round;                 // of the first layer
    int context;
    int token;                 // negative: as the last step chose
    int position;              // negative: after the last step's
    int first;                 // phase to start with: 0, or the last
};

struct Place {
    int position;
    bool reads_keys;
    int head, kv_head, split;
};

// Slots of keys that a warp takes before any other block does: to wait for one costs as much. To wait for several costs no
// more, so then keys go to as many blocks as have something to do.
#define CHUNKS 3
// A layer's keys as slots: chunks begin .. end, from key `first` on; spread over `splits` blocks.
struct Keys {
    int first, begin, end, splits;
};
__device__ __forceinline__ Keys keys_of(int position, int window) {
    Keys k;
    k.first = window && position >= window ? position - window + 1 : 0;
    k.begin = k.first / SLOT_KEYS;
    k.end = (position + SLOT_KEYS - 1) / SLOT_KEYS;
    const int chunks = k.end - k.begin;
    k.splits = chunks <= CHUNKS * WARPS ? 1 : min(SPLITS, (chunks + WARPS - 1) / WARPS);
    return k;
}
// Slots of keys and values of a ring that are under way, at most: 4096 bytes if all blocks read some, which is what memory
// needs to be busy; up to four times as much if fewer do.
__device__ __forceinline__ int keys_under_way(int splits) {
    return max(1, min(4, BLOCKS / (HEADS * splits))) * (4096 / KEY_BYTES);
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void slot_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void slot_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void slot_fill(u32 slot, u32 barrier, u64 from, u32 bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(slot),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void slot_release(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ bool slot_ready(u32 barrier, u32 parity) {
    u32 done;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done;
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
    if (kind == PHASES) return (int)((long long)VOCAB * block / BLOCKS);
    // Values are handed on in pairs.
    const int at = rows_of(kind) / 2 * block / BLOCKS * 2;
    return kind == GATE_UP ? 2 * at : at;
}

// Of a phase's row: the place of its matrix among a layer's, the matrix, and the row there.
__device__ __forceinline__ int place_of(int kind, int row) {
    return kind == QKV ? (row >= QD) + (row >= QD + KD) : kind == O_PROJ ? 3 : kind == GATE_UP ? 4 + (row & 1) : 6;
}
__device__ __forceinline__ const Mat& matrix_of(const Step& p, const Layer* layers, int phase, int kind, int row) {
    return kind == PHASES ? p.head : (&layers[phase / PHASES].q)[place_of(kind, row)];
}
__device__ __forceinline__ int row_within(int kind, int row) {
    if (kind == GATE_UP) return row >> 1;
    return kind == QKV && row >= QD ? row - (row >= QD + KD ? QD + KD : QD) : row;
}

// A warp's share of a phase: row segments, each times the same segment of the input, segment by segment and row by row.
// A slot takes up to ROWS rows of one segment and of one format.
struct Task {
    int i, end;     // of all row segments: the next, and where this warp's share ends
    int seg, row;   // of the next
    int rows;       // of this block
};
__device__ __forceinline__ Task first_task(int kind, int rows, int warp) {
    const int all = rows * segs_of(kind);
    Task t;
    t.i = all * warp / WARPS;
    t.end = all * (warp + 1) / WARPS;
    t.seg = t.i / max(1, rows);
    t.row = t.i - t.seg * rows;
    t.rows = rows;
    return t;
}
// Rows of the next slot, which have one format: a row of gate and one of up unless theirs differ, which `mixed` says; of q, k
// and v of two matrices only where all the file has one format. `first` is the block's first row.
__device__ __forceinline__ int rows_at_once(const Task& t, int kind, int first, bool mixed) {
    int n = min(min(ROWS, t.end - t.i), t.rows - t.row);
    if (ONE_FORMAT) return n;
    const int row = first + t.row;
    if (kind == QKV) n = min(n, row < QD ? QD - row : row < QD + KD ? QD + KD - row : n);
    return kind == GATE_UP && mixed ? 1 : n;
}
__device__ __forceinline__ void next_task(Task& t, int rows) {
    t.i += rows;
    t.row += rows;
    if (t.row == t.rows) {
        t.row = 0;
        t.seg++;
    }
}

// Fills rings until all that this launch reads is under way. All lanes stay together; each serves one warp, or none.
__device__ __forceinline__ void feed(const Step& p, const Place& at, const Layer* layers, const int2* bounds, u32 ring,
                                     u32 full, u32 empty, int warp) {
    ring += warp * SLOTS * SLOT;
    full += warp * SLOTS * 8;
    empty += warp * SLOTS * 8;
    int phase = warp < WARPS ? p.first : HEAD_PHASE + 1;
    int kind = p.first ? PHASES : QKV;
    int rows_from = bounds[kind].x;
    Task task = first_task(kind, bounds[kind].y, warp);
    bool mixed = false;             // whether gate and up have formats of their own
    int slot = 0, oldest = 0, under_way = 0;
    u32 filled = 1, landed = 0;     // parities; of slots that were never read, the first wait returns at once
    u64 keys = 0, plane = 0;        // of the running attention phase: the next slot's keys; from keys to values
    int many = 0;                   // slots of them that may be under way
    int left = 0, stride = 0;       // keys from the next slot's first one on; from this slot's to the next one's
    bool values = false;            // whether values are next
    while (__any_sync(0xffffffffu, phase <= HEAD_PHASE)) {
        bool go = phase <= HEAD_PHASE;
        if (go && left <= 0 && task.i >= task.end) {
            kind = ++phase == HEAD_PHASE ? PHASES : phase % PHASES;
            rows_from = bounds[kind].x;
            task = first_task(kind, kind == ATTENTION ? 0 : bounds[kind].y, warp);
            const Layer& l = layers[min(phase / PHASES, LAYERS - 1)];
            mixed = l.gate.format != l.up.format;
            const Keys of = keys_of(at.position, (int)l.window);
            if (phase < HEAD_PHASE && kind == ATTENTION && at.reads_keys && at.split < of.splits) {
                const int key = (of.begin + at.split * WARPS + warp) * SLOT_KEYS;
                left = at.position - key;
                stride = of.splits * WARPS * SLOT_KEYS;
                many = keys_under_way(of.splits);
                plane = (u64)KV_HEADS * p.context * HEAD_DIM * 2;
                keys = (u64)p.cache + phase / PHASES * 2 * plane + ((u64)at.kv_head * p.context + key) * HEAD_DIM * 2;
            }
            go = left > 0 || (task.i < task.end && phase <= HEAD_PHASE);
        }
        const int most = min(SLOTS, left > 0 ? many : phase == HEAD_PHASE ? UNDER_WAY_HEAD : UNDER_WAY);
        u32 on = 0, parity = 0;  // the barrier that this lane waits for
        if (go && under_way >= most) {
            if (slot_ready(full + oldest * 8, landed)) {
                under_way--;
                if (++oldest == SLOTS) {
                    oldest = 0;
                    landed ^= 1;
                }
            } else {
                go = false;
                on = full + oldest * 8;
                parity = landed;
            }
        }
        if (go && !slot_ready(empty + slot * 8, filled)) {
            go = false;
            on = empty + slot * 8;
            parity = filled;
        }
        // One copy, or two.
        u64 from = 0, second = 0;
        u32 bytes = 0, whole = 0;
        const u32 to = ring + slot * SLOT, done = full + slot * 8;
        if (go) {
            int rows = 1;
            if (left > 0) {
                bytes = min(SLOT_KEYS, left) * HEAD_DIM * 2;
                from = keys + (values ? plane : 0);
                if (values) {
                    left -= stride;
                    keys += (u64)stride * HEAD_DIM * 2;
                }
                values = !values;
            } else {
                rows = rows_at_once(task, kind, rows_from, mixed);
                const int row = rows_from + task.row;
                const Mat& m = matrix_of(p, layers, phase, kind, row);
                const u32 format = ONE_FORMAT ? the_format() : m.format;
                whole = segment_bytes(format, SEG);
                const int width = width_of(kind) - task.seg * SEG;
                bytes = width >= SEG ? whole : segment_bytes(format, width);
                const auto address = [&](const Mat& m, int row) {
                    return m.at + (u64)row_within(kind, row) * m.stride + task.seg * whole;
                };
                from = address(m, row);
                // It may be another matrix's.
                if (rows > 1) second = address(matrix_of(p, layers, phase, kind, row + 1), row + 1);
                next_task(task, rows);
            }
            slot_expect(done, rows * bytes);
            // Rows that follow each other, in memory as in the slot, are one copy.
            if (second == from + bytes && bytes == whole) {
                bytes += bytes;
                second = 0;
            }
            under_way++;
            if (++slot == SLOTS) {
                slot = 0;
                filled ^= 1;
            }
        }
        // One lane after the other: of copies that start together, racecheck takes all for the first lane's, which has not
        // waited for the others' slots.
#pragma unroll 1
        for (u32 lanes = __ballot_sync(0xffffffffu, go); lanes; lanes &= lanes - 1) {
            if ((threadIdx.x & 31) != __ffs(lanes) - 1) continue;
            slot_fill(to, done, from, bytes);
            if (second) slot_fill(to + whole, done, second, bytes);
        }
        // All that is left is waiting: it is to take few instructions from the warps that compute.
        const bool waits = on != 0;
        if (__any_sync(0xffffffffu, waits) && __all_sync(0xffffffffu, waits || phase > HEAD_PHASE))
            while (!__any_sync(0xffffffffu, waits && slot_ready(on, parity))) {}
        __syncwarp();
    }
}
