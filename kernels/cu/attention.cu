// Causal attention over the paged cache: store this step's K/V, attend in fixed splits of the context, combine.
//
// cache   [block][slot][kv_head][dim], f32 or bf16; block 0 takes what padding writes
// split   SPLIT keys; a split's sum and the order in which splits are combined depend on positions alone, so a query's
//         result is the same bits in a decode step, in any prefill chunk and beside any other sequence
// grid    attend (kv_head, token, split), 128 threads: four warps walk the split's keys, a lane holds dim / 32 entries
//         of up to GROUP query heads (the last number of a kernel's name: heads up to 32 times that); combine (head, token)
// Formula: softmax(scale * q.k, soft-capped, windowed, plus one sink column) * v, computed online in f32.
// Tolerance against f64: 2e-6 of the largest value in f32, 1e-2 in bf16 (K and V are rounded when they are stored).
// Emulated only; not measured.
#include "dev.cuh"

#define SPLIT 256
#define GROUP 4  // query heads that share one read of K and V

template <class T>
__device__ __forceinline__ void store(T* k_cache, T* v_cache, const float* k, const float* v, const u32* slots, u32 k_width, u32 v_width) {
  size_t token = blockIdx.x, slot = slots[token];
  for (u32 i = threadIdx.x; i < k_width; i += blockDim.x) narrow_to(&k_cache[slot * k_width + i], k[token * k_width + i]);
  for (u32 i = threadIdx.x; i < v_width; i += blockDim.x) narrow_to(&v_cache[slot * v_width + i], v[token * v_width + i]);
}
KERNEL store_kv_f32(float* k_cache, float* v_cache, const float* k, const float* v, const u32* slots, u32 k_width, u32 v_width) { store(k_cache, v_cache, k, v, slots, k_width, v_width); }
KERNEL store_kv_bf16(bf16* k_cache, bf16* v_cache, const float* k, const float* v, const u32* slots, u32 k_width, u32 v_width) { store(k_cache, v_cache, k, v, slots, k_width, v_width); }

// window and chunk: 0 for none; every: 0 for a scale that does not grow.
struct Shape { u32 heads, kv_heads, k_dim, v_dim, blocks, block_tokens, window, chunk, splits, every; float growth, scale, cap; };

