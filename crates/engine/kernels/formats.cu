// Stored weights to numbers, eight at a time, by the same arithmetic as the checkpoint reader's.

enum { BF16, F16, F32, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K };
#define HAS(format) ((FORMATS >> (format)) & 1)

// The one format of all matrices, if there is but one: known when compiled.
#define ONE_FORMAT ((FORMATS & (FORMATS - 1)) == 0)
__device__ constexpr u32 the_format() {
    u32 f = 0;
    while (!((FORMATS >> f) & 1)) f++;
    return f;
}

// Bytes of a segment with n elements. Blocks begin at multiples of four bytes, and so do their quants: cuda/weights.rs
// puts two bytes behind the scale of a Q4_0, Q5_0 or Q8_0 block and at the end of a Q6_K one, and gives every scale and
// every minimum of a Q4_K or Q5_K block a byte, group by group.
__device__ __forceinline__ u32 segment_bytes(u32 format, u32 n) {
    u32 of256 = 212;
    if ((HAS(BF16) && format == BF16) || (HAS(F16) && format == F16)) of256 = 512;
    if (HAS(F32) && format == F32) of256 = 1024;
    if ((HAS(Q4_0) && format == Q4_0) || (HAS(Q4_1) && format == Q4_1)) of256 = 160;
    if (HAS(Q5_0) && format == Q5_0) of256 = 192;
    if (HAS(Q8_0) && format == Q8_0) of256 = 288;
    if (HAS(Q4_K) && format == Q4_K) of256 = 148;
    if (HAS(Q5_K) && format == Q5_K) of256 = 180;
    return (n / 8 * of256 / 32 + 15) & ~15u;
}

// A small whole number as float without a conversion instruction.
__device__ __forceinline__ float small(u32 n) { return __uint_as_float(0x4b000000u | n) - 8388608.0f; }

// Eight bytes at a multiple of four.
__device__ __forceinline__ uint2 bytes8(const u8* p) { return make_uint2(((const u32*)p)[0], ((const u32*)p)[1]); }
__device__ __forceinline__ u32 byte_of(uint2 b, int i) { return ((i < 4 ? b.x : b.y) >> (8 * (i & 3))) & 255; }

