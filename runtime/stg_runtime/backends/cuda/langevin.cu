// The Langevin step in one pass: noise, update, clamp of known values, and the step's book-keeping.
//
//     x <- x - (delta^2 / 2) dE/dx + delta s z,   z ~ N(0, 1);   then x <- value where known
//
// One source for the device (NVRTC, nvcc) and the host (any C++ compiler, for tests). Everything
// that makes a number uses only IEEE operations: + - * sqrt, and fma where it is written. Compile
// with contraction off (--fmad=false, -ffp-contract=off), and host and device give equal bits.
//
// Noise: Philox-4x64-10 (Salmon, Moraes, Dror, Shaw, SC 2011), keyed by (seed, chain), counted by
// (i + 1, step, 0, 0) for values 8 i to 8 i + 7 of a chain: the streams of
// numpy.random.Philox(key=[seed, chain], counter=[i, step, 0, 0]); see docs/conventions.md.

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define STG_DEVICE __device__ __forceinline__
#else
#define STG_HOST 1
#define STG_DEVICE static inline
#include <cmath>
#include <cstring>
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(16) Four {
  float v[4];
};

// What a step needs to know, in device memory: a captured graph reads it anew at every replay.
struct Walk {
  u64 seed;
  u32 step;     // number of the coming step; the last block of a launch adds 1
  u32 row;      // of the energies that the coming step records; likewise
  u32 arrived;  // blocks of the running launch that are done
  float drift;  // delta^2 / 2
  float spread; // delta s; 0: no noise is drawn
  u32 reserved;
};

// --- Philox-4x64-10

STG_DEVICE u64 stg_mulhi(u64 a, u64 b) {
#ifdef STG_HOST
  return (u64)(((unsigned __int128)a * b) >> 64);
#else
  return __umul64hi(a, b);
#endif
}

STG_DEVICE void stg_philox(u64 seed, u64 chain, u64 counter, u64 step, u64 word[4]) {
  u64 c0 = counter, c1 = step, c2 = 0, c3 = 0, k0 = seed, k1 = chain;
#ifndef STG_HOST
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const u64 m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
    u64 hi0 = stg_mulhi(m0, c0), lo0 = m0 * c0;
    u64 hi1 = stg_mulhi(m1, c2), lo1 = m1 * c2;
    c0 = hi1 ^ c1 ^ k0;
    c1 = lo1;
    c2 = hi0 ^ c3 ^ k1;
    c3 = lo0;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

// --- Box-Muller in float32, with functions of our own: a math library's differ per platform

STG_DEVICE u32 stg_bits(float x) {
#ifdef STG_HOST
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
#else
  return __float_as_uint(x);
#endif
}

STG_DEVICE float stg_float(u32 bits) {
#ifdef STG_HOST
  float x;
  memcpy(&x, &bits, 4);
  return x;
#else
  return __uint_as_float(bits);
#endif
}

// ln(v), v in [2^-24, 1]: v = 2^e (1 + f) with f in [-1/3, 1/3], ln(1 + f) by a polynomial (minimax,
// 9e-10 of ln).
STG_DEVICE float stg_log(float v) {
  u32 e = (stg_bits(v) - 0x3f2aaaabu) & 0xff800000u;
  float f = stg_float(stg_bits(v) - e) - 1.0f;
  float p = 0.123578385f;
  p = fmaf(p, f, -0.12847129f);
  p = fmaf(p, f, 0.1066141f);
  p = fmaf(p, f, -0.12195282f);
  p = fmaf(p, f, 0.14312834f);
  p = fmaf(p, f, -0.16679616f);
  p = fmaf(p, f, 0.19999306f);
  p = fmaf(p, f, -0.2499982f);
  p = fmaf(p, f, 0.33333337f);
  float s = f * f;
  p = fmaf(p, f, -0.5f);
  p = fmaf(p, s, f);
  return fmaf((float)((int)e >> 23), 0.69314718f, p);
}

// cos(a) and sin(a), a in [0, 2 pi]: the nearest quarter turn off in two pieces, then polynomials.
STG_DEVICE void stg_turn(float a, float *cosine, float *sine) {
  float t = fmaf(a, 0.63661977f, 12582912.0f); // 1.5 * 2^23: the sum's last bits are the integer
  u32 quarter = stg_bits(t);
  float j = t - 12582912.0f;
  float r = fmaf(j, -1.57079637f, a);
  r = fmaf(j, 4.37113883e-8f, r);
  float s = r * r;
  float p = fmaf(-0.00019516976f, s, 0.008332176f);
  p = fmaf(p, s, -0.16666655f);
  float sin_r = fmaf(p * s, r, r);
  float q = fmaf(2.443809e-5f, s, -0.0013887364f);
  q = fmaf(q, s, 0.041666646f);
  q = fmaf(q, s, -0.5f);
  float cos_r = fmaf(q, s, 1.0f);
  float c = quarter & 1 ? sin_r : cos_r;
  float d = quarter & 1 ? cos_r : sin_r;
  *cosine = stg_float(stg_bits(c) ^ (((quarter + 1) & 2) << 30));
  *sine = stg_float(stg_bits(d) ^ ((quarter & 2) << 30));
}

STG_DEVICE float stg_uniform(u32 bits) { return (float)(bits >> 8) * (1.0f / 16777216.0f); }

STG_DEVICE void stg_normals(u64 seed, u64 chain, u64 group, u32 step, float z[8]) {
  u64 word[4];
  stg_philox(seed, chain, group + 1, step, word); // NumPy advances before it draws
#ifndef STG_HOST
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    float u0 = stg_uniform((u32)word[i]), u1 = stg_uniform((u32)(word[i] >> 32));
    float radius = sqrtf(stg_log(1.0f - u0) * -2.0f);
    float cosine, sine;
    stg_turn(u1 * 6.28318548f, &cosine, &sine);
    z[2 * i] = radius * cosine;
    z[2 * i + 1] = radius * sine;
  }
}

