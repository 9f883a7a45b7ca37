"""What `nl.describe` says of neurons: counts, the most active places against a plain loop, files and tables."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.data.encoding import token_texts
from neuronllm.data.prompts import Prompt
from neuronllm.engine.promoted import promoted
from neuronllm.engine.spans import activity, shared_tokens
from tests.checks import Fuse, blow_after, lived_in, refused, untouched
from tests.tiny import VOCABULARY, random_prompts, tiny
from tests.tiny_tokenizers import byte_fallback, byte_level, metaspace

QUIET = {"progress": False}


def bare(texts: list[list[int]]) -> list[Prompt]:
    return [Prompt(ids, [[[3]]], 0) for ids in texts]


def random_texts(count: int = 9, start: tuple[int, ...] = (7, 8)) -> list[list[int]]:
    """Texts of unequal length, two of three with the same beginning."""
    generator = torch.Generator().manual_seed(2)
    texts = []
    for n in range(count):
        length = int(torch.randint(3, 14, (1,), generator=generator))
        text = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        texts.append([*start, *text] if n % 3 else text)
    return texts


@torch.no_grad()
def held(model: Any, text: list[int]) -> np.ndarray:
    """(neurons, tokens): h of every neuron, a text at a time, by hooks of the test's own; NaN where none was sent."""
    anatomy, seen, handles = nl.Anatomy.of(model), {}, []
    for site in anatomy.sites:
        module = model.get_submodule(site.down)
        if site.experts:  # a plain loop over tokens and their experts, with the family's own weights

            def look(module, args, down=site.down, site=site):
                hidden, routes, _ = args
                rows = np.full((site.experts, site.width, len(hidden)), np.nan)
                for t, experts in enumerate(routes.tolist()):
                    for e in experts:
                        gate, up = (module.gate_up_proj[e] @ hidden[t]).chunk(2)
                        rows[e, :, t] = (torch.nn.functional.silu(gate) * up).numpy()
                seen[down] = rows.reshape(-1, len(hidden))
        else:

            def look(module, args, down=site.down):
                seen[down] = args[0].reshape(-1, args[0].shape[-1]).T.numpy()

        handles.append(module.register_forward_pre_hook(look))
    model(torch.tensor([text]))
    for handle in handles:
        handle.remove()
    return np.concatenate([seen[site.down] for site in anatomy.sites])


Loop = tuple[list[tuple[int, int, float]], int, int]


def by_loop(texts: list[list[int]], holds: list[np.ndarray], neuron: int, k: int) -> Loop:
    """The most active (text, place, h), at most one a text, and how many tokens were read and were above 0."""
    tops, read, positive = [], 0, 0
    for n, text in enumerate(texts):
        best = None
        for t, h in enumerate(holds[n][neuron]):
            if np.isnan(h) or any(other[: t + 1] == text[: t + 1] for other in texts[:n]):
                continue
            read, positive = read + 1, positive + (h > 0)
            if h != 0 and (best is None or abs(h) > abs(best[2])):
                best = (n, t, h)
        tops += [best] if best else []
    return sorted(tops, key=lambda top: -abs(top[2]))[:k], read, positive


def cut_out(row: np.ndarray, place: int, window: int) -> np.ndarray:
    """What stands around a place, NaN beyond the ends."""
    beyond = np.full(window, np.nan)
    return np.concatenate([beyond, row, beyond])[place : place + 2 * window + 1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "lfm2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_most_active_places_are_those_of_a_loop(name, dtype):
    """OPT's activation is exactly 0 at many tokens; Mixtral's experts see some tokens only.

    Texts of unequal length share a batch in float32, and do not in float64.
    """
    model, texts, k, window = tiny(name, dtype), random_texts(), 3, 2
    if dtype == torch.float32 and name == "mixtral":
        model.set_experts_implementation("eager")
    anatomy = nl.Anatomy.of(model)
    ids = torch.tensor([30, 3, 0, anatomy.n_neurons - 1])
    holds = [held(model, text) for text in texts]
    expected = [by_loop(texts, holds, neuron, k) for neuron in ids.tolist()]
    for batch_size in ("auto", 1, 4):
        with untouched(model):
            found = activity(model, anatomy, ids, bare(texts), k, window, batch_size)
        assert [(int(r), int(p)) for r, p in zip(found.read, found.positive, strict=True)] == [e[1:] for e in expected]
        for row, (tops, *_) in enumerate(expected):
            text, place = found.spans.text[row].tolist(), found.spans.place[row].tolist()
            assert [pair for pair in zip(text, place, strict=True) if pair[0] >= 0] == [top[:2] for top in tops]
            for n, (where, at, h) in enumerate(tops):
                values = cut_out(holds[where][ids[row]], at, window)
                assert values[window] == h
                assert found.spans.around[row, n].numpy() == pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True)


