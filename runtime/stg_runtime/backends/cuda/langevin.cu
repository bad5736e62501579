// The Langevin step in one pass: noise, update, clamp of known values, and the step's book-keeping;
// and the chains' first noise.
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

// --- spot noise, the first noise of chains (stg_runtime.spot says what it is)

// Values `skip` to `skip + size` of a chain's first noise, `stride` floats apart; with a stride of 2
// they are the real parts of complex numbers.
STG_DEVICE void stg_draw_group(float *out, u64 seed, u64 chain, u32 skip, u64 size, u32 stride,
                               u64 group) {
  float z[8];
  stg_normals(seed, chain, group, 0, z);
  for (u32 i = 0; i < 8; ++i) {
    u64 at = group * 8 + i;
    if (at < skip || at - skip >= size) continue;
    out[(at - skip) * stride] = z[i];
    if (stride == 2) out[(at - skip) * 2 + 1] = 0.0f;
  }
}

// exp(a), a in [-87, 0] (Cephes' polynomial, 2 units in the last place); below that 0.
STG_DEVICE float stg_exp(float a) {
  if (a < -87.0f) return 0.0f;
  float t = fmaf(a, 1.44269504f, 12582912.0f);
  float j = t - 12582912.0f;
  float r = fmaf(j, -0.693359375f, a);
  r = fmaf(j, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p * r, r, r) + 1.0f;
  return p * stg_float((u32)((int)j + 127) << 23);
}

// Share of a standard normal below x; Abramowitz, Stegun 7.1.26, as in stg_runtime.spot.
STG_DEVICE float stg_normal_cdf(float x) {
  float z = (x < 0.0f ? -x : x) * 0.70710678f;
  float t = 1.0f / (1.0f + 0.3275911f * z);
  float tail = 1.061405429f * t;
  tail = (tail + -1.453152027f) * t;
  tail = (tail + 1.421413741f) * t;
  tail = (tail + -0.284496736f) * t;
  tail = (tail + 0.254829592f) * t;
  tail = tail * stg_exp(-z * z) * 0.5f;
  return x > 0.0f ? 1.0f - tail : tail;
}

// Along time: what the kernels need to know of the clip and the video.
struct Along {
  const float *noise;   // (grid * grid, length)
  const float *spot;    // (C, frames, H, W)
  const float *colours; // the same shape: each place's colours by rank
  const float *mean;    // (C, H, W)
  const float *spread;  // (H, W): deviation of the luminance
  const float *rows;    // (H, 3): first of the two cells that a row lies in, and their weights
  const float *columns; // (W, 3)
  const float *weights; // (C): of the luminance
  u32 channels, T, H, W, frames, grid, length;
  u32 reserved;
};

// The noise at one place: that of the four cells around it.
STG_DEVICE float stg_cells(const Along *a, const float *row, const float *column, u32 tau) {
  const float *n = a->noise + ((u32)row[0] * a->grid + (u32)column[0]) * a->length + tau;
  u32 next = a->grid > 1 ? a->length : 0;  // one cell has no neighbour
  float above = n[0] * column[1] + n[next] * column[2];
  n += a->grid * next;
  float below = n[0] * column[1] + n[next] * column[2];
  return above * row[1] + below * row[2];
}

// Frames 8 part to 8 part + 7 of channel c at one place: the sum over s of noise[t - s] spot[s].
STG_DEVICE void stg_along_group(float *x, const Along *a, u32 place, u32 c, u32 part) {
  u32 area = a->H * a->W;
  const float *row = a->rows + 3 * (place / a->W), *column = a->columns + 3 * (place % a->W);
  const float *spot = a->spot + (u64)c * a->frames * area + place;
  float window[8], sum[8];
#ifndef STG_HOST
#pragma unroll
#endif
  for (u32 k = 0; k < 8; ++k) {
    // Of frames beyond the end nothing is kept.
    window[k] = stg_cells(a, row, column, (8 * part + k + a->frames - 1) % a->length);
    sum[k] = 0.0f;
  }
  for (u32 s = 0; s < a->frames; ++s) {
    float value = spot[(u64)s * area];
#ifndef STG_HOST
#pragma unroll
#endif
    for (u32 k = 0; k < 8; ++k) sum[k] = sum[k] + window[k] * value;
#ifndef STG_HOST
#pragma unroll
#endif
    for (u32 k = 7; k > 0; --k) window[k] = window[k - 1];
    if (s + 1 < a->frames)
      window[0] = stg_cells(a, row, column, (8 * part + a->frames - 2 - s) % a->length);
  }
#ifndef STG_HOST
#pragma unroll
#endif
  for (u32 k = 0; k < 8; ++k)
    if (8 * part + k < a->T) x[((u64)c * a->T + 8 * part + k) * area + place] = sum[k];
}

