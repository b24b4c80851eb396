// Capture of streams into graphs, and their replay.
#include "graphs.h"

#include <algorithm>
#include <cstdio>

#include "handles.h"

using namespace cudasim;

namespace cudasim {

static Handles<CUgraph_st>& graphs() {
  static auto& all = *new Handles<CUgraph_st>;  // never destroyed: other libraries call in at exit
  return all;
}

static Handles<CUgraphExec_st>& executables() {
  static auto& all = *new Handles<CUgraphExec_st>;
  return all;
}

static std::vector<std::shared_ptr<Capture>>& captures() {
  static auto& all = *new std::vector<std::shared_ptr<Capture>>;
  return all;
}

// ---- What a capture forbids ----------------------------------------------------------------------------------------

static thread_local CUstreamCaptureMode interaction_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static bool forbids_unsafe_calls(const Capture& capture) {
  if (interaction_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
  if (capture.thread == std::this_thread::get_id()) return capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED;
  return interaction_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

bool is_any_capturing_in_global_mode() {
  Guard guard(driver_lock());
  const auto& all = captures();
  return std::any_of(all.begin(), all.end(), [](const auto& capture) { return forbids_unsafe_calls(*capture); });
}

CUresult refuse_while_capturing(const char* call) {
  Guard guard(driver_lock());
  if (!is_any_capturing_in_global_mode()) return CUDA_SUCCESS;
  for (const auto& capture : captures()) capture->is_invalid |= forbids_unsafe_calls(*capture);
  return failure(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                 "%s must not be called while a stream is being captured; the capture is now invalid", call);
}

CUresult refuse_capturing(const StreamPointer& stream, const char* what) {
  if (stream->capture->is_invalid) {
    return failure(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier call has invalidated the capture of the stream");
  }
  stream->capture->is_invalid = true;
  return failure(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                 "the stream is being captured, which %s does not go with; the capture is now invalid", what);
}

CUresult refuse_legacy_stream(CUcontext context, bool invalidates) {
  CUresult result = CUDA_SUCCESS;
  for (const auto& capture : captures()) {
    for (const StreamPointer& member : capture->members) {
      if (member->context != context || !member->is_blocking()) continue;
      if (invalidates) capture->is_invalid = true;
      result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
  }
  if (!result) return result;
  return failure(result, "the legacy default stream is ordered with a blocking stream that is being captured; "
                         "capture a non-blocking stream, or use another one than the default stream meanwhile");
}

// ---- Capturing -----------------------------------------------------------------------------------------------------

static CUresult refuse_invalid(const Capture& capture) {
  if (!capture.is_invalid) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier call has invalidated the capture of the stream");
}

CUresult capture_work(const StreamPointer& stream, std::string name, WorkKind kind, Work work) {
  Capture& capture = *stream->capture;
  if (CUresult error = refuse_invalid(capture)) return error;
  auto node = std::make_shared<CUgraphNode_st>();
  *node = {std::move(name), kind, std::move(work), stream->tips};
  stream->tips = {capture.graph->nodes.size()};
  capture.graph->nodes.push_back(std::move(node));
  return CUDA_SUCCESS;
}

CUresult capture_record(const StreamPointer& stream, CUevent_st& event) {
  if (CUresult error = refuse_invalid(*stream->capture)) return error;
  event.capture = stream->capture;
  event.tips = stream->tips;
  event.recording = nullptr;
  return CUDA_SUCCESS;
}

static void join(const StreamPointer& stream, const CUevent_st& event) {
  if (!stream->capture) {
    stream->capture = event.capture;
    stream->tips.clear();
    event.capture->members.push_back(stream);
  }
  for (size_t tip : event.tips) {
    if (std::count(stream->tips.begin(), stream->tips.end(), tip) == 0) stream->tips.push_back(tip);
  }
}

static bool is_under_way(const Capture& capture) {
  const auto& all = captures();
  return std::any_of(all.begin(), all.end(), [&](const auto& other) { return other.get() == &capture; });
}

CUresult capture_wait(const StreamPointer& stream, const CUevent_st& event) {
  if (!event.capture || !is_under_way(*event.capture)) {
    if (!stream->capture) return CUDA_SUCCESS;  // what was captured has never run
    stream->capture->is_invalid = true;
    return failure(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                   "a stream that is being captured waits for an event of outside the capture; it is now invalid");
  }
  if (CUresult error = refuse_invalid(*event.capture)) return error;
  if (stream->capture && stream->capture != event.capture) {
    stream->capture->is_invalid = event.capture->is_invalid = true;
    return failure(CUDA_ERROR_STREAM_CAPTURE_MERGE, "a wait would merge two captures; both are now invalid");
  }
  if (stream->is_legacy) {
    event.capture->is_invalid = true;
    return failure(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy default stream cannot join a capture");
  }
  join(stream, event);
  return CUDA_SUCCESS;
}

static void end_capture(const std::shared_ptr<Capture>& capture) {
  for (const StreamPointer& member : capture->members) {
    member->capture = nullptr;
    member->tips.clear();
  }
  auto& all = captures();
  all.erase(std::remove(all.begin(), all.end(), capture), all.end());
  capture->members.clear();
  capture->origin = nullptr;
}

void leave_capture(const StreamPointer& stream) {
  std::shared_ptr<Capture> capture = stream->capture;
  capture->is_invalid = true;
  if (stream == capture->origin) return end_capture(capture);
  auto& members = capture->members;
  members.erase(std::remove(members.begin(), members.end(), stream), members.end());
  stream->capture = nullptr;
}

// The nodes that come before these, and these.
static std::vector<bool> with_ancestors(const CUgraph_st& graph, const std::vector<size_t>& tips) {
  std::vector<bool> marked(graph.nodes.size(), false);
  for (size_t tip : tips) marked[tip] = true;
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    if (!marked[i]) continue;
    for (size_t earlier : graph.nodes[i]->after) marked[earlier] = true;
  }
  return marked;
}

static bool is_joined(const Capture& capture) {
  const std::vector<bool> before_end = with_ancestors(*capture.graph, capture.origin->tips);
  for (const StreamPointer& member : capture.members) {
    for (size_t tip : member->tips) {
      if (!before_end[tip]) return false;
    }
  }
  return true;
}

static CUresult begin(const StreamPointer& stream, CUstreamCaptureMode mode) {
  static uint64_t last_id = 0;
  if (stream->is_legacy) {
    return failure(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot be captured");
  }
  if (stream->capture) return failure(CUDA_ERROR_ILLEGAL_STATE, "the stream is already being captured");
  auto capture = std::make_shared<Capture>();
  capture->id = ++last_id;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = stream;
  capture->members = {stream};
  capture->graph = std::make_shared<CUgraph_st>();
  stream->capture = capture;
  stream->tips.clear();
  captures().push_back(capture);
  return CUDA_SUCCESS;
}

static CUresult end(const StreamPointer& stream, CUgraph* graph) {
  std::shared_ptr<Capture> capture = stream->capture;
  if (!capture) return failure(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
  if (stream != capture->origin) {
    capture->is_invalid = true;
    return failure(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
                   "the capture was begun in another stream, where it must be ended; it is now invalid");
  }
  const bool is_other_thread = capture->thread != std::this_thread::get_id();
  if (is_other_thread && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
    capture->is_invalid = true;
    return failure(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
                   "the capture was begun in another thread, which a capture that is not relaxed must be ended in");
  }
  const bool joined = is_joined(*capture);
  const CUresult invalid = refuse_invalid(*capture);
  end_capture(capture);
  if (invalid) return invalid;
  if (!joined) {
    return failure(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                   "work that was captured in another stream does not join the stream that the capture began in");
  }
  *graph = graphs().add(capture->graph);
  return CUDA_SUCCESS;
}

// ---- Replay --------------------------------------------------------------------------------------------------------

// Nodes whose earlier nodes have all been placed.
static std::vector<size_t> placeable(const CUgraph_st& graph, const std::vector<bool>& placed) {
  std::vector<size_t> found;
  for (size_t i = 0; i < graph.nodes.size(); i++) {
    const auto& after = graph.nodes[i]->after;
    const bool is_free = std::all_of(after.begin(), after.end(), [&](size_t earlier) { return placed[earlier]; });
    if (!placed[i] && is_free) found.push_back(i);
  }
  return found;
}

// As captured or, with a stream seed, in a random order that the dependencies allow.
static std::vector<size_t> order_of_nodes(const CUgraph_st& graph) {
  std::vector<size_t> order;
  std::vector<bool> placed(graph.nodes.size(), false);
  while (order.size() < graph.nodes.size()) {
    size_t next = order.size();
    if (settings().stream_seed) {
      const std::vector<size_t> candidates = placeable(graph, placed);
      next = candidates[draw(candidates.size())];
    }
    placed[next] = true;
    order.push_back(next);
  }
  return order;
}

static CUresult refuse_graph(CUgraph handle) {
  return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no graph, or one that was destroyed", (void*)handle);
}

// Calls `answer` with the graph of a handle.
template <class Answer>
static CUresult with_graph(CUgraph handle, Answer answer) {
  Guard guard(driver_lock());
  std::shared_ptr<CUgraph_st> graph = graphs().find(handle);
  return graph ? answer(*graph) : refuse_graph(handle);
}

static CUresult instantiate(CUgraphExec* handle, CUgraph graph_handle) {
  return with_graph(graph_handle, [&](const CUgraph_st& graph) {
    auto executable = std::make_shared<CUgraphExec_st>();
    executable->graph = graph;
    *handle = executables().add(executable);
    return CUDA_SUCCESS;
  });
}

static CUresult refuse_executable(CUgraphExec handle) {
  return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no executable graph, or one that was destroyed", (void*)handle);
}

static CUresult launch(CUgraphExec handle, CUstream stream_handle) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  StreamPointer stream = stream_of(stream_handle, &error);
  if (!stream) return error;
  std::shared_ptr<CUgraphExec_st> executable = executables().find(handle);
  if (!executable) return refuse_executable(handle);
  for (size_t number : order_of_nodes(executable->graph)) {
    const auto& node = executable->graph.nodes[number];
    if (CUresult failed = issue(stream, "cuGraphLaunch: " + node->name, node->kind, node->work)) return failed;
  }
  return CUDA_SUCCESS;
}

}  // namespace cudasim

// ---- Entry points: capture -----------------------------------------------------------------------------------------

// Calls `answer` with the stream of a handle.
template <class Answer>
static CUresult with_stream(CUstream handle, Answer answer) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  StreamPointer stream = stream_of(handle, &error);
  return stream ? answer(stream) : error;
}

ENTRY_POINT cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
  BEGIN_CALL();
  if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
    return failure(CUDA_ERROR_INVALID_VALUE, "capture mode %d", static_cast<int>(mode));
  }
  return with_stream(handle, [&](const StreamPointer& stream) { return begin(stream, mode); });
}

ENTRY_POINT cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  BEGIN_CALL();
  if (!graph) return failure(CUDA_ERROR_INVALID_VALUE, "no place for the graph was given");
  *graph = nullptr;
  return with_stream(handle, [&](const StreamPointer& stream) { return end(stream, graph); });
}

static CUstreamCaptureStatus status_of(const CUstream_st& stream) {
  if (!stream.capture) return CU_STREAM_CAPTURE_STATUS_NONE;
  return stream.capture->is_invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

ENTRY_POINT cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  BEGIN_CALL();
  return with_stream(handle, [&](const StreamPointer& stream) {
    if (stream->is_legacy) {
      if (CUresult error = refuse_legacy_stream(stream->context, false)) return error;
    }
    *status = status_of(*stream);
    return CUDA_SUCCESS;
  });
}

// The nodes that the next piece of work comes after; valid until the next call on the stream.
static void get_tips(const CUstream_st& stream, const CUgraphNode** nodes, size_t* count) {
  static thread_local auto& answer = *new std::vector<CUgraphNode>;
  answer.clear();
  for (size_t tip : stream.tips) answer.push_back(stream.capture->graph->nodes[tip].get());
  if (nodes) *nodes = answer.data();
  if (count) *count = answer.size();
}

static CUresult capture_info(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                             const CUgraphNode** nodes, size_t* count) {
  return with_stream(handle, [&](const StreamPointer& stream) {
    if (stream->is_legacy) {
      if (CUresult error = refuse_legacy_stream(stream->context, false)) return error;
    }
    *status = status_of(*stream);
    if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_SUCCESS;
    if (id) *id = stream->capture->id;
    if (graph) *graph = stream->capture->graph.get();
    get_tips(*stream, nodes, count);
    return CUDA_SUCCESS;
  });
}

#undef cuStreamGetCaptureInfo
ENTRY_POINT cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id) {
  BEGIN_CALL();
  return capture_info(handle, status, id, nullptr, nullptr, nullptr);
}

