/* The cases of test_header.py: `record CASE FOLDER` does one, and ends with 0 where the calls behaved. What was written is
   read back by the test. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/select.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __cplusplus
#define ZERO {}
#else
#define ZERO {0}
#endif

/* A disk that is slow, interrupted, and where `disk_room` is not negative, full once so many bytes were written. */
static long disk_room = -1;
static int disk_pause;                           /* microseconds for each call */
static int disk_sparse;                          /* blocks of zeros become holes */
static ssize_t disk(int file, const void *bytes, size_t size) {
    static int calls;
    ssize_t n;
    if (++calls % 5 == 0) { errno = EINTR; return -1; }
    if (calls % 2 && size > 1) size = (size + 1) / 2;
    if (disk_pause) {
        struct timeval pause = ZERO;
        pause.tv_usec = disk_pause;
        (void)select(0, NULL, NULL, NULL, &pause);
    }
    if (!disk_room) { errno = ENOSPC; return -1; }
    if (disk_room > 0 && (size_t)disk_room < size) size = (size_t)disk_room;
    if (disk_sparse && size > 4096 && !*(const char *)bytes && !memcmp(bytes, (const char *)bytes + 1, size - 1))
        return lseek(file, (off_t)size, SEEK_CUR) < 0 ? -1 : (ssize_t)size;
    n = write(file, bytes, size);
    if (disk_room > 0 && n > 0) disk_room -= (long)n;
    return n;
}
#define write disk
#define FIRSTDIFF_IMPLEMENTATION
#include "../firstdiff.h"
#undef write

static const int64_t IDS[4] = {5, 6, 7, 8};

static void fill(float *x, size_t n, float first) {
    size_t i;
    for (i = 0; i < n; i++) x[i] = first + (float)i;
}

static firstdiff_options plain(void) {
    firstdiff_options o = ZERO;
    o.producer = "test";
    o.arithmetic = "{\"activations\": \"f32\"}";
#ifndef FIRSTDIFF_NO_THREADS
    if (getenv("TEST_WRITER")) o.writer_bytes = (uint64_t)atol(getenv("TEST_WRITER"));
#endif
    return o;
}

static firstdiff_trace *begun(const char *folder, size_t rows) {
    firstdiff_options o = plain();
    firstdiff_trace *t = firstdiff_open(folder, &o);
    assert(t);
    firstdiff_begin(t, IDS, rows, NULL, NULL);
    return t;
}

static void ended(firstdiff_trace *t) {
    firstdiff_end(t);
    assert(!firstdiff_error(t));
    firstdiff_close(t, 1);
}

/* ---- shapes ---- */

static void layouts(const char *folder) {
    enum { T = 3, H = 4, D = 6 };
    static float x[T * 3 * H * D];
    static double wide[10];
    static uint16_t halves[7] = {0x3f80, 0x4000, 0, 1, 2, 3, 0xffff};
    int64_t shape[3] = {2, 5, 1}, one[1] = {7};
    firstdiff_view v;
    firstdiff_trace *t = begun(folder, T);
    fill(x, sizeof x / sizeof *x, 0);
    firstdiff_matrix(t, FIRSTDIFF_NO_LAYER, "embed", FIRSTDIFF_F32, x, T, 4);
    firstdiff_heads(t, 0, "q_rope", FIRSTDIFF_F32, x, T, H, D, H * D, D, 0);              /* dense */
    firstdiff_heads(t, 0, "k_rope", FIRSTDIFF_F32, x, T, H, D, D, T * D, 0);              /* H,T,D */
    firstdiff_heads(t, 0, "v_proj", FIRSTDIFF_F32, x + 2 * H * D, T, H, D, 3 * H * D, D, 0);  /* the third of three fused */
    firstdiff_heads(t, 1, "q_rope", FIRSTDIFF_F32, x, T, H, D, H * D, D, D);              /* neighbours */
    firstdiff_heads(t, 1, "k_rope", FIRSTDIFF_F32, x, T, H, D, H * D, D, 4);              /* of which 4 channels rotate */
    firstdiff_heads(t, 1, "q_proj", FIRSTDIFF_F32, x, T, H - 1, D - 2, H * D, D, 0);      /* padded heads and rows */
    fill(x, 10, 0.5f);
    { int i; for (i = 0; i < 10; i++) wide[i] = x[i]; }
    firstdiff_tensor(t, 0, "out", FIRSTDIFF_F64, wide, 3, shape);
    firstdiff_tensor(t, 0, "mlp_out", FIRSTDIFF_BF16, halves, 1, one);
    fill(x, sizeof x / sizeof *x, 0);
    v = firstdiff_dense(FIRSTDIFF_F32, x + 4, 2, shape);
    v.strides[0] = 10; v.strides[1] = -1;                                                  /* backwards */
    firstdiff_record(t, 0, "gate_proj", &v);
    v.strides[0] = 0; v.strides[1] = 2;                                                    /* one row, twice */
    firstdiff_record(t, 0, "up_proj", &v);
    v.shape[0] = 0;                                                                        /* nothing */
    firstdiff_record(t, 0, "mlp_act", &v);
    firstdiff_tensor(t, 1, "k_scale", FIRSTDIFF_F32, x + 9, 0, NULL);                      /* a scalar */
    v = firstdiff_dense(FIRSTDIFF_F64, wide, 2, shape);
    v.shape[1] = 2; v.strides[1] = 3;
    firstdiff_record(t, 1, "gate_proj", &v);                                               /* other widths, strided */
    one[0] = 4;
    v = firstdiff_dense(FIRSTDIFF_BF16, halves, 1, one);
    v.strides[0] = 2;
    firstdiff_record(t, 1, "up_proj", &v);
    ended(t);
}

