/* firstdiff.h: records what an inference engine computes, as a trace that `firstdiff check` reads.
   One header for C99 and C++17, POSIX, nothing but the C library. MIT OR Apache-2.0.

   In one source file, before its other includes:   #define FIRSTDIFF_IMPLEMENTATION
                                                    #include "firstdiff.h"
   In every other one:                              #include "firstdiff.h"
   Link with -pthread. FIRSTDIFF_NO_THREADS, defined beside FIRSTDIFF_IMPLEMENTATION, leaves threads out.

       firstdiff_options options = {0};
       options.producer = "my engine";
       options.arithmetic = "{\"activations\": \"f32\"}";
       firstdiff_trace *t = firstdiff_open_env(&options);       // a trace where FIRSTDIFF_TRACE names a folder
       for each forward call:
           firstdiff_begin(t, token_ids, rows, NULL, NULL);
           firstdiff_matrix(t, FIRSTDIFF_NO_LAYER, "embed", FIRSTDIFF_F32, x, rows, d);
           firstdiff_heads(t, 3, "q_rope", FIRSTDIFF_F32, q, rows, heads, head_size, heads * head_size, head_size, 0);
           firstdiff_sampled(t, &token, 1);
           firstdiff_end(t);
       firstdiff_close(t, 1);

   docs/TRACE.md lists the taps, their shapes, and what belongs into trace.json.

   Promises
   - A NULL trace makes every call return at once, and so does one that was closed: leave the calls in.
   - Nothing here aborts, exits, raises a signal or changes what the engine computes. On the first failure one line goes
     to stderr, the step at work is dropped, and recording stops. The engine goes on.
   - A step is on disk, whole, under its name, or not at all, so a killed engine leaves a valid trace. (Not after a power
     cut: nothing is synced.)
   - A folder that holds anything is never written to.
   - Tensors go straight to disk: memory does not grow with a step. Steps may be larger than 4 GiB.
   - Any thread may call, in any order between firstdiff_begin and firstdiff_end; functions of a device may not call back.
     A child made by fork records nothing.
   - A call has read its tensor when it returns, but for firstdiff_defer and firstdiff_reserve. */
#ifdef FIRSTDIFF_IMPLEMENTATION
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#if defined(__STRICT_ANSI__) && !defined(_POSIX_C_SOURCE)       /* -std=c99 alone hides masks of signals */
#define _POSIX_C_SOURCE 200809L
#endif
#endif
#ifndef FIRSTDIFF_H
#define FIRSTDIFF_H
#include <stddef.h>
#include <stdint.h>

#define FIRSTDIFF_AXES 8
#define FIRSTDIFF_NO_LAYER (-1)

#ifdef __cplusplus
extern "C" {
#endif

typedef struct firstdiff_trace firstdiff_trace;
typedef enum { FIRSTDIFF_F32, FIRSTDIFF_F64, FIRSTDIFF_F16, FIRSTDIFF_BF16, FIRSTDIFF_I32, FIRSTDIFF_I64 } firstdiff_type;

/* How tensors come from a device. Functions return 0 on success. FIRSTDIFF_CUDA, below, has these for CUDA. */
typedef struct firstdiff_device {
    /* Brings bytes from the device (or from anywhere, where views do not say on_host) to the host, behind what `stream`
       has been given, and returns when they are there. Required. */
    int (*copy)(void *to, const void *from, size_t bytes, void *stream, void *user);
    int (*wait)(void *stream, void *user);               /* until the stream has done all it was given; for firstdiff_defer */
    void *(*allocate)(size_t bytes, void *user);         /* host memory that the device can write; NULL: malloc */
    void (*release)(void *memory, void *user);
    void *user;
} firstdiff_device;

/* Zero it, then fill in what is known. Nothing is kept of it after firstdiff_open but `device`, which is copied. */
typedef struct firstdiff_options {
    const char *producer, *version;              /* of the engine; text */
    const char *arithmetic, *sampling, *model;   /* objects of trace.json, as JSON; see docs/TRACE.md */
    const char *prompt;                          /* text */
    const char *layers, *steps;                  /* what to record: "0-3,7", "10-"; NULL for all */
    const char *taps;                            /* patterns: "logits,q_*,layers.*.out"; NULL for all */
    uint64_t max_bytes;                          /* recording stops before the trace is larger; 0: no limit */
    uint64_t writer_bytes;                       /* above 0: a thread writes, and holds no more than this (256 KiB at least) */
    int rank, ranks;                             /* ranks above 1: into FOLDER/rank-N, as one of `ranks` that share products */
    const char *rank_json;                       /* other ways to share, for the key `rank`: {"pp": [0, 4]} */
    const firstdiff_device *device;              /* where tensors lie that are not on the host */
} firstdiff_options;

/* A new trace in `folder`, absent or empty. NULL where that cannot be; stderr says why. */
firstdiff_trace *firstdiff_open(const char *folder, const firstdiff_options *options);
/* The same, in the folder that FIRSTDIFF_TRACE names; NULL where it is not set. FIRSTDIFF_LAYERS, FIRSTDIFF_TAPS,
   FIRSTDIFF_STEPS and FIRSTDIFF_MAX_BYTES (500000000, 500MB, 2GB) go before the options. */
firstdiff_trace *firstdiff_open_env(const firstdiff_options *options);
/* Ends the trace. complete: the run ended normally. A trace without steps is taken away. A second call does nothing. */
void firstdiff_close(firstdiff_trace *t, int complete);
/* Sets a key of trace.json that is known only now; `json` is its JSON text. */
void firstdiff_set(firstdiff_trace *t, const char *key, const char *json);

/* A forward call over `rows` tokens. positions, sequence: one a row, or NULL. A step that is still open is dropped. */
void firstdiff_begin(firstdiff_trace *t, const int64_t *token_ids, size_t rows, const int64_t *positions,
                     const int64_t *sequence);
void firstdiff_begin32(firstdiff_trace *t, const int32_t *token_ids, size_t rows, const int32_t *positions,
                       const int32_t *sequence);
void firstdiff_end(firstdiff_trace *t);                  /* writes the step */
void firstdiff_drop(firstdiff_trace *t);                 /* forgets it: a warm-up, a call that failed */

/* Before firstdiff_end: the token chosen for each sequence of the step, -1 for none. */
void firstdiff_sampled(firstdiff_trace *t, const int64_t *tokens, size_t count);
/* Which rows logits and final_norm have, where not all. */
void firstdiff_logits_rows(firstdiff_trace *t, const int64_t *rows, size_t count);
/* Whose key each entry of the key axis is; sequence may be NULL; FIRSTDIFF_NO_LAYER: in every layer. */
void firstdiff_keys(firstdiff_trace *t, int layer, const int64_t *sequence, const int64_t *position, size_t count);
/* `sequence` begins with the first `length` keys of `parent`. */
void firstdiff_fork(firstdiff_trace *t, int64_t sequence, int64_t parent, int64_t length);

/* rows x columns, dense. `tap` is its name without "layers.N.". */
void firstdiff_matrix(firstdiff_trace *t, int layer, const char *tap, firstdiff_type type, const void *data, int64_t rows,
                      int64_t columns);
/* Any shape, dense, outermost axis first. */
void firstdiff_tensor(firstdiff_trace *t, int layer, const char *tap, firstdiff_type type, const void *data, int axes,
                      const int64_t *shape);
/* Heads (T,H,D) wherever they lie: elements from one row to the next and from one head to the next. One of three fused
   projections: a pointer to its first element, and the length of a fused row as row_stride. H,T,D: row_stride D,
   head_stride T*D. neighbours: so many channels of each head, from its first, are pairs 2i and 2i+1 (llama2.c, GGUF files
   of llama); they go out as i and i+n/2, as in Hugging Face's models. 0 where they are in that order already. */
void firstdiff_heads(firstdiff_trace *t, int layer, const char *tap, firstdiff_type type, const void *data, int64_t rows,
                     int64_t heads, int64_t head_size, int64_t row_stride, int64_t head_stride, int64_t neighbours);

/* Everything else. */
typedef struct firstdiff_view {
    firstdiff_type type;
    const void *data;                        /* its element 0,0,... */
    int axes;
    int64_t shape[FIRSTDIFF_AXES];
    int64_t strides[FIRSTDIFF_AXES];         /* in elements; may be negative */
    int64_t neighbours;                      /* of the last axis, as above */
    int on_host;                             /* with a device: read it without the device's copy */
    void *stream;                            /* for the device's functions */
} firstdiff_view;
firstdiff_view firstdiff_dense(firstdiff_type type, const void *data, int axes, const int64_t *shape);
void firstdiff_record(firstdiff_trace *t, int layer, const char *tap, const firstdiff_view *view);
/* A part of a tensor whose shape is `whole`, beginning at index `at` (an index for each axis): micro-batches, shards of
   tensor parallelism in one process. All parts of it within one step, each element once. */
void firstdiff_piece(firstdiff_trace *t, int layer, const char *tap, const firstdiff_view *view, const int64_t *at,
                     const int64_t *whole);
/* Reads it within firstdiff_end, after waiting for its stream. The memory is on the host and stays as it is until then. */
void firstdiff_defer(firstdiff_trace *t, int layer, const char *tap, const firstdiff_view *view);

/* For a captured graph: memory to copy a tensor into, by a copy that is captured with the graph. It is the same at every
   replay and lasts until firstdiff_close. `graph` is any number: a group of tensors that are there together.
   NULL: not recorded; capture no copy. Allowed while capturing. */
void *firstdiff_reserve(firstdiff_trace *t, int graph, int layer, const char *tap, firstdiff_type type, int axes,
                        const int64_t *shape);
/* The graph was launched in this step, on `stream`. Its tensors are read in firstdiff_end, after waiting for the stream:
   of the first axis `rows` entries, where the rest is padding; -1 for all. */
void firstdiff_replayed(firstdiff_trace *t, int graph, int64_t rows, void *stream);

int firstdiff_wants(firstdiff_trace *t, int layer, const char *tap);    /* 1: will be recorded, in this step if one is open */
int firstdiff_recording(firstdiff_trace *t);                            /* 1: in a step that takes taps */
const char *firstdiff_error(firstdiff_trace *t);                        /* why recording stopped; NULL where it did not */
/* Says on stderr how large the trace will be, for engines that know: sum up what firstdiff_wants. */
void firstdiff_expect(firstdiff_trace *t, uint64_t bytes);

#ifdef __cplusplus
}
#endif