// Elements e .. e + 8 of a segment; e is a multiple of 8.
__device__ __forceinline__ void load8(u32 format, const u8* s, u32 e, float out[8]) {
    const int r = e & 31;
    if (HAS(BF16) && format == BF16) {
        const uint4 w = *(const uint4*)(s + e * 2);
        out[0] = low(w.x); out[1] = high(w.x); out[2] = low(w.y); out[3] = high(w.y);
        out[4] = low(w.z); out[5] = high(w.z); out[6] = low(w.w); out[7] = high(w.w);
        return;
    }
    if (HAS(F16) && format == F16) {
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = half_at(s + (e + i) * 2);
        return;
    }
    if (HAS(F32) && format == F32) {
        const float4 a = *(const float4*)(s + e * 4), b = *(const float4*)(s + e * 4 + 16);
        out[0] = a.x; out[1] = a.y; out[2] = a.z; out[3] = a.w;
        out[4] = b.x; out[5] = b.y; out[6] = b.z; out[7] = b.w;
        return;
    }
    if (HAS(Q4_0) && format == Q4_0) {
        const u8* b = s + (e >> 5) * 20;
        const float d = half_at(b);
        const uint2 q = bytes8(b + 4 + (r & 15));
        const int shift = r >> 4 << 2;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * (small(byte_of(q, i) >> shift & 15) - 8.0f);
        return;
    }
    if (HAS(Q4_1) && format == Q4_1) {
        const u8* b = s + (e >> 5) * 20;
        const float d = half_at(b), m = half_at(b + 2);
        const uint2 q = bytes8(b + 4 + (r & 15));
        const int shift = r >> 4 << 2;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * small(byte_of(q, i) >> shift & 15) + m;
        return;
    }
    if (HAS(Q5_0) && format == Q5_0) {
        const u8* b = s + (e >> 5) * 24;
        const float d = half_at(b);
        const u32 fifth = *(const u32*)(b + 4) >> r;
        const uint2 q = bytes8(b + 8 + (r & 15));
        const int shift = r >> 4 << 2;
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = d * (small((byte_of(q, i) >> shift & 15) | (fifth >> i & 1) << 4) - 16.0f);
        return;
    }
    if (HAS(Q8_0) && format == Q8_0) {
        const u8* b = s + (e >> 5) * 36;
        const float d = half_at(b);
        uint2 q = bytes8(b + 4 + r);
        q.x ^= 0x80808080u;
        q.y ^= 0x80808080u;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * (small(byte_of(q, i)) - 128.0f);
        return;
    }
    if (HAS(Q4_K) && format == Q4_K) {
        const u8* b = s + (e >> 8) * 148;
        const int at = e & 255, g = at >> 5;
        const float scale = half_at(b) * small(b[4 + 2 * g]), minimum = half_at(b + 2) * small(b[5 + 2 * g]);
        const uint2 q = bytes8(b + 20 + 32 * (g >> 1) + r);
        const int shift = (g & 1) * 4;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = scale * small(byte_of(q, i) >> shift & 15) - minimum;
        return;
    }
    if (HAS(Q5_K) && format == Q5_K) {
        const u8* b = s + (e >> 8) * 180;
        const int at = e & 255, g = at >> 5;
        const float scale = half_at(b) * small(b[4 + 2 * g]), minimum = half_at(b + 2) * small(b[5 + 2 * g]);
        const uint2 fifth = bytes8(b + 20 + r);
        const uint2 q = bytes8(b + 52 + 32 * (g >> 1) + r);
        const int shift = (g & 1) * 4;
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = scale * small((byte_of(q, i) >> shift & 15) | (byte_of(fifth, i) >> g & 1) << 4) - minimum;
        return;
    }
    if (HAS(Q6_K) && format == Q6_K) {
        const u8* b = s + (e >> 8) * 212;
        const int at = e & 255, h = at >> 7, within = at & 127, plane = within >> 5;
        const float scale = half_at(b + 208) * (small(b[192 + 8 * h + (within >> 4)] ^ 128u) - 128.0f);
        const uint2 q = bytes8(b + 64 * h + 32 * (plane & 1) + r);
        const uint2 top = bytes8(b + 128 + 32 * h + r);
        const int shift = plane >> 1 << 2;
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = scale * (small((byte_of(q, i) >> shift & 15) | (byte_of(top, i) >> (2 * plane) & 3) << 4) - 32.0f);
        return;
    }
}

// Elements e .. e + 8 of a row.
__device__ __forceinline__ void load8_of_row(const Mat& m, long long row, u32 e, float out[8]) {
    const u8* s = (const u8*)m.at + row * m.stride + e / SEG * segment_bytes(m.format, SEG);
    load8(m.format, s, e % SEG, out);
}

// A segment times the input, on tensor cores. A round takes 256 elements as eight groups of 32, a group for four lanes:
// the groups are the rows of one matrix and, of the input, the columns of the other, and what is wanted lies on the
// product's diagonal. Every lane gives its own weights and the input's elements at the same places, so nothing has to
// change places; one lane of four ends up with the group's sum. Quants are whole numbers that bf16 holds exactly.
//
// A lane has eight elements of a round, in two fours. Where quants are packed, both fours of a group of 16 + 16.
#define PACKED ((FORMATS & ~(1 << BF16 | 1 << F16 | 1 << F32)) != 0)
#define NEED_TOTALS (HAS(Q4_1) || HAS(Q4_K) || HAS(Q5_K))
__device__ __forceinline__ int first_four(int lane) { return PACKED ? lane / 4 * 32 + lane % 4 * 4 : lane * 8; }
#define NEXT_FOUR (PACKED ? 16 : 4)
// Eight elements as the products take them: first the pairs that meet the first half of the input, x and z; then those
// that meet the other. Of packed quants a pair is two even or two odd places of a four, and a half is a four.
__device__ __forceinline__ uint4 paired(uint2 x, uint2 y) {
    if (!PACKED) return make_uint4(x.x, y.x, x.y, y.y);
    return make_uint4(__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.x, x.y, 0x7632), __byte_perm(y.x, y.y, 0x5410),
                      __byte_perm(y.x, y.y, 0x7632));
}