ENTRY_POINT cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                                      const CUgraphNode** nodes, size_t* count) {
  BEGIN_CALL();
  return capture_info(handle, status, id, graph, nodes, count);
}

ENTRY_POINT cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                                      const CUgraphNode** nodes, const CUgraphEdgeData** edges, size_t* count) {
  BEGIN_CALL();
  if (edges) *edges = nullptr;  // all edges are plain
  return capture_info(handle, status, id, graph, nodes, count);
}

ENTRY_POINT cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  BEGIN_CALL();
  if (!mode) return failure(CUDA_ERROR_INVALID_VALUE, "no capture mode was given");
  std::swap(*mode, interaction_mode);
  return CUDA_SUCCESS;
}

// ---- Entry points: graphs ------------------------------------------------------------------------------------------

ENTRY_POINT cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
  BEGIN_CALL();
  constexpr unsigned long long kHarmless =
      CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
  if (flags & ~kHarmless) {
    return failure(CUDA_ERROR_NOT_SUPPORTED, "graphs with the flags 0x%llx are not simulated", flags);
  }
  return instantiate(executable, graph);
}

#undef cuGraphInstantiate
// Before CUDA 12. There is never a node to blame, and nothing to log.
static CUresult instantiate_with_log(CUgraphExec* executable, CUgraph graph, CUgraphNode* node, char* log,
                                     size_t bytes) {
  if (node) *node = nullptr;
  if (log && bytes) *log = 0;
  return instantiate(executable, graph);
}