def test_beginnings_are_read_once():
    texts = random_texts()
    expected = [
        max(t for t in range(len(text) + 1) if t == 0 or any(o[:t] == text[:t] for o in texts[:n]))
        for n, text in enumerate(texts)
    ]
    assert shared_tokens(texts) == expected and max(expected) >= 2
    model = tiny("llama")
    found = activity(model, nl.Anatomy.of(model), torch.arange(3), bare([texts[0], texts[0]]), k=4, window=0)
    assert found.read.tolist() == [len(texts[0])] * 3
    assert [row for row in found.spans.text.tolist() if row != [0, -1]] == []


def test_equals_are_kept_in_the_order_of_texts():
    """A neuron that holds the same everywhere: the first texts, at their first tokens, however they are batched."""
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[:, 4] = 0
        model.transformer.h[0].mlp.c_fc.bias[4] = 1.0
    texts = [[9 + n, *range(3, 3 + length)] for n, length in enumerate((6, 2, 5, 3, 4))]
    for batch_size in ("auto", 1, 2, 3):
        found = activity(model, nl.Anatomy.of(model), torch.tensor([4]), bare(texts), 3, 0, batch_size).spans
        assert found.text.tolist() == [[0, 1, 2]] and found.place.tolist() == [[0, 0, 0]]


def a_set(model: Any, **more: Any) -> nl.NeuronSet:
    anatomy = nl.Anatomy.of(model)
    role, score = np.array(["good", "good", "bad"]), torch.tensor([0.5, 0.25, -1.0])
    return nl.NeuronSet(torch.tensor([40, 2, 9]), role, score, anatomy, **more)


def test_cards_say_what_the_parts_found():
    model, prompts = tiny("llama"), random_prompts(3)
    neurons = a_set(model, factor=torch.tensor([0.5, float("nan"), 2.0]))
    with untouched(model):
        found = nl.describe(model, None, neurons, prompts, tokens=3, spans=2, window=1, **QUIET)
    anatomy = neurons.anatomy
    ends, spans = promoted(model, anatomy, neurons.ids, 3), activity(model, anatomy, neurons.ids, prompts, 2, 1)
    assert [card["id"] for card in found.cards] == [40, 2, 9]
    assert [(card["layer"], card["expert"], card["index"]) for card in found.cards] == [
        (1, -1, 12),
        (0, -1, 2),
        (0, -1, 9),
    ]
    assert [card["role"] for card in found.cards] == ["good", "good", "bad"]
    assert [card["score"] for card in found.cards] == [0.5, 0.25, -1.0]
    assert [card["factor"] for card in found.cards] == [0.5, None, 2.0]
    assert found.layers == [
        {"layer": 0, "neurons": 2, "good": 1, "bad": 1},
        {"layer": 1, "neurons": 1, "good": 1, "bad": 0},
    ]
    assert found.texts == {"count": 3, "tokens": 11 + 12 + 13}
    for n, card in enumerate(found.cards):
        assert [token["id"] for token in card["promoted"]] == ends.largest.indices[n].tolist()
        assert [token["value"] for token in card["suppressed"]] == ends.smallest.values[n].tolist()
        assert card["promoted"][0]["token"] == f"<{card['promoted'][0]['id']}>"
        assert card["read"] == int(spans.read[n]) and card["positive"] == int(spans.positive[n]) / card["read"]
        for m, span in enumerate(card["spans"]):
            text, place = int(spans.spans.text[n, m]), int(spans.spans.place[n, m])
            tokens = prompts[text].input_ids[max(0, place - 1) : place + 2]
            assert span["question"] == f"q{text}" and span["peak"] == min(place, 1)
            assert [token["text"] for token in span["tokens"]] == [f"<{token}>" for token in tokens]
            assert span["tokens"][span["peak"]]["activation"] == span["activation"]
            assert abs(span["activation"]) == float(spans.spans.size[n, m])
    plain = nl.describe(model, None, [9], tokens=0)
    assert plain.cards[0]["role"] is None and plain.cards[0]["promoted"] == plain.cards[0]["spans"] == []
    assert plain.cards[0]["positive"] is None and plain.layers[0] == {"layer": 0, "neurons": 1, "good": 0, "bad": 0}


