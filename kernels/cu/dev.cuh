// The device layer: one wrapper per PTX instruction, with a GPU body here and a CPU body in emu/emu.h.
// Kernels include this and nothing else, and this includes no toolkit header: NVRTC alone compiles it.
#pragma once
#ifdef HOST_EMU
#include "emu/emu.h"
#else
typedef unsigned u32;
typedef unsigned long long u64;
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

__device__ __forceinline__ float bits_to_float(u32 x) { return __uint_as_float(x); }
__device__ __forceinline__ u32 float_to_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return bits_to_float((u32)x.bits << 16); }
__device__ __forceinline__ float widen(f16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
// Two floats to two bf16, the first in the low half; to nearest even.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ void narrow_to(float* to, float x) { *to = x; }
__device__ __forceinline__ void narrow_to(bf16* to, float x) { to->bits = (unsigned short)pack_bf16(x, 0.f); }
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory, zeros when not `ok`; visible after commit and wait.
__device__ __forceinline__ void cp_async16(void* to, const void* from, bool ok) {
  int bytes = ok ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n"); }
template <int PENDING> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING));
}
// Four 8x8 tiles of b16 from the row addresses that the 32 lanes give.
__device__ __forceinline__ void ldmatrix_x4(u32* tiles, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(shared_address(row)));
}
// c[16, 8] += a[16, 16] * b[16, 8], f32 sums.
__device__ __forceinline__ void mma_m16n8k16_bf16(float* c, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#define DYNAMIC_SHARED(T, name)                                     \
  extern __shared__ __align__(128) unsigned char name##_bytes[];    \
  T* name = reinterpret_cast<T*>(name##_bytes)
#endif

#define KERNEL extern "C" __global__ void
#define FULL_WARP 0xffffffffu
#define NEGATIVE_INFINITY bits_to_float(0xff800000u)

// Sums in a fixed butterfly order, so that the result depends on the values alone.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(FULL_WARP, x, step);
  return x;
}
// Eight sums at once, each of the value and in the order of warp_sum, with 9 shuffles instead of 40: lanes hand over the
// half of the values they will not end with. Lane l ends with the sum of values[l >> 2].
__device__ __forceinline__ float warp_sum8(float* values) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int step = 16, half = 4; half; step >>= 1, half >>= 1) {
    bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < half; i++) {
      float kept = upper ? values[i + half] : values[i], given = upper ? values[i] : values[i + half];
      values[i] = kept + __shfl_xor_sync(FULL_WARP, given, step);
    }
  }
  float x = values[0];
  x += __shfl_xor_sync(FULL_WARP, x, 2);
  return x + __shfl_xor_sync(FULL_WARP, x, 1);
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
  return x;
}
// Over a block of whole warps (at most 32); `scratch` holds 33 floats. Every thread gets the result.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_sum(x);
  __syncthreads(); // the scratch of an earlier reduction has been read
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  if (warp == 0) {
    float all = warp_sum(lane < warps ? scratch[lane] : 0.f);
    if (lane == 0) scratch[32] = all;
  }
  __syncthreads();
  return scratch[32];
}
__device__ __forceinline__ float block_max(float x, float* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_max(x);
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  if (warp == 0) {
    float all = warp_max(lane < warps ? scratch[lane] : NEGATIVE_INFINITY);
    if (lane == 0) scratch[32] = all;
  }
  __syncthreads();
  return scratch[32];
}
