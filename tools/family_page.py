"""docs/models.md: what models.json says, in one table, and how to load what is not an ordinary decoder."""

from __future__ import annotations

from typing import Any

from family_configs import MULTIMODAL

VERDICTS = {
    "fast": "the fast engine: answer tokens against a cached prefix, many edits a pass",
    "reference": "the reference: correct, one prompt at a time",
    "refused": "a line that says why not",
    "not built": "transformers cannot build it from its own configuration, or wants a package for it",
    "defect": "anything else",
}

HEAD = """# Models

`nl.load_model` takes any decoder that `AutoModelForCausalLM` of transformers loads, and the language model inside a
multimodal one. The neurons are found by the structure of its layers, and the engine finds out by a self-check how the
model may be driven: nothing here goes by a list of names. This page says what became of every family that transformers
{transformers} can build, each tried as a tiny model with random weights (torch {torch}): gradients at the answer and at
all tokens, integrated gradients and exact effects, of letters and of answers in words, by the fast engine and by the
reference. It is made by `python tools/families.py`, a row of `docs/models.json` for each family.

The models are tiny (`tools/family_configs.py`): a hidden size of 32, FFNs of 40 and experts of 12 neurons, 4 heads of
8, a vocabulary of 60, two layers or one of each kind, and random weights of spread 0.2, ten times that of new ones, so
that every edit shows. Four prompts of 5 to 15 tokens are scored, two of which begin alike; three are answered by
letters, one by texts of 1 to 3 tokens. What hybrids take of memory and time stands in
[performance.md](performance.md#engine) ("small-hybrid"). That no state leaks from one prompt into another is held by
the tests called `test_a_prompt_does_not_depend_on_its_batch`, such as those in `tests/test_mixers.py`.

| engine | causal language models | multimodal models | |
| --- | --- | --- | --- |
{counts}

"Largest difference" is that between the two engines, relative to a prompt's scores; of families that run on the
reference, that between its gradients and what switching a neuron a little really does. Fast means at most 1e-9 in
float64, which is asked for with `nl.attribute(..., dtype="float64")`: a model that is loaded in float64 goes on
computing norms, rotary angles and states in float32 where its code says so. Where the row says float32, the family's
own code computes in no wider type, and fast means at most 1e-4.

| engine | families | largest difference | why |
| --- | --- | --- | --- |
{rows}
"""

REST = """
## What the survey's models do not show

Encoders such as BERT and RoBERTa are surveyed as decoders: their configuration says `is_decoder: true`. Without it they
attend in both directions, and are left to the reference: once a model is tried whether a later token changes an earlier
logit, and a warning of `attribute` and `learn` says so (`tests/test_causality.py`). Answers in words are scored there
as the model reads them, with all of their tokens in view, which is no probability from left to right. Load such a model
as a decoder by `nl.load_model(..., is_decoder=True)`, or say so in its `config.json`.

Sparse attention takes the highest of an indexer's scores; with few index heads many of them are exactly 0, and which of
these is taken depends on how a prompt is run. The self-check then differs and leaves the model to the reference, as it
did a tiny DeepSeek-V3.2 with two index heads; with 8 or more it ran fast.

## Multimodal models

A model that reads images or sound too (Qwen-VL, Gemma 3, Mistral 3, LLaVA, InternVL, ...) is loaded whole, and
everything works on its language model with text prompts: scores, edits and baked weights are those of the text model
with the same weights (`tests/test_multimodal.py`). The towers of images and sound are never scored and never edited.
Where there is no language model of a supported kind inside, one line says so, as for Llama 4, whose experts do not
follow transformers' interface for experts.

## Code that comes with a checkpoint

Some models (Baichuan 2 among them) are no part of transformers: their Python files lie beside the weights. That code
runs only when you ask for it; read it first, and name the revision that you have read:

```
model, tokenizer = nl.load_model("user/name", revision="<commit>", trust_remote_code=True)
```

or `--trust-remote-code --revision <commit>` on the command line. What is needed of such a model is a
`PreTrainedModel` that takes `input_ids` and `use_cache` and returns `logits`, with an FFN of linear modules that lead
from the hidden size to a width and back, and `get_input_embeddings`. Tuples as caches, packed projections and heads of
normalised rows are no hindrance: the model's own code runs, on the reference engine where the self-check says so
(`tests/test_remote_code.py` scores, steers and bakes a model of that style). Code that was written for an earlier
transformers may fail in it; that error is the code's own.

## A family that is refused

`neuronllm.model.discovery.register` teaches the anatomy a foreign block, see [CONTRIBUTING](../CONTRIBUTING.md). Where
experts do not follow transformers' interface, it can name the blocks beside them: the dense ones of LongCat-Flash, or
Llama 4's shared experts. JetMoE has nothing beside its experts, and a Mamba model no FFN at all.

```python
from neuronllm.model.discovery import decoder_layers, register
from neuronllm.model.sites import SHARED, Site


def shared_experts(model):
    name, layers = decoder_layers(model)
    sites = []
    for n, layer in enumerate(layers):
        if hasattr(layer.feed_forward, "shared_expert"):
            block, mlp = f"{name}.{n}", f"{name}.{n}.feed_forward.shared_expert"
            width, ups = layer.feed_forward.shared_expert.down_proj.in_features, (f"{mlp}.gate_proj", f"{mlp}.up_proj")
            sites.append(Site(n, SHARED, width, block, f"{mlp}.down_proj", ups))
    return sites


register("llama4_text", shared_experts)
```

Here the other experts run as they are, unscored and unedited. A family on the reference gives the same numbers, only
later: it runs plain passes, as the baselines of [performance.md](performance.md#engine) do, which take up to 80 times
as long for integrated gradients and 260 times for all exact effects.
"""


def page(found: dict[str, Any]) -> str:
    """The page of what `families.py` found."""
    families = found["families"]
    kinds = {kind: [family for family in families if family["verdict"] == kind] for kind in VERDICTS}
    counts = [f"| {kind} | {_count(some)} | {VERDICTS[kind]} |" for kind, some in kinds.items() if some]
    rows = [_row(group) for some in kinds.values() for group in _groups(some)]
    return HEAD.format(**found, counts="\n".join(counts), rows="\n".join(rows)) + REST


def _count(families: list[dict[str, Any]]) -> str:
    multimodal = sum(family["family"] in MULTIMODAL for family in families)
    return f"{len(families) - multimodal} | {multimodal}"


def _groups(families: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Those with the same reason together, most first."""
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for family in families:
        multimodal = family["family"] in MULTIMODAL
        groups.setdefault((family["why"], family["dtype"] or "", multimodal), []).append(family)
    return sorted(groups.values(), key=len, reverse=True)


def _row(group: list[dict[str, Any]]) -> str:
    first, names = group[0], ", ".join(family["family"] for family in group)
    differences = [family["difference"] for family in group if family["difference"] is not None]
    worst = f"{max(differences):.0e}" if differences else ""
    dtype = " (float32)" if first["dtype"] == "float32" else ""
    kind = "multimodal: " if first["family"] in MULTIMODAL else ""
    return f"| {first['verdict']} | {kind}{names} | {worst}{dtype} | {first['why']} |"
