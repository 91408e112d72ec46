#include "team.h"

#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr int SPINS = 4000;  // some ten microseconds: steps end nearly together

struct Work {
    void (*work)(void*, int, int, Barrier&);
    void* data;
    stormcell_query number, count;
    Barrier barrier;
    int32_t begun = 0;  // the size of the team is known
};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void begin(Work& team, int count) {
    team.barrier.members = count;
    __atomic_store_n(&team.begun, 1, __ATOMIC_RELEASE);
}

void take_part(Work& team, int number) {
    while (!__atomic_load_n(&team.begun, __ATOMIC_ACQUIRE)) std::this_thread::yield();
    team.work(team.data, number, team.barrier.members, team.barrier);
}

// Runs in a thread of the caller's team, whose size is known only here: it may be smaller than was asked for.
void in_team(void* given) {
    Work& team = *static_cast<Work*>(given);
    const int number = team.number();
    if (number == 0) begin(team, team.count());
    take_part(team, number);
}

}  // namespace

void Barrier::wait() {
    if (members == 1) return;
    const int32_t round = __atomic_load_n(&round_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == members) {
        __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&round_, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&round_, __ATOMIC_ACQUIRE) == round; ++spins) {
        if (spins < SPINS)
            pause();
        else
            std::this_thread::yield();
    }
}

void run_team(const stormcell_problem& problem, void (*work)(void*, int, int, Barrier&), void* data) {
    Work team{work, data, problem.thread_number, problem.thread_count, {}};
    if (problem.threads > 1 && problem.parallel != nullptr) {
        problem.parallel(in_team, &team, static_cast<unsigned>(problem.threads), 0);
        return;
    }
    std::vector<std::thread> others;
    try {
        for (int number = 1; number < problem.threads; ++number)
            others.emplace_back([&team, number] { take_part(team, number); });
    } catch (const std::system_error&) {
        // no more threads are to be had: those that are there do the work
    }
    begin(team, 1 + static_cast<int>(others.size()));
    take_part(team, 0);
    for (std::thread& other : others) other.join();
}

Scratch::Scratch(size_t numbers)
    : pointer_(static_cast<float*>(::operator new(numbers * sizeof(float) + 64, std::align_val_t(64), std::nothrow))) {}

Scratch::~Scratch() {
    if (pointer_ != nullptr) ::operator delete(pointer_, std::align_val_t(64));
}
