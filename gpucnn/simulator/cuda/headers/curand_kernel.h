#pragma once
#error "curand_kernel.h is not simulated: draw random numbers on the host, or with a generator of your own in the kernel"
