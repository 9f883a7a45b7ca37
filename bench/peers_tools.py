"""The same attribution with other libraries, each as well as it can be used: captum, TransformerLens, nnsight.

Each has a model object of its own with shared weights, frozen, and does the neurons (what the down projection takes
in) of all layers: `gradient` and `texts` with all rows in one batch and one backward pass for all layers,
`integrated_gradients` with one prompt at a time and all steps of a layer in one batch. Logits of the positions that are
read only and no key-value cache, wherever the model is called. lm-eval's own loop over answers in words is in
peers_lm_eval.py. Libraries are imported when they are used: none has to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import plain_texts

GRADIENT, IG, TEXTS = "grad x act", "IG", "grad x act of answers in words"
LEAN = {"logits_to_keep": 1, "use_cache": False}


def objective(logits: Tensor, options: Tensor, answers: Tensor) -> Tensor:
    """Log-probability of the right option among the options, at the last position."""
    return logits[:, -1].float().gather(1, options).log_softmax(-1).gather(1, answers[:, None])[:, 0]


def with_last(h: Tensor, last: Tensor) -> Tensor:
    """h (rows, positions, neurons) with other values at the last position."""
    return torch.cat([h[:, :-1], last[:, None]], 1)


def summed_products(h: Sequence[Tensor], grads: Sequence[Tensor], last: int) -> Tensor:
    """h * gradient summed over so many positions at the end (0: all), layers side by side."""
    return torch.cat([(x.detach()[:, -last:] * g[:, -last:]).sum(1) for x, g in zip(h, grads, strict=True)], 1)


class Peer:
    """A library. `gradient` and `integrated_gradients` take and return what those of plain.py do, `texts` what
    `gradient` of plain_texts.py does."""

    name: ClassVar[str]
    package: ClassVar[str]
    module: ClassVar[str]
    lacks: ClassVar[dict[str, str]]  # by method, what it does not have for it

    def __init__(self, model: Any) -> None:
        self.library, self.model = import_module(self.module), model
        self.downs = [layer.mlp.down_proj for layer in model.model.layers]
        self.prepare()

    def prepare(self) -> None:
        """What the library makes of the model once, before anything is timed."""

    def products(self, ids: Tensor, value: Callable[[Tensor], Tensor], keep: int, last: int) -> Tensor:
        """h * dvalue/dh (rows, neurons), summed over the `last` positions of a row (0: all).

        `value` takes the logits of the `keep` last positions of all rows.
        """
        raise NotImplementedError

    def gradient(self, ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
        return self.products(ids, lambda logits: objective(logits, options, answers), 1, 1)

    def texts(self, asked: plain_texts.Asked, everywhere: bool) -> Tensor:
        count = asked.options.shape[:2]

        def value(logits: Tensor) -> Tensor:
            return plain_texts.value(logits.unflatten(0, count), asked)

        last = 0 if everywhere else asked.span
        return self.products(asked.sequences.flatten(0, 1), value, asked.span, last).unflatten(0, count).sum(1)

    def integrated_gradients(self, ids: Tensor, options: Tensor, answers: Tensor, steps: int) -> Tensor:
        rows = zip(ids.split(1), options.split(1), answers.split(1), strict=True)
        return torch.cat([self.integrate(*row, steps) for row in rows])

    def integrate(self, ids: Tensor, option: Tensor, answer: Tensor, steps: int) -> Tensor:
        """Integrated gradients of one prompt, by the midpoint rule."""
        raise NotImplementedError


def midpoints(h: Tensor, steps: int) -> Tensor:
    """h (1, neurons) at the midpoints of the integral, (steps, neurons), to be differentiated."""
    alphas = (torch.arange(steps, dtype=h.dtype, device=h.device) + 0.5) / steps
    return (alphas[:, None] * h.detach()).requires_grad_(True)


class Answer(nn.Module):
    """The last position's neurons as a module of their own, since captum attributes to what modules put out."""

    def forward(self, h: Tensor, amount: Tensor) -> Tensor:
        return h * amount[:, None]


