// A ConvLSTM sequence in the Winograd domain, forward and backward. Compiled once for each instruction set (STORMCELL_ISA).
//
// Letters: B T Y X F as everywhere; tiles cover the map with M×M outputs each and read N×N inputs; P = N² points.
//   V  (P, tile, K)        tiles of x and h, transformed: Bᵀ d B; K = C + F
//   U  (P, K, columns)     kernels, transformed: G w Gᵀ; columns are [block of LANES channels][gate][lane]
//   Z  = Aᵀ (V U) A        pre-activations, (tile, M², columns)
//   dM (P, block, tile, 4·LANES)  = A dZ Aᵀ, from which dV = dM Uᵀ, patches dd = B dV Bᵀ, and dU = Vᵀ dM
//
// Forward, a step: threads share the tiles; each takes as many at once as stay in its cache, transforms them, and for each
// block of channels multiplies, transforms back, and updates the state: products never leave the cache. Backward, a step:
// threads first gather gradients of the state from patches of the step after, each pixel from the tiles that read it (so that
// no two threads write to one place, and sums have one order whatever the threads); then turn them into dM and new patches;
// V and dM of some steps are kept until there are enough tiles for a good product dU, which threads share by points.

#include "winograd.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "team.h"

namespace STORMCELL_ISA {
namespace {

#include "lanes.h"
#include "cook_toom.h"

constexpr size_t CACHE = 448 * 1024;           // bytes of V and of products that a thread works on at a time (docs/log.md)
constexpr size_t KEPT = 4 * 1024 * 1024;      // bytes of V and dM that wait for the product dU
constexpr int64_t SHORT_SUM = 32;              // terms of a product that are added before they join the rest
constexpr int64_t PIECE = 3 * SHORT_SUM;       // rows of `b`, 24 KiB of four vectors of 64 bytes
constexpr int ROWS = STORMCELL_REGISTERS < 32 ? 3 : 6;  // of a product that registers hold, 4 vectors wide

using Problem = stormcell_problem;

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
    int64_t first, last;
};

Range share(int64_t count, int number, int members) { return {count * number / members, count * (number + 1) / members}; }

// --- products ---

// c (HEIGHT × WIDTH·LANES) = a (HEIGHT × count) · b, or += . `a` is read along rows at `a_row` and along k at `a_k`. Sums are
// made of short sums: rounding then grows with the length of these, and not of the whole (halves the error; test_winograd.py).
template <int HEIGHT, int WIDTH, bool ADD>
INLINE void block(const float* a, ptrdiff_t a_row, ptrdiff_t a_k, const float* b, ptrdiff_t b_k, float* c, ptrdiff_t c_row,
                  int64_t count) {
    const int64_t sums = larger((count + SHORT_SUM - 1) / SHORT_SUM, 1), length = (count + sums - 1) / sums;
    for (int64_t begun = 0; begun < count; begun += length) {
        vec sum[HEIGHT][WIDTH] = {};
        const int64_t end = smaller(begun + length, count);
        for (int64_t k = begun; k < end; ++k) {
            vec right[WIDTH];
            for (int v = 0; v < WIDTH; ++v) right[v] = load(b + v * LANES);
            for (int r = 0; r < HEIGHT; ++r) {
                const vec left = splat(a[r * a_row]);
                for (int v = 0; v < WIDTH; ++v) sum[r][v] += left * right[v];
            }
            a += a_k;
            b += b_k;
        }
        for (int r = 0; r < HEIGHT; ++r)
            for (int v = 0; v < WIDTH; ++v) {
                float* to = c + r * c_row + v * LANES;
                store(to, ADD || begun > 0 ? load(to) + sum[r][v] : sum[r][v]);
            }
    }
}

template <int HEIGHT, int WIDTH, bool ADD>
void some_rows(int64_t rows, const float* a, ptrdiff_t a_row, ptrdiff_t a_k, const float* b, ptrdiff_t b_k, float* c,
               ptrdiff_t c_row, int64_t count) {
    while (rows >= HEIGHT) {
        block<HEIGHT, WIDTH, ADD>(a, a_row, a_k, b, b_k, c, c_row, count);
        a += HEIGHT * a_row;
        c += HEIGHT * c_row;
        rows -= HEIGHT;
    }
    if constexpr (HEIGHT > 1) {
        if (rows > 0) some_rows<HEIGHT - 1, WIDTH, ADD>(rows, a, a_row, a_k, b, b_k, c, c_row, count);
    }
}

template <bool ADD>
void one_piece(int64_t rows, int64_t width, const float* a, ptrdiff_t a_row, ptrdiff_t a_k, const float* b, ptrdiff_t b_k,
               float* c, ptrdiff_t c_row, int64_t count) {
    switch (width) {
        case 4: return some_rows<ROWS, 4, ADD>(rows, a, a_row, a_k, b, b_k, c, c_row, count);
        case 3: return some_rows<ROWS, 3, ADD>(rows, a, a_row, a_k, b, b_k, c, c_row, count);
        case 2: return some_rows<ROWS * 2, 2, ADD>(rows, a, a_row, a_k, b, b_k, c, c_row, count);
        default: return some_rows<ROWS * 2, 1, ADD>(rows, a, a_row, a_k, b, b_k, c, c_row, count);
    }
}

// As `block`, for any number of rows, and of vectors up to 4. Goes through `b` in pieces that stay in the nearest cache.
template <bool ADD>
void product(int64_t rows, int64_t width, const float* a, ptrdiff_t a_row, ptrdiff_t a_k, const float* b, ptrdiff_t b_k,
             float* c, ptrdiff_t c_row, int64_t count) {
    one_piece<ADD>(rows, width, a, a_row, a_k, b, b_k, c, c_row, smaller(count, PIECE));
    for (int64_t k = PIECE; k < count; k += PIECE)
        one_piece<true>(rows, width, a + k * a_k, a_row, a_k, b + k * b_k, b_k, c, c_row, smaller(count - k, PIECE));
}

// --- sizes ---

template <int N_, int R_>
struct Shape {
    static constexpr int N = N_, R = R_, M = N - R + 1, P = N * N, BEFORE = (R - 1) / 2;
    using ToPoints = Bt<N, R>;
    using FromPoints = A<N, R>;
    using Kernel = G<N, R>;

