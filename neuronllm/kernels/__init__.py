"""The Triton kernels: the repository's kernels/<op>/ is installed here, as neuronllm.kernels.<op>."""
