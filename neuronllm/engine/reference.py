"""The judge: every score by plain full forward and backward passes, one prompt at a time.

Nothing here is clever. A neuron is edited at the answer position of a full forward of the whole prompt; gradients come
from autograd through that forward. Everything else in the project is tested against this module, which is why it stays
short and slow. The only batching is of copies of the same prompt (the points of an integral, the edits of a layer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.hooks import visiting
from ..model.sites import Site
from .base import TOKENS, Engine, summed
from .borrowed import answer_logits, check_prompts, input_device
from .head import objective_value, option_scores, wide
from .objectives import AnyObjective
from .relp import relp_rules, watching_ups
from .stream import float32_stream
from .verdicts import verdicts

if TYPE_CHECKING:
    from ..data.prompts import Prompt


# h at the answer position by site.down, and the experts it belongs to
Clean = dict[str, tuple[Tensor, "Tensor | None"]]


class ReferenceEngine(Engine):
    """Plain attribution; `batch_size` bounds the copies of a prompt in one pass, "auto" keeps it near 4,096 tokens."""

    name = "reference"

    def fit(
        self, work: Callable[[Sequence[Prompt]], Tensor], prompts: Sequence[Prompt], *, always: bool = False
    ) -> None:
        """Nothing is to be planned here: a pass is small enough as it is."""

    # ---- the verbs ----

    @torch.no_grad()
    def activations(self, prompts: Sequence[Prompt], positions: str = "answer", statistic: str = "value") -> Tensor:
        return self._each(prompts, lambda p: self._activations(p, positions, statistic))

    def gradients(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        *,
        positions: str = "answer",
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        value = lambda logits, prompt: objective_value(objective, logits, prompt)  # noqa: E731
        return self._each(prompts, lambda p: self._gradients(p, value, positions, weight, rules))

    def option_gradients(self, prompts: Sequence[Prompt]) -> Tensor:
        most = max(len(p.option_ids) for p in prompts)

        def one(prompt: Prompt) -> Tensor:
            found = torch.zeros(
                most, self.anatomy.n_neurons, dtype=torch.promote_types(self.model.dtype, torch.float32)
            )
            for k, ids in enumerate(prompt.first_tokens):
                score = lambda logits, _, ids=ids: option_scores(logits, [list(ids)])[..., 0]  # noqa: E731
                found[k] = self._gradients(prompt, score, "answer", "activation", None)
            return found

        return self._each(prompts, one)

    def integrate(self, prompts: Sequence[Prompt], objective: AnyObjective, alphas: Tensor, weights: Tensor) -> Tensor:
        return self._each(prompts, lambda p: self._integrate(p, objective, alphas, weights))

    @torch.no_grad()
    def effects(
        self, prompts: Sequence[Prompt], objective: AnyObjective, *, ids: Tensor | None = None, factor: float = 0.0
    ) -> Tensor:
        with float32_stream(self.model):
            self.plan.noise = max([self.plan.noise, *(self._rounding(p, objective) for p in prompts)])
            return self._each(prompts, lambda p: self._effects(p, objective, ids, factor))

    @torch.no_grad()
    def direct(self, prompts: Sequence[Prompt], objective: AnyObjective) -> Tensor:
        return self._each(prompts, lambda p: self._direct(p, objective))

    @torch.no_grad()
    def post_normed(self, prompt: Prompt) -> bool:
        known, question = verdicts(self.model), ("post norms", self.dtype)
        if question not in known:
            known[question] = self._post_normed(prompt)
        return bool(known[question])

    def _post_normed(self, prompt: Prompt) -> bool:
        clean = self._clean(prompt)
        kinds = {site.expert: site for site in reversed(self.anatomy.sites)}  # the first one of each
        return any(self._not_linear(prompt, site, clean[site.down][0]) for site in kinds.values())

    def _not_linear(self, prompt: Prompt, site: Site, h: Tensor) -> bool:
        none, once, twice = wide(self._after(prompt, site.block, {site.down: torch.stack([0 * h, h, 2 * h])})).unbind(0)
        step = once - none
        return bool((twice - none - 2 * step).norm() > 0.1 * step.norm())

    # ---- one prompt ----

    def _each(self, prompts: Sequence[Prompt], score: Callable[[Prompt], Tensor]) -> Tensor:
        check_prompts(self.model, prompts)
        return torch.stack([score(prompt) for prompt in prompts])

    def _forward(self, prompt: Prompt, copies: int = 1) -> Tensor:
        """Logits (copies, vocabulary) at the answer position of so many copies of the prompt."""
        return answer_logits(self.model, torch.tensor([prompt.input_ids]).expand(copies, -1))

    def _clean(self, prompt: Prompt) -> Clean:
        """h of every site at the answer position: (width,), or (K, width) of the K experts in the routes beside it."""
        seen: Clean = {}

        def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
            seen[site.down] = (h[0, -1], None if routes is None else routes[0, -1])

        with torch.no_grad(), visiting(self.model, self.anatomy.sites, look):
            self._forward(prompt)
        return seen

    def _edited(self, prompt: Prompt, copies: dict[str, Tensor]) -> Tensor:
        """Logits of copies of the prompt, each with its own h at the answer position of the sites in `copies`."""

        def replace(site: Site, old: Tensor, routes: Tensor | None) -> Tensor:
            return torch.cat([old[:, :-1], copies[site.down][:, None].to(old)], 1)

        with visiting(self.model, [site for site in self.anatomy.sites if site.down in copies], replace):
            return self._forward(prompt, len(next(iter(copies.values()))))

    def _activations(self, prompt: Prompt, positions: str, statistic: str) -> Tensor:
        seen: dict[str, Tensor] = {}
        with watching_ups(self.model, self.anatomy.sites) as ups:

            def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
                value = h if statistic == "value" else (ups(site, h)[0] > 0).to(h)
                last = slice(-1, None) if positions == "answer" else slice(None)
                of = None if routes is None else routes[0, last]
                seen[site.down] = summed(site, wide(value[0, last]), of) / len(value[0, last])

            with visiting(self.model, self.anatomy.sites, look):
                self._forward(prompt)
        return self._joined(seen)

    def _gradients(
        self,
        prompt: Prompt,
        value_of: Callable[[Tensor, Prompt], Tensor],
        positions: str,
        weight: str,
        rules: str | None,
    ) -> Tensor:
        values: dict[str, tuple[Tensor, Tensor | None]] = {}
        deltas: dict[str, Tensor] = {}

        def add_zero(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            """h + 0, where the zero is a leaf: its gradient is the gradient at h."""
            start = h.shape[1] - 1 if positions == "answer" else 0
            values[site.down] = (h[0, start:].detach(), None if routes is None else routes[0, start:])
            deltas[site.down] = torch.zeros_like(h[:, start:]).requires_grad_(True)
            return h + torch.cat([torch.zeros_like(h[:, :start]), deltas[site.down]], 1)

        with ExitStack() as stack:
            if rules:
                stack.enter_context(relp_rules(self.model, self.anatomy, detach_attention=rules == "relp-detached"))
            stack.enter_context(visiting(self.model, self.anatomy.sites, add_zero))
            stack.enter_context(torch.enable_grad())
            value = value_of(self._forward(prompt), prompt)
            grads = dict(zip(deltas, torch.autograd.grad(value.sum(), list(deltas.values())), strict=True))
        scale = torch.sign if weight == "sign" else torch.Tensor.detach
        scores = {}
        for site in self.anatomy.sites:
            h, routes = values[site.down]
            scores[site.down] = summed(site, wide(scale(h)) * wide(grads[site.down][0]), routes)
        return self._joined(scores)

    def _integrate(self, prompt: Prompt, objective: AnyObjective, alphas: Tensor, weights: Tensor) -> Tensor:
        scores, clean = {}, self._clean(prompt)
        for sites in self.anatomy.blocks.values():
            scaled = {}
            for site in sites:
                h = clean[site.down][0]
                scaled[site.down] = (across(alphas.to(h), h) * h).requires_grad_(True)
            with torch.enable_grad():
                value = objective_value(objective, self._edited(prompt, scaled), prompt)
                grads = torch.autograd.grad(value.sum(), list(scaled.values()))
            for site, grad in zip(sites, grads, strict=True):
                h, routes = clean[site.down]
                mean = (across(weights.to(h.device), h) * grad.double()).sum(0)
                scores[site.down] = site.spread(mean.to(wide(h).dtype) * wide(h), routes)
        return self._joined(scores)

    def _effects(self, prompt: Prompt, objective: AnyObjective, ids: Tensor | None, factor: float) -> Tensor:
        ids = torch.arange(self.anatomy.n_neurons) if ids is None else self.anatomy.checked(ids)
        where, clean = self.anatomy.site_of(ids), self._clean(prompt)
        effects = torch.zeros(len(ids), dtype=wide(next(iter(clean.values()))[0]).dtype)
        for n in where.unique().tolist():
            site = self.anatomy.sites[n]
            h, routes = clean[site.down]
            within = ids - self.anatomy.offsets[n]
            # Neurons of experts that the answer token is not routed to do nothing here.
            active = where == n if routes is None else (where == n) & torch.isin(within // site.width, routes.cpu())
            for part in active.nonzero()[:, 0].split(self._copies_in_a_pass(prompt)):
                mask = one_each(site, within[part].to(h.device), routes)
                # The last copy stays clean: both sides come from one pass.
                copies = torch.cat([torch.where(mask, h * factor, h), h[None]])
                value = objective_value(objective, self._edited(prompt, {site.down: copies}), prompt)
                effects[part] = (value[-1] - value[:-1]).cpu()
        return effects

    def _rounding(self, prompt: Prompt, objective: AnyObjective) -> float:
        site = self.anatomy.sites[0]
        h = self._clean(prompt)[site.down][0]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(8, *h.shape, generator=generator, dtype=torch.float64).to(h)
        copies = torch.cat([h * (1 + noise * torch.finfo(h.dtype).eps), h[None]])
        value = objective_value(objective, self._edited(prompt, {site.down: copies}), prompt)
        return float((value[:-1] - value[-1]).abs().max())

    def _direct(self, prompt: Prompt, objective: AnyObjective) -> Tensor:
        scores, clean = {}, self._clean(prompt)
        for block, sites in self.anatomy.blocks.items():
            for site in sites:
                h, routes = clean[site.down]
                found = torch.zeros(site.size, dtype=wide(h).dtype)
                for index in self._active(site, routes).split(self._copies_in_a_pass(prompt)):
                    mask = one_each(site, index.to(h.device), routes)
                    alone = torch.cat([torch.where(mask, h, 0), torch.zeros_like(h)[None]])
                    # Whatever else the layer holds stays silent, and so it does in the last copy.
                    others = {s.down: clean[s.down][0] for s in sites if s is not site}
                    silent = {down: torch.zeros_like(o).expand(len(alone), *o.shape) for down, o in others.items()}
                    logits = self._unembed(self._after(prompt, block, {site.down: alone, **silent}))
                    value = objective_value(objective, logits, prompt)
                    found[index] = (value[:-1] - value[-1]).cpu()
                scores[site.down] = found
        return self._joined(scores)

    def _active(self, site: Site, routes: Tensor | None) -> Tensor:
        """The neurons of a site that the answer token reaches."""
        every = torch.arange(site.size)
        return every if routes is None else every[torch.isin(every // site.width, routes.cpu())]

    def _joined(self, scores: dict[str, Tensor]) -> Tensor:
        """The scores of all neurons, in order, out of what was found in each site."""
        return torch.cat([scores[site.down].cpu() for site in self.anatomy.sites])

    def _after(self, prompt: Prompt, block: str, copies: dict[str, Tensor]) -> Tensor:
        """The residual stream (copies, D) right after a layer, with copies of h at the answer position of its sites."""
        out: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            out.append((output[0] if isinstance(output, tuple) else output)[:, -1])

        handle = self.model.get_submodule(block).register_forward_hook(keep)
        try:
            self._edited(prompt, copies)
        finally:
            handle.remove()
        return out[0]

    def _unembed(self, residual: Tensor) -> Tensor:
        """Logits of residual states, by the model's own final norm, head and scale.

        The states take the place of the last layer's output in a forward of one-token inputs, so no architecture needs
        to be known here.
        """

        def put(module: Any, args: Any, output: Any) -> Any:
            states = residual[:, None].to(output[0] if isinstance(output, tuple) else output)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        # Every decoder layer is a sibling of the sites' blocks; the last one feeds the final norm.
        stack = self.model.get_submodule(self.anatomy.sites[-1].block.rpartition(".")[0])
        handle = stack[len(stack) - 1].register_forward_hook(put)
        try:
            ids = torch.zeros(len(residual), 1, dtype=torch.int64, device=input_device(self.model))
            return self.model(input_ids=ids, use_cache=False).logits[:, -1]
        finally:
            handle.remove()

    def _copies_in_a_pass(self, prompt: Prompt) -> int:
        """How many edited copies of a prompt go into one pass."""
        return self.batch_size if isinstance(self.batch_size, int) else max(1, TOKENS // len(prompt.input_ids))


def across(points: Tensor, h: Tensor) -> Tensor:
    """Numbers as a first dimension in front of those of h."""
    return points.reshape(-1, *[1] * h.ndim)


def one_each(site: Site, index: Tensor, routes: Tensor | None) -> Tensor:
    """(neurons, *h.shape), true where each one's own neuron of the site is in h at the answer position."""
    mask = index[:, None] % site.width == torch.arange(site.width, device=index.device)
    if routes is None:
        return mask
    return mask[:, None] & (index[:, None, None] // site.width == routes[:, None])
