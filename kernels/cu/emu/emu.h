// The CPU body of dev.cuh: every CUDA thread is a fiber on one OS thread. x86-64, C++17, g++ or clang.
//
// It makes planted bugs show: shared memory is poisoned with NaN before each block, warps run in a seeded random order
// (EMU_SEED), cp.async lands only at wait_group, a barrier that not all reach is reported as a deadlock.
// It does not model memory ordering, bank conflicts, occupancy or speed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>
#include <sys/mman.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("emu_shared")))

typedef unsigned u32;
typedef unsigned long long u64;
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

inline float bits_to_float(u32 x) { float f; memcpy(&f, &x, 4); return f; }
inline u32 float_to_bits(float x) { u32 v; memcpy(&v, &x, 4); return v; }
inline float widen(float x) { return x; }
inline float widen(bf16 x) { return bits_to_float((u32)x.bits << 16); }
inline float widen(f16 x) {
  u32 sign = (u32)(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000 | fraction << 13);
  if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  float tiny = (float)fraction * 5.9604644775390625e-8f; // 2^-24
  return sign ? -tiny : tiny;
}
inline bf16 round_bf16(float x) {
  u32 v = float_to_bits(x);
  if ((v & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {(uint16_t)((v + 0x7fff + (v >> 16 & 1)) >> 16)};
}
inline void narrow_to(float* to, float x) { *to = x; }
inline void narrow_to(bf16* to, float x) { *to = round_bf16(x); }
inline u32 pack_bf16(float low, float high) { return round_bf16(low).bits | (u32)round_bf16(high).bits << 16; }

extern "C" {
extern char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));
void emu_switch(void** save, void* to) __attribute__((visibility("hidden")));
}
asm(".text\n.globl emu_switch\n.hidden emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    " push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n ret\n");

namespace emu {
typedef std::vector<std::function<void()>> Copies;
struct Fiber {
  void* stack;
  dim3 thread;
  unsigned index;
  bool done;
  unsigned parity;
  std::vector<Copies> groups;
  Copies open;
};
struct Barrier { unsigned arrived = 0, generation = 0; };
struct Warp { Barrier barrier; u64 slot[2][32][4]; };
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Barrier block_barrier;
inline Fiber* current;
inline void* scheduler_stack;
inline unsigned alive, progress;
inline dim3 block_index, block_size, grid_size;
inline std::function<void()> body;
inline char* dynamic_shared;
inline u64 random_state = 1;
inline const char* waiting_at = "";
constexpr size_t DYNAMIC_BYTES = 232448, STACK_BYTES = 128 << 10;

inline void yield() { emu_switch(&current->stack, scheduler_stack); }
inline void entry() {
  body();
  current->done = true;
  alive--;
  progress++;
  for (;;) yield();
}
inline void wait(Barrier& barrier, unsigned all, const char* name) {
  unsigned generation = barrier.generation;
  progress++;
  if (++barrier.arrived >= all) {
    barrier.arrived = 0;
    barrier.generation++;
    return;
  }
  while (barrier.generation == generation) {
    waiting_at = name;
    yield();
  }
}
inline void warp_wait(u32 mask) { wait(warps[current->index >> 5].barrier, __builtin_popcount(mask), "warp sync"); }
// One warp barrier per collective; slots are double-buffered.
template <class T> inline T exchange(u32 mask, T value, int from) {
  static_assert(sizeof(T) <= 32, "a slot holds 32 bytes");
  Warp& warp = warps[current->index >> 5];
  unsigned p = current->parity;
  current->parity ^= 1;
  memcpy(warp.slot[p][current->index & 31], &value, sizeof(T));
  warp_wait(mask);
  T result;
  memcpy(&result, warp.slot[p][from & 31], sizeof(T));
  return result;
}
template <class T> inline void gather(T value, T* all) {
  Warp& warp = warps[current->index >> 5];
  unsigned p = current->parity;
  current->parity ^= 1;
  memcpy(warp.slot[p][current->index & 31], &value, sizeof(T));
  warp_wait(~0u);
  for (int i = 0; i < 32; i++) memcpy(&all[i], warp.slot[p][i], sizeof(T));
}
inline unsigned random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (unsigned)(random_state >> 11);
}
inline void* map(size_t bytes) {
  void* p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) { perror("emu: mmap"); abort(); }
  return p;
}
inline void run_block(unsigned threads, size_t shared_bytes, char* stacks) {
  fibers.assign(threads, Fiber{});
  warps.assign((threads + 31) / 32, Warp{});
  block_barrier = Barrier{};
  alive = threads;
  memset(dynamic_shared, 0xff, shared_bytes);
  if (__start_emu_shared) memset(__start_emu_shared, 0xff, __stop_emu_shared - __start_emu_shared);
  for (unsigned i = 0; i < threads; i++) {
    fibers[i].index = i;
    fibers[i].thread = dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
    void** top = (void**)(stacks + (i + 1) * STACK_BYTES) - 2;
    *top = (void*)entry;
    top -= 6; // the registers emu_switch pops; the stack is 16-byte aligned plus 8 at entry
    memset(top, 0, 48);
    fibers[i].stack = top;
  }
  unsigned count = (threads + 31) / 32;
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; i++) order[i] = i;
  while (alive) {
    progress = 0;
    for (unsigned i = count; i > 1; i--) std::swap(order[i - 1], order[random() % i]);
    for (unsigned warp : order)
      for (unsigned i = warp * 32; i < threads && i < warp * 32 + 32; i++)
        if (!fibers[i].done) {
          current = &fibers[i];
          emu_switch(&scheduler_stack, current->stack);
        }
    if (!progress && alive) {
      fprintf(stderr, "emu: deadlock in block (%u,%u,%u): %u threads wait at %s\n", block_index.x, block_index.y,
              block_index.z, alive, waiting_at);
      exit(3);
    }
  }
}
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel) {
  unsigned threads = block.x * block.y * block.z;
  if (threads > 1024 || shared_bytes > DYNAMIC_BYTES) { fprintf(stderr, "emu: block or shared memory too large\n"); abort(); }
  body = std::move(kernel);
  block_size = block;
  grid_size = grid;
  if (const char* seed = getenv("EMU_SEED")) random_state = strtoull(seed, 0, 10) * 0x9E3779B97F4A7C15ull + 1;
  if (!dynamic_shared) dynamic_shared = (char*)map(DYNAMIC_BYTES + 4096);
  static char* stacks = (char*)map(1024 * STACK_BYTES);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        block_index = dim3(x, y, z);
        run_block(threads, shared_bytes, stacks);
      }
}
} // namespace emu

