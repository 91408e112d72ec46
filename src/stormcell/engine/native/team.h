// Threads and scratch memory: compiled once and without special instructions, so that no code of the standard library is
// instantiated in files that older processors cannot run.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include "winograd.h"

// Threads wait for each other. Waiting spins shortly and then gives the core away: a core may belong to somebody else.
class Barrier {
   public:
    void wait();
    int members = 1;  // set before anybody waits

   private:
    int32_t arrived_ = 0, round_ = 0;
};

// Calls work(data, number, barrier) in each of `count` threads; the caller's own functions run them where there are some.
void run_team(const stormcell_problem& problem, void (*work)(void* data, int number, int count, Barrier& barrier), void* data);

// Memory for one call, aligned to a cache line; pointer() is NULL if there is none left.
class Scratch {
   public:
    explicit Scratch(size_t numbers);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    float* pointer() const { return pointer_; }

   private:
    float* pointer_;
};