static void pieces(const char *folder) {
    enum { T = 4, C = 10 };
    static float x[T * C];
    int64_t whole[2] = {T, C}, at[2], shape[2];
    int row, half;
    firstdiff_view v;
    firstdiff_trace *t = begun(folder, T);
    fill(x, T * C, 0);
    firstdiff_matrix(t, FIRSTDIFF_NO_LAYER, "embed", FIRSTDIFF_F32, x, T, C);
    for (half = 1; half >= 0; half--) {                        /* micro-batches through two layers, the last rows first */
        int layer;
        for (layer = 0; layer < 2; layer++) {
            shape[0] = T / 2; shape[1] = C;
            v = firstdiff_dense(FIRSTDIFF_F32, x + half * T / 2 * C, 2, shape);
            at[0] = half * T / 2; at[1] = 0;
            firstdiff_piece(t, layer, "out", &v, at, whole);
        }
    }
    for (row = 0; row < T; row++) for (half = 0; half < 2; half++) {      /* shards of channels, a row a time */
        shape[0] = 1; shape[1] = half ? 4 : 6;
        v = firstdiff_dense(FIRSTDIFF_F32, x + row * C + 6 * half, 2, shape);
        at[0] = row; at[1] = 6 * half;
        firstdiff_piece(t, 0, "mlp_act", &v, at, whole);
    }
    shape[0] = T;
    for (half = 0; half < 2; half++) {                         /* shards of channels, all rows */
        shape[1] = half ? 4 : 6;
        v = firstdiff_dense(FIRSTDIFF_F32, x + 6 * half, 2, shape);
        v.strides[0] = C;
        at[0] = 0; at[1] = 6 * half;
        firstdiff_piece(t, 1, "mlp_act", &v, at, whole);
    }
    ended(t);
}

