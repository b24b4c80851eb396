// Modules and libraries: loading, and what is in them.
#include "modules.h"

#include <cxxabi.h>
#include <stdlib.h>
#include <string.h>

#include "handles.h"

using namespace cudasim;

using ModulePointer = std::shared_ptr<CUmod_st>;
using LibraryPointer = std::shared_ptr<CUlib_st>;

namespace cudasim {

static Handles<CUmod_st>& modules() {
  static auto& all = *new Handles<CUmod_st>;  // never destroyed: other libraries call in at exit
  return all;
}

static Handles<CUfunc_st>& functions() {
  static auto& all = *new Handles<CUfunc_st>;
  return all;
}

static Handles<CUlib_st>& libraries() {
  static auto& all = *new Handles<CUlib_st>;
  return all;
}

static Handles<CUkern_st>& kernels() {
  static auto& all = *new Handles<CUkern_st>;
  return all;
}

std::string readable_name(const char* symbol) {
  int status = 0;
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  if (!text) return symbol;
  std::string name = text;
  free(text);
  name = name.substr(0, name.find('('));
  const bool has_return_type = name.rfind("void ", 0) == 0;  // of a template
  return has_return_type ? name.substr(5) : name;
}

// ---- Modules -------------------------------------------------------------------------------------------------------

// Calls `visit` with each __device__ and __constant__ variable of an image.
template <class Visit>
static void for_each_variable(const Image& image, Visit visit) {
  for (const gpucnn::Variable* variable = image.variables; variable && variable->name; variable++) visit(*variable);
}

static CUresult load_module(const void* data, size_t bytes, const std::string& name, ModulePointer* loaded) {
  auto module = std::make_shared<CUmod_st>();
  module->context = current_context();
  if (CUresult error = open_image(data, bytes, name, module->image)) return error;
  for (int i = 0; i < module->image.entry_count; i++) {
    auto function = std::make_shared<CUfunc_st>();
    function->module = module;
    function->entry = &module->image.entries[i];
    function->max_dynamic_shared = kDefaultSharedLimit;
    module->functions.push_back(function);
    functions().add(function);
  }
  const int device = device_of(module->context);
  for_each_variable(module->image, [&](const gpucnn::Variable& variable) {
    add_variable(variable.address, variable.bytes, device);
  });
  *loaded = module;
  return CUDA_SUCCESS;
}

static void forget_functions(const ModulePointer& module) {
  for (const auto& function : module->functions) functions().remove(function.get());
}

static CUresult refuse_module(CUmodule handle) {
  return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no module, or one that was unloaded", (void*)handle);
}

static CUresult load(CUmodule* handle, const void* data, const std::string& name) {
  Guard guard(driver_lock());
  if (CUresult error = require_context()) return error;
  if (!handle) return failure(CUDA_ERROR_INVALID_VALUE, "no place for the module was given");
  size_t bytes = 0;
  if (CUresult error = measure_image(data, &bytes)) return error;
  ModulePointer module;
  if (CUresult error = load_module(data, bytes, name, &module)) return error;
  *handle = modules().add(module);
  return CUDA_SUCCESS;
}

static std::string names_of_functions(const CUmod_st& module) {
  std::string names;
  for (const auto& function : module.functions) {
    if (!names.empty()) names += ", ";
    names += function->entry->name;
  }
  return names.empty() ? "none" : names;
}

static CUresult find_function(const CUmod_st& module, const char* name, CUfunction* handle) {
  if (!name || !handle) return failure(CUDA_ERROR_INVALID_VALUE, "no name, or no place for the function");
  for (const auto& function : module.functions) {
    if (strcmp(function->entry->name, name) != 0) continue;
    *handle = function.get();
    return CUDA_SUCCESS;
  }
  return failure(CUDA_ERROR_NOT_FOUND, "the module has no kernel '%s'; its kernels: %s", name,
                 names_of_functions(module).c_str());
}

static CUresult find_variable(const CUmod_st& module, const char* name, CUdeviceptr* address, size_t* bytes) {
  if (!name) return failure(CUDA_ERROR_INVALID_VALUE, "no name of a variable was given");
  CUresult result = CUDA_ERROR_NOT_FOUND;
  for_each_variable(module.image, [&](const gpucnn::Variable& variable) {
    if (strcmp(variable.name, name) != 0) return;
    if (address) *address = reinterpret_cast<CUdeviceptr>(variable.address);
    if (bytes) *bytes = variable.bytes;
    result = CUDA_SUCCESS;
  });
  return result ? failure(result, "the module has no variable '%s'", name) : CUDA_SUCCESS;
}

// Calls `answer` with the module of a handle.
template <class Answer>
static CUresult with_module(CUmodule handle, Answer answer) {
  Guard guard(driver_lock());
  ModulePointer module = modules().find(handle);
  return module ? answer(module) : refuse_module(handle);
}

// ---- The end of a context ------------------------------------------------------------------------------------------

void release_modules(CUcontext context) {
  Guard guard(driver_lock());
  for (const ModulePointer& module : modules().of(context)) {
    forget_functions(module);
    modules().remove(module.get());
  }
  for (const auto& [handle, library] : libraries()) library->modules.erase(context);
}

// ---- Libraries -----------------------------------------------------------------------------------------------------

static CUresult refuse_library(CUlibrary handle) {
  return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no library, or one that was unloaded", (void*)handle);
}

template <class Answer>
static CUresult with_library(CUlibrary handle, Answer answer) {
  Guard guard(driver_lock());
  LibraryPointer library = libraries().find(handle);
  return library ? answer(library) : refuse_library(handle);
}

template <class Answer>
static CUresult with_kernel(CUkernel handle, Answer answer) {
  Guard guard(driver_lock());
  std::shared_ptr<CUkern_st> kernel = kernels().find(handle);
  if (!kernel) return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no kernel of a library", (void*)handle);
  return answer(*kernel);
}

// The module of a library in the current context.
static CUresult module_of(const LibraryPointer& library, ModulePointer* module) {
  if (CUresult error = require_context()) return error;
  ModulePointer& loaded = library->modules[current_context()];
  if (!loaded) {
    const std::string& bytes = library->bytes;
    if (CUresult error = load_module(bytes.data(), bytes.size(), library->name, &loaded)) return error;
    modules().add(loaded);
  }
  *module = loaded;
  return CUDA_SUCCESS;
}

static CUresult load_library(CUlibrary* handle, const void* data, const std::string& name) {
  Guard guard(driver_lock());
  if (!handle) return failure(CUDA_ERROR_INVALID_VALUE, "no place for the library was given");
  size_t bytes = 0;
  if (CUresult error = measure_image(data, &bytes)) return error;
  auto library = std::make_shared<CUlib_st>();
  library->name = name;
  library->bytes.assign(static_cast<const char*>(data), bytes);
  ModulePointer module;
  if (CUresult error = module_of(library, &module)) return error;
  *handle = libraries().add(library);
  for (const auto& function : module->functions) {
    auto kernel = std::make_shared<CUkern_st>();
    kernel->library = *handle;
    kernel->name = function->entry->name;
    library->kernels[kernel->name] = kernel;
    kernels().add(kernel);
  }
  return CUDA_SUCCESS;
}

static CUresult function_of_kernel(const CUkern_st& kernel, CUfunction* handle) {
  return with_library(kernel.library, [&](const LibraryPointer& library) {
    ModulePointer module;
    if (CUresult error = module_of(library, &module)) return error;
    return find_function(*module, kernel.name.c_str(), handle);
  });
}

FunctionPointer function_of(CUfunction handle, CUresult* error) {
  if (std::shared_ptr<CUkern_st> kernel = kernels().find(reinterpret_cast<CUkernel>(handle))) {
    *error = function_of_kernel(*kernel, &handle);
    if (*error) return nullptr;
  }
  FunctionPointer function = functions().find(handle);
  if (!function) {
    *error = failure(CUDA_ERROR_INVALID_HANDLE, "%p is no kernel, or its module was unloaded", (void*)handle);
  }
  return function;
}

}  // namespace cudasim