class Captum(Peer):
    """LayerGradientXActivation on all down projections at once, LayerIntegratedGradients on one layer at a time.

    The baseline of LayerIntegratedGradients is another input of the model, for which a layer's neurons are not zero,
    and it scales all positions. So a module of ours passes on the last position's neurons times an amount, the amount
    is captum's input, 1, and its baseline is 0.
    """

    name, package, module = "captum", "captum", "captum.attr"
    lacks = {
        GRADIENT: "a position: neurons and products of all tokens are kept",
        IG: "neurons at zero as the baseline, and a position: a module put into the model stands in for both; layers "
        "that follow each other in one call",
        TEXTS: "a position: neurons and products of all tokens are kept",
    }

    def value(self, ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
        return objective(self.model(ids, **LEAN).logits, options, answers)

    def products(self, ids: Tensor, value: Callable[[Tensor], Tensor], keep: int, last: int) -> Tensor:
        def of(ids: Tensor) -> Tensor:
            return value(self.model(ids, logits_to_keep=keep, use_cache=False).logits)

        method = self.library.LayerGradientXActivation(of, self.downs)
        found = method.attribute(ids, attribute_to_layer_input=True)
        return torch.cat([products[:, -last:].sum(1).detach() for products in found], 1)

    def integrate(self, ids: Tensor, option: Tensor, answer: Tensor, steps: int) -> Tensor:
        one = torch.ones(1, dtype=self.downs[0].weight.dtype, device=ids.device)
        return torch.cat([self._layer(down, one, (ids, option, answer), steps) for down in self.downs], 1)

    def _layer(self, down: nn.Module, one: Tensor, prompt: tuple[Tensor, ...], steps: int) -> Tensor:
        neurons, amounts = Answer(), [one]

        def value(amount: Tensor, *prompt: Tensor) -> Tensor:
            amounts[0] = amount
            return self.value(*prompt)

        def apart(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (with_last(args[0], neurons(args[0][:, -1], amounts[0])),)

        handle = down.register_forward_pre_hook(apart)
        try:
            method = self.library.LayerIntegratedGradients(value, neurons)
            rule = {"n_steps": steps, "method": "riemann_middle"}
            return method.attribute(one, torch.zeros_like(one), additional_forward_args=prompt, **rule).detach()
        finally:
            handle.remove()


class TransformerLens(Peer):
    """Hooks on every layer's neurons, and backward. The bridge wraps the Hugging Face model, weights as they are."""

    name, package, module = "TransformerLens", "transformer-lens", "transformer_lens.model_bridge.sources"
    lacks = {
        GRADIENT: "an attribution method: hooks and autograd by hand",
        IG: "an attribution method: hooks and autograd by hand; its start at a layer runs the layers below as well",
        TEXTS: "an attribution method: hooks and autograd by hand",
    }

    def prepare(self) -> None:
        config = self.model.config
        self.bridge = self.library.build_bridge_from_module(self.model, type(self.model).__name__, hf_config=config)
        self.hooks = [f"blocks.{layer}.mlp.hook_post" for layer in range(config.num_hidden_layers)]

    def run(self, ids: Tensor, hooks: list[tuple[str, Callable[..., Tensor | None]]], keep: int = 1) -> Tensor:
        return self.bridge.run_with_hooks(ids, fwd_hooks=hooks, logits_to_keep=keep, use_cache=False)

    def products(self, ids: Tensor, value: Callable[[Tensor], Tensor], keep: int, last: int) -> Tensor:
        seen: list[Tensor] = []

        def see(h: Tensor, hook: Any) -> None:
            seen.append(h if h.requires_grad else h.requires_grad_(True))

        logits = self.run(ids, [(name, see) for name in self.hooks], keep)
        return summed_products(seen, torch.autograd.grad(value(logits).sum(), seen), last)

    def integrate(self, ids: Tensor, option: Tensor, answer: Tensor, steps: int) -> Tensor:
        with torch.no_grad():
            _, clean = self.bridge.run_with_cache(ids, names_filter=self.hooks, **LEAN)
        scores = []
        for name in self.hooks:
            h = clean[name][:, -1]
            scaled = midpoints(h, steps)

            def put(x: Tensor, hook: Any, scaled: Tensor = scaled) -> Tensor:
                return with_last(x, scaled)

            logits = self.run(ids.expand(steps, -1), [(name, put)])
            value = objective(logits, option.expand(steps, -1), answer.expand(steps))
            (grad,) = torch.autograd.grad(value.sum(), scaled)
            scores.append(grad.mean(0) * h)
        return torch.cat(scores, 1)


class NNsight(Peer):
    """A trace that reads or replaces what the down projections take in, and its backward block.

    Integrated gradients skip the layers below: of them only what the last one puts out is needed, and it was seen.
    """

    name, package, module = "nnsight", "nnsight", "nnsight"
    lacks = dict.fromkeys((GRADIENT, IG, TEXTS), "an attribution method: traces and their gradients by hand")

    def prepare(self) -> None:
        self.traced = self.library.NNsight(self.model)

    def products(self, ids: Tensor, value: Callable[[Tensor], Tensor], keep: int, last: int) -> Tensor:
        net = self.traced
        with net.trace(ids, logits_to_keep=keep, use_cache=False):
            seen = []
            for layer in net.model.layers:
                h = layer.mlp.down_proj.input
                seen.append(h if h.requires_grad else h.requires_grad_(True))
            total = value(net.output.logits).sum()
            grads = []
            with total.backward():
                for h in reversed(seen):
                    grads.append(h.grad)
            found = summed_products(seen, grads[::-1], last).save()
        return found

    def integrate(self, ids: Tensor, option: Tensor, answer: Tensor, steps: int) -> Tensor:
        net = self.traced
        with torch.no_grad(), net.trace(ids, **LEAN):
            clean, below = self.library.save([]), self.library.save([])
            for layer in net.model.layers:
                clean.append(layer.mlp.down_proj.input[:, -1])
                below.append(layer.output)
        scores = []
        for number, h in enumerate(clean):
            scaled = midpoints(h, steps)
            with net.trace(ids.expand(steps, -1), **LEAN):
                for layer in net.model.layers[:number]:
                    layer.skip(below[number - 1].expand(steps, -1, -1))
                down = net.model.layers[number].mlp.down_proj
                down.input = with_last(down.input, scaled)
                value = objective(net.output.logits, option.expand(steps, -1), answer.expand(steps)).sum()
                with value.backward():
                    grad = scaled.grad.save()
            scores.append(grad.mean(0) * h)
        return torch.cat(scores, 1)


PEERS: tuple[type[Peer], ...] = (Captum, TransformerLens, NNsight)


def installed(peers: Sequence[type[Peer]] = PEERS) -> tuple[list[type[Peer]], dict[str, str]]:
    """The peers that can be imported here, and of the others by name what the import said."""
    here, missing = [], {}
    for peer in peers:
        try:
            import_module(peer.module)
        except (ImportError, AttributeError) as error:  # the second of one made for another transformers
            missing[peer.name] = f"{type(error).__name__}: {error}"
        else:
            here.append(peer)
    return here, missing
