// A stand-in libcuda.so.1 for machines without a GPU: the unmodified host code loads it at run time, and kernels run in
// emu.h. Device memory is host memory, poisoned, with an inaccessible page after each allocation, so that a kernel that
// reads or writes out of bounds stops at once.
//
// Failures are injected by environment: EMU_FAIL="CALL:N" makes the Nth call of a driver function fail, as
// "cuMemAlloc_v2:3:2" (N = 3, status 2 = out of memory; status 719, launch failure, when left out). After status 719
// every later call fails with it, as on a real device whose context is lost.
#include "emu.h"
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "../attention.cu"
#include "../elementwise.cu"
#include "../linear.cu"
#include "../moe.cu"
#include "../norm.cu"
#include "../tail.cu"

#define API extern "C" __attribute__((visibility("default"))) int
typedef unsigned long long Pointer;

struct Kernel {
  const char* name;
  std::function<std::function<void()>(void**)> bind;
};
template <class... A, size_t... I>
static std::function<void()> bind_arguments(void (*f)(A...), void** a, std::index_sequence<I...>) {
  auto values = std::make_tuple(*(std::remove_cv_t<A>*)a[I]...);
  return [=] { std::apply(f, values); };
}
template <class... A> static Kernel kernel(const char* name, void (*f)(A...)) {
  return {name, [f](void** a) { return bind_arguments(f, a, std::index_sequence_for<A...>{}); }};
}
#define K(name) kernel(#name, name)
static Kernel kernels[] = {
    K(embed_f32),    K(embed_f16),   K(embed_bf16),    K(gated_act),   K(clamped_swiglu), K(xielu), K(add),          K(mul),
    K(scale),        K(softcap),     K(narrow),        K(select_rows), K(rope),           K(rms_norm),     K(layer_norm),
    K(linear_mma),   K(linear_f32),  K(linear_f16),    K(linear_bf16), K(store_kv_f32),   K(store_kv_bf16), K(attend_f32_1), K(attend_f32_2), K(attend_f32_4), K(attend_f32_8),
    K(router),       K(experts_gate_up_f32), K(experts_gate_up_f16), K(experts_gate_up_bf16),
    K(experts_down_f32), K(experts_down_f16), K(experts_down_bf16),
    K(concat),       K(head_linear_f32), K(head_linear_f16), K(head_linear_bf16),
    K(attend_bf16_1), K(attend_bf16_2), K(attend_bf16_4), K(attend_bf16_8),  K(combine_splits), K(mask_logits), K(argmax),     K(top_k),          K(log_sum_exp),
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  std::function<void()> run;
};
typedef std::vector<Launch> Graph;
static std::recursive_mutex one_at_a_time; // the emulator's state is global
static std::map<void*, Graph> capturing; // by stream
static std::map<Pointer, size_t> allocations;
static const size_t MEMORY_BYTES = 8ull << 30;
static size_t used_bytes;
static int lost;

static int fault(const char* call) {
  if (lost) return lost;
  static std::map<std::string, long> calls;
  const char* wanted = getenv("EMU_FAIL");
  size_t length = strlen(call);
  if (!wanted || strncmp(wanted, call, length) || wanted[length] != ':') return 0;
  char* rest;
  long at = strtol(wanted + length + 1, &rest, 10), status = *rest == ':' ? strtol(rest + 1, 0, 10) : 719;
  if (++calls[wanted] != at) return 0;
  if (status == 719) lost = status;
  return status;
}
#define CALL                                                          \
  std::lock_guard<std::recursive_mutex> guard(one_at_a_time);        \
  if (int status = fault(__func__)) return status

static void run(const Launch& l) { emu::launch(l.grid, l.block, l.shared_bytes, l.run); }

