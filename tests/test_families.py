"""Families that once ended in a traceback, a few of the survey, and its page."""

from __future__ import annotations

import neuronllm as nl
from tests.checks import untouched
from tests.tiny import random_prompts, tiny


def test_an_attention_that_names_no_implementation_is_given_back() -> None:
    """MPT's attention has a configuration of its own, which says None."""
    model = tiny("mpt", d_model=16, n_layers=2, n_heads=4, max_seq_len=96)
    with untouched(model):
        scores = [
            nl.attribute(model, None, random_prompts(), "gradient", progress=False, backend=backend).values
            for backend in ("fast", "reference")
        ]
    assert (scores[0] - scores[1]).norm() <= 1e-6 * scores[1].norm()
    assert model.config.attn_config._attn_implementation is None