// The colour that the clip has at a place at the rank of the value there.
STG_DEVICE void stg_colour_value(float *x, const Along *a, u32 t, u32 place) {
  u32 area = a->H * a->W, below = 0;
  float share = 0.0f;
  if (a->frames > 1) {
    float level = 0.0f;
    for (u32 c = 0; c < a->channels; ++c)
      level = level + a->weights[c] * x[((u64)c * a->T + t) * area + place];
    float spread = a->spread[place];
    level = level / (spread > 1e-6f ? spread : 1e-6f);
    float last = (float)(a->frames - 1);
    float rank = stg_normal_cdf(level) * (float)a->frames - 0.5f;
    rank = rank < 0.0f ? 0.0f : rank > last ? last : rank;
    below = (u32)rank;
    if (below > a->frames - 2) below = a->frames - 2;
    share = rank - (float)below;
  }
  for (u32 c = 0; c < a->channels; ++c) {
    const float *colour = a->colours + ((u64)c * a->frames + below) * area + place;
    float low = colour[0], high = a->frames > 1 ? colour[area] : low;
    x[((u64)c * a->T + t) * area + place] = low + (high - low) * share;
  }
}

// The equalizer's filters (stg_runtime.equalizer): along time, then over space.
struct Filter {
  const float *from; // (C, T, H, W)
  float *to;         // the same shape, another place
  const float *mean; // (C, H, W): taken away before the filter along time, added after the other
  const float *taps; // (2 reach + 1), or that squared
  u32 channels, T, H, W, reach, wrap;
};

STG_DEVICE u32 stg_within(int i, u32 n) { return i < 0 ? 0 : i < (int)n ? (u32)i : n - 1; }

STG_DEVICE u32 stg_around(int i, u32 n) {
  int rest = i % (int)n;
  return (u32)(rest < 0 ? rest + (int)n : rest);
}

// `line`: channel and frame together.
STG_DEVICE void stg_filter_time_value(const Filter *f, u32 line, u32 place) {
  u32 area = f->H * f->W, c = line / f->T;
  int t = (int)(line % f->T), reach = (int)f->reach;
  float mean = f->mean[(u64)c * area + place], sum = 0.0f;
  const float *from = f->from + (u64)c * f->T * area + place;
  for (int i = -reach; i <= reach; ++i) {
    u32 at = f->wrap ? stg_around(t + i, f->T) : stg_within(t + i, f->T);
    sum = sum + f->taps[i + reach] * (from[(u64)at * area] - mean);
  }
  f->to[(u64)line * area + place] = sum;
}

STG_DEVICE void stg_filter_space_value(const Filter *f, u32 line, u32 place) {
  u32 area = f->H * f->W, c = line / f->T;
  int y = (int)(place / f->W), x = (int)(place % f->W), reach = (int)f->reach;
  const float *from = f->from + (u64)line * area, *tap = f->taps;
  float sum = 0.0f;
  for (int i = -reach; i <= reach; ++i) {
    const float *row = from + (u64)stg_within(y + i, f->H) * f->W;
    for (int j = -reach; j <= reach; ++j) sum = sum + *tap++ * row[stg_within(x + j, f->W)];
  }
  f->to[(u64)line * area + place] = sum + f->mean[(u64)c * area + place];
}

// Along space and time: a Fourier transform of our own (Stockham), pass by pass, of any size.
//
// One pass with radix R over one axis of (outer, n, inner) complex numbers: butterfly j of a line
// reads elements j + r n / R and writes those of the next, `done` times longer, sub-transforms.
struct Pass {
  const float *from;
  float *to;
  const float *roots; // exp(-2 pi i k / n), k < n
  u32 n, radix, done, inner, count; // count: butterflies in all
  float sign; // 1: forward, -1: backward (without the factor 1 / n)
};

