// Graphs.
#include "runtime.h"

using namespace cudart;

RUNTIME_ENTRY cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  return forward(cuGraphInstantiateWithFlags, executable, graph, flags);
}

RUNTIME_ENTRY cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return forward(cuGraphLaunch, executable, stream);
}

RUNTIME_ENTRY cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t stream) {
  return forward(cuGraphUpload, executable, stream);
}

RUNTIME_ENTRY cudaGraphDestroy(cudaGraph_t graph) { return forward(cuGraphDestroy, graph); }
RUNTIME_ENTRY cudaGraphExecDestroy(cudaGraphExec_t executable) { return forward(cuGraphExecDestroy, executable); }

RUNTIME_ENTRY cudaGraphDebugDotPrint(cudaGraph_t graph, const char* path, unsigned flags) {
  return forward(cuGraphDebugDotPrint, graph, path, flags);
}
