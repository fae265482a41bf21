"""Kernels for the CPU in C++: their library, and the products and quantizers that call it."""
