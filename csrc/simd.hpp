// One vector of floats, as wide as the instruction set of this build, and the few things done with it.
//
// Wider than native would cost: 64-byte vectors on AVX2 are split by GCC 12 into shuffles, four times slower.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace { // internal: each instruction set has its own copy of everything, and none leaks into another

#define INLINE inline __attribute__((always_inline))

using i64 = std::int64_t;
struct bf16 {
    std::uint16_t bits;
};
struct f16 {
    std::uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 4;

typedef float vf __attribute__((vector_size(BYTES)));
typedef std::int32_t vi __attribute__((vector_size(BYTES)));
typedef std::uint32_t vu __attribute__((vector_size(BYTES)));
typedef std::uint16_t vh __attribute__((vector_size(BYTES / 2)));

INLINE vf all(float a) { return vf{} + a; }

// ---- bfloat16 is the upper half of a float

INLINE vf widen(vh h) { // GCC 12 spells these conversions lane by lane where it is not told the instruction
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#elif defined(__SSE4_1__) && !defined(__AVX512F__)
    __m128i low = _mm_setzero_si128();
    std::memcpy(&low, &h, sizeof h);
    return (vf)_mm_slli_epi32(_mm_cvtepu16_epi32(low), 16);
#else
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

INLINE vh halve(vu u) { // the lower halves of values below 2^16
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i both = _mm256_packus_epi32((__m256i)u, (__m256i)u);
    return (vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(both, 0x08));
#elif defined(__SSE4_1__) && !defined(__AVX512F__)
    const __m128i both = _mm_packus_epi32((__m128i)u, (__m128i)u);
    vh h;
    std::memcpy(&h, &both, sizeof h);
    return h;
#else
    return __builtin_convertvector(u, vh);
#endif
}

INLINE vu rounded(vf f) { // its upper halves are the result: to nearest, ties to even
    const vu u = (vu)f, r = u + 0x7fffu + ((u >> 16) & 1u);
#if defined(__AVX512F__)
    return (vu)_mm512_mask_mov_epi32((__m512i)r, _mm512_cmp_ps_mask((__m512)f, (__m512)f, _CMP_UNORD_Q),
                                     _mm512_set1_epi32(0x7fc00000));
#else
    const vu nan = (vu)(f != f);
    return (r & ~nan) | (nan & 0x7fc00000u);
#endif
}
INLINE vh narrow(vf f) {
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)f);
#else
    return halve(rounded(f) >> 16);
#endif
}
INLINE vu narrow(vf even, vf odd) { // two vectors, element by element in turn
#if defined(__AVX512BF16__)
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    alignas(64) static const std::uint16_t turns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vu)_mm512_permutexvar_epi16(_mm512_load_si512(turns), both);
#else
    return (rounded(even) >> 16) | (rounded(odd) & 0xffff0000u);
#endif
}

// ---- float16 by the machine's own conversion where it has one