def test_experts_are_silent_where_no_token_was_sent():
    model, texts = tiny("mixtral"), random_texts(4)
    found = nl.describe(model, None, [4 * 8 + 3, 9], bare(texts), spans=4, window=20, **QUIET)
    for card in found.cards:
        assert (card["layer"], card["expert"]) == ((1, 0) if card["id"] == 35 else (0, 1))
        for span in card["spans"]:
            values = held(model, texts[int(span["question"][6:-1])])[card["id"]]
            said = [token["activation"] for token in span["tokens"]]
            assert [value is None for value in said] == np.isnan(values).tolist()
            assert np.array(said, float) == pytest.approx(values, rel=1e-5, nan_ok=True)
    assert any(token["activation"] is None for card in found.cards for s in card["spans"] for token in s["tokens"])


@pytest.fixture(scope="module")
def worded() -> tuple[Any, Any, list[nl.Question]]:
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer) + 5, max_position_embeddings=256)
    questions = [nl.Question(f"Which is word {n}?", ("red", "blue"), n % 2, id=f"q{n}" * (n > 0)) for n in range(3)]
    return model, tokenizer, questions


def test_questions_are_read_in_the_words_of_the_set(worded):
    model, tokenizer, questions = worded
    neurons = a_set(model, provenance={"template": "brief"})
    tokenizer.backend_tokenizer.enable_truncation(40)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    before = tokenizer.padding_side, tokenizer.backend_tokenizer.to_str()
    found = nl.describe(model, tokenizer, neurons, questions, spans=9, window=500, **QUIET)
    asked = nl.render(tokenizer, questions, "none", "brief")
    for card in found.cards:
        assert {token["id"] for token in card["promoted"]} <= set(range(len(tokenizer)))
        texts = {span["question"]: "".join(token["text"] for token in span["tokens"]) for span in card["spans"]}
        names = [prompt.question_id or f"texts[{n}]" for n, prompt in enumerate(asked)]
        known = dict(zip(names, (tokenizer.decode(prompt.input_ids) for prompt in asked), strict=True))
        assert texts == {name: known[name] for name in texts} and texts
    other = nl.describe(model, tokenizer, neurons, questions, template="plain", **QUIET)
    assert other.texts["tokens"] == sum(len(p.input_ids) for p in nl.render(tokenizer, questions, "none", "plain"))
    assert (tokenizer.padding_side, tokenizer.backend_tokenizer.to_str()) == before
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def test_texts_are_read_whole(worded):
    model, tokenizer, _ = worded
    found = nl.describe(model, tokenizer, [3], ["Options: the letter", "seven"], window=99, **QUIET)
    spans = {span["question"]: span["tokens"] for span in found.cards[0]["spans"]}
    assert {name: "".join(token["text"] for token in tokens) for name, tokens in spans.items()} == {
        "texts[0]": "Options: the letter",
        "texts[1]": "seven",
    }


@pytest.mark.parametrize("made", [byte_level, metaspace, byte_fallback])
def test_token_texts_join_to_the_whole(made):
    tokenizer = made()
    for text in ("Answer: the sky", "caf\u00e9 \u65e5\u672c, red", " two  spaces"):
        ids = tokenizer(text)["input_ids"]
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids) and "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    first, space = (tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in ("a", "b "))
    assert token_texts(tokenizer, [first, space])[-1] == " "  # what stands alone at the end of a text, too


