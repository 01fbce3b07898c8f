// The part of the CUDA runtime that generated kernels use, on one thread of the CPU.
//
// Every thread of a block is a fibre with a stack of its own, and runs until it meets others: at __syncwarp, at a shuffle,
// at __syncthreads. Which of those that may go on does so first is the caller's choice (sarc_emulate): results that
// depend on it show a meeting that is missing. A thread that waits for one that has ended, or for one that waits
// elsewhere, makes the launch fail.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#define __global__ static
#define __device__
#define __shared__ static
#define __launch_bounds__(threads, blocks)
#define SARC_DEVICE static inline
#define SARC_MEMBER inline
#define SARC_UNROLL
#define SARC_UNROLL_EDGES
#define SARC_LAUNCH(kernel, blocks, threads, stream, ...) \
  emulated::run(int64_t(blocks), int(threads), [=] { kernel(__VA_ARGS__); })

struct emulated_index { unsigned x = 0; };
static emulated_index threadIdx, blockIdx;

namespace emulated {

enum Waits { nothing, warp, block, ended };
struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Waits waits = nothing;
  unsigned mask = 0;
  uint64_t value = 0;   // what it shows the others
  uint64_t shown[32];   // what the others showed at the last meeting
};

constexpr size_t STACK = 256 << 10;
static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static int current = 0, order = 0;
static std::string failure;
static std::function<void()> body;

static void enter() {
  body();
  fibres[current].waits = ended;
  swapcontext(&fibres[current].context, &scheduler);
}

static void wait(Waits what, unsigned mask = 0, uint64_t value = 0) {
  Fibre& f = fibres[current];
  f.waits = what;
  f.mask = mask;
  f.value = value;
  const int mine = current;
  swapcontext(&f.context, &scheduler);
  threadIdx.x = unsigned(mine);
}

// Let the lanes of a warp go on that wait for one another.
static bool release_warp(int first, int threads) {
  bool any = false;
  for (int l = 0; l < 32 && first + l < threads; ++l) {
    const Fibre& f = fibres[first + l];
    if (f.waits != warp) continue;
    bool all = (f.mask >> l) & 1u;
    if (!all) failure = "a lane is not in the mask that it waits with";
    for (int m = 0; m < 32 && all; ++m)
      if ((f.mask >> m) & 1u) all = first + m < threads && fibres[first + m].waits == warp && fibres[first + m].mask == f.mask;
    if (!all) continue;
    const unsigned mask = f.mask;
    for (int m = 0; m < 32; ++m)
      if ((mask >> m) & 1u)
        for (int o = 0; o < 32; ++o)
          if ((mask >> o) & 1u) fibres[first + m].shown[o] = fibres[first + o].value;
    for (int m = 0; m < 32; ++m)
      if ((mask >> m) & 1u) fibres[first + m].waits = nothing;
    any = true;
  }
  return any;
}

static void run(int64_t blocks, int threads, std::function<void()> kernel) {
  body = std::move(kernel);
  failure.clear();
  if (int(fibres.size()) < threads) fibres.resize(size_t(threads));
  for (int64_t b = 0; b < blocks && failure.empty(); ++b) {
    blockIdx.x = unsigned(order == 1 ? blocks - 1 - b : b);
    for (int t = 0; t < threads; ++t) {
      Fibre& f = fibres[t];
      if (!f.stack) f.stack.reset(new char[STACK]);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = STACK;
      f.context.uc_link = &scheduler;
      f.waits = nothing;
      makecontext(&f.context, enter, 0);
    }
    for (;;) {
      bool any = false;
      for (int i = 0; i < threads; ++i) {
        const int t = order == 0 ? i : order == 1 ? threads - 1 - i : int((i * 37u + 11u) % unsigned(threads));
        if (fibres[t].waits != nothing) continue;
        any = true;
        current = t;
        threadIdx.x = unsigned(t);
        swapcontext(&scheduler, &fibres[t].context);
      }
      for (int first = 0; first < threads; first += 32) any |= release_warp(first, threads);
      int done = 0, at_block = 0;
      for (int t = 0; t < threads; ++t) done += fibres[t].waits == ended, at_block += fibres[t].waits == block;
      if (done == threads || !failure.empty()) break;
      if (at_block == threads) {  // of threads that have ended, none may be left out
        for (int t = 0; t < threads; ++t) fibres[t].waits = nothing;
        any = true;
      }
      if (!any) {
        failure = "threads wait for others that never come: " + std::to_string(at_block) + " at a block's meeting, " +
                  std::to_string(done) + " have ended, of " + std::to_string(threads);
        break;
      }
    }
  }
}

}  // namespace emulated

static inline void __syncthreads() { emulated::wait(emulated::block); }
static inline void __syncwarp(unsigned mask) { emulated::wait(emulated::warp, mask); }
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int distance) {
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  emulated::wait(emulated::warp, mask, bits);
  T y;
  std::memcpy(&y, &emulated::fibres[emulated::current].shown[(threadIdx.x % 32) ^ unsigned(distance)], sizeof(T));
  return y;
}

typedef _Float16 sarc_f16;
static inline float sarc_load(sarc_f16 x) { return float(x); }
static inline void sarc_put(sarc_f16& to, float x) { to = sarc_f16(x); }

static inline int sarc_use_device(int64_t) { return 0; }
static inline int sarc_status() { return emulated::failure.empty() ? 0 : 1; }
extern "C" const char* sarc_describe(int) { return emulated::failure.c_str(); }
extern "C" void sarc_emulate(int order) { emulated::order = order; }
