// A call of an entry point: validation of its parameters, and work in the order of the handle's stream.
#pragma once
#include <string>
#include <utility>

#include "handle.h"

namespace cudasim::cublas {

// Prints what a call cannot do, or why it failed, and makes it the detail of the last failure.
void report(const std::string& sentence);

// alpha or beta: a copy of the host's value, or where it lies on the device.
class Scalar {
 public:
  Scalar(const void* pointer, size_t bytes, cublasPointerMode_t mode);

  // The value, when the turn of the call has come. `what` names it in messages.
  template <class T>
  CUresult get(const std::string& what, T& value) const {
    return copy(what, &value, sizeof value);
  }

 private:
  CUresult copy(const std::string& what, void* value, size_t bytes) const;

  char value_[16];
  const void* device_;
};

class Call {
 public:
  // Counts the call, and checks the handle: alive, and its device the current one.
  Call(const char* name, cublasHandle_t handle);

  // Refuses the call with CUBLAS_STATUS_INVALID_VALUE and a sentence, unless `condition`.
  void require(bool condition, const char* sentence);
  void require_lead(const char* name, int lead, int rows);
  void require_operation(const char* name, cublasOperation_t operation);
  // Refuses the call with CUBLAS_STATUS_NOT_SUPPORTED and a sentence.
  void refuse_as_unsupported(const std::string& sentence);

  bool valid() const { return status_ == CUBLAS_STATUS_SUCCESS; }
  cublasStatus_t status() const { return status_; }
  const char* name() const { return name_; }
  cublasHandle_t handle() const { return handle_; }

  template <class T>
  Scalar scalar(const T* pointer) const {
    return scalar(pointer, sizeof(T));
  }
  Scalar scalar(const void* pointer, size_t bytes) const;

  // Does work() in the order of the stream; each replay of a graph does it again.
  template <class Work>
  cublasStatus_t enqueue(Work work) {
    auto* task = new Task<Work>{name_, std::move(work)};
    return enqueued(cudasim_enqueue(handle_->stream, name_, run<Work>, task, destroy<Work>));
  }

  // Does work() likewise, and waits for it if its result goes to the host's memory.
  template <class Work>
  cublasStatus_t enqueue_with_result(Work work) {
    if (refuses_to_wait()) return status_;
    const cublasStatus_t status = enqueue(std::move(work));
    return status == CUBLAS_STATUS_SUCCESS ? wait_for_result() : status;
  }

 private:
  template <class Work>
  struct Task {
    const char* name;
    Work work;
  };
  template <class Work>
  static CUresult run(void* data) {
    auto* task = static_cast<Task<Work>*>(data);
    return ran(task->name, task->work());
  }
  template <class Work>
  static void destroy(void* data) {
    delete static_cast<Task<Work>*>(data);
  }
  static CUresult ran(const char* name, CUresult result);

  void refuse(cublasStatus_t status, const std::string& sentence);
  cublasStatus_t enqueued(CUresult result);
  bool refuses_to_wait();
  cublasStatus_t wait_for_result();

  const char* name_;
  cublasHandle_t handle_;
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
};

}  // namespace cudasim::cublas