#if defined(__AVX512F__)
INLINE vf widen16(vh h) { return (vf)_mm512_cvtph_ps((__m256i)h); }
INLINE vh narrow16(vf f) { return (vh)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
INLINE vf widen16(vh h) { return (vf)_mm256_cvtph_ps((__m128i)h); }
INLINE vh narrow16(vf f) { return (vh)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE vf widen16(vh h) { // lane by lane: exponent and mantissa moved up, then scaled into place, exactly
    vf f;
    for (int i = 0; i < LANES; ++i) {
        const std::uint32_t magnitude = h[i] & 0x7fffu, sign = std::uint32_t(h[i] & 0x8000u) << 16;
        std::uint32_t u = magnitude << 13;
        float v;
        std::memcpy(&v, &u, 4);
        v *= 0x1p112f;
        std::memcpy(&u, &v, 4);
        if (magnitude >= 0x7c00u) u |= 0x7f800000u;
        u |= sign;
        std::memcpy(&v, &u, 4);
        f[i] = v;
    }
    return f;
}
INLINE vh narrow16(vf f) {
    vh h;
    for (int i = 0; i < LANES; ++i) {
        std::uint32_t u;
        const float v = f[i], size = v < 0 ? -v : v;
        std::memcpy(&u, &v, 4);
        const std::uint16_t sign = std::uint16_t((u >> 16) & 0x8000u);
        u &= 0x7fffffffu;
        if (v != v)
            h[i] = sign | 0x7e00u;
        else if (size >= 65520.f)
            h[i] = sign | 0x7c00u;
        else if (size < 0x1p-14f) { // subnormal: the float adder rounds to steps of 2^-24
            const float moved = size + 0.5f;
            std::memcpy(&u, &moved, 4);
            h[i] = std::uint16_t(sign | (u & 0x7ffu));
        } else
            h[i] = std::uint16_t(sign | ((u + 0xfffu + ((u >> 13) & 1u) - 0x38000000u) >> 13));
    }
    return h;
}
#endif

// ---- whole vectors, at any address

INLINE vf load(const float *p) {
    vf f;
    std::memcpy(&f, p, BYTES);
    return f;
}
INLINE vf load(const bf16 *p) {
    vh h;
    std::memcpy(&h, p, BYTES / 2);
    return widen(h);
}
INLINE vf load(const f16 *p) {
    vh h;
    std::memcpy(&h, p, BYTES / 2);
    return widen16(h);
}
INLINE void store(float *p, vf f) { std::memcpy(p, &f, BYTES); }
INLINE void store(f16 *p, vf f) {
    const vh h = narrow16(f);
    std::memcpy(p, &h, BYTES / 2);
}
INLINE void store(bf16 *p, vf f) {
    const vh h = narrow(f);
    std::memcpy(p, &h, BYTES / 2);
}

// ---- the first n lanes, the others 0

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
INLINE __mmask16 first(i64 n) { return (__mmask16)((1u << n) - 1); }
INLINE vf load(const float *p, i64 n) { return (vf)_mm512_maskz_loadu_ps(first(n), p); }
INLINE vf load(const bf16 *p, i64 n) { return widen((vh)_mm256_maskz_loadu_epi16(first(n), p)); }
INLINE vf load(const f16 *p, i64 n) { return widen16((vh)_mm256_maskz_loadu_epi16(first(n), p)); }
INLINE void store(float *p, vf f, i64 n) { _mm512_mask_storeu_ps(p, first(n), (__m512)f); }
INLINE void store(bf16 *p, vf f, i64 n) { _mm256_mask_storeu_epi16(p, first(n), (__m256i)narrow(f)); }
INLINE void store(f16 *p, vf f, i64 n) { _mm256_mask_storeu_epi16(p, first(n), (__m256i)narrow16(f)); }
INLINE vf keep(vf f, i64 n) { return (vf)_mm512_maskz_mov_ps(first(n), (__m512)f); }
#else
INLINE vf load(const float *p, i64 n) {
    vf f = {};
    std::memcpy(&f, p, std::size_t(n) * 4);
    return f;
}
INLINE vf load(const bf16 *p, i64 n) {
    vh h = {};
    std::memcpy(&h, p, std::size_t(n) * 2);
    return widen(h);
}
INLINE vf load(const f16 *p, i64 n) {
    vh h = {};
    std::memcpy(&h, p, std::size_t(n) * 2);
    return widen16(h);
}
INLINE void store(float *p, vf f, i64 n) { std::memcpy(p, &f, std::size_t(n) * 4); }
INLINE void store(bf16 *p, vf f, i64 n) {
    const vh h = narrow(f);
    std::memcpy(p, &h, std::size_t(n) * 2);
}
INLINE void store(f16 *p, vf f, i64 n) {
    const vh h = narrow16(f);
    std::memcpy(p, &h, std::size_t(n) * 2);
}
INLINE vf keep(vf f, i64 n) {
    float lane[LANES];
    std::memcpy(lane, &f, BYTES);
    for (int i = int(n); i < LANES; ++i) lane[i] = 0.f;
    return load(lane);
}
#endif

// ---- one element

INLINE float single(float x) { return x; }
INLINE float single(bf16 x) {
    const std::uint32_t u = std::uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
INLINE float single(f16 x) {
    vh h{};
    h[0] = x.bits;
    return widen16(h)[0];
}

// ---- past the cache: what is written and not read again need not push out what will be

INLINE void stream(float *p, vf f) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)f);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)f);
#elif defined(__SSE2__)
    _mm_stream_ps(p, (__m128)f);
#else
    store(p, f);
#endif
}
INLINE void stream(void *p, vh h) {
#if defined(__AVX512F__)
    _mm256_stream_si256((__m256i *)p, (__m256i)h);
#elif defined(__AVX2__)
    _mm_stream_si128((__m128i *)p, (__m128i)h);
#else
    std::memcpy(p, &h, BYTES / 2);
#endif
}
INLINE void stream(bf16 *p, vf f) { stream(p, narrow(f)); }
INLINE void stream(f16 *p, vf f) { stream(p, narrow16(f)); }
INLINE void settle() { // streamed stores become visible to the other threads
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
template <bool STREAM, class T> INLINE void put(T *p, vf f) {
    if (STREAM)
        stream(p, f);
    else
        store(p, f);
}

// Is it a number? Elsewhere 0: what nobody measured may be anything.
INLINE vf finite(vf f) { return (vf)((vi)f & (vi)((f - f) == 0.f)); }
INLINE vf only(vf where, vf f) { return (vf)((vi)f & (vi)(where > 0.f)); }

// How many elements until p is aligned for streaming.
template <class T> INLINE i64 until_aligned(const T *p) {
    const i64 past = i64(reinterpret_cast<std::uintptr_t>(p) % BYTES);
    return past ? (BYTES - past) / i64(sizeof(T)) : 0;
}

INLINE float sum(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float lane[LANES];
    std::memcpy(lane, &v, BYTES);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
#endif
}
INLINE void sums(const vf (&v)[4], double *to) { // four at once take half the steps of one by one
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const auto half = [](vf of) {
        return _mm256_add_ps(_mm512_castps512_ps256((__m512)of), _mm512_extractf32x8_ps((__m512)of, 1));
    };
#else
    const auto half = [](vf of) { return (__m256)of; };
#endif
    const __m256 a = _mm256_hadd_ps(half(v[0]), half(v[1])), b = _mm256_hadd_ps(half(v[2]), half(v[3]));
    const __m256 c = _mm256_hadd_ps(a, b);
    _mm256_storeu_pd(to, _mm256_cvtps_pd(_mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1))));
#else
    for (int i = 0; i < 4; ++i) to[i] = sum(v[i]);
#endif
}

} // namespace