#ifdef FIRSTDIFF_CUDA
#include <cuda_runtime_api.h>
/* options.device = firstdiff_cuda(). Pointers may be of the host too. Streams are cudaStream_t. */
static inline int firstdiff_cuda_done_(cudaError_t error) {
    if (error != cudaSuccess) (void)cudaGetLastError();
    return error == cudaSuccess;
}
static inline int firstdiff_cuda_copy_(void *to, const void *from, size_t bytes, void *stream, void *user) {
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    (void)user;
    /* waiting for a stream that is being captured would spoil the capture */
    if (!firstdiff_cuda_done_(cudaStreamIsCapturing((cudaStream_t)stream, &status)) || status != cudaStreamCaptureStatusNone)
        return 1;
    return !(firstdiff_cuda_done_(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream)) &&
             firstdiff_cuda_done_(cudaStreamSynchronize((cudaStream_t)stream)));
}
static inline int firstdiff_cuda_wait_(void *stream, void *user) {
    (void)user;
    return !firstdiff_cuda_done_(cudaStreamSynchronize((cudaStream_t)stream));
}
static inline void *firstdiff_cuda_allocate_(size_t bytes, void *user) {
    void *memory = NULL;
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;     /* so would an allocation in another mode */
    (void)user;
    if (!firstdiff_cuda_done_(cudaThreadExchangeStreamCaptureMode(&mode))) return NULL;
    if (!firstdiff_cuda_done_(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault))) memory = NULL;
    (void)firstdiff_cuda_done_(cudaThreadExchangeStreamCaptureMode(&mode));
    return memory;
}
static inline void firstdiff_cuda_release_(void *memory, void *user) {
    (void)user;
    (void)firstdiff_cuda_done_(cudaFreeHost(memory));
}
static inline const firstdiff_device *firstdiff_cuda(void) {
    static const firstdiff_device cuda = {firstdiff_cuda_copy_, firstdiff_cuda_wait_, firstdiff_cuda_allocate_,
                                          firstdiff_cuda_release_, NULL};
    return &cuda;
}
#endif /* FIRSTDIFF_CUDA */
#endif /* FIRSTDIFF_H */

#if defined(FIRSTDIFF_IMPLEMENTATION) && !defined(FIRSTDIFF_IMPLEMENTED)
#define FIRSTDIFF_IMPLEMENTED
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#ifndef FIRSTDIFF_NO_THREADS
#include <pthread.h>
#endif

#define FIRSTDIFF_CHUNK_ ((size_t)1 << 20)       /* bytes that are put together before they are written */
#define FIRSTDIFF_SPAN_ ((size_t)16 << 20)       /* bytes of a device that are fetched to pick strided elements from */
#define FIRSTDIFF_PATH_ 4352
#define FIRSTDIFF_FOLDER_ 4096
#define FIRSTDIFF_NAME_ 160

typedef struct {
    char name[FIRSTDIFF_NAME_];
    uint32_t hash;
    firstdiff_type type;
    int axes;
    int64_t shape[FIRSTDIFF_AXES];
    uint64_t begin, elements, present;
    size_t last_box;                             /* number of its latest piece, plus 1; 0 for none */
} firstdiff_entry_;

typedef struct {                                 /* one piece: which elements are there already */
    int64_t at[FIRSTDIFF_AXES], end[FIRSTDIFF_AXES];
    size_t before;
} firstdiff_box_;

typedef struct {                                 /* a tensor to be read in firstdiff_end */
    char name[FIRSTDIFF_NAME_];
    firstdiff_view view;
} firstdiff_late_;

typedef struct {
    char name[FIRSTDIFF_NAME_];
    int graph, current;                          /* current: 0 where a later reserve of that name took its place */
    size_t bytes;
    firstdiff_view view;
    void *memory;
} firstdiff_reserved_;

typedef struct { int graph; int64_t rows; void *stream; } firstdiff_replay_;

enum { FIRSTDIFF_WRITE_, FIRSTDIFF_FINISH_, FIRSTDIFF_DISCARD_ };
typedef struct firstdiff_job_ {
    struct firstdiff_job_ *next;
    int kind, file;
    uint64_t at;                                 /* where in the file; FINISH: the room for its header */
    uint64_t data;                               /* FINISH: bytes behind it */
    size_t size, step;
    unsigned long attempt;
    unsigned char *bytes;                        /* owned */
} firstdiff_job_;

typedef struct { char *text; uint64_t *first, *end; size_t count; } firstdiff_ranges_;     /* end 0: open */
typedef struct { char *key, *json; } firstdiff_member_;

enum { FIRSTDIFF_OPEN_, FIRSTDIFF_ENOUGH_, FIRSTDIFF_FAILED_, FIRSTDIFF_CLOSED_ };
struct firstdiff_trace {
    firstdiff_trace *next;                       /* all of the process, for leak checkers: a closed one is never freed */
    long process;
#ifndef FIRSTDIFF_NO_THREADS
    pthread_mutex_t calls;                       /* held by every call from its beginning to its end */
    pthread_mutex_t queue;                       /* what the writer thread shares: down to `done` */
    pthread_cond_t changed;
    pthread_t thread;
#endif
    int threaded, quit, broken;
    char broken_why[512];
    firstdiff_job_ *jobs, *last_job;
    size_t buffers, most_buffers;                /* chunks there are, and may be */
    unsigned char **spare;
    size_t spares, done;                         /* done: steps on disk */

    int state, cut, made_folder, in_step, takes_taps;
    char error[512];
    char *folder;
    firstdiff_member_ *members;
    size_t member_count, member_room;
    firstdiff_ranges_ layers, steps;
    char *patterns[64];
    char pattern_hit[64];
    size_t pattern_count;
    int has_patterns;
    uint64_t max_bytes, written;                 /* written: bytes of steps that were ended */
    firstdiff_device device;
    int has_device;

    size_t step;                                 /* number of the open step, or of the next one */
    unsigned long attempt;                       /* of the steps that were begun */
    int file;
    uint64_t size, head;                         /* data of the open step so far; room in front of it */
    unsigned char *chunk;
    size_t chunk_size, chunk_used;
    uint64_t chunk_at;
    unsigned char *span;
    size_t span_room;
    firstdiff_entry_ *entries;
    size_t entry_count, entry_room;
    firstdiff_box_ *boxes;
    size_t box_count, box_room;
    firstdiff_late_ *late;
    size_t late_count, late_room;
    firstdiff_reserved_ *reserved;
    size_t reserved_count, reserved_room;
    firstdiff_replay_ *replays;
    size_t replay_count, replay_room;
    int64_t *forks;
    size_t fork_count, fork_room;
};

static const char *const firstdiff_type_names_[] = {"F32", "F64", "F16", "BF16", "I32", "I64"};
static const unsigned char firstdiff_widths_[] = {4, 8, 2, 2, 4, 8};
static firstdiff_trace *firstdiff_all_;

#ifndef FIRSTDIFF_NO_THREADS
static pthread_mutex_t firstdiff_all_lock_ = PTHREAD_MUTEX_INITIALIZER;
#define FIRSTDIFF_LOCK_(mutex) ((void)pthread_mutex_lock(mutex))
#define FIRSTDIFF_UNLOCK_(mutex) ((void)pthread_mutex_unlock(mutex))
#else
#define FIRSTDIFF_LOCK_(mutex) ((void)0)
#define FIRSTDIFF_UNLOCK_(mutex) ((void)0)
#endif

/* ---- failing ------------------------------------------------------------------------------------------------------- */

static void firstdiff_refuse_(const char *form, ...) {
    char text[640];
    va_list args;
    va_start(args, form);
    vsnprintf(text, sizeof text, form, args);
    va_end(args);
    fprintf(stderr, "firstdiff: not recording: %s\n", text);
}

static void firstdiff_said_(const firstdiff_trace *t, size_t steps, const char *why) {
    fprintf(stderr, "firstdiff: recording stopped after %lu steps in %s; the engine goes on. Reason: %s\n",
            (unsigned long)steps, t->folder, why);
}

static size_t firstdiff_done_(firstdiff_trace *t) {
    size_t done;
    FIRSTDIFF_LOCK_(&t->queue);
    done = t->done;
    FIRSTDIFF_UNLOCK_(&t->queue);
    return done;
}

/* By a call, which holds `calls`. The step at work is dropped when that call ends, or by the next one. */
static void firstdiff_stop_(firstdiff_trace *t, const char *form, ...) {
    va_list args;
    if (t->state != FIRSTDIFF_OPEN_) return;
    t->state = FIRSTDIFF_FAILED_;
    va_start(args, form);
    vsnprintf(t->error, sizeof t->error, form, args);
    va_end(args);
    firstdiff_said_(t, firstdiff_done_(t), t->error);
}

/* Room for one more element of an array. */
static int firstdiff_grow_(firstdiff_trace *t, void *array, size_t *room, size_t count, size_t size) {
    void *old, *grown;
    size_t more = *room ? 2 * *room : 64;
    if (count < *room) return 1;
    memcpy(&old, array, sizeof old);
    grown = realloc(old, more * size);
    if (!grown) {
        firstdiff_stop_(t, "out of memory");
        return 0;
    }
    memcpy(array, &grown, sizeof grown);
    *room = more;
    return 1;
}

static char *firstdiff_copy_text_(const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = (char *)malloc(size);
    if (copy) memcpy(copy, text, size);
    return copy;
}

/* ---- files --------------------------------------------------------------------------------------------------------- */

static void firstdiff_step_path_(char *path, const firstdiff_trace *t, size_t step) {
    snprintf(path, FIRSTDIFF_PATH_, "%s/step-%06lu.safetensors", t->folder, (unsigned long)step);
}

/* Each attempt has a name of its own: the writer thread may not be done with the one before, which was dropped. The Python
   recorders' names are of the same form, and an older trace's files are known by it. */
static void firstdiff_temporary_path_(char *path, const firstdiff_trace *t, size_t step, unsigned long attempt) {
    snprintf(path, FIRSTDIFF_PATH_, "%s/step-%06lu.safetensors.%ld-%lu.tmp", t->folder, (unsigned long)step, t->process, attempt);
}

static int firstdiff_create_(const char *path, int further) {
    int file;
    do file = open(path, O_RDWR | O_CREAT | further, 0666);
    while (file < 0 && errno == EINTR);
    if (file >= 0) (void)fcntl(file, F_SETFD, FD_CLOEXEC);       /* not for programs that the engine starts */
    return file;
}

static int firstdiff_seek_(int file, uint64_t at) {
    if ((uint64_t)(off_t)at != at || (off_t)at < 0) { errno = EFBIG; return 0; }
    return lseek(file, (off_t)at, SEEK_SET) >= 0;
}

/* Writes all of it, or sets errno. Past a limit on the size of files the system would send SIGXFSZ, which ends a process. */
static int firstdiff_put_(int file, uint64_t at, const void *bytes, size_t size) {
    const unsigned char *from = (const unsigned char *)bytes;
    struct rlimit limit;
    if (!firstdiff_seek_(file, at)) return 0;
    while (size) {
        ssize_t n;
        if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur != RLIM_INFINITY && at + size > (uint64_t)limit.rlim_cur) {
            errno = EFBIG;
            return 0;
        }
        n = write(file, from, size < ((size_t)1 << 30) ? size : (size_t)1 << 30);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (!n) errno = ENOSPC;
            return 0;
        }
        from += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 1;
}

static int firstdiff_get_(int file, uint64_t at, unsigned char *to, size_t size) {
    if (!firstdiff_seek_(file, at)) return 0;
    while (size) {
        ssize_t n = read(file, to, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (!n) errno = EIO;
            return 0;
        }
        to += n;
        size -= (size_t)n;
    }
    return 1;
}

