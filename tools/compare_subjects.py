"""What compare_probe.py asks numbers of: the bundled model on its tasks, and twelve tiny random models.

Only public names of neuronllm are used and every option is given, because modules may move and defaults may change
between the commits that are compared. For the same reason nothing of tests/ is imported: the tiny models are described
here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

POSITIONS, BACKENDS = ("answer", "all"), ("fast", "reference")
# Every method of the commits so far with its objective and options. Few steps: plain passes take minutes otherwise.
METHODS: dict[str, dict[str, Any]] = {
    "gradient": {"objective": "logp_options"},
    "neurgrad": {"objective": "p_vocab"},
    "relp": {"objective": "logp_options", "attention": "live"},
    "ace": {
        "objective": "logp_options",
        "steps": 5,
        "quadrature": "midpoint",
        "mask": "consistent",
        "tau": 0.6,
        "z": 0.01,
    },
    "qrnca": {
        "objective": "p_vocab",
        "steps": 5,
        "quadrature": "right",
        "threshold": 0.2,
        "common": 0.3,
        "compat": None,
    },
    "knowledge": {
        "objective": "p_vocab",
        "steps": 5,
        "quadrature": "endpoints",
        "threshold": 0.3,
        "share": 0.5,
    },
    "exact": {"objective": "logp_options", "factor": 0.0},
    "logprob": {"objective": "logp_options"},
    "activation": {"objective": None, "statistic": "value"},
    "contrast": {"objective": None},
    "random": {"objective": None, "seed": 0},
}
DEAR = ("exact", "logprob")  # too many plain passes for the bundled model
TASKS = ("entailment", "facts", "ordering", "sentiment")

_MIXTURE = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
_LOCAL = {"intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 96, "n_inner": 28}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
_GROUPED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
_DEEPSEEK = {"first_k_dense_replace": 1, "head_dim": None, "num_key_value_heads": 4, "moe_intermediate_size": 8}
# The type of the weights and what each configuration says beyond _COMMON; None takes a setting away.
TINY: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "llama": (torch.float32, {}),
    "gemma2": (torch.float32, {"sliding_window": 8, "query_pre_attn_scalar": 4}),
    "phi3": (torch.bfloat16, {}),
    "gpt2": (torch.float64, _GPT2),
    "gpt_neox": (torch.float32, {}),
    "opt": (torch.float16, {"ffn_dim": 28, "word_embed_proj_dim": 16}),
    "falcon": (torch.float32, {"head_dim": None, "ffn_hidden_size": 28, "new_decoder_architecture": False}),
    "lfm2": (torch.float32, {"layer_types": ["conv", "full_attention"], "block_multiple_of": 4}),
    "mixtral": (torch.float32, _LOCAL),
    "qwen2_moe": (torch.bfloat16, _MIXTURE | {"shared_expert_intermediate_size": 20}),
    "deepseek_v3": (torch.float32, _DEEPSEEK | _GROUPED | _LATENT),
    "gpt_oss": (torch.float32, _LOCAL | {"sliding_window": 8}),
}
VOCABULARY = 60
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass
class Subject:
    """A model and what it is asked: `nl.Question`s with a tokenizer, `nl.Prompt`s without."""

    nl: Any
    name: str
    model: Any
    tokenizer: Any
    search: list[Any]
    held_out: list[Any]
    unrelated: list[Any]
    batch_size: int | str
    _known: dict[Any, Any] = field(default_factory=dict)  # what several kinds of results are made of

    @property
    def wording(self) -> dict[str, Any]:
        return {"template": "plain", "batch_size": self.batch_size, "progress": False}

    def worded(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Of prompts, which are worded already, neither template nor orders is asked for."""
        return asked if self.tokenizer is not None else {k: asked[k] for k in asked.keys() - {"template", "orders"}}

    def attribute(self, method: str, **changed: Any) -> Any:
        asked = {"positions": "answer", "orders": "rotate", "items": "all", "keep": "mean", "k": 100}
        asked |= {"keep_dtype": torch.float32, "backend": "fast", "dtype": None, **self.wording}
        asked |= METHODS[method]
        # Contrast needs answers of both kinds, which a few questions may lack.
        questions = self.held_out[:12] if method == "contrast" else self.search
        return self.nl.attribute(self.model, self.tokenizer, questions, method, **self.worded(asked | changed))

    def scores(self, method: str, positions: str, backend: str = "fast") -> Any:
        key = (method, positions, backend)
        if key not in self._known:
            self._known[key] = self.attribute(method, positions=positions, backend=backend)
        return self._known[key]

    @property
    def neurons(self) -> Any:
        return self.scores("gradient", "all").find(good=6, bad=6)

    def evaluate(self, neurons: Any, **changed: Any) -> Any:
        asked = {"mode": None, "good": None, "bad": None, "positions": None, "controls": 4, "seed": 3}
        asked |= {"unrelated": None, "orders": "none", **self.wording}
        return self.nl.evaluate(self.model, self.tokenizer, self.held_out, neurons, **self.worded(asked | changed))

    def tune(self, criterion: str, margin: float, positions: tuple[str, ...]) -> Any:
        key = (criterion, margin, positions)
        if key not in self._known:
            asked = {"ks": (2, 6), "factors": (0.0, 0.5, 1.5, 2.0), "positions": positions, "criterion": criterion}
            asked |= {"margin": margin, "orders": "none", **self.wording}
            self._known[key] = self.nl.tune(
                self.model, self.tokenizer, self.neurons, self.held_out, **self.worded(asked)
            )
        return self._known[key]

    def logits(self) -> Tensor:
        """Of the first prompt, by the model itself."""
        prompt = self.search[0]
        if self.tokenizer is not None:
            prompt = self.nl.render(self.tokenizer, [prompt], orders="none", template="plain")[0]
        with torch.no_grad():
            return self.model(torch.tensor([prompt.input_ids])).logits[0]


