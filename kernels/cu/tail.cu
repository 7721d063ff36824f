// From logits [rows, vocab] to what the host needs: masks, argmax, the k best, log-sum-exp. One block of 256 threads a
// row. Ties go to the lowest id; a NaN never wins. log_sum_exp adds in one fixed order.
#include "dev.cuh"

// `masks` holds `words` words a row; bit set = token allowed.
KERNEL mask_logits(float* out, const float* x, const u32* masks, u32 vocab, u32 words) {
  size_t row = blockIdx.x;
  for (u32 i = threadIdx.x; i < vocab; i += blockDim.x)
    out[row * vocab + i] = masks[row * words + i / 32] >> (i % 32) & 1 ? x[row * vocab + i] : NEGATIVE_INFINITY;
}

struct Best { float value; u32 id; };
__device__ __forceinline__ bool before(float a, u32 a_id, float b, u32 b_id) { return a > b || (a == b && a_id < b_id); }

// The best entry that comes after (`value`, `id`) in falling order; all of them when `id` is NONE.
#define NONE 0xffffffffu
__device__ __forceinline__ Best next_best(const float* row, u32 vocab, float value, u32 id, Best* scratch) {
  float best = NEGATIVE_INFINITY;
  u32 best_id = NONE;
  for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) {
    float x = row[i] == row[i] ? row[i] : NEGATIVE_INFINITY;
    if ((id == NONE || before(value, id, x, i)) && before(x, i, best, best_id)) {
      best = x;
      best_id = i;
    }
  }
  __syncthreads(); // the last result has been read
  scratch[threadIdx.x].value = best;
  scratch[threadIdx.x].id = best_id;
  for (u32 step = blockDim.x / 2; step; step >>= 1) {
    __syncthreads();
    if (threadIdx.x < step) {
      Best other = scratch[threadIdx.x + step], mine = scratch[threadIdx.x];
      if (before(other.value, other.id, mine.value, mine.id)) scratch[threadIdx.x] = other;
    }
  }
  __syncthreads();
  return scratch[0];
}
KERNEL __launch_bounds__(256) argmax(u32* out, const float* x, u32 vocab) {
  __shared__ Best scratch[256];
  Best best = next_best(x + (size_t)blockIdx.x * vocab, vocab, 0.f, NONE, scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = best.id == NONE ? 0 : best.id;
}
// `out` is [rows, k] of (id, value).
KERNEL __launch_bounds__(256) top_k(u32* out, const float* x, u32 vocab, u32 k) {
  __shared__ Best scratch[256];
  Best best = {0.f, NONE};
  for (u32 i = 0; i < k; i++) {
    best = next_best(x + (size_t)blockIdx.x * vocab, vocab, best.value, best.id, scratch);
    if (threadIdx.x == 0) {
      u32* to = out + ((size_t)blockIdx.x * k + i) * 2;
      to[0] = best.id;
      to[1] = float_to_bits(best.value);
    }
  }
}
KERNEL __launch_bounds__(256) log_sum_exp(float* out, const float* x, u32 vocab) {
  __shared__ float scratch[33];
  const float* row = x + (size_t)blockIdx.x * vocab;
  float most = NEGATIVE_INFINITY, sum = 0.f;
  for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) most = fmaxf(most, row[i]);
  most = block_max(most, scratch);
  for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) sum += row[i] == NEGATIVE_INFINITY ? 0.f : expf(row[i] - most);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = logf(sum) + most;
}
