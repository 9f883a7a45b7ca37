"""The Triton kernels: the repository's kernels/<op>/ is installed here, as neuronllm.kernels.<op>.

This folder holds what the operations share: `launch.py` (which back end, which block sizes), `checks.py` (what is
refused), `questions.py` (which rows belong to which question) and `tile.py` (functions that run inside kernels; the
only one that imports triton).
"""

from pathlib import Path

# In a source tree the folders stand beside the package. They are found there without an installation.
_ROOT = Path(__file__).resolve().parents[2]
if (_ROOT / "setup.py").exists():
    __path__.append(str(_ROOT / "kernels"))
