"""What answers of several tokens are compared with: nothing but the model and hooks, in float64.

A sequence q is asked by one full forward of the prompt's tokens and q[:-1]; its span is the last len(q) tokens of that
forward, whose outputs predict q. Neurons are addressed by the number of the sequence, (layer, expert) as in
`experts_by_hand`, and the token of the forward; at the shared tokens of the prompt every sequence has its own forward,
so that scores there are summed over forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from neuronllm.data.prompts import Prompt
from neuronllm.engine.borrowed import DoublePrecision
from tests.experts_by_hand import Change, experts_by_hand, product, relp_gate
from tests.plain import downs

Key: TypeAlias = tuple[int, int, int, int]  # sequence, layer, expert, token
ChangeOfSequence: TypeAlias = Callable[[int, int, int, int, Tensor], Tensor]
ValueOf: TypeAlias = Callable[[Tensor], Tensor]  # of the options' scores

# Of the options' scores and the number of the right one.
OBJECTIVES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "logp_options": lambda s, right: s[right] - s.logsumexp(0),
    "p_options": lambda s, right: s[right].exp() / s.exp().sum(),
    "margin": lambda s, right: s[right] - torch.cat([s[:right], s[right + 1 :]]).logsumexp(0),
    "logp_vocab": lambda s, right: s[right],
    "p_vocab": lambda s, right: s[right].exp(),
}


class Asked(NamedTuple):
    """A sequence of an option, and the tokens of the forward that asks for it."""

    option: int
    target: list[int]
    length: float
    offset: float
    ids: list[int]

    @property
    def span(self) -> range:
        return range(len(self.ids) - len(self.target), len(self.ids))


def asked(prompt: Prompt) -> list[Asked]:
    found = []
    for option, sequences in enumerate(prompt.option_ids):
        for n, target in enumerate(sequences):
            length = prompt.lengths[option][n] if prompt.lengths else 1.0
            offset = prompt.offsets[option][n] if prompt.offsets else 0.0
            found.append(Asked(option, target, length, offset, prompt.input_ids + target[:-1]))
    return found


def of_right(prompt: Prompt) -> int:
    """The number of the right option's first sequence."""
    return [one.option for one in asked(prompt)].index(prompt.answer)


# ---- the model ----


def unchanged(number: int, layer: int, expert: int, token: int, h: Tensor) -> Tensor:
    return h


@contextmanager
def by_hand(model: Any, change: Change, rules: str | None = None) -> Iterator[None]:
    """Run every h (layer, expert, token) through `change`, behind the backward rules if there are any."""
    with ExitStack() as stack:
        if rules:
            stack.enter_context(relp(model, detach_attention=rules == "relp-detached"))
        if any(hasattr(module, "experts") for module in model.modules()):
            how: dict[str, Any] = {"weigh": Tensor.detach, "gate": relp_gate} if rules else {"gate": product}
            stack.enter_context(experts_by_hand(model, change, **how))
        else:
            stack.enter_context(dense_by_hand(model, change))
        stack.enter_context(DoublePrecision())
        yield


@contextmanager
def hooks(handles: Iterable[Any]) -> Iterator[None]:
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


def dense_by_hand(model: Any, change: Change) -> Any:
    def every_token(layer: int, module: nn.Module, args: Any) -> tuple[Tensor]:
        rows = args[0].reshape(-1, args[0].shape[-1])
        return (torch.stack([change(layer, -1, token, h) for token, h in enumerate(rows)]).reshape(args[0].shape),)

    modules = [model.get_submodule(name) for name in downs(model)]
    return hooks([m.register_forward_pre_hook(partial(every_token, layer)) for layer, m in enumerate(modules)])


def logits_of(model: Any, ids: list[int], change: Change, rules: str | None = None) -> Tensor:
    """(tokens, vocabulary) of one full forward."""
    with by_hand(model, change, rules):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def option_scores(
    model: Any,
    prompt: Prompt,
    change: ChangeOfSequence = unchanged,
    rules: str | None = None,
    normalised: bool = True,
) -> Tensor:
    """s_c of every option: the logsumexp over its sequences of their log-probabilities, or of letters' bare logits."""
    forwards = [logits_of(model, one.ids, partial(change, n), rules) for n, one in enumerate(asked(prompt))]
    return read(prompt, forwards, normalised)


