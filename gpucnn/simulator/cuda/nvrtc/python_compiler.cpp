// Calls Python by its C interface, which is looked up in the process: this library is not linked to any libpython.
#include "python_compiler.h"

#include <dlfcn.h>

#include <mutex>

namespace cudasim {

constexpr int kMajor = CUDASIM_CUDA_VERSION / 1000;
constexpr const char* kModule = "gpucnn.simulator.cuda.compiler";
// Without Python nothing can be compiled, so nothing is cached under this number.
constexpr int kMinorWithoutPython = 9999;

struct PyObject;  // opaque here, as all of Python's types

// ---- Python's functions --------------------------------------------------------------------------------------------

struct Python {
  int (*is_initialized)();
  int (*ensure)();
  void (*release)(int state);
  PyObject* (*import)(const char* name);
  PyObject* (*attribute)(PyObject* object, const char* name);
  PyObject* (*call)(PyObject* function, PyObject* arguments);
  PyObject* (*decode)(const char* text, ptrdiff_t length, const char* errors);
  const char* (*encode)(PyObject* text, ptrdiff_t* length);
  int (*bytes)(PyObject* object, char** data, ptrdiff_t* length);
  PyObject* (*integer)(long value);
  long (*to_integer)(PyObject* object);
  PyObject* (*list)(ptrdiff_t length);
  int (*set_list_item)(PyObject* list, ptrdiff_t index, PyObject* item);
  ptrdiff_t (*list_size)(PyObject* list);
  PyObject* (*list_item)(PyObject* list, ptrdiff_t index);
  PyObject* (*tuple)(ptrdiff_t length);
  int (*set_tuple_item)(PyObject* tuple, ptrdiff_t index, PyObject* item);
  PyObject* (*tuple_item)(PyObject* tuple, ptrdiff_t index);
  PyObject* (*dict)();
  int (*set_dict_item)(PyObject* dict, PyObject* key, PyObject* value);
  void (*fetch_error)(PyObject** type, PyObject** value, PyObject** traceback);
  PyObject* (*string)(PyObject* object);
  void (*increase)(PyObject* object);
  void (*decrease)(PyObject* object);
  bool is_complete;

  Python() : is_complete(true) {
    find(is_initialized, "Py_IsInitialized");
    find(ensure, "PyGILState_Ensure");
    find(release, "PyGILState_Release");
    find(import, "PyImport_ImportModule");
    find(attribute, "PyObject_GetAttrString");
    find(call, "PyObject_CallObject");
    find(decode, "PyUnicode_DecodeUTF8");
    find(encode, "PyUnicode_AsUTF8AndSize");
    find(bytes, "PyBytes_AsStringAndSize");
    find(integer, "PyLong_FromLong");
    find(to_integer, "PyLong_AsLong");
    find(list, "PyList_New");
    find(set_list_item, "PyList_SetItem");
    find(list_size, "PyList_Size");
    find(list_item, "PyList_GetItem");
    find(tuple, "PyTuple_New");
    find(set_tuple_item, "PyTuple_SetItem");
    find(tuple_item, "PyTuple_GetItem");
    find(dict, "PyDict_New");
    find(set_dict_item, "PyDict_SetItem");
    find(fetch_error, "PyErr_Fetch");
    find(string, "PyObject_Str");
    find(increase, "Py_IncRef");
    find(decrease, "Py_DecRef");
  }

  template <class Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    is_complete = is_complete && function;
  }
};

// Null in a process without Python, or before it was started, or after it ended.
static const Python* python() {
  static const Python& functions = *new Python();
  return functions.is_complete && functions.is_initialized() ? &functions : nullptr;
}

