// This file and the rest of the runtime are compiled without instrumentation even in sanitizer builds (SIMT_ASAN or
// SIMT_TSAN says which one the kernels use): the sanitizers must judge the kernels, not the scheduler that moves them
// about.
#include "fiber.h"

#include <cstdint>
#include <cstring>

#ifdef SIMT_TSAN
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_read16(void* address);
void __tsan_write16(void* address);
}
#endif
#ifdef SIMT_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_bytes);
void __asan_poison_memory_region(const volatile void* address, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
}
#endif

#ifndef __x86_64__
#error "the fiber switch is written for x86-64 (System V); add the callee-saved registers of this machine in fiber.cc"
#endif

// void simt_switch(void** save_stack_pointer, void* load_stack_pointer): pushes the callee-saved registers and changes
// stacks.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

namespace simt {

void create_fiber(Fiber& fiber, char* stack, size_t stack_bytes) {
  fiber.stack = stack;
  fiber.stack_bytes = stack_bytes;
#ifdef SIMT_TSAN
  fiber.tsan_fiber = __tsan_create_fiber(0);
#endif
}

void start_fiber(Fiber& fiber, void (*entry)()) {
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);  // frames that the last run left behind
#endif
  // As after a call: 16-byte alignment less the return address, here a null one, then the entry, then six registers.
  void** top = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes - 56);
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  top -= 6;
  std::memset(top, 0, 6 * sizeof(void*));
  fiber.stack_pointer = top;
}

void adopt_this_stack([[maybe_unused]] Fiber& launcher) {
#ifdef SIMT_TSAN
  launcher.tsan_fiber = __tsan_get_current_fiber();
#endif
}

void release_fiber([[maybe_unused]] Fiber& fiber) {
#ifdef SIMT_TSAN
  __tsan_destroy_fiber(fiber.tsan_fiber);
#endif
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
#ifdef SIMT_TSAN
  __tsan_switch_to_fiber(to.tsan_fiber, 1);  // 1: the switch orders nothing
#endif
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.asan_fake_stack, to.stack, to.stack_bytes);
#endif
  simt_switch(&from.stack_pointer, to.stack_pointer);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
#endif
}

void fiber_entered([[maybe_unused]] Fiber& launcher) {
#ifdef SIMT_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (launcher.stack == nullptr) {  // the first fiber is entered from the launcher
    launcher.stack = static_cast<char*>(const_cast<void*>(bottom));
    launcher.stack_bytes = bytes;
  }
#endif
}

#ifdef SIMT_TSAN
void tsan_release(void* token) { __tsan_release(token); }
void tsan_acquire(void* token) { __tsan_acquire(token); }
void tsan_read16(const void* address) { __tsan_read16(const_cast<void*>(address)); }
void tsan_write16(void* address) { __tsan_write16(address); }
#else
void tsan_release(void*) {}
void tsan_acquire(void*) {}
void tsan_read16(const void*) {}
void tsan_write16(void*) {}
#endif

#ifdef SIMT_ASAN
void asan_poison(void* address, size_t bytes) { __asan_poison_memory_region(address, bytes); }
void asan_unpoison(void* address, size_t bytes) { __asan_unpoison_memory_region(address, bytes); }
#else
void asan_poison(void*, size_t) {}
void asan_unpoison(void*, size_t) {}
#endif

}  // namespace simt