    explicit Shape(const Problem& p)
        : tiles_y((p.height + M - 1) / M),
          tiles_x((p.width + M - 1) / M),
          tiles(p.batch * tiles_y * tiles_x),
          pixels(p.height * p.width),
          blocks((p.hidden + LANES - 1) / LANES),
          channels(p.inputs + p.hidden),
          row(rounded_up(p.inputs + blocks * LANES, LANES)),
          columns(4 * blocks * LANES) {}

    const int64_t tiles_y, tiles_x, tiles, pixels, blocks, channels, row, columns;  // row: of V

    // How many tiles go through the cache at once.
    int64_t at_once(int64_t numbers_a_tile) const {
        const int64_t fit = static_cast<int64_t>(CACHE / (sizeof(float) * P * numbers_a_tile));
        return smaller(larger(fit / ROWS, 1) * ROWS, 8 * ROWS);
    }
};

struct Tile {
    int64_t b, y, x;  // sample, and first output pixel
};

template <class S>
INLINE Tile tile_of(const S& s, int64_t index) {
    const int64_t x = index % s.tiles_x, rest = index / s.tiles_x;
    return {rest / s.tiles_y, rest % s.tiles_y * S::M, x * S::M};
}

INLINE int lanes_left(int64_t channels, int64_t block) { return static_cast<int>(smaller(LANES, channels - block * LANES)); }

// --- tiles of frames and states ---

// A map (Y, X, channel) with strides of its own.
struct Map {
    const float* first;
    ptrdiff_t y, x;
};

// One vector of channels of a tile, N×N pixels, zero outside the frame, or its other end; times `factor`, where there is one.
template <class S>
INLINE void read_tile(const Problem& p, const Tile& tile, const Map& map, const float* factor, int count, vec* out) {
    constexpr int N = S::N;
    const int64_t y0 = tile.y - S::BEFORE, x0 = tile.x - S::BEFORE;
    const bool inside = y0 >= 0 && x0 >= 0 && y0 + N <= p.height && x0 + N <= p.width;
    if (inside && factor == nullptr && count == LANES) {
        for (int i = 0; i < N; ++i)
            for (int j = 0; j < N; ++j) out[i * N + j] = load(map.first + (y0 + i) * map.y + (x0 + j) * map.x);
        return;
    }
    for (int i = 0; i < N; ++i) {
        for (int j = 0; j < N; ++j) {
            const int64_t y = y0 + i, x = p.periodic_x ? (x0 + j + N * p.width) % p.width : x0 + j;
            vec value{};
            if (y >= 0 && x >= 0 && y < p.height && x < p.width) {
                value = load(map.first + y * map.y + x * map.x, count);
                if (factor != nullptr) value *= load(factor + (y * p.width + x) * p.hidden, count);
            }
            out[i * N + j] = value;
        }
    }
}

// Where frames are read from: the caller's memory if channels lie together there, else a copy of two steps.
struct Frames {
    const float* first;
    ptrdiff_t b, t, y, x;

    Map at(int64_t sample, int64_t step) const { return {first + sample * b + step * t, y, x}; }
};

// Copies a step of frames with any strides to (B, Y, X, C), of which a thread takes its rows.
void pack(const Problem& p, const float* from, const int64_t* strides, int64_t channels, int64_t step, float* to, Range rows) {
    for (int64_t row = rows.first; row < rows.last; ++row) {
        const int64_t b = row / p.height, y = row % p.height;
        const float* line = from + b * strides[0] + step * strides[1] + y * strides[3];
        float* out = to + row * p.width * channels;
        if (strides[2] == 1) {
            for (int64_t x = 0; x < p.width; ++x) memcpy(out + x * channels, line + x * strides[4], channels * sizeof(float));
        } else {
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t x = 0; x < p.width; ++x) out[x * channels + c] = line[c * strides[2] + x * strides[4]];
        }
    }
}

// The state before a step: null where it is zero.
const float* hidden_before(const Problem& p, int64_t pixels, int64_t b, int64_t t) {
    if (t == 0) return p.h0 == nullptr ? nullptr : p.h0 + b * pixels * p.hidden;
    return p.y + (b * p.steps + t - 1) * pixels * p.hidden;
}

const float* cell_before(const Problem& p, int64_t pixels, int64_t b, int64_t t) {
    if (t == 0) return p.c0 == nullptr ? nullptr : p.c0 + b * pixels * p.hidden;
    return p.c == nullptr ? p.c_last + b * pixels * p.hidden : p.c + (b * (p.steps - 1) + t - 1) * pixels * p.hidden;
}

float* cell_after(const Problem& p, int64_t pixels, int64_t b, int64_t t) {
    if (p.c == nullptr || t + 1 == p.steps) return p.c_last + b * pixels * p.hidden;
    return p.c + (b * (p.steps - 1) + t) * pixels * p.hidden;
}

