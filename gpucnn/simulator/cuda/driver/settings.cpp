// Settings from the environment. A value that makes no sense ends the program with a sentence: a run with other
// settings than those asked for would prove nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

namespace cudasim {

[[noreturn]] static void refuse(const char* variable, const char* value, const char* allowed) {
  fprintf(stderr, "simulated CUDA: %s must be %s, got '%s'\n", variable, allowed, value);
  abort();
}

static const char* text_of(const char* variable) {
  const char* text = getenv(variable);
  return text && *text ? text : nullptr;
}

// The number at the start of `text`, and what follows it; false where there is none.
static bool read_number(const char* text, uint64_t* number, const char** rest) {
  if (*text < '0' || *text > '9') return false;
  char* end = nullptr;
  *number = strtoull(text, &end, 10);
  *rest = end;
  return true;
}

static uint64_t number_from(const char* variable, uint64_t usual, uint64_t low, uint64_t high, const char* allowed) {
  const char* text = text_of(variable);
  if (!text) return usual;
  uint64_t number = 0;
  const char* rest = nullptr;
  const bool is_number = read_number(text, &number, &rest) && *rest == 0;
  if (!is_number || number < low || number > high) refuse(variable, text, allowed);
  return number;
}

static uint64_t bytes_from(const char* variable, uint64_t usual) {
  const char* text = text_of(variable);
  if (!text) return usual;
  const char* allowed = "a number of bytes with or without K, M or G after it, for instance 512M";
  uint64_t number = 0;
  const char* rest = nullptr;
  if (!read_number(text, &number, &rest) || number == 0) refuse(variable, text, allowed);
  const char* units = "KMG";
  const char* unit = *rest ? strchr(units, *rest) : nullptr;
  if (*rest && (!unit || rest[1] != 0)) refuse(variable, text, allowed);
  const int shift = unit ? 10 * static_cast<int>(unit - units + 1) : 0;
  if (number > (uint64_t{1} << 62) >> shift) refuse(variable, text, allowed);
  return number << shift;
}

static std::string device_from(const char* variable) {
  const char* text = text_of(variable);
  if (!text) return "h100";
  for (const char* known : {"t4", "a100", "h100", "rtx4090"}) {
    if (!strcmp(text, known)) return text;
  }
  refuse(variable, text, "t4, a100, h100 or rtx4090");
}

static void read_changeable(Settings* read) {
  constexpr uint64_t kAll = ~uint64_t{0};
  read->memory_bytes = bytes_from("GPUCNN_CUDA_MEMORY", uint64_t{8} << 30);
  read->stream_seed = number_from("GPUCNN_CUDA_STREAM_SEED", 0, 0, kAll, "a number, 0 or greater");
  read->stream_races = number_from("GPUCNN_CUDA_STREAM_RACES", 0, 0, 1, "0 or 1") != 0;
  read->sticky_errors = number_from("GPUCNN_CUDA_STICKY", 0, 0, 1, "0 or 1") != 0;
}

static Settings* from_environment() {
  auto* read = new Settings;  // never destroyed: calls come in until the process ends
  read->device_count = static_cast<int>(number_from("GPUCNN_CUDA_DEVICES", 1, 0, 8, "a number from 0 to 8"));
  read->device_name = device_from("GPUCNN_CUDA_DEVICE");
  read->check = number_from("GPUCNN_CUDA_CHECK", 1, 0, 1, "0 or 1") != 0;
  read->log_level = static_cast<int>(number_from("GPUCNN_CUDA_LOG", 0, 0, 2, "0, 1 or 2"));
  read->report_leaks = number_from("GPUCNN_CUDA_LEAKS", 0, 0, 1, "0 or 1") != 0;
  read_changeable(read);
  return read;
}

Settings& settings() {
  static Settings& read = *from_environment();
  return read;
}

void reset_settings() { read_changeable(&settings()); }

}  // namespace cudasim
