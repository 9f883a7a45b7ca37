"""`neuronllm export` and `neuronllm bake`: a neuron set in the form that other tools take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import BAKED, check_new_folder, new_folder, write_json
from ..model.identity import identity
from ..results.adapters import MARK
from ..results.cards import front_matter, model_id, saved_report, steered_card
from ..results.neurons import NeuronSet
from ..steering import adapters, hook_files
from ..steering.bake import bake, check_positions

BAKED_USE = """The factors are in the weights, at every token: 0 and powers of two exactly, others as weights round.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
```"""


def run(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    """`load` gets the model, as in every command."""
    if args.kind == "baked":
        run_bake(args, load)
        return
    adapter = args.kind in adapters.KINDS
    check_new_folder(args.output, MARK if adapter else hook_files.MARK, args.overwrite)
    if args.report and not adapter:
        raise InputError(
            f"--report: hooks have no card that shows one; leave it out, or take another kind than {args.kind}"
        )
    report = _report(args)
    neurons = NeuronSet.from_pretrained(args.neurons)
    check_positions(neurons, args.positions, "adapters" if adapter else "these hooks")
    neurons.steering(args.mode, args.good, args.bad)  # refuses what cannot be, before the model is loaded
    model, _ = load(args)
    asked = (model, neurons, args.output, args.kind, args.good, args.bad)
    if adapter:
        adapters.to_peft(*asked, mode=args.mode, positions=args.positions, report=report, overwrite=args.overwrite)
    else:
        hook_files.to_hooks(*asked, mode=args.mode, positions=args.positions)
    print(f"{args.output}: {len(neurons)} neurons as {args.kind}")


def run_bake(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    check_new_folder(args.output, BAKED, args.overwrite)
    neurons = NeuronSet.from_pretrained(args.neurons)
    check_positions(neurons, args.positions)
    report = _report(args)
    with new_folder(args.output, BAKED) as temporary:
        model, tokenizer = load(args)
        bake(model, neurons, args.good, args.bad, mode=args.mode, positions=args.positions)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        made = neurons.steered_by(neurons.steering(args.mode, args.good, args.bad))
        made |= {"positions": "all", "positions_of_the_set": neurons.positions, "provenance": neurons.provenance}
        made |= {"for": identity(model)}
        write_json(temporary / BAKED, made)
        (temporary / "README.md").write_text(
            _baked_card(Path(args.output).name, neurons, made, report), encoding="utf-8"
        )
    print(f"{args.output}: {len(neurons)} neurons folded into the weights")


def _report(args: argparse.Namespace) -> dict[str, Any] | None:
    return saved_report(args.report) if args.report else None


def _baked_card(name: str, neurons: NeuronSet, made: dict[str, Any], report: dict[str, Any] | None) -> str:
    head, form = front_matter("transformers", model_id(made["for"]), "baked"), "folded into the weights of the model"
    return steered_card(name, head, neurons.describe(), form, made, BAKED_USE.format(name=name), report)
