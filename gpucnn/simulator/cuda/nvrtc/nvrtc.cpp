// The entry points of NVRTC. Link-time optimisation, OptiX and precompiled headers are not simulated.
#include "nvrtc.h"

#include <string.h>


#include "driver/services.h"
#include "python_compiler.h"

using cudasim::Program;
using cudasim::Text;

typedef Program* nvrtcProgram;

constexpr int kMajor = CUDASIM_CUDA_VERSION / 1000;

static const std::vector<int>& architectures() {
  static const auto& of_12 =
      *new std::vector<int>{50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121};
  static const auto& of_13 = *new std::vector<int>{75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};
  return kMajor == 12 ? of_12 : of_13;
}

// The failure that a test injected into a call, if any.
static nvrtcResult begin_call(const char* function) {
  switch (cudasim_begin_call(function)) {
    case CUDA_SUCCESS:
      return NVRTC_SUCCESS;
    case CUDA_ERROR_OUT_OF_MEMORY:
      return NVRTC_ERROR_OUT_OF_MEMORY;
    default:
      return NVRTC_ERROR_INTERNAL_ERROR;
  }
}

// ---- The library ---------------------------------------------------------------------------------------------------

static const char* const kErrorNames[] = {
    "NVRTC_SUCCESS",
    "NVRTC_ERROR_OUT_OF_MEMORY",
    "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
    "NVRTC_ERROR_INVALID_INPUT",
    "NVRTC_ERROR_INVALID_PROGRAM",
    "NVRTC_ERROR_INVALID_OPTION",
    "NVRTC_ERROR_COMPILATION",
    "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
    "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION",
    "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION",
    "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID",
    "NVRTC_ERROR_INTERNAL_ERROR",
    "NVRTC_ERROR_TIME_FILE_WRITE_FAILED",
    "NVRTC_ERROR_NO_PCH_CREATE_ATTEMPTED",
    "NVRTC_ERROR_PCH_CREATE_HEAP_EXHAUSTED",
    "NVRTC_ERROR_PCH_CREATE",
    "NVRTC_ERROR_CANCELLED",
    "NVRTC_ERROR_TIME_TRACE_FILE_WRITE_FAILED",
};

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(nvrtcResult result) {
  const size_t number = static_cast<size_t>(result);
  return number < sizeof kErrorNames / sizeof *kErrorNames ? kErrorNames[number] : "NVRTC_ERROR unknown";
}

NVRTC_ENTRY nvrtcVersion(int* major, int* minor) {
  if (!major || !minor) return NVRTC_ERROR_INVALID_INPUT;
  *major = kMajor;
  *minor = cudasim::version_minor();
  return NVRTC_SUCCESS;
}

NVRTC_ENTRY nvrtcGetNumSupportedArchs(int* count) {
  if (!count) return NVRTC_ERROR_INVALID_INPUT;
  *count = static_cast<int>(architectures().size());
  return NVRTC_SUCCESS;
}

NVRTC_ENTRY nvrtcGetSupportedArchs(int* supported) {
  if (!supported) return NVRTC_ERROR_INVALID_INPUT;
  memcpy(supported, architectures().data(), architectures().size() * sizeof(int));
  return NVRTC_SUCCESS;
}

// ---- Programs ------------------------------------------------------------------------------------------------------

NVRTC_ENTRY nvrtcCreateProgram(nvrtcProgram* program, const char* text, const char* name, int header_count,
                               const char* const* headers, const char* const* include_names) {
  if (nvrtcResult injected = begin_call(__func__)) return injected;
  if (!program || !text || header_count < 0) return NVRTC_ERROR_INVALID_INPUT;
  if (header_count && (!headers || !include_names)) return NVRTC_ERROR_INVALID_INPUT;
  auto* created = new Program();
  created->text = text;
  created->name = name && *name ? name : "default_program";
  for (int i = 0; i < header_count; i++) created->headers.push_back({include_names[i], headers[i]});
  *program = created;
  return NVRTC_SUCCESS;
}

NVRTC_ENTRY nvrtcDestroyProgram(nvrtcProgram* program) {
  if (!program || !*program) return NVRTC_ERROR_INVALID_PROGRAM;
  delete *program;
  *program = nullptr;
  return NVRTC_SUCCESS;
}

