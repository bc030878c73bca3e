// Rows of weights times the input, on tensor cores.
//
// A round takes 256 elements of a row as eight groups of 32, a group for four lanes: an octet of lanes has a fragment's
// row. The groups are rows of one matrix and, of the input, columns of the other; what is wanted of their product is one
// column of each row. Two rows of weights share an instruction: it has sixteen rows. Every lane gives its own weights and
// the input's elements at the same places, so nothing has to change places. Quants are whole numbers that bf16 holds
// exactly; scales are applied to sums.
//
// Where there are scales, a group's columns move on by two from round to round: so what is wanted of the four rounds lies
// in four lanes, and each lane scales one group of a row.

#define NEED_TOTALS (HAS(Q4_1) || HAS(Q4_K) || HAS(Q5_K))
#define PACKED ((FORMATS & ~(1 << BF16 | 1 << F16 | 1 << F32)) != 0)
#define ROUNDS (SEG / 256)
#define ROWS 2  // that share an instruction: of a slot
// Whether all rows are whole segments.
#define WHOLE (D_MODEL % SEG == 0 && QD % SEG == 0 && FFN % SEG == 0)
// A lane has eight elements of a round, in two fours: where quants are packed, of a group of 16 + 16.
#define NEXT_FOUR (PACKED ? 16 : 4)
// Where a lane's fours begin in round `it`, of the input and of weights without scales.
__device__ __forceinline__ int first_four(int it, int lane) {
    return PACKED ? it * 256 + ((lane / 4 - 2 * it) & 7) * 32 + lane % 4 * 4 : it * 256 + lane * 8;
}
// The round whose group this lane scales, and that group, of 32.
__device__ __forceinline__ int own_round(int lane) { return (lane - lane / 8) & 3; }
__device__ __forceinline__ int own_group(int lane) { return own_round(lane) * 8 + lane / 4; }

// A product of fragments: of the first row of weights, then of the second, the columns 2 t and 2 t + 1.
struct Sums {
    float a, b, c, d;
};
__device__ __forceinline__ Sums fragments(uint2 first, uint2 second, uint2 x) {
    Sums s;
    asm("{ .reg .f32 z; mov.f32 z, 0f00000000;\n"
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {z, z, z, z}; }"
        : "=f"(s.a), "=f"(s.b), "=f"(s.c), "=f"(s.d)
        : "r"(first.x), "r"(second.x), "r"(first.y), "r"(second.y), "r"(x.x), "r"(x.y));
    return s;
}
__device__ __forceinline__ void add_fragments(Sums& s, uint2 first, uint2 second, uint2 x) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(s.a), "+f"(s.b), "+f"(s.c), "+f"(s.d)
        : "r"(first.x), "r"(second.x), "r"(first.y), "r"(second.y), "r"(x.x), "r"(x.y));
}

// Of the products of all rounds what is wanted of this lane's own: of the first row and of the second.
__device__ __forceinline__ float2 own(const Sums of[ROUNDS], int lane) {
    float2 v[4];
#pragma unroll
    for (int it = 0; it < 4; it++) {
        const Sums s = it < ROUNDS ? of[it % ROUNDS] : Sums{0, 0, 0, 0};
        v[it] = lane & 4 ? make_float2(s.b, s.d) : make_float2(s.a, s.c);
    }
    const int r = own_round(lane);
    const float2 low = r & 1 ? v[1] : v[0], high = r & 1 ? v[3] : v[2];
    return r & 2 ? high : low;
}

// Eight elements as fragments take them: those that meet the first four, then the others. Of packed quants a pair is two
// even or two odd places of a four.
struct Eight {
    uint2 first, second;
};
__device__ __forceinline__ Eight eight(uint2 x, uint2 y) {
    if (!PACKED) return Eight{make_uint2(x.x, y.x), make_uint2(x.y, y.y)};
    return Eight{make_uint2(__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.x, x.y, 0x7632)),
                 make_uint2(__byte_perm(y.x, y.y, 0x5410), __byte_perm(y.x, y.y, 0x7632))};
}
// Eight elements in bf16, of which those from `length` on are zero.
__device__ __forceinline__ Eight eight_at(const u16* p, int e, int length) {
    const uint2 none = make_uint2(0, 0);
    if (!PACKED) {
        const uint4 w = e < length ? *(const uint4*)(p + e) : make_uint4(0, 0, 0, 0);
        return eight(make_uint2(w.x, w.y), make_uint2(w.z, w.w));
    }
    return eight(e < length ? *(const uint2*)(p + e) : none, e + NEXT_FOUR < length ? *(const uint2*)(p + e + NEXT_FOUR) : none);
}

