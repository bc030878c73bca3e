// Types, conversions and the layout that host and device share. No headers: NVRTC brings none.
//
// Every extent of the model is a macro that the host defines (cuda/compile.rs), so that loops unroll and a kernel
// for one model carries no code for another.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define LOG2E 1.4426950408889634f
#define GROUP (HEADS / KV_HEADS)
#define QD (HEADS * HEAD_DIM)
#define KD (KV_HEADS * HEAD_DIM)
// A kernel of its own without taps: code that is not there costs nothing.
#ifndef TAPS
#define TAPS 1
#endif

// A bug that is kept: exchange.cu.
#ifndef BARRIER_BUG
#define BARRIER_BUG 0
#endif

#define NEG_INF __int_as_float(0xff800000)

// A matrix, row by row. A row is cut into segments of SEG elements; each starts at a multiple of 16 bytes.
struct Mat {
    u64 at;
    u32 stride;  // bytes from row to row
    u32 format;
};

struct Layer {
    Mat q, k, v, o, gate, up, down;
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm;
    const float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
    long long window;  // keys that a row sees, itself included; 0: all
};

// Places of a layer's taps, in the order of cuda/taps.rs.
enum {
    ATTN_NORM, Q_PROJ, K_PROJ, V_PROJ, Q_NORM, K_NORM, Q_ROPE, K_ROPE, K_CACHE, V_CACHE, SCORES, PROBS,
    ATTN_HEADS, ATTN_OUT, ATTN_RESID, MLP_NORM, GATE, UP, MLP_ACT, MLP_OUT, OUT, LAYER_TAPS
};
enum { EMBED, FINAL_NORM, LOGITS };

__device__ __forceinline__ float low(u32 w) { return __uint_as_float(w << 16); }
__device__ __forceinline__ float high(u32 w) { return __uint_as_float(w & 0xffff0000u); }
__device__ __forceinline__ float wide(u16 h) { return __uint_as_float((u32)h << 16); }

// To the nearest bf16, ties to even.
__device__ __forceinline__ u16 narrow(float x) {
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
__device__ __forceinline__ float rounded(float x) { return wide(narrow(x)); }
__device__ __forceinline__ u32 pair(float first, float second) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(second), "f"(first));
    return r;
}
__device__ __forceinline__ float half_at(const u8* p) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(*(const u16*)p));
    return r;
}
__device__ __forceinline__ float exp2_of(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
__device__ __forceinline__ float reciprocal_root(float x) { return rsqrtf(x); }
// Good to two units in the last place, for divisors far from the ends of the range.
__device__ __forceinline__ float quotient(float a, float b) { return __fdividef(a, b); }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}

#if ACTIVATION == 0
__device__ __forceinline__ float activate(float x) { return quotient(x, 1.0f + __expf(-x)); }
#else
__device__ __forceinline__ float activate(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}
#endif
