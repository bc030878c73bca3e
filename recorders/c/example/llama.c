/* A small engine in the style of llama2.c, instrumented with firstdiff.h: float32, one sequence, a KV cache, greedy.

       cc -O3 -std=c99 llama.c -o llama -lm -pthread
       FIRSTDIFF_TRACE=my-trace ./llama MODEL 5,6,7 16
       firstdiff check my-trace --model MODEL

   MODEL is a folder with config.json and model.safetensors of a Llama, stored as F32, without rope_scaling. The second
   argument is the prompt, as token ids; the third how many tokens to generate. `--bug` after that plants one: query heads
   share key heads in turn (h modulo Hkv) instead of in groups. Lines that only recording needs begin with `firstdiff_`. */
#define FIRSTDIFF_IMPLEMENTATION
#include "../firstdiff.h"
#include <math.h>
#include <sys/mman.h>

typedef struct { const char *bytes; size_t size; } File;

typedef struct {
    int64_t layers, hidden, inner, heads, kv_heads, head_size, vocab;
    float eps, theta;
    const float *embed, *final_norm, *head;
    struct Layer {
        const float *attn_norm, *q, *k, *v, *o, *mlp_norm, *gate, *up, *down;
    } *layer;
} Model;

typedef struct {
    int64_t room, used;                                  /* positions */
    float *k, *v;                                        /* layers, room, kv_heads, head_size */
} Cache;

static void die(const char *what, const char *which) {
    fprintf(stderr, "llama: %s: %s\n", what, which);
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die("out of memory", "");
    return memory;
}

/* ---- the model's files ---- */

static File map_file(const char *folder, const char *name) {
    char path[4096];
    struct stat about;
    File file;
    int handle;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    handle = open(path, O_RDONLY);
    if (handle < 0 || fstat(handle, &about) || about.st_size < 8) die("cannot read", path);
    file.size = (size_t)about.st_size;
    file.bytes = (const char *)mmap(NULL, file.size, PROT_READ, MAP_PRIVATE, handle, 0);
    if (file.bytes == MAP_FAILED) die("cannot map", path);
    (void)close(handle);
    return file;
}

/* What follows `"key":` in JSON text, or NULL. Enough for these two kinds of file, not a reader of JSON. */
static const char *after_key(const char *text, const char *key) {
    char quoted[256];
    const char *found;
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    for (found = text; (found = strstr(found, quoted)); found++) {
        const char *p = found + strlen(quoted);
        while (*p == ' ') p++;
        if (*p++ != ':') continue;
        while (*p == ' ') p++;
        return p;
    }
    return NULL;
}

static double number(const char *config, const char *key, double otherwise) {
    const char *found = after_key(config, key);
    if (found && *found != 'n') return strtod(found, NULL);
    if (otherwise < 0) die("config.json lacks", key);
    return otherwise;
}

/* A tensor's elements, which are F32 and as many as expected. */
static const float *tensor(File weights, const char *header, const char *name, int64_t count) {
    uint64_t length, begin, end;
    const char *entry = after_key(header, name), *type, *place;
    memcpy(&length, weights.bytes, 8);
    if (!entry) die("model.safetensors lacks", name);
    type = strstr(entry, "\"dtype\":");
    place = strstr(entry, "\"data_offsets\":[");
    if (!type || !place || strncmp(type, "\"dtype\":\"F32\"", 13)) die("not stored as F32", name);
    begin = strtoull(place + 16, (char **)&place, 10);
    end = strtoull(place + 1, NULL, 10);
    if (end < begin || end - begin != 4 * (uint64_t)count || 8 + length + end > weights.size) die("another size than expected", name);
    return (const float *)(const void *)(weights.bytes + 8 + length + begin);
}

