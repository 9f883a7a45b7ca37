"""Edits on live models: the same as by hand in every family, and nothing left behind."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

import neuronllm as nl
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.edit import edit
from neuronllm.model.hooks import HookError, visiting
from neuronllm.results.neurons import NeuronSet
from tests.checks import lived_in, refused, snapshot, untouched
from tests.test_anatomy import modules_of
from tests.tiny import DENSE, VOCABULARY, tiny

ROWS, TOKENS = 2, 9
EDITS = ((0, 3, 0.0), (0, 11, 2.0), (1, 5, -1.5), (1, 19, 0.3))  # (layer, index, factor); every family is this wide
# What is given as positions=, and the tokens of each row that it means.
POSITIONS = {
    "all": ("all", [range(TOKENS)] * ROWS),
    "first": (0, [[0]] * ROWS),
    "last": (-1, [[TOKENS - 1]] * ROWS),
    "slice": (slice(2, 6), [range(2, 6)] * ROWS),
    "tail": (slice(-3, None), [range(TOKENS - 3, TOKENS)] * ROWS),
    "rows": (torch.tensor([4, 7]), [[4], [7]]),
}


def tokens(rows: int = ROWS, length: int = TOKENS) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(5))


def logits(model, ids=None) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens() if ids is None else ids).logits


def logits_by_hand(model, name: str, where) -> torch.Tensor:
    """One hook a layer, written out token by token; modules are found by the families' own names."""
    stack = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=lambda m: sum(1 for _ in m.modules()))

    def hook(layer):
        def scale(module, args):
            h = args[0].clone()
            grid = h.view(ROWS, TOKENS, -1)  # OPT hands over (rows * tokens, width)
            for at, index, factor in EDITS:
                for row in range(ROWS):
                    for token in where[row]:
                        if at == layer:
                            grid[row, token, index] *= h.new_tensor(factor)
            return (h,)

        return scale

    handles = [stack[n].get_submodule(modules_of(name)[0]).register_forward_pre_hook(hook(n)) for n in (0, 1)]
    result = logits(model)
    for handle in handles:
        handle.remove()
    return result


def flat(model) -> tuple[torch.Tensor, list[float]]:
    layer, index, factors = zip(*EDITS, strict=True)
    return Anatomy.of(model).flat(layer, [-1] * len(EDITS), index), list(factors)


@pytest.mark.parametrize("name", DENSE)
def test_an_edit_equals_the_same_edit_by_hand(name):
    model = tiny(name)
    ids, factors = flat(model)
    clean, results = logits(model), []
    with untouched(model):
        for given, where in POSITIONS.values():
            with edit(model, ids, factors, positions=given):
                edited = logits(model)
            assert torch.equal(edited, logits_by_hand(model, name, where))
            assert (edited - clean).abs().max() > 1e-3
            assert all((edited - other).abs().max() > 1e-9 for other in results)
            results.append(edited)
        assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_in_low_precision_equals_the_one_by_hand(dtype):
    model = tiny("llama", dtype)
    ids, factors = flat(model)
    with edit(model, ids, factors):
        edited = logits(model)
    assert edited.dtype == dtype
    assert torch.equal(edited, logits_by_hand(model, "llama", POSITIONS["all"][1]))


@pytest.mark.parametrize("name", DENSE)
def test_enhance_and_degrade_leave_no_trace(name):
    model = tiny(name)
    ids, _ = flat(model)
    neurons = NeuronSet(ids, good_bad(2, 2), torch.zeros(4), Anatomy.of(model))
    clean = logits(model)
    for steer in (neurons.enhance, neurons.degrade):
        with untouched(model), steer(model) as steered:
            assert steered is model
            assert not torch.equal(logits(model), clean)
        with untouched(model), pytest.raises(ZeroDivisionError), steer(model):
            logits(model)
            raise ZeroDivisionError
        assert torch.equal(logits(model), clean)


def good_bad(good: int, bad: int):
    import numpy as np

    return np.array(["good"] * good + ["bad"] * bad)


def test_a_model_in_use_is_left_as_it_was():
    """Eager attention, training, frozen parts, the user's own hooks: all still there, during the edit too."""
    model = lived_in(tiny("llama"))
    before = snapshot(model)
    with edit(model, [3, 40], 2.0):
        during = snapshot(model)
    for key in ("bits", "requires_grad", "training", "attention", "config"):
        assert during[key] == before[key]
    assert snapshot(model) == before


def test_gradients_flow_through_an_edit():
    model = tiny("llama")
    with edit(model, [3], 0.0, positions=-1):
        model(tokens()).logits[:, -1].sum().backward()
    column = model.model.layers[0].mlp.down_proj.weight.grad
    assert column[:, 4].abs().max() > 0
    assert torch.isfinite(column).all()


def test_edits_nest():
    """Factors of the same neuron multiply, positions are each edit's own, and the inner one ends first."""
    model = tiny("llama")
    with edit(model, [3, 40], 6.0):
        expected = logits(model)
    with edit(model, [3, 40], 2.0):
        outer = logits(model)
        with edit(model, [40, 3], 3.0):
            assert torch.equal(logits(model), expected)
        with pytest.raises(ZeroDivisionError), edit(model, [3], 0.0, positions=2):
            raise ZeroDivisionError
        assert torch.equal(logits(model), outer)
    with edit(model, [3], 2.0) as model, edit(model, [40], 0.5, positions=-1):
        both = logits(model)
    assert not torch.equal(both, outer)


