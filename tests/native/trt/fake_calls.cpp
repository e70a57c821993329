// The fake backends of this library, for a program that opens it.
#include "fake_backends.h"

extern "C" {
__attribute__((visibility("default"))) intfa::fake::Call* fake_last_call() { return &intfa::fake::last_call(); }
__attribute__((visibility("default"))) intfa::Status* fake_answer() { return &intfa::fake::answer(); }
}