// A lane's part of a segment of the input.
struct Input {
    Eight x[ROUNDS];
    float total;  // of the group that this lane scales, where a format needs it
};
__device__ __forceinline__ Input input_of(const u16* x, int length, int lane) {
    Input in;
    in.total = 0;
#pragma unroll
    for (int it = 0; it < ROUNDS; it++) in.x[it] = eight_at(x, first_four(it, lane), length);
    if (NEED_TOTALS) {
        const uint2 ones = make_uint2(0x3f803f80u, 0x3f803f80u);
        Sums s[ROUNDS];
#pragma unroll
        for (int it = 0; it < ROUNDS; it++) {
            s[it] = fragments(ones, ones, in.x[it].first);
            add_fragments(s[it], ones, ones, in.x[it].second);
        }
        in.total = own(s, lane).x;
    }
    return in;
}

__device__ __forceinline__ u32 minus(u32 a, u32 b) {
    u32 r;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
__device__ __forceinline__ u32 turned(u32 w, int left) { return __funnelshift_l(w, w, left); }
__device__ __forceinline__ u32 word(const u8* p) { return *(const u32*)p; }
// Nibbles of a word whose bit `from` comes before that of the first one's lowest: 16 + q has q in the upper bits of its
// fraction. Of each 16 bits one, so twice: even places and odd ones.
__device__ __forceinline__ uint2 nibbles(u32 w, int from) {
    return make_uint2((turned(w, 3 - from) & 0x00780078u) | 0x41804180u, (turned(w, -5 - from) & 0x00780078u) | 0x41804180u);
}
// Five bits: nibbles as above and, in bit `bit` of every byte of `top`, the upper one; 32 + q.
__device__ __forceinline__ uint2 fives(u32 w, int from, u32 top, int bit) {
    const uint2 high = make_uint2(turned(top, 6 - bit) & 0x00400040u, turned(top, -2 - bit) & 0x00400040u);
    return make_uint2((turned(w, 2 - from) & 0x003c003cu) | 0x42004200u | high.x,
                      (turned(w, -6 - from) & 0x003c003cu) | 0x42004200u | high.y);
}
// Four signed bytes: 128 + q has q in its fraction; the sign's bit makes 256 of the 128 that is taken off.
__device__ __forceinline__ uint2 bytes(u32 q) {
    const u32 odd = q >> 8, base = 0x43004300u;
    return make_uint2(minus((q & 0x007f007fu) | base, (q & 0x00800080u) | base),
                      minus((odd & 0x007f007fu) | base, (odd & 0x00800080u) | base));
}
// Bit `from` + i of `bits` as the lowest bit of byte i.
__device__ __forceinline__ u32 spread(u32 bits, int from) { return ((bits >> from & 15) * 0x00204081u) & 0x01010101u; }

__device__ __forceinline__ uint2 less(uint2 x, u32 twice) { return make_uint2(minus(x.x, twice), minus(x.y, twice)); }

// Eight numbers of six bits, as cuda/weights.rs places them: 128 + q, of which 160 are taken off.
__device__ __forceinline__ Eight sixes(u32 q, u32 rest) {
    const u32 fields = 0x003f003fu, base = 0x43004300u, off = 0x43204320u, apart = __byte_perm(rest, 0, 0x4140);
    const u32 last = (q >> 12 & 0x000f000fu) | base | (apart >> 2 & 0x00300030u);
    return Eight{less(make_uint2((q & fields) | base, (q >> 6 & fields) | base), off),
                 less(make_uint2((apart & fields) | base, last), off)};
}

// A lane's elements of round `it` of a row: whole numbers. Those of formats with minima are more than the quants by 16, of
// Q5_K by 32: `scaled` takes that off the sum.
template <u32 FORMAT>
__device__ __forceinline__ Eight quants(const u8* row, int it, int length, int lane) {
    const int g = lane / 4, t = lane % 4 * 4;
    const int block = it * 8 + g;  // of 32
    if constexpr (FORMAT == BF16) return eight_at((const u16*)row, first_four(it, lane), WHOLE ? SEG : length);
    if constexpr (FORMAT == Q4_0 || FORMAT == Q4_1 || FORMAT == Q4_K) {
        const u32 q = word(FORMAT == Q4_K ? row + it * 148 + 20 + g * 16 + t : row + block * 20 + 4 + t);
        if (FORMAT == Q4_0) return Eight{less(nibbles(q, 0), 0x41c041c0u), less(nibbles(q, 4), 0x41c041c0u)};
        return Eight{nibbles(q, 0), nibbles(q, 4)};
    }
    if constexpr (FORMAT == Q5_0) {
        const u8* b = row + block * 24;
        const u32 q = word(b + 8 + t), top = word(b + 4);
        return Eight{less(fives(q, 0, spread(top, t), 0), 0x42404240u), less(fives(q, 4, spread(top, 16 + t), 0), 0x42404240u)};
    }
    if constexpr (FORMAT == Q8_0) {
        const u8* b = row + block * 36 + 4 + t;
        return Eight{bytes(word(b)), bytes(word(b + 16))};
    }
    if constexpr (FORMAT == Q5_K) {
        const u8* b = row + it * 180 + 20 + t;
        const u32 q = word(b + 32 + g * 16);
        return Eight{fives(q, 0, word(b), g), fives(q, 4, word(b + 16), g)};
    }
    if constexpr (FORMAT == Q6_K) {
        const u8* b = row + it * 212;
        return sixes(word(b + lane * 4), *(const u16*)(b + 128 + lane * 2));
    }
    return Eight{};
}

__device__ __forceinline__ float2 halves(u32 h) {
    float a, b;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(a), "=f"(b) : "r"(h));
    return make_float2(a, b);
}

