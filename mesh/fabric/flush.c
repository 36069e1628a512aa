/* Writes cache lines back to memory, and forgets them, for memory that several hosts map and no hardware keeps coherent.
 *
 * Source: Intel SDM volume 2, CLFLUSH, CLFLUSHOPT, CLWB, and volume 3, section 9.2; Arm ARM (DDI 0487), "Cache maintenance
 * instructions": DC CVAC and DC CIVAC work on every line to the point of coherency, DSB waits for them.
 */
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

enum { NONE, CLFLUSH, CLFLUSHOPT, CLWB };

static int found = -1;

int isochrone_kind(void)
{
    unsigned a, b, c, d;
    if (found >= 0)
        return found;
    found = NONE;
    if (__get_cpuid(1, &a, &b, &c, &d) && (d & (1u << 19)))
        found = CLFLUSH;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        if (b & (1u << 23))
            found = CLFLUSHOPT;
        if (b & (1u << 24))
            found = CLWB;
    }
    return found;
}

static uintptr_t line_bytes(void)
{
    unsigned a, b, c, d;
    uintptr_t n = __get_cpuid(1, &a, &b, &c, &d) ? ((b >> 8) & 0xff) * 8 : 0;
    return n ? n : 64;
}

__attribute__((target("clwb"))) static void clwb(uintptr_t p, uintptr_t end, uintptr_t step)
{
    for (; p < end; p += step)
        _mm_clwb((void *)p);
}

__attribute__((target("clflushopt"))) static void clflushopt(uintptr_t p, uintptr_t end, uintptr_t step)
{
    for (; p < end; p += step)
        _mm_clflushopt((void *)p);
}

static void clflush(uintptr_t p, uintptr_t end, uintptr_t step)
{
    for (; p < end; p += step)
        _mm_clflush((const void *)p);
}

void isochrone_fence(void)
{
    _mm_mfence();
}

/* What this host has written is in memory afterwards, before anything that it writes later. */
void isochrone_write_back(const void *at, size_t size)
{
    uintptr_t step = line_bytes(), p = (uintptr_t)at & ~(step - 1), end = (uintptr_t)at + size;
    switch (isochrone_kind()) {
    case CLWB: clwb(p, end, step); break;
    case CLFLUSHOPT: clflushopt(p, end, step); break;
    default: clflush(p, end, step);
    }
    _mm_sfence();
}

/* What this host reads afterwards comes from memory. CLWB would not do: it may keep the line. */
void isochrone_invalidate(const void *at, size_t size)
{
    uintptr_t step = line_bytes(), p = (uintptr_t)at & ~(step - 1), end = (uintptr_t)at + size;
    _mm_mfence();
    if (isochrone_kind() >= CLFLUSHOPT)
        clflushopt(p, end, step);
    else
        clflush(p, end, step);
    _mm_mfence();
}

#elif defined(__aarch64__)

enum { DC = 4 };

int isochrone_kind(void)
{
    return DC;
}

static uintptr_t line_bytes(void)
{
    uint64_t ctr;
    __asm__ volatile("mrs %0, ctr_el0" : "=r"(ctr));
    return (uintptr_t)4 << ((ctr >> 16) & 0xf);
}

void isochrone_fence(void)
{
    __asm__ volatile("dsb sy" ::: "memory");
}

void isochrone_write_back(const void *at, size_t size)
{
    uintptr_t step = line_bytes(), p = (uintptr_t)at & ~(step - 1), end = (uintptr_t)at + size;
    __asm__ volatile("dsb sy" ::: "memory");
    for (; p < end; p += step)
        __asm__ volatile("dc cvac, %0" ::"r"(p) : "memory");
    __asm__ volatile("dsb sy" ::: "memory");
}

void isochrone_invalidate(const void *at, size_t size)
{
    uintptr_t step = line_bytes(), p = (uintptr_t)at & ~(step - 1), end = (uintptr_t)at + size;
    __asm__ volatile("dsb sy" ::: "memory");
    for (; p < end; p += step)
        __asm__ volatile("dc civac, %0" ::"r"(p) : "memory");
    __asm__ volatile("dsb sy" ::: "memory");
}

#else
#error "no way is known to write cache lines back on this processor"
#endif
