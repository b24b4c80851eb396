// Runs kernels for tests/emulated.py: reads calls from standard input and answers each on standard output.
//
// A call is the libraries of `run` and of the kernel, the kernel's name and parameters, numbers, the memory of arrays,
// and the place of each array there. The answer is the result of `run` and that memory.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static void read(void* to, size_t count) {
  if (fread(to, 1, count, stdin) != count) exit(0);  // the end
}

static int64_t number() {
  int64_t value;
  read(&value, sizeof value);
  return value;
}

static std::string text() {
  std::string value(number(), ' ');
  read(value.data(), value.size());
  return value;
}

static void* symbol(const std::string& library, const std::string& name) {
  void* handle = dlopen(library.c_str(), RTLD_NOW);
  void* found = handle ? dlsym(handle, name.c_str()) : nullptr;
  if (!found) fprintf(stderr, "%s\n", dlerror()), exit(1);
  return found;
}

int main() {
  using run_t = int64_t (*)(const uintptr_t* program, const char* const* arrays, int64_t threads);
  static const char NONE = 0;
  const char* const none = &NONE;
  for (;;) {
    std::string runs = text(), kernels = text(), name = text(), params = text();
    int64_t workspace = number(), items = number(), threads = number();
    std::vector<std::string> memory(number());
    for (std::string& each : memory) each = text();
    int64_t count = number();
    std::vector<uintptr_t> program = {  // as threads.cpp takes it: one call, whose places are addresses
        1, 0, reinterpret_cast<uintptr_t>(none),
        reinterpret_cast<uintptr_t>(symbol(kernels, name)), uintptr_t(count + 1), uintptr_t(workspace), uintptr_t(items),
        0, reinterpret_cast<uintptr_t>(params.data())};
    for (; count > 0; count--) {
      int64_t place = number(), offset = number();
      program.push_back(0);
      program.push_back(place < 0 ? 0 : reinterpret_cast<uintptr_t>(memory[place].data() + offset));
    }
    run_t run = reinterpret_cast<run_t>(symbol(runs, "run"));
    int64_t result = run(program.data(), &none, threads);
    fwrite(&result, sizeof result, 1, stdout);
    for (const std::string& each : memory) fwrite(each.data(), 1, each.size(), stdout);
    fflush(stdout);
  }
}