ENTRY_POINT cuGraphInstantiate(CUgraphExec* executable, CUgraph graph, CUgraphNode* node, char* log, size_t bytes) {
  BEGIN_CALL();
  return instantiate_with_log(executable, graph, node, log, bytes);
}

ENTRY_POINT cuGraphInstantiate_v2(CUgraphExec* executable, CUgraph graph, CUgraphNode* node, char* log, size_t bytes) {
  BEGIN_CALL();
  return instantiate_with_log(executable, graph, node, log, bytes);
}

ENTRY_POINT cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  BEGIN_CALL();
  return launch(executable, stream);
}

// There is nowhere to upload to.
ENTRY_POINT cuGraphUpload(CUgraphExec executable, CUstream handle) {
  BEGIN_CALL();
  return with_stream(handle, [&](const StreamPointer& stream) {
    if (stream->capture) return refuse_capturing(stream, "cuGraphUpload");
    return executables().find(executable) ? CUDA_SUCCESS : refuse_executable(executable);
  });
}

ENTRY_POINT cuGraphDestroy(CUgraph graph) {
  BEGIN_CALL();
  Guard guard(driver_lock());
  return graphs().remove(graph) ? CUDA_SUCCESS : refuse_graph(graph);
}

ENTRY_POINT cuGraphExecDestroy(CUgraphExec executable) {
  BEGIN_CALL();
  Guard guard(driver_lock());
  return executables().remove(executable) ? CUDA_SUCCESS : refuse_executable(executable);
}