// Two halves of weights, each times its half of the input, summed over this lane's group where `has_sum`.
__device__ __forceinline__ float2 half_sums(uint2 w, uint2 v, uint4 x, int lane) {
    float a, b, c, d, e, f, g, h;
    asm("{ .reg .f32 z; mov.f32 z, 0f00000000;\n"
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {z, z, z, z}; }"
        : "=f"(a), "=f"(b), "=f"(c), "=f"(d)
        : "r"(w.x), "r"(v.x), "r"(w.y), "r"(v.y), "r"(x.x), "r"(x.y));
    asm("{ .reg .f32 z; mov.f32 z, 0f00000000;\n"
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {z, z, z, z}; }"
        : "=f"(e), "=f"(f), "=f"(g), "=f"(h)
        : "r"(w.x), "r"(v.x), "r"(w.y), "r"(v.y), "r"(x.z), "r"(x.w));
    return lane & 4 ? make_float2(b, h) : make_float2(a, g);
}
__device__ __forceinline__ float group_sum(uint2 w, uint2 v, uint4 x, int lane) {
    const float2 s = half_sums(w, v, x, lane);
    return s.x + s.y;
}
__device__ __forceinline__ bool has_sum(int lane) { return (lane & 3) == lane >> 3; }

__device__ __forceinline__ u32 minus(u32 a, u32 b) {
    u32 r;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
// Four bytes below 128 as numbers, less `offset`: 128 + q has q in its fraction. `base` is 128 + offset, twice.
__device__ __forceinline__ uint2 numbers(u32 q, u32 base) {
    return make_uint2(minus(__byte_perm(q, 0x43434343u, 0x4240), base), minus(__byte_perm(q, 0x43434343u, 0x4341), base));
}
// Four signed bytes: the sign's bit makes 256 of the 128 that is taken off.
__device__ __forceinline__ uint2 signed_numbers(u32 q) {
    const u32 low = q & 0x7f7f7f7fu, sign = q & 0x80808080u;
    return make_uint2(minus(__byte_perm(low, 0x43434343u, 0x4240), __byte_perm(sign, 0x43434343u, 0x4240)),
                      minus(__byte_perm(low, 0x43434343u, 0x4341), __byte_perm(sign, 0x43434343u, 0x4341)));
}
#define LESS_0 0x43004300u
#define LESS_8 0x43084308u
#define LESS_16 0x43104310u
#define LESS_32 0x43204320u
#define NIBBLES 0x0f0f0f0fu

// Bit `from` + i of `bits` as bit 4 of byte i.
__device__ __forceinline__ u32 fifths(u32 bits, int from) {
    const u32 b = bits >> from & 15;
    return (b * 0x00204081u & 0x01010101u) << 4;
}
__device__ __forceinline__ float2 halves(u32 h) {
    float a, b;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(a), "=f"(b) : "r"(h));
    return make_float2(a, b);
}
// Scale and minimum of group g of a Q4_K or Q5_K block, whole.
__device__ __forceinline__ float2 k_scales(const u8* b, int g) {
    const float2 d = halves(*(const u32*)b);
    const u32 of = *(const u16*)(b + 4 + 2 * g);
    return make_float2(d.x * small(of & 255), d.y * small(of >> 8));
}
__device__ __forceinline__ u32 word(const u8* p) { return *(const u32*)p; }

