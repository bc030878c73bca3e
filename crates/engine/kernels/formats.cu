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
// puts two bytes behind the scale of a Q4_0, Q5_0 or Q8_0 block and at the end of a Q6_K one, gives every scale and every
// minimum of a Q4_K or Q5_K block a byte, group by group, and puts the nibbles of these and the quants of Q6_K where a lane
// of the decode kernel reads its own at once.
__device__ __forceinline__ constexpr u32 segment_bytes(u32 format, u32 n) {
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
        const int g = (e & 255) >> 5;
        const float scale = half_at(b) * small(b[4 + 2 * g]), minimum = half_at(b + 2) * small(b[5 + 2 * g]);
        const uint2 q = bytes8(b + 20 + 16 * g + (r & 15));
        const int shift = r >> 4 << 2;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = scale * small(byte_of(q, i) >> shift & 15) - minimum;
        return;
    }
    if (HAS(Q5_K) && format == Q5_K) {
        const u8* b = s + (e >> 8) * 180;
        const int g = (e & 255) >> 5;
        const float scale = half_at(b) * small(b[4 + 2 * g]), minimum = half_at(b + 2) * small(b[5 + 2 * g]);
        const uint2 fifth = bytes8(b + 20 + r);
        const uint2 q = bytes8(b + 52 + 16 * g + (r & 15));
        const int shift = r >> 4 << 2;
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = scale * small((byte_of(q, i) >> shift & 15) | (byte_of(fifth, i) >> g & 1) << 4) - minimum;
        return;
    }
    if (HAS(Q6_K) && format == Q6_K) {
        const u8* b = s + (e >> 8) * 212;
        const int at = e & 255;
        const float scale = half_at(b + 208) * (small(b[192 + (at >> 4)] ^ 128u) - 128.0f);
        // Two fours: cuda/weights.rs says where their bits lie.
        const u8* fours = b + (at >> 5) * 16 + (r & 15);
        const u8* rest = b + 128 + (at >> 5) * 8 + (r & 15) / 2;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 half = *(const u16*)(fours + i / 2 * 2), byte = rest[i / 2];
            const u32 q = r < 16 ? half >> 6 * (i & 1) & 63 : i & 1 ? half >> 12 | byte >> 6 << 4 : byte & 63;
            out[i] = scale * (small(q) - 32.0f);
        }
        return;
    }
}

// Elements e .. e + 8 of a row.
__device__ __forceinline__ void load8_of_row(const Mat& m, long long row, u32 e, float out[8]) {
    const u8* s = (const u8*)m.at + row * m.stride + e / SEG * segment_bytes(m.format, SEG);
    load8(m.format, s, e % SEG, out);
}