/* Puts the header in front, moving the data where it is larger than the room that was kept, and gives the file its name. */
static int firstdiff_finish_(const firstdiff_trace *t, firstdiff_job_ *job) {
    char from[FIRSTDIFF_PATH_], to[FIRSTDIFF_PATH_];
    uint64_t head = job->at, left = job->data;
    unsigned char length[8];
    size_t i, padding;
    int ok = 1;
    if (job->size + 8 > head) {
        unsigned char *buffer = (unsigned char *)malloc(FIRSTDIFF_CHUNK_);
        if (!buffer) { errno = ENOMEM; ok = 0; }
        head = (job->size + 8 + 7) / 8 * 8;
        while (ok && left) {
            size_t n = left < FIRSTDIFF_CHUNK_ ? (size_t)left : FIRSTDIFF_CHUNK_;
            left -= n;
            ok = firstdiff_get_(job->file, job->at + left, buffer, n) && firstdiff_put_(job->file, head + left, buffer, n);
        }
        free(buffer);
    }
    for (i = 0; i < 8; i++) length[i] = (unsigned char)((head - 8) >> (8 * i));
    ok = ok && firstdiff_put_(job->file, 0, length, 8) && firstdiff_put_(job->file, 8, job->bytes, job->size);
    for (padding = (size_t)(head - 8 - job->size), i = 0; ok && i < padding;) {
        static const char spaces[] = "                                                                ";
        size_t n = padding - i < sizeof spaces - 1 ? padding - i : sizeof spaces - 1;
        ok = firstdiff_put_(job->file, 8 + job->size + i, spaces, n);
        i += n;
    }
    if (close(job->file) && errno != EINTR) ok = 0;      /* some file systems report a full disk here */
    job->file = -1;
    firstdiff_temporary_path_(from, t, job->step, job->attempt);
    firstdiff_step_path_(to, t, job->step);
    if (ok && !rename(from, to)) return 1;
    i = (size_t)errno;
    (void)unlink(from);
    errno = (int)i;
    return 0;
}

/* Does a job, or, where the trace is broken already, takes its file away. 0 and errno where that failed. */
static int firstdiff_work_(const firstdiff_trace *t, firstdiff_job_ *job, int broken) {
    char path[FIRSTDIFF_PATH_];
    if (job->kind == FIRSTDIFF_WRITE_) return broken || firstdiff_put_(job->file, job->at, job->bytes, job->size);
    if (job->kind == FIRSTDIFF_FINISH_ && !broken) return firstdiff_finish_(t, job);
    (void)close(job->file);
    firstdiff_temporary_path_(path, t, job->step, job->attempt);
    (void)unlink(path);
    return 1;
}

static void firstdiff_why_(const firstdiff_trace *t, char *why, size_t room, size_t step, int error) {
    snprintf(why, room, "cannot write step %lu to %.300s: %s", (unsigned long)step, t->folder, strerror(error));
}

/* ---- the writer thread --------------------------------------------------------------------------------------------- */

#ifndef FIRSTDIFF_NO_THREADS
static void *firstdiff_writer_(void *argument) {
    firstdiff_trace *t = (firstdiff_trace *)argument;
    FIRSTDIFF_LOCK_(&t->queue);
    for (;;) {
        firstdiff_job_ *job;
        int broken, ok, error;
        while (!t->jobs && !t->quit) (void)pthread_cond_wait(&t->changed, &t->queue);
        if (!(job = t->jobs)) break;
        t->jobs = job->next;
        if (!t->jobs) t->last_job = NULL;
        broken = t->broken;
        FIRSTDIFF_UNLOCK_(&t->queue);
        ok = firstdiff_work_(t, job, broken);
        error = errno;
        FIRSTDIFF_LOCK_(&t->queue);
        if (!ok && !t->broken) {
            firstdiff_why_(t, t->broken_why, sizeof t->broken_why, job->step, error);
            t->broken = 1;
            firstdiff_said_(t, t->done, t->broken_why);
        }
        if (ok && !broken && job->kind == FIRSTDIFF_FINISH_) t->done++;
        if (job->kind == FIRSTDIFF_WRITE_) t->spare[t->spares++] = job->bytes;
        else free(job->bytes);
        free(job);
        (void)pthread_cond_broadcast(&t->changed);
    }
    FIRSTDIFF_UNLOCK_(&t->queue);
    return NULL;
}
#endif

/* Hands a job with its bytes to the writer thread, or does it now. */
static void firstdiff_submit_(firstdiff_trace *t, int kind, uint64_t at, uint64_t data, unsigned char *bytes, size_t size) {
    firstdiff_job_ here, *job = &here;
    memset(&here, 0, sizeof here);
    if (t->threaded && !(job = (firstdiff_job_ *)calloc(1, sizeof *job))) {
        /* nothing can be handed over: this step's file stays behind under its temporary name, closed at the end */
        firstdiff_stop_(t, "out of memory");
        if (kind == FIRSTDIFF_WRITE_) {
            FIRSTDIFF_LOCK_(&t->queue);
            t->spare[t->spares++] = bytes;
            FIRSTDIFF_UNLOCK_(&t->queue);
        } else free(bytes);
        return;
    }
    job->kind = kind;
    job->file = t->file;
    job->at = at;
    job->data = data;
    job->bytes = bytes;
    job->size = size;
    job->step = t->step;
    job->attempt = t->attempt;
    if (t->threaded) {
        FIRSTDIFF_LOCK_(&t->queue);
        if (t->last_job) t->last_job->next = job;
        else t->jobs = job;
        t->last_job = job;
#ifndef FIRSTDIFF_NO_THREADS
        (void)pthread_cond_broadcast(&t->changed);
#endif
        FIRSTDIFF_UNLOCK_(&t->queue);
        return;
    }
    if (!firstdiff_work_(t, job, 0)) {
        char why[512];
        firstdiff_why_(t, why, sizeof why, t->step, errno);
        firstdiff_stop_(t, "%s", why);
    } else if (kind == FIRSTDIFF_FINISH_) t->done++;
    if (kind != FIRSTDIFF_WRITE_) free(bytes);           /* a chunk is filled again */
}

/* A chunk to fill: a spare one, a new one, or, at the bound, the next that the writer is done with. */
static unsigned char *firstdiff_new_chunk_(firstdiff_trace *t) {
    unsigned char *chunk = NULL;
    FIRSTDIFF_LOCK_(&t->queue);
#ifndef FIRSTDIFF_NO_THREADS
    while (t->threaded && !t->spares && t->buffers == t->most_buffers) (void)pthread_cond_wait(&t->changed, &t->queue);
#endif
    if (t->spares) chunk = t->spare[--t->spares];
    else if ((chunk = (unsigned char *)malloc(t->chunk_size))) t->buffers++;
    FIRSTDIFF_UNLOCK_(&t->queue);
    if (!chunk) firstdiff_stop_(t, "out of memory");
    return chunk;
}

static void firstdiff_flush_(firstdiff_trace *t) {
    unsigned char *chunk = t->chunk;
    size_t used = t->chunk_used;
    t->chunk_used = 0;
    if (!used) return;
    if (t->threaded) t->chunk = NULL;
    firstdiff_submit_(t, FIRSTDIFF_WRITE_, t->head + t->chunk_at, 0, chunk, used);
}

/* Up to `want` bytes, at least `width`, of room that goes to place `at` of the step's data. The caller fills all of it. */
static unsigned char *firstdiff_room_(firstdiff_trace *t, uint64_t at, uint64_t want, size_t width, size_t *got) {
    size_t left;
    if (t->chunk_used && (t->chunk_at + t->chunk_used != at || t->chunk_size - t->chunk_used < width)) firstdiff_flush_(t);
    if (!t->chunk && !(t->chunk = firstdiff_new_chunk_(t))) return NULL;
    if (t->state != FIRSTDIFF_OPEN_) return NULL;
    if (!t->chunk_used) t->chunk_at = at;
    left = (t->chunk_size - t->chunk_used) / width * width;
    *got = want < left ? (size_t)want : left;
    t->chunk_used += *got;
    return t->chunk + t->chunk_used - *got;
}

/* The writer thread may have failed since the last call. */
static int firstdiff_is_broken_(firstdiff_trace *t) {
    int broken;
    if (!t->threaded) return 0;
    FIRSTDIFF_LOCK_(&t->queue);
    broken = t->broken;
    FIRSTDIFF_UNLOCK_(&t->queue);
    return broken;
}

/* Forgets the open step, and its file. */
static void firstdiff_abandon_(firstdiff_trace *t) {
    if (!t->in_step) return;
    t->in_step = t->takes_taps = 0;
    t->chunk_used = 0;
    firstdiff_submit_(t, FIRSTDIFF_DISCARD_, 0, 0, NULL, 0);
    t->file = -1;
}

static void firstdiff_leave_(firstdiff_trace *t) {
    if (t->state != FIRSTDIFF_OPEN_) firstdiff_abandon_(t);
    FIRSTDIFF_UNLOCK_(&t->calls);
}

/* Every call begins here; 0 where it has nothing to do. */
static int firstdiff_enter_(firstdiff_trace *t) {
    if (!t || t->process != (long)getpid()) return 0;
    FIRSTDIFF_LOCK_(&t->calls);
    if (t->state == FIRSTDIFF_OPEN_ && firstdiff_is_broken_(t)) {
        t->state = FIRSTDIFF_FAILED_;
        FIRSTDIFF_LOCK_(&t->queue);
        memcpy(t->error, t->broken_why, sizeof t->error);
        FIRSTDIFF_UNLOCK_(&t->queue);
    }
    if (t->state == FIRSTDIFF_OPEN_) return 1;
    firstdiff_leave_(t);
    return 0;
}

/* ---- trace.json ---------------------------------------------------------------------------------------------------- */

static const char *firstdiff_json_space_(const char *p) {
    while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r') p++;
    return p;
}

/* The end of a string that begins at `p`, or NULL. Bytes of UTF-8 sequences are counted, not decoded. */
static const char *firstdiff_json_string_(const char *p) {
    if (*p++ != '"') return NULL;
    while (*p != '"') {
        int more = 0, i;
        unsigned char c = (unsigned char)*p;
        if (c < 0x20) return NULL;
        if (c == '\\') {
            if (!*++p || !strchr("\"\\/bfnrtu", *p)) return NULL;
            if (*p == 'u') for (i = 0; i < 4; i++) if (!*++p || !strchr("0123456789abcdefABCDEF", *p)) return NULL;
        } else if (c >= 0x80) {
            more = c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : -1;
            if (more < 0) return NULL;
            for (i = 0; i < more; i++) if (((unsigned char)*++p & 0xc0) != 0x80) return NULL;
        }
        p++;
    }
    return p + 1;
}