// Holds the interpreter's lock, which the caller may or may not have.
class Lock {
 public:
  explicit Lock(const Python& python) : python_(python), state_(python.ensure()) {}
  ~Lock() { python_.release(state_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  const Python& python_;
  int state_;
};

// ---- Values --------------------------------------------------------------------------------------------------------

static PyObject* to_python(const Python& python, const Text& text) {
  return python.decode(text.data(), static_cast<ptrdiff_t>(text.size()), "replace");
}

static PyObject* to_python(const Python& python, const std::vector<Text>& texts) {
  PyObject* list = python.list(static_cast<ptrdiff_t>(texts.size()));
  for (size_t i = 0; list && i < texts.size(); i++) {
    python.set_list_item(list, static_cast<ptrdiff_t>(i), to_python(python, texts[i]));
  }
  return list;
}

static PyObject* to_python(const Python& python, const std::vector<Header>& headers) {
  PyObject* dict = python.dict();
  for (const Header& header : headers) {
    PyObject* name = to_python(python, header.name);
    PyObject* text = to_python(python, header.text);
    if (dict && name && text) python.set_dict_item(dict, name, text);
    python.decrease(name);
    python.decrease(text);
  }
  return dict;
}

static Text to_text(const Python& python, PyObject* object) {
  ptrdiff_t length = 0;
  const char* text = object ? python.encode(object, &length) : nullptr;
  return text ? Text(text, static_cast<size_t>(length)) : Text();
}

static Text to_bytes(const Python& python, PyObject* object) {
  char* data = nullptr;
  ptrdiff_t length = 0;
  if (!object || python.bytes(object, &data, &length)) return {};
  return Text(data, static_cast<size_t>(length));
}

// The text of the exception that is set, which is cleared.
static Text exception_text(const Python& python) {
  PyObject *type = nullptr, *value = nullptr, *traceback = nullptr;
  python.fetch_error(&type, &value, &traceback);
  PyObject* described = value ? python.string(value) : nullptr;
  const Text text = to_text(python, described);
  for (PyObject* object : {described, type, value, traceback}) python.decrease(object);
  return text;
}

// ---- Calls ---------------------------------------------------------------------------------------------------------

// Calls a function of the compiler's module; takes the arguments over. Null after an exception.
static PyObject* call(const Python& python, const char* name, const std::vector<PyObject*>& arguments) {
  PyObject* tuple = python.tuple(static_cast<ptrdiff_t>(arguments.size()));
  for (size_t i = 0; i < arguments.size(); i++) {
    python.set_tuple_item(tuple, static_cast<ptrdiff_t>(i), arguments[i]);
  }
  PyObject* module = python.import(kModule);
  PyObject* function = module ? python.attribute(module, name) : nullptr;
  PyObject* result = function ? python.call(function, tuple) : nullptr;
  for (PyObject* object : {function, module, tuple}) python.decrease(object);
  return result;
}

static void take_over(const Python& python, PyObject* compiled, Program& program) {
  program.status = static_cast<nvrtcResult>(python.to_integer(python.tuple_item(compiled, 0)));
  program.image = to_bytes(python, python.tuple_item(compiled, 1));
  program.log = to_text(python, python.tuple_item(compiled, 2));
  PyObject* symbols = python.tuple_item(compiled, 3);
  for (ptrdiff_t i = 0; i < python.list_size(symbols); i++) {
    program.symbols.push_back(to_text(python, python.list_item(symbols, i)));
  }
}

static void fail(Program& program, const Text& reason) {
  program.status = NVRTC_ERROR_INTERNAL_ERROR;
  program.log = "the simulated NVRTC cannot compile " + program.name + ": " + reason + "\n";
}

void compile(Program& program, const std::vector<Text>& options) {
  const Python* python = cudasim::python();
  program.was_compiled = true;
  if (!python) {
    fail(program, "its compiler is a part of gpucnn and runs in Python, which this process does not");
    return;
  }
  const Lock lock(*python);
  PyObject* compiled = call(*python, "compile_program",
                            {to_python(*python, program.text), to_python(*python, program.name),
                             to_python(*python, program.headers), to_python(*python, options),
                             to_python(*python, program.expressions), python->integer(kMajor)});
  if (compiled) {
    take_over(*python, compiled, program);
  } else {
    fail(program, exception_text(*python));
  }
  python->decrease(compiled);
}

static int ask_version_minor() {
  const Python* python = cudasim::python();
  if (!python) return kMinorWithoutPython;
  const Lock lock(*python);
  PyObject* number = call(*python, "version_minor", {});
  if (!number) exception_text(*python);
  const int minor = number ? static_cast<int>(python->to_integer(number)) : kMinorWithoutPython;
  python->decrease(number);
  return minor;
}

// Not under a lock of our own: asking takes the interpreter's, which another thread may hold while it waits for ours.
int version_minor() {
  static std::mutex guard;
  static int known = 0;
  {
    const std::lock_guard<std::mutex> hold(guard);
    if (known) return known;
  }
  const int minor = ask_version_minor();
  const std::lock_guard<std::mutex> hold(guard);
  if (minor != kMinorWithoutPython) known = minor;
  return minor;
}

}  // namespace cudasim