// --- eight values: two 16-byte accesses where the chain is aligned and whole, else one by one

STG_DEVICE void stg_load(const float *from, u32 count, bool wide, float out[8]) {
  if (wide) {
    Four a = ((const Four *)from)[0], b = ((const Four *)from)[1];
#ifndef STG_HOST
#pragma unroll
#endif
    for (int i = 0; i < 4; ++i) {
      out[i] = a.v[i];
      out[4 + i] = b.v[i];
    }
  } else {
#ifndef STG_HOST
#pragma unroll
#endif
    for (u32 i = 0; i < 8; ++i) out[i] = i < count ? from[i] : 0.0f;
  }
}

STG_DEVICE void stg_store(float *to, u32 count, bool wide, const float in[8]) {
  if (wide) {
    Four a, b;
#ifndef STG_HOST
#pragma unroll
#endif
    for (int i = 0; i < 4; ++i) {
      a.v[i] = in[i];
      b.v[i] = in[4 + i];
    }
    ((Four *)to)[0] = a;
    ((Four *)to)[1] = b;
  } else {
#ifndef STG_HOST
#pragma unroll
#endif
    for (u32 i = 0; i < 8; ++i)
      if (i < count) to[i] = in[i];
  }
}

// Values 8 group to 8 group + 7 of chain n, of `size` values.
STG_DEVICE void stg_span(u64 group, u32 n, u64 size, u64 *at, u32 *count, bool *wide) {
  u64 first = group * 8;
  *count = size - first < 8 ? (u32)(size - first) : 8;
  *at = n * size + first;
  *wide = *count == 8 && size % 4 == 0;
}

STG_DEVICE void stg_hold_group(float x[8], const float *value, const unsigned char *known, u64 at,
                               u32 count, bool wide) {
  float v[8];
  u64 mask = 0;
  if (wide && at % 8 == 0) {
    mask = *(const u64 *)(known + at);
  } else {
    for (u32 i = 0; i < count; ++i) mask |= (u64)known[at + i] << (8 * i);
  }
  if (mask == 0) return; // the values need not be read
  stg_load(value + at, count, wide, v);
#ifndef STG_HOST
#pragma unroll
#endif
  for (int i = 0; i < 8; ++i)
    if ((mask >> (8 * i)) & 0xff) x[i] = v[i];
}

STG_DEVICE void stg_step_group(float *x, const float *grad, const unsigned char *known,
                               const float *value, u64 chain, u64 seed, u32 step, float drift,
                               float spread, u64 group, u32 n, u64 size) {
  u64 at;
  u32 count;
  bool wide;
  stg_span(group, n, size, &at, &count, &wide);
  float state[8], slope[8], z[8];
  stg_load(x + at, count, wide, state);
  stg_load(grad + at, count, wide, slope);
#ifndef STG_HOST
#pragma unroll
#endif
  for (int i = 0; i < 8; ++i) state[i] = state[i] - slope[i] * drift;
  if (spread != 0.0f) {
    stg_normals(seed, chain, group, step, z);
#ifndef STG_HOST
#pragma unroll
#endif
    for (int i = 0; i < 8; ++i) state[i] = state[i] + z[i] * spread;
  }
  if (known) stg_hold_group(state, value, known, at, count, wide);
  stg_store(x + at, count, wide, state);
}

