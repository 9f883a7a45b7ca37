"""Which model it is: by its id and revision, and by a hash of its configuration; never by the name of a folder."""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ..common.files import BAKED, read_json
from .loading import DEMO, GGUF, public_name
from .wrapped import adapters_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What of a configuration says nothing about the neurons: by whom, in what type and for what it was loaded.
PASSING = {
    "architectures",
    "dtype",
    "pad_token_id",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # of a model on a hub
SHOWN = 12  # digits of a hash in a name


def identity(model: PreTrainedModel) -> dict[str, Any]:
    """Which model it is, for records; `model` is its id, or its type and configuration where it has none."""
    hashed = config_hash(model.config)
    known_as = _known_as(model)
    return {
        "model": known_as or f"{model.config.model_type} (config {hashed[:SHOWN]})",
        "revision": getattr(model.config, "_commit_hash", None) if known_as else None,
        "config": hashed,
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        **({"adapters": adapters} if (adapters := adapters_on(model)) else {}),
    }


def config_hash(config: Any) -> str:
    """SHA-256 of a model's configuration, wherever it was loaded from and in whatever type.

    >>> model, _ = nl.load_model("demo")
    >>> config_hash(model.config) == config_hash(model.bfloat16().config)
    True
    """
    told = json.dumps(_lasting(config.to_diff_dict()), sort_keys=True, default=str)
    return sha256(f"{config.model_type} {told}".encode()).hexdigest()


def other_model(then: dict[str, Any], model: PreTrainedModel) -> str | None:
    """How a model differs from the one that a record (`identity`) tells of, in words; None where nothing says so."""
    kind = getattr(model.config, "model_type", "")
    if then.get("model_type") and then["model_type"] != kind:
        return f"found on a {then['model_type']}, this is a {kind}"
    if not then.get("config"):
        return None
    now = identity(model)
    named = _is_id(then.get("model")) and _is_id(now["model"])
    same = then["config"] == now["config"] and not (named and then["model"] != now["model"])
    if named and then.get("revision") and now["revision"]:
        same = same and then["revision"] == now["revision"]
    return None if same else f"found on {_said(then)}, this is {_said(now)}"


def hub_id(record: dict[str, Any]) -> str | None:
    """The id by which a hub knows the model of a record; the bundled model and those from folders have none."""
    name = record.get("model")
    return name if isinstance(name, str) and _is_id(name) and name != DEMO else None


def baked_into(model: PreTrainedModel) -> dict[str, Any]:
    """The provenance of the neurons that were folded into a saved model; empty where nothing says so.

    >>> baked_into(nl.load_model("demo")[0])
    {}
    """
    folder = str(model.config._name_or_path or "")
    if not os.path.isfile(os.path.join(folder, BAKED)):
        return {}
    told = read_json(folder, BAKED, "card of a baked model")
    found = told.get("provenance") if isinstance(told, dict) else None
    return found if isinstance(found, dict) else {}


def _said(record: dict[str, Any]) -> str:
    """The id with what else tells models apart; a model without an id is already called by its configuration."""
    name, config = record["model"], f"config {record['config'][:SHOWN]}"
    revision = f"revision {record['revision'][:SHOWN]}, " if record.get("revision") else ""
    return name if config in name else f"{name} ({revision}{config})"


def _known_as(model: Any) -> str | None:
    """The id of a model of a hub, "demo", or the name of the file that it was read from; a folder's says nothing."""
    name = str(model.config._name_or_path or "")
    if os.path.isdir(name):
        return public if (public := public_name(name)) != os.path.basename(os.path.abspath(name)) else None
    if os.path.isfile(name):
        return public_name(name)
    return name if _is_id(name) else None


def _is_id(name: Any) -> bool:
    return isinstance(name, str) and ID.fullmatch(name) is not None and not name.endswith(GGUF)


def _lasting(told: Any) -> Any:
    if isinstance(told, dict):
        return {k: _lasting(v) for k, v in told.items() if k not in PASSING and not str(k).startswith("_")}
    return [_lasting(v) for v in told] if isinstance(told, list) else told
