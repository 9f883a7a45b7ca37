"""Answers in words as lm-eval asks them, with hooks on the neurons: what a user of its harness can do.

Its Hugging Face model cuts, sorts, pads and batches the sequences and takes the log-probabilities of the answers'
tokens from the logits of all positions. Here the graph is kept in its one call of the model, the log-probabilities are
caught where they are cut out, and one backward pass goes through all layers. A batch holds whole prompts, so the
objective over a prompt's options is there at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .peers_tools import TEXTS, Peer, summed_products
from .plain import _downs, _hooked
from .plain_texts import Asked


class LmEval(Peer):
    name, package, module = "lm-eval, hooked", "lm_eval", "lm_eval.models.huggingface"
    lacks = {TEXTS: "gradients: its model is subclassed; it asks for the logits of all positions"}

    def prepare(self) -> None:
        kind = _hooked_model(self.library.HFLM)
        self.lm = kind(pretrained=self.model, tokenizer=_tokenizer(self.model), logits_cache=False)

    def texts(self, asked: Asked, everywhere: bool) -> Tensor:
        prompts, options = asked.options.shape[:2]
        lm = self.lm
        lm.batch_size_per_gpu = prompts * options
        requests = [
            (None, prompt.tolist(), option.tolist())
            for prompt, several in zip(asked.prompts, asked.options, strict=True)
            for option in several
        ]
        seen: list[Tensor] = []

        def see(number: int, h: Tensor) -> None:
            seen.append(h if h.requires_grad else h.requires_grad_(True))

        with _hooked(_downs(self.model), see):
            lm._loglikelihood_tokens(requests, disable_tqdm=True)
        asked_for = [(*context, *answer) for _, context, answer in requests]
        place = torch.tensor(
            sorted(range(len(asked_for)), key=lambda n: (-len(asked_for[n]), asked_for[n]))
        )  # as it sorts
        picked = torch.stack(
            [
                cut.gather(1, asked.options.flatten(0, 1)[n][:, None]).sum()
                for cut, n in zip(lm.cuts, place, strict=True)
            ]
        )
        scores = torch.zeros_like(picked).scatter(0, place, picked).unflatten(0, (prompts, options))
        value = scores.log_softmax(-1).gather(-1, asked.right[:, None]).sum()
        grads = torch.autograd.grad(value, seen)
        found = summed_products(seen, grads, 0 if everywhere else asked.span)
        return found[place.argsort()].unflatten(0, (prompts, options)).sum(1)


def _hooked_model(base: type[Any]) -> type[Any]:
    """lm-eval's model with its graph kept, which remembers the log-probabilities it cut out."""

    class Hooked(base):  # type: ignore[misc]
        def _model_call(self, inps: Tensor, **_: Any) -> Tensor:
            self.cuts: list[Tensor] = []
            return self.model(inps).logits

        def _select_cont_toks(self, logits: Tensor, contlen: int | None = None, inplen: int | None = None) -> Tensor:
            self.cuts.append(super()._select_cont_toks(logits, contlen=contlen, inplen=inplen))
            return self.cuts[-1].detach()

    return Hooked


def _tokenizer(model: Any) -> Any:
    """One that is never asked for anything: lm-eval wants to have one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<{n}>": n for n in range(model.config.vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<1>", pad_token="<0>", unk_token="<0>")