/* The end of the JSON value that begins at `p`, or NULL where there is none. */
static const char *firstdiff_json_(const char *p, int depth) {
    p = firstdiff_json_space_(p);
    if (*p == '"') return firstdiff_json_string_(p);
    if (*p == '{' || *p == '[') {
        char close = *p == '{' ? '}' : ']';
        if (depth > 32) return NULL;
        p = firstdiff_json_space_(p + 1);
        if (*p == close) return p + 1;
        for (;;) {
            if (close == '}') {
                if (!(p = firstdiff_json_string_(firstdiff_json_space_(p)))) return NULL;
                p = firstdiff_json_space_(p);
                if (*p++ != ':') return NULL;
            }
            if (!(p = firstdiff_json_(p, depth + 1))) return NULL;
            p = firstdiff_json_space_(p);
            if (*p == close) return p + 1;
            if (*p++ != ',') return NULL;
        }
    }
    if (!strncmp(p, "true", 4) || !strncmp(p, "null", 4)) return p + 4;
    if (!strncmp(p, "false", 5)) return p + 5;
    if (*p == '-') p++;
    if (*p == '0') p++;
    else if (*p >= '1' && *p <= '9') while (*p >= '0' && *p <= '9') p++;
    else return NULL;
    if (*p == '.') {
        if (!(p[1] >= '0' && p[1] <= '9')) return NULL;
        for (p++; *p >= '0' && *p <= '9';) p++;
    }
    if (*p == 'e' || *p == 'E') {
        p++;
        if (*p == '+' || *p == '-') p++;
        if (!(*p >= '0' && *p <= '9')) return NULL;
        while (*p >= '0' && *p <= '9') p++;
    }
    return p;
}

static int firstdiff_is_json_(const char *text) {
    const char *end = firstdiff_json_(text, 0);
    return end && !*firstdiff_json_space_(end);
}

/* Text as a JSON string, to be freed. Bytes that are no UTF-8 become question marks. */
static char *firstdiff_quote_(const char *text) {
    char *out = (char *)malloc(6 * strlen(text) + 3);
    size_t n = 0;
    if (!out) return NULL;
    out[n++] = '"';
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') { out[n++] = '\\'; out[n++] = (char)c; }
        else if (c < 0x20) { snprintf(out + n, 7, "\\u%04x", c); n += 6; }
        else if (c < 0x80) out[n++] = (char)c;
        else {
            /* one character of several bytes, as the check of strings sees it */
            size_t bytes = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4, have = 0;
            char one[8];
            one[0] = '"';
            while (have < bytes && text[have]) { one[1 + have] = text[have]; have++; }
            one[1 + have] = '"';
            one[2 + have] = 0;
            if (have == bytes && firstdiff_json_string_(one) == one + have + 2) {
                memcpy(out + n, text, bytes);
                n += bytes;
                text += bytes - 1;
            } else out[n++] = '?';
        }
    }
    out[n++] = '"';
    out[n] = 0;
    return out;
}

/* Sets a key; takes over `json`. 0 where memory ran out. */
static int firstdiff_member_set_(firstdiff_trace *t, const char *key, char *json) {
    size_t i;
    if (!json) return 0;
    for (i = 0; i < t->member_count; i++) {
        if (strcmp(t->members[i].key, key)) continue;
        free(t->members[i].json);
        t->members[i].json = json;
        return 1;
    }
    if (!firstdiff_grow_(t, &t->members, &t->member_room, t->member_count, sizeof *t->members) ||
        !(t->members[t->member_count].key = firstdiff_copy_text_(key))) {
        free(json);
        return 0;
    }
    t->members[t->member_count++].json = json;
    return 1;
}

/* Writes trace.json by way of a temporary file. `further` are flags for that file. */
static int firstdiff_write_about_(firstdiff_trace *t, int complete, int further) {
    char to[FIRSTDIFF_PATH_], from[FIRSTDIFF_PATH_];
    size_t room = 64, n, i;
    char *text;
    int file, ok, error;
    for (i = 0; i < t->member_count; i++) room += strlen(t->members[i].key) + strlen(t->members[i].json) + 8;
    if (!(text = (char *)malloc(room))) { errno = ENOMEM; return 0; }
    n = (size_t)snprintf(text, room, "{");
    for (i = 0; i < t->member_count; i++)
        n += (size_t)snprintf(text + n, room - n, "\"%s\": %s,\n ", t->members[i].key, t->members[i].json);
    n += (size_t)snprintf(text + n, room - n, "\"complete\": %s}\n", complete ? "true" : "false");
    snprintf(to, sizeof to, "%s/trace.json", t->folder);
    snprintf(from, sizeof from, "%s/trace.json.tmp", t->folder);
    file = firstdiff_create_(from, further);
    if (file < 0) { free(text); return 0; }
    ok = firstdiff_put_(file, 0, text, n);
    error = errno;
    free(text);
    if (close(file) && errno != EINTR && ok) { ok = 0; error = errno; }
    if (ok && !rename(from, to)) return 1;
    if (ok) error = errno;
    (void)unlink(from);
    errno = error;
    return 0;
}

/* ---- what is selected ---------------------------------------------------------------------------------------------- */

/* "0-3,7", "10-": 1, or 0 where the text is something else. */
static int firstdiff_parse_ranges_(firstdiff_ranges_ *ranges, const char *text) {
    const char *p = text;
    size_t room = 1, i;
    for (i = 0; text[i]; i++) room += text[i] == ',';
    ranges->text = firstdiff_copy_text_(text);
    ranges->first = (uint64_t *)calloc(2 * room, sizeof *ranges->first);
    if (!ranges->text || !ranges->first) return 0;
    ranges->end = ranges->first + room;
    for (;;) {
        uint64_t number[2] = {0, 0};
        int digits[2] = {0, 0}, range = 0, part;
        for (part = 0; part < 2; part++) {
            while (*p == ' ') p++;
            for (; *p >= '0' && *p <= '9' && digits[part] < 18; p++, digits[part]++)
                number[part] = 10 * number[part] + (uint64_t)(*p - '0');
            while (*p == ' ') p++;
            if (part == 0 && *p == '-') { range = 1; p++; } else break;
        }
        if (!digits[0] || (digits[1] && number[1] < number[0])) return 0;
        ranges->first[ranges->count] = number[0];
        ranges->end[ranges->count++] = !range ? number[0] + 1 : digits[1] ? number[1] + 1 : 0;
        if (!*p) return 1;
        if (*p++ != ',') return 0;
    }
}

static int firstdiff_in_(const firstdiff_ranges_ *ranges, uint64_t number) {
    size_t i;
    if (!ranges->text) return 1;
    for (i = 0; i < ranges->count; i++)
        if (number >= ranges->first[i] && (!ranges->end[i] || number < ranges->end[i])) return 1;
    return 0;
}

/* Whether neither this number nor a later one is among them. */
static int firstdiff_past_(const firstdiff_ranges_ *ranges, uint64_t number) {
    size_t i;
    if (!ranges->text) return 0;
    for (i = 0; i < ranges->count; i++) if (!ranges->end[i] || number < ranges->end[i]) return 0;
    return 1;
}

/* A pattern with * and ?, as long as the whole text. */
static int firstdiff_glob_(const char *pattern, const char *text) {
    const char *star = NULL, *retry = NULL;
    while (*text) {
        if (*pattern == '*') { star = ++pattern; retry = text; }
        else if (*pattern == '?' || *pattern == *text) { pattern++; text++; }
        else if (star) { pattern = star; text = ++retry; }
        else return 0;
    }
    while (*pattern == '*') pattern++;
    return !*pattern;
}

/* The layer of a full name, or -1; *own is the name behind it. */
static int64_t firstdiff_layer_of_(const char *name, const char **own) {
    const char *p = name;
    int64_t layer = 0;
    *own = name;
    if (!strncmp(p, "model.", 6)) p += 6;
    if (strncmp(p, "layers.", 7)) return -1;
    for (p += 7; *p >= '0' && *p <= '9' && layer < 1000000000; p++) layer = 10 * layer + (*p - '0');
    if (*p != '.' || p[-1] == '.') return -1;
    *own = p + 1;
    return layer;
}

/* Whether a tap is to be recorded. found: it exists; a pattern that no tap matches is named at the end. */
static int firstdiff_selected_(firstdiff_trace *t, const char *name, int found) {
    const char *own;
    int64_t layer = firstdiff_layer_of_(name, &own);
    size_t i;
    int hit = !t->has_patterns;
    if (layer >= 0 && !firstdiff_in_(&t->layers, (uint64_t)layer)) return 0;
    for (i = 0; i < t->pattern_count; i++)
        if (firstdiff_glob_(t->patterns[i], name) || firstdiff_glob_(t->patterns[i], own)) {
            hit = 1;
            if (found) t->pattern_hit[i] = 1;
        }
    return hit;
}

static int firstdiff_parse_patterns_(firstdiff_trace *t, const char *text) {
    t->has_patterns = 1;
    for (;;) {
        const char *end = strchr(text, ',');
        size_t size = end ? (size_t)(end - text) : strlen(text);
        while (size && *text == ' ') { text++; size--; }
        while (size && text[size - 1] == ' ') size--;
        if (!size || t->pattern_count == sizeof t->patterns / sizeof *t->patterns) return 0;
        if (!(t->patterns[t->pattern_count] = (char *)malloc(size + 1))) return 0;
        memcpy(t->patterns[t->pattern_count], text, size);
        t->patterns[t->pattern_count++][size] = 0;
        if (!end) return 1;
        text = end + 1;
    }
}

/* 500000000, 500MB, 2 GB, 1.5g: bytes; 0 where the text is something else. */
static uint64_t firstdiff_parse_size_(const char *text) {
    static const char units[] = "kmgt";
    double size = 0, place = 1;
    const char *unit;
    int digits = 0, power, dot = 0;
    for (; (*text >= '0' && *text <= '9') || (*text == '.' && !dot && digits); text++) {
        if (*text == '.') { dot = 1; continue; }
        if (dot) size += (*text - '0') * (place /= 10);
        else size = 10 * size + (*text - '0');
        digits++;
    }
    while (*text == ' ') text++;
    if (*text && (unit = strchr(units, *text >= 'A' && *text <= 'Z' ? *text - 'A' + 'a' : *text))) {
        for (power = (int)(unit - units); power >= 0; power--) size *= 1e3;
        text++;
    }
    if (*text == 'i' || *text == 'I') text++;
    if (*text == 'b' || *text == 'B') text++;
    return *text || !digits || size < 1 || size > 9e18 ? 0 : (uint64_t)size;
}

static void firstdiff_show_size_(char *out, size_t room, uint64_t bytes) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    double size = (double)bytes;
    int unit = 0;
    while (size >= 1000 && unit < 4) { size /= 1000; unit++; }
    snprintf(out, room, "%.*f %s", unit && size < 100 ? 1 : 0, size, units[unit]);
}

/* ---- opening and closing ------------------------------------------------------------------------------------------- */

/* Frees everything but the trace itself, which late calls may still ask. */
static void firstdiff_free_(firstdiff_trace *t) {
    size_t i;
    for (i = 0; i < t->member_count; i++) { free(t->members[i].key); free(t->members[i].json); }
    for (i = 0; i < t->pattern_count; i++) free(t->patterns[i]);
    for (i = 0; i < t->spares; i++) free(t->spare[i]);
    for (i = 0; i < t->reserved_count; i++) {
        if (t->has_device && t->device.allocate) { if (t->device.release) t->device.release(t->reserved[i].memory, t->device.user); }
        else free(t->reserved[i].memory);
    }
    free(t->members); free(t->layers.text); free(t->layers.first); free(t->steps.text); free(t->steps.first);
    free(t->spare); free(t->chunk); free(t->span); free(t->entries); free(t->boxes); free(t->late);
    free(t->reserved); free(t->replays); free(t->forks); free(t->folder);
    t->members = NULL; t->spare = NULL; t->chunk = t->span = NULL; t->entries = NULL; t->boxes = NULL; t->late = NULL;
    t->reserved = NULL; t->replays = NULL; t->forks = NULL; t->folder = NULL;
    memset(&t->layers, 0, sizeof t->layers);
    memset(&t->steps, 0, sizeof t->steps);
    t->member_count = t->pattern_count = t->spares = t->reserved_count = 0;
}

