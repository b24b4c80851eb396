// cuFFT's entry points: plans are made, given a stream, executed and destroyed.
#include <stdio.h>

#include <map>
#include <mutex>
#include <optional>

#include "plan.h"

namespace cudasim::cufft {

cufftResult refuse(cufftResult result, const std::string& sentence) {
  fprintf(stderr, "simulated cuFFT: %s\n", sentence.c_str());
  cudasim_set_detail(sentence.c_str());
  return result;
}

// ---- The plans of the process --------------------------------------------------------------------------------------

static std::mutex plans_lock;
static int last_handle = 0;

static std::map<cufftHandle, Plan>& plans() {
  static auto* plans = new std::map<cufftHandle, Plan>;  // never destroyed: calls come at exit, too
  return *plans;
}

static std::optional<Plan> find(cufftHandle handle) {
  std::lock_guard<std::mutex> guard(plans_lock);
  const auto found = plans().find(handle);
  if (found == plans().end()) return std::nullopt;
  return found->second;
}

static cufftResult create(cufftHandle* handle) {
  if (!handle) return CUFFT_INVALID_VALUE;
  std::lock_guard<std::mutex> guard(plans_lock);
  *handle = ++last_handle;
  plans()[*handle] = Plan();
  return CUFFT_SUCCESS;
}

// Does change(plan), counted as a call of `name`.
template <class Change>
static cufftResult with_plan(const char* name, cufftHandle handle, Change change) {
  if (cudasim_begin_call(name)) return CUFFT_EXEC_FAILED;
  std::lock_guard<std::mutex> guard(plans_lock);
  const auto found = plans().find(handle);
  if (found == plans().end()) return refuse(CUFFT_INVALID_PLAN, std::string(name) + ": there is no such plan");
  return change(found->second);
}

// ---- Making of plans -----------------------------------------------------------------------------------------------

static bool types_of(cufftType type, cudaDataType* input, cudaDataType* output) {
  const bool is_double = type & 0x40;
  const cudaDataType real = is_double ? CUDA_R_64F : CUDA_R_32F, complex = is_double ? CUDA_C_64F : CUDA_C_32F;
  switch (type) {
    case CUFFT_C2C:
    case CUFFT_Z2Z:
      *input = *output = complex;
      return true;
    case CUFFT_R2C:
    case CUFFT_D2Z:
      *input = real, *output = complex;
      return true;
    case CUFFT_C2R:
    case CUFFT_Z2D:
      *input = complex, *output = real;
      return true;
  }
  return false;
}

static bool is_known(cudaDataType type) {
  return is_complex(type) || type == CUDA_R_16F || type == CUDA_R_16BF || type == CUDA_R_32F || type == CUDA_R_64F;
}

// An array of its own, dense, as a null pointer for `embed` asks for.
static Layout dense(const Plan& plan, const Layout& types) {
  Layout layout{types.type, plan.sizes, 1, plan.rows() * plan.stored(types)};
  layout.embed.back() = plan.stored(types);
  return layout;
}

template <class Integer>
struct Request {
  int rank;
  const Integer* sizes;
  const Integer* input_embed;
  Integer input_stride, input_distance;
  const Integer* output_embed;
  Integer output_stride, output_distance;
  Integer batch;
};

template <class Integer>
static cufftResult make(const char* name, Plan& plan, const Request<Integer>& request, size_t* work_bytes) {
  const std::string call = name;
  if (request.rank < 1 || request.rank > 3) return refuse(CUFFT_INVALID_VALUE, call + ": the rank must be 1, 2 or 3");
  if (!request.sizes || request.batch < 1) return refuse(CUFFT_INVALID_VALUE, call + ": there is nothing to transform");
  for (int d = 0; d < request.rank; d++) {
    if (request.sizes[d] < 1) return refuse(CUFFT_INVALID_SIZE, call + ": the sizes must be 1 or greater");
  }
  plan.sizes.assign(request.sizes, request.sizes + request.rank);
  plan.is_default_layout = !request.input_embed || !request.output_embed;
  if (plan.is_default_layout) {
    plan.input = dense(plan, plan.input);
    plan.output = dense(plan, plan.output);
  } else {
    if (request.input_stride < 1 || request.output_stride < 1) {
      return refuse(CUFFT_INVALID_VALUE, call + ": the strides must be 1 or greater");
    }
    const auto list = [&](const Integer* embed) { return std::vector<size_t>(embed, embed + request.rank); };
    plan.input = {plan.input.type, list(request.input_embed), static_cast<size_t>(request.input_stride),
                  static_cast<size_t>(request.input_distance)};
    plan.output = {plan.output.type, list(request.output_embed), static_cast<size_t>(request.output_stride),
                   static_cast<size_t>(request.output_distance)};
  }
  plan.batch = static_cast<size_t>(request.batch);
  if (work_bytes) *work_bytes = plan.work_bytes();
  return CUFFT_SUCCESS;
}

template <class Integer>
static cufftResult make_typed(const char* name, cufftHandle handle, cufftType type, const Request<Integer>& request,
                              size_t* work_bytes) {
  return with_plan(name, handle, [&](Plan& plan) {
    if (!types_of(type, &plan.input.type, &plan.output.type)) {
      return refuse(CUFFT_INVALID_TYPE, std::string(name) + ": there is no such type of transform");
    }
    return make(name, plan, request, work_bytes);
  });
}

// A dense plan of this shape.
static cufftResult make_dense(const char* name, cufftHandle handle, std::vector<int> sizes, cufftType type, int batch,
                              size_t* work_bytes) {
  const Request<int> request{static_cast<int>(sizes.size()), sizes.data(), nullptr, 1, 0, nullptr, 1, 0, batch};
  return make_typed(name, handle, type, request, work_bytes);
}

// What makes a plan in one call creates the handle, too.
template <class Make>
static cufftResult create_and_make(cufftHandle* handle, Make make) {
  if (cufftResult result = create(handle)) return result;
  const cufftResult result = make(*handle);
  if (result) {
    std::lock_guard<std::mutex> guard(plans_lock);
    plans().erase(*handle);
  }
  return result;
}

// ---- Execution -----------------------------------------------------------------------------------------------------

struct Task {
  Plan plan;
  const char* name;
  const void* input;
  void* output;
  int sign;
};

// A GPU would write to the work area: the program's must be there. What is computed here has memory of the process.
static CUresult check_work_area(const Plan& plan, const std::string& name) {
  if (plan.allocates) return CUDA_SUCCESS;
  return cudasim_check_range((name + ": work area").c_str(), plan.work_area, plan.work_bytes(), true);
}

static CUresult run(void* data) {
  const auto* task = static_cast<Task*>(data);
  CUresult result = check_work_area(task->plan, task->name);
  if (!result) result = execute(task->plan, task->name, task->input, task->output, task->sign);
  if (result) {
    const char* text = nullptr;
    if (cuGetErrorString(result, &text) || !text) text = "failed";
    fprintf(stderr, "simulated cuFFT: %s: %s\n", task->name, text);  // nobody looks at deferred work's status
  }
  return result;
}

static cufftResult enqueue(const char* name, cufftHandle handle, const void* input, void* output, int sign) {
  if (cudasim_begin_call(name)) return CUFFT_EXEC_FAILED;
  const std::optional<Plan> plan = find(handle);
  const std::string call = name;
  if (!plan) return refuse(CUFFT_INVALID_PLAN, call + ": there is no such plan");
  if (plan->batch == 0) return refuse(CUFFT_INVALID_PLAN, call + ": the plan was created, but not made");
  if (sign != CUFFT_FORWARD && sign != CUFFT_INVERSE) {
    return refuse(CUFFT_INVALID_VALUE, call + ": the direction must be CUFFT_FORWARD or CUFFT_INVERSE");
  }
  if (!plan->allocates && !plan->work_area) return refuse(CUFFT_NO_WORKSPACE, call + ": the plan has no work area");
  auto* task = new Task{*plan, name, input, output, sign};
  const auto destroy = [](void* data) { delete static_cast<Task*>(data); };
  return cudasim_enqueue(plan->stream, name, run, task, destroy) ? CUFFT_EXEC_FAILED : CUFFT_SUCCESS;
}

static cufftResult enqueue_typed(const char* name, cufftHandle handle, cufftType type, const void* input, void* output,
                                 int sign) {
  const std::optional<Plan> plan = find(handle);
  cudaDataType input_type, output_type;
  types_of(type, &input_type, &output_type);
  if (plan && plan->batch && (plan->input.type != input_type || plan->output.type != output_type)) {
    return refuse(CUFFT_INVALID_TYPE, std::string(name) + ": the plan is for another type of transform");
  }
  return enqueue(name, handle, input, output, sign);
}

}  // namespace cudasim::cufft

