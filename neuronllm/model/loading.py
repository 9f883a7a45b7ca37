"""Load a Hugging Face model and its tokenizer, with clear errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO = "demo"
HUB = "huggingface_hub.utils._http"  # the logger that tells of every attempt to reach the hub
RETRIES = ("thrown while requesting", "Retrying in")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


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
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = str(demo_path()) if str(name_or_path) == DEMO else os.fspath(name_or_path)
    looks_local = os.path.isabs(name) or name.startswith((".", "~"))
    if looks_local and not os.path.isdir(os.path.expanduser(name)):
        raise InputError(f"model {name}: no such folder")
    name = os.path.expanduser(name) if looks_local else name
    if os.path.isdir(name) and not any(os.path.exists(os.path.join(name, file)) for file in TOKENIZER_FILES):
        raise InputError(f"model {name}: no tokenizer there; save it beside the model with tokenizer.save_pretrained")
    shared = {key: kwargs[key] for key in ("revision", "trust_remote_code", "token", "subfolder") if key in kwargs}
    try:
        with _retries_held_back():
            tokenizer = AutoTokenizer.from_pretrained(name, **shared)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, device_map=device_map, output_loading_info=True, **kwargs
            )
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, ImportError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model {name}: cannot be loaded ({first})") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"model {name}: the checkpoint lacks {len(missing)} weights ({missing[0]}), which would be random numbers"
        )
    return model.eval(), tokenizer


@contextmanager
def _retries_held_back() -> Iterator[None]:
    """What the hub's client says of each attempt comes after the body, and not at all where the body fails.

    The error then says all of it in one line. Everything else it has to say, such as a long wait that a server asks
    for, comes at once.
    """
    held: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        retry = any(part in record.getMessage() for part in RETRIES)
        if retry:
            held.append(record)
        return not retry

    logger = logging.getLogger(HUB)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
    for record in held:
        logger.handle(record)


def check_weights(model: PreTrainedModel) -> None:
    """Refuse a model that holds NaN or infinite weights, and name the first one."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise InputError(f"model: weight {name} holds NaN or infinite values; load a sound checkpoint")


def public_name(name_or_path: str) -> str:
    """A model's name as others may see it: of a local folder only its last part."""
    if os.path.isdir(name_or_path):
        return DEMO if os.path.samefile(name_or_path, demo_path()) else os.path.basename(os.path.abspath(name_or_path))
    return name_or_path


def demo_path() -> str:
    """The folder of the bundled model."""
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "demo", "model")