CUmod_st::~CUmod_st() {
  for_each_variable(image, [](const gpucnn::Variable& variable) { remove_variable(variable.address); });
}

// ---- Entry points: modules -----------------------------------------------------------------------------------------

ENTRY_POINT cuModuleLoad(CUmodule* module, const char* path) {
  BEGIN_CALL();
  std::string bytes;
  if (CUresult error = read_image(path, &bytes)) return error;
  return load(module, bytes.data(), path);
}

ENTRY_POINT cuModuleLoadData(CUmodule* module, const void* image) {
  BEGIN_CALL();
  return load(module, image, "");
}

// The options are of NVIDIA's compiler of PTX, which has no part here.
ENTRY_POINT cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  BEGIN_CALL();
  return load(module, image, "");
}

ENTRY_POINT cuModuleLoadFatBinary(CUmodule* module, const void* image) {
  BEGIN_CALL();
  return load(module, image, "");
}

// Work that is pending keeps the image until it is done.
ENTRY_POINT cuModuleUnload(CUmodule handle) {
  BEGIN_CALL();
  return with_module(handle, [&](const ModulePointer& module) {
    forget_functions(module);
    modules().remove(handle);
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  BEGIN_CALL();
  if (!mode) return failure(CUDA_ERROR_INVALID_VALUE, "no place for the mode was given");
  *mode = CU_MODULE_EAGER_LOADING;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
  BEGIN_CALL();
  return with_module(handle, [&](const ModulePointer& module) { return find_function(*module, name, function); });
}

ENTRY_POINT cuModuleGetFunctionCount(unsigned* count, CUmodule handle) {
  BEGIN_CALL();
  return with_module(handle, [&](const ModulePointer& module) {
    *count = static_cast<unsigned>(module->functions.size());
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuModuleEnumerateFunctions(CUfunction* found, unsigned count, CUmodule handle) {
  BEGIN_CALL();
  return with_module(handle, [&](const ModulePointer& module) {
    for (unsigned i = 0; i < count && i < module->functions.size(); i++) found[i] = module->functions[i].get();
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuModuleGetGlobal(CUdeviceptr* address, size_t* bytes, CUmodule handle, const char* name) {
  BEGIN_CALL();
  return with_module(handle,
                     [&](const ModulePointer& module) { return find_variable(*module, name, address, bytes); });
}

// ---- Entry points: libraries ---------------------------------------------------------------------------------------

ENTRY_POINT cuLibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**, unsigned, CUlibraryOption*,
                              void**, unsigned) {
  BEGIN_CALL();
  return load_library(library, image, "");
}

ENTRY_POINT cuLibraryLoadFromFile(CUlibrary* library, const char* path, CUjit_option*, void**, unsigned,
                                  CUlibraryOption*, void**, unsigned) {
  BEGIN_CALL();
  std::string bytes;
  if (CUresult error = read_image(path, &bytes)) return error;
  return load_library(library, bytes.data(), path);
}

ENTRY_POINT cuLibraryUnload(CUlibrary handle) {
  BEGIN_CALL();
  return with_library(handle, [&](const LibraryPointer& library) {
    for (const auto& [context, module] : library->modules) {
      forget_functions(module);
      modules().remove(module.get());
    }
    for (const auto& [name, kernel] : library->kernels) kernels().remove(kernel.get());
    libraries().remove(handle);
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuLibraryGetModule(CUmodule* module, CUlibrary handle) {
  BEGIN_CALL();
  return with_library(handle, [&](const LibraryPointer& library) {
    ModulePointer loaded;
    if (CUresult error = module_of(library, &loaded)) return error;
    *module = loaded.get();
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuLibraryGetKernel(CUkernel* kernel, CUlibrary handle, const char* name) {
  BEGIN_CALL();
  return with_library(handle, [&](const LibraryPointer& library) {
    auto found = library->kernels.find(name);
    if (found == library->kernels.end()) return failure(CUDA_ERROR_NOT_FOUND, "the library has no kernel '%s'", name);
    *kernel = found->second.get();
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuLibraryGetKernelCount(unsigned* count, CUlibrary handle) {
  BEGIN_CALL();
  return with_library(handle, [&](const LibraryPointer& library) {
    *count = static_cast<unsigned>(library->kernels.size());
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuLibraryEnumerateKernels(CUkernel* found, unsigned count, CUlibrary handle) {
  BEGIN_CALL();
  return with_library(handle, [&](const LibraryPointer& library) {
    unsigned i = 0;
    for (const auto& [name, kernel] : library->kernels) {
      if (i < count) found[i++] = kernel.get();
    }
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuLibraryGetGlobal(CUdeviceptr* address, size_t* bytes, CUlibrary handle, const char* name) {
  BEGIN_CALL();
  return with_library(handle, [&](const LibraryPointer& library) {
    ModulePointer module;
    if (CUresult error = module_of(library, &module)) return error;
    return find_variable(*module, name, address, bytes);
  });
}

ENTRY_POINT cuKernelGetFunction(CUfunction* function, CUkernel handle) {
  BEGIN_CALL();
  return with_kernel(handle, [&](const CUkern_st& kernel) { return function_of_kernel(kernel, function); });
}

ENTRY_POINT cuKernelGetLibrary(CUlibrary* library, CUkernel handle) {
  BEGIN_CALL();
  return with_kernel(handle, [&](const CUkern_st& kernel) {
    *library = kernel.library;
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuKernelGetName(const char** name, CUkernel handle) {
  BEGIN_CALL();
  return with_kernel(handle, [&](const CUkern_st& kernel) {
    *name = kernel.name.c_str();
    return CUDA_SUCCESS;
  });
}

// ---- Not simulated -------------------------------------------------------------------------------------------------

static CUresult refuse_linking() {
  return failure(CUDA_ERROR_NOT_SUPPORTED, "linking of device code (cuLink...) is not simulated; compile one source");
}

ENTRY_POINT cuLinkCreate(unsigned, CUjit_option*, void**, CUlinkState*) {
  BEGIN_CALL();
  return refuse_linking();
}

ENTRY_POINT cuLinkAddData(CUlinkState, CUjitInputType, void*, size_t, const char*, unsigned, CUjit_option*, void**) {
  BEGIN_CALL();
  return refuse_linking();
}

ENTRY_POINT cuLinkAddFile(CUlinkState, CUjitInputType, const char*, unsigned, CUjit_option*, void**) {
  BEGIN_CALL();
  return refuse_linking();
}

ENTRY_POINT cuLinkComplete(CUlinkState, void**, size_t*) {
  BEGIN_CALL();
  return refuse_linking();
}

ENTRY_POINT cuLinkDestroy(CUlinkState) {
  BEGIN_CALL();
  return refuse_linking();
}