ENTRY_POINT cuGraphClone(CUgraph* clone, CUgraph original) {
  BEGIN_CALL();
  return with_graph(original, [&](const CUgraph_st& graph) {
    auto copy = std::make_shared<CUgraph_st>();
    for (const auto& node : graph.nodes) copy->nodes.push_back(std::make_shared<CUgraphNode_st>(*node));
    *clone = graphs().add(copy);
    return CUDA_SUCCESS;
  });
}

// Only empty ones: nodes come from captures.
ENTRY_POINT cuGraphCreate(CUgraph* graph, unsigned flags) {
  BEGIN_CALL();
  if (!graph || flags) return failure(CUDA_ERROR_INVALID_VALUE, "no place for the graph, or flags, which must be 0");
  Guard guard(driver_lock());
  *graph = graphs().add(std::make_shared<CUgraph_st>());
  return CUDA_SUCCESS;
}

// Not simulated: updating a graph in place. A program instantiates the new graph instead.
ENTRY_POINT cuGraphExecUpdate(CUgraphExec, CUgraph, CUgraphExecUpdateResultInfo*) {
  BEGIN_CALL();
  return failure(CUDA_ERROR_NOT_SUPPORTED, "cuGraphExecUpdate is not simulated; instantiate the graph anew");
}

// Copies handles as CUDA does: with no array only the count; what is left of a larger array becomes null.
static CUresult give_nodes(const std::vector<CUgraphNode>& found, CUgraphNode* nodes, size_t* count) {
  if (!count) return failure(CUDA_ERROR_INVALID_VALUE, "no count of nodes was given");
  if (nodes) {
    for (size_t i = 0; i < *count; i++) nodes[i] = i < found.size() ? found[i] : nullptr;
  }
  if (!nodes || *count > found.size()) *count = found.size();
  return CUDA_SUCCESS;
}

