// Handles that programs hold: a pointer is looked up before it is used, so that a stale one is an error.
#pragma once
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <cuda.h>

namespace cudasim {

template <class T>
class Handles {
 public:
  T* add(std::shared_ptr<T> object) {
    T* handle = object.get();
    objects_[handle] = std::move(object);
    return handle;
  }

  std::shared_ptr<T> find(T* handle) const {
    auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }

  bool remove(T* handle) { return objects_.erase(handle) != 0; }

  std::vector<std::shared_ptr<T>> of(CUcontext context) const {
    std::vector<std::shared_ptr<T>> found;
    for (const auto& [handle, object] : objects_) {
      if (object->context == context) found.push_back(object);
    }
    return found;
  }

  auto begin() const { return objects_.begin(); }
  auto end() const { return objects_.end(); }

 private:
  std::map<T*, std::shared_ptr<T>> objects_;
};

}  // namespace cudasim
