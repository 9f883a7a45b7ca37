"""An L1 probe: sparse logistic regression that tells two groups of prompts apart by what their neurons hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..common.errors import InputError


def check_probe(C: Any) -> None:
    """Refuse what cannot be fitted, before any work is done."""
    number = isinstance(C, (int, float)) and not isinstance(C, bool)
    if not number or not 0 < C < math.inf:
        raise InputError(f"C={C!r}: give a number above 0; the larger, the more neurons have a weight")
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise InputError(
            "statistic=\"probe\": scikit-learn is not installed: pip install scikit-learn, or 'neuronllm[probe]'"
        ) from error


def l1_weights(values: np.ndarray, shown: np.ndarray, C: float) -> np.ndarray:
    """The weight of every column of `values` (prompts, neurons) in telling prompts that are `shown` from the others.

    As H-Neurons fits it: scikit-learn's liblinear, columns as they are, the intercept penalised like a weight.

    >>> float(l1_weights(np.array([[0.0, 5.0], [0.0, 4.0], [0.0, -4.0]]), np.array([True, True, False]), C=1.0)[0])
    0.0
    """
    from sklearn import __version__
    from sklearn.linear_model import LogisticRegression

    numbers = tuple(int(part) for part in __version__.split(".")[:2])
    penalty: dict[str, Any] = {"l1_ratio": 1.0} if numbers >= (1, 8) else {"penalty": "l1"}
    probe = LogisticRegression(C=C, solver="liblinear", max_iter=1000, random_state=0, **penalty)
    return np.asarray(probe.fit(values, shown).coef_[0], dtype=np.float64)