using namespace cudasim::cufft;

CUFFT_ENTRY cufftGetVersion(int* version) {
  if (cudasim_begin_call(__func__)) return CUFFT_SETUP_FAILED;
  if (!version) return CUFFT_INVALID_VALUE;
  *version = CUDASIM_CUDA_VERSION >= 13000 ? 12000 : 11400;
  return CUFFT_SUCCESS;
}

CUFFT_ENTRY cufftCreate(cufftHandle* handle) {
  if (cudasim_begin_call(__func__)) return CUFFT_SETUP_FAILED;
  return create(handle);
}

CUFFT_ENTRY cufftDestroy(cufftHandle handle) {
  if (cudasim_begin_call(__func__)) return CUFFT_EXEC_FAILED;
  std::lock_guard<std::mutex> guard(plans_lock);
  return plans().erase(handle) ? CUFFT_SUCCESS : refuse(CUFFT_INVALID_PLAN, "cufftDestroy: there is no such plan");
}

CUFFT_ENTRY cufftSetAutoAllocation(cufftHandle handle, int allocates) {
  return with_plan(__func__, handle, [=](Plan& plan) {
    plan.allocates = allocates != 0;
    return CUFFT_SUCCESS;
  });
}

CUFFT_ENTRY cufftSetWorkArea(cufftHandle handle, void* work_area) {
  return with_plan(__func__, handle, [=](Plan& plan) {
    plan.allocates = false;
    plan.work_area = work_area;
    return CUFFT_SUCCESS;
  });
}