/* A failing call: the engine goes on, the step before stays, this one and later ones are not written. */
static void refused(const char *folder, int which) {
    static float x[64];
    int64_t shape[2] = {2, 4}, at[2] = {0, 0}, whole[2] = {4, 4};
    firstdiff_view v = firstdiff_dense(FIRSTDIFF_F32, x, 2, shape);
    firstdiff_trace *t = begun(folder, 2);
    firstdiff_tensor(t, 0, "out", FIRSTDIFF_F32, x, 2, shape);
    firstdiff_end(t);
    assert(!firstdiff_error(t));
    firstdiff_begin(t, IDS, 2, NULL, NULL);
    firstdiff_record(t, 0, "out", &v);
    switch (which) {
        case 0: firstdiff_record(t, 0, "out", &v); break;                              /* twice */
        case 1: firstdiff_piece(t, 1, "out", &v, at, whole); firstdiff_end(t); break;  /* half of it */
        case 2: firstdiff_piece(t, 1, "out", &v, at, whole); at[0] = 1; firstdiff_piece(t, 1, "out", &v, at, whole); break;
        case 3: at[0] = 3; firstdiff_piece(t, 1, "out", &v, at, whole); break;         /* beyond the whole */
        case 4: v.shape[1] = -1; firstdiff_record(t, 1, "out", &v); break;
        case 5: v.data = NULL; firstdiff_record(t, 1, "out", &v); break;
        case 6: v.axes = 9; firstdiff_record(t, 1, "out", &v); break;
        case 7: firstdiff_record(t, 1, "o\"ut", &v); break;
        case 8: firstdiff_record(t, FIRSTDIFF_NO_LAYER, "token_ids", &v); break;
        case 9: v.neighbours = 6; firstdiff_record(t, 1, "out", &v); break;
        case 10: v.shape[0] = v.shape[1] = (int64_t)1 << 40; firstdiff_record(t, 1, "out", &v); break;
        case 11: firstdiff_record(t, 1, "out", NULL); break;
        case 12: firstdiff_tensor(t, 1, "out", FIRSTDIFF_F32, x, 2, NULL); break;
        case 13: firstdiff_set(t, "note", "{\"open\": "); break;
        case 14: v.type = (firstdiff_type)17; firstdiff_record(t, 1, "out", &v); break;
        case 15: firstdiff_begin(t, NULL, 0, NULL, NULL); break;
        case 16: firstdiff_piece(t, 0, "out", &v, at, whole); break;                   /* was recorded whole */
        default: firstdiff_record(t, 1, NULL, &v); break;
    }
    assert(firstdiff_error(t) && !firstdiff_recording(t) && !firstdiff_wants(t, 0, "out"));
    firstdiff_record(t, 2, "out", &v);
    firstdiff_end(t);
    firstdiff_begin(t, IDS, 2, NULL, NULL);
    firstdiff_end(t);
    firstdiff_close(t, 1);
}

static void described(const char *folder) {
    static float x[8];
    int64_t positions[2] = {3, 0}, sequence[2] = {0, 1}, sampled[2] = {42, -1}, rows[1] = {1};
    int64_t key_sequence[3] = {0, 0, 1}, key_position[3] = {2, 3, 0};
    int32_t ids[2] = {9, 4}, where[2] = {4, 1}, whose[2] = {0, 1};
    firstdiff_options o = plain();
    firstdiff_trace *t;
    o.producer = "an \"engine\" \\ \xc3\xa9 \xff\n";
    o.version = "1.0";
    o.sampling = " {\"do_sample\": false, \"order\": [\"top_k\", 1.5e-3, null, {}]}";
    o.model = "{\"family\": \"llama\"}";
    o.prompt = "tab\there";
    t = firstdiff_open(folder, &o);
    assert(t);
    firstdiff_set(t, "stop_ids", "[2, 3]");
    firstdiff_set(t, "prompt", "\"another\"");
    firstdiff_begin(t, IDS, 2, positions, sequence);
    firstdiff_fork(t, 1, 0, 2);
    firstdiff_fork(t, 2, 1, 1);
    firstdiff_keys(t, FIRSTDIFF_NO_LAYER, key_sequence, key_position, 3);
    firstdiff_keys(t, 1, NULL, key_position, 2);
    firstdiff_matrix(t, FIRSTDIFF_NO_LAYER, "logits", FIRSTDIFF_F32, x, 1, 8);
    firstdiff_logits_rows(t, rows, 1);
    firstdiff_sampled(t, sampled, 2);
    firstdiff_end(t);
    firstdiff_begin32(t, ids, 2, where, whose);
    ended(t);
}