/* Makes the folder and those above it. *made: whether the last one is new. */
static int firstdiff_make_folder_(char *path, int *made) {
    char *p;
    for (p = path + 1; *p; p++) {
        int failed;
        if (*p != '/') continue;
        *p = 0;
        failed = mkdir(path, 0777) && errno != EEXIST && errno != EISDIR && errno != EROFS && errno != EACCES;
        *p = '/';
        if (failed) return 0;
    }
    *made = !mkdir(path, 0777);
    return *made || errno == EEXIST;
}

/* The first name in the folder other than `but`, into `name`: 1; 0 where it is empty; -1 where it cannot be listed. */
static int firstdiff_holds_(const char *folder, const char *but, char *name, size_t room) {
    DIR *listing = opendir(folder);
    struct dirent *entry;
    int found = 0;
    if (!listing) return -1;
    while ((entry = readdir(listing)) && found < 2) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || (but && !strcmp(entry->d_name, but))) continue;
        found = strcmp(entry->d_name, "trace.json") ? 1 : 2;
        snprintf(name, room, "%s", entry->d_name);
    }
    (void)closedir(listing);
    return found > 0;
}

/* Makes the folder, and trace.json in it: absent or empty is what it has to be, so nothing of anybody's is written over. */
static int firstdiff_claim_(firstdiff_trace *t, int ranks) {
    char name[300], path[FIRSTDIFF_PATH_];
    struct stat about;
    int held;
    if (!firstdiff_make_folder_(t->folder, &t->made_folder)) {
        firstdiff_refuse_("cannot make the folder %.400s: %s", t->folder, strerror(errno));
        return 0;
    }
    snprintf(path, sizeof path, "%s/../trace.json", t->folder);
    if (ranks > 1 && !stat(path, &about)) {
        firstdiff_refuse_("the folder around %.400s holds the trace of a run without ranks; name another one", t->folder);
        if (t->made_folder) (void)rmdir(t->folder);
        return 0;
    }
    held = firstdiff_holds_(t->folder, NULL, name, sizeof name);
    if (!held) {
        /* whoever makes this file has the folder; another may have come and gone since it was looked at */
        if (firstdiff_write_about_(t, 0, O_EXCL)) return 1;
        if (errno != EEXIST) {
            firstdiff_refuse_("cannot write %.400s/trace.json: %s", t->folder, strerror(errno));
            if (t->made_folder) (void)rmdir(t->folder);
            return 0;
        }
        held = 1;
        snprintf(name, sizeof name, "trace.json");
    }
    if (held < 0) firstdiff_refuse_("cannot list the folder %.400s: %s", t->folder, strerror(errno));
    else if (!strcmp(name, "trace.json"))
        firstdiff_refuse_("%.400s already holds a trace; name another folder or remove it", t->folder);
    else {
        snprintf(path, sizeof path, "%s/%s", t->folder, name);
        firstdiff_refuse_("%.400s is there already; name an empty or new folder", path);
    }
    return 0;
}

static int firstdiff_describe_(firstdiff_trace *t, const firstdiff_options *o) {
    const char *keys[4], *jsons[4];
    char *name = firstdiff_quote_(o->producer ? o->producer : "an engine");
    char *version = firstdiff_quote_(o->version ? o->version : "");
    char *producer = name && version ? (char *)malloc(strlen(name) + strlen(version) + 40) : NULL;
    int ok = producer != NULL, i;
    if (ok) {
        if (o->version) sprintf(producer, "{\"name\": %s, \"version\": %s}", name, version);
        else sprintf(producer, "{\"name\": %s}", name);
    }
    free(name);
    free(version);
    ok = ok && firstdiff_member_set_(t, "format", firstdiff_copy_text_("\"firstdiff.trace/1\""));
    if (ok) ok = firstdiff_member_set_(t, "producer", producer);
    else free(producer);
    keys[0] = "arithmetic"; jsons[0] = o->arithmetic;
    keys[1] = "sampling"; jsons[1] = o->sampling;
    keys[2] = "model"; jsons[2] = o->model;
    keys[3] = "rank"; jsons[3] = o->rank_json;
    for (i = 0; ok && i < 4; i++) {
        if (!jsons[i]) continue;
        if (*firstdiff_json_space_(jsons[i]) != '{' || !firstdiff_is_json_(jsons[i])) {
            firstdiff_refuse_("%s must be a JSON object such as {\"key\": \"value\"}, not %.200s", keys[i], jsons[i]);
            return 0;
        }
        ok = firstdiff_member_set_(t, keys[i], firstdiff_copy_text_(jsons[i]));
    }
    if (ok && o->ranks > 1 && !o->rank_json) {
        char rank[64];
        snprintf(rank, sizeof rank, "{\"tp\": [%d, %d]}", o->rank, o->ranks);
        ok = firstdiff_member_set_(t, "rank", firstdiff_copy_text_(rank));
    }
    if (ok && o->prompt) ok = firstdiff_member_set_(t, "prompt", firstdiff_quote_(o->prompt));
    if (!ok) firstdiff_refuse_("out of memory");
    return ok;
}

static int firstdiff_select_(firstdiff_trace *t, const firstdiff_options *o) {
    if (o->layers && !firstdiff_parse_ranges_(&t->layers, o->layers)) {
        firstdiff_refuse_("layers must be numbers from 0 and ranges, such as 0-3,7, not '%.100s'", o->layers);
        return 0;
    }
    if (o->steps && !firstdiff_parse_ranges_(&t->steps, o->steps)) {
        firstdiff_refuse_("steps must be numbers from 0 and ranges, such as 0-3,7 or 10-, not '%.100s'", o->steps);
        return 0;
    }
    if (o->taps && !firstdiff_parse_patterns_(t, o->taps)) {
        firstdiff_refuse_("taps must be up to 64 names or patterns, such as logits,q_*,layers.*.out, not '%.200s'", o->taps);
        return 0;
    }
    return 1;
}

