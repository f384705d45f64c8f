// Makes a .cu file a C++17 file: CUDA's keywords and the built-in functions that our kernels use,
// on top of NVIDIA's own vector and half types (bit-exact on the CPU). A built-in that is missing
// here is a compile error; atomics are missing on purpose: every kernel is a gather.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include <vector_functions.h>
#include <vector_types.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __shared__
#define __shared__ static __attribute__((section("cuda_shared")))
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __constant__
#define __constant__ static const

// runtime.cpp: one launch at a time, so the position of the running thread is global.
struct ShimPosition { struct { unsigned x, y, z; } thread, block, block_size, grid_size; };
extern "C" ShimPosition shim;
extern "C" void shim_barrier(int line);
extern "C" uint64_t shim_exchange(uint64_t value, int source_lane, unsigned mask, int line);

#define threadIdx shim.thread
#define blockIdx shim.block
#define blockDim shim.block_size
#define gridDim shim.grid_size
#define warpSize 32

using std::fma, std::isnan, std::max, std::min;

#define __syncwarp(...) shim_exchange(0, 0, 0xffffffffu, __LINE__)
#define __syncthreads() shim_barrier(__LINE__)
#define __shfl_xor_sync(mask, value, bits, ...) \
    shim_shuffle(value, int((shim.thread.x & 31) ^ unsigned(bits)), mask, __LINE__)
#define __shfl_down_sync(mask, value, by, ...) \
    shim_shuffle(value, shim_lane(int(shim.thread.x & 31), int(by)), mask, __LINE__)
#define __shfl_up_sync(mask, value, by, ...) \
    shim_shuffle(value, shim_lane(int(shim.thread.x & 31), -int(by)), mask, __LINE__)
#define __shfl_sync(mask, value, lane, ...) shim_shuffle(value, int(lane) & 31, mask, __LINE__)

inline int shim_lane(int lane, int by) { return lane + by < 0 || lane + by > 31 ? lane : lane + by; }
template <class T> T shim_shuffle(T value, int source_lane, unsigned mask, int line) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = shim_exchange(bits, source_lane, mask, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

// Cache hints change no value. NVIDIA's half headers declare the same names for the device only.
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldlu(const T* p) { return *p; }
template <class T, class U> inline void __stcs(T* p, U v) { *p = v; }
template <class T, class U> inline void __stcg(T* p, U v) { *p = v; }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
template <class To, class From> inline To shim_bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &v, sizeof(To));
    return out;
}
inline int __float_as_int(float v) { return shim_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return shim_bits<unsigned>(v); }
inline float __int_as_float(int v) { return shim_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return shim_bits<float>(v); }

// What one kernel takes, so that the driver can check each argument of a launch: CUDA does not.
struct ShimParam {
    int kind;  // 0 a value, 1 a pointer to const, 2 a pointer to what the kernel writes
    int size;  // bytes of the value, or of what is pointed at
    int type;  // 'f' floating (half types too), 'i' integer or bool, 'V' a struct
};

template <class T> constexpr ShimParam shim_param() {
    if constexpr (std::is_pointer_v<T>) {
        using Item = std::remove_pointer_t<T>;
        ShimParam item = shim_param<std::remove_const_t<Item>>();
        return {std::is_const_v<Item> ? 1 : 2, item.size, item.type};
    } else {
        bool half = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;
        int type = half || std::is_floating_point_v<T> ? 'f' : std::is_integral_v<T> ? 'i' : 'V';
        return {0, int(sizeof(T)), type};
    }
}

template <class... A> struct ShimKernel {
    static constexpr ShimParam params[] = {shim_param<A>()..., {-1, 0, 0}};
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
        kernel(*static_cast<A*>(args[I])...);
    }
};
template <class... A> ShimKernel<A...> shim_kernel_of(void (*)(A...)) { return {}; }
template <class... A>
__attribute__((no_sanitize("thread"))) void shim_call(void (*kernel)(A...), void** args) {
    ShimKernel<A...>::call(kernel, args, std::index_sequence_for<A...>{});
}

#define SHIM_EXPORT(name)                                                                      \
    extern "C" const ShimParam* shim_params() { return decltype(shim_kernel_of(name))::params; } \
    extern "C" __attribute__((no_sanitize("thread"))) void shim_run(void** args) {             \
        shim_call(name, args);                                                                 \
    }
