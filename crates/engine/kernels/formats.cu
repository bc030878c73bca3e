// Stored weights to numbers, eight at a time, by the same arithmetic as the checkpoint reader's.

enum { BF16, F16, F32, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K };
#define HAS(format) ((FORMATS >> (format)) & 1)

// Bytes of a segment with n elements. Blocks begin at multiples of four bytes, and so do their quants: cuda/weights.rs
// puts two bytes behind the scale of a Q4_0, Q5_0 or Q8_0 block and at the end of a Q6_K one.
__device__ __forceinline__ u32 segment_bytes(u32 format, u32 n) {
    u32 bytes = 0;
    switch (format) {
        case BF16: case F16: bytes = n * 2; break;
        case F32: bytes = n * 4; break;
        case Q4_0: bytes = n / 32 * 20; break;
        case Q4_1: bytes = n / 32 * 20; break;
        case Q5_0: bytes = n / 32 * 24; break;
        case Q8_0: bytes = n / 32 * 36; break;
        case Q4_K: bytes = n / 256 * 144; break;
        case Q5_K: bytes = n / 256 * 176; break;
        default: bytes = n / 256 * 212; break;
    }
    return (bytes + 15) & ~15u;
}

// A small whole number as float without a conversion instruction.
__device__ __forceinline__ float small(u32 n) { return __uint_as_float(0x4b000000u | n) - 8388608.0f; }

// Eight bytes at a multiple of four.
__device__ __forceinline__ uint2 bytes8(const u8* p) { return make_uint2(((const u32*)p)[0], ((const u32*)p)[1]); }
__device__ __forceinline__ u32 byte_of(uint2 b, int i) { return ((i < 4 ? b.x : b.y) >> (8 * (i & 3))) & 255; }

// Scale and minimum of group g of a Q4_K or Q5_K block.
__device__ __forceinline__ void k_scale(const u8* s, int g, float& scale, float& minimum) {
    u32 a, b;
    if (g < 4) {
        a = s[g] & 63;
        b = s[g + 4] & 63;
    } else {
        a = (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
        b = (s[g + 4] >> 4) | (s[g] >> 6) << 4;
    }
    scale = small(a);
    minimum = small(b);
}

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
        const u8* b = s + (e >> 8) * 144;
        const int at = e & 255, g = at >> 5;
        float scale, minimum;
        k_scale(b + 4, g, scale, minimum);
        scale *= half_at(b);
        minimum *= half_at(b + 2);
        const uint2 q = *(const uint2*)(b + 16 + 32 * (g >> 1) + r);
        const int shift = (g & 1) * 4;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = scale * small(byte_of(q, i) >> shift & 15) - minimum;
        return;
    }
    if (HAS(Q5_K) && format == Q5_K) {
        const u8* b = s + (e >> 8) * 176;
        const int at = e & 255, g = at >> 5;
        float scale, minimum;
        k_scale(b + 4, g, scale, minimum);
        scale *= half_at(b);
        minimum *= half_at(b + 2);
        const uint2 fifth = *(const uint2*)(b + 16 + r);
        const uint2 q = *(const uint2*)(b + 48 + 32 * (g >> 1) + r);
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

// The products of elements e .. e + 8 of a segment with x, summed; `total` is the sum of x. Blocks' scales and minima
// are applied to sums: a quant q stands in the fraction of 128 + q, and what that adds is taken off with the minimum.

__device__ __forceinline__ float times(const uint2 q, const float x[8]) {
    float even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float w = __uint_as_float(__byte_perm(i < 4 ? q.x : q.y, 0x43000000u, 0x7044 | (i & 3) << 8));
        if (i & 1) odd = fmaf(w, x[i], odd);
        else even = fmaf(w, x[i], even);
    }
    return even + odd;
}
__device__ __forceinline__ uint2 nibbles(uint2 q, int shift) {
    return make_uint2(q.x >> shift & 0x0f0f0f0fu, q.y >> shift & 0x0f0f0f0fu);
}
// Bit `from` + i of `bits` as bit 4 of byte i.
__device__ __forceinline__ u32 fifths(u32 bits, int from) {
    const u32 b = bits >> from & 15;
    return (b * 0x00204081u & 0x01010101u) << 4;
}
// Scale and minimum of group g of a Q4_K or Q5_K block, whole; `head` is its first 16 bytes.
__device__ __forceinline__ float2 k_scales(uint4 head, int g) {
    const u32 at = 0x4440 | (g & 3);
    const u32 a = __byte_perm(head.y, 0, at), b = __byte_perm(head.z, 0, at), c = __byte_perm(head.w, 0, at);
    const u32 scale = g < 4 ? a & 63 : (c & 15) | (a >> 2 & 0x30);
    const u32 minimum = g < 4 ? b & 63 : c >> 4 | (b >> 2 & 0x30);
    float d, m;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(d), "=f"(m) : "r"(head.x));
    return make_float2(d * small(scale), m * small(minimum));
}