def read(prompt: Prompt, forwards: Sequence[Tensor], normalised: bool = True) -> Tensor:
    """The options' scores, of the logits (tokens, vocabulary) of every sequence's forward."""
    scores: list[list[Tensor]] = [[] for _ in prompt.option_ids]
    for one, logits in zip(asked(prompt), forwards, strict=True):
        rows = logits.log_softmax(-1) if normalised else logits
        total = sum(rows[token, target] for token, target in zip(one.span, one.target, strict=True))
        scores[one.option].append((total - one.offset) / one.length)
    return torch.stack([torch.stack(of_option).logsumexp(0) for of_option in scores])


def objective_of(prompt: Prompt, objective: str) -> ValueOf:
    return lambda scores: OBJECTIVES[objective](scores, prompt.answer)


# ---- h, and the neurons in their order ----


def activity(model: Any, prompt: Prompt) -> dict[Key, Tensor]:
    """h of every token of every sequence's forward, by its address."""
    seen: dict[Key, Tensor] = {}

    def keep(*key_and_h: Any) -> Tensor:
        seen[key_and_h[:4]] = key_and_h[4].detach()
        return key_and_h[4]

    with torch.no_grad():
        option_scores(model, prompt, keep)
    return seen


def in_span(prompt: Prompt) -> Callable[[Key], bool]:
    """Whether an address is one of the positions that an answer is read off."""
    spans = [one.span for one in asked(prompt)]
    return lambda key: key[3] in spans[key[0]]


def layout(model: Any) -> dict[tuple[int, int], int]:
    """The width of every (layer, expert), in the order of neurons: dense, shared, routed within a layer."""
    widths: dict[tuple[int, int], int] = {}

    def keep(layer: int, expert: int, token: int, h: Tensor) -> Tensor:
        widths[layer, expert] = len(h)
        return h

    with torch.no_grad():
        logits_of(model, [3, 4], keep)
    for layer, expert in [place for place in widths if place[1] >= 0]:
        for other in range(len(model.get_submodule(f"model.layers.{layer}.mlp.experts").down_proj)):
            widths[layer, other] = widths[layer, expert]
    return dict(sorted(widths.items()))


def joined(model: Any, terms: Iterable[tuple[Key, Tensor]]) -> Tensor:
    """The sum of terms at all neurons of the model, in order."""
    total = {place: torch.zeros(width, dtype=torch.float64) for place, width in layout(model).items()}
    for key, term in terms:
        total[key[1:3]] = total[key[1:3]] + term
    return torch.cat(list(total.values()))


# ---- the verbs ----


def slopes(
    model: Any, prompt: Prompt, value_of: ValueOf, positions: str, weight: str, rules: str | None, normalised: bool
) -> Tensor:
    held: dict[Key, Tensor] = {}
    leaves: dict[Key, Tensor] = {}

    def add_zero(*key_and_h: Any) -> Tensor:
        key, h = key_and_h[:4], key_and_h[4]
        held[key], leaves[key] = h.detach(), torch.zeros_like(h).requires_grad_(True)
        return h + leaves[key]

    with torch.enable_grad():
        value = value_of(option_scores(model, prompt, add_zero, rules, normalised))
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    weigh = torch.sign if weight == "sign" else torch.clone
    counts = in_span(prompt) if positions == "answer" else lambda key: True
    terms = [(key, grad) for key, grad in zip(leaves, grads, strict=True) if grad is not None and counts(key)]
    return joined(model, [(key, weigh(held[key]) * grad) for key, grad in terms])


def gradients(
    model: Any,
    prompt: Prompt,
    objective: str,
    positions: str = "answer",
    weight: str = "activation",
    rules: str | None = None,
) -> Tensor:
    return slopes(model, prompt, objective_of(prompt, objective), positions, weight, rules, normalised=True)


