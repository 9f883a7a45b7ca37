"""Load a Hugging Face model and its tokenizer, with clear errors."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..common.checks import floating
from ..common.errors import InputError
from ..common.warning import warn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO = "demo"
GGUF = ".gguf"
HUB = "huggingface_hub.utils._http"  # the logger that tells of every attempt to reach the hub
RETRIES = ("thrown while requesting", "Retrying in")
OWN_CODE = "trust_remote_code=True"  # what transformers says it takes to run a model's own code
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_model(
    name_or_path: str | os.PathLike[str], dtype: Any = "auto", device_map: Any = None, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) from a folder or a model id; "demo" is the tiny model that comes with the package.

    A GGUF checkpoint is one file: give the file, a folder that holds one, or FOLDER:FILE (MODEL_ID:FILE) where there
    are several. It is read into ordinary weights, float32 unless `dtype` says otherwise (extra "gguf").

    dtype: the type to hold the weights in (torch.float32, or "float32"), "auto" for the one that the
    checkpoint names (float32 for "demo"). A warning says so where this CPU is slow in it. To compute in another type
    than the weights are held in, there is `nl.attribute(dtype=)`.

    Of a model that reads images or sound too, the language model inside is found, and takes text prompts.

    Further keywords (revision, quantization_config, attn_implementation, trust_remote_code, ...) go to
    `AutoModelForCausalLM.from_pretrained`, or `AutoModelForMultimodalLM`. Code that comes with a checkpoint runs with
    trust_remote_code=True alone.

    >>> model, tokenizer = load_model("demo")
    >>> model.config.model_type
    'llama'
    """
    if isinstance(dtype, str) and dtype != "auto":
        dtype = floating("dtype", dtype)
    given, name, file, kwargs = _where(name_or_path, kwargs)
    with _one_line_errors(given), _retries_held_back():
        tokenizer = _tokenizer(name, kwargs)
        auto = _auto_class(given, name, kwargs)
        loaded: Any = auto.from_pretrained(name, dtype=dtype, device_map=device_map, output_loading_info=True, **kwargs)
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"model {given}: the checkpoint lacks {len(missing)} weights ({missing[0]}), which would be random numbers"
        )
    if file is not None:
        _forget_packing(model)
        model.config._name_or_path = os.path.join(name, file)
    _warn_if_slow(model)
    return model.eval(), tokenizer


def load_tokenizer(name_or_path: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer alone of what `load_model` loads, where no model is needed yet.

    >>> load_tokenizer("demo").chat_template is None
    True
    """
    given, name, _, kwargs = _where(name_or_path, kwargs)
    with _one_line_errors(given), _retries_held_back():
        return _tokenizer(name, kwargs)


def _where(name_or_path: str | os.PathLike[str], kwargs: dict[str, Any]) -> tuple[str, str, str | None, dict[str, Any]]:
    """What was given, the folder or model id, a GGUF file in it, and the keywords with what such a file takes."""
    given = str(demo_path()) if str(name_or_path) == DEMO else os.path.expanduser(os.fspath(name_or_path))
    name, file = _split(given)
    kwargs = {"trust_remote_code": False} | kwargs  # which transformers would ask about on the terminal
    if file is not None:
        check_gguf_packages(given)
        kwargs = {"gguf_file": file} | _unpacking() | kwargs
    return given, name, file, kwargs


def _tokenizer(name: str, kwargs: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **_shared(kwargs))


def _auto_class(given: str, name: str, kwargs: dict[str, Any]) -> Any:
    """What loads the checkpoint: as a causal language model, or with all that a multimodal one has."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMultimodalLM,
    )

    config = AutoConfig.from_pretrained(name, **_shared(kwargs))
    for auto, known in (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
    ):
        if type(config) in known or auto.__name__ in (getattr(config, "auto_map", None) or {}):
            return auto
    kind = (
        "an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else "no language model that writes text"
    )
    raise InputError(
        f"model {given}: {config.model_type} is {kind}; load a decoder (AutoModelForCausalLM of transformers)"
    )


