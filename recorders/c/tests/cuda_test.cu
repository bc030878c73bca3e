/* The header on a GPU: the copy on a stream, memory reserved for captured graphs, tensors read when a step ends, each written
   by the call and by the writer thread. What is on disk is compared byte for byte with what the kernels compute.

       nvcc -std=c++17 -O2 -Xcompiler -Wall,-Wextra,-pthread recorders/c/tests/cuda_test.cu -o cuda_test && ./cuda_test

   Ends with 0 and one line a case, or with 1 and what differs. */
#define FIRSTDIFF_IMPLEMENTATION
#define FIRSTDIFF_CUDA
#include "../firstdiff.h"
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define CUDA(call)                                                                                  \
    do {                                                                                            \
        cudaError_t error_ = (call);                                                                \
        if (error_ != cudaSuccess) {                                                                \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
            std::exit(1);                                                                           \
        }                                                                                           \
    } while (0)
#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);            \
            std::exit(1);                                                                           \
        }                                                                                           \
    } while (0)

static const long long LATE = 40000000;      /* clock cycles, some 20 ms: whoever does not wait reads what was there before */

/* x[i] = first + i, late; `first` grows by `more` with each launch. */
__global__ void fill_late(float *x, size_t count, float *first, float more) {
    const float begin = *first;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        for (long long start = clock64(); clock64() - start < LATE;) {}
    __syncthreads();
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) x[i] = begin + (float)i;
    if (gridDim.x == 1) {
        __syncthreads();
        if (threadIdx.x == 0) *first = begin + more;
    }
}

static bool is_busy(cudaStream_t stream) {
    const bool busy = cudaStreamQuery(stream) == cudaErrorNotReady;
    (void)cudaGetLastError();                    /* which has that answer too */
    return busy;
}

static std::vector<float> numbers(size_t count, float first) {
    std::vector<float> x(count);
    for (size_t i = 0; i < count; i++) x[i] = first + (float)i;
    return x;
}

/* ---- reading back ---- */

struct Step {
    std::string bytes;
    size_t data = 0;

    Step(const std::string &folder, int number) {
        char name[64];
        std::snprintf(name, sizeof name, "/step-%06d.safetensors", number);
        std::FILE *file = std::fopen((folder + name).c_str(), "rb");
        CHECK(file);
        char buffer[65536];
        for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, file)) > 0;) bytes.append(buffer, n);
        std::fclose(file);
        CHECK(bytes.size() > 8);
        uint64_t length;
        std::memcpy(&length, bytes.data(), 8);
        data = 8 + (size_t)length;
        CHECK(data <= bytes.size());
    }

    /* The tensor's type, shape and bytes are these. */
    template <class T> void holds(const std::string &name, const std::string &type_and_shape, const std::vector<T> &expected) const {
        const std::string start = "\"" + name + "\":{" + type_and_shape + ",\"data_offsets\":[";
        const std::string header = bytes.substr(8, data - 8);
        const size_t at = header.find(start);
        if (at == std::string::npos) {
            std::fprintf(stderr, "no %s in %.2000s\n", start.c_str(), header.c_str());
            std::exit(1);
        }
        char *end;
        const size_t begin = std::strtoull(header.c_str() + at + start.size(), &end, 10), stop = std::strtoull(end + 1, NULL, 10);
        CHECK(stop - begin == expected.size() * sizeof(T) && data + stop <= bytes.size());
        if (std::memcmp(bytes.data() + data + begin, expected.data(), stop - begin)) {
            for (size_t i = 0; i < expected.size(); i++) {
                T found;
                std::memcpy(&found, bytes.data() + data + begin + i * sizeof(T), sizeof(T));
                if (std::memcmp(&found, &expected[i], sizeof(T))) {
                    std::fprintf(stderr, "%s: element %zu is %g, expected %g\n", name.c_str(), i, (double)found, (double)expected[i]);
                    std::exit(1);
                }
            }
        }
    }
};

static std::string f32(const std::string &shape) { return "\"dtype\":\"F32\",\"shape\":[" + shape + "]"; }