def option_gradients(model: Any, prompt: Prompt) -> Tensor:
    rows = [
        slopes(model, prompt, lambda s, k=k: s[k], "answer", "activation", None, normalised=not prompt.one_token)
        for k in range(len(prompt.option_ids))
    ]
    return torch.stack(rows)


def integrate(model: Any, prompt: Prompt, objective: str, alphas: Sequence[float], weights: Sequence[float]) -> Tensor:
    counts = in_span(prompt)
    held = {key: h for key, h in activity(model, prompt).items() if counts(key)}
    terms: list[tuple[Key, Tensor]] = []
    for layer in sorted({key[1] for key in held}):
        for alpha, weight in zip(alphas, weights, strict=True):
            points = {key: (alpha * h).requires_grad_(True) for key, h in held.items() if key[1] == layer}

            def put(*key_and_h: Any, points: dict[Key, Tensor] = points) -> Tensor:
                return points.get(key_and_h[:4], key_and_h[4])

            value = objective_of(prompt, objective)(option_scores(model, prompt, put))
            grads = torch.autograd.grad(value, list(points.values()))
            terms += [(key, held[key] * weight * grad) for key, grad in zip(points, grads, strict=True)]
    return joined(model, terms)


def multiplied(
    model: Any, prompt: Prompt, ids: Sequence[int], factor: float, positions: str = "answer"
) -> ChangeOfSequence:
    """The change that multiplies these neurons with the factor, at the span or at all tokens."""
    return scaling(layout(model), prompt, ids, factor, positions)


def scaling(
    widths: dict[tuple[int, int], int], prompt: Prompt, ids: Sequence[int], factor: float, positions: str
) -> ChangeOfSequence:
    factors = torch.ones(sum(widths.values()), dtype=torch.float64)
    factors[list(ids)] = factor
    by_place = dict(zip(widths, factors.split(list(widths.values())), strict=True))
    edited = {place: of_place for place, of_place in by_place.items() if bool((of_place != 1).any())}
    counts = in_span(prompt) if positions == "answer" else lambda key: True

    def change(*key_and_h: Any) -> Tensor:
        key, h = key_and_h[:4], key_and_h[4]
        return h * edited[key[1:3]] if key[1:3] in edited and counts(key) else h

    return change


@torch.no_grad()
def effects(
    model: Any, prompt: Prompt, objective: str, ids: Sequence[int] | None = None, factor: float = 0.0
) -> Tensor:
    value_of, widths = objective_of(prompt, objective), layout(model)
    clean, found = value_of(option_scores(model, prompt)), []
    for neuron in range(sum(widths.values())) if ids is None else ids:
        change = scaling(widths, prompt, [neuron], factor, "answer")
        found.append(clean - value_of(option_scores(model, prompt, change)))
    return torch.stack(found)


def activations(model: Any, prompt: Prompt, positions: str = "answer") -> Tensor:
    number, counts = of_right(prompt), in_span(prompt)
    seen = {
        key: h for key, h in activity(model, prompt).items() if key[0] == number and (positions == "all" or counts(key))
    }
    tokens = len({key[3] for key in seen})
    return joined(model, [(key, h / tokens) for key, h in seen.items()])


@torch.no_grad()
def frequencies(model: Any, prompt: Prompt, positions: str = "answer") -> Tensor:
    """How often gates are positive, of dense models."""
    one, shares = asked(prompt)[of_right(prompt)], []
    first = one.span.start if positions == "answer" else 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        shares.append((output[0, first:] > 0).double().mean(0))

    with hooks([ups[0].register_forward_hook(count) for ups, _ in feed_forwards(model)]):
        logits_of(model, one.ids, lambda layer, expert, token, h: h)
    return torch.cat(shares)


