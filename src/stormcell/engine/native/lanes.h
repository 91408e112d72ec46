// Vectors of LANES floats, and functions of them: what the instruction set changes, and nothing else does.
// Included by winograd.cpp alone, in an anonymous namespace of its instruction set.

constexpr int LANES = STORMCELL_LANES;

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

#define INLINE inline __attribute__((always_inline))

INLINE vec load(const float* p) { return *reinterpret_cast<const loose_vec*>(p); }
INLINE void store(float* p, vec v) { *reinterpret_cast<loose_vec*>(p) = v; }
INLINE vec splat(float s) { return vec{} + s; }

// The first `count` lanes, 0 beyond.
INLINE vec load(const float* p, int count) {
    if (count >= LANES) return load(p);
    vec v{};
    for (int lane = 0; lane < count; ++lane) v[lane] = p[lane];
    return v;
}

INLINE void store(float* p, vec v, int count) {
    if (count >= LANES) return store(p, v);
    for (int lane = 0; lane < count; ++lane) p[lane] = v[lane];
}

// Lanes at a distance of `stride` numbers.
INLINE vec gather(const float* p, ptrdiff_t stride, int count) {
    if (stride == 1) return load(p, count);
    vec v{};
    for (int lane = 0; lane < (count < LANES ? count : LANES); ++lane) v[lane] = p[lane * stride];
    return v;
}

INLINE void scatter(float* p, ptrdiff_t stride, vec v, int count) {
    if (stride == 1) return store(p, v, count);
    for (int lane = 0; lane < (count < LANES ? count : LANES); ++lane) p[lane * stride] = v[lane];
}

// A NaN in `a` stays.
INLINE vec max(vec a, vec b) { return b > a ? b : a; }
INLINE vec min(vec a, vec b) { return b < a ? b : a; }
INLINE vec magnitude(vec a) { return reinterpret_cast<vec>(reinterpret_cast<ivec>(a) & 0x7fffffff); }

// e^x: x = n·ln 2 + r with |r| ≤ ln 2 / 2, and a polynomial in r (the coefficients of Cephes' expf, Moshier 1992). NaN stays NaN.
INLINE vec exponential(vec x) {
    const vec low = splat(-87.3365f), high = splat(88.3762f);
    vec bounded = x < low ? low : x;
    bounded = bounded > high ? high : bounded;
    const vec shift = splat(12582912.0f);  // 1.5·2²³: adding it rounds to a whole number
    const vec shifted = bounded * 1.44269504088896341f + shift;
    const vec n = shifted - shift;
    const vec r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * reinterpret_cast<vec>(power);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

// Small x by a polynomial (Cephes' tanhf), so that its relative error is small too.
INLINE vec tangent(vec x) {
    const vec squared = x * x;
    vec p = splat(-5.70498872745e-3f);
    p = p * squared + 2.06390887954e-2f;
    p = p * squared - 5.37397155531e-2f;
    p = p * squared + 1.33314422036e-1f;
    p = p * squared - 3.33332819422e-1f;
    const vec small = x + x * squared * p;
    const vec size = magnitude(x);
    const vec large = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
    return size < 0.625f ? small : (x < 0.0f ? -large : large);
}

template <class Function>
INLINE vec each(vec x, Function function) {
    for (int lane = 0; lane < LANES; ++lane) x[lane] = function(x[lane]);
    return x;
}

// In the order of NAMES in winograd.py.
enum Activation { TANH, SIGMOID, RELU, HARD_SIGMOID, KERAS2_HARD_SIGMOID, LINEAR, ELU, EXPONENTIAL, GELU, MISH, RELU6, SELU,
                  SILU, SOFTPLUS, SOFTSIGN };

constexpr float SELU_ALPHA = 1.6732632423543772f, SELU_SCALE = 1.0507009873554805f;  // Klambauer et al. 2017
constexpr float SQRT_HALF = 0.70710678118654752f, DENSITY = 0.39894228040143268f;    // 1/√2 and 1/√(2π)

INLINE vec softplus(vec x) {
    const vec exact = each(exponential(-magnitude(x)), [](float e) { return ::log1pf(e); });
    return max(x, vec{}) + exact;
}

inline vec activated(int64_t kind, vec z) {
    const vec zero{}, one = splat(1.0f);
    switch (kind) {
        case TANH: return tangent(z);
        case SIGMOID: return sigmoid(z);
        case RELU: return z < zero ? zero : z;
        case HARD_SIGMOID: return min(max(z / 6.0f + 0.5f, zero), one);
        case KERAS2_HARD_SIGMOID: return min(max(0.2f * z + 0.5f, zero), one);
        case ELU: return z > zero ? z : each(z, [](float x) { return ::expm1f(x); });
        case EXPONENTIAL: return each(z, [](float x) { return ::expf(x); });
        case GELU: return 0.5f * z * (1.0f + each(z * SQRT_HALF, [](float x) { return ::erff(x); }));
        case MISH: return z * tangent(softplus(z));
        case RELU6: return min(max(z, zero), splat(6.0f));
        case SELU: return SELU_SCALE * (z > zero ? z : SELU_ALPHA * each(z, [](float x) { return ::expm1f(x); }));
        case SILU: return z * sigmoid(z);
        case SOFTPLUS: return softplus(z);
        case SOFTSIGN: return z / (1.0f + magnitude(z));
        default: return z;
    }
}

// The derivative at z, where a = activated(kind, z).
inline vec slope(int64_t kind, vec z, vec a) {
    const vec zero{}, one = splat(1.0f);
    switch (kind) {
        case TANH: return one - a * a;
        case SIGMOID: return a * (one - a);
        case RELU: return z > zero ? one : zero;
        case HARD_SIGMOID: return magnitude(z) < splat(3.0f) ? splat(1.0f / 6.0f) : zero;
        case KERAS2_HARD_SIGMOID: return magnitude(z) <= splat(2.5f) ? splat(0.2f) : zero;
        case ELU: return z > zero ? one : a + one;
        case EXPONENTIAL: return a;
        case GELU:
            return 0.5f * (one + each(z * SQRT_HALF, [](float x) { return ::erff(x); })) +
                   z * exponential(-0.5f * z * z) * DENSITY;
        case MISH: {
            const vec t = tangent(softplus(z));
            return t + z * (one - t * t) * sigmoid(z);
        }
        case RELU6: return z > zero ? (z < splat(6.0f) ? one : zero) : zero;
        case SELU: return z > zero ? splat(SELU_SCALE) : a + SELU_SCALE * SELU_ALPHA;
        case SILU: {
            const vec s = sigmoid(z);
            return s + a * (one - s);
        }
        case SOFTPLUS: return sigmoid(z);
        case SOFTSIGN: return one / ((one + magnitude(z)) * (one + magnitude(z)));
        default: return one;
    }
}