def subject_of(nl: Any, name: str) -> Subject:
    return _task(nl, name) if name in TASKS else _tiny(nl, name)


def _task(nl: Any, name: str) -> Subject:
    model, tokenizer = nl.load_model("demo", dtype="auto", device_map=None)
    other = TASKS[TASKS.index(name) - 1]

    def some(task: str, split: str, limit: int) -> list[Any]:
        return nl.load_questions(nl.demo_task(task, split), limit=limit)

    held_out, unrelated = some(name, "test", 24), some(other, "test", 12)
    return Subject(nl, name, model, tokenizer, some(name, "search", 3), held_out, unrelated, "auto")


def _tiny(nl: Any, name: str) -> Subject:
    """Prompts in batches of three, so that batches are ragged; larger weights than usual, so that every edit shows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype, special = TINY[name]
    settings = {key: value for key, value in (_COMMON | special).items() if value is not None}
    # Scaled-dot-product attention leaves Gemma 2's soft cap out.
    chosen = {"attn_implementation": "eager"} if name == "gemma2" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings), **chosen)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return Subject(nl, name, model.to(dtype).eval(), None, *_prompts(nl), 3)


def _prompts(nl: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """For searching, for judging, and unrelated ones: two orders of each question, with a start that all share."""
    generator = torch.Generator().manual_seed(7)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    start, found = tokens(3), []
    pairs = [(3 + 2 * k, 4 + 2 * k) for k in range(3)]
    option_ids: Any = [[[first], [second]] for first, second in pairs]
    try:
        nl.Prompt(input_ids=[3], option_ids=option_ids, answer=0)
    except nl.InputError:  # older commits, in which an option is a list of single tokens
        option_ids = [list(pair) for pair in pairs]
    for n in range(15):
        stem = start + tokens(4 + n % 3)
        for shift in range(2):
            order = tuple((k + shift) % 3 for k in range(3))
            what = {"question_id": f"q{n}", "order": order, "template": "plain"}
            ids = stem + tokens(2 + n % 2 + shift)
            found.append(nl.Prompt(input_ids=ids, option_ids=option_ids, answer=order.index(n % 3), **what))
    return found[:6], found[6:22], found[22:]
