// Rows of a compressed edge list: vectors of a row, prefetch, and shares of equal edges for threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

// Floats of a vector register.
#if defined(__AVX512F__)
constexpr int REGISTER = 16;
#elif defined(__AVX__)
constexpr int REGISTER = 8;
#else
constexpr int REGISTER = 4;
#endif

// Floats of one vector: the widest power of two, up to a register, that divides the width of a row.
constexpr int lanes(int width) {
  int n = REGISTER;
  while (width % n) n /= 2;
  return n;
}

// Asks for all cache lines, of 64 bytes, of a row of `FLOATS` floats.
template <int FLOATS>
inline void prefetch_row(const float* row) {
#pragma GCC unroll 64
  for (int line = 0; line < FLOATS; line += 16) __builtin_prefetch(row + line);
}

// Rows [first, last) of one thread: shares hold equally many edges, not equally many rows. start: int64 [rows + 1].
inline std::pair<int64_t, int64_t> share(const int64_t* start, int64_t rows, int thread, int threads) {
  const int64_t edges = start[rows];
  auto bound = [&](int t) -> int64_t {
    if (t == 0) return 0;
    if (t == threads) return rows;
    return std::lower_bound(start, start + rows, edges / threads * t) - start;
  };
  return {bound(thread), bound(thread + 1)};
}