static firstdiff_trace *open_trace(const std::string &folder, uint64_t writer) {
    firstdiff_options options = {};
    options.producer = "cuda_test";
    options.device = firstdiff_cuda();
    options.writer_bytes = writer;
    firstdiff_trace *t = firstdiff_open(folder.c_str(), &options);
    CHECK(t);
    return t;
}

static const int64_t IDS[4] = {5, 6, 7, 8};

/* ---- cases ---- */

/* Taps on a stream that is not done: the copy waits for it, and for it alone. */
static void copies(const std::string &folder, uint64_t writer) {
    const int64_t rows = 4, heads = 6, size = 8, fused = 3 * heads * size, large = 3 << 20;
    cudaStream_t stream;
    float *x, *big, *first;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc(&x, rows * fused * sizeof(float)));
    CUDA(cudaMalloc(&big, large * sizeof(float)));
    CUDA(cudaMalloc(&first, sizeof(float)));
    CUDA(cudaMemset(first, 0, sizeof(float)));
    CUDA(cudaDeviceSynchronize());
    firstdiff_trace *t = open_trace(folder, writer);
    for (int step = 0; step < 3; step++) {
        firstdiff_begin(t, IDS, rows, NULL, NULL);
        const float begin = 1000.0f * (float)step;
        /* each kernel is followed by its tap, as in an engine */
        fill_late<<<1, 256, 0, stream>>>(x, rows * fused, first, 0);
        int64_t shape[3] = {rows, heads, size};
        firstdiff_view v = firstdiff_dense(FIRSTDIFF_F32, x + heads * size, 3, shape);     /* the second of three fused */
        v.strides[0] = fused;
        v.stream = stream;
        firstdiff_record(t, 0, "k_proj", &v);
        v.neighbours = size;
        firstdiff_record(t, 0, "k_rope", &v);
        int64_t whole[1] = {rows * fused}, at[1] = {rows * fused / 2};
        v = firstdiff_dense(FIRSTDIFF_F32, x + at[0], 1, whole);
        v.shape[0] = at[0];
        v.stream = stream;
        firstdiff_piece(t, 0, "out", &v, at, whole);
        v.data = x;
        at[0] = 0;
        firstdiff_piece(t, 0, "out", &v, at, whole);
        fill_late<<<1, 256, 0, stream>>>(big, large, first, 1000);
        whole[0] = large;
        v = firstdiff_dense(FIRSTDIFF_F32, big, 1, whole);
        v.stream = stream;
        firstdiff_record(t, 1, "out", &v);                              /* larger than what a chunk holds */
        whole[0] = 2 * large / 5000;
        v = firstdiff_dense(FIRSTDIFF_F32, big, 1, whole);
        v.strides[0] = 2500;
        v.stream = stream;
        firstdiff_record(t, 2, "out", &v);
        v = firstdiff_dense(FIRSTDIFF_BF16, x, 1, shape);
        v.stream = stream;
        firstdiff_record(t, 3, "out", &v);
        float host[2] = {begin, 7};
        whole[0] = 2;
        firstdiff_tensor(t, 4, "out", FIRSTDIFF_F32, host, 1, whole);   /* cudaMemcpyDefault: of the host too */
        firstdiff_end(t);
        CHECK(!firstdiff_error(t));
    }
    firstdiff_close(t, 1);
    for (int step = 0; step < 3; step++) {
        const Step found(folder, step);
        const float begin = 1000.0f * (float)step;
        const std::vector<float> all = numbers(rows * fused, begin), huge = numbers(large, begin);
        std::vector<float> keys, paired, strided;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t h = 0; h < heads; h++) {
                const float *head = &all[r * fused + (heads + h) * size];
                for (int64_t c = 0; c < size; c++) keys.push_back(head[c]);
                for (int64_t c = 0; c < size; c++) paired.push_back(head[c < size / 2 ? 2 * c : 2 * (c - size / 2) + 1]);
            }
        for (int64_t i = 0; i < 2 * large / 5000; i++) strided.push_back(huge[2500 * i]);
        std::vector<uint16_t> bits(rows);
        std::memcpy(bits.data(), all.data(), bits.size() * 2);
        found.holds("layers.0.k_proj", f32("4,6,8"), keys);
        found.holds("layers.0.k_rope", f32("4,6,8"), paired);
        found.holds("layers.0.out", f32(std::to_string(rows * fused)), all);
        found.holds("layers.1.out", f32(std::to_string(large)), huge);
        found.holds("layers.2.out", f32(std::to_string(2 * large / 5000)), strided);
        found.holds("layers.3.out", "\"dtype\":\"BF16\",\"shape\":[4]", bits);
        found.holds("layers.4.out", f32("2"), std::vector<float>{begin, 7});
    }
    CUDA(cudaFree(x));
    CUDA(cudaFree(big));
    CUDA(cudaFree(first));
    CUDA(cudaStreamDestroy(stream));
}

