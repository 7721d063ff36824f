// Embedding rows, gated activation, sums and products, views: one thread an element, nothing summed, so nothing here
// depends on the batch. All values f32; weights f32, f16 or bf16.
#include "dev.cuh"

#define THREAD ((size_t)blockIdx.x * blockDim.x + threadIdx.x)

template <class W>
__device__ __forceinline__ void embed_rows(float* out, const u32* ids, const W* table, u32 hidden, u32 total) {
  size_t i = THREAD; // [tokens, hidden]
  if (i < total) out[i] = widen(table[(size_t)ids[i / hidden] * hidden + i % hidden]);
}
KERNEL embed_f32(float* out, const u32* ids, const float* table, u32 hidden, u32 total) { embed_rows(out, ids, table, hidden, total); }
KERNEL embed_f16(float* out, const u32* ids, const f16* table, u32 hidden, u32 total) { embed_rows(out, ids, table, hidden, total); }
KERNEL embed_bf16(float* out, const u32* ids, const bf16* table, u32 hidden, u32 total) { embed_rows(out, ids, table, hidden, total); }

// Numbered as Act in op.rs: 0 silu, 1 gelu, 2 gelu tanh, 3 relu, 4 relu squared.
__device__ __forceinline__ float activate(float x, u32 act) {
  switch (act) {
    case 0: return x / (1.f + expf(-x));
    case 1: return 0.5f * x * (1.f + erff(x * 0.70710678f));
    case 2: return 0.5f * x * (1.f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case 3: return fmaxf(x, 0.f);
    default: return fmaxf(x, 0.f) * fmaxf(x, 0.f);
  }
}
KERNEL gated_act(float* out, const float* gate, const float* up, u32 act, u32 total) {
  size_t i = THREAD;
  if (i < total) out[i] = activate(gate[i], act) * (up ? up[i] : 1.f);
}
// gpt-oss: gate clamped above, up clamped on both sides.
KERNEL clamped_swiglu(float* out, const float* gate, const float* up, float alpha, float limit, u32 total) {
  size_t i = THREAD;
  if (i < total) {
    float g = fminf(gate[i], limit), u = fminf(fmaxf(up[i], -limit), limit);
    out[i] = g / (1.f + expf(-alpha * g)) * (u + 1.f);
  }
}
// Above zero positive x^2 + beta x, below it negative (e^min(x, -1e-6) - 1 - x) + beta x; times `up` where there is one.
KERNEL xielu(float* out, const float* gate, const float* up, float positive, float negative, float beta, u32 total) {
  size_t i = THREAD;
  if (i < total) {
    float x = gate[i], bent = x > 0.f ? positive * x * x : negative * (expf(fminf(x, -1e-6f)) - 1.f - x);
    out[i] = (bent + beta * x) * (up ? up[i] : 1.f);
  }
}
// `b` has `width` entries (one row) or `total`.
KERNEL add(float* out, const float* a, const float* b, u32 width, u32 total) {
  size_t i = THREAD;
  if (i < total) out[i] = a[i] + b[i % width];
}
KERNEL mul(float* out, const float* a, const float* b, u32 width, u32 total) {
  size_t i = THREAD;
  if (i < total) out[i] = a[i] * b[i % width];
}
KERNEL scale(float* out, const float* x, float by, u32 total) {
  size_t i = THREAD;
  if (i < total) out[i] = x[i] * by;
}
KERNEL softcap(float* out, const float* x, float cap, u32 total) {
  size_t i = THREAD;
  if (i < total) out[i] = cap * tanhf(x[i] / cap);
}
// Entries start .. start + len of each row of `width`.
KERNEL narrow(float* out, const float* x, u32 width, u32 start, u32 len, u32 total) {
  size_t i = THREAD;
  if (i < total) out[i] = x[i / len * width + start + i % len];
}
// Rows of `n` entries beside rows of `m`.
KERNEL concat(float* out, const float* a, const float* b, u32 n, u32 m, u32 total) {
  size_t i = THREAD, row = i / (n + m), column = i % (n + m);
  if (i < total) out[i] = column < n ? a[row * n + column] : b[row * m + column - n];
}
// Rows of `width` by index.
KERNEL select_rows(float* out, const float* x, const u32* rows, u32 width, u32 total) {
  size_t i = THREAD;
  if (i < total) out[i] = x[(size_t)rows[i / width] * width + i % width];
}
// x [tokens, heads, dim]; the first 2 * pairs dimensions of a head are rotated by position * freqs.
// Tokens of which `is_long` is set have frequencies of their own.
KERNEL rope(float* out, const float* x, const u32* positions, const u32* is_long, const float* freqs,
            const float* long_freqs, u32 heads, u32 dim, u32 pairs, u32 interleaved, float magnitude, u32 total) {
  size_t i = THREAD;
  if (i >= total) return;
  u32 d = i % dim;
  if (d >= 2 * pairs) {
    out[i] = x[i];
    return;
  }
  u32 pair = interleaved ? d / 2 : d % pairs;
  bool second = interleaved ? d % 2 : d >= pairs;
  size_t head = i - d, other = head + (interleaved ? d ^ 1 : (second ? d - pairs : d + pairs));
  size_t token = i / dim / heads;
  float angle = (float)positions[token] * (is_long[token] ? long_freqs : freqs)[pair];
  float c = cosf(angle) * magnitude, s = sinf(angle) * magnitude;
  out[i] = second ? x[i] * c + x[other] * s : x[i] * c - x[other] * s;
}
