"""The map of neurons: the right modules in every family, ragged widths, numbering, refusals, foreign blocks."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN

from neuronllm.model import discovery
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.discovery import register
from neuronllm.model.edit import edit
from neuronllm.model.sites import Site
from tests.checks import refused
from tests.tiny import DENSE, GLU, tiny

GATED = ("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj"))
FUSED = ("mlp.down_proj", ("mlp.gate_up_proj",))
MODULES = {
    "phi3": FUSED,
    "glm4": FUSED,
    "lfm2": ("feed_forward.w2", ("feed_forward.w1", "feed_forward.w3")),
    "gpt2": ("mlp.c_proj", ("mlp.c_fc",)),
    "gpt_bigcode": ("mlp.c_proj", ("mlp.c_fc",)),
    "opt": ("fc2", ("fc1",)),
    "gpt_neox": ("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    "falcon": ("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    "bloom": ("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    "phi": ("mlp.fc2", ("mlp.fc1",)),
    "gptj": ("mlp.fc_out", ("mlp.fc_in",)),
    "nemotron": ("mlp.down_proj", ("mlp.up_proj",)),
    "starcoder2": ("mlp.c_proj", ("mlp.c_fc",)),
}
WIDTHS = {"lfm2": 20, "bloom": 64}  # LFM2 rounds its width, BLOOM's is 4 D; the rest take 28 from the configuration


def modules_of(name: str) -> tuple[str, tuple[str, ...]]:
    return MODULES.get(name, GATED)


def activation(model) -> nn.Module:
    config = model.config
    named = (
        getattr(config, key, None) for key in ("hidden_act", "activation_function", "hidden_activation", "activation")
    )
    return ACT2FN[next((name for name in named if name), "silu" if config.model_type == "lfm2" else "gelu_new")]


@pytest.mark.noext
@pytest.mark.parametrize("name", DENSE)
def test_finds_the_neurons_of_every_family(name):
    model = tiny(name)
    anatomy, (down, ups) = Anatomy.of(model), modules_of(name)
    assert anatomy.model_type == name
    assert [site.layer for site in anatomy.sites] == [0, 1]
    for site in anatomy.sites:
        assert site.expert == -1 and site.transposed == (name == "gpt2")
        assert site.width == WIDTHS.get(name, 28)
        assert site.block.endswith(f".{site.layer}")
        assert site.down == f"{site.block}.{down}"
        assert site.ups == tuple(f"{site.block}.{up}" for up in ups)
        weight = model.get_submodule(site.down).weight
        assert tuple(weight.shape) == ((site.width, 16) if site.transposed else (16, site.width))
    assert anatomy.n_neurons == 2 * WIDTHS.get(name, 28)


@pytest.mark.parametrize("name", DENSE)
def test_what_enters_the_site_is_the_activated_gate_times_the_rest(name):
    """`ups` are gate first: h = act(gate) * up, or act(up) without a gate, computed by the family's own code."""
    model, seen = tiny(name), {}
    for site in Anatomy.of(model).sites:
        for up in site.ups:
            model.get_submodule(up).register_forward_hook(lambda m, a, out, up=up: seen.update({up: out}))
        model.get_submodule(site.down).register_forward_pre_hook(lambda m, a, down=site.down: seen.update({down: a[0]}))
    with torch.no_grad():
        model(torch.arange(3, 12)[None])
    for site in Anatomy.of(model).sites:
        outputs = [seen[up] for up in site.ups]
        if outputs[0].shape[-1] == 2 * site.width:
            outputs = list(outputs[0].chunk(2, -1))
        assert len(outputs) == (2 if name in GLU else 1)
        expected = activation(model)(outputs[0]) * (outputs[1] if name in GLU else 1)
        assert torch.allclose(seen[site.down], expected, atol=1e-6)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("name", [*DENSE, "ragged"])
def test_numbers_go_there_and_back(name):
    anatomy = Anatomy.of(ragged() if name == "ragged" else tiny(name))
    ids = torch.arange(anatomy.n_neurons)
    layer, expert, index = anatomy.locate(ids)
    by_hand = [(site.layer, -1, i) for site in anatomy.sites for i in range(site.width)]
    assert list(zip(layer.tolist(), expert.tolist(), index.tolist(), strict=True)) == by_hand
    assert torch.equal(anatomy.flat(layer, expert, index), ids)
    shuffled = torch.randperm(len(ids))
    assert torch.equal(anatomy.flat(*anatomy.locate(shuffled)), shuffled)
    parts = anatomy.split(ids)
    assert [len(part) for part in parts] == anatomy.sizes and torch.equal(torch.cat(parts), ids)


def ragged():
    """A Llama whose second layer is wider and whose third is narrower than the configuration says."""
    model = tiny("llama", num_hidden_layers=3)
    for layer, width in ((1, 40), (2, 7)):
        mlp = model.model.layers[layer].mlp
        mlp.gate_proj, mlp.up_proj = (nn.Linear(16, width, bias=False).double() for _ in range(2))
        mlp.down_proj = nn.Linear(width, 16, bias=False).double()
    return model