def test_files_and_tables(worded, tmp_path, capsys):
    model, tokenizer, questions = worded
    found = nl.describe(model, tokenizer, a_set(model), questions, **QUIET)
    found.save(tmp_path / "d.json")
    assert nl.Description.load(tmp_path / "d.json") == found
    assert json.loads((tmp_path / "d.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    with refused("something stands there"):
        found.save(tmp_path / "d.json")
    with refused("missing none.json"):
        nl.Description.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"format": "else"}')
    with refused("not a description"):
        nl.Description.load(tmp_path / "other.json")
    (tmp_path / "short.json").write_text('{"format": "neuronllm-description", "version": 1, "cards": []}')
    with refused("layers"):
        nl.Description.load(tmp_path / "short.json")
    assert len(found) == 3 and repr(found) == "Description(3 neurons, 3 texts)"
    rows = found.rows()
    assert [row[0] for row in rows] == ["layer 1 neuron 12", "layer 0 neuron 2", "layer 0 neuron 9"]
    assert [row[1:3] for row in rows] == [["good", "0.500"], ["good", "0.250"], ["bad", "-1.000"]]
    nasty = {"token": "<b>[/x]\n", "id": 3, "value": 1.0}
    cards = [found.cards[0] | {"promoted": [nasty], "expert": 3}]
    strange = nl.Description(cards, found.layers)
    page = strange._repr_html_()
    assert "&lt;b&gt;[/x]\\n" in page and "<b>" not in page and page.count("<tr>") == 2
    assert "layer 1 expert 3 neuron 12" in page


def test_a_model_in_use_is_left_as_found():
    model = lived_in(tiny("llama", torch.float32))
    with untouched(model):
        nl.describe(model, None, [3], random_prompts(2), **QUIET)
    blow_after(model, 1)
    with untouched(model), pytest.raises(Fuse):
        nl.describe(model, None, [3], random_prompts(2), **QUIET)


def test_a_set_of_another_model_is_described_with_a_warning(worded):
    model, tokenizer, _ = worded
    with pytest.warns(UserWarning, match="found on a gpt2, this is a llama of the same shape"):
        nl.describe(model, tokenizer, a_set(model, provenance={"model_type": "gpt2"}))


def test_addresses_become_ids_by_name_only(worded):
    model, tokenizer, _ = worded
    how = "nl.Anatomy.of(model).flat(layers, experts, indices)"
    for given in ([(1, 3)], [(1, -1, 3)], [(1, 3), 4], np.ones((9, 9), int), torch.ones(2, 3).long(), 3, [1.0], "3"):
        with refused("neurons=", how):
            nl.describe(model, tokenizer, given)
    with refused("neurons=tensor([True", how):
        nl.describe(model, tokenizer, torch.ones(9, dtype=torch.bool))
    ids = nl.Anatomy.of(model).flat([1, 0], [-1, -1], [3, 4])
    cards = nl.describe(model, tokenizer, ids, tokens=0).cards
    assert [(card["layer"], card["expert"], card["index"]) for card in cards] == [(1, -1, 3), (0, -1, 4)]
    anatomy = nl.Anatomy.of(model)
    empty = torch.zeros(anatomy.n_neurons)
    with refused("neurons: these are scores of all neurons", "scores.find(good=20, bad=20)"):
        nl.describe(model, tokenizer, nl.Scores(empty, empty, empty, anatomy))


def test_bad_input_is_one_line(worded):
    model, tokenizer, questions = worded
    with refused("tokens=-1", "0 or more"):
        nl.describe(model, tokenizer, [3], tokens=-1)
    with refused("window=True"):
        nl.describe(model, tokenizer, [3], window=True)
    with refused("neurons", "nothing to describe"):
        nl.describe(model, tokenizer, [])
    with refused("neuron ids must lie in"):
        nl.describe(model, tokenizer, [10**6])
    with refused("the neuron set is of a"):
        nl.describe(model, tokenizer, a_set(tiny("gpt2", n_inner=30)))
    with refused("not a mixture"):
        nl.describe(model, tokenizer, [3], [questions[0], "text"])
    with refused("texts is empty"):
        nl.describe(model, tokenizer, [3], [])
    with refused("texts[1]"):
        nl.describe(model, tokenizer, [3], ["one", ""])
    with refused("tokenizer=None"):
        nl.describe(model, None, [3], ["one"])
    with refused("texts[0]", "context of 256"):
        nl.describe(model, tokenizer, [3], ["word " * 900], **QUIET)
    with refused("batch_size=0"):
        nl.describe(model, tokenizer, [3], ["one"], batch_size=0)
