/* Writes steps until it is killed; a byte on stdout for each one that firstdiff_end came back from. For test_killed.py. */
#define FIRSTDIFF_IMPLEMENTATION
#include "../firstdiff.h"

int main(int argc, char **argv) {
    static float x[4][50000];
    firstdiff_options options = {0};
    firstdiff_trace *t;
    int64_t step;
    int layer, i;
    if (argc != 3) return 2;
    options.producer = "endless";
    options.writer_bytes = strtoull(argv[2], NULL, 10);
    t = firstdiff_open(argv[1], &options);
    for (step = 0; step < 5000; step++) {
        firstdiff_begin(t, &step, 1, NULL, NULL);
        for (layer = 0; layer < 4; layer++) {
            for (i = 0; i < 50000; i++) x[layer][i] = (float)(step + layer);
            firstdiff_matrix(t, layer, "out", FIRSTDIFF_F32, x[layer], 1, 10000 * (layer + 2));
        }
        firstdiff_end(t);
        if (write(1, "s", 1) != 1) return 1;
    }
    firstdiff_close(t, 1);
    return 0;
}
