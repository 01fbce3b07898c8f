"""The functions that every generated CUDA translation unit starts with."""

from __future__ import annotations

# What the target brings: here the CUDA runtime. The tests put an emulation of it in its place
# (tests/codegen/emulated_warps.h), before the same functions and the same kernels.
RUNTIME = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <cuda_fp16.h>

#define SARC_DEVICE static __device__ __forceinline__
#define SARC_MEMBER __device__ __forceinline__
#define SARC_UNROLL _Pragma("unroll")
#define SARC_UNROLL_EDGES _Pragma("unroll 4")
#define SARC_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<dim3(unsigned(blocks)), threads, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)

typedef __half sarc_f16;
SARC_DEVICE float sarc_load(sarc_f16 x) { return __half2float(x); }
SARC_DEVICE void sarc_put(sarc_f16& to, float x) { to = __float2half_rn(x); }

static inline int sarc_use_device(int64_t device) { return int(cudaSetDevice(int(device))); }
static inline int sarc_status() { return int(cudaGetLastError()); }
extern "C" const char* sarc_describe(int status) { return cudaGetErrorString(cudaError_t(status)); }
"""

FUNCTIONS = r"""
template <class T> SARC_DEVICE T sarc_inf() { return std::numeric_limits<T>::infinity(); }

// Like torch: a NaN operand gives NaN.
template <class T> SARC_DEVICE T sarc_max(T a, T b) { return (a > b || a != a) ? a : b; }
template <class T> SARC_DEVICE T sarc_min(T a, T b) { return (a < b || a != a) ? a : b; }
template <class C, class A, class B> SARC_DEVICE auto sarc_where(C c, A a, B b) { return c ? a : b; }
SARC_DEVICE float sarc_exp(float x) { return expf(x); }
SARC_DEVICE double sarc_exp(double x) { return exp(x); }

// Memory holds some types narrower than they are computed.
struct sarc_bf16 { uint16_t bits; };
template <class T> SARC_DEVICE T sarc_load(T x) { return x; }
template <class T, class S> SARC_DEVICE void sarc_put(T& to, S x) { to = T(x); }
SARC_DEVICE float sarc_load(sarc_bf16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &wide, 4);
  return y;
}
SARC_DEVICE void sarc_put(sarc_bf16& to, float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  const uint32_t even = wide + 0x7FFFu + ((wide >> 16) & 1u);
  to.bits = uint16_t(x != x ? 0x7FC0u : even >> 16);
}

// Neighbours in memory, moved at once.
template <class T, int V> struct alignas(sizeof(T) * V) sarc_strip { T at[V]; };
template <int V, class T> SARC_DEVICE sarc_strip<T, V> sarc_read(const T* from) {
  return *reinterpret_cast<const sarc_strip<T, V>*>(from);
}
template <int V, class T> SARC_DEVICE void sarc_write(T* to, const sarc_strip<T, V>& x) {
  *reinterpret_cast<sarc_strip<T, V>*>(to) = x;
}

// The few features of an edge's row, V at once, for the lane that has the edge.
template <class T, int V, int S> struct sarc_few {
  sarc_strip<T, V> strips[S];
  SARC_MEMBER T operator[](int i) const { return strips[i / V].at[i % V]; }
};
template <int V, int S, class T> SARC_DEVICE sarc_few<T, V, S> sarc_read_few(const T* from) {
  sarc_few<T, V, S> row;
  SARC_UNROLL for (int j = 0; j < S; ++j) row.strips[j] = sarc_read<V>(from + j * V);
  return row;
}

// Groups of G neighbouring lanes of a warp.
template <int G> SARC_DEVICE unsigned sarc_group_mask() {
  return G == 32 ? 0xFFFFFFFFu : ((1u << (G % 32)) - 1u) << (threadIdx.x % 32 / G * G);
}
SARC_DEVICE void sarc_meet(unsigned mask) { __syncwarp(mask); }
template <class T> SARC_DEVICE T sarc_across(T x, int distance, unsigned mask) {
  return __shfl_xor_sync(mask, x, distance);
}
SARC_DEVICE bool sarc_across(bool x, int distance, unsigned mask) {
  return __shfl_xor_sync(mask, int(x), distance) != 0;
}
SARC_DEVICE uint8_t sarc_across(uint8_t x, int distance, unsigned mask) {
  return uint8_t(__shfl_xor_sync(mask, int(x), distance));
}

// Folds over LANES neighbouring lanes: every lane gets the same bits.
template <int LANES, class T> SARC_DEVICE T sarc_sum_lanes(T x, unsigned mask) {
  SARC_UNROLL for (int d = LANES / 2; d > 0; d /= 2) x = x + sarc_across(x, d, mask);
  return x;
}
template <int LANES, class T> SARC_DEVICE T sarc_amax_lanes(T x, unsigned mask) {
  SARC_UNROLL for (int d = LANES / 2; d > 0; d /= 2) x = sarc_max(x, sarc_across(x, d, mask));
  return x;
}
template <int LANES, class T> SARC_DEVICE T sarc_amin_lanes(T x, unsigned mask) {
  SARC_UNROLL for (int d = LANES / 2; d > 0; d /= 2) x = sarc_min(x, sarc_across(x, d, mask));
  return x;
}

// A softmax's shift that grows from block to block: a row of nothing but -inf so far is not shifted.
template <class T> SARC_DEVICE T sarc_shift(T x) { return x == -sarc_inf<T>() ? T(0) : x; }
// By what sums grow whose exponentials were shifted by `old` and are to be shifted by `now`.
template <class T> SARC_DEVICE T sarc_rescale(T old, T now) {
  return old == now || old == -sarc_inf<T>() ? T(1) : sarc_exp(old - now);
}
// The same at the end of a row: exp(-inf - -inf) is NaN.
template <class T> SARC_DEVICE T sarc_last_rescale(T old, T now, bool any) {
  return any && now == -sarc_inf<T>() ? now - now : sarc_rescale(old, now);
}

// Philox4x32-10 (Salmon et al., SC 2011): uniform draws keyed by (seed, step, op, row key, feature), four a block.
SARC_DEVICE float sarc_uniform(int64_t key, int feature, uint32_t op, int64_t seed, int64_t step) {
  uint32_t c0 = uint32_t(feature) >> 2, c1 = uint32_t(key), c3 = uint32_t(step);
  uint32_t c2 = (uint32_t(uint64_t(key) >> 32) & 0xFFFFu) << 16 | (op & 0xFFFFu);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
  SARC_UNROLL for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(c0) * 0xD2511F53u, p1 = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint32_t word = uint32_t(feature) & 3u;
  const uint32_t bits = word == 0 ? c0 : word == 1 ? c1 : word == 2 ? c2 : c3;
  return float(int32_t(bits >> 8)) * (1.0f / 16777216.0f);
}
"""
