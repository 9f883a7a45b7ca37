"""The judge: every score by plain full forward and backward passes, one prompt at a time.

Nothing here is clever. A prompt is run with one answer behind it after the other, each a sequence of its own; a letter
is read behind the prompt itself. A neuron is edited at the answer positions of every sequence of a prompt together, or
at all of its tokens; gradients come from autograd through all of these forwards. Everything else in the project is
tested against this module, which is why it stays short and slow. The only batching is of copies of the same sequence
(the points of an integral, the edits of a layer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..common.errors import InputError
from ..model.hooks import visiting
from ..model.sites import Site
from .activity import measuring
from .adaptive import ERROR, Refined, alphas_of, attainable
from .base import FactorGradients, summed
from .head import objective_value, wide
from .objectives import AnyObjective
from .passes import Clean, PlainPasses
from .relp import relp_rules
from .sequences import Shown, option_score, shown, value_of
from .stream import float32_stream
from .verdicts import verdicts

if TYPE_CHECKING:
    from ..data.prompts import Prompt


class ReferenceEngine(PlainPasses):
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
        value = lambda logits, prompt: value_of(objective, logits, prompt)  # noqa: E731
        return self._each(prompts, lambda p: self._gradients(p, value, positions, weight, rules))

    def question_gradients(
        self,
        prompts: Sequence[Prompt],
        sizes: Sequence[int],
        objective: AnyObjective,
        *,
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        found = self.gradients(prompts, objective, positions="all", weight=weight, rules=rules)
        return torch.stack([rows.mean(0) for rows in found.split(list(sizes))])

    def option_gradients(self, prompts: Sequence[Prompt]) -> Tensor:
        most = max(len(p.option_ids) for p in prompts)

        def one(prompt: Prompt) -> Tensor:
            found = torch.zeros(
                most, self.anatomy.n_neurons, dtype=torch.promote_types(self.model.dtype, torch.float32)
            )
            for k in range(len(prompt.option_ids)):
                score = lambda logits, prompt, k=k: option_score(logits, prompt, k)  # noqa: E731
                found[k] = self._gradients(prompt, score, "answer", "activation", None)
            return found

        return self._each(prompts, one)

    def factor_gradients(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        ids: Tensor,
        factors: Tensor,
        *,
        positions: str = "answer",
    ) -> FactorGradients:
        found = self._each(prompts, lambda p: self._at_factors(p, objective, ids, factors, positions))
        return FactorGradients(found[:, 0], found[:, 1:])

    def integrate(self, prompts: Sequence[Prompt], objective: AnyObjective, alphas: Tensor, weights: Tensor) -> Tensor:
        return self._each(prompts, lambda p: self._integrate(p, objective, alphas, weights))

    def integrate_to(self, prompts: Sequence[Prompt], objective: AnyObjective, tolerance: float) -> Tensor:
        return self._each(prompts, lambda p: self._integrate_to(p, objective, tolerance))

    @torch.no_grad()
    def effects(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        *,
        ids: Tensor | None = None,
        factor: float = 0.0,
        positions: str = "answer",
    ) -> Tensor:
        with float32_stream(self.model):
            self.plan.noise = max([self.plan.noise, *(self._rounding(p, objective, positions) for p in prompts)])
            return self._each(prompts, lambda p: self._effects(p, objective, ids, factor, positions))

    @torch.no_grad()
    def direct(self, prompts: Sequence[Prompt], objective: AnyObjective) -> Tensor:
        return self._each(prompts, lambda p: self._direct(p.by_first_token(), objective))

    @torch.no_grad()
    def post_normed(self, prompt: Prompt) -> bool:
        known, question = verdicts(self.model), ("post norms", self.dtype)
        if question not in known:
            known[question] = self._post_normed(prompt)
        return bool(known[question])

    def _post_normed(self, prompt: Prompt) -> bool:
        row = shown(prompt.by_first_token())[0]
        clean = self._clean(row)
        kinds = {site.expert: site for site in reversed(self.anatomy.sites)}  # the first one of each
        return any(self._not_linear(row, site, clean[site.down][0]) for site in kinds.values())

    def _not_linear(self, row: Shown, site: Site, h: Tensor) -> bool:
        none, once, twice = wide(self._after(row, site.block, {site.down: torch.stack([0 * h, h, 2 * h])})).unbind(0)
        step = once - none
        return bool((twice - none - 2 * step).norm() > 0.1 * step.norm())

    # ---- one prompt ----

    def _activations(self, prompt: Prompt, positions: str, statistic: str) -> Tensor:
        seen: dict[str, Tensor] = {}
        right = shown(prompt if prompt.one_token else prompt.alone(prompt.answer))[0]

        def take(site: Site, value: Tensor, routes: Tensor | None) -> None:
            last = slice(-right.span, None) if positions == "answer" else slice(None)
            of = None if routes is None else routes[0, last]
            seen[site.down] = summed(site, wide(value[0, last]), of) / len(value[0, last])

        norms = self.norms if statistic == "cett" else None
        with measuring(self.model, self.anatomy, statistic, norms, take):
            self._forward(right)
        return self._joined(seen)

    def _gradients(
        self,
        prompt: Prompt,
        value_of: Callable[[Sequence[Tensor], Prompt], Tensor],
        positions: str,
        weight: str,
        rules: str | None,
    ) -> Tensor:
        values: list[tuple[Site, Tensor, Tensor | None]] = []
        deltas: list[Tensor] = []
        logits: list[Tensor] = []
        rows = shown(prompt, positions)

        def add_zero(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            """h + 0, where the zero is a leaf: its gradient is the gradient at h."""
            start = h.shape[1] - rows[len(logits)].edited
            values.append((site, h[0, start:].detach(), None if routes is None else routes[0, start:]))
            deltas.append(torch.zeros_like(h[:, start:]).requires_grad_(True))
            return h + torch.cat([torch.zeros_like(h[:, :start]), deltas[-1]], 1)

        with ExitStack() as stack:
            if rules:
                stack.enter_context(relp_rules(self.model, self.anatomy, detach_attention=rules == "relp-detached"))
            stack.enter_context(visiting(self.model, self.anatomy.sites, add_zero))
            stack.enter_context(torch.enable_grad())
            for row in rows:
                logits.append(self._forward(row))
            self._hear(prompt, logits)
            value = value_of(logits, prompt).sum()
            if not value.requires_grad:
                raise InputError(
                    f"model: {type(self.model).__name__} runs its layers in a way that gradients do not pass through "
                    '(reversible layers); use method="exact"'
                )
            # An objective need not read every answer.
            grads = torch.autograd.grad(value, deltas, materialize_grads=True)
        scale = torch.sign if weight == "sign" else torch.Tensor.detach
        scores: dict[str, Tensor] = {}
        for (site, h, routes), grad in zip(values, grads, strict=True):
            found = summed(site, wide(scale(h)) * wide(grad[0]), routes)
            scores[site.down] = scores[site.down] + found if site.down in scores else found
        return self._joined(scores)

    def _at_factors(
        self, prompt: Prompt, objective: AnyObjective, ids: Tensor, factors: Tensor, positions: str
    ) -> Tensor:
        """The objective and its gradient at the factors, side by side."""
        rows = shown(prompt, positions)
        logits: list[Tensor] = []
        leaf = factors.to(self.model.dtype).requires_grad_(True)
        every = torch.ones(self.anatomy.n_neurons, dtype=leaf.dtype).index_put((ids,), leaf)
        of_site = dict(zip(self.anatomy.sites, self.anatomy.split(every), strict=True))

        def turn(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            factor = of_site[site].to(h)
            turned = h * (factor if routes is None else factor.unflatten(0, (site.experts, -1))[routes])
            start = h.shape[1] - rows[len(logits)].edited
            return torch.cat([h[:, :start], turned[:, start:]], 1)

        with torch.enable_grad(), visiting(self.model, self.anatomy.sites, turn):
            for row in rows:
                logits.append(self._forward(row))
            value = value_of(objective, logits, prompt)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return wide(torch.cat([value.detach().cpu(), grad.cpu()]))

    def _integrate(self, prompt: Prompt, objective: AnyObjective, alphas: Tensor, weights: Tensor) -> Tensor:
        cleans = self._cleans(prompt, shown(prompt))
        blocks = [self._of_block(prompt, objective, cleans, block, alphas, weights) for block in self.anatomy.blocks]
        return torch.cat(blocks)

    def _integrate_to(self, prompt: Prompt, objective: AnyObjective, tolerance: float) -> Tensor:
        cleans, blocks = self._cleans(prompt, shown(prompt)), list(self.anatomy.blocks)
        refined = Refined(len(blocks), attainable(tolerance, self.model.dtype))

        def score(layer: int, weights: dict[int, float]) -> Tensor:
            points, rule = alphas_of(list(weights)), torch.tensor(list(weights.values()), dtype=torch.float64)
            return self._of_block(prompt, objective, cleans, blocks[layer], points, rule)

        waiting = refined.first()
        while waiting:
            for layer, interval in waiting:
                refined.errors[layer, interval] = float(score(layer, interval.weights(ERROR)).norm())
            for layer in dict(waiting):
                refined.norms[layer] = float(score(layer, refined.weights(layer)).norm())
            waiting = refined.split()
        self.plan.note([refined])
        return torch.cat([score(layer, refined.weights(layer)) for layer in range(len(blocks))])

    def _of_block(
        self,
        prompt: Prompt,
        objective: AnyObjective,
        cleans: list[Clean],
        block: str,
        alphas: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """The integrals of all sites of a block, in order."""
        sites, rows, scores = self.anatomy.blocks[block], shown(prompt), dict[str, Tensor]()
        scaled: list[dict[str, Tensor]] = []
        for clean in cleans:
            held = {site.down: clean[site.down][0] for site in sites}
            scaled.append({down: (across(alphas.to(h), h) * h).requires_grad_(True) for down, h in held.items()})
        with torch.enable_grad():
            logits = [self._edited(row, copies) for row, copies in zip(rows, scaled, strict=True)]
            leaves = [copies[site.down] for copies in scaled for site in sites]
            value = value_of(objective, logits, prompt).sum()
            grads = iter(torch.autograd.grad(value, leaves, materialize_grads=True))
        for clean in cleans:
            for site in sites:
                h, routes = clean[site.down]
                mean = (across(weights.to(h.device), h) * next(grads).double()).sum(0)
                found = summed(site, mean.to(wide(h).dtype) * wide(h), routes)
                scores[site.down] = scores[site.down] + found if site.down in scores else found
        return torch.cat([scores[site.down].cpu() for site in sites])

    def _effects(
        self, prompt: Prompt, objective: AnyObjective, ids: Tensor | None, factor: float, positions: str
    ) -> Tensor:
        ids = torch.arange(self.anatomy.n_neurons) if ids is None else self.anatomy.checked(ids)
        rows, where = shown(prompt, positions), self.anatomy.site_of(ids)
        cleans = self._cleans(prompt, rows)
        effects = torch.zeros(len(ids), dtype=wide(next(iter(cleans[0].values()))[0]).dtype)
        for n in where.unique().tolist():
            site = self.anatomy.sites[n]
            within = ids - self.anatomy.offsets[n]
            # Neurons of experts that no edited token is routed to do nothing here.
            active = (where == n) & torch.isin(within, self._active(site, cleans))
            for part in active.nonzero()[:, 0].split(self._copies_in_a_pass(rows)):
                logits = []
                for row, clean in zip(rows, cleans, strict=True):
                    h, routes = clean[site.down]
                    mask = one_each(site, within[part].to(h.device), routes)
                    # The last copy stays clean: both sides come from one pass.
                    copies = torch.cat([torch.where(mask, h * factor, h), h[None]])
                    logits.append(self._edited(row, {site.down: copies}).double())  # as two are to be subtracted
                value = value_of(objective, logits, prompt)
                effects[part] = (value[-1] - value[:-1]).to(effects)
        return effects

    def _rounding(self, prompt: Prompt, objective: AnyObjective, positions: str) -> float:
        site, logits = self.anatomy.sites[0], []
        generator = torch.Generator().manual_seed(0)
        for row in shown(prompt, positions):
            h = self._clean(row)[site.down][0]
            noise = torch.randn(8, *h.shape, generator=generator, dtype=torch.float64).to(h)
            copies = torch.cat([h * (1 + noise * torch.finfo(h.dtype).eps), h[None]])
            logits.append(self._edited(row, {site.down: copies}).double())
        value = value_of(objective, logits, prompt)
        return float((value[:-1] - value[-1]).abs().max())

    def _direct(self, prompt: Prompt, objective: AnyObjective) -> Tensor:
        (row,) = shown(prompt)
        scores, clean = {}, self._clean(row)
        for block, sites in self.anatomy.blocks.items():
            for site in sites:
                h, routes = clean[site.down]
                found = torch.zeros(site.size, dtype=wide(h).dtype)
                for index in self._active(site, [clean]).split(self._copies_in_a_pass([row])):
                    mask = one_each(site, index.to(h.device), routes)
                    alone = torch.cat([torch.where(mask, h, 0), torch.zeros_like(h)[None]])
                    # Whatever else the layer holds stays silent, and so it does in the last copy.
                    others = {s.down: clean[s.down][0] for s in sites if s is not site}
                    silent = {down: torch.zeros_like(o).expand(len(alone), *o.shape) for down, o in others.items()}
                    logits = self._unembed(self._after(row, block, {site.down: alone, **silent}))
                    value = objective_value(objective, logits, prompt)
                    found[index] = (value[:-1] - value[-1]).cpu()
                scores[site.down] = found
        return self._joined(scores)

    def _active(self, site: Site, cleans: Sequence[Clean]) -> Tensor:
        """The neurons of a site that an edited token reaches."""
        every = torch.arange(site.size)
        routes = [routes.flatten().cpu() for clean in cleans if (routes := clean[site.down][1]) is not None]
        return every[torch.isin(every // site.width, torch.cat(routes))] if routes else every

    def _joined(self, scores: dict[str, Tensor]) -> Tensor:
        """The scores of all neurons, in order, out of what was found in each site."""
        return torch.cat([scores[site.down].cpu() for site in self.anatomy.sites])


def across(points: Tensor, h: Tensor) -> Tensor:
    """Numbers as a first dimension in front of those of h."""
    return points.reshape(-1, *[1] * h.ndim)


def one_each(site: Site, index: Tensor, routes: Tensor | None) -> Tensor:
    """(neurons, *h.shape), true where each one's own neuron of the site is in h at an edited position."""
    mask = index[:, None] % site.width == torch.arange(site.width, device=index.device)
    if routes is None:
        return mask[:, None]
    return mask[:, None, None] & (index[:, None, None, None] // site.width == routes[..., None])
