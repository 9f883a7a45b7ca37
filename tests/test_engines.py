"""Engines are siblings: each defines every verb itself, so that comparing them compares two computations."""

from __future__ import annotations

import pytest

from neuronllm.engine.base import Engine
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine

ENGINES = (ReferenceEngine, FastEngine)


def test_what_a_method_may_ask():
    verbs = {"activations", "gradients", "question_gradients", "option_gradients", "factor_gradients"}
    verbs |= {"integrate", "integrate_to", "effects", "direct"}
    assert Engine.__abstractmethods__ == verbs | {"fit", "post_normed"}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_defines_every_verb_itself(engine):
    """How batches are planned may be inherited; what is computed never is, or comparing engines would show nothing."""
    verbs = Engine.__abstractmethods__ - {"fit"}
    assert verbs <= set(vars(engine))
    between = [parent for parent in engine.__mro__[1:] if parent is not Engine and issubclass(parent, Engine)]
    assert not any(verbs & set(vars(parent)) for parent in between)


def test_an_engine_without_a_verb_is_none():
    class Lame(Engine):
        name = "lame"

    with pytest.raises(TypeError, match="abstract"):
        Lame(None)
