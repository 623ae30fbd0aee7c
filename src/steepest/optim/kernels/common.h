/* Included three times by _native.py: once for what is independent of precision, then before each compilation of a
   kernel with STEEPEST_REAL = 32 or 64, which defines `real`, NAME(f), R(constant) and the functions of `real`. */
#ifndef STEEPEST_COMMON
#define STEEPEST_COMMON
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#endif

#ifdef STEEPEST_REAL
#undef real
#undef NAME
#undef R
#undef SQRT
#undef FABS
#undef FMIN
#undef FMAX
#undef POW
#if STEEPEST_REAL == 32
#define real float
#define NAME(f) f##_f32
#define R(x) x##f
#define SQRT sqrtf
#define FABS fabsf
#define FMIN fminf
#define FMAX fmaxf
#define POW powf
#else
#define real double
#define NAME(f) f##_f64
#define R(x) x
#define SQRT sqrt
#define FABS fabs
#define FMIN fmin
#define FMAX fmax
#define POW pow
#endif
#undef STEEPEST_REAL
#endif