INLINE vec load_state(const float* before, int64_t at, int count) { return before == nullptr ? vec{} : load(before + at, count); }

// Frame of `hoisted`, which holds the steps of this call alone.
int64_t of_hoisted(const Problem& p, int64_t b, int64_t t) { return b * (p.last - p.first) + t - p.first; }

bool is_used(const Problem& p, int64_t b, int64_t t) { return p.mask == nullptr || p.mask[b * p.steps + t] != 0; }

// V of some tiles: `v` is (P, stride_p apart; tile, row apart).
template <class S>
void transform(const Problem& p, const S& s, const Frames& frames, int64_t t, Range tiles, float* v, ptrdiff_t stride_p) {
    constexpr int P = S::P;
    for (int64_t index = tiles.first; index < tiles.last; ++index, v += s.row) {
        const Tile tile = tile_of(s, index);
        vec pixels[P], points[P];
        if (p.inputs > 0) {
            Map map = frames.at(tile.b, t);
            for (int64_t c = 0; c < p.inputs; c += LANES, map.first += LANES) {
                read_tile<S>(p, tile, map, nullptr, static_cast<int>(smaller(LANES, p.inputs - c)), pixels);
                expand2<typename S::ToPoints>(pixels, points);
                for (int q = 0; q < P; ++q) store(v + q * stride_p + c, points[q]);
            }
        }
        Map map{hidden_before(p, s.pixels, tile.b, t), p.width * p.hidden, p.hidden};
        if (map.first == nullptr) {
            for (int q = 0; q < P; ++q) memset(v + q * stride_p + p.inputs, 0, (s.row - p.inputs) * sizeof(float));
            continue;
        }
        const float* factor = p.h_mask == nullptr ? nullptr : p.h_mask + tile.b * s.pixels * p.hidden;
        for (int64_t f = 0; f < p.hidden; f += LANES, map.first += LANES) {
            read_tile<S>(p, tile, map, factor == nullptr ? nullptr : factor + f,
                         static_cast<int>(smaller(LANES, p.hidden - f)), pixels);
            expand2<typename S::ToPoints>(pixels, points);
            for (int q = 0; q < P; ++q) store(v + q * stride_p + p.inputs + f, points[q]);
        }
    }
}

// --- pre-activations and gates ---

// One block of channels of V U, for some tiles: `m` is (P, tile, 4·LANES).
template <class S>
void multiply(const Problem& p, const S& s, int64_t t, int64_t block, int64_t tiles, const float* v, ptrdiff_t stride_p, float* m) {
    const int64_t panel = s.channels * 4 * LANES;
    const bool only_inputs = t == 0 && p.h0 == nullptr && p.inputs > 0;
    for (int q = 0; q < S::P; ++q)
        product<false>(tiles, 4, v + q * stride_p, s.row, 1, p.u + (q * s.blocks + block) * panel, 4 * LANES,
                       m + q * tiles * 4 * LANES, 4 * LANES, only_inputs ? p.inputs : s.channels);
}

// Pre-activations of one tile and block of channels, (gate, M²), from its products, without peepholes.
template <class S>
INLINE void from_products(const Problem& p, const S& s, const Tile& tile, int64_t t, int64_t block, const float* m,
                          ptrdiff_t stride_p, vec* z) {
    constexpr int M = S::M, P = S::P;
    const int count = lanes_left(p.hidden, block);
    for (int gate = 0; gate < 4; ++gate) {
        vec points[P];
        for (int q = 0; q < P; ++q) points[q] = load(m + q * stride_p + gate * LANES);
        vec* own = z + gate * M * M;
        reduce2<typename S::FromPoints>(points, own);
        if (p.bias != nullptr) {
            const vec bias = load(p.bias + gate * p.hidden + block * LANES, count);
            for (int k = 0; k < M * M; ++k) own[k] += bias;
        }
        if (p.hoisted == nullptr) continue;
        for (int i = 0; i < M && tile.y + i < p.height; ++i)
            for (int j = 0; j < M && tile.x + j < p.width; ++j) {
                const int64_t pixel = of_hoisted(p, tile.b, t) * s.pixels + (tile.y + i) * p.width + tile.x + j;
                own[i * M + j] += load(p.hoisted + (pixel * 4 + gate) * p.hidden + block * LANES, count);
            }
    }
}

struct Peepholes {
    vec i, f, o;
};

INLINE Peepholes peepholes_at(const Problem& p, int64_t pixel, int64_t f, int count) {
    const float* first = p.peephole + (p.peephole_pixels == 1 ? 0 : pixel) * 3 * p.hidden + f;
    return {load(first, count), load(first + p.hidden, count), load(first + 2 * p.hidden, count)};
}

template <bool USUAL>
INLINE vec rho(const Problem& p, vec z) {
    return USUAL ? sigmoid(z) : activated(p.recurrent_activation, z);
}
template <bool USUAL>
INLINE vec phi(const Problem& p, vec z) {
    return USUAL ? tangent(z) : activated(p.activation, z);
}