static Model load(const char *folder) {
    File config_file = map_file(folder, "config.json"), weights = map_file(folder, "model.safetensors");
    char *config = (char *)allocate(config_file.size + 1, 1), *header, name[128];
    uint64_t length;
    int64_t n, q, kv;
    Model m;
    memcpy(config, config_file.bytes, config_file.size);
    memcpy(&length, weights.bytes, 8);
    if (length > weights.size - 8) die("no safetensors file", folder);
    header = (char *)allocate((size_t)length + 1, 1);
    memcpy(header, weights.bytes + 8, (size_t)length);
    m.layers = (int64_t)number(config, "num_hidden_layers", -1);
    m.hidden = (int64_t)number(config, "hidden_size", -1);
    m.inner = (int64_t)number(config, "intermediate_size", -1);
    m.heads = (int64_t)number(config, "num_attention_heads", -1);
    m.kv_heads = (int64_t)number(config, "num_key_value_heads", (double)m.heads);
    m.head_size = (int64_t)number(config, "head_dim", (double)(m.hidden / m.heads));
    m.vocab = (int64_t)number(config, "vocab_size", -1);
    m.eps = (float)number(config, "rms_norm_eps", 1e-6);
    m.theta = (float)number(config, "rope_theta", 1e4);
    m.embed = tensor(weights, header, "model.embed_tokens.weight", m.vocab * m.hidden);
    m.final_norm = tensor(weights, header, "model.norm.weight", m.hidden);
    m.head = after_key(header, "lm_head.weight") ? tensor(weights, header, "lm_head.weight", m.vocab * m.hidden) : m.embed;
    m.layer = (struct Layer *)allocate((size_t)m.layers, sizeof *m.layer);
    q = m.heads * m.head_size;
    kv = m.kv_heads * m.head_size;
    for (n = 0; n < m.layers; n++) {
        struct Layer *l = &m.layer[n];
#define LOAD(field, text, count) (snprintf(name, sizeof name, "model.layers.%d." text ".weight", (int)n), \
                                  l->field = tensor(weights, header, name, count))
        LOAD(attn_norm, "input_layernorm", m.hidden);
        LOAD(q, "self_attn.q_proj", q * m.hidden);
        LOAD(k, "self_attn.k_proj", kv * m.hidden);
        LOAD(v, "self_attn.v_proj", kv * m.hidden);
        LOAD(o, "self_attn.o_proj", m.hidden * q);
        LOAD(mlp_norm, "post_attention_layernorm", m.hidden);
        LOAD(gate, "mlp.gate_proj", m.inner * m.hidden);
        LOAD(up, "mlp.up_proj", m.inner * m.hidden);
        LOAD(down, "mlp.down_proj", m.hidden * m.inner);
    }
    free(header);
    free(config);
    return m;
}

/* ---- operations, each over all rows ---- */

static void norm(float *out, const float *x, const float *weight, int64_t rows, int64_t size, float eps) {
    int64_t t, i;
    for (t = 0; t < rows; t++, x += size, out += size) {
        float squares = 0, factor;
        for (i = 0; i < size; i++) squares += x[i] * x[i];
        factor = 1.0f / sqrtf(squares / (float)size + eps);
        for (i = 0; i < size; i++) out[i] = weight[i] * (x[i] * factor);
    }
}

/* Eight running sums, which compilers keep in one vector. */
static float dot(const float *a, const float *b, int64_t size) {
    float sums[8] = {0}, rest = 0;
    int64_t i, lane;
    for (i = 0; i + 8 <= size; i += 8)
        for (lane = 0; lane < 8; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (; i < size; i++) rest += a[i] * b[i];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7])) + rest;
}

static void product(float *out, const float *x, const float *weight, int64_t rows, int64_t in, int64_t columns) {
    int64_t t, c;
    for (c = 0; c < columns; c++)
        for (t = 0; t < rows; t++) out[t * columns + c] = dot(x + t * in, weight + c * in, in);
}

static void add(float *x, const float *more, int64_t count) {
    int64_t i;
    for (i = 0; i < count; i++) x[i] += more[i];
}

static void rotate(float *x, int64_t rows, int64_t heads, int64_t size, int64_t first, float theta) {
    int64_t t, h, i;
    for (t = 0; t < rows; t++)
        for (i = 0; i < size / 2; i++) {
            double angle = (double)(first + t) * pow(theta, -2.0 * (double)i / (double)size);
            float c = (float)cos(angle), s = (float)sin(angle);
            for (h = 0; h < heads; h++) {
                float *head = x + (t * heads + h) * size, a = head[i], b = head[i + size / 2];
                head[i] = a * c - b * s;
                head[i + size / 2] = b * c + a * s;
            }
        }
}

