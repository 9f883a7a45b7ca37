"""The judge: every score by plain full forward and backward passes, one prompt at a time.

Nothing here is clever. A neuron is edited at the answer position of a full forward of the whole prompt; gradients come
from autograd through that forward. Everything else in the project is tested against this module, which is why it stays
short and slow. The only batching is of copies of the same prompt (the points of an integral, the edits of a layer).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..anatomy import Anatomy, Site
from ..steer import visiting
from .batching import Plan
from .borrowed import DoublePrecision, answer_logits, borrowed, check_prompts, input_device
from .objective import objective_value, option_scores, wide
from .relp import relp_rules, watching_ups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..prompts import Prompt


TOKENS = 4096


class ReferenceEngine:
    """Plain attribution on a borrowed model.

    `dtype` judges a copy of the model in that type; float64 is then kept even where the model's code asks for float32.
    None works on the model itself.
    `batch_size` bounds the copies of a prompt in one forward pass; "auto" keeps a pass near 4,096 tokens.

    >>> with ReferenceEngine(model) as engine:   # doctest: +SKIP
    ...     scores = engine.gradients(prompts, "logp_options")
    """

    name = "reference"

    @property
    def at_once(self) -> int:
        """How many prompts the engine likes to be given together: its progress shows only between such pieces."""
        return self.plan.window

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy | None = None,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int | str = "auto",
    ) -> None:
        self.model: Any = model if dtype in (None, model.dtype) else copy.deepcopy(model).to(dtype)  # type: ignore[arg-type]
        self.dtype = dtype
        self.anatomy = anatomy or Anatomy.of(model)
        self.batch_size = batch_size
        self.plan = Plan(prompts=1, rows=TOKENS, window=1)
        self._stack = ExitStack()

    def __enter__(self) -> ReferenceEngine:
        self._stack.enter_context(borrowed(self.model))
        if self.dtype == torch.float64:
            self._stack.enter_context(DoublePrecision())
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    # ---- what a method can ask for: one row a prompt, one column a neuron ----

    @torch.no_grad()
    def option_scores(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """The score of every option of each prompt (logits; a softmax over them gives the model's answer)."""
        return [option_scores(self._forward(p)[0], [list(i) for i in p.option_ids]).cpu() for p in prompts]

    @torch.no_grad()
    def activations(self, prompts: Sequence[Prompt], positions: str = "answer", statistic: str = "value") -> Tensor:
        """h at the answer position, or its mean over all positions; "frequency" counts h's gate being positive."""
        return self._each(prompts, lambda p: self._activations(p, positions, statistic))

    def gradients(
        self,
        prompts: Sequence[Prompt],
        objective: str,
        *,
        positions: str = "answer",
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        """sum over positions of weight * dF/dh, weight being h ("activation") or its sign ("sign").

        `rules` None is the true gradient; "relp" and "relp-detached" (attention patterns constant too) are LRP's.
        """
        return self._each(prompts, lambda p: self._gradients(p, objective, positions, weight, rules))

    def integrate(self, prompts: Sequence[Prompt], objective: str, alphas: Tensor, weights: Tensor) -> Tensor:
        """Integrated gradients at the answer position, a layer's whole h scaled together by each alpha."""
        return self._each(prompts, lambda p: self._integrate(p, objective, alphas, weights))

    @torch.no_grad()
    def effects(
        self, prompts: Sequence[Prompt], objective: str, *, ids: Tensor | None = None, factor: float = 0.0
    ) -> Tensor:
        """F(clean) - F(neuron times factor) at the answer position, every neuron or those of `ids`, really run."""
        return self._each(prompts, lambda p: self._effects(p, objective, ids, factor))

    @torch.no_grad()
    def direct(self, prompts: Sequence[Prompt], objective: str) -> Tensor:
        """F(unembed(r + h_i v_i)) - F(unembed(r)): a neuron's own push on the logits, no later layer in between."""
        return self._each(prompts, lambda p: self._direct(p, objective))

    @torch.no_grad()
    def post_normed(self, prompt: Prompt) -> bool:
        """True if the first block's output is not linear in h, as behind a norm of the FFN's output."""
        site, h = self.anatomy.sites[0], self._clean(prompt)[0]
        none, once, twice = wide(self._after(prompt, site, torch.stack([0 * h, h, 2 * h]))).unbind(0)
        step = once - none
        return bool((twice - none - 2 * step).norm() > 0.1 * step.norm())

    # ---- one prompt ----

    def _each(self, prompts: Sequence[Prompt], score: Callable[[Prompt], Tensor]) -> Tensor:
        check_prompts(self.model, prompts)
        return torch.stack([score(prompt) for prompt in prompts])

    def _forward(self, prompt: Prompt, rows: int = 1) -> Tensor:
        """Logits (rows, vocabulary) at the answer position of `rows` copies of the prompt."""
        return answer_logits(self.model, torch.tensor([prompt.input_ids]).expand(rows, -1))

    def _clean(self, prompt: Prompt) -> list[Tensor]:
        """h of every site at the answer position, each (width,)."""
        seen: list[Tensor] = []
        with torch.no_grad(), visiting(self.model, self.anatomy.sites, lambda site, h, routes: seen.append(h[0, -1])):
            self._forward(prompt)
        return seen

    def _edited(self, prompt: Prompt, site: Site, h: Tensor) -> Tensor:
        """Logits of one copy of the prompt per row of h (rows, width), each with that h at the answer position."""

        def replace(_: Site, old: Tensor, routes: Tensor | None) -> Tensor:
            return torch.cat([old[:, :-1], h[:, None].to(old)], 1)

        with visiting(self.model, [site], replace):
            return self._forward(prompt, len(h))

    def _activations(self, prompt: Prompt, positions: str, statistic: str) -> Tensor:
        seen: list[Tensor] = []
        with watching_ups(self.model, self.anatomy.sites) as ups:

            def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
                value = h if statistic == "value" else (ups(site, h)[0] > 0).to(h)
                seen.append(wide(value[0, -1:] if positions == "answer" else value[0]).mean(0).cpu())

            with visiting(self.model, self.anatomy.sites, look):
                self._forward(prompt)
        return torch.cat(seen)

    def _gradients(self, prompt: Prompt, objective: str, positions: str, weight: str, rules: str | None) -> Tensor:
        values: list[Tensor] = []
        deltas: list[Tensor] = []

        def add_zero(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            """h + 0, where the zero is a leaf: its gradient is the gradient at h."""
            last = h[:, -1:] if positions == "answer" else h
            values.append(last.detach()[0])
            deltas.append(torch.zeros_like(last).requires_grad_(True))
            return h + torch.nn.functional.pad(deltas[-1], (0, 0, h.shape[1] - last.shape[1], 0))

        with ExitStack() as stack:
            if rules:
                stack.enter_context(relp_rules(self.model, self.anatomy, detach_attention=rules == "relp-detached"))
            stack.enter_context(visiting(self.model, self.anatomy.sites, add_zero))
            stack.enter_context(torch.enable_grad())
            value = objective_value(objective, self._forward(prompt), prompt)
            grads = torch.autograd.grad(value.sum(), deltas)
        scale = torch.sign if weight == "sign" else torch.Tensor.detach
        return torch.cat([(wide(scale(h)) * wide(g[0])).sum(0).cpu() for h, g in zip(values, grads, strict=True)])

    def _integrate(self, prompt: Prompt, objective: str, alphas: Tensor, weights: Tensor) -> Tensor:
        scores = []
        for site, h in zip(self.anatomy.sites, self._clean(prompt), strict=True):
            with torch.enable_grad():
                scaled = (alphas.to(h)[:, None] * h).requires_grad_(True)
                value = objective_value(objective, self._edited(prompt, site, scaled), prompt)
                (grad,) = torch.autograd.grad(value.sum(), scaled)
            mean = (weights.to(h.device)[:, None] * grad.double()).sum(0)
            scores.append(wide(mean.to(wide(h).dtype) * wide(h)).cpu())
        return torch.cat(scores)

    def _effects(self, prompt: Prompt, objective: str, ids: Tensor | None, factor: float) -> Tensor:
        ids = torch.arange(self.anatomy.n_neurons) if ids is None else self.anatomy.checked(ids)
        where, clean = self.anatomy.site_of(ids), self._clean(prompt)
        effects = torch.empty(len(ids), dtype=wide(clean[0]).dtype)
        for n in where.unique().tolist():
            site, h = self.anatomy.sites[n], clean[n]
            for part in (where == n).nonzero()[:, 0].split(self._rows(prompt)):
                index = (ids[part] - self.anatomy.offsets[n]).to(h.device)
                rows = h.repeat(len(index) + 1, 1)  # the last row stays clean: both sides come from one pass
                rows[torch.arange(len(index), device=h.device), index] *= factor
                value = objective_value(objective, self._edited(prompt, site, rows), prompt)
                effects[part] = (value[-1] - value[:-1]).cpu()
        return effects

    def _direct(self, prompt: Prompt, objective: str) -> Tensor:
        scores = []
        for site, h in zip(self.anatomy.sites, self._clean(prompt), strict=True):
            for index in torch.arange(site.width, device=h.device).split(self._rows(prompt)):
                alone = torch.zeros(len(index) + 1, site.width, dtype=h.dtype, device=h.device)
                alone[torch.arange(len(index), device=h.device), index] = h[index]
                logits = self._unembed(self._after(prompt, site, alone))
                value = objective_value(objective, logits, prompt)
                scores.append((value[:-1] - value[-1]).cpu())
        return torch.cat(scores)

    def _after(self, prompt: Prompt, site: Site, h: Tensor) -> Tensor:
        """The residual stream (rows, D) right after the site's layer, with the rows of h at the answer position."""
        out: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            out.append((output[0] if isinstance(output, tuple) else output)[:, -1])

        handle = self.model.get_submodule(site.block).register_forward_hook(keep)
        try:
            self._edited(prompt, site, h)
        finally:
            handle.remove()
        return out[0]

    def _unembed(self, residual: Tensor) -> Tensor:
        """Logits of residual rows, by the model's own final norm, head and scale.

        The rows take the place of the last layer's output in a forward of one-token inputs, so no architecture needs to
        be known here.
        """

        def put(module: Any, args: Any, output: Any) -> Any:
            rows = residual[:, None].to(output[0] if isinstance(output, tuple) else output)
            return (rows, *output[1:]) if isinstance(output, tuple) else rows

        # Every decoder layer is a sibling of the sites' blocks; the last one feeds the final norm.
        stack = self.model.get_submodule(self.anatomy.sites[-1].block.rpartition(".")[0])
        handle = stack[len(stack) - 1].register_forward_hook(put)
        try:
            ids = torch.zeros(len(residual), 1, dtype=torch.int64, device=input_device(self.model))
            return self.model(input_ids=ids, use_cache=False).logits[:, -1]
        finally:
            handle.remove()

    def _rows(self, prompt: Prompt) -> int:
        """How many edited copies of a prompt go into one pass."""
        return self.batch_size if isinstance(self.batch_size, int) else max(1, TOKENS // len(prompt.input_ids))
