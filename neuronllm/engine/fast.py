"""The fast engine: what the reference computes, on answer tokens against a cached prefix, batches at a time.

Edits and gradients of multiple-choice attribution happen at the answer position, and attention is causal, so nothing
before it ever changes. `unusable` checks on first use that a model lets itself be driven so; where it does not,
the reference does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..anatomy import Site
from ..steer import HookError, visiting
from .answers import padded
from .attention import branch_attention
from .borrowed import answer_logits, check_prompts
from .branch import answer_pass, residuals, sweep
from .objective import objective_value, option_scores
from .prefix import PrefixCache, prefill
from .reference import ReferenceEngine, wide
from .relp import relp_rules

if TYPE_CHECKING:
    from ..prompts import Prompt

# What the code of a model, or an edit around it, raises that takes its inputs another way. What is wrong with the
# prompts or the weights themselves, the reference will say.
DRIVING_ERRORS = (
    HookError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
ROWS = 2048  # answer tokens of one pass
TOKENS = 4096  # tokens of one full pass


class FastEngine(ReferenceEngine):
    """The reference's answers, without running what comes before the answer again for every edit.

    `batch_size` bounds the prompts of a pass; "auto" bounds its rows and tokens.
    """

    name = "fast"

    def unusable(self, prompts: Sequence[Prompt]) -> str | None:
        """Why this model cannot be driven by answer tokens, or None: a clean branch must equal the clean answer."""
        if self.anatomy.routed:
            return "its experts have no fast form yet"
        if min(len(p.input_ids) for p in prompts) < 2:
            return "a prompt of one token has no prefix"
        prompt = prompts[0]
        try:
            with torch.no_grad():
                plain = answer_logits(self.model, torch.tensor([prompt.input_ids]))
                prefix = prefill(self.model, [prompt])
                rows = {self.anatomy.sites[0].down: 1}
                logits = sweep(self.model, [prompt], prefix, self.anatomy.sites, rows, lambda site, h, routes: h)[0]
                with branch_attention(self.model, prefix) as seen:
                    answer_pass(self.model, [prompt], prefix)
        except DRIVING_ERRORS as error:
            text = (str(error).splitlines() or [""])[0]
            return f"it cannot be run on answer tokens ({type(error).__name__}: {text[:120]})"
        if len(seen) != len(prefix.layers):
            return f"{len(prefix.layers) - len(seen)} of its {len(prefix.layers)} layers attend in a way of their own"
        # Many models compute norms and softmax in float32 whatever their type.
        eps = max(torch.finfo(kind).eps for kind in (plain.dtype, torch.float32))
        if not bool(((logits - plain).abs() <= 1000 * eps * plain.abs().max()).all()):
            return f"a clean branch differs from the clean answer by {float((logits - plain).abs().max()):.1e}"
        return None

    # ---- the reference's questions, answered in batches ----

    @torch.no_grad()
    def option_scores(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        found: list[Tensor] = []
        for batch, prefix in self._prefixed(prompts, 1):
            with branch_attention(self.model, prefix):
                logits = answer_pass(self.model, batch, prefix)[:, 0]
            found += [option_scores(row, p.option_ids).cpu() for row, p in zip(logits, batch, strict=True)]
        return found

    def gradients(
        self,
        prompts: Sequence[Prompt],
        objective: str,
        *,
        positions: str = "answer",
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        detached = rules == "relp-detached"
        parts = []
        for batch, forward in self._passes(prompts, positions, detached):
            values: list[Tensor] = []
            deltas: list[Tensor] = []

            def add_zero(
                site: Site,
                h: Tensor,
                routes: Tensor | None,
                values: list[Tensor] = values,
                deltas: list[Tensor] = deltas,
            ) -> Tensor:
                values.append(h.detach())
                deltas.append(torch.zeros_like(h).requires_grad_(True))
                return h + deltas[-1]

            with ExitStack() as stack:
                if rules:
                    attention = detached and positions == "all"  # answer passes have an attention of their own
                    stack.enter_context(relp_rules(self.model, self.anatomy, detach_attention=attention))
                stack.enter_context(visiting(self.model, self.anatomy.sites, add_zero))
                stack.enter_context(torch.enable_grad())
                logits = forward()
                value = torch.stack([objective_value(objective, row, p) for row, p in zip(logits, batch, strict=True)])
                grads = torch.autograd.grad(value.sum(), deltas)
            scale = torch.sign if weight == "sign" else torch.clone
            # Padding stands after the answer, so its gradient is 0 and it adds nothing to the sum over tokens.
            scores = [(wide(scale(h)) * wide(g)).sum(1).cpu() for h, g in zip(values, grads, strict=True)]
            parts.append(torch.cat(scores, -1))
        return torch.cat(parts)

    def integrate(self, prompts: Sequence[Prompt], objective: str, alphas: Tensor, weights: Tensor) -> Tensor:
        rows = {site.down: len(alphas) for site in self.anatomy.sites}
        parts = []
        for batch, prefix in self._prefixed(prompts, 1 + sum(rows.values())):
            clean: list[Tensor] = []
            scaled: list[Tensor] = []

            def scale(
                site: Site, h: Tensor, routes: Tensor | None, clean: list[Tensor] = clean, scaled: list[Tensor] = scaled
            ) -> Tensor:
                clean.append(h[:, 0].detach())
                scaled.append((alphas.to(h)[None, :, None] * h.detach()).requires_grad_(True))
                return scaled[-1]

            with torch.enable_grad():
                logits = sweep(self.model, batch, prefix, self.anatomy.sites, rows, scale)
                pairs = zip(logits, batch, strict=True)
                value = torch.stack([objective_value(objective, row[1:], p) for row, p in pairs])
                grads = torch.autograd.grad(value.sum(), scaled)
            scores = []
            for h, grad in zip(clean, grads, strict=True):
                mean = (weights.to(grad.device)[None, :, None] * grad.double()).sum(1)
                scores.append((mean.to(wide(h).dtype) * wide(h)).cpu())
            parts.append(torch.cat(scores, -1))
        return torch.cat(parts)

    @torch.no_grad()
    def effects(
        self, prompts: Sequence[Prompt], objective: str, *, ids: Tensor | None = None, factor: float = 0.0
    ) -> Tensor:
        ids = torch.arange(self.anatomy.n_neurons) if ids is None else self.anatomy.checked(ids)
        order = ids.argsort(stable=True)  # a sweep meets the sites from the first to the last
        parts = []
        for batch, prefix in self._prefixed(prompts, ROWS // 4):
            chunks = ids[order].split(max(1, ROWS // len(batch)))
            found = torch.cat([self._swept(batch, prefix, objective, chunk, factor) for chunk in chunks], 1)
            parts.append(torch.empty_like(found).index_copy_(1, order, found))
        return torch.cat(parts)

    @torch.no_grad()
    def direct(self, prompts: Sequence[Prompt], objective: str) -> Tensor:
        rows = {site.down: site.width + 1 for site in self.anatomy.sites}

        def alone(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            """Row i keeps neuron i only; the last row keeps none."""
            return h * torch.eye(site.width + 1, site.width, dtype=h.dtype, device=h.device)

        parts = []
        for batch, prefix in self._prefixed(prompts, max(rows.values())):
            after = residuals(self.model, batch, prefix, self.anatomy.sites, rows, alone)
            for n, prompt in enumerate(batch):
                scores = []
                for site in self.anatomy.sites:
                    chunks = after[site.down][n].split(ROWS)
                    value = torch.cat([objective_value(objective, self._unembed(part), prompt) for part in chunks])
                    scores.append((value[:-1] - value[-1]).cpu())
                parts.append(torch.cat(scores))
        return torch.stack(parts)

    # ---- one batch ----

    def _swept(
        self, batch: Sequence[Prompt], prefix: PrefixCache, objective: str, ids: Tensor, factor: float
    ) -> Tensor:
        """(prompts, ids): F(clean) - F(edited) for neurons in the order of their sites."""
        where = self.anatomy.site_of(ids)
        index = {self.anatomy.sites[n].down: ids[where == n] - self.anatomy.offsets[n] for n in where.unique().tolist()}

        def multiply(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            h, columns = h.clone(), index[site.down].to(h.device)
            h[:, torch.arange(len(columns), device=h.device), columns] *= factor
            return h

        rows = {down: len(columns) for down, columns in index.items()}
        logits = sweep(self.model, batch, prefix, self.anatomy.sites, rows, multiply)
        values = torch.stack([objective_value(objective, row, p) for row, p in zip(logits, batch, strict=True)])
        return (values[:, :1] - values[:, 1:]).cpu()

    # ---- batches ----

    def _passes(
        self, prompts: Sequence[Prompt], positions: str, detached: bool
    ) -> Iterator[tuple[Sequence[Prompt], Callable[[], Tensor]]]:
        """Batches, each with the pass that gives its answer logits: of answer tokens, or of all tokens."""
        if positions == "answer":
            for batch, prefix in self._prefixed(prompts, 1):

                def of_answers(batch: Sequence[Prompt] = batch, prefix: PrefixCache = prefix) -> Tensor:
                    with branch_attention(self.model, prefix, constant_patterns=detached):
                        return answer_pass(self.model, batch, prefix)[:, 0]

                yield batch, of_answers
        else:
            check_prompts(self.model, prompts)
            for batch in self._batches(prompts, 1):
                yield batch, partial(answer_logits, self.model, *padded(batch))

    def _prefixed(self, prompts: Sequence[Prompt], rows: int) -> Iterator[tuple[Sequence[Prompt], PrefixCache]]:
        """Batches of prompts with their prefixes; a pass over one has about `rows` answer tokens a prompt."""
        check_prompts(self.model, prompts)
        for batch in self._batches(prompts, rows):
            yield batch, prefill(self.model, batch)

    def _batches(self, prompts: Sequence[Prompt], rows: int) -> Iterator[Sequence[Prompt]]:
        size = self.batch_size
        if not isinstance(size, int):
            longest = max(len(p.input_ids) for p in prompts)
            size = max(1, min(TOKENS // longest, ROWS // rows))
        for start in range(0, len(prompts), size):
            yield prompts[start : start + size]
