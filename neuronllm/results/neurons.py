"""Neuron sets: chosen neurons with a role, a score and the story of how they were found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import new_folder, read_json, read_tensors, write_json
from ..common.warning import warn
from ..model.anatomy import Anatomy
from ..model.edit import Positions, edit
from ..model.identity import other_model
from ..model.wrapped import own_model
from .adapters import read_ia3
from .factors import (
    ROLES,
    Steering,
    check_every_neuron_has_one,
    checked_own,
    factors_of,
    own_range,
    show_factor,
    steering_of,
)
from .hub import OnHub, folder_of
from .learned import CONTROLS, Controls, learned_lines
from .pictures import neurons_figure
from .qrnca import key_neurons
from .searched import missed_words, searched
from .shown import Shown, neurons_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

CONFIG, TENSORS = "neuron_config.json", "neurons.safetensors"
POSITIONS = ("answer", "all")  # where a set is found, tuned, judged and lived with


@dataclass(frozen=True, eq=False, repr=False)
class NeuronSet(OnHub, Shown):
    """Neurons of one model, each good (it helps) or bad (it hurts); strongest first within a role.

    A neuron may have a factor of its own: `factor` is None or one number a neuron, NaN where that of its role applies.

    >>> neurons = scores.find(good=50, bad=50)            # doctest: +SKIP
    >>> with neurons.enhance(model):                      # doctest: +SKIP
    ...     model.generate(**inputs)
    """

    ids: Tensor  # flat ids, int64
    role: np.ndarray  # "good" or "bad"
    score: Tensor  # float32
    anatomy: Anatomy
    provenance: dict[str, Any] = field(default_factory=dict)
    factor: Tensor | None = None  # float32
    controls: Controls | None = None  # random sets learned the same way; no other set has them

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.role) == len(self.score):
            raise InputError(
                f"ids, role and score differ in length: {len(self.ids)}, {len(self.role)}, {len(self.score)}"
            )
        if self.ids.unique().numel() != len(self.ids):
            raise InputError("ids: a neuron is named twice")
        if not np.isin(self.role, ROLES).all():
            raise InputError(f"role: every role must be one of {', '.join(ROLES)}")
        self.anatomy.checked(self.ids)
        object.__setattr__(self, "factor", checked_own(self.factor, len(self.ids)))
        if self.controls is not None:
            self.anatomy.checked(self.controls.ids)

    # ---- what is in it ----

    def __repr__(self) -> str:
        own = "" if self.factor is None else f", {int((~self.factor.isnan()).sum())} with own factors"
        return f"NeuronSet({self._counted()}{own})"

    def _counted(self) -> str:
        good, bad = (int((self.role == role).sum()) for role in ROLES)
        return f"{good} good and {bad} bad neurons of a {self.anatomy.describe()}"

    def describe(self) -> str:
        """What the set is, in lines of text: its neurons, how and where they were found, and how hard to steer."""
        lines = [self._counted()]
        names = ("model", "method", "objective", "positions")
        said = self.provenance | ({"positions": self.positions} if self.positions else {})
        lines += [f"- {name}: {said[name]}" for name in names if name in said]
        lines += [f"- {missed_words(top)}"] if (top := searched(self.provenance)) else []
        lines += _verified_lines(self.provenance.get("verified"))
        own = own_range(self.role, self.factor)
        lines += [f"- own factors of {role} neurons: {show_factor(None, own[role])}" for role in own]
        if learned := self.provenance.get("learned"):
            lines += learned_lines(learned, self.controls)
        if self.tuned:
            good, bad = (show_factor(self.tuned[role], own.get(role)) for role in ROLES)
            lines.append(f"- tuned: good {good}; bad {bad}; positions {self.tuned['positions']}")
        return "\n".join(lines)

    def plot(self, title: str = "") -> Figure:
        """A matplotlib figure: the neurons of each layer, and their factors or else their scores. Needs matplotlib."""
        return neurons_figure(self.anatomy, self.ids, self.role, self.score, self.factor, title)

    def _shown(self) -> tuple[str, dict[str, Any]]:
        own = (self.ids, self.role, self.score, self.factor)
        return neurons_shown(self._counted(), self.provenance, self.anatomy, *own)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layer(self) -> Tensor:
        return self.anatomy.locate(self.ids)[0]

    @property
    def expert(self) -> Tensor:
        return self.anatomy.locate(self.ids)[1]

    @property
    def index(self) -> Tensor:
        return self.anatomy.locate(self.ids)[2]

    @property
    def tuned(self) -> dict[str, Any] | None:
        """What `nl.tune` chose: factors "good" and "bad", and "positions"; None before."""
        return self.provenance.get("tuned")

    @property
    def positions(self) -> str | None:
        """Where the set was tuned, learned, verified or found, "answer" or "all": it is judged and lived with there.

        None where nothing says so, or where sets of both kinds were united; edits are at "all" then.
        """
        return _positions_of(self.provenance)

    def take(self, mask: Any) -> NeuronSet:
        """The neurons where `mask` is true (or at the given places), in the order they have here."""
        mask = torch.as_tensor(mask)
        mask = mask if mask.dtype == torch.bool else mask.to(torch.int64)  # an empty list has no type of its own
        own = None if self.factor is None else self.factor[mask]
        kept = {"ids": self.ids[mask], "role": self.role[mask.numpy()], "score": self.score[mask], "factor": own}
        return replace(self, **kept, controls=None)

    def without(self, ids: Any) -> NeuronSet:
        """The neurons that are not among these flat ids, such as those that only push a letter (`nl.letter_neurons`).

        >>> neurons.without(found.ids[found.flagged])   # doctest: +SKIP
        """
        return self.take(~torch.isin(self.ids, self.anatomy.checked(ids)))

    def with_factors(self, factors: Any) -> NeuronSet:
        """The same neurons with factors of their own: one number a neuron, NaN where that of its role applies.

        None takes them away. They come before tuned factors, and give way to a mode or to good= and bad=.

        >>> with neurons.with_factors([0.5, 1.5]).apply(model):   # doctest: +SKIP
        ...     model.generate(**inputs)
        """
        return replace(self, factor=factors, controls=None)

    def top(self, good: int | None = None, bad: int | None = None) -> NeuronSet:
        """The strongest `good` and `bad` neurons of the set; None keeps all of a role."""
        check_counts(**{role: k for role, k in (("good", good), ("bad", bad)) if k is not None})
        strongest = self.score.abs().argsort(descending=True, stable=True).numpy()  # a union is not in order
        keep: list[int] = []
        for role, k in (("good", good), ("bad", bad)):
            keep += strongest[self.role[strongest] == role][:k].tolist()
        return self.take(torch.tensor(keep, dtype=torch.int64))

    # ---- set algebra, on neurons whatever their scores ----

    def __or__(self, other: NeuronSet) -> NeuronSet:
        """Neurons of either set; one that is in both keeps its role, score and own factor from the left."""
        extra = self._like(other).take(~torch.isin(other.ids, self.ids))
        return replace(
            self,
            ids=torch.cat([self.ids, extra.ids]),
            role=np.concatenate([self.role, extra.role]),
            score=torch.cat([self.score, extra.score]),
            factor=torch.cat([self._own(), extra._own()]),
            controls=None,
            provenance={"union": [self.provenance, other.provenance]},
        )

    def __and__(self, other: NeuronSet) -> NeuronSet:
        """Neurons of both sets in the same role."""
        theirs = dict(zip(self._like(other).ids.tolist(), other.role.tolist(), strict=True))
        same = [theirs.get(i) == role for i, role in zip(self.ids.tolist(), self.role.tolist(), strict=True)]
        return self.take(torch.tensor(same, dtype=torch.bool))

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        """Neurons that are not in the other set, in whatever role."""
        return self.take(~torch.isin(self.ids, self._like(other).ids))

    def _own(self) -> Tensor:
        return torch.full((len(self),), float("nan")) if self.factor is None else self.factor

    def _like(self, other: NeuronSet) -> NeuronSet:
        if not isinstance(other, NeuronSet):
            raise InputError(f"a neuron set combines with another neuron set only, not with {type(other).__name__}")
        if not self.anatomy.same_layout(other.anatomy):
            raise InputError(
                f"the neuron sets are of different models: {self.anatomy.describe()}, {other.anatomy.describe()}"
            )
        return other

    # ---- steering ----

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        good: float | None = None,
        bad: float | None = None,
        positions: Positions | None = None,
        answer_start: Any = None,
        *,
        mode: str | None = None,
    ) -> Iterator[PreTrainedModel]:
        """Multiply good and bad neurons by factors while the context lasts.

        `mode` is "enhance", "degrade", "own" or "tuned". Without it and without factors the neurons' own, and where
        they have none those of `nl.tune`. One factor alone leaves the other role as it is.

        Positions default to those of the set, or to "all". At "answer", `model.generate` edits the last prompt token
        and what follows it; a plain forward pass needs `answer_start`, the place of the first edited token, one for all
        rows or one a row.
        """
        self.warn_if_empty()
        ids, factors = self.edits(model, self.steering(mode, good, bad))
        where = (self.positions or "all") if positions is None else positions
        with edit(model, ids, factors, positions=where, answer_start=answer_start):
            yield model

    def enhance(
        self,
        model: PreTrainedModel,
        good: float = 2.0,
        bad: float = 0.0,
        positions: Positions | None = None,
        answer_start: Any = None,
    ) -> AbstractContextManager[PreTrainedModel]:
        """Context: good neurons doubled, bad ones silenced, where `apply` says."""
        return self.apply(model, good, bad, positions, answer_start)

    def degrade(
        self,
        model: PreTrainedModel,
        good: float = 0.0,
        bad: float = 2.0,
        positions: Positions | None = None,
        answer_start: Any = None,
    ) -> AbstractContextManager[PreTrainedModel]:
        """Context: good neurons silenced, bad ones doubled, where `apply` says."""
        return self.apply(model, good, bad, positions, answer_start)

    def steering(self, mode: str | None = None, good: float | None = None, bad: float | None = None) -> Steering:
        """The factors that a mode or factors given by hand mean for this set; factors given by hand win.

        Without mode and factors: the neurons' own factors, and where they have none the tuned ones.
        """
        if not len(self) and "learned" in self.provenance and (mode, good, bad) == (None, None, None):
            return Steering("own", None, None)  # no edit was better than any that was learned
        how = steering_of(mode, good, bad, self.factor, self.tuned)
        if how.mode == "own" and self.tuned is None:
            check_every_neuron_has_one(self.role, self.factor, how.own)
        return how

    def warn_if_empty(self) -> None:
        """A set without neurons, as `nl.tune` returns where no edit is best, steers nothing."""
        if not len(self):
            warn("the neuron set is empty: nothing is edited")

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model of another shape, and warn of another model of the same shape."""
        anatomy = Anatomy.of(model)
        if not anatomy.same_layout(self.anatomy):
            raise InputError(f"the neuron set is of a {self.anatomy.describe()}, the model is a {anatomy.describe()}")
        known = {"model_type": self.anatomy.model_type} | self.provenance
        if found := other_model(known, own_model(model)):
            warn(f"the neuron set was {found} of the same shape: its neurons may do something else")

    def edits(self, model: PreTrainedModel, how: Steering) -> tuple[Tensor, Tensor]:
        """Flat ids in `model` and their factors; neurons that keep what they have are left out."""
        self.check_model(model)
        factors = factors_of(self.role, self.factor, how)
        return self.ids[factors != 1], factors[factors != 1]

    def steered_by(self, how: Steering) -> dict[str, Any]:
        """The same for a record: mode, factors of the roles, and the range of own factors where these come first."""
        own = own_range(self.role, self.factor, how.own)
        return {"mode": how.mode, "good": how.good, "bad": how.bad, "own": own}

    # ---- files ----

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write neuron_config.json, neurons.safetensors, a README.md and any controls, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            "layer": self.layer.int(),
            "expert": self.expert.int(),
            "index": self.index.int(),
            "good": torch.from_numpy(self.role == "good"),
            "score": self.score.float(),
        }
        if self.factor is not None:
            tensors["factor"] = self.factor
        config = {"anatomy": self.anatomy.to_dict(), "provenance": self.provenance}
        with new_folder(folder, CONFIG) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / TENSORS)
            if self.controls is not None:
                save_file(self.controls.tensors(), temporary / CONTROLS)
            write_json(temporary / CONFIG, config)
            (temporary / "README.md").write_text(self.card(Path(folder).name), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], revision: str | None = None, token: str | bool | None = None
    ) -> NeuronSet:
        """Read what `save_pretrained` wrote, or `push_to_hub` uploaded: a folder, or "user/name" of the Hub."""
        folder = folder_of(folder, revision, token, (CONFIG, TENSORS, CONTROLS))
        config = read_json(folder, CONFIG, "neuron set")
        tensors = read_tensors(folder, TENSORS, "neuron set")
        try:
            anatomy = Anatomy.from_dict(config["anatomy"])
            ids = anatomy.flat(tensors["layer"], tensors["expert"], tensors["index"])
            role = np.where(tensors["good"].numpy(), "good", "bad")
            own, controls = tensors.get("factor"), Controls.read(folder)
            return cls(ids, role, tensors["score"], anatomy, config["provenance"], own, controls)
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}: not a neuron set as written here ({type(error).__name__}: {error})") from error

    @classmethod
    def from_qrnca(cls, path: str | os.PathLike[str], model: PreTrainedModel) -> NeuronSet:
        """Read the key neurons that QRNCA's released code writes: JSON Lines with "neurons" and "scores".

        All of them are good; a neuron named for several questions gets the sum of its scores. A line of common
        neurons is passed over.
        """
        anatomy = Anatomy.of(model)
        ids, score = key_neurons(path, anatomy)
        return cls(ids, np.full(len(ids), "good"), score, anatomy, {"method": "qrnca", "source": Path(path).name})

    @classmethod
    def from_peft(cls, folder: str | os.PathLike[str], model: PreTrainedModel) -> NeuronSet:
        """Read an IA3 on down projections (`nl.to_peft`, or one that PEFT has learned), with the factors that it holds.

        The set that `nl.to_peft` wrote comes back as it was, but for `controls`. Of another adapter the neurons that it
        strengthens are good, and those that it weakens bad; the score is the factor less 1.

        >>> neurons = NeuronSet.from_peft("adapter", model)   # doctest: +SKIP
        """
        model = own_model(model)
        anatomy = Anatomy.of(model)
        return cls(anatomy=anatomy, **read_ia3(folder, model, anatomy))

    def card(self, name: str) -> str:
        """The README.md of a set that is called `name`."""
        counted, *facts = self.describe().split("\n")
        steer = "enhance" if self.tuned is None and self.factor is None else "apply"
        return (
            f"# {name}\n\n{counted}, found with neuronllm.\n\n" + "\n".join(facts) + "\n\n"
            "```python\nimport neuronllm as nl\n\n"
            f'neurons = nl.NeuronSet.from_pretrained("{name}")\nwith neurons.{steer}(model):\n    ...\n```\n'
        )


def _positions_of(provenance: dict[str, Any]) -> str | None:
    for made in (*(provenance.get(later) for later in ("tuned", "learned", "verified")), provenance):
        if isinstance(made, dict) and made.get("positions") in POSITIONS:
            return str(made["positions"])
    united = {_positions_of(part) for part in provenance.get("union", ())}
    return united.pop() if len(united) == 1 else None


def _verified_lines(verified: dict[str, Any] | None) -> list[str]:
    """What the measured effects left of the neurons."""
    if not verified:
        return []
    counts = (f"{verified[role]['kept']} of {verified[role]['tried']} {role}" for role in ROLES)
    where = f"{verified['questions']} questions, positions {verified['positions']}"
    return [f"- verified: {' and '.join(counts)} neurons kept by their measured effect; {where}"]


def check_counts(**counts: Any) -> None:
    for name, k in counts.items():
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
            raise InputError(f"{name}={k!r}: give a whole number, 0 or more")