// The state after a step, of one tile and block of channels.
template <class S, bool USUAL>
void update_state(const Problem& p, const S& s, const Tile& tile, int64_t t, int64_t block, const vec* z) {
    constexpr int M = S::M;
    const int count = lanes_left(p.hidden, block);
    const bool used = is_used(p, tile.b, t);
    const float *h_before = hidden_before(p, s.pixels, tile.b, t), *c_before = cell_before(p, s.pixels, tile.b, t);
    float* h_out = p.y + (tile.b * p.steps + t) * s.pixels * p.hidden + block * LANES;
    float* c_out = cell_after(p, s.pixels, tile.b, t) + block * LANES;
    float* kept = p.z == nullptr ? nullptr : p.z + (tile.b * p.steps + t) * s.pixels * s.columns + block * 4 * LANES;
    for (int i = 0; i < M && tile.y + i < p.height; ++i)
        for (int j = 0; j < M && tile.x + j < p.width; ++j) {
            const int64_t pixel = (tile.y + i) * p.width + tile.x + j, at = pixel * p.hidden;
            const vec c_old = load_state(c_before, block * LANES + at, count);
            if (!used) {
                store(c_out + at, c_old, count);
                store(h_out + at, load_state(h_before, block * LANES + at, count), count);
                continue;
            }
            const int k = i * M + j;
            vec z_i = z[k], z_f = z[M * M + k], z_g = z[2 * M * M + k], z_o = z[3 * M * M + k];
            if (kept != nullptr) {
                float* to = kept + pixel * s.columns;
                store(to, z_i), store(to + LANES, z_f), store(to + 2 * LANES, z_g), store(to + 3 * LANES, z_o);
            }
            Peepholes w{};
            if (p.peephole != nullptr) {
                w = peepholes_at(p, pixel, block * LANES, count);
                z_i += w.i * c_old, z_f += w.f * c_old;
            }
            const vec c_new = rho<USUAL>(p, z_f) * c_old + rho<USUAL>(p, z_i) * phi<USUAL>(p, z_g);
            if (p.peephole != nullptr) z_o += w.o * c_new;
            store(c_out + at, c_new, count);
            store(h_out + at, rho<USUAL>(p, z_o) * phi<USUAL>(p, c_new), count);
        }
}

bool is_usual(const Problem& p) { return p.activation == TANH && p.recurrent_activation == SIGMOID; }

// --- forward ---

template <class S>
struct Run {
    const Problem& p;
    const S s;
    const bool packs;  // frames are copied, since their channels do not lie together
    float* packed;     // two steps
    float* scratch;    // of each thread
    int64_t numbers;   // in it

    Frames frames() const {
        if (packs) return {packed, s.pixels * p.inputs, 0, p.width * p.inputs, p.inputs};
        return {p.x, p.x_strides[0], p.x_strides[1], p.x_strides[3], p.x_strides[4]};
    }
    float* packed_step(int64_t t) const { return packed + t % 2 * p.batch * s.pixels * p.inputs; }
    // Frames of a step that was packed.
    Frames frames_of(int64_t t) const {
        Frames found = frames();
        if (packs) found.first = packed_step(t);
        return found;
    }
    void pack_step(int64_t t, int number, int members) const {
        if (packs) pack(p, p.x, p.x_strides, p.inputs, t, packed_step(t), share(p.batch * p.height, number, members));
    }
};

bool packs_frames(const Problem& p) { return p.inputs > 0 && p.x_strides[2] != 1; }

template <class S, bool USUAL>
void forward_steps(const Run<S>& run, int number, int members, Barrier& barrier) {
    const Problem& p = run.p;
    const S& s = run.s;
    const Range own = share(s.tiles, number, members);
    const int64_t tiles = s.at_once(s.row + 4 * LANES);
    float* v = run.scratch + number * run.numbers;
    float* m = v + S::P * tiles * s.row;
    run.pack_step(p.first, number, members);
    barrier.wait();
    for (int64_t t = p.first; t < p.last; ++t) {
        if (t + 1 < p.last) run.pack_step(t + 1, number, members);
        for (int64_t first = own.first; first < own.last; first += tiles) {
            const Range some{first, smaller(first + tiles, own.last)};
            const int64_t count = some.last - some.first;
            transform(p, s, run.frames_of(t), t, some, v, tiles * s.row);
            for (int64_t block = 0; block < s.blocks; ++block) {
                multiply(p, s, t, block, count, v, tiles * s.row, m);
                for (int64_t k = 0; k < count; ++k) {
                    const Tile tile = tile_of(s, first + k);
                    vec z[4 * S::M * S::M];
                    from_products(p, s, tile, t, block, m + k * 4 * LANES, count * 4 * LANES, z);
                    update_state<S, USUAL>(p, s, tile, t, block, z);
                }
            }
        }
        barrier.wait();
    }
}

template <class S>
struct Forward {
    static int64_t of(const Problem& p) {
        const S s(p);
        const int64_t tiles = s.at_once(s.row + 4 * LANES), numbers = rounded_up(S::P * tiles * (s.row + 4 * LANES), 1024);
        Scratch scratch(p.threads * numbers), packed(packs_frames(p) ? 2 * p.batch * s.pixels * p.inputs : 0);
        if (scratch.pointer() == nullptr || packed.pointer() == nullptr) return 1;
        Run<S> run{p, s, packs_frames(p), packed.pointer(), scratch.pointer(), numbers};
        run_team(
            p,
            [](void* data, int number, int members, Barrier& barrier) {
                const Run<S>& run = *static_cast<Run<S>*>(data);
                (is_usual(run.p) ? forward_steps<S, true> : forward_steps<S, false>)(run, number, members, barrier);
            },
            &run);
        return 0;
    }
};

// --- backward ---

template <class S>
struct Backward {
    // d_h of each pixel is gathered from (tile, N², row_d) patches of the step after.
    struct Whole {
        Run<S> run;
        int64_t row_d;      // channels of a patch
        int64_t waiting;    // tiles of V and dM that are kept for dU
        float *patches, *v, *d_m;
        float* partial;     // of each thread: gradients of bias and peepholes
        int64_t partial_numbers;
    };

