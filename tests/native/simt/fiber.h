// Fibers: the stacks on which CUDA threads run, switched by hand, and announced to ASan and TSan where the build has
// them.
#pragma once

#include <cstddef>

namespace simt {

// One suspended (or running) flow of control. The launcher's own stack is a Fiber too.
struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest address; null for the launcher, until ASan tells it
  size_t stack_bytes = 0;
  void* tsan_fiber = nullptr;
  void* asan_fake_stack = nullptr;
};

// A fiber on its own stack; TSan knows it as one thread until release_fiber(), whatever it runs.
void create_fiber(Fiber& fiber, char* stack, size_t stack_bytes);
// Makes `fiber` run entry() when it is next switched to. entry() begins with fiber_entered() and never returns.
void start_fiber(Fiber& fiber, void (*entry)());
void adopt_this_stack(Fiber& launcher);
void release_fiber(Fiber& fiber);

// Suspends `from` and resumes `to`; returns when something switches back.
void switch_fiber(Fiber& from, Fiber& to);
void fiber_entered(Fiber& launcher);

// What TSan must be told, because the switch itself orders nothing: barriers release and acquire, and the runtime's own
// copies into shared memory are accesses of the thread that issued them.
void tsan_release(void* token);
void tsan_acquire(void* token);
void tsan_read16(const void* address);
void tsan_write16(void* address);

// ASan: bytes that no kernel may touch.
void asan_poison(void* address, size_t bytes);
void asan_unpoison(void* address, size_t bytes);

}  // namespace simt