def test_widths_come_from_the_weights():
    model = ragged()
    anatomy = Anatomy.of(model)
    assert anatomy.sizes == [28, 40, 7]
    assert anatomy.locate([27, 28, 67, 68, 74])[0].tolist() == [0, 1, 1, 2, 2]
    assert anatomy.locate([27, 28, 67, 68, 74])[2].tolist() == [27, 0, 39, 0, 6]
    assert "7 to 40" in anatomy.describe()
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad(), edit(model, [74], 3.0):
        edited = model(tokens).logits
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[:, 6] *= 3
        assert torch.allclose(model(tokens).logits, edited, atol=1e-12)


def test_layers_without_a_feed_forward_are_passed_over():
    model = tiny("llama", num_hidden_layers=3)
    model.model.layers[1].mlp = nn.Identity()
    anatomy = Anatomy.of(model)
    assert [site.layer for site in anatomy.sites] == [0, 2]
    assert anatomy.locate([28])[0].item() == 2
    with refused("(1, -1, 0)"):
        anatomy.flat([1], [-1], [0])


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "lfm2", "opt", "gpt_neox"])
@pytest.mark.parametrize("width", [8, 16, 32])
def test_width_equal_to_or_twice_or_half_the_hidden_size(name, width):
    """Every linear module fits several places then; only one reading is right."""
    key = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(name, "intermediate_size")
    more = {"block_auto_adjust_ff_dim": False} if name == "lfm2" else {}
    anatomy, (down, ups) = Anatomy.of(tiny(name, **{key: width}, **more)), modules_of(name)
    assert anatomy.sizes == [width, width]
    for site in anatomy.sites:
        assert site.down == f"{site.block}.{down}"
        assert site.ups == tuple(f"{site.block}.{up}" for up in ups)


def test_experts_kept_in_a_list_are_refused():
    """As modelling code outside transformers keeps them: no class is called Expert, no weight is stacked."""
    model = tiny("llama")
    layer = model.model.layers[1]
    layer.mlp.experts = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(16, 8), "down": nn.Linear(8, 16)})])
    with refused("LlamaForCausalLM", "family llama", "layer 1, mlp.experts", "common interface"):
        Anatomy.of(model)


def test_three_dimensional_weights_alone_do_not_make_experts():
    """RecurrentGemma's gates hold one small matrix a head; it is dense."""
    config = AutoConfig.for_model(
        "recurrent_gemma",
        vocab_size=60,
        hidden_size=16,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=16,
    )
    anatomy = Anatomy.of(AutoModelForCausalLM.from_config(config))
    assert anatomy.sizes == [28, 28, 28]
    assert anatomy.sites[0].ups == tuple(f"{anatomy.sites[0].block}.mlp_block.{up}" for up in ("gate_proj", "up_proj"))


def test_a_feed_forward_in_several_modules_is_found():
    """BERT's leads into its width in one module and out of it in another."""
    model = tiny("bert", is_decoder=True)
    anatomy = Anatomy.of(model)
    assert [site.down for site in anatomy.sites] == [f"bert.encoder.layer.{n}.output.dense" for n in (0, 1)]
    assert [site.ups for site in anatomy.sites] == [(f"bert.encoder.layer.{n}.intermediate.dense",) for n in (0, 1)]
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        with edit(model, [30], 3.0):
            edited = model(tokens).logits
        model.bert.encoder.layer[1].output.dense.weight[:, 2] *= 3
        assert torch.allclose(model(tokens).logits, edited, atol=1e-12)


def test_the_decoder_is_found_beside_a_larger_tower_of_images():
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = tiny("git", vision_config=vision | {"image_size": 32, "patch_size": 16})
    assert [site.down for site in Anatomy.of(model).sites] == [f"git.encoder.layer.{n}.output.dense" for n in (0, 1)]


@pytest.mark.parametrize("name, shared", [("zamba", "shared_transf"), ("zamba2", "shared_transformer")])
def test_mixers_with_stacked_heads_are_no_experts(name, shared):
    """Zamba's heads are stacked as experts may be; its feed-forward, in what is named after attention, is shared."""
    small = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 3, "n_mamba_heads": 2}
    small |= {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_attention_heads": 4}
    small |= {"attention_hidden_size": 32, "attention_head_dim": 8, "mamba_dt_rank": 2} if name == "zamba" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **small, num_key_value_heads=4))
    with refused(f"layers.1.{shared}.feed_forward.down_proj is shared by the layers 1 and 2"):
        Anatomy.of(model)


def test_a_model_without_one_decoder_is_refused():
    """BLT groups bytes by a small model of its own."""
    model = tiny("llama")
    vars(model.config)["hidden_size"] = None
    with refused("LlamaForCausalLM", "names no hidden size", "register"):
        Anatomy.of(model)


