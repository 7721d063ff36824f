// RMSNorm and LayerNorm over the last dimension: one block of 128 threads a row.
// Formula: x / sqrt(mean(x^2) + eps) * (offset + gain), and (x - mean) / sqrt(var + eps) * gain + bias.
// Sums: each thread strides by 128, then a fixed tree. Tolerance against f64: 1e-5 relative.
#include "dev.cuh"

KERNEL __launch_bounds__(128) rms_norm(float* out, const float* x, const float* gain, float offset, float eps, u32 width) {
  __shared__ float scratch[33];
  const float* row = x + (size_t)blockIdx.x * width;
  float squares = 0.f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += row[i] * row[i];
  float factor = rsqrtf(block_sum(squares, scratch) / (float)width + eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x)
    out[(size_t)blockIdx.x * width + i] = row[i] * factor * (gain ? offset + gain[i] : 1.f);
}

KERNEL __launch_bounds__(128) layer_norm(float* out, const float* x, const float* gain, const float* bias, float eps, u32 width) {
  __shared__ float scratch[33];
  const float* row = x + (size_t)blockIdx.x * width;
  float sum = 0.f, squares = 0.f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += row[i];
  float mean = block_sum(sum, scratch) / (float)width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
  float factor = rsqrtf(block_sum(squares, scratch) / (float)width + eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x)
    out[(size_t)blockIdx.x * width + i] = (row[i] - mean) * factor * (gain ? gain[i] : 1.f) + (bias ? bias[i] : 0.f);
}
