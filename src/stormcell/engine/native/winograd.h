// The plain C interface of the Winograd engine: pointers and sizes, nothing of PyTorch. engine/winograd.py mirrors this struct.
//
// All arrays are float32. Frames and states are channels-last: (B, T, Y, X, F), without gaps unless strides are given.
// Pre-activations have columns [block of channels][gate i f g o][lane], padded to whole vectors; rows of u_transposed
// have the channels of x and then those of h, each padded so.
// Nothing aliases: outputs overlap neither inputs nor each other. The caller owns all memory; scratch lives for one call.

#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define STORMCELL_API __declspec(dllexport)
#else
#define STORMCELL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Runs `work(data)` once in each thread of a team of up to `threads`; how, is the caller's choice (torch's own OpenMP, so that
// no second pool of threads fights with it). The functions tell number and count of the thread within. NULL: std::thread.
typedef void (*stormcell_parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
typedef int (*stormcell_query)(void);

struct stormcell_problem {
    int64_t batch, steps, height, width;
    int64_t first, last;  // steps to compute: those before are there already, or (backward) those from `last` on are done
    int64_t inputs;  // channels that go through the recurrent convolution's geometry; 0: none, or `hoisted`
    int64_t hidden;
    int64_t kernel;  // 3 or 5
    int64_t points;  // a tile's edge in the Winograd domain: 6 for kernels of 3, 8 for 5; it computes 4×4 outputs
    int64_t activation, recurrent_activation;  // by place in the list of winograd.py
    int64_t periodic_x;  // 1: what lies beyond an end of a row is its other end, and not zeros
    int64_t threads;
    int64_t isa;  // 0 plain, 1 AVX2, 2 AVX-512

    stormcell_parallel parallel;
    stormcell_query thread_number, thread_count;

    const float* weight_ih;  // (4F, C, k, k), gates i f g o
    const float* weight_hh;  // (4F, F, k, k)
    float* u;                // (points², C + F, columns): the kernels in the Winograd domain
    float* u_transposed;     // (points², columns, rows), rows in groups of four vectors: for the backward

    const float* x;  // inputs
    int64_t x_strides[5];  // of b, t, channel, y, x, in numbers
    const float* hoisted;  // (B, last - first, Y, X, 4F), gates i f g o, or NULL: what the input adds to the pre-activations
    const float* h0;       // (B, Y, X, F), or NULL: zeros
    const float* c0;
    const float* bias;      // (4F), or NULL
    const float* peephole;  // (1 or Y·X, 3, F), or NULL
    int64_t peephole_pixels;  // 1 or Y·X
    const uint8_t* mask;    // (B, T), 0: the state is kept; or NULL
    const float* h_mask;    // (B, Y, X, F), by which h is multiplied before its convolution; or NULL

    float* y;        // (B, T, Y, X, F)
    float* c;        // (B, T - 1, Y, X, F), after all steps but the last; or NULL: only c_last
    float* c_last;   // (B, Y, X, F)
    float* z;        // (B, T, Y·X, columns), pre-activations without peepholes; or NULL: the backward computes them anew

    const float* d_y;  // (B, T, F, Y, X) by strides, or NULL
    int64_t d_y_strides[5];
    float* d_h;  // (B, Y, X, F): in, gradient of h after `last` besides d_y; out, gradient of h before `first`
    float* d_c;  // the same of c
    float* d_u;  // (points², C + F, columns): the gradient is added to it; or NULL
    float* d_x;  // inputs, or NULL
    int64_t d_x_strides[5];
    float* d_hoisted;   // as hoisted, or NULL
    float* d_bias;      // (4F), is added to; or NULL
    float* d_peephole;  // as peephole, is added to; or NULL
    float* d_weight_ih;  // as weight_ih, is written from d_u; or NULL
    float* d_weight_hh;
};

// The best instruction set that this processor has.
STORMCELL_API int64_t stormcell_isa(void);

// Each returns 0, or 1 if memory ran out.
STORMCELL_API int64_t stormcell_weights(const struct stormcell_problem*);    // weight → u, u_transposed
STORMCELL_API int64_t stormcell_forward(const struct stormcell_problem*);    // → y, c, c_last, z
STORMCELL_API int64_t stormcell_backward(const struct stormcell_problem*);   // y, c, z → d_…
STORMCELL_API int64_t stormcell_d_weights(const struct stormcell_problem*);  // d_u → d_weight_ih, d_weight_hh

#ifdef __cplusplus
}
#endif