static void softmax(float *x, int64_t count) {
    float most = x[0], sum = 0;
    int64_t i;
    for (i = 1; i < count; i++) if (x[i] > most) most = x[i];
    for (i = 0; i < count; i++) sum += x[i] = expf(x[i] - most);
    for (i = 0; i < count; i++) x[i] /= sum;
}

/* ---- the forward pass ---- */

enum { EMBED, NORM, Q, K, V, SCORES, HEADS, OUT, GATE, UP, LOGITS, BUFFERS };

/* Rows of attention's scores and probabilities have the cache's whole room; what is recorded is their beginning. */
static void record_keys(firstdiff_trace *t, int layer, const char *tap, const float *x, int64_t heads, int64_t rows, int64_t keys,
                        int64_t room) {
    firstdiff_view view;
    int64_t shape[3];
    shape[0] = heads;
    shape[1] = rows;
    shape[2] = keys;
    view = firstdiff_dense(FIRSTDIFF_F32, x, 3, shape);
    view.strides[0] = rows * room;
    view.strides[1] = room;
    firstdiff_record(t, layer, tap, &view);
}

/* Logits of the last row, after `rows` tokens went in. */
static const float *forward(const Model *m, Cache *cache, const int64_t *ids, int64_t rows, float **b, int bug, firstdiff_trace *trace) {
    const int64_t d = m->hidden, size = m->head_size, q_width = m->heads * size, kv_width = m->kv_heads * size;
    const int64_t past = cache->used, keys = past + rows, group = m->heads / m->kv_heads;
    const float scale = 1.0f / sqrtf((float)size);
    float *x = b[EMBED];
    int64_t t, h, j, i;
    int n;
    for (t = 0; t < rows; t++) memcpy(x + t * d, m->embed + ids[t] * d, (size_t)d * sizeof *x);
    firstdiff_matrix(trace, FIRSTDIFF_NO_LAYER, "embed", FIRSTDIFF_F32, x, rows, d);
    for (n = 0; n < (int)m->layers; n++) {
        const struct Layer *l = &m->layer[n];
        float *k_cache = cache->k + n * cache->room * kv_width, *v_cache = cache->v + n * cache->room * kv_width;

        norm(b[NORM], x, l->attn_norm, rows, d, m->eps);
        firstdiff_matrix(trace, n, "attn_norm", FIRSTDIFF_F32, b[NORM], rows, d);
        product(b[Q], b[NORM], l->q, rows, d, q_width);
        product(b[K], b[NORM], l->k, rows, d, kv_width);
        product(b[V], b[NORM], l->v, rows, d, kv_width);
        firstdiff_matrix(trace, n, "q_proj", FIRSTDIFF_F32, b[Q], rows, q_width);
        firstdiff_matrix(trace, n, "k_proj", FIRSTDIFF_F32, b[K], rows, kv_width);
        firstdiff_matrix(trace, n, "v_proj", FIRSTDIFF_F32, b[V], rows, kv_width);
        rotate(b[Q], rows, m->heads, size, past, m->theta);
        rotate(b[K], rows, m->kv_heads, size, past, m->theta);
        firstdiff_heads(trace, n, "q_rope", FIRSTDIFF_F32, b[Q], rows, m->heads, size, q_width, size, 0);
        firstdiff_heads(trace, n, "k_rope", FIRSTDIFF_F32, b[K], rows, m->kv_heads, size, kv_width, size, 0);
        memcpy(k_cache + past * kv_width, b[K], (size_t)(rows * kv_width) * sizeof *x);
        memcpy(v_cache + past * kv_width, b[V], (size_t)(rows * kv_width) * sizeof *x);
        firstdiff_heads(trace, n, "k_cache", FIRSTDIFF_F32, k_cache, keys, m->kv_heads, size, kv_width, size, 0);
        firstdiff_heads(trace, n, "v_cache", FIRSTDIFF_F32, v_cache, keys, m->kv_heads, size, kv_width, size, 0);

        for (h = 0; h < m->heads; h++) {
            int64_t shared = bug ? h % m->kv_heads : h / group;
            for (t = 0; t < rows; t++) {
                float *scores = b[SCORES] + (h * rows + t) * cache->room;
                for (j = 0; j < keys; j++)
                    scores[j] = j > past + t ? -INFINITY
                                             : scale * dot(b[Q] + (t * m->heads + h) * size, k_cache + (j * m->kv_heads + shared) * size, size);
            }
        }
        record_keys(trace, n, "attn_scores", b[SCORES], m->heads, rows, keys, cache->room);
        for (i = 0; i < m->heads * rows; i++) softmax(b[SCORES] + i * cache->room, keys);
        record_keys(trace, n, "attn_probs", b[SCORES], m->heads, rows, keys, cache->room);
        memset(b[HEADS], 0, (size_t)(rows * q_width) * sizeof *x);
        for (h = 0; h < m->heads; h++) {
            int64_t shared = bug ? h % m->kv_heads : h / group;
            for (t = 0; t < rows; t++)
                for (j = 0; j <= past + t; j++) {
                    float p = b[SCORES][(h * rows + t) * cache->room + j], *out = b[HEADS] + (t * m->heads + h) * size;
                    const float *v = v_cache + (j * m->kv_heads + shared) * size;
                    for (i = 0; i < size; i++) out[i] += p * v[i];
                }
        }
        firstdiff_heads(trace, n, "attn_heads", FIRSTDIFF_F32, b[HEADS], rows, m->heads, size, q_width, size, 0);
        product(b[OUT], b[HEADS], l->o, rows, q_width, d);
        firstdiff_matrix(trace, n, "attn_out", FIRSTDIFF_F32, b[OUT], rows, d);
        add(x, b[OUT], rows * d);
        firstdiff_matrix(trace, n, "attn_resid", FIRSTDIFF_F32, x, rows, d);

        norm(b[NORM], x, l->mlp_norm, rows, d, m->eps);
        firstdiff_matrix(trace, n, "mlp_norm", FIRSTDIFF_F32, b[NORM], rows, d);
        product(b[GATE], b[NORM], l->gate, rows, d, m->inner);
        product(b[UP], b[NORM], l->up, rows, d, m->inner);
        firstdiff_matrix(trace, n, "gate_proj", FIRSTDIFF_F32, b[GATE], rows, m->inner);
        firstdiff_matrix(trace, n, "up_proj", FIRSTDIFF_F32, b[UP], rows, m->inner);
        for (i = 0; i < rows * m->inner; i++) b[GATE][i] = b[GATE][i] / (1.0f + expf(-b[GATE][i])) * b[UP][i];
        firstdiff_matrix(trace, n, "mlp_act", FIRSTDIFF_F32, b[GATE], rows, m->inner);
        product(b[OUT], b[GATE], l->down, rows, m->inner, d);
        firstdiff_matrix(trace, n, "mlp_out", FIRSTDIFF_F32, b[OUT], rows, d);
        add(x, b[OUT], rows * d);
        firstdiff_matrix(trace, n, "out", FIRSTDIFF_F32, x, rows, d);
    }
    norm(b[NORM], x, m->final_norm, rows, d, m->eps);
    firstdiff_matrix(trace, FIRSTDIFF_NO_LAYER, "final_norm", FIRSTDIFF_F32, b[NORM], rows, d);
    /* the last row only: the reader knows that fewer rows of logits are the last ones */
    product(b[LOGITS], b[NORM] + (rows - 1) * d, m->head, 1, d, m->vocab);
    firstdiff_matrix(trace, FIRSTDIFF_NO_LAYER, "logits", FIRSTDIFF_F32, b[LOGITS], 1, m->vocab);
    cache->used = keys;
    return b[LOGITS];
}

