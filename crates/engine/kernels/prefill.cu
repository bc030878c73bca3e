// A prompt: row by row what is not a matrix product. Each kernel stores its result in bf16, rounded once.

// Rows of the embedding.
extern "C" __global__ void embed_rows(Mat table, const int* tokens, u16* out) {
    const long long row = blockIdx.x;
    for (int e = threadIdx.x * 8; e < D_MODEL; e += blockDim.x * 8) {
        float v[8];
        load8_of_row(table, tokens[row], e, v);
        *(uint4*)(out + row * D_MODEL + e) =
            make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7]));
    }
}

// A matrix in bf16, for the tensor cores. One block a row.
extern "C" __global__ void widen(Mat m, int width, u16* out) {
    const long long row = blockIdx.x;
    for (int e = threadIdx.x * 8; e < width; e += blockDim.x * 8) {
        float v[8];
        load8_of_row(m, row, e, v);
        *(uint4*)(out + row * width + e) =
            make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7]));
    }
}

// The same without rounding: what the unit checks compare with the checkpoint reader.
extern "C" __global__ void unpack(Mat m, int width, float* out) {
    const long long row = blockIdx.x;
    for (int e = threadIdx.x * 8; e < width; e += blockDim.x * 8) {
        float v[8];
        load8_of_row(m, row, e, v);
        for (int i = 0; i < 8; i++) out[row * width + e + i] = v[i];
    }
}

// One warp a row.
extern "C" __global__ void norm_rows(const u16* x, const float* weight, u16* out, int rows) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const u32* from = (const u32*)(x + (long long)row * D_MODEL);
    u32* to = (u32*)(out + (long long)row * D_MODEL);
    float squares = 0;
    for (int i = lane; i < D_MODEL / 2; i += 32) {
        const u32 w = from[i];
        squares += low(w) * low(w) + high(w) * high(w);
    }
    const float scale = reciprocal_root(warp_sum(squares) / D_MODEL + NORM_EPS);
    for (int i = lane; i < D_MODEL / 2; i += 32) {
        const u32 w = from[i];
        to[i] = pair(low(w) * scale * weight[2 * i], high(w) * scale * weight[2 * i + 1]);
    }
}

// A bias, added to a product that was rounded before.
extern "C" __global__ void bias_rows(u16* y, const float* bias, int width, long long n) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
        y[i] = narrow(wide(y[i]) + bias[i % width]);
}

extern "C" __global__ void add_rows(u16* x, const u16* y, long long n) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
        x[i] = narrow(wide(x[i]) + wide(y[i]));
}

extern "C" __global__ void act_rows(const u16* gate, const u16* up, u16* out, long long n) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
        out[i] = narrow(activate(wide(gate[i])) * wide(up[i]));
}

// Queries, keys and values of every row: normalised, turned, keys and values stored in the cache. One warp a head.
extern "C" __global__ void rotate_rows(u16* q, const u16* k, const u16* v, const float* q_weight, const float* k_weight,
                                       const float* rope, u16* keys, u16* values, u16* q_normed, u16* k_normed,
                                       u16* k_turned, int rows, int position, int context) {
    const int i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = i / (HEADS + 2 * KV_HEADS), head = i % (HEADS + 2 * KV_HEADS);
    if (row >= rows) return;
    constexpr int half = HEAD_DIM / 2, each = (half + 31) / 32;
    if (head >= HEADS + KV_HEADS) {
        const int h = head - HEADS - KV_HEADS;
        for (int c = lane; c < HEAD_DIM; c += 32)
            values[((long long)h * context + position + row) * HEAD_DIM + c] =
                v[((long long)row * KV_HEADS + h) * HEAD_DIM + c];
        return;
    }
    const bool is_q = head < HEADS;
    const int h = is_q ? head : head - HEADS;
    const long long place = ((long long)row * (is_q ? HEADS : KV_HEADS) + h) * HEAD_DIM;
    const u16* from = (is_q ? q : k) + place;
    u16* to = is_q ? q + place : keys + ((long long)h * context + position + row) * HEAD_DIM;
    u16* normed = is_q ? q_normed : k_normed;
    const float* weight = is_q ? q_weight : k_weight;
    const float* angles = rope + (long long)row * HEAD_DIM;
    float a[each], b[each];
    float squares = 0;
#pragma unroll
    for (int n = 0; n < each; n++) {
        const int c = n * 32 + lane;
        a[n] = c < half ? wide(from[c]) : 0.0f;
        b[n] = c < half ? wide(from[c + half]) : 0.0f;
        squares += a[n] * a[n] + b[n] * b[n];
    }
    const float scale = weight ? reciprocal_root(warp_sum(squares) / HEAD_DIM + NORM_EPS) : 1.0f;
#pragma unroll
    for (int n = 0; n < each; n++) {
        const int c = n * 32 + lane;
        if (c >= half) continue;
        if (weight) {
            a[n] = rounded(a[n] * scale * weight[c]);
            b[n] = rounded(b[n] * scale * weight[c + half]);
            if (normed) {
                normed[place + c] = narrow(a[n]);
                normed[place + c + half] = narrow(b[n]);
            }
        }
        const float x = angles[c], y = angles[half + c];
        const u16 first = narrow(a[n] * x - b[n] * y), second = narrow(b[n] * x + a[n] * y);
        to[c] = first;
        to[c + half] = second;
        if (!is_q && k_turned) {
            k_turned[place + c] = first;
            k_turned[place + c + half] = second;
        }
    }
}

// Cached keys or values as a tap: [key][head][channel] from [head][context][channel].
extern "C" __global__ void cache_tap(const u16* cached, u16* out, int keys, int context) {
    const long long n = (long long)keys * KD;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        const int c = i % HEAD_DIM, h = i / HEAD_DIM % KV_HEADS, key = i / KD;
        out[i] = cached[((long long)h * context + key) * HEAD_DIM + c];
    }
}
