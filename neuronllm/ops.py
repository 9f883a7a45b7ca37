"""The kernels' public face: functions on tensors that need nothing else of neuronllm.

Each is an operator of PyTorch (`torch.ops.neuronllm.*`) with a meta implementation and autograd, so that it works under
torch.compile and in other people's code. backend="triton" asks for the kernel and says why if it cannot run, "torch"
for plain PyTorch; "auto" takes the kernel on devices where it was measured to win. `with using("torch"):` decides for
all calls inside, those of the engine too. Triton is imported when a kernel runs.

>>> import torch
>>> glu_score(torch.ones(2, 4), torch.ones(2, 4), torch.ones(2, 4), act="relu").scores
tensor([[2., 2., 2., 2.]])
"""

from __future__ import annotations

from .kernels.branch_attention.op import Pieces, branch_attention
from .kernels.contrastive_ce.op import ContrastiveCE, contrastive_ce
from .kernels.glu_score.op import GluScore, glu_score
from .kernels.launch import using
from .kernels.score_gemm.op import score_gemm

__all__ = [
    "ContrastiveCE",
    "GluScore",
    "Pieces",
    "branch_attention",
    "contrastive_ce",
    "glu_score",
    "score_gemm",
    "using",
]