STG_DEVICE void stg_start_group(float *x, u64 chain, u64 seed, float std, u64 group, u32 n,
                                u64 size) {
  u64 at;
  u32 count;
  bool wide;
  stg_span(group, n, size, &at, &count, &wide);
  float z[8];
  stg_normals(seed, chain, group, 0, z);
#ifndef STG_HOST
#pragma unroll
#endif
  for (int i = 0; i < 8; ++i) z[i] = z[i] * std;
  stg_store(x + at, count, wide, z);
}

#ifndef STG_HOST

// Grids: x covers the groups of 8 values of a chain, y the chains. `known` null: nothing is held.

extern "C" __global__ void __launch_bounds__(256)
stg_step(float *x, const float *grad, const unsigned char *known, const float *value,
         const float *energy, float *energies, Walk *walk, const u64 *chains, u64 size, u32 rows) {
  u64 group = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  u32 n = blockIdx.y, row = walk->row;
  if (group * 8 < size)
    stg_step_group(x, grad, known, value, chains[n], walk->seed, walk->step, walk->drift,
                   walk->spread, group, n, size);
  if (blockIdx.x == 0 && threadIdx.x == 0 && row < rows)
    energies[(u64)row * gridDim.y + n] = energy[n];
  // The last block to arrive counts the step: every other one has read `walk` by then.
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(&walk->arrived, 1u) == gridDim.x * gridDim.y - 1) {
      walk->arrived = 0;
      walk->step += 1;
      walk->row = row + 1;
    }
  }
}

extern "C" __global__ void __launch_bounds__(256)
stg_start(float *x, const Walk *walk, const u64 *chains, float std, u64 size) {
  u64 group = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (group * 8 < size)
    stg_start_group(x, chains[blockIdx.y], walk->seed, std, group, blockIdx.y, size);
}

extern "C" __global__ void __launch_bounds__(256)
stg_hold(float *x, const unsigned char *known, const float *value, u64 size) {
  u64 group = (u64)blockIdx.x * blockDim.x + threadIdx.x, at;
  if (group * 8 >= size) return;
  u32 count;
  bool wide;
  stg_span(group, blockIdx.y, size, &at, &count, &wide);
  float state[8];
  stg_load(x + at, count, wide, state);
  stg_hold_group(state, value, known, at, count, wide);
  stg_store(x + at, count, wide, state);
}

// For checks: raw words and normals of one chain's step.
extern "C" __global__ void stg_words(u64 seed, u64 chain, u32 step, u64 groups, u64 *words) {
  u64 group = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (group < groups) stg_philox(seed, chain, group + 1, step, words + 4 * group);
}

#else

extern "C" void host_words(u64 seed, u64 chain, u32 step, u64 groups, u64 *words) {
  for (u64 group = 0; group < groups; ++group)
    stg_philox(seed, chain, group + 1, step, words + 4 * group);
}

extern "C" void host_start(float *x, const Walk *walk, const u64 *chains, float std, u64 size,
                           u32 n_chains) {
  for (u32 n = 0; n < n_chains; ++n)
    for (u64 group = 0; group * 8 < size; ++group)
      stg_start_group(x, chains[n], walk->seed, std, group, n, size);
}

extern "C" void host_hold(float *x, const unsigned char *known, const float *value, u64 size,
                          u32 n_chains) {
  for (u64 at = 0; at < n_chains * size; ++at)
    if (known[at]) x[at] = value[at];
}

extern "C" void host_step(float *x, const float *grad, const unsigned char *known,
                          const float *value, const float *energy, float *energies, Walk *walk,
                          const u64 *chains, u64 size, u32 rows, u32 n_chains) {
  for (u32 n = 0; n < n_chains; ++n) {
    for (u64 group = 0; group * 8 < size; ++group)
      stg_step_group(x, grad, known, value, chains[n], walk->seed, walk->step, walk->drift,
                     walk->spread, group, n, size);
    if (walk->row < rows) energies[(u64)walk->row * n_chains + n] = energy[n];
  }
  walk->step += 1;
  walk->row += 1;
}

#endif
