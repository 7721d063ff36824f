// Mixture of experts: which experts a token goes to, and what they make of it.
//
// router   one warp a token; scores in shared memory; ties to the lowest id
// experts  gate_up: one warp an inner column of one (token, choice), lanes over k, then a fixed tree; down: one warp an
//          output column of one token, the choices added in the order of the route
// No expert is read that no token chose, and a token's result depends on its own row alone.
// Tolerance against f64: 1e-5 of the largest value. Emulated only; not measured, and not grouped by expert yet.
#include "dev.cuh"

#define LANE_ID (threadIdx.x & 31)

struct Ranked { float value; u32 id; };
// The lane with the largest value, ties to the lowest id; every lane gets it.
__device__ __forceinline__ Ranked warp_best(Ranked mine) {
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    float value = __shfl_xor_sync(FULL_WARP, mine.value, step);
    u32 id = __shfl_xor_sync(FULL_WARP, mine.id, step);
    if (value > mine.value || (value == mine.value && id < mine.id)) mine = Ranked{value, id};
  }
  return mine;
}

// score: 0 softmax over all, 1 softmax over the chosen, 2 sigmoid. out [tokens, top_k] of (expert, weight).
KERNEL __launch_bounds__(32) router(u32* out, const float* logits, const float* bias, const float* gains, u32 experts, u32 top_k, u32 score,
                                    u32 normalise, float factor, u32 groups, u32 kept, u32 summed) {
  DYNAMIC_SHARED(float, scores); // [experts] scores, [experts] what is ranked, [groups] open
  float* ranked = scores + experts;
  float* open = ranked + experts;
  u32 lane = LANE_ID, group_size = experts / groups;
  const float* row = logits + (size_t)blockIdx.x * experts;
  float most = NEGATIVE_INFINITY, sum = 0.f;
  for (u32 e = lane; e < experts; e += 32) most = fmaxf(most, row[e]);
  most = warp_max(most);
  for (u32 e = lane; e < experts; e += 32) sum += expf(row[e] - most);
  sum = warp_sum(sum);
  for (u32 e = lane; e < experts; e += 32) {
    scores[e] = score == 0 ? expf(row[e] - most) / sum : score == 1 ? row[e] : 1.f / (1.f + expf(-row[e]));
    ranked[e] = scores[e] + (bias ? bias[e] : 0.f);
  }
  for (u32 g = lane; g < groups; g += 32) open[g] = groups == kept ? 1.f : 0.f;
  __syncwarp();
  for (u32 round = 0; groups != kept && round < kept; round++) {
    Ranked best = {NEGATIVE_INFINITY, 0xffffffffu};
    for (u32 g = lane; g < groups; g += 32) {
      if (open[g] != 0.f) continue;
      float first = NEGATIVE_INFINITY, second = NEGATIVE_INFINITY;
      for (u32 e = g * group_size; e < (g + 1) * group_size; e++) {
        second = fmaxf(second, fminf(first, ranked[e]));
        first = fmaxf(first, ranked[e]);
      }
      float both = group_size > 1 && summed > 1 ? first + second : first;
      if (both > best.value || (both == best.value && g < best.id)) best = Ranked{both, g};
    }
    best = warp_best(best);
    if (lane == 0 && best.id < groups) open[best.id] = 1.f;
    __syncwarp();
  }
  u32* pairs = out + (size_t)blockIdx.x * top_k * 2;
  float chosen_sum = 0.f, chosen_most = 0.f;
  for (u32 i = 0; i < top_k; i++) {
    Ranked best = {NEGATIVE_INFINITY, 0xffffffffu};
    for (u32 e = lane; e < experts; e += 32)
      if (open[e / group_size] != 0.f && (ranked[e] > best.value || (ranked[e] == best.value && e < best.id))) best = Ranked{ranked[e], e};
    best = warp_best(best);
    u32 expert = best.id < experts ? best.id : 0;
    float weight = scores[expert];
    if (i == 0) chosen_most = weight;
    if (score == 1) weight = expf(weight - chosen_most); // the first chosen is the largest
    chosen_sum += weight;
    if (lane == 0) {
      pairs[2 * i] = expert;
      pairs[2 * i + 1] = float_to_bits(weight);
      ranked[expert] = NEGATIVE_INFINITY;
    }
    __syncwarp();
  }
  bool divide = normalise || score == 1;
  for (u32 i = lane; i < top_k; i += 32) {
    float weight = bits_to_float(pairs[2 * i + 1]);
    weight = (divide ? weight / chosen_sum : weight) * factor;
    pairs[2 * i + 1] = float_to_bits(gains ? weight * gains[pairs[2 * i]] : weight);
  }
}

