"""`python -m neuronllm` is the command line, also for launchers: torchrun -m neuronllm attribute ..."""

from __future__ import annotations

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