STG_DEVICE void stg_root(const Pass *p, u32 k, float *re, float *im) {
  *re = p->roots[2 * k];
  *im = p->roots[2 * k + 1] * p->sign;
}

struct Butterfly {
  u64 from, to, step, stride; // in complex numbers: of r = 0, and from one r to the next
  u32 twist;                  // root of element r: r times this
};

STG_DEVICE Butterfly stg_butterfly(const Pass *p, u32 index) {
  u32 many = p->n / p->radix, i = index % p->inner, rest = index / p->inner;
  u32 j = rest % many, line = rest / many, low = j % p->done;
  Butterfly b;
  u64 base = (u64)line * p->n * p->inner + i;
  b.from = base + (u64)j * p->inner;
  b.step = (u64)many * p->inner;
  b.to = base + (u64)((j / p->done) * p->done * p->radix + low) * p->inner;
  b.stride = (u64)p->done * p->inner;
  b.twist = low * (p->n / (p->done * p->radix));
  return b;
}

template <u32 R> STG_DEVICE void stg_pass_fixed(const Pass *p, u32 index) {
  Butterfly b = stg_butterfly(p, index);
  float re[R], im[R], cosine[R], sine[R];
#ifndef STG_HOST
#pragma unroll
#endif
  for (u32 r = 0; r < R; ++r) {
    const float *at = p->from + 2 * (b.from + r * b.step);
    float c, s, a = at[0], d = at[1];
    stg_root(p, r * b.twist, &c, &s);
    re[r] = a * c - d * s;
    im[r] = a * s + d * c;
    stg_root(p, r * (p->n / R), &cosine[r], &sine[r]);
  }
#ifndef STG_HOST
#pragma unroll
#endif
  for (u32 k = 0; k < R; ++k) {
    float x = re[0], y = im[0];
#ifndef STG_HOST
#pragma unroll
#endif
    for (u32 r = 1; r < R; ++r) {
      x = x + (re[r] * cosine[k * r % R] - im[r] * sine[k * r % R]);
      y = y + (re[r] * sine[k * r % R] + im[r] * cosine[k * r % R]);
    }
    float *at = p->to + 2 * (b.to + k * b.stride);
    at[0] = x;
    at[1] = y;
  }
}

// A radix that is a large prime: a loop, its factors read again for every result.
STG_DEVICE void stg_pass_any(const Pass *p, u32 index) {
  Butterfly b = stg_butterfly(p, index);
  u32 R = p->radix, turn = p->n / R;
  for (u32 k = 0; k < R; ++k) {
    float x = 0.0f, y = 0.0f;
    for (u32 r = 0; r < R; ++r) {
      const float *at = p->from + 2 * (b.from + r * b.step);
      float c, s;
      stg_root(p, (u32)(((u64)r * b.twist + (u64)k * r % R * turn) % p->n), &c, &s);
      x = x + (at[0] * c - at[1] * s);
      y = y + (at[0] * s + at[1] * c);
    }
    float *at = p->to + 2 * (b.to + k * b.stride);
    at[0] = x;
    at[1] = y;
  }
}

STG_DEVICE void stg_pass(const Pass *p, u32 index) {
  switch (p->radix) {
  case 2: return stg_pass_fixed<2>(p, index);
  case 3: return stg_pass_fixed<3>(p, index);
  case 4: return stg_pass_fixed<4>(p, index);
  case 5: return stg_pass_fixed<5>(p, index);
  case 8: return stg_pass_fixed<8>(p, index);
  case 9: return stg_pass_fixed<9>(p, index);
  default: return stg_pass_any(p, index);
  }
}

// out = a b, complex, element by element.
STG_DEVICE void stg_times_value(float *out, const float *a, const float *b, u64 i) {
  float re = a[2 * i], im = a[2 * i + 1], c = b[2 * i], s = b[2 * i + 1];
  out[2 * i] = re * c - im * s;
  out[2 * i + 1] = re * s + im * c;
}

// Channels c and c + 1 of the video, from the real and the imaginary parts on the torus.
struct Taken {
  const float *from; // (.., torus_h, torus_w) complex
  float *to;         // (2 or 1, T, H, W)
  u32 T, H, W, torus_h, torus_w, channels;
  float scale, mean[2];
};