static void selected(const char *folder) {
    /* layers, taps, steps and the bound come from the environment; the folder too */
    static float x[64];
    firstdiff_options o = plain();
    firstdiff_trace *t;
    int step, layer;
    int64_t token = 1, key = 0;
    (void)folder;
    o.taps = "nothing";
    t = firstdiff_open_env(&o);
    if (!t) exit(3);
    for (step = 0; step < 6; step++) {
        firstdiff_begin(t, IDS, 2, NULL, NULL);
        firstdiff_matrix(t, FIRSTDIFF_NO_LAYER, "embed", FIRSTDIFF_F32, x, 2, 4);
        for (layer = 0; layer < 5; layer++) {
            firstdiff_matrix(t, layer, "q_proj", FIRSTDIFF_F32, x, 2, 8);
            firstdiff_matrix(t, layer, "out", FIRSTDIFF_F32, x, 2, 4);
        }
        firstdiff_keys(t, FIRSTDIFF_NO_LAYER, NULL, &key, 1);
        firstdiff_sampled(t, &token, 1);
        firstdiff_end(t);
    }
    firstdiff_close(t, 1);
}

/* ---- what goes wrong ---- */

static int copies;
static int copy_well(void *to, const void *from, size_t bytes, void *stream, void *user) {
    (void)stream;
    assert(user == &copies);
    copies++;
    memcpy(to, from, bytes);
    return 0;
}
static int copy_twice(void *to, const void *from, size_t bytes, void *stream, void *user) {
    (void)stream; (void)user;
    memcpy(to, from, bytes);
    return ++copies > 2;
}
static int waits;
static int wait_well(void *stream, void *user) { (void)user; assert(stream == (void *)&waits); waits++; return 0; }
static int wait_badly(void *stream, void *user) { (void)stream; (void)user; return 1; }

static void copying(const char *folder) {
    enum { T = 3, H = 4, D = 6 };
    static float x[T * 3 * H * D];
    static float large[600][5000];               /* 12 MB, of which every other row is a tensor of 6 MB; then every 2500th */
    firstdiff_options o = plain();
    firstdiff_device device = ZERO;
    firstdiff_trace *t;
    int64_t shape[2] = {300, 5000};
    firstdiff_view v;
    fill(x, sizeof x / sizeof *x, 0);
    fill(&large[0][0], sizeof large / sizeof(float), 0);
    device.copy = copy_well;
    device.user = &copies;
    o.device = &device;
    t = firstdiff_open(folder, &o);
    assert(t);
    device.copy = NULL;                          /* it was copied */
    firstdiff_begin(t, IDS, T, NULL, NULL);
    firstdiff_heads(t, 0, "k_rope", FIRSTDIFF_F32, x, T, H, D, D, T * D, 0);
    firstdiff_heads(t, 0, "v_proj", FIRSTDIFF_F32, x + 2 * H * D, T, H, D, 3 * H * D, D, 0);
    firstdiff_heads(t, 1, "q_rope", FIRSTDIFF_F32, x, T, H, D, H * D, D, D);
    assert(copies == 3);                         /* each fetched as a whole */
    firstdiff_matrix(t, 0, "out", FIRSTDIFF_F32, large, 600, 5000);
    v = firstdiff_dense(FIRSTDIFF_F32, large, 2, shape);
    v.strides[0] = 10000;
    firstdiff_record(t, 1, "out", &v);
    v.shape[0] = 600; v.shape[1] = 3; v.strides[0] = 5000; v.strides[1] = 2400;
    firstdiff_record(t, 2, "out", &v);
    copies = 0;
    v = firstdiff_dense(FIRSTDIFF_F32, x, 2, shape);
    v.shape[0] = 2; v.shape[1] = 4; v.strides[0] = 6;
    v.on_host = 1;
    firstdiff_record(t, 3, "out", &v);
    assert(!copies);
    v.on_host = 0;
    v.shape[1] = 3; v.strides[1] = -1; v.data = x + 2;
    firstdiff_record(t, 4, "out", &v);
    assert(copies == 1);
    ended(t);
}

static void failing_copy(const char *folder) {
    static float x[8];
    firstdiff_options o = plain();
    firstdiff_device device = ZERO;
    firstdiff_trace *t;
    int i;
    device.copy = copy_twice;
    o.device = &device;
    t = firstdiff_open(folder, &o);
    for (i = 0; i < 5; i++) {
        firstdiff_begin(t, IDS, 2, NULL, NULL);
        firstdiff_matrix(t, 0, "out", FIRSTDIFF_F32, x, 2, 4);
        firstdiff_end(t);
    }
    assert(firstdiff_error(t) && copies == 3);
    firstdiff_close(t, 1);
}

