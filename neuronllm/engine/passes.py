"""The passes of the judge: a prompt's sequences run as they are, with copies of h put in, or only their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.hooks import visiting
from ..model.sites import Site
from ..model.streams import as_layers_take, tokens_first
from .base import TOKENS, Engine
from .borrowed import answer_logits, check_prompts, input_device
from .sequences import Shown, option_score

if TYPE_CHECKING:
    from ..data.prompts import Prompt


# h at the positions of a sequence that are edited, by site.down, (positions, ...), and the experts it belongs to
Clean = dict[str, tuple[Tensor, "Tensor | None"]]


class PlainPasses(Engine):
    """What `ReferenceEngine` is made of."""

    def _each(self, prompts: Sequence[Prompt], score: Callable[[Prompt], Tensor]) -> Tensor:
        check_prompts(self.model, prompts)
        return torch.stack([score(prompt) for prompt in prompts])

    def _forward(self, row: Shown, copies: int = 1) -> Tensor:
        """Logits (copies, span, vocabulary) at the answer positions of so many copies of a sequence."""
        ids = torch.tensor([row.tokens]).expand(copies, -1)
        last = torch.arange(len(row.tokens) - row.span, len(row.tokens))
        return answer_logits(self.model, ids, None, last.expand(copies, -1))

    def _hear(self, prompt: Prompt, logits: Sequence[Tensor]) -> None:
        """Note which option is picked."""
        scores = [option_score(logits, prompt, k).detach()[0] for k in range(len(prompt.option_ids))]
        self.heard.add(torch.stack(scores).argmax()[None], torch.tensor([prompt.answer]))

    def _cleans(self, prompt: Prompt, rows: Sequence[Shown]) -> list[Clean]:
        """What every sequence of a prompt holds, and what is answered."""
        logits: list[Tensor] = []
        cleans = [self._clean(row, logits) for row in rows]
        self._hear(prompt, logits)
        return cleans

    def _clean(self, row: Shown, logits: list[Tensor] | None = None) -> Clean:
        """h of every site where it is edited: (positions, width), or (positions, K, width) of the experts in routes."""
        seen: Clean = {}

        def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
            seen[site.down] = (h[0, -row.edited :], None if routes is None else routes[0, -row.edited :])

        with torch.no_grad(), visiting(self.model, self.anatomy.sites, look):
            found = self._forward(row)
        if logits is not None:
            logits.append(found)
        return seen

    def _edited(self, row: Shown, copies: dict[str, Tensor]) -> Tensor:
        """Logits of copies of a sequence, each with its own h at the edited positions of the sites in `copies`."""

        def replace(site: Site, old: Tensor, routes: Tensor | None) -> Tensor:
            return torch.cat([old[:, : -row.edited], copies[site.down].to(old)], 1)

        with visiting(self.model, [site for site in self.anatomy.sites if site.down in copies], replace):
            return self._forward(row, len(next(iter(copies.values()))))

    def _after(self, row: Shown, block: str, copies: dict[str, Tensor]) -> Tensor:
        """The residual stream (copies, D) right after a layer, with copies of h at the answer position of its sites."""
        out: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            out.append(tokens_first(self.model, output[0] if isinstance(output, (list, tuple)) else output)[:, -1])

        handle = self.model.get_submodule(block).register_forward_hook(keep)
        try:
            self._edited(row, copies)
        finally:
            handle.remove()
        return out[0]

    def _unembed(self, residual: Tensor) -> Tensor:
        """Logits of residual states, by the model's own final norm, head and scale.

        The states take the place of the last layer's output in a forward of one-token inputs, so no architecture needs
        to be known here.
        """

        def put(module: Any, args: Any, output: Any) -> Any:
            states = as_layers_take(self.model, residual[:, None])
            states = states.to(output[0] if isinstance(output, (list, tuple)) else output)
            return (states, *output[1:]) if isinstance(output, (list, tuple)) else states

        # Every decoder layer is a sibling of the sites' blocks; the last one feeds the final norm.
        stack = self.model.get_submodule(self.anatomy.sites[-1].block.rpartition(".")[0])
        handle = stack[len(stack) - 1].register_forward_hook(put)
        try:
            ids = torch.zeros(len(residual), 1, dtype=torch.int64, device=input_device(self.model))
            return self.model(input_ids=ids, use_cache=False).logits[:, -1]
        finally:
            handle.remove()

    def _copies_in_a_pass(self, rows: Sequence[Shown]) -> int:
        """How many edited copies of a sequence go into one pass."""
        longest = max(len(row.tokens) for row in rows)
        return self.batch_size if isinstance(self.batch_size, int) else max(1, TOKENS // longest)