// The part of a segment's product that round `it` adds in this lane; only lanes that `has_sum` count, but for F16 and
// F32, where every lane counts. `x` is the lane's input, `total` the input's sum over the group.
__device__ __forceinline__ float round_sum(u32 format, const u8* s, int it, uint4 x, float total, int length, int lane) {
    const int g = lane / 4, t = lane % 4 * 4;
    const int block = it * 8 + g;  // of 32
    if (HAS(Q4_0) && format == Q4_0) {
        const u8* b = s + block * 20;
        const u32 q = word(b + 4 + t);
        return half_at(b) * group_sum(numbers(q & NIBBLES, LESS_8), numbers(q >> 4 & NIBBLES, LESS_8), x, lane);
    }
    if (HAS(Q4_1) && format == Q4_1) {
        const u8* b = s + block * 20;
        const float2 d = halves(word(b));
        const u32 q = word(b + 4 + t);
        return fmaf(d.x, group_sum(numbers(q & NIBBLES, LESS_0), numbers(q >> 4 & NIBBLES, LESS_0), x, lane), d.y * total);
    }
    if (HAS(Q5_0) && format == Q5_0) {
        const u8* b = s + block * 24;
        const u32 fifth = word(b + 4), q = word(b + 8 + t);
        const u32 w = (q & NIBBLES) | fifths(fifth, t), v = (q >> 4 & NIBBLES) | fifths(fifth, 16 + t);
        return half_at(b) * group_sum(numbers(w, LESS_16), numbers(v, LESS_16), x, lane);
    }
    if (HAS(Q8_0) && format == Q8_0) {
        const u8* b = s + block * 36;
        return half_at(b) * group_sum(signed_numbers(word(b + 4 + t)), signed_numbers(word(b + 20 + t)), x, lane);
    }
    if (HAS(Q4_K) && format == Q4_K) {
        const u8* b = s + it * 148;
        const float2 of = k_scales(b, g);
        const u8* q = b + 20 + g / 2 * 32 + t;
        const int shift = g % 2 * 4;
        const uint2 w = numbers(word(q) >> shift & NIBBLES, LESS_0), v = numbers(word(q + 16) >> shift & NIBBLES, LESS_0);
        return fmaf(of.x, group_sum(w, v, x, lane), -of.y * total);
    }
    if (HAS(Q5_K) && format == Q5_K) {
        const u8* b = s + it * 180;
        const float2 of = k_scales(b, g);
        const u8* q = b + 52 + g / 2 * 32 + t;
        const int shift = g % 2 * 4;
        const u32 w = (word(q) >> shift & NIBBLES) | (word(b + 20 + t) >> g & 0x01010101u) << 4;
        const u32 v = (word(q + 16) >> shift & NIBBLES) | (word(b + 36 + t) >> g & 0x01010101u) << 4;
        return fmaf(of.x, group_sum(numbers(w, LESS_0), numbers(v, LESS_0), x, lane), -of.y * total);
    }
    if (HAS(Q6_K) && format == Q6_K) {
        const u8* b = s + it * 212;
        const u8* q = b + g / 4 * 64 + g % 2 * 32 + t;
        const u8* top = b + 128 + g / 4 * 32 + t;
        const int shift = g % 4 / 2 * 4, from = g % 4 * 2;
        const u32 w = (word(q) >> shift & NIBBLES) | (word(top) >> from & 0x03030303u) << 4;
        const u32 v = (word(q + 16) >> shift & NIBBLES) | (word(top + 16) >> from & 0x03030303u) << 4;
        const u32 scales = *(const u16*)(b + 192 + 2 * g) ^ 0x8080u;
        const float2 sums = half_sums(numbers(w, LESS_32), numbers(v, LESS_32), x, lane);
        return half_at(b + 208) * fmaf(small(scales & 255) - 128.0f, sums.x, (small(scales >> 8) - 128.0f) * sums.y);
    }
    const int e = it * 256 + first_four(lane);
    if (HAS(BF16) && format == BF16) {
        // Past the row's end the slot holds what was there before.
        uint4 w = make_uint4(0, 0, 0, 0);
        if (!PACKED) {
            if (e < length) w = *(const uint4*)(s + e * 2);
            w = make_uint4(w.x, w.z, w.y, w.w);
        } else {
            const uint2 none = make_uint2(0, 0);
            w = paired(e < length ? *(const uint2*)(s + e * 2) : none,
                       e + NEXT_FOUR < length ? *(const uint2*)(s + (e + NEXT_FOUR) * 2) : none);
        }
        return group_sum(make_uint2(w.x, w.y), make_uint2(w.z, w.w), x, lane);
    }
    const float in[8] = {low(x.x), PACKED ? low(x.y) : high(x.x), PACKED ? high(x.x) : low(x.z),
                         PACKED ? high(x.y) : high(x.z), PACKED ? low(x.z) : low(x.y), PACKED ? low(x.w) : high(x.y),
                         PACKED ? high(x.z) : low(x.w), high(x.w)};
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int at = e + (i < 4 ? i : NEXT_FOUR + i - 4);
        if (at >= length) continue;
        sum = fmaf(HAS(F16) && format == F16 ? half_at(s + at * 2) : *(const float*)(s + at * 4), in[i], sum);
    }
    return sum;
}
