// To be included first by kernels whose every operation is rounded, as NumPy's are: no a * b + c is rounded once.
#pragma once

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif
