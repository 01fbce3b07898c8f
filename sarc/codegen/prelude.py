"""The functions that every generated translation unit starts with: plain scalar C++, inlined into vector loops."""

from __future__ import annotations

# Before the prelude of a unit whose values are compared with those of another.
TO_THE_BIT = r"""
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif
"""

PRELUDE = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define SARC_SIMD _Pragma("omp simd")
#define SARC_UNROLL _Pragma("GCC unroll 64")

template <class T> static inline T sarc_inf() { return std::numeric_limits<T>::infinity(); }
template <class T> static inline T sarc_nan() { return std::numeric_limits<T>::quiet_NaN(); }

// Of numbers or vectors. Like torch: a NaN operand gives NaN.
template <class T> static inline T sarc_max(T a, T b) { return ((a > b) | (a != a)) ? a : b; }
template <class T> static inline T sarc_min(T a, T b) { return ((a < b) | (a != a)) ? a : b; }

// By value: of two elements in memory, ?: itself chooses an address, and of choices of addresses there are no vectors.
template <class C, class A, class B> static inline auto sarc_where(C c, A a, B b) { return c ? a : b; }

// Folds of n contiguous values, in the type of what they are folded into.
template <class T, class S> static inline S sarc_sum_of(const T* x, int n, S start) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += S(x[i]);
  return start + sum;
}
template <class T, class S> static inline S sarc_max_of(const T* x, int n, S start) {
  S lane[16];
  for (int i = 0; i < 16; ++i) lane[i] = start;
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    SARC_SIMD for (int l = 0; l < 16; ++l) lane[l] = sarc_max(lane[l], S(x[i + l]));
  }
  for (; i < n; ++i) start = sarc_max(start, S(x[i]));
  for (int l = 0; l < 16; ++l) start = sarc_max(start, lane[l]);
  return start;
}
template <class T, class S> static inline S sarc_min_of(const T* x, int n, S start) {
  for (int i = 0; i < n; ++i) start = sarc_min(start, S(x[i]));
  return start;
}

// A vector register of the processor: wider vectors would be passed through memory.
#if defined(__AVX512F__)
#define SARC_BYTES 64
#elif defined(__AVX__)
#define SARC_BYTES 32
#else
#define SARC_BYTES 16
#endif

// Numbers of a vector, no more than the features.
template <class T> constexpr int sarc_lanes(int features) {
  int n = SARC_BYTES / int(sizeof(T));
  while (n > features) n /= 2;
  return n;
}

// The first feature of vector v: the last vector ends with the features.
constexpr int sarc_start(int v, int lanes, int features) {
  return v * lanes < features - lanes ? v * lanes : features - lanes;
}

// N numbers in a vector register, from memory and to it.
template <class T, int N> struct sarc_vector_of { typedef T type __attribute__((vector_size(N * sizeof(T)))); };
template <class T, int N> using sarc_vector = typename sarc_vector_of<T, N>::type;
template <int N, class T> static inline sarc_vector<T, N> sarc_get(const T* x) {
  sarc_vector<T, N> v;
  std::memcpy(&v, x, sizeof v);
  return v;
}
template <class T, class V> static inline void sarc_put(T* x, V v) { std::memcpy(x, &v, sizeof v); }
template <int N, class T> static inline sarc_vector<T, N> sarc_all(T x) { return x - sarc_vector<T, N>{}; }

// Folds of n contiguous values to W features each, the features of an entry side by side; W divides 16 and n.
#define SARC_LANES(NAME, START, STEP)                                                          \
  template <int W, class T, class S> static inline void NAME(const T* x, int n, S* into) {     \
    alignas(64) S lane[16];                                                                    \
    for (int l = 0; l < 16; ++l) lane[l] = START;                                              \
    int i = 0;                                                                                 \
    if (std::is_same<T, S>::value) {                                                           \
      const S* same = reinterpret_cast<const S*>(x);                                           \
      constexpr int N = sarc_lanes<S>(16);                                                     \
      sarc_vector<S, N> lanes[16 / N];                                                         \
      SARC_UNROLL for (int l = 0; l < 16 / N; ++l) lanes[l] = sarc_get<N>(lane + l * N);       \
      for (; i + 16 <= n; i += 16) {                                                           \
        SARC_UNROLL for (int l = 0; l < 16 / N; ++l)                                           \
          lanes[l] = STEP(lanes[l], sarc_get<N>(same + i + l * N));                            \
      }                                                                                        \
      SARC_UNROLL for (int l = 0; l < 16 / N; ++l) sarc_put(lane + l * N, lanes[l]);           \
    }                                                                                          \
    for (; i < n; i += W) {                                                                    \
      for (int l = 0; l < W; ++l) lane[l] = STEP(lane[l], S(x[i + l]));                        \
    }                                                                                          \
    for (int half = 8; half >= W; half /= 2) {                                                 \
      for (int l = 0; l < half; ++l) lane[l] = STEP(lane[l], lane[l + half]);                  \
    }                                                                                          \
    for (int l = 0; l < W; ++l) into[l] = STEP(into[l], lane[l]);                              \
  }