static void graphs(const char *folder) {
    int64_t shape[2] = {4, 3}, small[1] = {5}, larger[2] = {6, 3};
    firstdiff_options o = plain();
    firstdiff_device device = ZERO;
    firstdiff_trace *t;
    float *out, *norm, *again, *other, later[6];
    firstdiff_view v;
    int step;
    device.copy = copy_well;
    device.wait = wait_well;
    device.user = &copies;
    o.device = &device;
    o.taps = "out,final_norm,logits";
    t = firstdiff_open(folder, &o);
    out = (float *)firstdiff_reserve(t, 4, 0, "out", FIRSTDIFF_F32, 2, shape);
    norm = (float *)firstdiff_reserve(t, 4, FIRSTDIFF_NO_LAYER, "final_norm", FIRSTDIFF_F32, 2, shape);
    other = (float *)firstdiff_reserve(t, 9, 0, "out", FIRSTDIFF_F32, 1, small);
    assert(out && norm && other && !firstdiff_reserve(t, 4, 0, "q_proj", FIRSTDIFF_F32, 2, shape));    /* not selected */
    assert(firstdiff_reserve(t, 4, 0, "out", FIRSTDIFF_F32, 2, shape) == out);
    for (step = 0; step < 2; step++) {
        firstdiff_begin(t, IDS, 3 + (size_t)step, NULL, NULL);
        firstdiff_replayed(t, 4, 3 + step, &waits);
        shape[0] = 2;
        v = firstdiff_dense(FIRSTDIFF_F32, later, 2, shape);
        v.stream = &waits;
        firstdiff_defer(t, FIRSTDIFF_NO_LAYER, "logits", &v);
        fill(out, 12, (float)(100 * step));              /* the device gets to it after the calls */
        fill(norm, 12, (float)(100 * step + 50));
        fill(later, 6, (float)(100 * step + 80));
        firstdiff_end(t);
        fill(out, 12, -1);
    }
    again = (float *)firstdiff_reserve(t, 4, 0, "out", FIRSTDIFF_F32, 2, larger);          /* captured again, larger */
    assert(again && again != out);
    fill(out, 12, -2);                                   /* the old graph may still write */
    fill(again, 18, 7);
    firstdiff_begin(t, IDS, 1, NULL, NULL);
    firstdiff_replayed(t, 4, 1, &waits);
    ended(t);
    assert(waits == 3 && !copies);
}

static void failing_wait(const char *folder) {
    int64_t shape[1] = {4};
    firstdiff_options o = plain();
    firstdiff_device device = ZERO;
    firstdiff_trace *t;
    device.copy = copy_well;
    device.wait = wait_badly;
    o.device = &device;
    t = firstdiff_open(folder, &o);
    assert(firstdiff_reserve(t, 0, 0, "out", FIRSTDIFF_F32, 1, shape));
    firstdiff_begin(t, IDS, 1, NULL, NULL);
    firstdiff_end(t);
    firstdiff_begin(t, IDS, 1, NULL, NULL);
    firstdiff_replayed(t, 0, -1, NULL);
    firstdiff_end(t);
    assert(firstdiff_error(t));
    firstdiff_close(t, 1);
}

/* Steps of 3 MB until the disk, or the limit on the size of files, ends it. */
static void full(const char *folder) {
    static float x[1 << 18];
    firstdiff_options o = plain();
    firstdiff_trace *t;
    const char *limit = getenv("TEST_FILE_LIMIT");
    int step, layer;
    if (getenv("TEST_DISK")) disk_room = atol(getenv("TEST_DISK"));
    t = firstdiff_open(folder, &o);
    if (!t) exit(3);
    fill(x, sizeof x / sizeof *x, 0);
    for (step = 0; step < 40; step++) {
        if (limit && step == 2) {
            struct rlimit r;
            r.rlim_cur = r.rlim_max = (rlim_t)atol(limit);
            assert(!setrlimit(RLIMIT_FSIZE, &r));
        }
        firstdiff_begin(t, IDS, 2, NULL, NULL);
        for (layer = 0; layer < 3; layer++) firstdiff_matrix(t, layer, "out", FIRSTDIFF_F32, x, 2, 1 << 17);
        firstdiff_end(t);
    }
    disk_room = -1;                              /* for trace.json, which is smaller than what a failed step gave back */
    firstdiff_close(t, 1);
}

