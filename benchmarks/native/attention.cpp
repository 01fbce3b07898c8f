// GAT's attention by hand, the yardstick of the generated kernels: HEADS heads of HEAD_WIDTH floats.
//
//   e_ij = leaky_relu(el_j + er_i),  a_ij = softmax over j of e_ij,  out_i = sum over j of a_ij z_j
//
// Tensors, float32, row-major: el, er, lse, d_el, d_er [N, HEADS]; z, out, d_out, d_z [N, HEADS, HEAD_WIDTH].
// Edges twice: by destination (in_start, in_source) and by source (out_start, out_target).
// Between forward and backward only out and lse, log(sum of exp(e_ij)), are kept.
#include <omp.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include "edges.h"

constexpr int H = HEADS, D = HEAD_WIDTH, ROW = H * D, BLOCK = 64, AHEAD = 8;
constexpr int L = lanes(D), VECS = D / L;
typedef float Vec __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef float Full __attribute__((vector_size(4 * REGISTER), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(4 * REGISTER)));

// What the backward pass reads of one destination, in whole cache lines.
struct alignas(64) Target {
  float er[H], lse[H], delta[H];
};

// exp(x) in float32, relative error about 1e-7, for finite x; below -87 it is about 1e-38 instead of less.
static inline Full exp_of(Full x) {
  const Full zero = {};
  x = x < zero - 87.0f ? zero - 87.0f : x;
  x = x > zero + 88.0f ? zero + 88.0f : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Full shifted = x * 1.44269504f + round;
  const Full n = shifted - round;
  const Full r = x - n * 0.693359375f + n * 2.12194440e-4f;  // x - n log 2, log 2 in two parts
  Full p = r * 1.38888889e-3f + 8.33333333e-3f;              // Taylor up to r^6, |r| <= 0.35
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Whole bits = ((Whole)shifted - 0x4B400000 + 127) << 23;  // 2^n
  return p * (Full)bits;
}

static inline void exp_all(float* values, int count) {
  for (int k = 0; k < count; k += REGISTER) {
    Full* x = reinterpret_cast<Full*>(values + k);
    *x = exp_of(*x);
  }
}

static inline float sum_of(const Vec& v) {
  float part[L];
  std::memcpy(part, &v, sizeof part);
#pragma GCC unroll 8
  for (int n = L / 2; n > 0; n /= 2)
    for (int k = 0; k < n; k++) part[k] += part[k + n];
  return part[0];
}

// One destination: online softmax over blocks of its edges, the weighted sum in registers.
static void forward_row(int64_t first, int64_t last, int64_t edges, const int32_t* in_source, const float* el,
                        const float* er, const float* z, float* out, float* lse, float slope) {
  float peak[H], total[H] = {};
  std::fill(peak, peak + H, -INFINITY);
  Vec sum[H][VECS] = {};
  for (int64_t start = first; start < last; start += BLOCK) {
    const int count = int(std::min<int64_t>(BLOCK, last - start));
    alignas(64) float weight[BLOCK * H];
    float before[H];
    std::copy(peak, peak + H, before);
    for (int q = 0; q < count; q++) {
      const float* from = el + int64_t(in_source[start + q]) * H;
      for (int h = 0; h < H; h++) {
        const float score = from[h] + er[h];
        weight[q * H + h] = score > 0 ? score : score * slope;
        peak[h] = std::max(peak[h], weight[q * H + h]);
      }
    }
    if (start > first) {
      for (int h = 0; h < H; h++) {
        const float scale = expf(before[h] - peak[h]);
        total[h] *= scale;
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++) sum[h][v] *= scale;
      }
    }
    for (int q = 0; q < count; q++)
      for (int h = 0; h < H; h++) weight[q * H + h] -= peak[h];
    exp_all(weight, count * H);
    for (int q = 0; q < count; q++) {
      // Across the end of the row: the next row's sources follow in in_source.
      const int64_t ahead = start + q + AHEAD;
      if (ahead < edges) {
        prefetch_row<ROW>(z + int64_t(in_source[ahead]) * ROW);
        __builtin_prefetch(el + int64_t(in_source[std::min(ahead + 3 * AHEAD, edges - 1)]) * H);
      }
      const float* from = z + int64_t(in_source[start + q]) * ROW;
#pragma GCC unroll 16
      for (int h = 0; h < H; h++) {
        const float w = weight[q * H + h];
        total[h] += w;
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++) sum[h][v] += w * reinterpret_cast<const Vec*>(from)[h * VECS + v];
      }
    }
  }
  for (int h = 0; h < H; h++) {
    const float scale = first < last ? 1.0f / total[h] : 0.0f;
    for (int v = 0; v < VECS; v++) reinterpret_cast<Vec*>(out)[h * VECS + v] = sum[h][v] * scale;
    lse[h] = first < last ? peak[h] + logf(total[h]) : 0.0f;
  }
}

