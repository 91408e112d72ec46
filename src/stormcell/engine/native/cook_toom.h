// The transforms of Winograd's (Cook–Toom) convolution: y = Aᵀ[(G w) ∘ (Bᵀ d)], in one dimension and two.
// Included by winograd.cpp alone, in an anonymous namespace of its instruction set.
//
// N points 0, pairs ±a, and ∞; kernels of R, outputs of M = N - R + 1. The pairs are those with the smallest error in float32
// among some dozen values (docs/log.md): for N = 6 half that of the usual 1 and 2. A and G evaluate polynomials at the points, Bᵀ interpolates, transposed. Rows of Bᵀ and G are scaled by powers of two, which cost
// no accuracy, so that both have like norms. Points come in pairs ±a, whose rows share their even and odd halves.

constexpr double PAIRS[2][3] = {{0.625, 1.5, 0}, {0.5, 1, 2}};  // for N = 6 and 8

template <int N>
constexpr double point(int p) {
    return p == 0 ? 0 : (p % 2 == 1 ? 1 : -1) * PAIRS[N == 8][(p - 1) / 2];
}

template <int N, int R>
struct CookToom {
    static constexpr int M = N - R + 1;
    float a[N][M];   // A
    float bt[N][N];  // Bᵀ
    float g[N][R];   // G
};

template <int N, int R>
constexpr CookToom<N, R> cook_toom() {
    CookToom<N, R> made{};
    for (int p = 0; p < N; ++p) {
        const bool infinite = p == N - 1;
        double polynomial[N + 1] = {1};  // Π (x - a_q) over the other finite points
        int degree = 0;
        double scale = 1;  // Π (a_p - a_q)
        for (int q = 0; q < N - 1; ++q) {
            if (q == p) continue;
            for (int k = degree + 1; k > 0; --k) polynomial[k] = polynomial[k - 1] - point<N>(q) * polynomial[k];
            polynomial[0] *= -point<N>(q);
            ++degree;
            if (!infinite) scale *= point<N>(p) - point<N>(q);
        }
        double g[R] = {}, norm_b = 0, norm_g = 0, power = 1;
        for (int k = 0; k < R; ++k) {
            g[k] = infinite ? (k == R - 1 ? 1.0 : 0.0) : power / scale;
            power *= infinite ? 1 : point<N>(p);
            norm_g += g[k] * g[k];
        }
        for (int j = 0; j < N; ++j) norm_b += polynomial[j] * polynomial[j];
        double s = 1;
        while (s * s * s * s * norm_b * 4 <= norm_g) s *= 2;
        while (s * s * s * s * norm_b > norm_g * 4) s /= 2;
        for (int k = 0; k < R; ++k) made.g[p][k] = static_cast<float>(g[k] / s);
        for (int j = 0; j < N; ++j) made.bt[p][j] = static_cast<float>(polynomial[j] * s);
        double a = 1;
        for (int j = 0; j < CookToom<N, R>::M; ++j) {
            made.a[p][j] = static_cast<float>(infinite ? (j == CookToom<N, R>::M - 1 ? 1.0 : 0.0) : a);
            a *= infinite ? 1 : point<N>(p);
        }
    }
    return made;
}

// Matrices of N rows, which stand for points, and L columns.
template <int N_, int R>
struct A {
    static constexpr int N = N_, L = N - R + 1;
    static constexpr CookToom<N, R> made = cook_toom<N, R>();
    static constexpr float at(int p, int j) { return made.a[p][j]; }
};
template <int N_, int R>
struct Bt {
    static constexpr int N = N_, L = N;
    static constexpr CookToom<N, R> made = cook_toom<N, R>();
    static constexpr float at(int p, int j) { return made.bt[p][j]; }
};
template <int N_, int R>
struct G {
    static constexpr int N = N_, L = R;
    static constexpr CookToom<N, R> made = cook_toom<N, R>();
    static constexpr float at(int p, int j) { return made.g[p][j]; }
};