    // Gradient of pixels' channels from the patches of the tiles that read them.
    static INLINE vec gathered(const S& s, const Whole& w, int64_t b, int64_t y, int64_t x, int64_t channel) {
        constexpr int N = S::N, M = S::M;
        const int64_t down = y + S::BEFORE, right = x + S::BEFORE;
        const int64_t first_y = down < N ? 0 : (down - N) / M + 1, first_x = right < N ? 0 : (right - N) / M + 1;
        const int64_t last_y = smaller(down / M, s.tiles_y - 1), last_x = smaller(right / M, s.tiles_x - 1);
        vec sum{};
        for (int64_t i = first_y; i <= last_y; ++i)
            for (int64_t j = first_x; j <= last_x; ++j) {
                const int64_t tile = (b * s.tiles_y + i) * s.tiles_x + j;
                sum += load(w.patches + ((tile * N + down - i * M) * N + right - j * M) * w.row_d + channel);
            }
        return sum;
    }

    // The same, of a pixel that tiles at the other end of the row may have read as well.
    static INLINE vec gathered_around(const Problem& p, const S& s, const Whole& w, int64_t b, int64_t y, int64_t x, int64_t channel) {
        vec sum = gathered(s, w, b, y, x, channel);
        if (p.periodic_x && x < S::BEFORE) sum += gathered(s, w, b, y, x + p.width, channel);
        if (p.periodic_x && x >= p.width - S::BEFORE) sum += gathered(s, w, b, y, x - p.width, channel);
        return sum;
    }

    // Gradients of h before step t and of x in it, from the patches of step t. d_h comes to hold the gradient of that h.
    static void gather_rows(const Whole& w, int64_t t, Range rows) {
        const Problem& p = w.run.p;
        const S& s = w.run.s;
        for (int64_t row = rows.first; row < rows.last; ++row) {
            const int64_t b = row / p.height, y = row % p.height;
            const bool used = is_used(p, b, t);
            for (int64_t x = 0; x < p.width; ++x) {
                const int64_t pixel = row * p.width + x;
                if (p.d_x != nullptr && p.inputs > 0) {
                    float* to = p.d_x + b * p.d_x_strides[0] + t * p.d_x_strides[1] + y * p.d_x_strides[3] + x * p.d_x_strides[4];
                    for (int64_t c = 0; c < p.inputs; c += LANES)
                        scatter(to + c * p.d_x_strides[2], p.d_x_strides[2],
                                used ? gathered_around(p, s, w, b, y, x, c) : vec{}, static_cast<int>(smaller(LANES, p.inputs - c)));
                }
                if (!used) continue;  // its gradient goes on to the step before as it is
                for (int64_t f = 0; f < p.hidden; f += LANES) {
                    const int count = static_cast<int>(smaller(LANES, p.hidden - f));
                    vec d_h = gathered_around(p, s, w, b, y, x, rounded_up(p.inputs, LANES) + f);
                    if (p.h_mask != nullptr) d_h *= load(p.h_mask + pixel * p.hidden + f, count);
                    store(p.d_h + pixel * p.hidden + f, d_h, count);
                }
            }
        }
    }

    static void add_d_y(const Problem& p, int64_t t, Range rows) {
        if (p.d_y == nullptr) return;
        const int64_t* strides = p.d_y_strides;
        for (int64_t row = rows.first; row < rows.last; ++row) {
            const float* line = p.d_y + row / p.height * strides[0] + t * strides[1] + row % p.height * strides[3];
            float* to = p.d_h + row * p.width * p.hidden;
            if (strides[2] == 1) {
                for (int64_t x = 0; x < p.width; ++x)
                    for (int64_t f = 0; f < p.hidden; ++f) to[x * p.hidden + f] += line[x * strides[4] + f];
            } else {
                for (int64_t f = 0; f < p.hidden; ++f)
                    for (int64_t x = 0; x < p.width; ++x) to[x * p.hidden + f] += line[f * strides[2] + x * strides[4]];
            }
        }
    }

    // Pre-activations that the forward kept.
    static INLINE void kept(const Problem& p, const S& s, const Tile& tile, int64_t t, int64_t block, vec* z) {
        constexpr int M = S::M;
        const float* from = p.z + (tile.b * p.steps + t) * s.pixels * s.columns + block * 4 * LANES;
        for (int i = 0; i < M && tile.y + i < p.height; ++i)
            for (int j = 0; j < M && tile.x + j < p.width; ++j)
                for (int gate = 0; gate < 4; ++gate)
                    z[(gate * M + i) * M + j] =
                        load(from + ((tile.y + i) * p.width + tile.x + j) * s.columns + gate * LANES);
    }

