// Graphs: pieces of work with their order, captured from streams.
#pragma once
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "streams.h"

struct CUgraphNode_st {
  std::string name;
  cudasim::WorkKind kind;
  cudasim::Work work;
  std::vector<size_t> after;  // earlier nodes of the graph
};

struct CUgraph_st {
  std::vector<std::shared_ptr<CUgraphNode_st>> nodes;
};

// The nodes are kept as they were when the graph was instantiated.
struct CUgraphExec_st {
  CUgraph_st graph;
};

namespace cudasim {

// The sequence of streams, joined by events, that is being captured into one graph.
struct Capture {
  uint64_t id;
  CUstreamCaptureMode mode;
  std::thread::id thread;
  StreamPointer origin;
  std::vector<StreamPointer> members;
  std::shared_ptr<CUgraph_st> graph;
  bool is_invalid = false;
};

}  // namespace cudasim
