"""The Triton kernels, one package per operation: the repository's kernels/<op>/ is installed as neuronllm.kernels.<op>."""