@torch.no_grad()
def direct(model: Any, prompt: Prompt, objective: str) -> Tensor:
    """A neuron's own push on the first answer token: of its layer nothing else is left, and no later layer follows."""
    layers = model.transformer.h if model.config.model_type == "gpt2" else model.model.layers
    last, rows = len(prompt.input_ids) - 1, []

    def value(layer: int, place: tuple[int, int] | None, neuron: int) -> Tensor:
        def keep_one(at_layer: int, expert: int, token: int, h: Tensor) -> Tensor:
            if at_layer != layer or token != last:
                return h
            return h * (torch.arange(len(h)) == neuron) if (layer, expert) == place else 0 * h

        out: list[Any] = []
        with hooks([layers[layer].register_forward_hook(lambda module, args, output: out.append(output))]):
            logits_of(model, prompt.input_ids, keep_one)
        residual = out[0][0] if isinstance(out[0], tuple) else out[0]
        logp = unembedded(model, residual[0, -1]).log_softmax(-1)
        return objective_of(prompt, objective)(torch.stack([logp[ids].logsumexp(0) for ids in prompt.first_tokens]))

    met = {key[1:3] for key in activity(model, prompt) if key[3] == last}
    for (layer, expert), width in layout(model).items():
        if (layer, expert) not in met:
            rows.append(torch.zeros(width, dtype=torch.float64))
            continue
        none = value(layer, None, 0)
        rows.append(torch.stack([value(layer, (layer, expert), n) - none for n in range(width)]))
    return torch.cat(rows)


def unembedded(model: Any, residual: Tensor) -> Tensor:
    """Final norm, head and soft cap, of the few families that are used here."""
    with DoublePrecision():
        norm = model.transformer.ln_f if model.config.model_type == "gpt2" else model.model.norm
        logits = model.lm_head(norm(residual[None, None]))[0, 0]
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def answers(model: Any, prompt: Prompt, ids: Sequence[int] = (), factor: float = 1.0, positions: str = "all") -> Tensor:
    """Log-probabilities among the options, under an edit."""
    return option_scores(model, prompt, multiplied(model, prompt, ids, factor, positions)).log_softmax(0)


# ---- RelP's rules, written as hooks ----


def feed_forwards(model: Any) -> list[tuple[list[nn.Module], nn.Module]]:
    """What leads into h, the gate first, and the down projection behind it; of dense and shared blocks."""
    found: list[tuple[list[nn.Module], nn.Module]] = []
    for module in model.modules():
        parts = dict(module.named_children())
        if "gate_proj" in parts:
            found.append(([parts["gate_proj"], parts["up_proj"]], parts["down_proj"]))
        elif "c_fc" in parts:
            found.append(([parts["c_fc"]], parts["c_proj"]))
    return found


@contextmanager
def relp(model: Any, detach_attention: bool) -> Iterator[None]:
    """Constant norm scales, act(x)/x constant, the two factors of a product half each; forward values stay."""
    handles = []
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and not list(module.children()):
            handles.append(module.register_forward_hook(_constant_scale))
    for ups, down in feed_forwards(model):
        led: list[Tensor] = []
        handles += [up.register_forward_hook(lambda m, a, output, led=led: led.append(output)) for up in ups]
        handles.append(down.register_forward_pre_hook(partial(_shared_out, led)))
    for name, module in model.named_modules() if detach_attention else ():
        if name.endswith(("q_proj", "k_proj")):
            handles.append(module.register_forward_hook(lambda module, args, output: output.detach()))
        elif name.endswith("c_attn"):
            handles.append(module.register_forward_hook(_queries_and_keys_detached))
    with hooks(handles):
        yield


def _constant_scale(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
    x = args[0]
    if not isinstance(norm, nn.LayerNorm):
        return x * (output / x).detach()
    centred = x - x.mean(-1, keepdim=True)
    return centred * ((output - norm.bias) / centred).detach() + norm.bias


def _shared_out(led: list[Tensor], down: nn.Module, args: Any) -> tuple[Tensor]:
    """h as the mean of its factors, each times a constant; the value is h again."""
    parts = [x * (args[0] / x).detach() for x in led]
    led.clear()
    return (torch.stack(parts).mean(0),)


def _queries_and_keys_detached(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    queries, keys, values = output.chunk(3, -1)
    return torch.cat([queries.detach(), keys.detach(), values], -1)
