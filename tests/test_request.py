"""What was asked is written down once: the keywords, the flags and the settings of a run all follow the request."""

from __future__ import annotations

import argparse
import inspect
from collections import defaultdict
from dataclasses import fields, replace

import pytest
import torch

import neuronllm as nl
from neuronllm.attribution import driver
from neuronllm.attribution.job import Job
from neuronllm.attribution.request import Request
from neuronllm.cli.flags import parser
from neuronllm.cli.request_flags import request_of
from neuronllm.cli.values import flag_names
from tests.checks import quiz, refused
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

FIELDS = {field.name: field for field in fields(Request)}
# For every field a value that is not its default, and what else must be given for it to count.
OTHERS = {
    "method": ("exact", {}),
    "objective": ("margin", {}),
    "positions": ("answer", {}),
    "orders": ("none", {}),
    "template": (["brief"], {}),
    "answers": ("texts", {}),
    "length": ("tokens", {"answers": "texts"}),
    "items": ("wrong", {}),
    "keep": ("all", {}),
    "k": (7, {"keep": "topk"}),
    "keep_dtype": (torch.bfloat16, {"keep": "all"}),
    "batch_size": (3, {}),
    "backend": ("reference", {}),
    "dtype": (torch.float64, {}),
    "output": ("scores", {}),
    "resume": (True, {"output": "scores"}),
    "overwrite": (True, {"output": "scores"}),
    "progress": (False, {}),
    "options": ({"steps": 3}, {"method": "ace"}),
}


@pytest.fixture(scope="module")
def job():
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=512)
    return Job(model, tokenizer, [nl.Question("Which is a colour?", ("red", "seven"), answer=0)], Request())


def flags_of(name: str, value: object) -> list[str]:
    flag = "--option" if name == "options" else flag_names(name)[0]
    if value is True:
        return [flag]
    words = [f"{key}={one}" for key, one in value.items()] if isinstance(value, dict) else value
    words = words if isinstance(words, list) else [str(words).removeprefix("torch.")]
    return [flag, *words]


def parsed(*flags: str) -> argparse.Namespace:
    commands = defaultdict(lambda: print)  # whatever commands there are
    return parser(commands, attribute=True).parse_args(["attribute", "--model", "m", "--questions", "q", *flags])


def test_another_value_is_known_of_every_field():
    assert list(OTHERS) == list(FIELDS)
    for name, (value, _) in OTHERS.items():
        assert value != getattr(Request(), name), name


def test_every_field_is_a_parameter_with_its_default():
    parameters = inspect.signature(nl.attribute).parameters
    assert list(parameters)[:3] == ["model", "tokenizer", "questions"]
    given = {name: parameter.default for name, parameter in list(parameters.items())[3:]}
    assert parameters["method_options"].kind is inspect.Parameter.VAR_KEYWORD and given.pop("method_options")
    assert set(given) == set(FIELDS) - {"options"}
    assert all(given[name] == FIELDS[name].default for name in given)
    assert inspect.signature(nl.dry_run).parameters["method"].default == Request.method


@pytest.mark.parametrize("name", FIELDS)
def test_every_argument_reaches_the_request(name, monkeypatch):
    seen: list[Request] = []
    monkeypatch.setattr(driver, "attributed", lambda model, tokenizer, questions, request: seen.append(request))
    value, more = OTHERS[name]
    nl.attribute(None, None, [], **(value if name == "options" else {name: value}), **more)
    assert seen == [Request(**{name: value}, **more)]
    assert Request.of(**(value if name == "options" else {name: value}), **more) == seen[0]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_flag_or_says_why_not(name):
    value, more = OTHERS[name]
    if reason := FIELDS[name].metadata.get("no_flag"):
        assert len(reason) > 20
        return
    flags = [text for one in ({name: value} | more).items() for text in flags_of(*one)]
    direct = {"options": {"steps": 3} if name == "options" else {}}  # the command reads NAME=VALUE itself
    args = parsed(*flags)
    direct |= {"template": args.template} if name == "template" else {}
    assert request_of(args, **direct) == Request(**{name: value}, **more)
    assert request_of(parsed(), options={}) == Request()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_setting_of_a_run_or_says_why_not(name, job, tmp_path):
    value, more = OTHERS[name]
    more = {key: tmp_path / one if key == "output" else one for key, one in more.items()}
    value = tmp_path / value if name == "output" else value
    before, after = Request(**more).checked(), Request(**{name: value}, **more).checked()
    same = replace(job, request=before).settings(1) == replace(job, request=after).settings(1)
    assert same == ("no_setting" in FIELDS[name].metadata)
    assert not same or len(FIELDS[name].metadata["no_setting"]) > 20


def test_help_says_every_default(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    for default in (Request.method, Request.items, Request.keep, Request.k, Request.batch_size, Request.backend):
        assert f"(default: {default})" in text
    assert "(default: float32)" in text and text.count("(default: the method's own)") >= 3


def test_a_flag_that_would_do_nothing_is_refused():
    with refused("--k 5: it needs --keep topk"):
        request_of(parsed("--k", "5"), options={})
    with refused("--keep-dtype bfloat16: it needs --keep all"):
        request_of(parsed("--keep-dtype", "bfloat16", "--keep", "topk"), options={})


def test_a_request_is_checked_without_a_model():
    assert Request("qrnca").checked().template == ("default", "plain", "brief")
    assert Request("activation").checked().objective is None
    with refused("backend='cuda'", "fast, reference"):
        Request(backend="cuda").checked()
    assert Request().objective is None  # what was asked stays as it was asked


def test_a_dry_run_asks_what_attribute_asks(monkeypatch):
    from neuronllm.attribution import dry_run

    seen: list[Request] = []
    monkeypatch.setattr(dry_run, "planned", lambda model, tokenizer, questions, request: seen.append(request))
    nl.dry_run(None, None, quiz(1), "ace", steps=3, keep="all", progress=False)
    assert seen == [Request("ace", keep="all", progress=False, options={"steps": 3})]
