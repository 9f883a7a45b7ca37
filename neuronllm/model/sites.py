"""Sites: where neurons are. A neuron is one input channel of a block's down projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DENSE, SHARED = -1, -2


@dataclass(frozen=True)
class Site:
    """One down projection: its neurons are the `width` input channels of the module `down`.

    The routed experts of a layer are one site: `down` is then the module that holds them all, and the site's neurons
    are numbered expert by expert.
    """

    layer: int
    expert: int  # DENSE, SHARED, or 0 of a routed site: its first expert
    width: int  # of one expert
    block: str  # the decoder layer, as a dotted module name
    down: str
    ups: tuple[str, ...]  # the projections into the width, the gate first; one fused module counts once
    transposed: bool = False  # True: the weight is (width, D), as in GPT-2's Conv1D
    experts: int = 0  # how many experts a routed site has, 0 in other sites

    @property
    def size(self) -> int:
        """How many neurons the site has."""
        return self.width * max(1, self.experts)

    def spread(self, values: torch.Tensor, routes: torch.Tensor | None) -> torch.Tensor:
        """(..., K, width) of the K experts a token was routed to -> (..., size): 0 at all other experts' neurons.

        Values of an expert that is named twice add up. In a dense site (routes None) values are spread already.
        """
        if routes is None:
            return values
        routes = routes.to(values.device)
        spread = values.new_zeros(*values.shape[:-2], self.experts, self.width)
        if values.is_cuda and routes.ndim == 1:  # many values of an expert: atomic sums would come in any order
            return spread.index_put_((routes,), values, accumulate=True).flatten(-2)
        return spread.scatter_add(-2, routes[..., None].expand(values.shape), values).flatten(-2)
