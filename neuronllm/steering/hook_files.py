"""A neuron set as factors for hooks of other libraries: one tensor a layer, and the few lines that put them to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.errors import InputError
from ..common.files import check_new_folder, new_folder, write_json, write_tensors
from ..model.identity import identity
from ..model.wrapped import own_model
from ..results.neurons import NeuronSet
from .adapters import turned_sites
from .bake import check_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARK, TENSORS = "neuronllm_hooks.json", "factors.safetensors"
# How each library calls the input of a layer's down projection, and how its model is edited there.
SNIPPETS = {
    "transformer-lens": """\
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

bridge = TransformerBridge.boot_transformers({model!r})
factors = load_file("factors.safetensors")  # one tensor a hook, by its name


def turn(h, hook):
    return h * factors[hook.name].to(h)


with bridge.hooks(fwd_hooks=[(name, turn) for name in factors]):
    logits = bridge("The capital of France is")
""",
    "nnsight": """\
import re

from nnsight import TransformersModel
from safetensors.torch import load_file

model = TransformersModel({model!r}, task="text-generation", dispatch=True)
factors = load_file("factors.safetensors")  # one tensor a module, by its name

with model.trace("The capital of France is"):
    for name in sorted(factors, key=lambda name: int(re.search(r"\\d+", name)[0])):  # a trace goes through the layers
        down = model.get(name)
        down.input = down.input * factors[name].to(down.input)
    logits = model.output.logits.save()
""",
}


def to_hooks(
    model: PreTrainedModel,
    neurons: NeuronSet,
    folder: str | os.PathLike[str],
    kind: str,
    good: float | None = None,
    bad: float | None = None,
    *,
    mode: str | None = None,
    positions: str | None = None,
) -> None:
    """Write the factors of the edited layers, and in a README.md the lines by which `kind` uses them.

    Kinds are "transformer-lens" and "nnsight". The factors act at every token, as `nl.to_peft` says.
    """
    if kind not in SNIPPETS:
        raise InputError(f"kind={kind!r}: known kinds of hooks are {', '.join(SNIPPETS)}")
    check_new_folder(folder, MARK)
    check_positions(neurons, positions, "these hooks")
    model = own_model(model)
    how = neurons.steering(mode, good, bad)
    tensors: dict[str, torch.Tensor] = {}
    for site, factors in turned_sites(model, *neurons.edits(model, how)):
        layer = site.block.rpartition(".")[2]
        name = f"blocks.{layer}.mlp.out.hook_in" if kind == "transformer-lens" else site.down
        tensors[name] = factors.to(torch.promote_types(factors.dtype, torch.float32))
    told = neurons.steered_by(how) | {"kind": kind, "positions": "all", "positions_of_the_set": neurons.positions}
    told = told | {"for": identity(model), "provenance": neurons.provenance}
    counted, *facts = neurons.describe().split("\n")
    name = told["for"]["model"]
    snippet = SNIPPETS[kind].format(model=name if "/" in name else "MODEL")
    with new_folder(folder, MARK) as temporary:
        write_json(temporary / MARK, told)
        write_tensors(temporary / TENSORS, tensors)
        heading = f"# {Path(folder).name}\n\n{counted}, found with neuronllm, as factors for {kind}."
        card = "\n\n".join([heading, "\n".join(facts)])
        (temporary / "README.md").write_text(f"{card}\n\n```python\n{snippet}```\n", encoding="utf-8")
