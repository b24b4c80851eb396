// The source line of a code address, by the tool addr2line.
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sstream>

#include "images.h"

extern char** environ;

namespace cudasim {

static std::string read_all(int file) {
  std::string text;
  char part[4096];
  for (ssize_t count; (count = read(file, part, sizeof part)) > 0;) text.append(part, static_cast<size_t>(count));
  return text;
}

// What a command writes; empty if there is no such command.
static std::string output_of(const char* const* command) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child;
  const int failed = posix_spawnp(&child, command[0], &actions, nullptr, const_cast<char**>(command), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text = failed ? "" : read_all(ends[0]);
  close(ends[0]);
  if (!failed) waitpid(child, nullptr, 0);
  return text;
}

static bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// How well a place explains an error: the program's own line is better than one of a library that it includes.
static int rank_of(const std::string& file) {
  const bool is_unknown = file.empty() || file[0] == '?' || file[0] == '<';
  if (is_unknown || contains(file, "/simulator/include/") || contains(file, "/simulator/cuda/headers/")) return 0;
  return contains(file, "/cupy/_core/include/") ? 1 : 2;
}

// The best of the lines that are inlined into one another at an address, the innermost first.
static std::string best_line(const std::string& output) {
  std::istringstream lines(output);
  std::string line, best;
  int best_rank = 0;
  while (std::getline(lines, line)) {
    line = line.substr(0, line.find(' '));
    const size_t colon = line.rfind(':');
    if (colon == std::string::npos || line.compare(colon, 2, ":?") == 0) continue;
    const int rank = rank_of(line.substr(0, colon));
    if (rank <= best_rank) continue;
    best_rank = rank;
    best = line.substr(line.rfind('/', colon) + 1);
  }
  return best;
}

std::string source_line(const Image& image, uint64_t address) {
  if (image.bytes.empty() || !address) return "";
  const int file = memory_file("cuda-module", image.bytes.data(), image.bytes.size(), 0);  // the tool inherits it
  if (file < 0) return "";
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  char where[32];
  snprintf(where, sizeof where, "0x%llx", static_cast<unsigned long long>(address - 1));  // in the call, not after it
  std::string best;
  for (const char* tool : {"addr2line", "llvm-addr2line"}) {
    const char* command[] = {tool, "-i", "-e", path.c_str(), where, nullptr};
    best = best_line(output_of(command));
    if (!best.empty()) break;
  }
  close(file);
  return best;
}

}  // namespace cudasim