template <class W> __device__ __forceinline__ float warp_dot(const float* x, const W* w, u32 k) {
  float sum = 0.f;
  for (u32 i = LANE_ID; i < k; i += 32) sum = fmaf(x[i], widen(w[i]), sum);
  return warp_sum(sum);
}

// inner [tokens * top_k, width] = act(gate) * up; act as in elementwise.cu, 5 is the clamped SwiGLU.
template <class W>
__device__ __forceinline__ void gate_up(float* inner, const float* x, const u32* route, const W* w, const float* bias, u32 top_k, u32 hidden,
                                        u32 width, u32 act, u32 interleaved, float alpha, float limit, u32 weigh) {
  u32 choice = blockIdx.x, column = blockIdx.y * 4 + (threadIdx.x >> 5);
  if (column >= width) return;
  size_t first = (size_t)route[(size_t)choice * 2] * 2 * width; // rows of this expert
  size_t gate_row = first + (interleaved ? 2 * column : column), up_row = interleaved ? gate_row + 1 : gate_row + width;
  const float* row = x + (size_t)(choice / top_k) * hidden;
  float by = weigh ? bits_to_float(route[(size_t)choice * 2 + 1]) : 1.f; // a product's factor may as well come after it
  float gate = warp_dot(row, w + gate_row * hidden, hidden) * by + (bias ? bias[gate_row] : 0.f);
  float up = warp_dot(row, w + up_row * hidden, hidden) * by + (bias ? bias[up_row] : 0.f);
  if (LANE_ID) return;
  float made;
  if (act == 5) {
    float g = fminf(gate, limit), u = fminf(fmaxf(up, -limit), limit);
    made = g / (1.f + expf(-alpha * g)) * (u + 1.f);
  } else {
    made = activate(gate, act) * up;
  }
  inner[(size_t)choice * width + column] = made;
}
template <class W>
__device__ __forceinline__ void down(float* out, const float* inner, const u32* route, const W* w, const float* bias, u32 top_k, u32 hidden, u32 width, u32 weigh) {
  u32 token = blockIdx.x, column = blockIdx.y * 4 + (threadIdx.x >> 5);
  if (column >= hidden) return;
  float sum = 0.f;
  for (u32 i = 0; i < top_k; i++) {
    size_t choice = (size_t)token * top_k + i, row = (size_t)route[choice * 2] * hidden + column;
    float y = warp_dot(inner + choice * width, w + row * width, width) + (bias ? bias[row] : 0.f);
    sum += weigh ? y : y * bits_to_float(route[choice * 2 + 1]);
  }
  if (LANE_ID == 0) out[(size_t)token * hidden + column] = sum;
}
#define GATE_UP(name, W)                                                                                                             \
  KERNEL __launch_bounds__(128) name(float* inner, const float* x, const u32* route, const W* w, const float* bias, u32 top_k, u32 hidden, \
                                     u32 width, u32 act, u32 interleaved, float alpha, float limit, u32 weigh) {                     \
    gate_up(inner, x, route, w, bias, top_k, hidden, width, act, interleaved, alpha, limit, weigh);                                  \
  }
#define DOWN(name, W)                                                                                                                \
  KERNEL __launch_bounds__(128) name(float* out, const float* inner, const u32* route, const W* w, const float* bias, u32 top_k,      \
                                     u32 hidden, u32 width, u32 weigh) {                                                             \
    down(out, inner, route, w, bias, top_k, hidden, width, weigh);                                                                   \
  }
GATE_UP(experts_gate_up_f32, float)
GATE_UP(experts_gate_up_f16, f16)
GATE_UP(experts_gate_up_bf16, bf16)
DOWN(experts_down_f32, float)
DOWN(experts_down_f16, f16)
DOWN(experts_down_bf16, bf16)
