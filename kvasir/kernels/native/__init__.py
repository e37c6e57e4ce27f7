"""C++ kernels for CPUs, reached by raw pointers: the library, its structures, weights in its
layout, and a model's program, which computes a step in one call without the GIL."""
