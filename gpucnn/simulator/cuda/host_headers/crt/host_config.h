// cuda_runtime.h asks for it. There is nothing to configure without nvcc.
#pragma once
