// Runs the blocks and threads of one launch after another, in a chosen order, and watches them.
//
// Threads are fibers (ucontext). A fiber runs thread after thread until one waits at a barrier or a
// shuffle; only then does another fiber carry on, so kernels without barriers switch once a block.
//
// Tracing: the kernel is compiled with -fsanitize=thread and linked with the call-outs below instead
// of the sanitizer's library, so that every access of the kernel passes through access().
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

extern "C" {
struct ShimPosition { struct { unsigned x, y, z; } thread, block, block_size, grid_size; } shim;
void shim_run(void** args);
extern uint8_t __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern uint8_t __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace {

constexpr size_t STACK = 64 << 10;
enum State { READY, WAITING, DONE };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
};
struct Thread {
    State state = READY;
    Fiber* fiber = nullptr;  // set while it waits
    bool warp_wide = false;  // what it waits at: a shuffle, or else the block's barrier
    int line = 0;
    unsigned shuffles = 0;
    uint64_t slot[2] = {0, 0};  // alternating: a lane is at most one shuffle ahead of its warp
};

std::vector<std::unique_ptr<Fiber>> idle;
std::vector<Thread> threads;
std::vector<unsigned> order;  // of the threads in a block
size_t next_thread;           // into order: the first that has not started
unsigned running;             // index of the running thread
ucontext_t scheduler;
Fiber* current;
void** arguments;
std::string findings;
std::map<std::string, int> kinds;  // of findings, and how often each came
bool stop;
int block_number;
void* accessor;  // the instruction behind the access that is looked at

// Keeps the first two findings of each kind: those that read alike up to the first number.
void report(const char* format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    std::string finding = text, kind = finding.substr(0, finding.find_first_of("0123456789"));
    if (++kinds[kind] > 2) return;
    Dl_info library;
    if (accessor && dladdr(accessor, &library)) {  // for addr2line
        auto offset = static_cast<char*>(accessor) - static_cast<char*>(library.dli_fbase);
        snprintf(text, sizeof text, " @%tx", offset);
        finding += text;
    }
    findings += finding + "\n";
}

[[noreturn]] void end_launch() {
    stop = true;
    setcontext(&scheduler);
    abort();
}

#ifndef __SANITIZE_ADDRESS__  // which reports faults itself
constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

// A fault of a kernel ends its launch, not the process.
void on_fault(int signal, siginfo_t* info, void* context) {
    if (!current) {  // not of a kernel: it comes again, and ends the process
        ::signal(signal, SIG_DFL);
        return;
    }
    const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#ifdef __x86_64__
    accessor = reinterpret_cast<void*>(machine.gregs[REG_RIP] + 1);
#else
    accessor = reinterpret_cast<void*>(machine.pc + 1);
#endif
    report("crash: %s, block %d, thread %u, address %p", strsignal(signal), block_number - 1, running,
           info->si_addr);
    end_launch();
}

// While it lives, faults are those of a kernel.
struct Faults {
    static inline char stack[64 << 10];
    stack_t stack_before;
    struct sigaction before[std::size(FAULTS)];
    Faults() {
        stack_t own = {stack, 0, sizeof stack};
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaltstack(&own, &stack_before);
        for (size_t i = 0; i < std::size(FAULTS); i++) sigaction(FAULTS[i], &action, &before[i]);
    }
    ~Faults() {
        for (size_t i = 0; i < std::size(FAULTS); i++) sigaction(FAULTS[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};
#else
struct Faults {};
#endif

void enter(unsigned index) {
    running = index;
    auto size = shim.block_size;
    shim.thread = {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

void fiber_main() {
    while (next_thread < order.size()) {
        enter(order[next_thread++]);
        shim_run(arguments);
        threads[running].state = DONE;
    }
    idle.emplace_back(current);
    setcontext(&scheduler);
}

void switch_to(Fiber* fiber) {
    current = fiber;
    swapcontext(&scheduler, &fiber->context);
}

Fiber* new_fiber() {
    Fiber* fiber = idle.empty() ? new Fiber : idle.back().release();
    if (!idle.empty()) idle.pop_back();
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = STACK;
    makecontext(&fiber->context, fiber_main, 0);
    return fiber;
}

void wait(bool warp_wide, int line) {
    Thread& self = threads[running];
    self.state = WAITING, self.warp_wide = warp_wide, self.line = line, self.fiber = current;
    unsigned index = running;
    swapcontext(&current->context, &scheduler);
    enter(index);
}

// Lets a group of threads go on if all of it waits at the same place.
bool release(size_t first, size_t last, bool warp_wide) {
    size_t waiting = 0;
    for (size_t i = first; i < last; i++)
        waiting += threads[i].state == WAITING && threads[i].warp_wide == warp_wide &&
                   threads[i].line == threads[first].line;
    if (waiting != last - first) return false;
    for (size_t i = first; i < last; i++) threads[i].state = READY;
    return true;
}

void new_interval();

void run_block() {
    threads.assign(order.size(), Thread{});
    next_thread = 0;
    for (;;) {
        while (next_thread < order.size() && !stop) switch_to(new_fiber());
        if (stop) return;
        bool released = release(0, threads.size(), false);
        if (released) new_interval();
        for (size_t i = 0; i < threads.size() && !released; i += 32)
            released |= release(i, std::min(i + 32, threads.size()), true);
        size_t waiting = 0;
        for (unsigned i : order) {
            waiting += threads[i].state != DONE;
            if (threads[i].state == READY) switch_to(threads[i].fiber);
        }
        if (!waiting) return;
        if (!released) {
            for (const Thread& t : threads)
                if (t.state == WAITING)
                    return report("stuck: line %d waits for threads that left or wait elsewhere",
                                  t.line);
        }
    }
}

// ------------------------------------------------------------------------------------ the tracer

struct Region {
    uint8_t* begin;
    size_t size;
    int argument;
    int writable;
    uint8_t* written;  // one flag a byte, kept by the driver over a session's launches
};
// Who touched one byte. MANY readers: more than one.
constexpr int NOBODY = 0, MANY = -1;
struct Touch {
    int block_writer = NOBODY, block_reader = NOBODY;
    unsigned interval = 0;  // the fields below belong to this interval between barriers
    int writer = NOBODY, reader = NOBODY;
    unsigned block = 0;  // shared memory: the block that wrote it last, plus one
};

std::vector<Region> regions;
std::vector<std::vector<Touch>> touches;
std::vector<Touch> shared_touches;
unsigned interval;

void new_interval() { interval++; }

void conflict(const char* between, const Region* region, size_t at, const char* what) {
    if (region)
        report("race between %s, %s: argument %d, byte %zu", between, what, region->argument, at);
    else
        report("race between %s, %s: shared memory, byte %zu", between, what, at);
}

void touch(Touch& t, bool write, const Region* region, size_t at) {
    int self = int(running) + 1;
    if (t.interval != interval) t.interval = interval, t.writer = t.reader = NOBODY;
    if (t.writer != NOBODY && t.writer != self)
        conflict("threads", region, at, write ? "two writes" : "read after write");
    if (write && t.reader != NOBODY && t.reader != self)
        conflict("threads", region, at, "write after read");
    if (write) t.writer = self;
    else t.reader = t.reader == NOBODY || t.reader == self ? self : MANY;
    if (!region) return;  // shared memory belongs to one block
    if (t.block_writer != NOBODY && t.block_writer != block_number)
        conflict("blocks", region, at, write ? "two writes" : "read after write");
    if (write && t.block_reader != NOBODY && t.block_reader != block_number)
        conflict("blocks", region, at, "write after read");
    if (write) t.block_writer = block_number;
    else
        t.block_reader =
            t.block_reader == NOBODY || t.block_reader == block_number ? block_number : MANY;
}

void access(void* address, size_t size, bool write, void* from) {
    accessor = from;
    auto* p = static_cast<uint8_t*>(address);
    if (current && p >= reinterpret_cast<uint8_t*>(current->stack.get()) &&
        p < reinterpret_cast<uint8_t*>(current->stack.get()) + STACK)
        return;
    if (p >= reinterpret_cast<uint8_t*>(&shim) && p < reinterpret_cast<uint8_t*>(&shim + 1)) return;
    const char* verb = write ? "write" : "read";
    for (size_t r = 0; r < regions.size(); r++) {
        Region& region = regions[r];
        if (p + size <= region.begin - 4096 || p >= region.begin + region.size + 4096) continue;
        if (p < region.begin || p + size > region.begin + region.size) {
            report("out of bounds %s: %zu bytes at %td of argument %d, which has %zu", verb,
                   size, p - region.begin, region.argument, region.size);
            end_launch();  // before it happens
        }
        if (write && !region.writable) report("write to input: argument %d", region.argument);
        for (size_t i = 0; i < size; i++) {
            size_t at = size_t(p - region.begin) + i;
            if (!write && !region.written[at])
                report("uninitialised read: argument %d, byte %zu", region.argument, at);
            region.written[at] |= write;
            touch(touches[r][at], write, &region, at);
        }
        return;
    }
    if (p >= __start_cuda_shared && p + size <= __stop_cuda_shared) {
        for (size_t i = 0; i < size; i++) {
            size_t at = size_t(p - __start_cuda_shared) + i;
            Touch& t = shared_touches[at];
            if (!write && t.block != unsigned(block_number))
                report("uninitialised read: shared memory, byte %zu", at);
            if (write) t.block = unsigned(block_number);
            touch(t, write, nullptr, at);
        }
        return;
    }
    report("out of bounds %s: %zu bytes far from every argument", verb, size);
    end_launch();  // before it happens
}

}  // namespace

extern "C" {

void shim_barrier(int line) { wait(false, line); }

uint64_t shim_exchange(uint64_t value, int source_lane, unsigned mask, int line) {
    unsigned warp = running & ~31u, parity = threads[running].shuffles++ & 1;
    if (mask != 0xffffffffu) report("line %d: shuffle with mask %x", line, mask);
    if (warp + 32 > threads.size()) report("line %d: shuffle in a warp that is not full", line);
    threads[running].slot[parity] = value;
    wait(true, line);
    return threads[std::min<size_t>(warp + unsigned(source_lane), threads.size() - 1)].slot[parity];
}

// Runs the blocks first..last-1. order_seed: 0 forward, 1 backward, else a shuffle of blocks and of
// threads by that seed. regions: what may be accessed, when tracing. Returns findings, one a line.
const char* shim_launch(const unsigned* grid, const unsigned* block, void** args, unsigned first,
                        unsigned last, unsigned order_seed, const Region* region, int region_count) {
    shim.grid_size = {grid[0], grid[1], grid[2]};
    shim.block_size = {block[0], block[1], block[2]};
    const Faults faults;
    arguments = args, stop = false, block_number = 0;
    findings.clear(), kinds.clear();
    regions.assign(region, region + region_count);
    touches.clear();
    for (const Region& r : regions) touches.emplace_back(r.size);
    shared_touches.assign(size_t(__stop_cuda_shared - __start_cuda_shared), Touch{});
    std::vector<unsigned> blocks(last - first);
    order.resize(size_t(block[0]) * block[1] * block[2]);
    std::mt19937 random(order_seed);
    std::iota(blocks.begin(), blocks.end(), first);
    std::iota(order.begin(), order.end(), 0u);
    for (auto* list : {&blocks, &order}) {
        if (order_seed == 1) std::reverse(list->begin(), list->end());
        if (order_seed > 1) std::shuffle(list->begin(), list->end(), random);
    }
    for (unsigned b : blocks) {
        if (stop) break;
        shim.block = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        block_number = int(b) + 1;
        new_interval();
        run_block();
    }
    current = nullptr, accessor = nullptr;
    return findings.c_str();
}

// CUDA faults where an address is no multiple of what an instruction moves.
#define ALIGNED(name, size, write)                                                       \
    void __tsan_##name(void* p) {                                                        \
        accessor = __builtin_return_address(0);                                          \
        if (uintptr_t(p) % size) report("misaligned " #name);                            \
        access(p, size, write, accessor);                                                \
    }
#define CALLOUT(name, size, write) \
    void __tsan_##name(void* p) { access(p, size, write, __builtin_return_address(0)); }
#define CALLOUTS(n)                                                          \
    ALIGNED(read##n, n, false) ALIGNED(write##n, n, true)                     \
    CALLOUT(unaligned_read##n, n, false) CALLOUT(unaligned_write##n, n, true) \
    CALLOUT(volatile_read##n, n, false) CALLOUT(volatile_write##n, n, true)
CALLOUTS(1)
CALLOUTS(2)
CALLOUTS(4)
CALLOUTS(8)
CALLOUTS(16)
void __tsan_read_range(void* p, size_t n) { access(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { access(p, n, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