    // Gradients of pre-activations, which take the place of `z`, and of c and peepholes, of one tile and block of channels.
    template <bool USUAL>
    static void through_gates(const Problem& p, const S& s, const Tile& tile, int64_t t, int64_t block, vec* z, float* d_bias,
                              float* d_peephole) {
        constexpr int M = S::M;
        const int count = lanes_left(p.hidden, block);
        const bool used = is_used(p, tile.b, t);
        const int64_t kind = USUAL ? int64_t{TANH} : p.activation, recurrent_kind = USUAL ? int64_t{SIGMOID} : p.recurrent_activation;
        const float* c_before = cell_before(p, s.pixels, tile.b, t);
        vec sums[4] = {};
        Peepholes d_w{};
        for (int i = 0; i < M; ++i)
            for (int j = 0; j < M; ++j) {
                const int k = i * M + j;
                vec *z_i = z + k, *z_f = z + M * M + k, *z_g = z + 2 * M * M + k, *z_o = z + 3 * M * M + k;
                if (!used || tile.y + i >= p.height || tile.x + j >= p.width) {
                    *z_i = *z_f = *z_g = *z_o = vec{};
                    continue;
                }
                const int64_t pixel = (tile.y + i) * p.width + tile.x + j, at = pixel * p.hidden;
                const int64_t in_sample = tile.b * s.pixels * p.hidden + block * LANES + at;
                const vec c_old = load_state(c_before, block * LANES + at, count);
                const vec d_h = load(p.d_h + in_sample, count);
                vec d_c = load(p.d_c + in_sample, count);
                Peepholes w{};
                if (p.peephole != nullptr) {
                    w = peepholes_at(p, pixel, block * LANES, count);
                    *z_i += w.i * c_old, *z_f += w.f * c_old;
                }
                const vec gate_i = rho<USUAL>(p, *z_i), gate_f = rho<USUAL>(p, *z_f), g = phi<USUAL>(p, *z_g);
                const vec c = gate_f * c_old + gate_i * g;
                if (p.peephole != nullptr) *z_o += w.o * c;
                const vec gate_o = rho<USUAL>(p, *z_o), shown = phi<USUAL>(p, c);
                const vec d_o = d_h * shown * slope(recurrent_kind, *z_o, gate_o);
                d_c += d_h * gate_o * slope(kind, c, shown) + w.o * d_o;
                const vec d_i = d_c * g * slope(recurrent_kind, *z_i, gate_i);
                const vec d_f = d_c * c_old * slope(recurrent_kind, *z_f, gate_f);
                const vec d_g = d_c * gate_i * slope(kind, *z_g, g);
                store(p.d_c + in_sample, d_c * gate_f + w.i * d_i + w.f * d_f, count);
                *z_i = d_i, *z_f = d_f, *z_g = d_g, *z_o = d_o;
                sums[0] += d_i, sums[1] += d_f, sums[2] += d_g, sums[3] += d_o;
                if (d_peephole != nullptr) {
                    const Peepholes add{d_i * c_old, d_f * c_old, d_o * c};
                    if (p.peephole_pixels == 1) {
                        d_w.i += add.i, d_w.f += add.f, d_w.o += add.o;
                    } else {
                        add_peepholes(d_peephole + pixel * 3 * p.hidden + block * LANES, p.hidden, add, count);
                    }
                }
                if (p.d_hoisted != nullptr) {
                    float* to = p.d_hoisted + (of_hoisted(p, tile.b, t) * s.pixels + pixel) * 4 * p.hidden + block * LANES;
                    for (int gate = 0; gate < 4; ++gate) store(to + gate * p.hidden, z[gate * M * M + k], count);
                }
            }
        if (!used && p.d_hoisted != nullptr) {
            for (int i = 0; i < M && tile.y + i < p.height; ++i)
                for (int j = 0; j < M && tile.x + j < p.width; ++j) {
                    const int64_t pixel = of_hoisted(p, tile.b, t) * s.pixels + (tile.y + i) * p.width + tile.x + j;
                    for (int gate = 0; gate < 4; ++gate)
                        store(p.d_hoisted + (pixel * 4 + gate) * p.hidden + block * LANES, vec{}, count);
                }
        }
        if (d_bias != nullptr)
            for (int gate = 0; gate < 4; ++gate) {
                float* to = d_bias + (block * 4 + gate) * LANES;
                store(to, load(to) + sums[gate]);
            }
        if (d_peephole != nullptr && p.peephole_pixels == 1) add_peepholes(d_peephole + block * LANES, p.hidden, d_w, count);
    }

    static INLINE void add_peepholes(float* to, int64_t stride, const Peepholes& add, int count) {
        store(to, load(to, count) + add.i, count);
        store(to + stride, load(to + stride, count) + add.f, count);
        store(to + 2 * stride, load(to + 2 * stride, count) + add.o, count);
    }

    // dV of some tiles (P, tile, row_d) and their patches. Columns of x and of h are padded apart.
    static void to_patches(const Whole& w, int64_t first, int64_t count, int64_t at, float* d_v) {
        const Problem& p = w.run.p;
        const S& s = w.run.s;
        constexpr int P = S::P;
        const int64_t begin = p.d_x == nullptr ? p.inputs / (4 * LANES) * 4 * LANES : 0;  // columns of x are not asked for
        for (int q = 0; q < P; ++q)
            for (int64_t c = begin; c < w.row_d; c += 4 * LANES) {
                const int64_t width = smaller(4, (w.row_d - c) / LANES);
                for (int64_t block = 0; block < s.blocks; ++block) {
                    const float* d_m = w.d_m + ((q * s.blocks + block) * w.waiting + at) * 4 * LANES;
                    const float* u = p.u_transposed + q * s.columns * w.row_d + s.columns * c + block * 4 * LANES * width * LANES;
                    float* to = d_v + q * count * w.row_d + c;
                    (block == 0 ? product<false> : product<true>)(count, width, d_m, 4 * LANES, 1, u, width * LANES, to, w.row_d,
                                                                   4 * LANES);
                }
            }
        for (int64_t k = 0; k < count; ++k) {
            float* patch = w.patches + (first + k) * P * w.row_d;
            for (int64_t c = begin; c < w.row_d; c += LANES) {
                vec points[P], pixels[P];
                for (int q = 0; q < P; ++q) points[q] = load(d_v + (q * count + k) * w.row_d + c);
                reduce2<typename S::ToPoints>(points, pixels);
                for (int q = 0; q < P; ++q) store(patch + q * w.row_d + c, pixels[q]);
            }
        }
    }