API cuInit(unsigned) { CALL; return 0; }
API cuDriverGetVersion(int* v) { *v = 13000; return 0; }
API cuDeviceGetCount(int* n) { CALL; *n = 1; return 0; }
API cuDeviceGet(int* d, int i) { *d = i; return i ? 101 : 0; }
API cuDeviceGetName(char* s, int n, int) { snprintf(s, n, "CUDA emulator"); return 0; }
API cuDeviceTotalMem_v2(size_t* n, int) { *n = MEMORY_BYTES; return 0; }
// 75, 76: compute capability 9.0; 16: multiprocessors; 97: shared memory a block may opt in to.
API cuDeviceGetAttribute(int* v, int a, int) { *v = a == 75 ? 9 : a == 16 ? 4 : a == 97 ? 232448 : 0; return 0; }
API cuDevicePrimaryCtxRetain(void** c, int) { CALL; *c = (void*)1; return 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuCtxSetCurrent(void*) { return 0; }
API cuCtxGetCurrent(void** c) { *c = (void*)1; return 0; }
API cuCtxSynchronize() { CALL; return 0; }
API cuMemGetInfo_v2(size_t* free, size_t* total) { *free = MEMORY_BYTES - used_bytes; *total = MEMORY_BYTES; return 0; }
API cuMemAlloc_v2(Pointer* p, size_t n) {
  CALL;
  if (!n) return 1;
  if (n > MEMORY_BYTES - used_bytes) return 2;
  size_t whole = (n + 4095) & ~4095ull;
  char* base = (char*)emu::map(whole + 4096);
  mprotect(base + whole, 4096, PROT_NONE);
  if (n < 64u << 20) memset(base, 0xff, whole);
  *p = (Pointer)base + ((whole - n) & ~255ull); // 256-byte aligned like the real one
  allocations[*p] = n;
  used_bytes += n;
  return 0;
}
API cuMemFree_v2(Pointer p) {
  std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
  auto at = allocations.find(p);
  if (at == allocations.end()) return 1;
  munmap((void*)(p & ~4095ull), ((at->second + 4095) & ~4095ull) + 4096);
  used_bytes -= at->second;
  allocations.erase(at);
  return 0;
}
API cuMemAllocHost_v2(void** p, size_t n) { CALL; *p = malloc(n); return *p ? 0 : 2; }
API cuMemHostAlloc(void** p, size_t n, unsigned) { CALL; *p = malloc(n); return *p ? 0 : 2; }
API cuMemFreeHost(void* p) { free(p); return 0; }
API cuMemcpyHtoD_v2(Pointer d, const void* s, size_t n) { CALL; memcpy((void*)d, s, n); return 0; }
API cuMemcpyHtoDAsync_v2(Pointer d, const void* s, size_t n, void*) { CALL; memcpy((void*)d, s, n); return 0; }
API cuMemcpyDtoH_v2(void* d, Pointer s, size_t n) { CALL; memcpy(d, (void*)s, n); return 0; }
API cuMemcpyDtoHAsync_v2(void* d, Pointer s, size_t n, void*) { CALL; memcpy(d, (void*)s, n); return 0; }
API cuMemsetD8_v2(Pointer d, unsigned char v, size_t n) { CALL; memset((void*)d, v, n); return 0; }
API cuMemsetD8Async(Pointer d, unsigned char v, size_t n, void*) { CALL; memset((void*)d, v, n); return 0; }
API cuStreamCreate(void** s, unsigned) {
  CALL;
  static size_t streams;
  *s = (void*)++streams;
  return 0;
}
API cuStreamDestroy_v2(void*) { return 0; }
API cuStreamSynchronize(void*) { CALL; return 0; }
API cuModuleLoadData(void** m, const void*) { CALL; *m = (void*)4; return 0; }
API cuModuleUnload(void*) { return 0; }
API cuModuleGetFunction(void** f, void*, const char* name) {
  CALL;
  for (auto& k : kernels)
    if (!strcmp(k.name, name)) {
      *f = &k;
      return 0;
    }
  return 500; // not found
}
API cuFuncSetAttribute(void*, int, int) { return 0; }
API cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes, void* stream,
                   void** arguments, void**) {
  CALL;
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz == 0 || bx * by * bz > 1024 || shared_bytes > 232448) return 1;
  Launch l{dim3(gx, gy, gz), dim3(bx, by, bz), shared_bytes, ((Kernel*)f)->bind(arguments)};
  auto capture = capturing.find(stream);
  if (capture == capturing.end()) run(l);
  else capture->second.push_back(std::move(l));
  return 0;
}
API cuStreamBeginCapture_v2(void* stream, int) { CALL; capturing[stream].clear(); return 0; }
API cuStreamEndCapture(void* stream, void** g) {
  CALL;
  *g = new Graph(std::move(capturing[stream]));
  capturing.erase(stream);
  return 0;
}
API cuGraphInstantiateWithFlags(void** e, void* g, Pointer) { CALL; *e = new Graph(*(Graph*)g); return 0; }
API cuGraphLaunch(void* e, void*) {
  CALL;
  for (auto& l : *(Graph*)e) run(l);
  return 0;
}
API cuGraphExecDestroy(void* e) { delete (Graph*)e; return 0; }
API cuGraphDestroy(void* g) { delete (Graph*)g; return 0; }
API cuGetErrorName(int, const char** s) { *s = "CUDA_ERROR (emulated)"; return 0; }
API cuGetErrorString(int, const char** s) { *s = "injected or emulated failure"; return 0; }
// Live allocations: what a test compares before and after.
API emu_allocations() { return (int)allocations.size(); }