/* Locks and the writer thread. */
static int firstdiff_start_(firstdiff_trace *t, const firstdiff_options *o) {
#ifndef FIRSTDIFF_NO_THREADS
    sigset_t all, before;
#endif
    t->chunk_size = FIRSTDIFF_CHUNK_;
#ifndef FIRSTDIFF_NO_THREADS
    if (pthread_mutex_init(&t->calls, NULL)) return 0;
    if (pthread_mutex_init(&t->queue, NULL)) { (void)pthread_mutex_destroy(&t->calls); return 0; }
    if (pthread_cond_init(&t->changed, NULL)) {
        (void)pthread_mutex_destroy(&t->queue);
        (void)pthread_mutex_destroy(&t->calls);
        return 0;
    }
    if (o->writer_bytes) {
        /* one chunk is filled while others are written */
        while (t->chunk_size > 65536 && 4 * t->chunk_size > o->writer_bytes) t->chunk_size /= 2;
        t->most_buffers = (size_t)(o->writer_bytes / t->chunk_size);
        if (t->most_buffers < 4) t->most_buffers = 4;
        t->spare = (unsigned char **)calloc(t->most_buffers, sizeof *t->spare);
        t->threaded = 1;
        /* signals are the engine's: none is to be handled in this thread */
        (void)sigfillset(&all);
        if (!pthread_sigmask(SIG_SETMASK, &all, &before)) {
            int started = t->spare && !pthread_create(&t->thread, NULL, firstdiff_writer_, t);
            (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
            if (started) return 1;
        }
        t->threaded = 0;
        (void)pthread_cond_destroy(&t->changed);
        (void)pthread_mutex_destroy(&t->queue);
        (void)pthread_mutex_destroy(&t->calls);
        return 0;
    }
#else
    (void)o;
#endif
    t->most_buffers = 1;
    t->spare = (unsigned char **)calloc(1, sizeof *t->spare);
    return t->spare != NULL;
}

firstdiff_trace *firstdiff_open(const char *folder, const firstdiff_options *options) {
    const uint16_t one = 1;
    firstdiff_options nothing;
    const firstdiff_options *o = options ? options : &nothing;
    firstdiff_trace *t;
    memset(&nothing, 0, sizeof nothing);
    if (!folder || !*folder || strlen(folder) > FIRSTDIFF_FOLDER_) {
        firstdiff_refuse_("the trace's folder has no name, or one that is too long");
        return NULL;
    }
    if (!*(const unsigned char *)&one) {
        firstdiff_refuse_("tensors of big-endian machines are not written");
        return NULL;
    }
    if (o->ranks > 1 && (o->rank < 0 || o->rank >= o->ranks)) {
        firstdiff_refuse_("rank %d is not one of %d", o->rank, o->ranks);
        return NULL;
    }
    if (o->device && !o->device->copy) {
        firstdiff_refuse_("the device has no copy function");
        return NULL;
    }
    t = (firstdiff_trace *)calloc(1, sizeof *t);
    if (!t || !(t->folder = (char *)malloc(strlen(folder) + 32))) {
        free(t);
        firstdiff_refuse_("out of memory");
        return NULL;
    }
    strcpy(t->folder, folder);
    while (strlen(t->folder) > 1 && t->folder[strlen(t->folder) - 1] == '/') t->folder[strlen(t->folder) - 1] = 0;
    if (o->ranks > 1) sprintf(t->folder + strlen(t->folder), "/rank-%d", o->rank);
    t->process = (long)getpid();
    t->file = -1;
    t->head = (uint64_t)1 << 15;
    t->max_bytes = o->max_bytes;
    if (o->device) { t->device = *o->device; t->has_device = 1; }
    if (!firstdiff_describe_(t, o) || !firstdiff_select_(t, o) || !firstdiff_claim_(t, o->ranks)) {
        firstdiff_free_(t);
        free(t);
        return NULL;
    }
    if (!firstdiff_start_(t, o)) {
        char path[FIRSTDIFF_PATH_];
        snprintf(path, sizeof path, "%s/trace.json", t->folder);
        (void)unlink(path);
        if (t->made_folder) (void)rmdir(t->folder);
        firstdiff_refuse_("no memory or no thread is left");
        firstdiff_free_(t);
        free(t);
        return NULL;
    }
    FIRSTDIFF_LOCK_(&firstdiff_all_lock_);
    t->next = firstdiff_all_;
    firstdiff_all_ = t;
    FIRSTDIFF_UNLOCK_(&firstdiff_all_lock_);
    return t;
}

firstdiff_trace *firstdiff_open_env(const firstdiff_options *options) {
    firstdiff_options o;
    const char *folder = getenv("FIRSTDIFF_TRACE"), *text;
    if (!folder || !*folder) return NULL;
    memset(&o, 0, sizeof o);
    if (options) o = *options;
    if ((text = getenv("FIRSTDIFF_LAYERS")) && *text) o.layers = text;
    if ((text = getenv("FIRSTDIFF_TAPS")) && *text) o.taps = text;
    if ((text = getenv("FIRSTDIFF_STEPS")) && *text) o.steps = text;
    if ((text = getenv("FIRSTDIFF_MAX_BYTES")) && *text && !(o.max_bytes = firstdiff_parse_size_(text))) {
        firstdiff_refuse_("FIRSTDIFF_MAX_BYTES must be a size such as 500000000, 500MB or 2GB, not '%.100s'", text);
        return NULL;
    }
    return firstdiff_open(folder, &o);
}

void firstdiff_close(firstdiff_trace *t, int complete) {
    char path[FIRSTDIFF_PATH_];
    size_t i;
    int all;
    if (!t || t->process != (long)getpid()) return;
    FIRSTDIFF_LOCK_(&t->calls);
    if (t->state == FIRSTDIFF_CLOSED_) { FIRSTDIFF_UNLOCK_(&t->calls); return; }
    firstdiff_abandon_(t);
#ifndef FIRSTDIFF_NO_THREADS
    if (t->threaded) {
        FIRSTDIFF_LOCK_(&t->queue);
        t->quit = 1;
        (void)pthread_cond_broadcast(&t->changed);
        FIRSTDIFF_UNLOCK_(&t->queue);
        (void)pthread_join(t->thread, NULL);
        t->threaded = 0;
    }
#endif
    all = complete && !t->cut && !t->broken && (t->state == FIRSTDIFF_OPEN_ || t->state == FIRSTDIFF_ENOUGH_);
    if (!t->done) {
        snprintf(path, sizeof path, "%s/trace.json", t->folder);
        (void)unlink(path);
        if (t->made_folder) (void)rmdir(t->folder);
        fprintf(stderr, "firstdiff: no step was recorded, so %s is no trace\n", t->folder);
    } else {
        if (!firstdiff_write_about_(t, all, O_TRUNC))
            fprintf(stderr, "firstdiff: %s/trace.json still says that the run did not end: %s\n", t->folder, strerror(errno));
        for (i = 0; i < t->pattern_count; i++)
            if (!t->pattern_hit[i]) fprintf(stderr, "firstdiff: no tap matched '%s'\n", t->patterns[i]);
    }
    t->state = FIRSTDIFF_CLOSED_;
    firstdiff_free_(t);
    FIRSTDIFF_UNLOCK_(&t->calls);
}

void firstdiff_set(firstdiff_trace *t, const char *key, const char *json) {
    if (!firstdiff_enter_(t)) return;
    if (!key || !json || strpbrk(key, "\"\\") || !strcmp(key, "format") || !strcmp(key, "complete") || !firstdiff_is_json_(json))
        firstdiff_stop_(t, "trace.json cannot have %.100s: %.200s", key ? key : "NULL", json ? json : "NULL");
    else if (!firstdiff_member_set_(t, key, firstdiff_copy_text_(json))) firstdiff_stop_(t, "out of memory");
    else if (!firstdiff_write_about_(t, 0, O_TRUNC)) firstdiff_stop_(t, "cannot write trace.json: %s", strerror(errno));
    firstdiff_leave_(t);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------- */

/* Elements of a shape, or 0 and *ok = 0 where there are too many, or an extent is negative. */
static uint64_t firstdiff_count_(const int64_t *shape, int axes, int *ok) {
    uint64_t count = 1;
    int axis;
    for (axis = 0; axis < axes; axis++) {
        if (shape[axis] < 0) { *ok = 0; return 0; }
        if (shape[axis] && count > ((uint64_t)1 << 58) / (uint64_t)shape[axis]) { *ok = 0; return 0; }
        count *= (uint64_t)shape[axis];
    }
    return count;
}

/* Bytes that lie one after another, to place `at`. */
static void firstdiff_run_(firstdiff_trace *t, const unsigned char *from, uint64_t size, size_t width, uint64_t at,
                           int device, void *stream) {
    if (!device && !t->threaded && size >= t->chunk_size / 4 && size == (size_t)size) {
        firstdiff_flush_(t);                     /* without a copy */
        if (t->state == FIRSTDIFF_OPEN_)
            firstdiff_submit_(t, FIRSTDIFF_WRITE_, t->head + at, 0, (unsigned char *)(uintptr_t)from, (size_t)size);
        return;
    }
    while (size && t->state == FIRSTDIFF_OPEN_) {
        size_t n = 0;
        unsigned char *to = firstdiff_room_(t, at, size, width, &n);
        if (!to) return;
        if (!device) memcpy(to, from, n);
        else if (t->device.copy(to, from, n, stream, t->device.user)) {
            firstdiff_stop_(t, "the device's copy function failed");
            return;
        }
        from += n;
        at += n;
        size -= n;
    }
}

static int64_t firstdiff_source_(int64_t channel, int64_t neighbours) {
    if (channel >= neighbours) return channel;
    return channel < neighbours / 2 ? 2 * channel : 2 * (channel - neighbours / 2) + 1;
}

/* One line of `length` elements, `stride` apart, on the host. */
static void firstdiff_line_(firstdiff_trace *t, const unsigned char *from, int64_t length, int64_t stride, int64_t neighbours,
                            size_t width, uint64_t at) {
    int64_t i = 0;
    while (i < length && t->state == FIRSTDIFF_OPEN_) {
        size_t got = 0, n, k;
        unsigned char *to = firstdiff_room_(t, at, (uint64_t)(length - i) * width, width, &got);
        if (!to) return;
        n = got / width;
        for (k = 0; k < n; k++, i++) {
            const unsigned char *element = from + (neighbours ? firstdiff_source_(i, neighbours) : i) * stride * (int64_t)width;
            switch (width) {                     /* copies of a known size are single instructions */
                case 2: memcpy(to + 2 * k, element, 2); break;
                case 4: memcpy(to + 4 * k, element, 4); break;
                default: memcpy(to + 8 * k, element, 8); break;
            }
        }
        at += got;
    }
}

/* Elements in the order of the axes, from wherever they lie, to place `at`. Returns the place behind them. */
static uint64_t firstdiff_gather_(firstdiff_trace *t, const unsigned char *from, int axes, const int64_t *shape,
                                  const int64_t *strides, int64_t neighbours, size_t width, uint64_t at, int device,
                                  void *stream) {
    int64_t s[FIRSTDIFF_AXES], st[FIRSTDIFF_AXES], low = 0, high = 0, i;
    uint64_t count = 1, span;
    int n = 0, axis;
    /* axes that are one in memory become one; those of extent 1 go */
    for (axis = 0; axis < axes; axis++) {
        int last = neighbours && axis == axes - 1;
        count *= (uint64_t)shape[axis];
        if (shape[axis] == 1 && !last) continue;
        if (n && !last && st[n - 1] == strides[axis] * shape[axis]) { s[n - 1] *= shape[axis]; st[n - 1] = strides[axis]; }
        else { s[n] = shape[axis]; st[n++] = strides[axis]; }
    }
    if (!count || t->state != FIRSTDIFF_OPEN_) return at;
    if (!n || (n == 1 && st[0] == 1 && !neighbours)) {
        firstdiff_run_(t, from, count * width, width, at, device, stream);
        return at + count * width;
    }
    if (device) {
        for (axis = 0; axis < n; axis++) {
            if (st[axis] < 0) low += (s[axis] - 1) * st[axis];
            else high += (s[axis] - 1) * st[axis];
        }
        span = (uint64_t)(high - low + 1) * width;
        if (span <= FIRSTDIFF_SPAN_ || (n == 1 && neighbours)) {
            /* fetched as a whole, gaps included, and picked apart here */
            if (span > t->span_room) {
                unsigned char *room = (unsigned char *)realloc(t->span, (size_t)span);
                if (!room) { firstdiff_stop_(t, "out of memory"); return at; }
                t->span = room;
                t->span_room = (size_t)span;
            }
            if (t->device.copy(t->span, from + low * (int64_t)width, (size_t)span, stream, t->device.user)) {
                firstdiff_stop_(t, "the device's copy function failed");
                return at;
            }
            from = t->span - low * (int64_t)width;
            device = 0;
        }
    }
    if (!device && (n == 1 || (n == 2 && st[1] != 1)) ) {
        for (i = 0; i < (n == 1 ? 1 : s[0]) && t->state == FIRSTDIFF_OPEN_; i++) {
            firstdiff_line_(t, from + (n == 1 ? 0 : i * st[0] * (int64_t)width), s[n - 1], st[n - 1], neighbours, width, at);
            at += (uint64_t)s[n - 1] * width;
        }
        return at;
    }
    for (i = 0; i < s[0] && t->state == FIRSTDIFF_OPEN_; i++)
        at = firstdiff_gather_(t, from + i * st[0] * (int64_t)width, n - 1, s + 1, st + 1, neighbours, width, at, device, stream);
    return at;
}

static uint32_t firstdiff_hash_(const char *name) {
    uint32_t hash = 2166136261u;
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 16777619u;
    return hash;
}

/* The full name of a tap: 1, or 0 where it is no name. */
static int firstdiff_name_(char *name, int layer, const char *tap) {
    int n = layer >= 0 ? snprintf(name, FIRSTDIFF_NAME_, "layers.%d.%s", layer, tap ? tap : "")
                       : snprintf(name, FIRSTDIFF_NAME_, "%s", tap ? tap : "");
    const char *p;
    if (!tap || !*tap || n >= FIRSTDIFF_NAME_) return 0;
    for (p = name; *p; p++)
        if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || strchr("._-/", *p))) return 0;
    return 1;
}

/* The entry of a tensor of the open step, with its place in the data. */
static firstdiff_entry_ *firstdiff_place_(firstdiff_trace *t, const char *name, firstdiff_type type, int axes,
                                          const int64_t *whole, uint64_t elements, int piece) {
    uint32_t hash = firstdiff_hash_(name);
    uint64_t bytes = elements * firstdiff_widths_[type];
    firstdiff_entry_ *e;
    size_t i;
    for (i = 0; i < t->entry_count; i++) {
        e = &t->entries[i];
        if (e->hash != hash || strcmp(e->name, name)) continue;
        if (piece && e->last_box && e->type == type && e->axes == axes &&
            !memcmp(e->shape, whole, (size_t)axes * sizeof *whole)) return e;
        firstdiff_stop_(t, piece && e->last_box ? "%s: parts of one tensor differ in type or in the shape of the whole"
                                                : "%s was recorded twice in one step", name);
        return NULL;
    }
    if (t->max_bytes && t->written + t->size + bytes > t->max_bytes) {
        char size[32], limit[32];
        firstdiff_show_size_(size, sizeof size, t->written);
        firstdiff_show_size_(limit, sizeof limit, t->max_bytes);
        t->cut = 1;
        if (t->step) {
            t->state = FIRSTDIFF_ENOUGH_;
            fprintf(stderr, "firstdiff: recording stops after %lu steps (%s): with the next one the trace would be larger than "
                            "%s. The trace is valid; the engine goes on\n", (unsigned long)t->step, size, limit);
        } else firstdiff_stop_(t, "the first step takes more than %s; record fewer taps or layers", limit);
        return NULL;
    }
    if (!firstdiff_grow_(t, &t->entries, &t->entry_room, t->entry_count, sizeof *t->entries)) return NULL;
    e = &t->entries[t->entry_count++];
    memset(e, 0, sizeof *e);
    memcpy(e->name, name, strlen(name) + 1);
    e->hash = hash;
    e->type = type;
    e->axes = axes;
    if (axes) memcpy(e->shape, whole, (size_t)axes * sizeof *whole);
    e->begin = t->size;
    e->elements = elements;
    t->size += bytes;
    return e;
}