/* How large the trace will be: what each tap takes for a step, summed over the steps. */
static void expect(firstdiff_trace *trace, const Model *m, int64_t prompt, int64_t generated) {
    const int64_t q = m->heads * m->head_size, kv = m->kv_heads * m->head_size;
    const struct { const char *tap; int64_t row, key, both; } taps[] = {      /* elements for a row, a key, a row and a key */
        {"attn_norm", m->hidden, 0, 0}, {"q_proj", q, 0, 0}, {"k_proj", kv, 0, 0}, {"v_proj", kv, 0, 0}, {"q_rope", q, 0, 0},
        {"k_rope", kv, 0, 0}, {"k_cache", 0, kv, 0}, {"v_cache", 0, kv, 0}, {"attn_scores", 0, 0, m->heads},
        {"attn_probs", 0, 0, m->heads}, {"attn_heads", q, 0, 0}, {"attn_out", m->hidden, 0, 0}, {"attn_resid", m->hidden, 0, 0},
        {"mlp_norm", m->hidden, 0, 0}, {"gate_proj", m->inner, 0, 0}, {"up_proj", m->inner, 0, 0}, {"mlp_act", m->inner, 0, 0},
        {"mlp_out", m->hidden, 0, 0}, {"out", m->hidden, 0, 0},
    };
    uint64_t bytes = 0;
    int64_t step, keys = 0;
    size_t i;
    int n;
    for (step = 0; step < (generated ? generated : 1); step++) {
        int64_t rows = step ? 1 : prompt;
        keys += rows;
        for (n = 0; n < (int)m->layers; n++)
            for (i = 0; i < sizeof taps / sizeof *taps; i++)
                if (firstdiff_wants(trace, n, taps[i].tap))
                    bytes += 4 * (uint64_t)(rows * taps[i].row + keys * taps[i].key + rows * keys * taps[i].both);
        if (firstdiff_wants(trace, FIRSTDIFF_NO_LAYER, "embed")) bytes += 4 * (uint64_t)(rows * m->hidden);
        if (firstdiff_wants(trace, FIRSTDIFF_NO_LAYER, "final_norm")) bytes += 4 * (uint64_t)(rows * m->hidden);
        if (firstdiff_wants(trace, FIRSTDIFF_NO_LAYER, "logits")) bytes += 4 * (uint64_t)m->vocab;
    }
    firstdiff_expect(trace, bytes);
}

