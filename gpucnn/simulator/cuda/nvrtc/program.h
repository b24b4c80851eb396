// A program of NVRTC: what it is made from, and what its compilation left.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "nvrtc.h"

namespace cudasim {

using Text = std::string;

struct Header {
  Text name;  // by which the program includes it
  Text text;
};

struct Program {
  Text text;
  Text name;
  std::vector<Header> headers;
  std::vector<Text> expressions;
  bool was_compiled = false;

  // After the compilation.
  nvrtcResult status = NVRTC_SUCCESS;
  Text image;
  Text log;
  std::vector<Text> symbols;  // of the expressions
};

}  // namespace cudasim