def _shared(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What loading a model, its configuration and its tokenizer have in common."""
    shared = ("revision", "trust_remote_code", "token", "subfolder", "gguf_file")
    return {key: kwargs[key] for key in shared if key in kwargs}


@contextmanager
def _one_line_errors(given: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, ImportError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if OWN_CODE in str(error):
            raise InputError(
                f"model {given}: it brings code of its own, which does not run unasked: read it, then load it with "
                "trust_remote_code=True (--trust-remote-code)"
            ) from error
        raise InputError(f"model {given}: cannot be loaded ({first})") from error


def _split(given: str) -> tuple[str, str | None]:
    """The folder or model id, and the GGUF file in it, if the weights are one."""
    if given.endswith(GGUF):
        folder, _, file = given.rpartition(":")
        if os.path.isfile(given):
            return os.path.dirname(given) or ".", os.path.basename(given)
        if not folder or _looks_local(given) and not os.path.isfile(os.path.join(folder, file)):
            raise InputError(f"model {given}: no such file; give FILE.gguf, or FOLDER:FILE.gguf for a file in a folder")
        return folder, file
    if _looks_local(given) and not os.path.isdir(given):
        raise InputError(f"model {given}: no such folder")
    if not os.path.isdir(given) or any(os.path.exists(os.path.join(given, file)) for file in TOKENIZER_FILES):
        return given, None
    packed = sorted(file for file in os.listdir(given) if file.endswith(GGUF))
    if len(packed) == 1:
        return given, packed[0]
    if packed:
        raise InputError(f"model {given}: it holds {len(packed)} GGUF files; name one: {given}:{packed[0]}")
    raise InputError(f"model {given}: no tokenizer there; save it beside the model with tokenizer.save_pretrained")


def _looks_local(name: str) -> bool:
    return os.path.isabs(name) or name.startswith(".")


def check_gguf_packages(name: str) -> None:
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"model {name}: reading GGUF takes the package {missing[0]}; install it with pip install 'neuronllm[gguf]'"
        )


def _unpacking() -> dict[str, Any]:
    """Newer versions of transformers can keep packed weights packed, which nobody could bake into or save."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _forget_packing(model: Any) -> None:
    """The weights are ordinary ones by now: what still says that they are packed would keep them from being saved."""
    for owner, names in (
        (model.config, ("quantization_config",)),
        (model, ("hf_quantizer", "quantization_method", "is_quantized")),
    ):
        for attribute in names:
            if attribute in vars(owner):
                delattr(owner, attribute)


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


def _warn_if_slow(model: PreTrainedModel) -> None:
    """A CPU without the instructions for a half type multiplies in it about ten times slower than in float32."""
    import torch

    fast: dict[Any, Any] = {
        torch.bfloat16: getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None),
        torch.float16: getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None),
    }
    supported = fast.get(model.dtype)
    if model.device.type == "cpu" and supported is not None and not supported():
        name = str(model.dtype).removeprefix("torch.")
        warn(
            f"this CPU has no instructions for {name} and is many times slower in it than in float32, which takes "
            f'twice the memory: dtype="float32" (--dtype float32)'
        )


def check_weights(model: PreTrainedModel) -> None:
    """Refuse a model that holds NaN or infinite weights, and name the first one."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise InputError(f"model: weight {name} holds NaN or infinite values; load a sound checkpoint")


def public_name(name_or_path: str) -> str:
    """A model's name as others may see it: of a local folder or file only its last part."""
    if os.path.isfile(name_or_path):
        return os.path.basename(name_or_path)
    if os.path.isdir(name_or_path):
        return DEMO if os.path.samefile(name_or_path, demo_path()) else os.path.basename(os.path.abspath(name_or_path))
    return name_or_path


def demo_path() -> str:
    """The folder of the bundled model."""
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "demo", "model")