CUFFT_ENTRY cufftGetSize(cufftHandle handle, size_t* work_bytes) {
  return with_plan(__func__, handle, [=](Plan& plan) {
    if (!work_bytes || plan.batch == 0) return refuse(CUFFT_INVALID_PLAN, "cufftGetSize: the plan was not made");
    *work_bytes = plan.work_bytes();
    return CUFFT_SUCCESS;
  });
}

CUFFT_ENTRY cufftSetStream(cufftHandle handle, CUstream stream) {
  return with_plan(__func__, handle, [=](Plan& plan) {
    plan.stream = stream;
    return CUFFT_SUCCESS;
  });
}

CUFFT_ENTRY cufftMakePlan1d(cufftHandle handle, int nx, cufftType type, int batch, size_t* work_bytes) {
  return make_dense(__func__, handle, {nx}, type, batch, work_bytes);
}

CUFFT_ENTRY cufftMakePlan2d(cufftHandle handle, int nx, int ny, cufftType type, size_t* work_bytes) {
  return make_dense(__func__, handle, {nx, ny}, type, 1, work_bytes);
}

CUFFT_ENTRY cufftMakePlan3d(cufftHandle handle, int nx, int ny, int nz, cufftType type, size_t* work_bytes) {
  return make_dense(__func__, handle, {nx, ny, nz}, type, 1, work_bytes);
}

CUFFT_ENTRY cufftMakePlanMany(cufftHandle handle, int rank, int* sizes, int* input_embed, int input_stride,
                              int input_distance, int* output_embed, int output_stride, int output_distance,
                              cufftType type, int batch, size_t* work_bytes) {
  const Request<int> request{rank,         sizes,         input_embed,     input_stride, input_distance,
                             output_embed, output_stride, output_distance, batch};
  return make_typed(__func__, handle, type, request, work_bytes);
}

CUFFT_ENTRY cufftMakePlanMany64(cufftHandle handle, int rank, long long* sizes, long long* input_embed,
                                long long input_stride, long long input_distance, long long* output_embed,
                                long long output_stride, long long output_distance, cufftType type, long long batch,
                                size_t* work_bytes) {
  const Request<long long> request{rank,         sizes,         input_embed,     input_stride, input_distance,
                                   output_embed, output_stride, output_distance, batch};
  return make_typed(__func__, handle, type, request, work_bytes);
}

CUFFT_ENTRY cufftPlan1d(cufftHandle* handle, int nx, cufftType type, int batch) {
  const char* name = __func__;
  return create_and_make(handle, [=](cufftHandle made) { return make_dense(name, made, {nx}, type, batch, nullptr); });
}

CUFFT_ENTRY cufftPlan2d(cufftHandle* handle, int nx, int ny, cufftType type) {
  const char* name = __func__;
  return create_and_make(handle, [=](cufftHandle made) { return make_dense(name, made, {nx, ny}, type, 1, nullptr); });
}