STG_DEVICE void stg_take_value(const Taken *k, u32 i) {
  u32 x = i % k->W, y = i / k->W % k->H, t = i / (k->W * k->H);
  const float *at = k->from + 2 * (((u64)t * k->torus_h + y) * k->torus_w + x);
  for (u32 c = 0; c < k->channels; ++c)
    k->to[(u64)c * k->T * k->H * k->W + i] = at[c] * k->scale + k->mean[c];
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

// Spot noise: x covers groups of 8 values, places, values of a frame, butterflies or values; y frames,
// lines or parts of them, in turns where there are more than a grid has rows.
extern "C" __global__ void __launch_bounds__(256)
stg_draw(float *out, u64 seed, u64 chain, u32 skip, u64 size, u32 stride) {
  u64 group = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (group * 8 < size + skip) stg_draw_group(out, seed, chain, skip, size, stride, group);
}

extern "C" __global__ void __launch_bounds__(256) stg_along(float *x, Along a) {
  u32 place = blockIdx.x * blockDim.x + threadIdx.x, parts = (a.T + 7) / 8;
  if (place >= a.H * a.W) return;
  for (u32 row = blockIdx.y; row < a.channels * parts; row += gridDim.y)
    stg_along_group(x, &a, place, row / parts, row % parts);
}

extern "C" __global__ void __launch_bounds__(256) stg_colour(float *x, Along a) {
  u32 place = blockIdx.x * blockDim.x + threadIdx.x;
  if (place >= a.H * a.W) return;
  for (u32 t = blockIdx.y; t < a.T; t += gridDim.y) stg_colour_value(x, &a, t, place);
}

extern "C" __global__ void __launch_bounds__(256) stg_filter_time(Filter f) {
  u32 place = blockIdx.x * blockDim.x + threadIdx.x;
  if (place >= f.H * f.W) return;
  for (u32 line = blockIdx.y; line < f.channels * f.T; line += gridDim.y)
    stg_filter_time_value(&f, line, place);
}

extern "C" __global__ void __launch_bounds__(256) stg_filter_space(Filter f) {
  u32 place = blockIdx.x * blockDim.x + threadIdx.x;
  if (place >= f.H * f.W) return;
  for (u32 line = blockIdx.y; line < f.channels * f.T; line += gridDim.y)
    stg_filter_space_value(&f, line, place);
}

extern "C" __global__ void __launch_bounds__(256) stg_fourier(Pass p) {
  u32 index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < p.count) stg_pass(&p, index);
}

extern "C" __global__ void __launch_bounds__(256)
stg_times(float *out, const float *a, const float *b, u64 size) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < size) stg_times_value(out, a, b, i);
}

extern "C" __global__ void __launch_bounds__(256) stg_take(Taken k) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < k.T * k.H * k.W) stg_take_value(&k, i);
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

extern "C" void host_draw(float *out, u64 seed, u64 chain, u32 skip, u64 size, u32 stride) {
  for (u64 group = 0; group * 8 < size + skip; ++group)
    stg_draw_group(out, seed, chain, skip, size, stride, group);
}

extern "C" void host_along(float *x, const Along *a) {
  for (u32 c = 0; c < a->channels; ++c)
    for (u32 part = 0; part * 8 < a->T; ++part)
      for (u32 place = 0; place < a->H * a->W; ++place) stg_along_group(x, a, place, c, part);
}

extern "C" void host_filter(const Filter *f, u32 space) {
  for (u32 line = 0; line < f->channels * f->T; ++line)
    for (u32 place = 0; place < f->H * f->W; ++place)
      space ? stg_filter_space_value(f, line, place) : stg_filter_time_value(f, line, place);
}

extern "C" void host_colour(float *x, const Along *a) {
  for (u32 t = 0; t < a->T; ++t)
    for (u32 place = 0; place < a->H * a->W; ++place) stg_colour_value(x, a, t, place);
}

extern "C" void host_fourier(const Pass *p) {
  for (u32 index = 0; index < p->count; ++index) stg_pass(p, index);
}

extern "C" void host_times(float *out, const float *a, const float *b, u64 size) {
  for (u64 i = 0; i < size; ++i) stg_times_value(out, a, b, i);
}

extern "C" void host_take(const Taken *k) {
  for (u32 i = 0; i < k->T * k->H * k->W; ++i) stg_take_value(k, i);
}

#endif