ENTRY_POINT cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  BEGIN_CALL();
  return with_graph(handle, [&](const CUgraph_st& graph) {
    std::vector<CUgraphNode> found;
    for (const auto& node : graph.nodes) found.push_back(node.get());
    return give_nodes(found, nodes, count);
  });
}

ENTRY_POINT cuGraphGetRootNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  BEGIN_CALL();
  return with_graph(handle, [&](const CUgraph_st& graph) {
    std::vector<CUgraphNode> found;
    for (const auto& node : graph.nodes) {
      if (node->after.empty()) found.push_back(node.get());
    }
    return give_nodes(found, nodes, count);
  });
}

#undef cuGraphGetEdges
ENTRY_POINT cuGraphGetEdges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, size_t* count) {
  BEGIN_CALL();
  return with_graph(handle, [&](const CUgraph_st& graph) {
    std::vector<CUgraphNode> sources, targets;
    for (const auto& node : graph.nodes) {
      for (size_t earlier : node->after) {
        sources.push_back(graph.nodes[earlier].get());
        targets.push_back(node.get());
      }
    }
    size_t room = count ? *count : 0;
    if (CUresult error = give_nodes(sources, from, count)) return error;
    return give_nodes(targets, to, &room);
  });
}

static CUgraphNodeType type_of(WorkKind kind) {
  switch (kind) {
    case WorkKind::kCopy: return CU_GRAPH_NODE_TYPE_MEMCPY;
    case WorkKind::kSet: return CU_GRAPH_NODE_TYPE_MEMSET;
    case WorkKind::kHost: return CU_GRAPH_NODE_TYPE_HOST;
    case WorkKind::kEmpty: return CU_GRAPH_NODE_TYPE_EMPTY;
    default: return CU_GRAPH_NODE_TYPE_KERNEL;
  }
}

static bool is_node(CUgraphNode node) {
  for (const auto& [handle, graph] : graphs()) {
    for (const auto& own : graph->nodes) {
      if (own.get() == node) return true;
    }
  }
  return false;
}

ENTRY_POINT cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
  BEGIN_CALL();
  Guard guard(driver_lock());
  if (!is_node(node)) return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no node of a graph", (void*)node);
  *type = type_of(node->kind);
  return CUDA_SUCCESS;
}

// ---- A picture of a graph ------------------------------------------------------------------------------------------

static const char* word_for(WorkKind kind) {
  switch (kind) {
    case WorkKind::kCopy: return "copy";
    case WorkKind::kSet: return "fill";
    case WorkKind::kHost: return "host function";
    case WorkKind::kEmpty: return "empty";
    default: return "kernel";
  }
}

static std::string label_of(const CUgraphNode_st& node, unsigned flags) {
  const bool is_verbose = flags & CU_GRAPH_DEBUG_DOT_FLAGS_VERBOSE;
  return is_verbose ? node.name + "\\n" + word_for(node.kind) : node.name;
}

// Of the flags, only the one for all details counts.
ENTRY_POINT cuGraphDebugDotPrint(CUgraph handle, const char* path, unsigned flags) {
  BEGIN_CALL();
  return with_graph(handle, [&](const CUgraph_st& graph) {
    FILE* file = fopen(path, "w");
    if (!file) return failure(CUDA_ERROR_OPERATING_SYSTEM, "cannot write %s", path);
    fprintf(file, "digraph {\n");
    for (size_t i = 0; i < graph.nodes.size(); i++) {
      fprintf(file, "  n%zu [label=\"%s\"];\n", i, label_of(*graph.nodes[i], flags).c_str());
      for (size_t earlier : graph.nodes[i]->after) fprintf(file, "  n%zu -> n%zu;\n", earlier, i);
    }
    fprintf(file, "}\n");
    fclose(file);
    return CUDA_SUCCESS;
  });
}
