// CUDA's complex numbers as pairs, and their arithmetic.
#pragma once

typedef float2 cuFloatComplex;
typedef double2 cuDoubleComplex;
typedef cuFloatComplex cuComplex;

inline cuFloatComplex make_cuFloatComplex(float x, float y) { return {x, y}; }
inline cuDoubleComplex make_cuDoubleComplex(double x, double y) { return {x, y}; }
inline cuComplex make_cuComplex(float x, float y) { return {x, y}; }
inline cuDoubleComplex cuComplexFloatToDouble(cuFloatComplex a) { return {a.x, a.y}; }
inline cuFloatComplex cuComplexDoubleToFloat(cuDoubleComplex a) { return {float(a.x), float(a.y)}; }

inline float cuCrealf(cuFloatComplex a) { return a.x; }
inline float cuCimagf(cuFloatComplex a) { return a.y; }
inline cuFloatComplex cuConjf(cuFloatComplex a) { return {a.x, -a.y}; }
inline cuFloatComplex cuCaddf(cuFloatComplex a, cuFloatComplex b) { return {a.x + b.x, a.y + b.y}; }
inline cuFloatComplex cuCsubf(cuFloatComplex a, cuFloatComplex b) { return {a.x - b.x, a.y - b.y}; }
inline cuFloatComplex cuCmulf(cuFloatComplex a, cuFloatComplex b) {
  return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x};
}
// Scaled by the size of the divisor, whose square may leave the range of numbers.
inline cuFloatComplex cuCdivf(cuFloatComplex a, cuFloatComplex b) {
  const float size = fabsf(b.x) + fabsf(b.y);
  const float ax = a.x / size, ay = a.y / size, bx = b.x / size, by = b.y / size;
  const float square = bx * bx + by * by;
  return {(ax * bx + ay * by) / square, (ay * bx - ax * by) / square};
}
inline float cuCabsf(cuFloatComplex a) { return hypotf(a.x, a.y); }
inline cuFloatComplex cuCfmaf(cuFloatComplex a, cuFloatComplex b, cuFloatComplex c) {
  return {a.x * b.x + c.x - a.y * b.y, a.y * b.x + (a.x * b.y + c.y)};
}

inline double cuCreal(cuDoubleComplex a) { return a.x; }
inline double cuCimag(cuDoubleComplex a) { return a.y; }
inline cuDoubleComplex cuConj(cuDoubleComplex a) { return {a.x, -a.y}; }
inline cuDoubleComplex cuCadd(cuDoubleComplex a, cuDoubleComplex b) { return {a.x + b.x, a.y + b.y}; }
inline cuDoubleComplex cuCsub(cuDoubleComplex a, cuDoubleComplex b) { return {a.x - b.x, a.y - b.y}; }
inline cuDoubleComplex cuCmul(cuDoubleComplex a, cuDoubleComplex b) {
  return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x};
}
inline cuDoubleComplex cuCdiv(cuDoubleComplex a, cuDoubleComplex b) {
  const double size = fabs(b.x) + fabs(b.y);
  const double ax = a.x / size, ay = a.y / size, bx = b.x / size, by = b.y / size;
  const double square = bx * bx + by * by;
  return {(ax * bx + ay * by) / square, (ay * bx - ax * by) / square};
}
inline double cuCabs(cuDoubleComplex a) { return hypot(a.x, a.y); }
inline cuDoubleComplex cuCfma(cuDoubleComplex a, cuDoubleComplex b, cuDoubleComplex c) {
  return {a.x * b.x + c.x - a.y * b.y, a.y * b.x + (a.x * b.y + c.y)};
}
