"""`neuronllm export` and `neuronllm bake`: a neuron set in the form that other tools take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..common.files import BAKED, check_new_folder, new_folder, write_json
from ..results.neurons import NeuronSet
from ..steering import adapters, hook_files
from ..steering.bake import bake, check_positions


def run(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    """`load` gets the model, as in every command."""
    if args.kind == "baked":
        run_bake(args, load)
        return
    adapter = args.kind in adapters.KINDS
    check_new_folder(args.output, adapters.MARK if adapter else hook_files.MARK, args.overwrite)
    neurons = NeuronSet.from_pretrained(args.neurons)
    check_positions(neurons, args.positions, "adapters" if adapter else "these hooks")
    neurons.steering(args.mode, args.good, args.bad)  # refuses what cannot be, before the model is loaded
    model, _ = load(args)
    write = adapters.to_peft if adapter else hook_files.to_hooks
    write(model, neurons, args.output, args.kind, args.good, args.bad, mode=args.mode, positions=args.positions)
    print(f"{args.output}: {len(neurons)} neurons as {args.kind}")


def run_bake(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    check_new_folder(args.output, BAKED, args.overwrite)
    neurons = NeuronSet.from_pretrained(args.neurons)
    check_positions(neurons, args.positions)
    with new_folder(args.output, BAKED) as temporary:
        model, tokenizer = load(args)
        bake(model, neurons, args.good, args.bad, mode=args.mode, positions=args.positions)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        made = neurons.steered_by(neurons.steering(args.mode, args.good, args.bad))
        made |= {"positions": "all", "positions_of_the_set": neurons.positions, "provenance": neurons.provenance}
        write_json(temporary / BAKED, made)
    print(f"{args.output}: {len(neurons)} neurons folded into the weights")
