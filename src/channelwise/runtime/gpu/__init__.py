"""The GPU's kernels, in Triton: imported only where a layer lies on a GPU."""