extern "C" void attention_forward(int64_t nodes, const int64_t* in_start, const int32_t* in_source, const float* el,
                                  const float* er, const float* z, float* out, float* lse, float slope, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const auto [first, last] = share(in_start, nodes, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t i = first; i < last; i++)
      forward_row(in_start[i], in_start[i + 1], in_start[nodes], in_source, el, er + i * H, z, out + i * ROW,
                  lse + i * H, slope);
  }
}

// One source: d_z and d_el in registers; d_score [E, HEADS], in source order, is left for the destinations' sums.
static void backward_row(int64_t first, int64_t last, int64_t edges, const int32_t* out_target, const float* el,
                         const float* z, const float* d_out, const Target* targets, float* d_score, float* d_el,
                         float* d_z, float slope) {
  Vec mine[H][VECS], sum[H][VECS] = {};
  std::memcpy(mine, z, sizeof mine);
  float d_from[H] = {};
  for (int64_t start = first; start < last; start += BLOCK) {
    const int count = int(std::min<int64_t>(BLOCK, last - start));
    alignas(64) float weight[BLOCK * H];
    float slopes[BLOCK * H], delta[BLOCK * H];
    for (int q = 0; q < count; q++) {
      const Target& to = targets[out_target[start + q]];
      for (int h = 0; h < H; h++) {
        const float score = el[h] + to.er[h];
        slopes[q * H + h] = score > 0 ? 1.0f : slope;
        weight[q * H + h] = score * slopes[q * H + h] - to.lse[h];
        delta[q * H + h] = to.delta[h];
      }
    }
    exp_all(weight, count * H);
    for (int q = 0; q < count; q++) {
      const int64_t ahead = start + q + AHEAD;
      if (ahead < edges) {
        prefetch_row<ROW>(d_out + int64_t(out_target[ahead]) * ROW);
        __builtin_prefetch(targets + out_target[std::min(ahead + 3 * AHEAD, edges - 1)]);
      }
      const Vec* from = reinterpret_cast<const Vec*>(d_out + int64_t(out_target[start + q]) * ROW);
#pragma GCC unroll 16
      for (int h = 0; h < H; h++) {
        const float w = weight[q * H + h];
        Vec dot = {};
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++) {
          const Vec g = from[h * VECS + v];
          dot += g * mine[h][v];
          sum[h][v] += w * g;
        }
        const float d = w * (sum_of(dot) - delta[q * H + h]) * slopes[q * H + h];
        d_from[h] += d;
        d_score[(start + q) * H + h] = d;
      }
    }
  }
  std::memcpy(d_z, sum, sizeof sum);
  std::memcpy(d_el, d_from, sizeof d_from);
}

// place int32 [E]: where an edge, in destination order, stands in source order. targets: Target [N], scratch;
// d_score float32 [E, HEADS], scratch.
extern "C" void attention_backward(int64_t nodes, const int64_t* in_start, const int32_t* place,
                                   const int64_t* out_start, const int32_t* out_target, const float* el,
                                   const float* er, const float* z, const float* out, const float* lse,
                                   const float* d_out, Target* targets, float* d_score, float* d_el, float* d_er,
                                   float* d_z, float slope, int threads) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < nodes; i++) {
      const Vec* g = reinterpret_cast<const Vec*>(d_out + i * ROW);
      const Vec* o = reinterpret_cast<const Vec*>(out + i * ROW);
      Target& to = targets[i];
      for (int h = 0; h < H; h++) {
        Vec dot = {};
        for (int v = 0; v < VECS; v++) dot += g[h * VECS + v] * o[h * VECS + v];
        to.er[h] = er[i * H + h], to.lse[h] = lse[i * H + h], to.delta[h] = sum_of(dot);
      }
    }
    auto [first, last] = share(out_start, nodes, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t j = first; j < last; j++)
      backward_row(out_start[j], out_start[j + 1], out_start[nodes], out_target, el + j * H, z + j * ROW, d_out,
                   targets, d_score, d_el + j * H, d_z + j * ROW, slope);
#pragma omp barrier
    std::tie(first, last) = share(in_start, nodes, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t i = first; i < last; i++) {
      float sum[H] = {};
      for (int64_t e = in_start[i]; e < in_start[i + 1]; e++) {
        __builtin_prefetch(d_score + int64_t(place[std::min(e + 2 * AHEAD, in_start[nodes] - 1)]) * H);
        for (int h = 0; h < H; h++) sum[h] += d_score[int64_t(place[e]) * H + h];
      }
      std::memcpy(d_er + i * H, sum, sizeof sum);
    }
  }
}