int main(int argc, char **argv) {
    firstdiff_options options = {0};
    firstdiff_trace *trace;
    int64_t *ids, prompt = 0, generated, rows, step, i, next = 0;
    float *b[BUFFERS];
    size_t most;
    Model m;
    Cache cache;
    char *p;
    if (argc < 4 || argc > 5 || (argc == 5 && strcmp(argv[4], "--bug"))) die("usage", "llama MODEL ID,ID,... COUNT [--bug]");
    m = load(argv[1]);
    ids = (int64_t *)allocate(strlen(argv[2]) + 1, sizeof *ids);
    for (p = argv[2]; *p; p += *p == ',') {
        ids[prompt] = strtoll(p, &p, 10);
        if ((*p && *p != ',') || ids[prompt] < 0 || ids[prompt] >= m.vocab) die("no token of this model", argv[2]);
        prompt++;
    }
    generated = atoll(argv[3]);
    if (!prompt || generated < 0) die("no prompt, or no count", argv[3]);
    cache.room = prompt + generated;
    cache.used = 0;
    most = (size_t)(m.layers * cache.room * m.kv_heads * m.head_size);
    cache.k = (float *)allocate(most, sizeof(float));
    cache.v = (float *)allocate(most, sizeof(float));
    {
        const int64_t widths[BUFFERS] = {m.hidden, m.hidden, m.heads * m.head_size, m.kv_heads * m.head_size, m.kv_heads * m.head_size,
                                         m.heads * cache.room, m.heads * m.head_size, m.hidden, m.inner, m.inner, m.vocab};
        for (i = 0; i < BUFFERS; i++) b[i] = (float *)allocate((size_t)((i == LOGITS ? 1 : prompt) * widths[i]), sizeof(float));
    }

    options.producer = "llama.c";
    options.version = "1";
    options.arithmetic = "{\"activations\": \"f32\"}";
    options.sampling = "{\"do_sample\": false}";
    options.model = "{\"family\": \"llama\"}";
    trace = firstdiff_open_env(&options);
    expect(trace, &m, prompt, generated);
    for (step = 0, rows = prompt; step == 0 || step < generated; step++, rows = 1) {
        const float *logits;
        firstdiff_begin(trace, ids, (size_t)rows, NULL, NULL);
        logits = forward(&m, &cache, ids, rows, b, argc == 5, trace);
        for (next = 0, i = 1; i < m.vocab; i++) if (logits[i] > logits[next]) next = i;
        firstdiff_sampled(trace, &next, 1);
        firstdiff_end(trace);
        printf("%s%lld", step ? "," : "", (long long)next);
        ids[0] = next;
    }
    printf("\n");
    firstdiff_close(trace, 1);
    for (i = 0; i < BUFFERS; i++) free(b[i]);
    free(cache.k);
    free(cache.v);
    free(m.layer);
    free(ids);
    return 0;
}