// What this lane's group adds to a row's product: its quants' sum, for Q6_K of its two halves, and the input's.
template <u32 FORMAT>
__device__ __forceinline__ float scaled(const u8* row, float sum, float second, float total, int lane) {
    const int block = own_group(lane);
    if constexpr (FORMAT == Q4_0) return half_at(row + block * 20) * sum;
    if constexpr (FORMAT == Q4_1) {
        const float2 d = halves(word(row + block * 20));
        return fmaf(d.x, fmaf(-16.0f, total, sum), d.y * total);
    }
    if constexpr (FORMAT == Q5_0) return half_at(row + block * 24) * sum;
    if constexpr (FORMAT == Q8_0) return half_at(row + block * 36) * sum;
    if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) {
        const u8* b = row + own_round(lane) * (FORMAT == Q4_K ? 148 : 180);
        const float2 d = halves(word(b));
        const u32 of = *(const u16*)(b + 4 + lane / 4 * 2);
        const float quants = fmaf(FORMAT == Q4_K ? -16.0f : -32.0f, total, sum);
        return fmaf(d.x * small(of & 255), quants, -(d.y * small(of >> 8)) * total);
    }
    if constexpr (FORMAT == Q6_K) {
        const u8* b = row + own_round(lane) * 212;
        const u32 of = *(const u16*)(b + 192 + lane / 4 * 2) ^ 0x8080u;
        return half_at(b + 208) * fmaf(small(of & 255) - 128.0f, sum, (small(of >> 8) - 128.0f) * second);
    }
    return 0;
}

// Floats without tensor cores.
template <u32 FORMAT>
__device__ __forceinline__ float plain(const u8* row, const Input& in, int length, int lane) {
    float sum = 0;
#pragma unroll
    for (int it = 0; it < ROUNDS; it++) {
        const Eight x = in.x[it];
        const float v[8] = {low(x.first.x), PACKED ? low(x.first.y) : high(x.first.x), PACKED ? high(x.first.x) : low(x.second.x),
                            PACKED ? high(x.first.y) : high(x.second.x), PACKED ? low(x.second.x) : low(x.first.y),
                            PACKED ? low(x.second.y) : high(x.first.y), PACKED ? high(x.second.x) : low(x.second.y),
                            high(x.second.y)};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int e = first_four(it, lane) + (i < 4 ? i : NEXT_FOUR + i - 4);
            if (e < length) sum = fmaf(FORMAT == F16 ? half_at(row + e * 2) : ((const float*)row)[e], v[i], sum);
        }
    }
    return sum;
}