CUFFT_ENTRY cufftPlan3d(cufftHandle* handle, int nx, int ny, int nz, cufftType type) {
  const char* name = __func__;
  const auto make = [=](cufftHandle made) { return make_dense(name, made, {nx, ny, nz}, type, 1, nullptr); };
  return create_and_make(handle, make);
}

CUFFT_ENTRY cufftPlanMany(cufftHandle* handle, int rank, int* sizes, int* input_embed, int input_stride,
                          int input_distance, int* output_embed, int output_stride, int output_distance,
                          cufftType type, int batch) {
  const char* name = __func__;
  const Request<int> request{rank,         sizes,         input_embed,     input_stride, input_distance,
                             output_embed, output_stride, output_distance, batch};
  return create_and_make(handle, [=](cufftHandle made) { return make_typed(name, made, type, request, nullptr); });
}

CUFFT_ENTRY cufftXtMakePlanMany(cufftHandle handle, int rank, long long* sizes, long long* input_embed,
                                long long input_stride, long long input_distance, cudaDataType input_type,
                                long long* output_embed, long long output_stride, long long output_distance,
                                cudaDataType output_type, long long batch, size_t* work_bytes, cudaDataType) {
  const char* name = __func__;
  const Request<long long> request{rank,         sizes,         input_embed,     input_stride, input_distance,
                                   output_embed, output_stride, output_distance, batch};
  return with_plan(name, handle, [&](Plan& plan) {
    if (!is_known(input_type) || !is_known(output_type) || !(is_complex(input_type) || is_complex(output_type))) {
      return refuse(CUFFT_INVALID_TYPE, std::string(name) + ": there is no transform of these types");
    }
    plan.input.type = input_type;
    plan.output.type = output_type;
    return make(name, plan, request, work_bytes);
  });
}

CUFFT_ENTRY cufftExecC2C(cufftHandle handle, void* input, void* output, int direction) {
  return enqueue_typed(__func__, handle, CUFFT_C2C, input, output, direction);
}

CUFFT_ENTRY cufftExecZ2Z(cufftHandle handle, void* input, void* output, int direction) {
  return enqueue_typed(__func__, handle, CUFFT_Z2Z, input, output, direction);
}

CUFFT_ENTRY cufftExecR2C(cufftHandle handle, void* input, void* output) {
  return enqueue_typed(__func__, handle, CUFFT_R2C, input, output, CUFFT_FORWARD);
}

CUFFT_ENTRY cufftExecD2Z(cufftHandle handle, void* input, void* output) {
  return enqueue_typed(__func__, handle, CUFFT_D2Z, input, output, CUFFT_FORWARD);
}

CUFFT_ENTRY cufftExecC2R(cufftHandle handle, void* input, void* output) {
  return enqueue_typed(__func__, handle, CUFFT_C2R, input, output, CUFFT_INVERSE);
}

CUFFT_ENTRY cufftExecZ2D(cufftHandle handle, void* input, void* output) {
  return enqueue_typed(__func__, handle, CUFFT_Z2D, input, output, CUFFT_INVERSE);
}

CUFFT_ENTRY cufftXtExec(cufftHandle handle, void* input, void* output, int direction) {
  const std::optional<Plan> plan = find(handle);
  const bool has_direction = !plan || plan->batch == 0 || plan->kind() == Kind::kComplex;
  const int implied = has_direction || plan->kind() == Kind::kRealToComplex ? CUFFT_FORWARD : CUFFT_INVERSE;
  return enqueue(__func__, handle, input, output, has_direction ? direction : implied);
}

// ---- Transforms over several devices are not simulated -------------------------------------------------------------

static cufftResult one_device_only(const char* name) {
  if (cudasim_begin_call(name)) return CUFFT_EXEC_FAILED;
  return refuse(CUFFT_NOT_SUPPORTED, std::string(name) + " is not simulated: a transform runs on one device");
}

CUFFT_ENTRY cufftXtSetGPUs(cufftHandle, int, int*) { return one_device_only(__func__); }
CUFFT_ENTRY cufftXtSetWorkArea(cufftHandle, void**) { return one_device_only(__func__); }
CUFFT_ENTRY cufftXtMemcpy(cufftHandle, void*, void*, int) { return one_device_only(__func__); }
CUFFT_ENTRY cufftXtExecDescriptorC2C(cufftHandle, void*, void*, int) { return one_device_only(__func__); }
CUFFT_ENTRY cufftXtExecDescriptorZ2Z(cufftHandle, void*, void*, int) { return one_device_only(__func__); }
