// out[m, n] = x[m, k] * w[n, k]^T + bias[n]; x and out f32.
//
// linear_mma: w bf16, x rounded to bf16 on the way to shared memory, mma.sync m16n8k16, f32 sums. Tiles of 64 x 64, k in
//   steps of 32, weights through a 3-stage cp.async pipeline. Needs k % 32 == 0.
// linear_f32 / _f16 / _bf16: f32 products for any k: exact precision, and shapes the tensor cores do not take.
// Law: an element is summed over k in one order whatever m is; only rows and columns are split over blocks.
// Tolerance against f64 of the rounded inputs: 2e-5 of the row's largest value.
// Emulated only; not measured.
#include "dev.cuh"

#define TILE_M 64
#define TILE_N 64
#define TILE_K 32
#define STAGES 3

// 16-byte chunks of a row are permuted so that ldmatrix reads eight rows without bank conflicts.
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * TILE_K + ((chunk ^ (row >> 1 & 3)) << 3); }

KERNEL __launch_bounds__(128) linear_mma(float* out, const float* x, const bf16* w, const float* bias, int m, int n, int k) {
  __shared__ __align__(128) bf16 xs[STAGES][TILE_M * TILE_K];
  __shared__ __align__(128) bf16 ws[STAGES][TILE_N * TILE_K];
  int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  int warp_m = (warp & 1) * 32, warp_n = (warp >> 1) * 32;
  int m0 = blockIdx.y * TILE_M, n0 = blockIdx.x * TILE_N;
  float sum[2][4][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int r = 0; r < 4; r++) sum[i][j][r] = 0.f;

  auto load = [&](int stage, int k0) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int id = thread + i * 128, row = id >> 2, chunk = id & 3;
      cp_async16(&ws[stage][swizzled(row, chunk)], w + (size_t)(n0 + row) * k + k0 + chunk * 8, n0 + row < n);
      u32* to = reinterpret_cast<u32*>(&xs[stage][swizzled(row, chunk)]);
      const float* from = x + (size_t)(m0 + row) * k + k0 + chunk * 8;
#pragma unroll
      for (int e = 0; e < 4; e++) to[e] = m0 + row < m ? pack_bf16(from[2 * e], from[2 * e + 1]) : 0u;
    }
  };
  int steps = k / TILE_K;
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++) {
    if (stage < steps) load(stage, stage * TILE_K);
    cp_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    int next = step + STAGES - 1;
    if (next < steps) load(next % STAGES, next * TILE_K);
    cp_async_commit();
    const bf16 *a = xs[step % STAGES], *b = ws[step % STAGES];
#pragma unroll
    for (int half = 0; half < TILE_K / 16; half++) {
      u32 fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) ldmatrix_x4(fa[i], a + swizzled(warp_m + i * 16 + (lane & 15), half * 2 + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < 2; j++)
        ldmatrix_x4(fb[j], b + swizzled(warp_n + j * 16 + (lane & 7) + (lane >> 4 << 3), half * 2 + (lane >> 3 & 1)));
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mma_m16n8k16_bf16(sum[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int r = 0; r < 4; r++) {
        int row = m0 + warp_m + i * 16 + (lane >> 2) + (r >> 1) * 8;
        int column = n0 + warp_n + j * 8 + (lane & 3) * 2 + (r & 1);
        if (row < m && column < n) out[(size_t)row * n + column] = sum[i][j][r] + (bias ? bias[column] : 0.f);
      }
}

// One warp an output column, eight rows at a time: lanes stride over k, then a fixed tree.
#define ROWS 8
template <class W>
__device__ __forceinline__ void linear_any(float* out, const float* x, const W* w, const float* bias, int m, int n, int k) {
  int lane = threadIdx.x & 31, column = blockIdx.x * 4 + (threadIdx.x >> 5), m0 = blockIdx.y * ROWS;
  if (column >= n) return;
  float sum[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) sum[r] = 0.f;
  for (int i = lane; i < k; i += 32) {
    float weight = widen(w[(size_t)column * k + i]);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      if (m0 + r < m) sum[r] = fmaf(x[(size_t)(m0 + r) * k + i], weight, sum[r]);
  }
  float all = warp_sum8(sum);
  int row = m0 + (lane >> 2);
  if ((lane & 3) == 0 && row < m) out[(size_t)row * n + column] = all + (bias ? bias[column] : 0.f);
}
KERNEL __launch_bounds__(128) linear_f32(float* out, const float* x, const float* w, const float* bias, int m, int n, int k) { linear_any(out, x, w, bias, m, n, k); }
KERNEL __launch_bounds__(128) linear_f16(float* out, const float* x, const f16* w, const float* bias, int m, int n, int k) { linear_any(out, x, w, bias, m, n, k); }
KERNEL __launch_bounds__(128) linear_bf16(float* out, const float* x, const bf16* w, const float* bias, int m, int n, int k) { linear_any(out, x, w, bias, m, n, k); }

// out [rows, heads, n] = x [rows, heads, k], each head by its own matrix of w [heads, n, k]: one warp an output column of
// one head and row, lanes stride over k, then a fixed tree.
template <class W>
__device__ __forceinline__ void heads_any(float* out, const float* x, const W* w, u32 heads, u32 n, u32 k) {
  u32 lane = threadIdx.x & 31, column = blockIdx.x * 4 + (threadIdx.x >> 5), head = blockIdx.y, row = blockIdx.z;
  if (column >= n) return;
  const float* from = x + ((size_t)row * heads + head) * k;
  float sum = 0.f;
  for (u32 i = lane; i < k; i += 32) sum = fmaf(from[i], widen(w[((size_t)head * n + column) * k + i]), sum);
  sum = warp_sum(sum);
  if (lane == 0) out[((size_t)row * heads + head) * n + column] = sum;
}
KERNEL __launch_bounds__(128) head_linear_f32(float* out, const float* x, const float* w, u32 heads, u32 n, u32 k) { heads_any(out, x, w, heads, n, k); }
KERNEL __launch_bounds__(128) head_linear_f16(float* out, const float* x, const f16* w, u32 heads, u32 n, u32 k) { heads_any(out, x, w, heads, n, k); }
KERNEL __launch_bounds__(128) head_linear_bf16(float* out, const float* x, const bf16* w, u32 heads, u32 n, u32 k) { heads_any(out, x, w, heads, n, k); }
