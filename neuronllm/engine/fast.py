"""The fast engine: what the reference computes, on answer tokens against a cached prefix, batches at a time.

Edits and gradients of multiple-choice attribution happen at the answer position, and attention is causal, so nothing
before it ever changes. `unusable` checks on first use that a model lets itself be driven so; where it does not,
the reference does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..anatomy import Anatomy, Site, decoder_layers
from ..steer import HookError, visiting
from .answer import answer_pass, watching_gradients
from .attention import branch_attention
from .batching import Plan, make_plan, run_batches
from .borrowed import answer_logits, check_prompts, input_device
from .branch import clean_states, plain_blocks, residuals, sweep, vectors
from .full import full_pass, recomputing
from .objective import Choices, needs_vocabulary, only_options, wide
from .prefix import Level, Prefix, prefill, prefill_root, siblings
from .reference import ReferenceEngine
from .relp import relp_rules, watching_ups
from .stream import float32_stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


class FastEngine(ReferenceEngine):
    """The reference's answers, without running what comes before the answer again for every edit."""

    name = "fast"

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy | None = None,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int | str = "auto",
        plan: Plan | None = None,
    ) -> None:
        super().__init__(model, anatomy, dtype=dtype, batch_size=batch_size)
        self._given_plan = plan
        self._root: tuple[list[int], Level] | None = None
        self._plain: frozenset[str] = frozenset()  # blocks behind which rows may join
        self._tried = False
        self.options_head = True  # whether the head may compute the options' logits alone
        self.noise = 0.0  # what a rounding of the residual stream did to an objective, at most

    def unusable(self, prompts: Sequence[Prompt]) -> str | None:
        """Why this model cannot be driven by answer tokens, or None: a clean branch must equal the clean answer."""
        if any(site.experts for site in self.anatomy.sites):
            return "experts are not on the fast way yet"
        if min(len(p.input_ids) for p in prompts) < 2:
            return "a prompt of one token has no prefix"
        self._planned(prompts)
        longest = max(range(len(prompts)), key=lambda n: len(prompts[n].input_ids))
        family = next(group for group in siblings(prompts, self.plan.root) if longest in group)
        batch = [prompts[n] for n in dict.fromkeys([longest, family[0], family[-1]])]
        try:
            return self._differs(batch)
        except DRIVING_ERRORS as error:
            text = (str(error).splitlines() or [""])[0]
            return f"it cannot be run on answer tokens ({type(error).__name__}: {text[:120]})"

    @torch.no_grad()
    def _differs(self, batch: Sequence[Prompt]) -> str | None:
        plain = torch.stack([answer_logits(self.model, torch.tensor([p.input_ids]))[0] for p in batch])
        prefix = self._prefill(batch)
        first = self.anatomy.sites[0]
        logits = sweep(self.model, batch, prefix, [first], rows={first.block: 1}, edit=lambda site, h, routes: h)
        with branch_attention(self.model, prefix) as seen:
            answer_pass(self.model, batch, prefix)
        layers = len(decoder_layers(self.model)[1])
        if len(seen) != layers:
            return f"{layers - len(seen)} of its {layers} layers attend in a way of their own"
        # Many models compute norms and softmax in float32 whatever their type.
        eps = 1000 * max(torch.finfo(kind).eps for kind in (plain.dtype, torch.float32))
        tolerance = min(eps, 0.1) * plain.abs().max()
        distance = (logits - plain[:, None]).abs().max()
        if not bool(distance <= tolerance):
            return f"a clean branch differs from the clean answer by {float(distance):.1e}"
        self.options_head = self._head_can_be_cut(batch, prefix, plain, tolerance)
        self._try_blocks(batch[0])
        return None

    @torch.no_grad()
    def _try_blocks(self, prompt: Prompt) -> None:
        with float32_stream(self.model):
            self._plain = plain_blocks(self.model, self.anatomy, [prompt], self._prefill([prompt]))
        self._tried = True

    def _head_can_be_cut(self, batch: Sequence[Prompt], prefix: Prefix, plain: Tensor, tolerance: Tensor) -> bool:
        ids, _ = Choices.of(batch).columns()
        try:
            with only_options(self.model, ids), branch_attention(self.model, prefix):
                few = answer_pass(self.model, batch, prefix)[:, 0]
        except DRIVING_ERRORS:
            return False
        return few.shape[-1] == len(ids) and bool(((few - plain[:, ids.to(plain.device)]).abs() <= tolerance).all())

    # ---- the reference's questions, answered in batches ----

    @torch.no_grad()
    def option_scores(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._asking(batch) as choices:
                return choices.scores(full_pass(self.model, batch))[:, 0].cpu()

        found = self._batched(prompts, score)
        return [row[: len(p.option_ids)] for row, p in zip(found, prompts, strict=True)]

    @torch.no_grad()
    def activations(self, prompts: Sequence[Prompt], positions: str = "answer", statistic: str = "value") -> Tensor:
        def score(batch: Sequence[Prompt]) -> Tensor:
            found: dict[str, Tensor] = {}
            lengths = torch.tensor([[len(p.input_ids)] for p in batch])
            with watching_ups(self.model, self.anatomy.sites) as ups, self._asking(batch):

                def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
                    value = wide(h if statistic == "value" else (ups(site, h)[0] > 0).to(h))
                    if positions == "all":
                        real = torch.arange(h.shape[1]) < lengths
                        value = (value * real[..., None].to(value)).sum(1) / lengths.to(value)
                    found[site.down] = value.reshape(len(batch), -1).cpu()

                with visiting(self.model, self.anatomy.sites, look):
                    if positions == "all":
                        full_pass(self.model, batch)
                    else:
                        prefix = self._prefill(batch)
                        with branch_attention(self.model, prefix):
                            answer_pass(self.model, batch, prefix)
            return self._in_order(found)

        return self._batched(prompts, score)

    def gradients(
        self,
        prompts: Sequence[Prompt],
        objective: str,
        *,
        positions: str = "answer",
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._asking(batch, objective) as choices:
                value = lambda logits: choices.value(objective, logits)  # noqa: E731
                return self._gradient(batch, value, 1, positions, weight, rules).sum(1)

        return self._batched(prompts, score)

    def option_gradients(self, prompts: Sequence[Prompt]) -> Tensor:
        """(prompts, options, n_neurons): h times the gradient of every option's score; 0 where there is no option.

        The K gradients come from one backward pass: the answer token runs in K copies, of which each answers for one
        option.
        """

        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._asking(batch) as choices:
                return self._gradient(batch, choices.each, choices.real.shape[1], "answer", "activation", None)

        return self._batched(prompts, score)

    def integrate(self, prompts: Sequence[Prompt], objective: str, alphas: Tensor, weights: Tensor) -> Tensor:
        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._asking(batch, objective) as choices:
                return self._integral(batch, choices, objective, alphas, weights)

        return self._batched(prompts, score, 1 + len(alphas) * len(self._blocks))

    @torch.no_grad()
    def effects(
        self, prompts: Sequence[Prompt], objective: str, *, ids: Tensor | None = None, factor: float = 0.0
    ) -> Tensor:
        ids = torch.arange(self.anatomy.n_neurons) if ids is None else self.anatomy.checked(ids)
        order = ids.argsort(stable=True)  # a sweep meets the sites from the first to the last

        def score(batch: Sequence[Prompt]) -> Tensor:
            with float32_stream(self.model), self._asking(batch, objective) as choices:
                prefix = self._prefill(batch)
                self.noise = max(self.noise, self._rounding(batch, prefix, choices, objective))
                chunks = ids[order].split(max(1, self.plan.rows // len(batch)))
                found = torch.cat([self._swept(batch, prefix, choices, objective, part, factor) for part in chunks], 1)
            return torch.empty_like(found).index_copy_(1, order, found)

        return self._batched(prompts, score, max(1, min(self.plan.rows, len(ids))))

    @torch.no_grad()
    def direct(self, prompts: Sequence[Prompt], objective: str) -> Tensor:
        def score(batch: Sequence[Prompt]) -> Tensor:
            prefix = self._prefill(batch)
            found = {}
            plain = [site for site in self.anatomy.sites if site.block in self._plain]
            with self._asking(batch, objective) as choices:
                states = clean_states(self.model, batch, prefix, plain)
                for site in self.anatomy.sites:
                    if site.block in self._plain:
                        x, h = (wide(part) for part in states[site.down])
                        written = vectors(self.model, site)
                        rows = (x - h @ written)[:, None] + torch.nn.functional.pad(
                            h[..., None] * written, (0, 0, 0, 1)
                        )
                    else:
                        rows = self._alone(batch, prefix, site)
                    parts = [self._unembed_rows(part) for part in rows.split(max(1, self.plan.rows // len(batch)), 1)]
                    value = torch.cat([choices.value(objective, part) for part in parts], 1)
                    found[site.down] = (value[:, :-1] - value[:, -1:]).cpu()
            return self._in_order(found)

        return self._batched(prompts, score)

    # ---- one batch ----

    def _gradient(
        self,
        batch: Sequence[Prompt],
        value: Callable[[Tensor], Tensor],
        rows: int,
        positions: str,
        weight: str,
        rules: str | None,
    ) -> Tensor:
        """(prompts, rows, n_neurons): weight times the gradient of every row's value; one row holds all positions."""
        found: dict[str, Tensor] = {}
        scale = torch.sign if weight == "sign" else torch.Tensor.detach

        def keep(site: Site, h: Tensor, grad: Tensor, routes: Tensor | None) -> None:
            # Prompt by prompt, so that products in float32 stay small. Padding stands behind the answer: gradient 0.
            products = [wide(scale(one)) * wide(other) for one, other in zip(h, grad, strict=True)]
            found[site.down] = torch.stack([p.sum(0, keepdim=True) if rows == 1 else p for p in products]).cpu()

        with ExitStack() as stack:
            detached = rules == "relp-detached"
            if rules:
                attention = detached and positions == "all"  # answer passes have an attention of their own
                stack.enter_context(relp_rules(self.model, self.anatomy, detach_attention=attention))
            if positions == "all":
                stack.enter_context(recomputing(self.model, self.plan.recompute))
            else:
                prefix = self._prefill(batch)
                stack.enter_context(branch_attention(self.model, prefix, constant_patterns=detached))
            anchor = stack.enter_context(watching_gradients(self.model, self.anatomy.sites, keep))
            everywhere = positions == "all"
            logits = full_pass(self.model, batch) if everywhere else answer_pass(self.model, batch, prefix, rows)
            torch.autograd.grad(value(logits).sum(), anchor)
        return self._in_order(found)

    def _integral(
        self, batch: Sequence[Prompt], choices: Choices, objective: str, alphas: Tensor, weights: Tensor
    ) -> Tensor:
        prefix, steps = self._prefill(batch), len(alphas)
        clean: dict[str, Tensor] = {}
        leaves: dict[str, Tensor] = {}

        def join(site: Site, x: Tensor, h: Tensor) -> Tensor:
            """A row whose h is alpha h is the clean row less (1 - alpha) of what the neurons write."""
            clean[site.down] = h
            step = wide(h) @ vectors(self.model, site)
            rows = wide(x)[:, None] - (1 - alphas.to(step))[None, :, None] * step[:, None]
            leaves[site.down] = rows.to(x).requires_grad_(True)
            return leaves[site.down]

        def scale(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            clean[site.down] = h[:, 0].detach()
            leaves[site.down] = (alphas.to(h)[None, :, None] * h.detach()).requires_grad_(True)
            return leaves[site.down]

        with torch.enable_grad():
            logits = sweep(
                self.model,
                batch,
                prefix,
                self.anatomy.sites,
                rows={block: steps for block in self._blocks if block not in self._plain},
                edit=scale,
                behind=dict.fromkeys(self._plain, join),
            )
            value = choices.value(objective, logits[:, 1:])
            grads = torch.autograd.grad(value.sum(), [leaves[site.down] for site in self.anatomy.sites])
        found = {}
        for site, grad in zip(self.anatomy.sites, grads, strict=True):
            h = wide(clean[site.down])
            mean = torch.einsum("m,bmd->bd", weights.to(grad.device), grad.double()).to(h)
            # Summed over alpha first, then one product with the down projection.
            found[site.down] = (h * (mean @ vectors(self.model, site).T if site.block in self._plain else mean)).cpu()
        return self._in_order(found)

    def _swept(
        self, batch: Sequence[Prompt], prefix: Prefix, choices: Choices, objective: str, ids: Tensor, factor: float
    ) -> Tensor:
        """(prompts, ids): F(clean) - F(edited) for neurons in the order of their sites."""
        where = self.anatomy.site_of(ids)
        sites = [self.anatomy.sites[n] for n in where.unique().tolist()]
        index = {self.anatomy.sites[n].down: ids[where == n] - self.anatomy.offsets[n] for n in where.unique().tolist()}

        def join(site: Site, x: Tensor, h: Tensor) -> Tensor:
            columns = index[site.down].to(h.device)
            return wide(x)[:, None] + (factor - 1) * wide(h)[:, columns, None] * vectors(self.model, site, columns)

        def multiply(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            h, columns = h.clone(), index[site.down].to(h.device)
            h[:, torch.arange(len(columns), device=h.device), columns] *= factor
            return h

        logits = sweep(
            self.model,
            batch,
            prefix,
            sites,
            rows={site.block: len(index[site.down]) for site in sites if site.block not in self._plain},
            edit=multiply,
            behind={site.block: join for site in sites if site.block in self._plain},
        )
        values = choices.value(objective, logits)
        return (values[:, :1] - values[:, 1:]).cpu()

    def _rounding(self, batch: Sequence[Prompt], prefix: Prefix, choices: Choices, objective: str) -> float:
        """What a change of h by one rounding does to the objective: effects below it are noise."""
        site, copies = self.anatomy.sites[0], 8

        def jitter(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(h.shape, generator=generator, dtype=torch.float64).to(h)
            return h * (1 + noise * torch.finfo(h.dtype).eps)

        logits = sweep(self.model, batch, prefix, [site], rows={site.block: copies}, edit=jitter)
        values = choices.value(objective, logits)
        return float((values[:, 1:] - values[:, :1]).abs().max())

    def _alone(self, batch: Sequence[Prompt], prefix: Prefix, site: Site) -> Tensor:
        """Residual rows behind a block: row i keeps neuron i only, the last row keeps none."""

        def alone(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
            return h * torch.eye(site.width + 1, site.width, dtype=h.dtype, device=h.device)

        return residuals(self.model, batch, prefix, site, [site], site.width + 1, alone)

    def _unembed_rows(self, rows: Tensor) -> Tensor:
        """Logits of residual rows (prompts, rows, D), by the model's own final norm, head and scale."""

        def put(module: Any, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            placed = rows.reshape(1, -1, rows.shape[-1]).to(first)
            return (placed, *output[1:]) if isinstance(output, tuple) else placed

        handle = decoder_layers(self.model)[1][-1].register_forward_hook(put)
        try:
            ids = torch.zeros(1, 1, dtype=torch.int64, device=input_device(self.model))
            return self.model(input_ids=ids, use_cache=False).logits.reshape(*rows.shape[:2], -1)
        finally:
            handle.remove()

    # ---- batches ----

    def _batched(self, prompts: Sequence[Prompt], score: Callable[[Sequence[Prompt]], Tensor], rows: int = 1) -> Tensor:
        """Scores of all prompts, (prompts, ...), batch by batch; a pass has about `rows` answer tokens a prompt."""
        check_prompts(self.model, prompts)
        self._planned(prompts)
        if not self._tried:
            self._try_blocks(min(prompts, key=lambda p: len(p.input_ids)))
        return run_batches(prompts, score, self.plan, rows)

    def _planned(self, prompts: Sequence[Prompt]) -> None:
        if self._given_plan is None:
            self._given_plan = make_plan(self.model, self.anatomy, prompts, batch_size=self.batch_size)
        self.plan = self._given_plan

    def _prefill(self, batch: Sequence[Prompt]) -> Prefix:
        """The batch's prefixes; what all prompts of the run start with is computed once."""
        start = batch[0].input_ids[: self.plan.root]
        shared = start and all(len(p.input_ids) > len(start) and p.input_ids[: len(start)] == start for p in batch)
        if not shared:
            return prefill(self.model, batch)
        if self._root is None or self._root[0] != start:
            self._root = (list(start), prefill_root(self.model, start))
        return prefill(self.model, batch, self._root[1])

    @contextmanager
    def _asking(self, batch: Sequence[Prompt], objective: str = "") -> Iterator[Choices]:
        """The choices of a batch, with a head that computes their logits alone where that is enough."""
        choices = Choices.of(batch, objective)
        if needs_vocabulary(objective) or not self.options_head:
            yield choices
        else:
            ids, choices = choices.columns()
            with only_options(self.model, ids):
                yield choices

    def _in_order(self, found: dict[str, Tensor]) -> Tensor:
        """One column a neuron, of what was found at every site."""
        return torch.cat([found[site.down] for site in self.anatomy.sites], -1)

    @property
    def _blocks(self) -> list[str]:
        return list(dict.fromkeys(site.block for site in self.anatomy.sites))