    template <bool USUAL>
    static void tiles_backward(const Whole& w, int64_t t, Range some, int64_t at, float* scratch, float* d_bias, float* d_peephole) {
        const Problem& p = w.run.p;
        const S& s = w.run.s;
        constexpr int M = S::M, P = S::P;
        const int64_t count = some.last - some.first;
        const bool computes = p.z == nullptr;
        float* v = w.v + at * s.row;
        if (computes || p.d_u != nullptr) transform(p, s, w.run.frames_of(t), t, some, v, w.waiting * s.row);
        for (int64_t block = 0; block < s.blocks; ++block) {
            if (computes) multiply(p, s, t, block, count, v, w.waiting * s.row, scratch);
            for (int64_t k = 0; k < count; ++k) {
                const Tile tile = tile_of(s, some.first + k);
                vec z[4 * M * M], points[P];
                if (computes)
                    from_products(p, s, tile, t, block, scratch + k * 4 * LANES, count * 4 * LANES, z);
                else
                    kept(p, s, tile, t, block, z);
                through_gates<USUAL>(p, s, tile, t, block, z, d_bias, d_peephole);
                float* to = w.d_m + (block * w.waiting + at + k) * 4 * LANES;
                for (int gate = 0; gate < 4; ++gate) {
                    expand2<typename S::FromPoints>(z + gate * M * M, points);
                    for (int q = 0; q < P; ++q) store(to + q * w.waiting * s.columns + gate * LANES, points[q]);
                }
            }
        }
        to_patches(w, some.first, count, at, scratch);
    }

    // dU += Vᵀ dM over the tiles that wait, for some points.
    static void to_d_u(const Whole& w, int64_t tiles, Range points) {
        const Problem& p = w.run.p;
        const S& s = w.run.s;
        for (int64_t q = points.first; q < points.last; ++q)
            for (int64_t block = 0; block < s.blocks; ++block)
                product<true>(s.channels, 4, w.v + q * w.waiting * s.row, 1, s.row,
                              w.d_m + (q * s.blocks + block) * w.waiting * 4 * LANES, 4 * LANES,
                              p.d_u + (q * s.blocks + block) * s.channels * 4 * LANES, 4 * LANES, tiles);
    }

    template <bool USUAL>
    static void steps(const Whole& w, int number, int members, Barrier& barrier) {
        const Problem& p = w.run.p;
        const S& s = w.run.s;
        const Range rows = share(p.batch * p.height, number, members), points = share(S::P, number, members);
        const int64_t at_once = s.at_once(larger(w.row_d, 4 * LANES) + s.row);
        float* scratch = w.run.scratch + number * w.run.numbers;
        float* d_bias = w.partial + number * w.partial_numbers;
        float* d_peephole = p.d_peephole == nullptr ? nullptr : d_bias + s.columns;
        memset(d_bias, 0, w.partial_numbers * sizeof(float));
        int64_t waiting = 0;
        w.run.pack_step(p.last - 1, number, members);
        for (int64_t t = p.last - 1; t >= p.first; --t) {
            if (t + 1 < p.last) gather_rows(w, t + 1, rows);
            add_d_y(p, t, rows);
            if (t > p.first) w.run.pack_step(t - 1, number, members);
            barrier.wait();
            for (int64_t first = 0; first < s.tiles;) {
                const int64_t now = smaller(s.tiles - first, w.waiting - waiting);
                const Range own = share(now, number, members);
                for (int64_t k = own.first; k < own.last; k += at_once) {
                    const int64_t count = smaller(at_once, own.last - k);
                    tiles_backward<USUAL>(w, t, {first + k, first + k + count}, waiting + k, scratch, d_bias, d_peephole);
                }
                first += now;
                waiting += now;
                barrier.wait();
                if (waiting == w.waiting || (t == p.first && first == s.tiles)) {
                    if (p.d_u != nullptr) {
                        to_d_u(w, waiting, points);
                        barrier.wait();
                    }
                    waiting = 0;
                }
            }
        }
        gather_rows(w, p.first, rows);
        if (number == 0) sum_partials(w, members);
    }

    static void sum_partials(const Whole& w, int members) {
        const Problem& p = w.run.p;
        const S& s = w.run.s;
        for (int member = 0; member < members; ++member) {
            const float* from = w.partial + member * w.partial_numbers;
            if (p.d_bias != nullptr)
                for (int64_t gate = 0; gate < 4; ++gate)
                    for (int64_t f = 0; f < p.hidden; ++f)
                        p.d_bias[gate * p.hidden + f] += from[(f / LANES * 4 + gate) * LANES + f % LANES];
            if (p.d_peephole != nullptr)
                for (int64_t k = 0; k < p.peephole_pixels * 3 * p.hidden; ++k) p.d_peephole[k] += from[s.columns + k];
        }
    }