static void killed(const char *folder) {
    static float x[1 << 20];
    firstdiff_trace *t = begun(folder, 2);
    firstdiff_matrix(t, 0, "out", FIRSTDIFF_F32, x, 2, 4);
    firstdiff_end(t);
    firstdiff_begin(t, IDS, 2, NULL, NULL);
    firstdiff_matrix(t, 0, "out", FIRSTDIFF_F32, x, 4, 1 << 18);
    raise(SIGKILL);
}

/* Nothing here may write: NULL, closed, never begun, a child made by fork. */
static void nothing(const char *folder) {
    static float x[8];
    int64_t shape[2] = {2, 4};
    firstdiff_view v = firstdiff_dense(FIRSTDIFF_F32, x, 2, shape);
    firstdiff_options o = plain();
    firstdiff_trace *traces[2], *t;
    char path[4096], long_name[400];
    pid_t child;
    int i, status;
    traces[0] = NULL;
    traces[1] = begun(folder, 2);
    firstdiff_drop(traces[1]);
    firstdiff_matrix(traces[1], 0, "out", FIRSTDIFF_F32, x, 2, 4);       /* outside a step */
    firstdiff_end(traces[1]);
    firstdiff_begin(traces[1], IDS, 2, NULL, NULL);                      /* left open, so dropped */
    firstdiff_matrix(traces[1], 0, "out", FIRSTDIFF_F32, x, 2, 4);
    firstdiff_begin(traces[1], IDS, 2, NULL, NULL);
    firstdiff_matrix(traces[1], 0, "up_proj", FIRSTDIFF_F32, x, 2, 4);
    firstdiff_end(traces[1]);
    child = fork();
    assert(child >= 0);
    if (!child) {
        firstdiff_begin(traces[1], IDS, 2, NULL, NULL);
        firstdiff_matrix(traces[1], 0, "out", FIRSTDIFF_F32, x, 2, 4);
        firstdiff_end(traces[1]);
        firstdiff_close(traces[1], 1);
        _exit(0);
    }
    assert(waitpid(child, &status, 0) == child && status == 0);
    firstdiff_close(traces[1], 1);
    firstdiff_close(traces[1], 1);
    for (i = 0; i < 2; i++) {
        t = traces[i];
        firstdiff_begin(t, IDS, 2, NULL, NULL);
        firstdiff_begin32(t, NULL, 2, NULL, NULL);
        firstdiff_matrix(t, 0, "out", FIRSTDIFF_F32, x, 2, 4);
        firstdiff_tensor(t, 0, "out", FIRSTDIFF_F32, x, 2, shape);
        firstdiff_heads(t, 0, "out", FIRSTDIFF_F32, x, 2, 2, 2, 4, 2, 0);
        firstdiff_record(t, 0, "out", &v);
        firstdiff_piece(t, 0, "out", &v, shape, shape);
        firstdiff_defer(t, 0, "out", &v);
        assert(!firstdiff_reserve(t, 0, 0, "out", FIRSTDIFF_F32, 2, shape));
        firstdiff_replayed(t, 0, -1, NULL);
        firstdiff_sampled(t, shape, 2);
        firstdiff_logits_rows(t, shape, 2);
        firstdiff_keys(t, 0, shape, shape, 2);
        firstdiff_fork(t, 1, 0, 2);
        firstdiff_set(t, "key", "1");
        firstdiff_expect(t, 1);
        firstdiff_end(t);
        firstdiff_drop(t);
        assert(!firstdiff_wants(t, 0, "out") && !firstdiff_recording(t) && !firstdiff_error(t));
        firstdiff_close(t, 1);
    }
    assert(!firstdiff_open(folder, &o));                                 /* an older trace */
    assert(!firstdiff_open(NULL, &o) && !firstdiff_open("", &o) && !firstdiff_open("/proc/nowhere/at/all", NULL));
    snprintf(path, sizeof path, "%s/step-000000.safetensors", folder);
    assert(!firstdiff_open(path, &o));                                   /* a file */
    snprintf(path, sizeof path, "%s-2", folder);
    o.arithmetic = "{\"activations\": f32}";
    assert(!firstdiff_open(path, &o));
    o.arithmetic = "[1]";
    assert(!firstdiff_open(path, &o));
    o.arithmetic = NULL;
    o.layers = "3-1";
    assert(!firstdiff_open(path, &o));
    o.layers = NULL;
    o.taps = "out,,q_rope";
    assert(!firstdiff_open(path, &o));
    o.taps = NULL;
    o.ranks = 2;
    o.rank = 2;
    assert(!firstdiff_open(path, &o));
    assert(access(path, F_OK));                                          /* and no folder was left */
    t = firstdiff_open(path, NULL);                                      /* no step: taken away again */
    assert(t && !access(path, F_OK));
    memset(long_name, 'a', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    firstdiff_begin(t, IDS, 1, NULL, NULL);
    firstdiff_matrix(t, 0, long_name, FIRSTDIFF_F32, x, 1, 1);
    assert(firstdiff_error(t));
    firstdiff_close(t, 1);
    assert(access(path, F_OK));
}

static void ranks(const char *folder) {
    static float x[8];
    firstdiff_trace *t[2];
    firstdiff_options o = plain();
    int rank;
    o.ranks = 2;
    for (rank = 0; rank < 2; rank++) {
        o.rank = rank;
        t[rank] = firstdiff_open(folder, &o);
        assert(t[rank]);
    }
    assert(!firstdiff_open(folder, &o));                                 /* that rank is there */
    o.ranks = 0;
    assert(!firstdiff_open(folder, &o));                                 /* so are ranks */
    for (rank = 0; rank < 2; rank++) {
        firstdiff_begin(t[rank], IDS, 2, NULL, NULL);
        fill(x, 8, (float)(10 * rank));
        firstdiff_matrix(t[rank], 0, "up_proj", FIRSTDIFF_F32, x, 2, 4);
        ended(t[rank]);
    }
}

/* A header that outgrows the room in front of the data, which then moves. */
static void many(const char *folder) {
    static float x[100000];
    firstdiff_trace *t;
    firstdiff_options o = plain();
    int step, i;
    fill(x, 100000, 0);
    t = firstdiff_open(folder, &o);
    for (step = 0; step < 3; step++) {
        firstdiff_begin(t, IDS, 1, NULL, NULL);
        for (i = 0; i < (step == 1 ? 2000 : 600); i++)
            firstdiff_matrix(t, i, "a_rather_long_name_of_a_tap", FIRSTDIFF_F32, x + i + step, 1, i == 7 ? 90000 : 1);
        firstdiff_end(t);
    }
    ended(t);
}

/* Beyond 4 GiB: zeros, which take no room on this disk, with a last row and a second tensor that are none. */
static void large(const char *folder) {
    const int64_t whole[2] = {70000, 16384};
    int64_t at[2] = {0, 0};
    static float zeros[16384], x[16384];
    firstdiff_trace *t = begun(folder, 1);
    firstdiff_view v = firstdiff_dense(FIRSTDIFF_F32, zeros, 2, whole);
    disk_sparse = 1;
    fill(x, 16384, 0);
    v.shape[0]--;
    v.strides[0] = 0;
    firstdiff_piece(t, 0, "out", &v, at, whole);
    at[0] = whole[0] - 1;
    v.shape[0] = 1;
    v.data = x;
    firstdiff_piece(t, 0, "out", &v, at, whole);
    firstdiff_matrix(t, 1, "out", FIRSTDIFF_F32, x, 1, 10);
    ended(t);
}

/* 80 MB by way of a slow disk: what waits to be written stays within the bound, with a chunk and a stack beside it. */
static void bounded(const char *folder) {
    static float x[1 << 19];
    firstdiff_options o = plain();
    firstdiff_trace *t;
    struct rusage before, after;
    int step, layer;
    fill(x, sizeof x / sizeof *x, 0);
    assert(!getrusage(RUSAGE_SELF, &before));
    disk_pause = 300;
    t = firstdiff_open(folder, &o);
    assert(t);
    for (step = 0; step < 10; step++) {
        firstdiff_begin(t, IDS, 2, NULL, NULL);
        for (layer = 0; layer < 4; layer++) firstdiff_matrix(t, layer, "out", FIRSTDIFF_F32, x, 2, 1 << 18);
        firstdiff_end(t);
    }
    ended(t);
    assert(!getrusage(RUSAGE_SELF, &after));
    printf("%ld\n", after.ru_maxrss - before.ru_maxrss);
}

#ifndef FIRSTDIFF_NO_THREADS
static firstdiff_trace *shared;
static void *taps(void *p) {
    int first = *(int *)p, i;
    float x[64] = ZERO;
    int64_t at[2] = {0, 0}, whole[2] = {8, 64}, shape[2] = {1, 64};
    firstdiff_view v = firstdiff_dense(FIRSTDIFF_F32, x, 2, shape);
    for (i = 0; i < 40; i++) {
        fill(x, 64, (float)(first * 100 + i));
        if (firstdiff_wants(shared, first * 40 + i, "up_proj"))
            firstdiff_matrix(shared, first * 40 + i, "up_proj", FIRSTDIFF_F32, x, 4, 16);
    }
    at[0] = first;
    firstdiff_piece(shared, 0, "out", &v, at, whole);
    return NULL;
}
static volatile sig_atomic_t signals;
static void count_signal(int number) { signals += number == SIGUSR1; }

/* The engine holds a signal back in its threads; the writer thread does not take it instead. */
static void masked(const char *folder) {
    struct sigaction action;
    sigset_t one;
    firstdiff_options o = plain();
    firstdiff_trace *t;
    memset(&action, 0, sizeof action);
    action.sa_handler = count_signal;
    assert(!sigaction(SIGUSR1, &action, NULL));
    t = firstdiff_open(folder, &o);
    assert(t);
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    assert(!pthread_sigmask(SIG_BLOCK, &one, NULL));
    assert(!kill(getpid(), SIGUSR1));
    firstdiff_begin(t, IDS, 1, NULL, NULL);
    ended(t);
    assert(!signals);
    assert(!pthread_sigmask(SIG_UNBLOCK, &one, NULL));
    assert(signals == 1);
}

static void *closing(void *p) { firstdiff_close(shared, 1); return p; }

static void threads(const char *folder) {
    int number[8], i, step;
    pthread_t thread[8];
    firstdiff_options o = plain();
    shared = firstdiff_open(folder, &o);
    assert(shared);
    for (step = 0; step < 5; step++) {
        firstdiff_begin(shared, IDS, 4, NULL, NULL);
        for (i = 0; i < 8; i++) { number[i] = i; assert(!pthread_create(&thread[i], NULL, taps, &number[i])); }
        for (i = 0; i < 8; i++) pthread_join(thread[i], NULL);
        firstdiff_end(shared);
    }
    assert(!firstdiff_error(shared));
    firstdiff_begin(shared, IDS, 4, NULL, NULL);                         /* closed by another thread amid taps */
    for (i = 0; i < 8; i++) assert(!pthread_create(&thread[i], NULL, i == 4 ? closing : taps, &number[i]));
    for (i = 0; i < 8; i++) pthread_join(thread[i], NULL);
    firstdiff_end(shared);
}
#endif

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(const char *); } cases[] = {
        {"layouts", layouts}, {"pieces", pieces}, {"described", described}, {"selected", selected}, {"copying", copying},
        {"failing_copy", failing_copy}, {"graphs", graphs}, {"failing_wait", failing_wait}, {"full", full}, {"killed", killed},
        {"nothing", nothing}, {"ranks", ranks}, {"many", many}, {"large", large},
        {"bounded", bounded},
#ifndef FIRSTDIFF_NO_THREADS
        {"threads", threads}, {"masked", masked},
#endif
    };
    size_t i;
    if (argc == 4 && !strcmp(argv[1], "refused")) { refused(argv[2], atoi(argv[3])); return 0; }
    for (i = 0; argc == 3 && i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(argv[1], cases[i].name)) { cases[i].run(argv[2]); return 0; }
    return 2;
}
