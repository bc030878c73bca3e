"""The kernels that choose tokens on a GPU, run on the CPU by real threads: the same tokens as the definition in Rust."""

import ctypes
import json
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

KERNEL = pathlib.Path(__file__).resolve().parents[2] / "kernels" / "sample.cu"
VOCAB, DRAWS, WORDS = 700, 6, (1 << 64) - 1

# What the kernels need of CUDA. Shared memory is static, blocks run one after another, threads are threads.
HARNESS = r"""
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define NEG_INF __uint_as_float(0xff800000u)
typedef unsigned int u32;
typedef unsigned long long u64;
struct Dim { u32 x; };
static thread_local Dim threadIdx, blockIdx;
static Dim blockDim{256}, gridDim{2};
static std::barrier<>* meeting;
static void __syncthreads() { meeting->arrive_and_wait(); }
template <class T, class F> static T change(T* at, F next) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(at, &old, next(old), false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return old;
}
template <class T> T atomicAdd(T* at, T x) { return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST); }
template <class T> T atomicMax(T* at, T x) { return change(at, [x](T old) { return old > x ? old : x; }); }
template <class T> T atomicMin(T* at, T x) { return change(at, [x](T old) { return old < x ? old : x; }); }
template <class A, class B> static A bits_as(B b) { A a; memcpy(&a, &b, sizeof a); return a; }
static u32 __float_as_uint(float x) { return bits_as<u32>(x); }
static float __uint_as_float(u32 x) { return bits_as<float>(x); }
static double __longlong_as_double(long long x) { return bits_as<double>(x); }
static double __dmul_rn(double a, double b) { return a * b; }
static double __dadd_rn(double a, double b) { return a + b; }
static double __dsub_rn(double a, double b) { return a - b; }
static double __ddiv_rn(double a, double b) { return a / b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static double __ull2double_rn(u64 x) { return (double)x; }
static u64 __umul64hi(u64 a, u64 b) { return (u64)(((unsigned __int128)a * b) >> 64); }
#include KERNEL

// One kernel, by a team of threads that meets before and after it.
template <class F> static void launch(u32 blocks, F kernel) {
    for (u32 block = 0; block < blocks; block++) {
        __syncthreads();
        blockIdx.x = block;
        kernel();
        __syncthreads();
    }
}

template <class F> static void team(F work) {
    std::barrier<> here(256);
    meeting = &here;
    std::vector<std::thread> threads;
    for (u32 t = 0; t < 256; t++) threads.emplace_back([=] {
        threadIdx.x = t;
        work();
    });
    for (auto& t : threads) t.join();
}

extern "C" void choose(const float* logits, const u32* seen, double temperature, double top_p, double min_p,
                       float penalty, u32 top_k, const u64* bits, u32 draws, u32* tokens) {
    static float row[VOCAB];
    static Tally tally;
    memset(&tally, 0, sizeof tally);
    const Choice whole{logits, row, seen, &tally, tokens, temperature, top_p, min_p, 0, penalty, top_k};
    team([=] {
        Choice c = whole;
        launch(2, [=] { sample_row(c); });
        if (temperature != 0.0) {
            if (top_k) for (int pass = 0; pass <= PASSES; pass++) launch(2, [=] { sample_top_k(c, pass); });
            if (top_p < 1.0) {
                launch(2, [=] { sample_total(c); });
                for (int pass = 0; pass <= PASSES; pass++) launch(2, [=] { sample_top_p(c, pass); });
            }
            launch(2, [=] { sample_segments(c); });
        }
        for (u32 d = 0; d < draws; d++) {
            c.bits = bits[d];
            c.chosen = tokens + d;
            launch(1, [=] { sample_draw(c); });
        }
    });
}
"""


def bits(seed, draw):
    """Number `draw` of SplitMix64, started at the scrambled seed."""
    golden = 0x9E3779B97F4A7C15

    def scramble(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORDS
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORDS
        return z ^ (z >> 31)

    return scramble((scramble((seed + golden) & WORDS) + (draw + 1) * golden) & WORDS)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the CPU")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "harness.cpp").write_text(HARNESS)
    library = folder / "kernel.so"
    options = ["-std=c++20", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", f"-DVOCAB={VOCAB}"]
    subprocess.run(["g++", *options, f'-DKERNEL="{KERNEL}"', folder / "harness.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library)).choose


def rows():
    draw = np.random.default_rng(4)
    lively = (draw.standard_normal(VOCAB) * 3).astype(np.float32)
    even = np.round(draw.standard_normal(VOCAB) * 4).astype(np.float32) / 4  # many equal ones, some 0
    even[::7] *= -0.0
    broken = lively.copy()
    broken[::5], broken[1::9] = -np.inf, np.nan
    flat = np.zeros(VOCAB, np.float32)
    return [lively, even, broken, flat]


LIMITS = ((0, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (5000, 0.3, 0.0), (90, 0.8, 0.05), (1, 0.0, 0.0))
SETTINGS = [
    {"temperature": (1.0, 0.37)[n % 2], "top_k": k, "top_p": p, "min_p": m, "repetition_penalty": (1.3, 1.0)[n // 2 % 2], "seed": 5}
    for n, (k, p, m) in enumerate(LIMITS)
]


def test_the_kernels_choose_the_tokens_of_the_definition(kernel, example):
    seen = [0, 3, 3, 77, 699]
    flags = np.zeros((VOCAB + 31) // 32, np.uint32)
    for token in seen:
        flags[token // 32] |= np.uint32(1 << token % 32)
    words = np.array([bits(5, d) for d in range(DRAWS)], np.uint64)
    cases = [(row, o) for row in rows() for o in SETTINGS]
    number = lambda x: float(x) if np.isfinite(x) else "nothing"
    lines = [{"logits": [number(x) for x in row], "seen": seen, "options": o, "draws": DRAWS} for row, o in cases]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([example("sampler")], input=text, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases)
    at = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    for (row, o), answer in zip(cases, answers):
        tokens = np.zeros(DRAWS, np.uint32)
        penalised = o["repetition_penalty"] != 1.0
        kernel(
            at(row), at(flags) if penalised else None, ctypes.c_double(o["temperature"]), ctypes.c_double(o["top_p"]),
            ctypes.c_double(o["min_p"]), ctypes.c_float(o["repetition_penalty"]), min(o["top_k"], VOCAB), at(words),
            DRAWS, at(tokens),
        )
        assert tokens.tolist() == answer["tokens"], o


def test_greedy_takes_the_first_of_the_best_and_nothing_where_nothing_is(kernel):
    at = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    words, token = np.zeros(1, np.uint64), np.zeros(1, np.uint32)
    one = ctypes.c_double(1.0)
    for value, expected in ((2.0, 4), (np.nan, 0xFFFFFFFF), (-np.inf, 0xFFFFFFFF)):
        row = np.full(VOCAB, -np.inf, np.float32)
        row[4] = row[9] = value
        zero = ctypes.c_double(0.0)
        kernel(at(row), None, zero, one, zero, ctypes.c_float(1.0), 0, at(words), 1, at(token))
        assert token[0] == expected
    row = np.full(VOCAB, np.nan, np.float32)
    kernel(at(row), None, one, one, zero, ctypes.c_float(1.0), 0, at(words), 1, at(token))
    assert token[0] == 0xFFFFFFFF
