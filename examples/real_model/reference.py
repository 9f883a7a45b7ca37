"""What learned control is compared with: a bias, demonstrations, and PEFT's IA3 and LoRA on the same questions."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from setting import Setting, Way, parted
from torch import Tensor

import neuronllm as nl
from neuronllm.data.templates import CLOZES
from neuronllm.engine.asking import Asker
from neuronllm.steering.recipe import Recipe
from neuronllm.steering.training import drawn

SHOTS = 4
RATES = {"ia3": (0.02, 0.1), "lora": (0.001, 0.005)}
PART = 4  # questions of a pass


# ---- a bias ----


def bias(setting: Setting) -> Way:
    """By maximum likelihood: a label's number where all questions have the same choices, else that of a place."""
    labels = sorted(setting.search[0].choices)
    of_labels = all(sorted(question.choices) == labels for question in setting.search)

    def options(prompts: Sequence[nl.Prompt], width: int) -> Tensor:
        """(prompts, width): which number counts for each displayed option."""
        if not of_labels:
            return torch.arange(width).expand(len(prompts), width)
        return torch.tensor([[labels.index(text) for text in prompt.texts] for prompt in prompts])

    prompts = setting.prompts(setting.search)
    scores = Asker(setting.model, prompts).scores().double()
    right = torch.tensor([prompt.answer for prompt in prompts])
    which = options(prompts, scores.shape[1])
    free = torch.zeros(int(which.max()), dtype=torch.float64, requires_grad=True)  # the first one is 0
    optimiser = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def numbers() -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), free])

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(scores + numbers()[which], right)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = numbers().detach()
    names = labels if of_labels else [f"place {n + 1}" for n in range(len(found))]
    settings = {"bias": {name: round(float(value), 4) for name, value in zip(names, found, strict=True)}}
    return Way(settings, bias=lambda prompts: found[options(prompts, scores.shape[1])], parameters=len(free))


# ---- demonstrations ----


def few_shot(setting: Setting) -> Way:
    shown = demonstrations(setting.search, SHOTS)
    wording = CLOZES[setting.template]
    texts = [f"{wording.format(question=q.stem)} {q.choices[q.answer]}\n\n" for q in shown]
    template = "".join(texts).replace("{", "{{").replace("}", "}}") + wording
    return Way({"demonstrations": [question.id for question in shown]}, template=template)


def demonstrations(questions: Sequence[nl.Question], count: int) -> list[nl.Question]:
    """The first questions, taking turns with their right answers where these come back.

    >>> asked = [nl.Question(f"{n}?", ("yes", "no"), answer) for n, answer in enumerate((0, 0, 0, 1))]
    >>> [question.stem for question in demonstrations(asked, 2)]
    ['0?', '3?']
    """
    left, found = list(questions), []
    times: Counter[str] = Counter()
    for _ in range(min(count, len(left))):
        chosen = min(left, key=lambda question: times[question.choices[question.answer]])
        left.remove(chosen)
        times[chosen.choices[chosen.answer]] += 1
        found.append(chosen)
    return found


# ---- PEFT ----


def ia3(setting: Setting, recipe: Recipe) -> Way:
    where = ["down_proj"]  # what neurons write through, and nothing else
    return trained(
        setting,
        "ia3",
        needed().IA3Config(task_type="CAUSAL_LM", target_modules=where, feedforward_modules=where),
        recipe,
    )


def lora(setting: Setting, recipe: Recipe) -> Way:
    return trained(setting, "lora", needed().LoraConfig(r=8, task_type="CAUSAL_LM"), recipe)


def needed() -> Any:
    try:
        import peft
    except ImportError:
        raise nl.InputError("PEFT is not installed: pip install peft") from None
    return peft


def trained(setting: Setting, name: str, config: Any, recipe: Recipe) -> Way:
    """The best of two rates and of all looks at questions that were held out; merged into a copy of the model."""
    search, held = map(setting.prompts, parted(setting.search))
    best: tuple[float, float, int, dict[str, Tensor]] | None = None
    for rate in RATES[name]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # LoRA begins at random
            wrapped = needed().get_peft_model(copy.deepcopy(setting.model), copy.copy(config)).eval()
        for step in steps(wrapped, search, rate, recipe):
            with torch.no_grad():
                value = float(torch.cat([*parts(wrapped, held)]).mean())
            if best is None or value > best[0]:
                own = {n: p.detach().clone() for n, p in wrapped.named_parameters() if p.requires_grad}
                best = value, rate, step, own
    assert best is not None
    value, rate, step, own = best
    wrapped.load_state_dict(own, strict=False)
    settings = {"rates": RATES[name], "rate": rate, "steps": recipe.steps, "batch": recipe.batch, "step": step}
    settings |= {"held out": len(held), "modules": sorted(wrapped.peft_config["default"].target_modules)}
    parameters = sum(tensor.numel() for tensor in own.values())
    return Way(settings, model=wrapped.merge_and_unload(), parameters=parameters)


def steps(wrapped: Any, prompts: Sequence[nl.Prompt], rate: float, recipe: Recipe) -> Iterator[int]:
    """Adam on what PEFT added; stops for a look where learning factors looks, before the first step too."""
    adam = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=rate)
    yield 0
    for step in range(recipe.steps):
        some = [prompts[n] for n in drawn(len(prompts), recipe.batch, 0, step)]
        adam.zero_grad()
        for values in parts(wrapped, some):
            (-values.sum() / len(some)).backward()
        adam.step()
        if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
            yield step + 1


def parts(model: Any, prompts: Sequence[nl.Prompt]) -> Iterator[Tensor]:
    """The log-probability of the right option among the options, of a few questions at a time."""
    for start in range(0, len(prompts), PART):
        yield logp_right(model, prompts[start : start + PART])


def logp_right(model: Any, prompts: Sequence[nl.Prompt]) -> Tensor:
    """Every option as a sequence of its own, padded on the left so that all answers end in the same place."""
    sequences = [(prompt.input_ids, ids) for prompt in prompts for (ids,) in prompt.option_ids]
    span = max(len(ids) for _, ids in sequences)
    width = max(len(before) + len(ids) for before, ids in sequences)
    tokens, mask = torch.zeros(len(sequences), width, dtype=torch.int64), torch.zeros(len(sequences), width)
    for row, (before, ids) in enumerate(sequences):
        tokens[row, -len(before) - len(ids) :] = torch.tensor([*before, *ids])
        mask[row, -len(before) - len(ids) :] = 1
    places = (mask.cumsum(-1) - 1).clamp(min=0).long()
    keep = {"use_cache": False, "logits_to_keep": span + 1}
    logits = model(input_ids=tokens, attention_mask=mask.long(), position_ids=places, **keep).logits
    logp = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, -span:, None])[..., 0]
    scores = [row[span - len(ids) :].sum() for row, (_, ids) in zip(logp, sequences, strict=True)]
    of_options = torch.stack(scores).split([len(prompt.option_ids) for prompt in prompts])
    return torch.stack([own.log_softmax(-1)[p.answer] for own, p in zip(of_options, prompts, strict=True)])