    static int64_t of(const Problem& p) {
        const S s(p);
        const int64_t row_d = rounded_up(p.inputs, LANES) + s.blocks * LANES;
        const int64_t at_once = s.at_once(larger(row_d, 4 * LANES) + s.row);
        const int64_t fits = static_cast<int64_t>(KEPT / (sizeof(float) * S::P * (s.row + s.columns)));
        const int64_t waiting = smaller(larger(fits, at_once * p.threads), s.tiles * (p.last - p.first));
        const int64_t numbers = rounded_up(S::P * at_once * larger(row_d, 4 * LANES), 1024);
        const int64_t partial = rounded_up(s.columns + (p.d_peephole == nullptr ? 0 : p.peephole_pixels * 3 * p.hidden) + LANES, 1024);
        Scratch scratch(p.threads * numbers), packed(packs_frames(p) ? 2 * p.batch * s.pixels * p.inputs : 0);
        Scratch patches(s.tiles * S::P * row_d), v(S::P * waiting * s.row), d_m(S::P * waiting * s.columns), partials(p.threads * partial);
        const Scratch* all[] = {&scratch, &packed, &patches, &v, &d_m, &partials};
        for (const Scratch* each : all)
            if (each->pointer() == nullptr) return 1;
        Whole whole{{p, s, packs_frames(p), packed.pointer(), scratch.pointer(), numbers},
                    row_d,
                    waiting,
                    patches.pointer(),
                    v.pointer(),
                    d_m.pointer(),
                    partials.pointer(),
                    partial};
        run_team(
            p,
            [](void* data, int number, int members, Barrier& barrier) {
                const Whole& whole = *static_cast<Whole*>(data);
                (is_usual(whole.run.p) ? steps<true> : steps<false>)(whole, number, members, barrier);
            },
            &whole);
        return 0;
    }
};

// --- kernels to the Winograd domain and back ---

// The kernel of a channel of the input or of h: where its (gate·F + f, …) begins, and how far gates are apart.
struct Kernels {
    float *ih, *hh;
    int64_t inputs, hidden, taps;

    float* at(int64_t channel, ptrdiff_t* stride) const {
        const bool is_input = channel < inputs;
        *stride = (is_input ? inputs : hidden) * taps;
        return is_input ? ih + channel * taps : hh + (channel - inputs) * taps;
    }
};

template <class S>
struct Weights {
    static int64_t of(const Problem& p) {
        Problem problem = p;
        run_team(
            p,
            [](void* data, int number, int members, Barrier&) {
                const Problem& p = *static_cast<Problem*>(data);
                const S s(p);
                const Range channels = share(s.channels, number, members);
                for (int64_t k = channels.first; k < channels.last; ++k) one_channel(p, s, k);
            },
            &problem);
        return 0;
    }

    static void one_channel(const Problem& p, const S& s, int64_t k) {
        constexpr int R = S::R, P = S::P;
        const Kernels kernels{const_cast<float*>(p.weight_ih), const_cast<float*>(p.weight_hh), p.inputs, p.hidden, R * R};
        const int64_t row_d = rounded_up(p.inputs, LANES) + s.blocks * LANES;
        const int64_t k_d = k < p.inputs ? k : rounded_up(p.inputs, LANES) + k - p.inputs;
        const int64_t group = k_d / (4 * LANES) * 4 * LANES, width = smaller(4 * LANES, row_d - group);
        const int64_t first_d = group * s.columns + k_d - group;
        ptrdiff_t stride;
        const float* first = kernels.at(k, &stride);
        for (int64_t block = 0; block < s.blocks; ++block)
            for (int gate = 0; gate < 4; ++gate) {
                vec taps[R * R], points[P];
                const float* from = first + (gate * p.hidden + block * LANES) * stride;
                for (int tap = 0; tap < R * R; ++tap) taps[tap] = gather(from + tap, stride, lanes_left(p.hidden, block));
                expand2<typename S::Kernel>(taps, points);
                for (int q = 0; q < P; ++q) {
                    if (p.u != nullptr)
                        store(p.u + ((q * s.blocks + block) * s.channels + k) * 4 * LANES + gate * LANES, points[q]);
                    if (p.u_transposed != nullptr)
                        scatter(p.u_transposed + q * s.columns * row_d + first_d + (block * 4 + gate) * LANES * width, width,
                                points[q], LANES);
                }
            }
    }
};

template <class S>
struct DWeights {
    static int64_t of(const Problem& p) {
        Problem problem = p;
        run_team(
            p,
            [](void* data, int number, int members, Barrier&) {
                const Problem& p = *static_cast<Problem*>(data);
                const S s(p);
                const Range channels = share(s.channels, number, members);
                for (int64_t k = channels.first; k < channels.last; ++k) one_channel(p, s, k);
            },
            &problem);
        return 0;
    }

    static void one_channel(const Problem& p, const S& s, int64_t k) {
        constexpr int R = S::R, P = S::P;
        const Kernels kernels{p.d_weight_ih, p.d_weight_hh, p.inputs, p.hidden, R * R};
        ptrdiff_t stride;
        float* first = kernels.at(k, &stride);
        if ((k < p.inputs ? p.d_weight_ih : p.d_weight_hh) == nullptr) return;
        for (int64_t block = 0; block < s.blocks; ++block)
            for (int gate = 0; gate < 4; ++gate) {
                vec taps[R * R], points[P];
                for (int q = 0; q < P; ++q)
                    points[q] = load(p.d_u + ((q * s.blocks + block) * s.channels + k) * 4 * LANES + gate * LANES);
                reduce2<typename S::Kernel>(points, taps);
                float* to = first + (gate * p.hidden + block * LANES) * stride;
                for (int tap = 0; tap < R * R; ++tap) scatter(to + tap, stride, taps[tap], lanes_left(p.hidden, block));
            }
    }
};

template <template <class> class Function>
int64_t dispatched(const Problem& p) {
    return p.kernel == 3 ? Function<Shape<6, 3>>::of(p) : Function<Shape<8, 5>>::of(p);
}

}  // namespace

int64_t weights(const Problem& p) { return dispatched<Weights>(p); }
int64_t forward(const Problem& p) { return dispatched<Forward>(p); }
int64_t backward(const Problem& p) { return dispatched<Backward>(p); }
int64_t d_weights(const Problem& p) { return dispatched<DWeights>(p); }

}  // namespace STORMCELL_ISA
