"""Load a Hugging Face model and its tokenizer, with clear errors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO = "demo"


def load_model(
    name_or_path: str | os.PathLike[str], dtype: Any = "auto", device_map: Any = None, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) from a folder or a model id; "demo" is the tiny model that comes with the package.

    Further keywords (revision, quantization_config, attn_implementation, trust_remote_code, ...) go to
    `AutoModelForCausalLM.from_pretrained`. Remote code is off unless asked for.

    >>> model, tokenizer = load_model("demo")
    >>> model.config.model_type
    'llama'
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = str(demo_path()) if str(name_or_path) == DEMO else os.fspath(name_or_path)
    looks_local = os.path.isabs(name) or name.startswith((".", "~"))
    if looks_local and not os.path.isdir(os.path.expanduser(name)):
        raise InputError(f"model {name}: no such folder")
    name = os.path.expanduser(name) if looks_local else name
    shared = {key: kwargs[key] for key in ("revision", "trust_remote_code", "token", "subfolder") if key in kwargs}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **shared)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device_map, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"model {name}: cannot be loaded ({first})") from error
    return model.eval(), tokenizer


def demo_path() -> str:
    """The folder of the bundled model."""
    return os.path.join(os.path.dirname(__file__), "demo", "model")
