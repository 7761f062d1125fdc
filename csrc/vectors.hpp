// Several vectors of neighbours at once, and memory ahead of the loops.
#pragma once

#include "simd.hpp"

namespace {

// ---- N vectors of neighbours, in an order of their type's own: memory's, but two of bfloat16 are the even elements
// and the odd ones, which a shift and a mask part where memory's order would have to move lanes

template <class T> struct Order {
    static INLINE void part(vf &, vf &) {}
    static INLINE void join(vf &, vf &) {}
};
template <> struct Order<bf16> {
    static INLINE void part(vf &a, vf &b) { // a, b as they lie: even, odd
#if defined(__AVX512F__)
        const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        const __m512 x = (__m512)a, y = (__m512)b;
        a = (vf)_mm512_permutex2var_ps(x, even, y), b = (vf)_mm512_permutex2var_ps(x, odd, y);
#elif defined(__AVX2__)
        const __m256d even = (__m256d)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
        const __m256d odd = (__m256d)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
        a = (vf)_mm256_permute4x64_pd(even, 0xd8), b = (vf)_mm256_permute4x64_pd(odd, 0xd8);
#elif defined(__SSE2__)
        const __m128 x = (__m128)a, y = (__m128)b;
        a = (vf)_mm_shuffle_ps(x, y, 0x88), b = (vf)_mm_shuffle_ps(x, y, 0xdd);
#else
        float all[2 * LANES], e[LANES], o[LANES];
        std::memcpy(all, &a, BYTES), std::memcpy(all + LANES, &b, BYTES);
        for (int i = 0; i < LANES; ++i) e[i] = all[2 * i], o[i] = all[2 * i + 1];
        std::memcpy(&a, e, BYTES), std::memcpy(&b, o, BYTES);
#endif
    }
    static INLINE void join(vf &a, vf &b) { // and back
#if defined(__AVX512F__)
        const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        const __m512 x = (__m512)a, y = (__m512)b;
        a = (vf)_mm512_permutex2var_ps(x, low, y), b = (vf)_mm512_permutex2var_ps(x, high, y);
#elif defined(__AVX2__)
        const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b), high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
        a = (vf)_mm256_permute2f128_ps(low, high, 0x20), b = (vf)_mm256_permute2f128_ps(low, high, 0x31);
#elif defined(__SSE2__)
        const __m128 x = (__m128)a, y = (__m128)b;
        a = (vf)_mm_unpacklo_ps(x, y), b = (vf)_mm_unpackhi_ps(x, y);
#else
        float all[2 * LANES], e[LANES], o[LANES];
        std::memcpy(e, &a, BYTES), std::memcpy(o, &b, BYTES);
        for (int i = 0; i < LANES; ++i) all[2 * i] = e[i], all[2 * i + 1] = o[i];
        std::memcpy(&a, all, BYTES), std::memcpy(&b, all + LANES, BYTES);
#endif
    }
};

template <int N, class T> INLINE void loads(const T *p, vf (&v)[N]) {
    for (int i = 0; i < N; ++i) v[i] = load(p + i * LANES);
}
template <int N> INLINE void loads(const bf16 *p, vf (&v)[N]) {
    for (int i = 0; i + 1 < N; i += 2) {
        vu both;
        std::memcpy(&both, p + i * LANES, BYTES);
        v[i] = (vf)(both << 16), v[i + 1] = (vf)(both & 0xffff0000u);
    }
    if (N % 2) v[N - 1] = load(p + (N - 1) * LANES);
}
template <bool STREAM, int N, class T> INLINE void puts(T *p, const vf (&v)[N]) {
    for (int i = 0; i < N; ++i) put<STREAM>(p + i * LANES, v[i]);
}
template <bool STREAM, int N> INLINE void puts(bf16 *p, const vf (&v)[N]) {
    for (int i = 0; i + 1 < N; i += 2)
        put<STREAM>(reinterpret_cast<float *>(p + i * LANES), (vf)narrow(v[i], v[i + 1]));
    if (N % 2) put<STREAM>(p + (N - 1) * LANES, v[N - 1]);
}
// floats that go with N vectors of T
template <class T, int N> INLINE void beside(const float *p, vf (&v)[N]) {
    loads(p, v);
    for (int i = 0; i + 1 < N; i += 2) Order<T>::part(v[i], v[i + 1]);
}
template <class T, int N> INLINE void more(float *p, vf (&v)[N]) { // p += v
    for (int i = 0; i + 1 < N; i += 2) Order<T>::join(v[i], v[i + 1]);
    for (int i = 0; i < N; ++i) store(p + i * LANES, load(p + i * LANES) + v[i]);
}

// k lanes, all of them or the first few
template <class T> INLINE vf take(const T *p, i64 k) { return k == LANES ? load(p) : load(p, k); }
// N vectors of k lanes: fewer than all only where N is 1
template <int N, class T> INLINE void takes(const T *p, i64 k, vf (&v)[N]) {
    if (N > 1 || k == LANES)
        loads(p, v);
    else
        v[0] = load(p, k);
}
template <class T, int N> INLINE void beside(const float *p, i64 k, vf (&v)[N]) {
    takes(p, k, v);
    for (int i = 0; i + 1 < N; i += 2) Order<T>::part(v[i], v[i + 1]);
}
template <bool STREAM, int N, class T> INLINE void gives(T *p, const vf (&v)[N], i64 k) {
    if (N > 1 || k == LANES)
        puts<STREAM>(p, v);
    else
        store(p, v[0], k);
}
template <class T> INLINE void as_memory(float *p, i64 n) { // a line of floats that was in the order of T's vectors
    vf v[2];
    for (i64 i = 0; i + 2 * LANES <= n; i += 2 * LANES) loads(p + i, v), Order<T>::join(v[0], v[1]), puts<false>(p + i, v);
}
template <int N> struct Vectors {
    static constexpr int count = N;
};
// ---- ahead of the loops: what comes next is on its way from memory while something else is computed
//
// Elements i to i + MANY of what p points to, which may lie beyond any array: into the second cache, which was measured
// to be quicker than the first. A line is asked for once.
template <int MANY, bool WRITE, class T> INLINE void ahead(const T *p, i64 i) {
    constexpr i64 line = 64 / sizeof(T);
    if ((MANY >= line || i % line == 0))
        for (i64 at = 0; at < MANY; at += line) __builtin_prefetch(p + i + at, WRITE, 2);
}
template <int MANY = LANES, class T> INLINE void fetch(const T *p, i64 i) { ahead<MANY, false>(p, i); }
template <int MANY = LANES, class T> INLINE void claim(const T *p, i64 i) { ahead<MANY, true>(p, i); }

} // namespace