// sums [token][head][split][v_dim], weights [token][head][split]{largest score, sum of exponentials}
template <class T, int LANE>
__device__ __forceinline__ void attend(float* sums, float* weights, const float* q, const T* k_cache, const T* v_cache, const u32* positions,
                                       const int* sequence, const u32* table, Shape s) {
  DYNAMIC_SHARED(float, merged); // [4 warps][GROUP][v_dim + 2]
  u32 kv_head = blockIdx.x, token = blockIdx.y, split = blockIdx.z, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  u32 group = s.heads / s.kv_heads;
  int seq = sequence[token];
  u32 last = positions[token], first = s.window && last + 1 > s.window ? last + 1 - s.window : s.chunk ? last / s.chunk * s.chunk : 0;
  float scale = s.every ? s.scale * (1.f + s.growth * log1pf((float)((last + 1) / s.every))) : s.scale;
  u32 begin = split * SPLIT, end = min((int)(begin + SPLIT), (int)last + 1);
  for (u32 g0 = 0; g0 < group; g0 += GROUP) {
    float qs[GROUP][LANE], sum[GROUP][LANE], largest[GROUP], total[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
      u32 head = kv_head * group + min((int)(g0 + g), (int)group - 1);
      largest[g] = NEGATIVE_INFINITY;
      total[g] = 0.f;
#pragma unroll
      for (int e = 0; e < LANE; e++) {
        u32 d = lane + e * 32;
        qs[g][e] = d < s.k_dim ? q[((size_t)token * s.heads + head) * s.k_dim + d] * scale : 0.f;
        sum[g][e] = 0.f;
      }
    }
    for (u32 position = begin + warp; seq >= 0 && position < end; position += 4) {
      if (position < first) continue;
      size_t slot = (size_t)table[seq * s.blocks + position / s.block_tokens] * s.block_tokens + position % s.block_tokens;
      const T* key = k_cache + (slot * s.kv_heads + kv_head) * s.k_dim;
      const T* value = v_cache + (slot * s.kv_heads + kv_head) * s.v_dim;
      float ks[LANE], vs[LANE];
#pragma unroll
      for (int e = 0; e < LANE; e++) {
        u32 d = lane + e * 32;
        ks[e] = d < s.k_dim ? widen(key[d]) : 0.f;
        vs[e] = d < s.v_dim ? widen(value[d]) : 0.f;
      }
#pragma unroll
      for (int g = 0; g < GROUP; g++) {
        if (g0 + g >= group) break; // a whole warp agrees
        float score = 0.f;
#pragma unroll
        for (int e = 0; e < LANE; e++) score = fmaf(qs[g][e], ks[e], score);
        score = warp_sum(score);
        if (s.cap > 0.f) score = s.cap * tanhf(score / s.cap);
        float most = fmaxf(largest[g], score), old = expf(largest[g] - most), p = expf(score - most);
        largest[g] = most;
        total[g] = total[g] * old + p;
#pragma unroll
        for (int e = 0; e < LANE; e++) sum[g][e] = sum[g][e] * old + p * vs[e];
      }
    }
    u32 stride = s.v_dim + 2;
    __syncthreads(); // the last group's merge has read `merged`
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
      float* mine = merged + (warp * GROUP + g) * stride;
#pragma unroll
      for (int e = 0; e < LANE; e++)
        if (lane + e * 32 < s.v_dim) mine[lane + e * 32] = sum[g][e];
      if (lane == 0) {
        mine[s.v_dim] = largest[g];
        mine[s.v_dim + 1] = total[g];
      }
    }
    __syncthreads();
    for (u32 g = 0; g < GROUP && g0 + g < group; g++) {
      size_t at = ((size_t)token * s.heads + kv_head * group + g0 + g) * s.splits + split;
      float most = NEGATIVE_INFINITY;
      for (u32 w = 0; w < 4; w++) most = fmaxf(most, merged[(w * GROUP + g) * stride + s.v_dim]);
      float factor[4], all = 0.f;
      for (u32 w = 0; w < 4; w++) {
        float m = merged[(w * GROUP + g) * stride + s.v_dim];
        factor[w] = m == NEGATIVE_INFINITY ? 0.f : expf(m - most);
        all += merged[(w * GROUP + g) * stride + s.v_dim + 1] * factor[w];
      }
      for (u32 d = threadIdx.x; d < s.v_dim; d += blockDim.x) {
        float x = 0.f;
        for (u32 w = 0; w < 4; w++) x += merged[(w * GROUP + g) * stride + d] * factor[w];
        sums[at * s.v_dim + d] = x;
      }
      if (threadIdx.x == 0) {
        weights[at * 2] = most;
        weights[at * 2 + 1] = all;
      }
    }
  }
}
#define SHAPE u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, u32 blocks, u32 block_tokens, u32 window, u32 chunk, u32 splits, u32 every, float growth, float scale, float cap
#define SHAPE_VALUE Shape{heads, kv_heads, k_dim, v_dim, blocks, block_tokens, window, chunk, splits, every, growth, scale, cap}
#define ATTEND(name, T, LANE)                                                                                                       \
  KERNEL __launch_bounds__(128, 3) name(float* sums, float* weights, const float* q, const T* k_cache, const T* v_cache,           \
                                        const u32* positions, const int* sequence, const u32* table, SHAPE) {                      \
    attend<T, LANE>(sums, weights, q, k_cache, v_cache, positions, sequence, table, SHAPE_VALUE);                                   \
  }
ATTEND(attend_f32_1, float, 1)
ATTEND(attend_f32_2, float, 2)
ATTEND(attend_f32_4, float, 4)
ATTEND(attend_f32_8, float, 8)
ATTEND(attend_bf16_1, bf16, 1)
ATTEND(attend_bf16_2, bf16, 2)
ATTEND(attend_bf16_4, bf16, 4)
ATTEND(attend_bf16_8, bf16, 8)

// Splits in order of position; one that saw no key has weight exactly 0. A padding token (no split saw a key) gives 0.
KERNEL __launch_bounds__(128) combine_splits(float* out, const float* sums, const float* weights, const float* sinks, u32 heads, u32 v_dim, u32 splits) {
  size_t head = (size_t)blockIdx.y * heads + blockIdx.x;
  float sink = sinks ? sinks[blockIdx.x] : NEGATIVE_INFINITY, most = sink;
  for (u32 i = 0; i < splits; i++) most = fmaxf(most, weights[(head * splits + i) * 2]);
  float all = sinks ? expf(sink - most) : 0.f;
  for (u32 i = 0; i < splits; i++) {
    float m = weights[(head * splits + i) * 2];
    if (m != NEGATIVE_INFINITY) all += weights[(head * splits + i) * 2 + 1] * expf(m - most);
  }
  for (u32 d = threadIdx.x; d < v_dim; d += blockDim.x) {
    float x = 0.f;
    for (u32 i = 0; i < splits; i++) {
      float m = weights[(head * splits + i) * 2];
      if (m != NEGATIVE_INFINITY) x += sums[(head * splits + i) * v_dim + d] * expf(m - most);
    }
    out[head * v_dim + d] = all > 0.f ? x / all : 0.f;
  }
}