template <class T> static inline T sarc_add(T a, T b) { return a + b; }
SARC_LANES(sarc_sum_lanes, S(0), sarc_add)
SARC_LANES(sarc_max_lanes, into[l % W], sarc_max)
SARC_LANES(sarc_min_lanes, into[l % W], sarc_min)

// A vector of features from `start`, with 0 for those that the vector before it has too.
template <class V> static inline V sarc_unseen(V x, int start) {
  constexpr int N = sizeof(V) / sizeof(x[0]);
  decltype(x < x) lane;
  SARC_UNROLL for (int l = 0; l < N; ++l) lane[l] = l;
  return start % N ? (lane < (lane * 0 + (N - start % N)) ? V{} : x) : x;
}
template <class V> static inline auto sarc_total(V v) -> decltype(v[0] + v[0]) {
  constexpr int N = sizeof(V) / sizeof(v[0]);
  decltype(v[0] + v[0]) part[N];
  std::memcpy(part, &v, sizeof v);
#pragma GCC unroll 4
  for (int n = N / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) part[i] += part[i + n];
  return part[0];
}

// Storage in 16 bits, arithmetic in float.
struct sarc_bf16 { uint16_t bits; };
typedef _Float16 sarc_f16;
static inline float sarc_load(sarc_f16 x) { return float(x); }
static inline float sarc_load(sarc_bf16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &wide, 4);
  return y;
}
template <class T> static inline T sarc_to(float x) { return T(x); }
template <> inline sarc_bf16 sarc_to<sarc_bf16>(float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  const uint32_t even = wide + 0x7FFFu + ((wide >> 16) & 1u);
  return {uint16_t(x != x ? 0x7FC0u : even >> 16)};
}

// exp in plain arithmetic, one unit in the last place: 2^n exp(r) with |r| <= ln(2) / 2, n split so that 2^n is normal.
static inline float sarc_exp(float x) {
  float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  n = n > 128.0f ? 128.0f : n;
  n = n < -151.0f ? -151.0f : n;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t k = int32_t(n), half = k / 2;
  const int32_t low = (half + 127) << 23, high = (k - half + 127) << 23;
  float a, b;
  std::memcpy(&a, &low, 4);
  std::memcpy(&b, &high, 4);
  float y = p * a * b;
  y = x > 88.7228394f ? sarc_inf<float>() : y;
  y = x < -104.0f ? 0.0f : y;
  return x != x ? x : y;
}
static inline double sarc_exp(double x) {
  double n = (x * 1.4426950408889634 + 6755399441055744.0) - 6755399441055744.0;
  n = n > 1025.0 ? 1025.0 : n;
  n = n < -1080.0 ? -1080.0 : n;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.6059043836821613e-10;
  p = p * r + 2.0876756987868099e-09;
  p = p * r + 2.5052108385441720e-08;
  p = p * r + 2.7557319223985888e-07;
  p = p * r + 2.7557319223985893e-06;
  p = p * r + 2.4801587301587302e-05;
  p = p * r + 1.9841269841269841e-04;
  p = p * r + 1.3888888888888889e-03;
  p = p * r + 8.3333333333333332e-03;
  p = p * r + 4.1666666666666664e-02;
  p = p * r + 1.6666666666666666e-01;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  const int64_t k = int64_t(n), half = k / 2;
  const int64_t low = (half + 1023) << 52, high = (k - half + 1023) << 52;
  double a, b;
  std::memcpy(&a, &low, 8);
  std::memcpy(&b, &high, 8);
  double y = p * a * b;
  y = x > 709.782712893384 ? sarc_inf<double>() : y;
  y = x < -745.14 ? 0.0 : y;
  return x != x ? x : y;
}

// Philox4x32-10 (Salmon et al., SC 2011): four uniform draws, keyed by (seed, step, op, row key, block).
static inline void sarc_philox(int64_t key, uint32_t block, uint32_t op, int64_t seed, int64_t step, float* a, float* b,
                               float* c, float* d) {
  uint32_t c0 = block, c1 = uint32_t(key), c3 = uint32_t(step);
  uint32_t c2 = (uint32_t(uint64_t(key) >> 32) & 0xFFFFu) << 16 | (op & 0xFFFFu);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(c0) * 0xD2511F53u, p1 = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  *a = float(int32_t(c0 >> 8)) * (1.0f / 16777216.0f);
  *b = float(int32_t(c1 >> 8)) * (1.0f / 16777216.0f);
  *c = float(int32_t(c2 >> 8)) * (1.0f / 16777216.0f);
  *d = float(int32_t(c3 >> 8)) * (1.0f / 16777216.0f);
}
"""
