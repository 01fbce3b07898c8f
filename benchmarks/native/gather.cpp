// Reads rows of a float table [N, WIDTH] in the order of a graph's edges: the rate that no aggregation can beat.
// `ahead`: how many edges ahead a row is prefetched; 0 leaves it to the processor.
#include <omp.h>

#include "edges.h"

typedef float Vec __attribute__((vector_size(4 * lanes(WIDTH)), aligned(4), may_alias));
constexpr int VECS = WIDTH / lanes(WIDTH);

static inline void add_row(Vec* sum, const float* row) {
  const Vec* x = reinterpret_cast<const Vec*>(row);
#pragma GCC unroll 64
  for (int v = 0; v < VECS; v++) sum[v] += x[v];
}

static inline void prefetch_edge(const int32_t* column, const float* table, int64_t edge, int64_t edges) {
  if (edge < edges) prefetch_row<WIDTH>(table + int64_t(column[edge]) * WIDTH);
}

// out[i] = sum of table[column[e]] over start[i] <= e < start[i + 1].
extern "C" void gather_sum(int64_t rows, const int64_t* start, const int32_t* column, const float* table, float* out,
                           int ahead, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const auto [first, last] = share(start, rows, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t i = first; i < last; i++) {
      Vec sum[VECS] = {};
      for (int64_t e = start[i]; e < start[i + 1]; e++) {
        if (ahead) prefetch_edge(column, table, e + ahead, start[rows]);
        add_row(sum, table + int64_t(column[e]) * WIDTH);
      }
      Vec* to = reinterpret_cast<Vec*>(out + i * WIDTH);
      for (int v = 0; v < VECS; v++) to[v] = sum[v];
    }
  }
}

// The same reads without rows to sum to: every thread adds all that it reads to one row of out [threads, WIDTH].
extern "C" void gather_only(int64_t rows, const int64_t* start, const int32_t* column, const float* table, float* out,
                            int ahead, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    const auto [first, last] = share(start, rows, thread, omp_get_num_threads());
    Vec sum[VECS] = {};
    for (int64_t e = start[first]; e < start[last]; e++) {
      if (ahead) prefetch_edge(column, table, e + ahead, start[rows]);
      add_row(sum, table + int64_t(column[e]) * WIDTH);
    }
    Vec* to = reinterpret_cast<Vec*>(out + int64_t(thread) * WIDTH);
    for (int v = 0; v < VECS; v++) to[v] = sum[v];
  }
}