// Σ at(P, j)·in[j] over j = J, J + 2, …
template <class Matrix, int P, int J>
INLINE vec every_second(const vec* in, int stride) {
    if constexpr (J >= Matrix::L) {
        return vec{};
    } else {
        constexpr float factor = Matrix::at(P, J);
        const vec rest = every_second<Matrix, P, J + 2>(in, stride);
        if constexpr (factor == 0.0f) return rest;
        return rest + factor * in[J * stride];
    }
}

template <class Matrix, int P>
INLINE void expand_pairs(const vec* in, int in_stride, vec* out, int stride) {
    if constexpr (P < Matrix::N - 1) {
        const vec even = every_second<Matrix, P, 0>(in, in_stride), odd = every_second<Matrix, P, 1>(in, in_stride);
        out[P * stride] = even + odd;
        out[(P + 1) * stride] = even - odd;
        expand_pairs<Matrix, P + 2>(in, in_stride, out, stride);
    }
}

// out = matrix · in: L numbers to N.
template <class Matrix>
INLINE void expand(const vec* in, int in_stride, vec* out, int stride) {
    constexpr int last = Matrix::N - 1;
    out[0] = every_second<Matrix, 0, 0>(in, in_stride) + every_second<Matrix, 0, 1>(in, in_stride);
    out[last * stride] = every_second<Matrix, last, 0>(in, in_stride) + every_second<Matrix, last, 1>(in, in_stride);
    expand_pairs<Matrix, 1>(in, in_stride, out, stride);
}

template <class Matrix, int J, int P>
INLINE vec over_pairs(const vec* sums, const vec* differences) {
    if constexpr (P >= Matrix::N - 1) {
        return vec{};
    } else {
        constexpr float factor = Matrix::at(P, J);
        const vec rest = over_pairs<Matrix, J, P + 2>(sums, differences);
        if constexpr (factor == 0.0f) return rest;
        return rest + factor * (J % 2 == 0 ? sums : differences)[P / 2];
    }
}

template <class Matrix, int J>
INLINE void reduce_from(const vec* in, int in_stride, const vec* sums, const vec* differences, vec* out, int stride) {
    if constexpr (J < Matrix::L) {
        constexpr float first = Matrix::at(0, J), last = Matrix::at(Matrix::N - 1, J);
        vec sum = over_pairs<Matrix, J, 1>(sums, differences);
        if constexpr (first != 0.0f) sum += first * in[0];
        if constexpr (last != 0.0f) sum += last * in[(Matrix::N - 1) * in_stride];
        out[J * stride] = sum;
        reduce_from<Matrix, J + 1>(in, in_stride, sums, differences, out, stride);
    }
}

// out = matrixᵀ · in: N numbers to L.
template <class Matrix>
INLINE void reduce(const vec* in, int in_stride, vec* out, int stride) {
    vec sums[Matrix::N / 2 - 1], differences[Matrix::N / 2 - 1];
    for (int k = 0; k < Matrix::N / 2 - 1; ++k) {
        const vec plus = in[(2 * k + 1) * in_stride], minus = in[(2 * k + 2) * in_stride];
        sums[k] = plus + minus;
        differences[k] = plus - minus;
    }
    reduce_from<Matrix, 0>(in, in_stride, sums, differences, out, stride);
}

// matrix · in · matrixᵀ: L×L to N×N, and back with the transposes.
template <class Matrix>
INLINE void expand2(const vec* in, vec* out) {
    constexpr int N = Matrix::N, L = Matrix::L;
    vec half[L * N];
    for (int i = 0; i < L; ++i) expand<Matrix>(in + i * L, 1, half + i * N, 1);
    for (int p = 0; p < N; ++p) expand<Matrix>(half + p, N, out + p, N);
}

template <class Matrix>
INLINE void reduce2(const vec* in, vec* out) {
    constexpr int N = Matrix::N, L = Matrix::L;
    vec half[L * N];
    for (int p = 0; p < N; ++p) reduce<Matrix>(in + p, N, half + p, N);
    for (int i = 0; i < L; ++i) reduce<Matrix>(half + i * N, 1, out + i * L, 1);
}
