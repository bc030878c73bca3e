// What blocks hand to each other in a step.
//
// A pair of values travels in one word of 8 bytes with the number of the round that it belongs to; who needs it looks at
// the word until the round is there. So no barrier stands between phases: a value is read one trip after it is written.
// Rounds only ever grow, one a layer, across launches; nothing is set back. A word is written again only by blocks that
// got, through the phases in between, something from every block that had to read it before.

__device__ __forceinline__ void publish(u64* to, u32 value, u32 round) {
    const u64 word = (u64)round << 32 | value;
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

__device__ __forceinline__ u64 look(const u64* from) {
    u64 word;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    return word;
}

// Whether the word is still of an earlier round.
__device__ __forceinline__ bool early(u64 word, u32 round) {
#if BARRIER_BUG
    return false;
#else
    return (int)((u32)(word >> 32) - round) < 0;
#endif
}

// Whether the word is of another round, for words that are written in some rounds only: what was left in them may be so old
// that it counts as later.
__device__ __forceinline__ bool other(u64 word, u32 round) {
#if BARRIER_BUG
    return false;
#else
    return (u32)(word >> 32) != round;
#endif
}

__device__ __forceinline__ ulonglong2 look_at_two(const u64* from) {
    ulonglong2 words;
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(words.x), "=l"(words.y) : "l"(from) : "memory");
    return words;
}

__device__ __forceinline__ u32 collect(const u64* from, u32 round) {
    u64 word = look(from);
    while (other(word, round)) word = look(from);
    return (u32)word;
}

// Waits for the warps that compute: the feeder goes its own way.
__device__ __forceinline__ void block_sync() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

#if BARRIER_BUG
// The barrier of a bug that is kept: between phases every block arrives at a counter that block 0 sets back at the start
// of each launch, while others have passed on what it held from the last one. Rounds are not looked at.
__device__ __forceinline__ void broken_barrier(u32* counter, u32 target) {
    block_sync();
    if (threadIdx.x == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        u32 seen;
        // Arrivals were thrown away; without a limit this would wait for ever.
        for (int patience = 0; patience < 200; patience++) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
            if (seen >= target) break;
        }
    }
    block_sync();
}
#endif
