"""Whether a model is causal: what it says at a token must not change with the tokens behind it.

What is computed of a prefix once stands for every prompt that begins with it, which holds of causal models alone. An
encoder that is loaded as a decoder may attend in both directions. Where its weights are small, the answers of a shared
prefix are then nearly those of the whole prompt, so that comparing answers does not show it. An earlier token does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from .borrowed import DRIVING_ERRORS, borrowed, input_device, ordinary_tokens, quietly, tolerance
from .stream import float32_stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .verdicts import Verdicts

READS_AHEAD = "a later token changes an earlier logit, as where a model attends in both directions"


def not_causal(model: PreTrainedModel, known: Verdicts) -> str | None:
    """Why prefixes of this model cannot be shared, or None; tried once, and noted among what is known of the model."""
    question = "reads ahead"
    if question not in known:
        known[question] = _reads_ahead(model)
    if not known[question]:
        return None
    if getattr(model.config.get_text_config(), "is_decoder", True):
        return READS_AHEAD
    return f"{READS_AHEAD}; load it with is_decoder=True where it is to be a decoder"


@torch.no_grad()
def _reads_ahead(model: PreTrainedModel) -> bool:
    """Whether two rows that differ in their last token differ in front of it.

    In float32, since 16 bits round small differences away. The rows go through the same kernels together, so that those
    of a causal model are equal to the bit, or nearly so (1e-7) where their tokens are sorted to experts.
    """
    token, other = ordinary_tokens(model)[-2:]  # not 0, which pads in some that do not say so
    rows = torch.tensor([[token, token, token], [token, token, other]], device=input_device(model))
    with suppress(*DRIVING_ERRORS), borrowed(model), quietly(), float32_stream(model):  # others see to what fails here
        one, two = model(input_ids=rows, use_cache=False).logits[:, :2]
        return bool(((one - two).abs() > tolerance(one)).any())
    return False
