// The entry points of the driver by name. No CUDA header is included: of each only the address is taken, and a name in
// the list that no file defines fails to link.
#include <string>

#define ENTRY(name) extern "C" int name();
#include "entry_points.inc"
#undef ENTRY

namespace cudasim {

struct EntryPoint {
  const char* name;
  int (*address)();
};

static const EntryPoint kEntryPoints[] = {
#define ENTRY(name) {#name, name},
#include "entry_points.inc"
#undef ENTRY
};

void* entry_point(const std::string& name) {
  for (const EntryPoint& entry : kEntryPoints) {
    if (name == entry.name) return reinterpret_cast<void*>(entry.address);
  }
  return nullptr;
}

void* latest_entry_point(const std::string& name) {
  for (const char* version : {"_v4", "_v3", "_v2", ""}) {
    if (void* found = entry_point(name + version)) return found;
  }
  return nullptr;
}

}  // namespace cudasim