/* Notes that a piece is there; 0 where a part of it is there already. */
static int firstdiff_box_add_(firstdiff_trace *t, firstdiff_entry_ *e, const int64_t *at, const int64_t *shape) {
    size_t entry = (size_t)(e - t->entries), number;
    firstdiff_box_ *box;
    int axis;
    for (number = e->last_box; number; number = t->boxes[number - 1].before) {
        const firstdiff_box_ *other = &t->boxes[number - 1];
        int apart = 0;
        for (axis = 0; axis < e->axes; axis++)
            if (at[axis] >= other->end[axis] || at[axis] + shape[axis] <= other->at[axis]) apart = 1;
        if (apart) continue;
        firstdiff_stop_(t, "%s: two parts hold the same elements", e->name);
        return 0;
    }
    if (!firstdiff_grow_(t, &t->boxes, &t->box_room, t->box_count, sizeof *t->boxes)) return 0;
    box = &t->boxes[t->box_count++];
    memset(box, 0, sizeof *box);
    for (axis = 0; axis < e->axes; axis++) { box->at[axis] = at[axis]; box->end[axis] = at[axis] + shape[axis]; }
    box->before = t->entries[entry].last_box;
    t->entries[entry].last_box = t->box_count;
    return 1;
}

static void firstdiff_add_(firstdiff_trace *t, const char *name, const firstdiff_view *v, const int64_t *at, const int64_t *whole) {
    int ok = 1, axis, outer = 0;
    uint64_t elements, all, place;
    int64_t index[FIRSTDIFF_AXES];
    firstdiff_entry_ *e;
    size_t width;
    if (v->axes < 0 || v->axes > FIRSTDIFF_AXES || (int)v->type < 0 || v->type > FIRSTDIFF_I64) {
        firstdiff_stop_(t, "%s: a view of %d axes, type %d", name, v->axes, (int)v->type);
        return;
    }
    width = firstdiff_widths_[v->type];
    elements = firstdiff_count_(v->shape, v->axes, &ok);
    all = whole ? firstdiff_count_(whole, v->axes, &ok) : elements;
    for (axis = 0; ok && whole && axis < v->axes; axis++)
        if (at[axis] < 0 || at[axis] > whole[axis] || v->shape[axis] > whole[axis] - at[axis]) ok = 0;
    if (!ok || (elements && !v->data) || v->neighbours < 0 || v->neighbours % 2 ||
        (v->neighbours && (!v->axes || v->neighbours > v->shape[v->axes - 1]))) {
        firstdiff_stop_(t, "%s: a null pointer, or a shape, part or pairing that cannot be", name);
        return;
    }
    if (!(e = firstdiff_place_(t, name, v->type, v->axes, whole ? whole : v->shape, all, whole != NULL))) return;
    if (whole && elements && !firstdiff_box_add_(t, e, at, v->shape)) return;
    e->present += elements;
    place = e->begin;
    /* runs of the whole tensor that this part fills: axes after the last one that it cuts */
    if (whole) for (axis = 0; axis < v->axes; axis++) if (v->shape[axis] != whole[axis]) outer = axis;
    memset(index, 0, sizeof index);
    while (elements && t->state == FIRSTDIFF_OPEN_) {
        const unsigned char *from = (const unsigned char *)v->data;
        uint64_t offset = 0;
        for (axis = 0; axis < v->axes; axis++) {
            if (whole) offset = offset * (uint64_t)whole[axis] + (uint64_t)(at[axis] + (axis < outer ? index[axis] : 0));
            if (axis < outer) from += index[axis] * v->strides[axis] * (int64_t)width;
        }
        firstdiff_gather_(t, from, v->axes - outer, v->shape + outer, v->strides + outer, v->neighbours, width,
                          place + offset * width, t->has_device && !v->on_host, v->stream);
        for (axis = outer - 1; axis >= 0 && ++index[axis] == v->shape[axis]; axis--) index[axis] = 0;
        if (axis < 0) break;
    }
}

static void firstdiff_integers_(firstdiff_trace *t, const char *name, const int64_t *numbers, size_t count, int64_t columns) {
    int64_t shape[2];
    firstdiff_view view;
    shape[0] = (int64_t)count;
    shape[1] = columns;
    view = firstdiff_dense(FIRSTDIFF_I64, numbers, columns ? 2 : 1, shape);
    view.on_host = 1;
    firstdiff_add_(t, name, &view, NULL, NULL);
}

firstdiff_view firstdiff_dense(firstdiff_type type, const void *data, int axes, const int64_t *shape) {
    firstdiff_view view;
    int64_t stride = 1;
    int axis;
    memset(&view, 0, sizeof view);
    view.type = type;
    view.data = data;
    view.axes = axes;
    if (axes > 0 && !shape) view.axes = axes = -1;
    if (axes < 0 || axes > FIRSTDIFF_AXES) return view;          /* refused where it is used */
    for (axis = axes - 1; axis >= 0; axis--) {
        view.shape[axis] = shape[axis];
        view.strides[axis] = stride;
        if (shape[axis] > 0 && stride <= ((int64_t)1 << 58) / shape[axis]) stride *= shape[axis];
    }
    return view;
}

/* Enters with a tap's full name, where it is recorded in this step. */
static int firstdiff_enter_tap_(firstdiff_trace *t, char *name, int layer, const char *tap) {
    static const char *const ours[] = {"token_ids", "positions", "sequence", "sampled", "logits_rows", "fork",
                                       "key_sequence", "key_position"};
    const char *own;
    size_t i;
    if (!firstdiff_enter_(t)) return 0;
    if (t->takes_taps) {
        if (!firstdiff_name_(name, layer, tap)) firstdiff_stop_(t, "'%.100s' is no name of a tap", tap ? tap : "NULL");
        else if (firstdiff_selected_(t, name, 1)) {
            (void)firstdiff_layer_of_(name, &own);
            for (i = 0; i < sizeof ours / sizeof *ours; i++) if (!strcmp(own, ours[i])) break;
            if (i == sizeof ours / sizeof *ours) return 1;
            firstdiff_stop_(t, "%s is no tap; there is a function for it", name);
        }
    }
    firstdiff_leave_(t);
    return 0;
}

void firstdiff_record(firstdiff_trace *t, int layer, const char *tap, const firstdiff_view *view) {
    char name[FIRSTDIFF_NAME_];
    if (!firstdiff_enter_tap_(t, name, layer, tap)) return;
    if (view) firstdiff_add_(t, name, view, NULL, NULL);
    else firstdiff_stop_(t, "%s: a null pointer", name);
    firstdiff_leave_(t);
}

void firstdiff_piece(firstdiff_trace *t, int layer, const char *tap, const firstdiff_view *view, const int64_t *at,
                     const int64_t *whole) {
    char name[FIRSTDIFF_NAME_];
    if (!firstdiff_enter_tap_(t, name, layer, tap)) return;
    if (view && at && whole) firstdiff_add_(t, name, view, at, whole);
    else firstdiff_stop_(t, "%s: a null pointer", name);
    firstdiff_leave_(t);
}

void firstdiff_tensor(firstdiff_trace *t, int layer, const char *tap, firstdiff_type type, const void *data, int axes,
                      const int64_t *shape) {
    firstdiff_view view;
    if (!t) return;
    view = firstdiff_dense(type, data, axes, shape);
    firstdiff_record(t, layer, tap, &view);
}

void firstdiff_matrix(firstdiff_trace *t, int layer, const char *tap, firstdiff_type type, const void *data, int64_t rows,
                      int64_t columns) {
    int64_t shape[2];
    if (!t) return;
    shape[0] = rows;
    shape[1] = columns;
    firstdiff_tensor(t, layer, tap, type, data, 2, shape);
}

void firstdiff_heads(firstdiff_trace *t, int layer, const char *tap, firstdiff_type type, const void *data, int64_t rows,
                     int64_t heads, int64_t head_size, int64_t row_stride, int64_t head_stride, int64_t neighbours) {
    firstdiff_view view;
    if (!t) return;
    memset(&view, 0, sizeof view);
    view.type = type;
    view.data = data;
    view.axes = 3;
    view.shape[0] = rows; view.shape[1] = heads; view.shape[2] = head_size;
    view.strides[0] = row_stride; view.strides[1] = head_stride; view.strides[2] = 1;
    view.neighbours = neighbours;
    firstdiff_record(t, layer, tap, &view);
}

void firstdiff_defer(firstdiff_trace *t, int layer, const char *tap, const firstdiff_view *view) {
    char name[FIRSTDIFF_NAME_];
    if (!firstdiff_enter_tap_(t, name, layer, tap)) return;
    if (!view) firstdiff_stop_(t, "%s: a null pointer", name);
    else if (firstdiff_grow_(t, &t->late, &t->late_room, t->late_count, sizeof *t->late)) {
        firstdiff_late_ *late = &t->late[t->late_count++];
        memcpy(late->name, name, sizeof name);
        late->view = *view;
        late->view.on_host = 1;
    }
    firstdiff_leave_(t);
}

/* ---- captured graphs ----------------------------------------------------------------------------------------------- */

void *firstdiff_reserve(firstdiff_trace *t, int graph, int layer, const char *tap, firstdiff_type type, int axes,
                        const int64_t *shape) {
    char name[FIRSTDIFF_NAME_];
    firstdiff_reserved_ *r = NULL;
    uint64_t bytes;
    void *memory = NULL;
    size_t i;
    int ok = axes >= 0 && axes <= FIRSTDIFF_AXES && (!axes || shape) && (int)type >= 0 && type <= FIRSTDIFF_I64;
    if (!firstdiff_enter_(t)) return NULL;
    bytes = ok ? firstdiff_count_(shape, axes, &ok) * firstdiff_widths_[type] : 0;
    if (!firstdiff_name_(name, layer, tap) || !ok || bytes != (size_t)bytes)
        firstdiff_stop_(t, "'%.100s': no name of a tap, or no shape", tap ? tap : "NULL");
    else if (firstdiff_selected_(t, name, 0)) {
        /* captured again: the old graph may still be launched and write, so memory is only used again where it suffices */
        for (i = 0; i < t->reserved_count; i++)
            if (t->reserved[i].current && t->reserved[i].graph == graph && !strcmp(t->reserved[i].name, name)) r = &t->reserved[i];
        if (r && r->bytes < bytes) { r->current = 0; r = NULL; }
        if (!r && firstdiff_grow_(t, &t->reserved, &t->reserved_room, t->reserved_count, sizeof *t->reserved)) {
            size_t size = bytes ? (size_t)bytes : 1;
            if (t->has_device && t->device.allocate) memory = t->device.allocate(size, t->device.user);
            else memory = malloc(size);
            if (!memory) firstdiff_stop_(t, "%s: no %lu bytes to copy into from a graph", name, (unsigned long)size);
            else {
                r = &t->reserved[t->reserved_count++];
                memset(r, 0, sizeof *r);
                memcpy(r->name, name, sizeof name);
                r->graph = graph;
                r->current = 1;
                r->bytes = (size_t)bytes;
                r->memory = memory;
            }
        }
        if (r) {
            r->view = firstdiff_dense(type, r->memory, axes, shape);
            r->view.on_host = 1;
            memory = r->memory;
        }
    }
    firstdiff_leave_(t);
    return memory;
}