// A lane's elements of a slot's rows. They are taken before the input is there. Where a slot has one row, what was there
// before is taken for the second and meets nothing else.
struct Rows {
    Eight first[ROUNDS], second[ROUNDS];
};
template <u32 FORMAT>
__device__ __forceinline__ void unpack_as(const u8* slot, int length, int lane, Rows& rows) {
#pragma unroll
    for (int it = 0; it < ROUNDS; it++) {
        rows.first[it] = quants<FORMAT>(slot, it, length, lane);
        rows.second[it] = quants<FORMAT>(slot + segment_bytes(FORMAT, SEG), it, length, lane);
    }
}
template <u32 FORMAT = BF16>
__device__ __forceinline__ void unpack_rows(u32 format, const u8* slot, int length, int lane, Rows& rows) {
    if constexpr (FORMAT < Q6_K) {
        if (!HAS(FORMAT) || format != FORMAT) return unpack_rows<FORMAT + 1>(format, slot, length, lane, rows);
    }
    unpack_as<FORMAT>(slot, length, lane, rows);
}

// This lane's parts of the products of a slot's rows. Nothing branches, so that all of it is under way at once.
template <u32 FORMAT>
__device__ __forceinline__ float2 multiply_as(const u8* slot, const Rows& rows, const Input& in, int length, int lane) {
    const u8* next = slot + segment_bytes(FORMAT, SEG);
    if constexpr (FORMAT == F16 || FORMAT == F32) {
        return make_float2(plain<FORMAT>(slot, in, length, lane), plain<FORMAT>(next, in, length, lane));
    } else if constexpr (FORMAT == BF16) {
        // Nothing to scale: all rounds add up in one place.
        const bool has_sum = (lane & 3) == lane >> 3;
        Sums s = {0, 0, 0, 0}, t = {0, 0, 0, 0};
#pragma unroll
        for (int it = 0; it < ROUNDS; it++) {
            add_fragments(s, rows.first[it].first, rows.second[it].first, in.x[it].first);
            add_fragments(t, rows.first[it].second, rows.second[it].second, in.x[it].second);
        }
        if (!has_sum) return make_float2(0, 0);
        return lane & 4 ? make_float2(s.b + t.b, s.d + t.d) : make_float2(s.a + t.a, s.c + t.c);
    } else {
        // Of Q6_K, whose groups have two scales, sums of halves.
        constexpr bool halved = FORMAT == Q6_K;
        Sums s[ROUNDS], t[ROUNDS];
#pragma unroll
        for (int it = 0; it < ROUNDS; it++) {
            s[it] = fragments(rows.first[it].first, rows.second[it].first, in.x[it].first);
            if (halved) t[it] = fragments(rows.first[it].second, rows.second[it].second, in.x[it].second);
            else add_fragments(s[it], rows.first[it].second, rows.second[it].second, in.x[it].second);
        }
        const float2 sums = own(s, lane), others = halved ? own(t, lane) : make_float2(0, 0);
        // Past the row's end the slot holds what was there before.
        if (!(WHOLE && ROUNDS == 4) && own_group(lane) * 32 >= length) return make_float2(0, 0);
        return make_float2(scaled<FORMAT>(slot, sums.x, others.x, in.total, lane),
                           scaled<FORMAT>(next, sums.y, others.y, in.total, lane));
    }
}
template <u32 FORMAT = BF16>
__device__ __forceinline__ float2 multiply(u32 format, const u8* slot, const Rows& rows, const Input& in, int length, int lane) {
    if constexpr (FORMAT < Q6_K) {
        if (!HAS(FORMAT) || format != FORMAT) return multiply<FORMAT + 1>(format, slot, rows, in, length, lane);
    }
    return multiply_as<FORMAT>(slot, rows, in, length, lane);
}