NVRTC_ENTRY nvrtcAddNameExpression(nvrtcProgram program, const char* expression) {
  if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
  if (!expression) return NVRTC_ERROR_INVALID_INPUT;
  if (program->was_compiled) return NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION;
  program->expressions.push_back(expression);
  return NVRTC_SUCCESS;
}

NVRTC_ENTRY nvrtcCompileProgram(nvrtcProgram program, int option_count, const char* const* options) {
  if (nvrtcResult injected = begin_call(__func__)) return injected;
  if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
  if (option_count < 0 || (option_count && !options)) return NVRTC_ERROR_INVALID_INPUT;
  program->image.clear();
  program->symbols.clear();
  cudasim::compile(*program, std::vector<Text>(options, options + option_count));
  return program->status;
}

NVRTC_ENTRY nvrtcGetLoweredName(nvrtcProgram program, const char* expression, const char** lowered) {
  if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
  if (!expression || !lowered) return NVRTC_ERROR_INVALID_INPUT;
  if (!program->was_compiled) return NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION;
  for (size_t i = 0; i < program->symbols.size(); i++) {
    if (program->expressions[i] != expression) continue;
    *lowered = program->symbols[i].c_str();
    return NVRTC_SUCCESS;
  }
  return NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID;
}

// ---- Results -------------------------------------------------------------------------------------------------------

// A caller asks for the size first, and makes room for it.
static nvrtcResult size_of(nvrtcProgram program, const Text& (*result)(const Program&), size_t end, size_t* size) {
  if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
  if (!size) return NVRTC_ERROR_INVALID_INPUT;
  *size = result(*program).size() + end;
  return NVRTC_SUCCESS;
}

static nvrtcResult copy_of(nvrtcProgram program, const Text& (*result)(const Program&), size_t end, char* target) {
  if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
  if (!target) return NVRTC_ERROR_INVALID_INPUT;
  const Text& text = result(*program);
  memcpy(target, text.c_str(), text.size() + end);
  return NVRTC_SUCCESS;
}

static const Text& image_of(const Program& program) { return program.image; }
static const Text& log_of(const Program& program) { return program.log; }

static bool has_image(nvrtcProgram program) { return program && program->was_compiled && !program->image.empty(); }

// A text ends in a zero byte, a binary does not.
NVRTC_ENTRY nvrtcGetPTXSize(nvrtcProgram program, size_t* size) {
  return has_image(program) ? size_of(program, image_of, 1, size) : NVRTC_ERROR_INVALID_PROGRAM;
}
NVRTC_ENTRY nvrtcGetPTX(nvrtcProgram program, char* ptx) {
  return has_image(program) ? copy_of(program, image_of, 1, ptx) : NVRTC_ERROR_INVALID_PROGRAM;
}
NVRTC_ENTRY nvrtcGetCUBINSize(nvrtcProgram program, size_t* size) {
  return has_image(program) ? size_of(program, image_of, 0, size) : NVRTC_ERROR_INVALID_PROGRAM;
}
NVRTC_ENTRY nvrtcGetCUBIN(nvrtcProgram program, char* cubin) {
  return has_image(program) ? copy_of(program, image_of, 0, cubin) : NVRTC_ERROR_INVALID_PROGRAM;
}
NVRTC_ENTRY nvrtcGetProgramLogSize(nvrtcProgram program, size_t* size) { return size_of(program, log_of, 1, size); }
NVRTC_ENTRY nvrtcGetProgramLog(nvrtcProgram program, char* log) { return copy_of(program, log_of, 1, log); }

// A program without -dlto has no LTO-IR, and one with it is not compiled: the documented answer in both cases.
NVRTC_ENTRY nvrtcGetLTOIRSize(nvrtcProgram, size_t*) { return NVRTC_ERROR_INVALID_PROGRAM; }
NVRTC_ENTRY nvrtcGetLTOIR(nvrtcProgram, char*) { return NVRTC_ERROR_INVALID_PROGRAM; }
NVRTC_ENTRY nvrtcGetOptiXIRSize(nvrtcProgram, size_t*) { return NVRTC_ERROR_INVALID_PROGRAM; }
NVRTC_ENTRY nvrtcGetOptiXIR(nvrtcProgram, char*) { return NVRTC_ERROR_INVALID_PROGRAM; }
NVRTC_ENTRY nvrtcGetPCHCreateStatus(nvrtcProgram) { return NVRTC_ERROR_NO_PCH_CREATE_ATTEMPTED; }
