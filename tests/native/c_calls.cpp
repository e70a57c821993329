// The C interface over a pipe, for a library that the testing process cannot load: tests/emulated_cpu.py is the other
// end. First of all comes the instruction set, a line. A request is a Request, then each tensor as its size in bytes
// and its bytes; size 0 is a null pointer. The answer is a status, a message, and the bytes of every tensor that was
// asked for, inputs too.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "intfa/c_api.h"

namespace {

constexpr size_t kMessageBytes = 1000;
constexpr size_t kTensors = sizeof(intfa_tensors) / sizeof(void*), kCodes = sizeof(intfa_codes) / sizeof(void*);

struct Request {
  int64_t quantize;        // 0: run
  int64_t batch, kv_head;  // of quantize
  int64_t num_threads;     // of run
  intfa_problem problem;
};

// Ends the program with the pipe: there is nobody left to tell.
void read(void* to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) exit(0);
}

void write(const void* from, size_t bytes) { fwrite(from, 1, bytes, stdout); }

}  // namespace

int main() {
  puts(intfa_cpu_instruction_set());
  fflush(stdout);
  for (;;) {
    Request request;
    read(&request, sizeof request);
    std::vector<std::vector<uint8_t>> memory(kTensors + (request.quantize ? kCodes : 0));
    std::vector<void*> pointers;
    for (std::vector<uint8_t>& tensor : memory) {
      int64_t bytes;
      read(&bytes, sizeof bytes);
      tensor.resize(bytes);
      read(tensor.data(), bytes);
      pointers.push_back(bytes ? tensor.data() : nullptr);
    }
    intfa_tensors tensors;
    intfa_codes codes;
    memcpy(&tensors, pointers.data(), sizeof tensors);
    char message[kMessageBytes];
    int64_t status;
    if (request.quantize) {
      memcpy(&codes, pointers.data() + kTensors, sizeof codes);
      status = intfa_quantize_cpu(&request.problem, &tensors, request.batch, request.kv_head, &codes, message,
                                  sizeof message);
    } else {
      status =
          intfa_run_cpu(&request.problem, &tensors, static_cast<int>(request.num_threads), message, sizeof message);
    }
    write(&status, sizeof status);
    write(message, sizeof message);
    for (const std::vector<uint8_t>& tensor : memory) write(tensor.data(), tensor.size());
    fflush(stdout);
  }
}