#define threadIdx (emu::current->thread)
#define blockIdx (emu::block_index)
#define blockDim (emu::block_size)
#define gridDim (emu::grid_size)
#define DYNAMIC_SHARED(T, name) T* name = (T*)emu::dynamic_shared

inline void __syncthreads() { emu::wait(emu::block_barrier, emu::alive, "__syncthreads"); }
inline void __syncwarp(u32 mask = ~0u) { emu::warp_wait(mask); }
template <class T> inline T __shfl_xor_sync(u32 mask, T value, int lanes) {
  return emu::exchange(mask, value, (emu::current->index & 31) ^ lanes);
}
template <class T> inline T __shfl_sync(u32 mask, T value, int lane) { return emu::exchange(mask, value, lane); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

inline void cp_async16(void* to, const void* from, bool ok) {
  if (((uintptr_t)to | (ok ? (uintptr_t)from : 0)) & 15) { fprintf(stderr, "emu: misaligned cp.async\n"); exit(4); }
  emu::current->open.push_back([=] {
    if (ok) memcpy(to, from, 16);
    else memset(to, 0, 16);
  });
}
inline void cp_async_commit() {
  emu::current->groups.push_back(std::move(emu::current->open));
  emu::current->open.clear();
}
template <int PENDING> inline void cp_async_wait() {
  auto& groups = emu::current->groups;
  while ((int)groups.size() > PENDING) {
    for (auto& copy : groups[0]) copy();
    groups.erase(groups.begin());
  }
}
inline void ldmatrix_x4(u32* tiles, const void* row) {
  const void* rows[32];
  emu::gather<const void*>(row, rows);
  int lane = emu::current->index & 31;
  for (int tile = 0; tile < 4; tile++) memcpy(&tiles[tile], (const char*)rows[tile * 8 + lane / 4] + lane % 4 * 4, 4);
}
inline float half_of(u32 pair, int which) { return widen(bf16{(uint16_t)(pair >> which * 16)}); }
inline void mma_m16n8k16_bf16(float* c, const u32* a, u32 b0, u32 b1) {
  struct Fragment { u32 a[4], b[2]; } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}}, all[32];
  emu::gather(mine, all);
  int lane = emu::current->index & 31, group = lane >> 2, thread = lane & 3;
  for (int i = 0; i < 4; i++) {
    int row = group + (i >> 1) * 8, column = thread * 2 + (i & 1);
    float sum = c[i];
    for (int k = 0; k < 16; k++) {
      u32 x = all[(row & 7) * 4 + (k & 7) / 2].a[(row >> 3) + (k >> 3) * 2];
      u32 y = all[column * 4 + (k & 7) / 2].b[k >> 3];
      sum += half_of(x, k & 1) * half_of(y, k & 1);
    }
    c[i] = sum;
  }
}