__device__ __forceinline__ float product8(u32 format, const u8* s, u32 e, const float x[8], float total) {
    const int r = e & 31;
    if (HAS(Q4_0) && format == Q4_0) {
        const u8* b = s + (e >> 5) * 20;
        return half_at(b) * (times(nibbles(bytes8(b + 4 + (r & 15)), r >> 4 << 2), x) - 136.0f * total);
    }
    if (HAS(Q4_1) && format == Q4_1) {
        const u8* b = s + (e >> 5) * 20;
        const float d = half_at(b);
        return fmaf(d, times(nibbles(bytes8(b + 4 + (r & 15)), r >> 4 << 2), x), (half_at(b + 2) - 128.0f * d) * total);
    }
    if (HAS(Q5_0) && format == Q5_0) {
        const u8* b = s + (e >> 5) * 24;
        const u32 fifth = *(const u32*)(b + 4);
        uint2 q = nibbles(bytes8(b + 8 + (r & 15)), r >> 4 << 2);
        q.x |= fifths(fifth, r);
        q.y |= fifths(fifth, r + 4);
        return half_at(b) * (times(q, x) - 144.0f * total);
    }
    if (HAS(Q8_0) && format == Q8_0) {
        const u8* b = s + (e >> 5) * 36;
        uint2 q = bytes8(b + 4 + r);
        q.x ^= 0x80808080u;
        q.y ^= 0x80808080u;
        float even = 0, odd = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float w = __uint_as_float(__byte_perm(i < 4 ? q.x : q.y, 0x4b000000u, 0x7440 | (i & 3))) - 8388736.0f;
            if (i & 1) odd = fmaf(w, x[i], odd);
            else even = fmaf(w, x[i], even);
        }
        return half_at(b) * (even + odd);
    }
    if (HAS(Q4_K) && format == Q4_K) {
        const u8* b = s + (e >> 8) * 144;
        const int g = (e & 255) >> 5;
        const float2 of = k_scales(*(const uint4*)b, g);
        const uint2 q = nibbles(*(const uint2*)(b + 16 + 32 * (g >> 1) + r), (g & 1) * 4);
        return fmaf(of.x, times(q, x), -(of.y + 128.0f * of.x) * total);
    }
    if (HAS(Q5_K) && format == Q5_K) {
        const u8* b = s + (e >> 8) * 176;
        const int g = (e & 255) >> 5;
        const float2 of = k_scales(*(const uint4*)b, g);
        uint2 q = nibbles(*(const uint2*)(b + 48 + 32 * (g >> 1) + r), (g & 1) * 4);
        const uint2 fifth = *(const uint2*)(b + 16 + r);
        q.x |= (fifth.x >> g & 0x01010101u) << 4;
        q.y |= (fifth.y >> g & 0x01010101u) << 4;
        return fmaf(of.x, times(q, x), -(of.y + 128.0f * of.x) * total);
    }
    if (HAS(Q6_K) && format == Q6_K) {
        const u8* b = s + (e >> 8) * 212;
        const int at = e & 255, h = at >> 7, within = at & 127, plane = within >> 5;
        const float scale = half_at(b + 208) * (small(b[192 + 8 * h + (within >> 4)] ^ 128u) - 128.0f);
        uint2 q = nibbles(bytes8(b + 64 * h + 32 * (plane & 1) + r), plane >> 1 << 2);
        const uint2 top = bytes8(b + 128 + 32 * h + r);
        q.x |= (top.x >> (2 * plane) & 0x03030303u) << 4;
        q.y |= (top.y >> (2 * plane) & 0x03030303u) << 4;
        return scale * (times(q, x) - 160.0f * total);
    }
    float w[8];
    load8(format, s, e, w);
    float even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i & 1) odd = fmaf(w[i], x[i], odd);
        else even = fmaf(w[i], x[i], even);
    }
    return even + odd;
}