/* A graph, captured once with copies into reserved memory and replayed: each step holds what its replay computed. */
static void graphs(const std::string &folder, uint64_t writer) {
    const int64_t rows = 4, width = 1 << 18;
    const size_t count = (size_t)(rows * width);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t launch;
    float *x, *first;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc(&x, count * sizeof(float)));
    CUDA(cudaMalloc(&first, sizeof(float)));
    CUDA(cudaMemset(first, 0, sizeof(float)));
    CUDA(cudaDeviceSynchronize());
    firstdiff_trace *t = open_trace(folder, writer);
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    const int64_t shape[2] = {rows, width}, other_shape[1] = {width};
    float *kept[3];
    for (int layer = 0; layer < 2; layer++) {
        /* reserved while capturing; with a tap that is outside a step and must not touch the capture */
        fill_late<<<1, 1024, 0, stream>>>(x, count, first, 100);
        firstdiff_matrix(t, layer, "out", FIRSTDIFF_F32, x, rows, width);
        kept[layer] = (float *)firstdiff_reserve(t, 3, layer, "out", FIRSTDIFF_F32, 2, shape);
        CHECK(kept[layer]);
        CUDA(cudaMemcpyAsync(kept[layer], x, count * sizeof(float), cudaMemcpyDeviceToHost, stream));
    }
    kept[2] = (float *)firstdiff_reserve(t, 4, FIRSTDIFF_NO_LAYER, "logits", FIRSTDIFF_F32, 1, other_shape);
    CHECK(kept[2]);
    CUDA(cudaMemcpyAsync(kept[2], x, width * sizeof(float), cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&launch, graph, 0));
    for (int step = 0; step < 5; step++) {
        const int64_t real = step % 2 ? 2 : rows;                       /* the rest of the rows is padding */
        firstdiff_begin(t, IDS, (size_t)real, NULL, NULL);
        CUDA(cudaGraphLaunch(launch, stream));
        firstdiff_replayed(t, 3, real, stream);
        firstdiff_replayed(t, 4, -1, stream);
        CHECK(is_busy(stream));                                         /* the launch is late, or this shows nothing */
        firstdiff_end(t);
        CHECK(!firstdiff_error(t));
    }
    CUDA(cudaStreamSynchronize(stream));
    firstdiff_close(t, 1);
    for (int step = 0; step < 5; step++) {
        const int64_t real = step % 2 ? 2 : rows;
        const Step found(folder, step);
        for (int layer = 0; layer < 2; layer++) {
            char name[32];
            std::snprintf(name, sizeof name, "layers.%d.out", layer);
            found.holds(name, f32(std::to_string(real) + "," + std::to_string(width)),
                        numbers((size_t)(real * width), 100.0f * (float)(2 * step + layer)));
        }
        found.holds("logits", f32(std::to_string(width)), numbers((size_t)width, 100.0f * (float)(2 * step + 1)));
    }
    CUDA(cudaGraphExecDestroy(launch));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaFree(x));
    CUDA(cudaFree(first));
    CUDA(cudaStreamDestroy(stream));
}