void firstdiff_replayed(firstdiff_trace *t, int graph, int64_t rows, void *stream) {
    if (!firstdiff_enter_(t)) return;
    if (t->takes_taps && firstdiff_grow_(t, &t->replays, &t->replay_room, t->replay_count, sizeof *t->replays)) {
        firstdiff_replay_ *replay = &t->replays[t->replay_count++];
        replay->graph = graph;
        replay->rows = rows;
        replay->stream = stream;
    }
    firstdiff_leave_(t);
}

static int firstdiff_wait_(firstdiff_trace *t, void *stream, void **waited, int *any) {
    if (!t->has_device || !t->device.wait || (*any && *waited == stream)) return 1;
    if (t->device.wait(stream, t->device.user)) {
        firstdiff_stop_(t, "the device's wait function failed");
        return 0;
    }
    *any = 1;
    *waited = stream;
    return 1;
}

/* What was left to be read when the step ends. */
static void firstdiff_read_late_(firstdiff_trace *t) {
    void *waited = NULL;
    int any = 0;
    size_t i, k;
    for (i = 0; i < t->late_count && t->state == FIRSTDIFF_OPEN_; i++)
        if (firstdiff_wait_(t, t->late[i].view.stream, &waited, &any)) firstdiff_add_(t, t->late[i].name, &t->late[i].view, NULL, NULL);
    for (k = 0; k < t->replay_count && t->state == FIRSTDIFF_OPEN_; k++) {
        const firstdiff_replay_ *replay = &t->replays[k];
        if (!firstdiff_wait_(t, replay->stream, &waited, &any)) return;
        for (i = 0; i < t->reserved_count && t->state == FIRSTDIFF_OPEN_; i++) {
            firstdiff_view view = t->reserved[i].view;
            if (!t->reserved[i].current || t->reserved[i].graph != replay->graph) continue;
            if (replay->rows >= 0) {
                if (!view.axes || replay->rows > view.shape[0]) {
                    firstdiff_stop_(t, "%s: %lld rows of a graph that has fewer", t->reserved[i].name, (long long)replay->rows);
                    return;
                }
                view.shape[0] = replay->rows;
            }
            (void)firstdiff_selected_(t, t->reserved[i].name, 1);
            firstdiff_add_(t, t->reserved[i].name, &view, NULL, NULL);
        }
    }
}

/* ---- steps --------------------------------------------------------------------------------------------------------- */

void firstdiff_begin(firstdiff_trace *t, const int64_t *token_ids, size_t rows, const int64_t *positions,
                     const int64_t *sequence) {
    char path[FIRSTDIFF_PATH_];
    if (!firstdiff_enter_(t)) return;
    firstdiff_abandon_(t);
    if (firstdiff_past_(&t->steps, t->step)) t->state = FIRSTDIFF_ENOUGH_;       /* all that was asked for is there */
    else if (!rows || !token_ids) firstdiff_stop_(t, "a step has no tokens");
    else {
        firstdiff_temporary_path_(path, t, t->step, ++t->attempt);
        t->file = firstdiff_create_(path, O_EXCL);
        if (t->file < 0) firstdiff_stop_(t, "cannot write %.300s: %s", path, strerror(errno));
        else {
            t->in_step = 1;
            t->takes_taps = firstdiff_in_(&t->steps, t->step);
            t->size = 0;
            t->entry_count = t->box_count = t->late_count = t->replay_count = t->fork_count = 0;
            firstdiff_integers_(t, "token_ids", token_ids, rows, 0);
            if (positions) firstdiff_integers_(t, "positions", positions, rows, 0);
            if (sequence) firstdiff_integers_(t, "sequence", sequence, rows, 0);
        }
    }
    firstdiff_leave_(t);
}

void firstdiff_begin32(firstdiff_trace *t, const int32_t *token_ids, size_t rows, const int32_t *positions,
                       const int32_t *sequence) {
    int64_t *wide, *p = NULL, *s = NULL;
    size_t i;
    if (!t || !token_ids) { firstdiff_begin(t, NULL, 0, NULL, NULL); return; }
    wide = rows < ((size_t)1 << 28) ? (int64_t *)malloc((3 * rows + 1) * sizeof *wide) : NULL;
    if (!wide) {
        if (firstdiff_enter_(t)) { firstdiff_stop_(t, "out of memory"); firstdiff_leave_(t); }
        return;
    }
    for (i = 0; i < rows; i++) wide[i] = token_ids[i];
    if (positions) for (p = wide + rows, i = 0; i < rows; i++) p[i] = positions[i];
    if (sequence) for (s = wide + 2 * rows, i = 0; i < rows; i++) s[i] = sequence[i];
    firstdiff_begin(t, wide, rows, p, s);
    free(wide);
}

static void firstdiff_list_(firstdiff_trace *t, int layer, const char *what, const int64_t *numbers, size_t count, int always) {
    char name[FIRSTDIFF_NAME_];
    if (!firstdiff_enter_(t)) return;
    if (t->in_step && (always || t->takes_taps) && (layer < 0 || firstdiff_in_(&t->layers, (uint64_t)layer)) &&
        firstdiff_name_(name, layer, what)) firstdiff_integers_(t, name, numbers, count, 0);
    firstdiff_leave_(t);
}

void firstdiff_sampled(firstdiff_trace *t, const int64_t *tokens, size_t count) {
    firstdiff_list_(t, FIRSTDIFF_NO_LAYER, "sampled", tokens, count, 1);
}

void firstdiff_logits_rows(firstdiff_trace *t, const int64_t *rows, size_t count) {
    firstdiff_list_(t, FIRSTDIFF_NO_LAYER, "logits_rows", rows, count, 0);
}

void firstdiff_keys(firstdiff_trace *t, int layer, const int64_t *sequence, const int64_t *position, size_t count) {
    if (sequence) firstdiff_list_(t, layer, "key_sequence", sequence, count, 0);
    firstdiff_list_(t, layer, "key_position", position, count, 0);
}

void firstdiff_fork(firstdiff_trace *t, int64_t sequence, int64_t parent, int64_t length) {
    if (!firstdiff_enter_(t)) return;
    if (t->in_step && firstdiff_grow_(t, &t->forks, &t->fork_room, t->fork_count, 3 * sizeof *t->forks)) {
        int64_t *fork = t->forks + 3 * t->fork_count++;
        fork[0] = sequence;
        fork[1] = parent;
        fork[2] = length;
    }
    firstdiff_leave_(t);
}

/* The header of the step's file, to be freed. */
static char *firstdiff_header_(firstdiff_trace *t, size_t *length) {
    size_t room = 64 + t->entry_count * (FIRSTDIFF_NAME_ + 80 + 21 * (FIRSTDIFF_AXES + 2)), n = 0, i;
    char *text = (char *)malloc(room);
    int axis;
    if (!text) { firstdiff_stop_(t, "out of memory"); return NULL; }
    text[n++] = '{';
    for (i = 0; i < t->entry_count; i++) {
        const firstdiff_entry_ *e = &t->entries[i];
        n += (size_t)snprintf(text + n, room - n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", e->name,
                              firstdiff_type_names_[e->type]);
        for (axis = 0; axis < e->axes; axis++)
            n += (size_t)snprintf(text + n, room - n, "%s%lld", axis ? "," : "", (long long)e->shape[axis]);
        n += (size_t)snprintf(text + n, room - n, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)e->begin,
                              (unsigned long long)(e->begin + e->elements * firstdiff_widths_[e->type]));
    }
    text[n++] = '}';
    *length = n;
    return text;
}

void firstdiff_end(firstdiff_trace *t) {
    size_t length = 0, i;
    char *header = NULL;
    if (!firstdiff_enter_(t)) return;
    if (t->in_step) {
        if (t->fork_count) firstdiff_integers_(t, "fork", t->forks, t->fork_count, 3);
        firstdiff_read_late_(t);
        for (i = 0; i < t->entry_count && t->state == FIRSTDIFF_OPEN_; i++)
            if (t->entries[i].present != t->entries[i].elements)
                firstdiff_stop_(t, "%s: %llu of %llu elements were recorded", t->entries[i].name,
                                (unsigned long long)t->entries[i].present, (unsigned long long)t->entries[i].elements);
        if (t->state == FIRSTDIFF_OPEN_) firstdiff_flush_(t);
        if (t->state == FIRSTDIFF_OPEN_) header = firstdiff_header_(t, &length);
        if (header) {
            t->in_step = t->takes_taps = 0;
            firstdiff_submit_(t, FIRSTDIFF_FINISH_, t->head, t->size, (unsigned char *)header, length);
            t->file = -1;
            t->written += t->size;
            t->step++;
            /* the next header is like this one, with longer numbers */
            if (t->head < length + length / 16 + 64) t->head = (length + length / 16 + 64 + 1023) / 1024 * 1024;
            else if (t->step == 1) t->head = (length + length / 4 + 64 + 1023) / 1024 * 1024;
        }
    }
    firstdiff_leave_(t);
}

void firstdiff_drop(firstdiff_trace *t) {
    if (!firstdiff_enter_(t)) return;
    firstdiff_abandon_(t);
    firstdiff_leave_(t);
}

int firstdiff_wants(firstdiff_trace *t, int layer, const char *tap) {
    char name[FIRSTDIFF_NAME_];
    int wanted;
    if (!firstdiff_enter_(t)) return 0;
    wanted = (!t->in_step || t->takes_taps) && firstdiff_name_(name, layer, tap) && firstdiff_selected_(t, name, 0);
    firstdiff_leave_(t);
    return wanted;
}

int firstdiff_recording(firstdiff_trace *t) {
    int recording;
    if (!firstdiff_enter_(t)) return 0;
    recording = t->takes_taps;
    firstdiff_leave_(t);
    return recording;
}

const char *firstdiff_error(firstdiff_trace *t) {
    const char *error;
    if (!t || t->process != (long)getpid()) return NULL;
    if (firstdiff_enter_(t)) firstdiff_leave_(t);        /* takes over what the writer thread has to say */
    FIRSTDIFF_LOCK_(&t->calls);
    error = *t->error ? t->error : NULL;
    FIRSTDIFF_UNLOCK_(&t->calls);
    return error;
}

void firstdiff_expect(firstdiff_trace *t, uint64_t bytes) {
    char size[32], limit[32];
    if (!firstdiff_enter_(t)) return;
    firstdiff_show_size_(size, sizeof size, bytes);
    firstdiff_show_size_(limit, sizeof limit, t->max_bytes);
    fprintf(stderr, "firstdiff: the trace in %s will take about %s%s%s\n", t->folder, size,
            t->max_bytes ? "; recording stops at " : "", t->max_bytes ? limit : "");
    firstdiff_leave_(t);
}
#endif /* FIRSTDIFF_IMPLEMENTATION */
