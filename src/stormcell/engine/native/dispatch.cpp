// Chooses the instruction set at run time: the same source, winograd.cpp, is compiled once for each.

#include "winograd.h"

#define STORMCELL_DECLARE(ISA)                                           \
    namespace ISA {                                                      \
    int64_t weights(const stormcell_problem&);                           \
    int64_t forward(const stormcell_problem&);                           \
    int64_t backward(const stormcell_problem&);                          \
    int64_t d_weights(const stormcell_problem&);                         \
    }

STORMCELL_DECLARE(plain)
#ifdef STORMCELL_X86
STORMCELL_DECLARE(avx2)
STORMCELL_DECLARE(avx512)
#define STORMCELL_CALL(FUNCTION)                   \
    switch (problem->isa) {                        \
        case 2: return avx512::FUNCTION(*problem); \
        case 1: return avx2::FUNCTION(*problem);   \
        default: return plain::FUNCTION(*problem); \
    }
#else
#define STORMCELL_CALL(FUNCTION) return plain::FUNCTION(*problem);
#endif

int64_t stormcell_isa(void) {
#ifdef STORMCELL_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

int64_t stormcell_weights(const stormcell_problem* problem) { STORMCELL_CALL(weights) }
int64_t stormcell_forward(const stormcell_problem* problem) { STORMCELL_CALL(forward) }
int64_t stormcell_backward(const stormcell_problem* problem) { STORMCELL_CALL(backward) }
int64_t stormcell_d_weights(const stormcell_problem* problem) { STORMCELL_CALL(d_weights) }