/* Memory that a copy fills later, and that is read when the step ends. */
static void deferred(const std::string &folder, uint64_t writer) {
    const int64_t count = 1 << 20;
    const int64_t shape[1] = {count};
    cudaStream_t stream;
    float *x, *first, *pinned;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc(&x, count * sizeof(float)));
    CUDA(cudaMalloc(&first, sizeof(float)));
    CUDA(cudaMallocHost(&pinned, count * sizeof(float)));
    CUDA(cudaMemset(first, 0, sizeof(float)));
    CUDA(cudaDeviceSynchronize());
    firstdiff_trace *t = open_trace(folder, writer);
    for (int step = 0; step < 4; step++) {
        firstdiff_begin(t, IDS, 1, NULL, NULL);
        fill_late<<<1, 1024, 0, stream>>>(x, count, first, 10);
        CUDA(cudaMemcpyAsync(pinned, x, count * sizeof(float), cudaMemcpyDeviceToHost, stream));
        firstdiff_view v = firstdiff_dense(FIRSTDIFF_F32, pinned, 1, shape);
        v.stream = stream;
        firstdiff_defer(t, 0, "out", &v);
        CHECK(is_busy(stream));
        firstdiff_end(t);
        CHECK(!firstdiff_error(t));
    }
    firstdiff_close(t, 1);
    for (int step = 0; step < 4; step++)
        Step(folder, step).holds("layers.0.out", f32(std::to_string(count)), numbers(count, 10.0f * (float)step));
    CUDA(cudaFree(x));
    CUDA(cudaFree(first));
    CUDA(cudaFreeHost(pinned));
    CUDA(cudaStreamDestroy(stream));
}

/* A tap of a stream that is being captured ends the recording, and leaves the capture and the error state as they were. */
static void capture_survives(const std::string &folder, uint64_t writer) {
    const int64_t shape[1] = {64};
    cudaStream_t stream;
    cudaGraph_t graph;
    float *x, *first;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc(&x, 64 * sizeof(float)));
    CUDA(cudaMalloc(&first, sizeof(float)));
    firstdiff_trace *t = open_trace(folder, writer);
    firstdiff_begin(t, IDS, 1, NULL, NULL);
    firstdiff_end(t);
    firstdiff_begin(t, IDS, 1, NULL, NULL);
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    fill_late<<<1, 64, 0, stream>>>(x, 64, first, 1);
    firstdiff_view v = firstdiff_dense(FIRSTDIFF_F32, x, 1, shape);
    v.stream = stream;
    firstdiff_record(t, 0, "out", &v);
    CHECK(firstdiff_error(t));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGetLastError());
    firstdiff_end(t);
    firstdiff_close(t, 1);
    Step(folder, 0).holds("token_ids", "\"dtype\":\"I64\",\"shape\":[1]", std::vector<int64_t>{5});
    CHECK(access((folder + "/step-000001.safetensors").c_str(), F_OK));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaFree(x));
    CUDA(cudaFree(first));
    CUDA(cudaStreamDestroy(stream));
}

int main() {
    const struct { const char *name; void (*run)(const std::string &, uint64_t); } cases[] = {
        {"copies", copies}, {"graphs", graphs}, {"deferred", deferred}, {"capture_survives", capture_survives}};
    const uint64_t writers[] = {0, 1 << 20};
    char root[] = "/tmp/firstdiff-cuda-XXXXXX";
    cudaDeviceProp about;
    CUDA(cudaGetDeviceProperties(&about, 0));
    CHECK(mkdtemp(root));
    for (const auto &c : cases)
        for (const uint64_t writer : writers) {
            const std::string folder = std::string(root) + "/" + c.name + (writer ? "-thread" : "");
            c.run(folder, writer);
            std::printf("%s, %s: equal byte for byte\n", c.name, writer ? "writer thread of 1 MiB" : "written by the call");
            std::fflush(stdout);
        }
    std::printf("all right on %s; traces in %s\n", about.name, root);
    return 0;
}