def test_streams_of_tokens_side_by_side_are_refused():
    """ProphetNet's last token is of another stream than its logits."""
    small = {"vocab_size": 60, "hidden_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "ngram": 2}
    small |= {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 28}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("prophetnet", **small))
    with refused("ProphetNetForCausalLM", "several streams of tokens", "ngram"):
        Anatomy.of(model)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_model_without_feed_forwards_is_refused(name):
    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    if name == "mamba2":
        small |= {"num_heads": 4, "head_dim": 8, "n_groups": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **small))
    with refused(type(model).__name__, "no FFN neurons", "register"):
        Anatomy.of(model)


def test_attention_alone_and_encoder_decoders_are_refused():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp = nn.Identity()
    with refused("LlamaForCausalLM", "no FFN neurons"):
        Anatomy.of(model)
    model.config.is_encoder_decoder = True
    with refused("encoder-decoder"):
        Anatomy.of(model)


def test_a_feed_forward_shared_between_layers_is_refused():
    """Its neurons would have two addresses, and an edit of one would silently be an edit of the other."""
    model = tiny("llama", num_hidden_layers=3)
    model.model.layers[2].mlp = model.model.layers[0].mlp
    with refused("LlamaForCausalLM", "model.layers.0.mlp.down_proj", "shared", "0 and 2"):
        Anatomy.of(model)


def test_an_adapter_beside_the_feed_forward_is_not_taken_for_it():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.adapter = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
    assert [site.down.rpartition(".")[2] for site in Anatomy.of(model).sites] == ["down_proj"] * 2


class Folded(nn.Module):
    """A foreign block: the halves of its width have a projection each, which structure alone does not put together."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.ModuleList([nn.Linear(16, 6).double() for _ in range(2)])
        self.back = nn.Linear(12, 16).double()

    def forward(self, x):
        return self.back(torch.relu(torch.cat([half(x) for half in self.into], -1)))


def foreign():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp = Folded()
    return model


def folded_sites(model) -> list[Site]:
    blocks = [f"model.layers.{n}" for n in range(len(model.model.layers))]
    return [
        Site(n, -1, 12, block, f"{block}.mlp.back", (f"{block}.mlp.into.0", f"{block}.mlp.into.1"))
        for n, block in enumerate(blocks)
    ]


def check_foreign(model) -> None:
    assert Anatomy.of(model).sizes == [12, 12]
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        plain = model(tokens).logits
        with edit(model, [12 + 5], 2.0):
            edited = model(tokens).logits
        model.model.layers[1].mlp.back.weight[:, 5] *= 2
        assert torch.equal(model(tokens).logits, edited)
    assert not torch.equal(plain, edited)


def test_register_teaches_a_foreign_block(monkeypatch):
    model = foreign()
    with refused("no FFN neurons"):
        Anatomy.of(model)
    monkeypatch.setattr(discovery, "_REGISTRY", {})
    register("llama", folded_sites)
    check_foreign(model)


def test_an_installed_package_teaches_a_foreign_block(monkeypatch, tmp_path):
    """A real entry point: a package folder on the path, found by importlib.metadata."""
    model = foreign()
    model.config.model_type = "folded_llama"
    info = tmp_path / "folded_llama-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: folded-llama\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[neuronllm.anatomy]\nfolded_llama = folded_llama_sites:find\n")
    (tmp_path / "folded_llama_sites.py").write_text("from tests.test_anatomy import folded_sites as find\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_foreign(model)
    monkeypatch.delitem(sys.modules, "folded_llama_sites")


def test_survives_a_file():
    import json

    anatomy = Anatomy.of(ragged())
    again = Anatomy.from_dict(json.loads(json.dumps(anatomy.to_dict())))
    assert again == anatomy and again.n_neurons == 75
    assert again.same_layout(anatomy) and not again.same_layout(Anatomy.of(tiny("llama")))
    assert Anatomy.of(tiny("llama")).same_layout(Anatomy.of(tiny("opt")))  # modules may be called otherwise


@pytest.mark.parametrize("ids", [[-1], [56], [0, 99], [1.5], [True, False]])
def test_ids_that_are_no_neurons(ids):
    anatomy = Anatomy.of(tiny("llama"))
    with refused("neuron ids"):
        anatomy.locate(ids)


@pytest.mark.parametrize("address", [(2, -1, 0), (0, 0, 0), (0, -1, 28), (0, -1, -1)])
def test_addresses_that_are_no_neurons(address):
    with refused(str(address), "llama"):
        Anatomy.of(tiny("llama")).flat(*([part] for part in address))


def test_one_address_needs_no_lists():
    anatomy = Anatomy.of(tiny("llama"))
    assert anatomy.flat(1, -1, 3).tolist() == [31]
    assert [part.tolist() for part in anatomy.locate(31)] == [[1], [-1], [3]]
    assert [len(part) for part in anatomy.locate([])] == [0, 0, 0]