def test_contexts_may_end_in_another_order():
    model = tiny("llama")
    clean = logits(model)
    first, second = ExitStack(), ExitStack()
    first.enter_context(edit(model, [3], 2.0))
    second.enter_context(edit(model, [40], 0.0))
    first.close()
    with untouched(model), edit(model, [3], 1.0):
        halfway = logits(model)
    second.close()
    with edit(model, [40], 0.0):
        assert torch.equal(logits(model), halfway)
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mistral", "lfm2", "gpt_neox"])
def test_generation_under_an_edit_equals_the_baked_model(name):
    """With the cache (forward passes of one token) and without; in float64, where no near-tie can tip."""
    model = tiny(name)
    ids, _ = flat(model)
    neurons = NeuronSet(ids, good_bad(2, 2), torch.zeros(4), Anatomy.of(model))

    def generate(cache: bool) -> torch.Tensor:
        prompt = tokens()
        settings = {
            "max_new_tokens": 8,
            "do_sample": False,
            "use_cache": cache,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)

    plain = generate(True)
    with neurons.apply(model, good=4.0, bad=0.0):
        live = generate(True)
        assert torch.equal(live, generate(False))
    assert not torch.equal(live, plain)
    handle = nl.bake(model, neurons, good=4.0, bad=0.0)
    assert torch.equal(live, generate(True))
    handle.undo()
    assert torch.equal(plain, generate(True))


def test_left_padding_does_not_shift_an_edit():
    """Other people's batches pad on the left: a row's real tokens are edited whatever stands before them."""
    model = tiny("llama")
    ids, factors = flat(model)
    row = tokens()[:1]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), row], 1)
    mask = (padded != 0).long()
    with edit(model, ids, factors), torch.no_grad():
        alone = model(row).logits
        together = model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    assert torch.allclose(alone, together[:, 4:], atol=1e-12)


class Bypass(nn.Module):
    """An FFN that reads its down projection's weight without calling the module, as fused kernels do."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return functional.linear(h, self.down_proj.weight)


def test_a_bypassed_down_projection_raises_and_leaves_nothing():
    model = tiny("llama")
    model.model.layers[1].mlp = Bypass(model.model.layers[1].mlp)
    with untouched(model):
        with pytest.raises(HookError, match=r"layers\.1\.mlp\.down_proj was bypassed"), edit(model, [40], 2.0):
            logits(model)
        with edit(model, [3], 2.0):  # the other layer can be reached
            logits(model)


def test_a_down_projection_that_runs_twice_in_a_pass_raises():
    """Of a model that goes through its layers again: which of the calls a score or an edit is of, nothing says."""
    model = tiny("llama")
    model.model.layers[1] = model.model.layers[0]
    message = r"layers\.0\.mlp\.down_proj runs several times"
    with pytest.raises(HookError, match=message), visiting(model, Anatomy.of(tiny("llama")).sites[:1], lambda *_: None):
        logits(model)


def test_tokens_in_front_of_the_batch_are_refused():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("xlnet", vocab_size=60, d_model=16, n_layer=2, n_head=4)
    )
    with pytest.raises(HookError, match="XLNetLMHeadModel puts tokens in front"), edit(model.eval(), [40], 2.0):
        logits(model)


def test_a_pass_that_raised_does_not_blame_the_next_one():
    model = tiny("llama")
    with edit(model, [3, 40], 2.0):
        good = logits(model)
        with pytest.raises(IndexError):
            logits(model, torch.tensor([[VOCABULARY + 5]]))
        assert torch.equal(logits(model), good)


def test_visiting_sees_every_site_once_a_pass():
    for name in ("llama", "opt", "gptj"):
        model, seen = tiny(name), []
        with visiting(
            model, Anatomy.of(model).sites, lambda site, h, routes, seen=seen: seen.append((site.layer, tuple(h.shape)))
        ):
            logits(model)
        assert seen == [(0, (ROWS, TOKENS, 28)), (1, (ROWS, TOKENS, 28))]


def test_nothing_chosen_changes_nothing():
    model = tiny("llama")
    clean = logits(model)
    with untouched(model), edit(model, [], 2.0):
        assert torch.equal(logits(model), clean)


@pytest.mark.noext
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (([3, 3], 2.0), ["named twice"]),
        (([3], float("nan")), ["factors", "finite"]),
        (([3, 4], [1.0, float("inf")]), ["factors", "finite"]),
        (([3, 4], [1.0, 2.0, 3.0]), ["factors", "2 neurons", "3"]),
        (([3, 4, 5], [1.0, 2.0]), ["factors", "3 neurons", "2"]),
        (([56], 2.0), ["0..55", "llama"]),
        (([-1], 2.0), ["0..55"]),
        (([1.7], 2.0), ["whole numbers"]),
        (([3], 2.0, "first"), ["positions='first'"]),
        (([3], 2.0, None), ["positions=None"]),
        (([3], 2.0, 1.5), ["positions=1.5"]),
        (([3], 2.0, True), ["positions=True"]),
        (([3], 2.0, torch.tensor([True, False])), ["positions", "index a row"]),
        (([3], 2.0, torch.zeros(2, 9)), ["positions", "index a row"]),
    ],
)
def test_bad_edits_are_refused_before_anything_happens(arguments, parts):
    model = tiny("llama")
    ids, factors, *positions = arguments
    keywords = {"positions": positions[0]} if positions else {}
    with untouched(model), refused(*parts), edit(model, ids, factors, **keywords):
        pytest.fail("the body ran")


@pytest.mark.parametrize("positions", [TOKENS, -TOKENS - 1, torch.tensor([0, TOKENS]), torch.tensor([1, 2, 3])])
def test_positions_outside_the_pass_are_refused(positions):
    model = tiny("llama")
    with untouched(model), refused("positions"), edit(model, [3], 2.0, positions=positions):
        logits(model)
