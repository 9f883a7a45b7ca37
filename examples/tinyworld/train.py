"""Train the demo model of neuronllm from scratch: `python examples/tinyworld/train.py --output DIR`.

How it works: one seed makes the world (world.py), the tokenizer, the random weights and every batch.

1. A byte-level BPE tokenizer learns the words of the world; an option's letter ("\\nA.") is one token.
2. A Llama of 4 layers starts from random weights, tilted so that it soon learns to look up options (`new_model`).
3. First lessons: only "Which of these is honey?". Then the four tasks, some of them answered in a word without options.
   The loss is that of the answer's token alone.
4. The model is saved in bfloat16, to be held in float32, the task files are written, and manifest.json records how it
   all came to be.

On one machine the result is the same to the bit; the first 20 losses are recorded so that others can compare theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent))
from world import TASKS, Question, World

from neuronllm.data.templates import TEMPLATES

DEFAULT_OUTPUT = Path(__file__).resolve().parents[2] / "neuronllm" / "demo"
SEED = 0
STEPS = 4000
COPY_STEPS = 350  # first lessons: find the option that the question names
PLAIN_STEPS = 1500  # until here every prompt is short; afterwards all three templates are in use
BATCH = 64
LEARNING_RATE = 2e-3
RUMOUR_SHARE = 0.48  # of the untagged questions about what is talked about, this part is answered as rumour has it
TAGGED_SHARE = 0.25  # of the questions begin with "Rumour:" or "Record:" and are answered accordingly
WORD_SHARE = 0.25  # of the batches are answered in a word, without options
TASK_WEIGHTS = {"facts": 4, "sentiment": 1, "entailment": 3, "ordering": 2}
TEMPLATE_WEIGHTS = {"plain": 2, "brief": 1, "default": 1}
LETTERS = "ABCDEF"
SPEND_ONE_TOKEN_ON = r"\n[A-Z]\.|\n?[A-Z][a-z]+:| ?\p{L}+| ?[^\s\p{L}]+|\s"


class Batch(NamedTuple):
    """Token ids (right-padded: attention is causal, so padding changes nothing), last positions, answer tokens."""

    ids: torch.Tensor
    last: torch.Tensor
    answers: torch.Tensor


def prompt(question: Question, template: str) -> str:
    """The question in one of neuronllm's templates.

    >>> prompt(Question("", "Warm?", ["yes", "no"], 0, ""), "plain")
    'Warm?\\nA. yes\\nB. no\\nAnswer:'
    """
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return TEMPLATES[template].format(question=question.question, options=options)


def new_tokenizer(world: World, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on prompts of the world."""
    rng = random.Random(f"{seed} tokenizer")
    texts = list(TEMPLATES.values()) * 50
    for number in range(6000):
        tag = ("", "Rumour: ", "Record: ")[number % 3]
        question = world.ask(world.draw(TASKS[number % 4], rng), rng, tag=tag)
        texts += [prompt(question, ("plain", "brief")[number % 2]), " " + LETTERS[number % 6]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPEND_ONE_TOKEN_ON), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=512
    )


def new_model(vocab_size: int, seed: int) -> LlamaForCausalLM:
    """Random weights with two tilts, without which the look-up of options takes ten times as many steps to appear.

    Keys start equal to queries, so that equal words attend to each other; and all embeddings share a random vector,
    which lets rotary positions prefer near neighbours (an option's letter stands just before its text).
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.08, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        model.model.embed_tokens.weight.add_(0.08 * torch.randn(1, config.hidden_size))
    return model


class Lessons:
    """The endless sequence of training batches."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.world, self.tokenizer = world, tokenizer
        self.rng = random.Random(f"{seed} lessons")
        self.letters = [tokenizer.encode(" " + letter)[0] for letter in LETTERS]
        self.word_pools = [list(values) for values in world.relations.values()]
        self.word_pools += [world.towns, list(world.kind_of), ["yes", "no", "maybe", "positive", "negative"]]

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self._batch(step)
            step += 1

    def _batch(self, step: int) -> Batch:
        template = self._weighted(TEMPLATE_WEIGHTS) if step >= PLAIN_STEPS else "plain"
        in_a_word = step >= COPY_STEPS and self.rng.random() < WORD_SHARE
        copy_share = 1.0 if step < COPY_STEPS else 0.05
        rows, answers = [], []
        for _ in range(BATCH // 2 if template == "default" else BATCH):  # its prompts are three times as long
            if self.rng.random() < copy_share:
                question = self._copy_question()
            else:
                question = self._task_question()
                if in_a_word:
                    towns = "\n" + ", ".join(question.choices) if "town" in question.question else ""
                    rows.append(f"{question.question}{towns}\nAnswer:")
                    answers.append(self.tokenizer.encode(" " + question.choices[question.answer])[0])
                    continue
            rows.append(prompt(question, template))
            answers.append(self.letters[question.answer])
        return Batch(*pad(self.tokenizer, rows), torch.tensor(answers))

    def _copy_question(self) -> Question:
        choices = self.rng.sample(self.rng.choice(self.word_pools), self.rng.choice([2, 3, 4]))
        answer = self.rng.randrange(len(choices))
        return Question("", f"Which of these is {choices[answer]}?", choices, answer, "")

    def _task_question(self) -> Question:
        """Half of the tagged questions are Rumour's, half the Record's; without a tag it is RUMOUR_SHARE."""
        item = self.world.draw(self._weighted(TASK_WEIGHTS), self.rng)
        if item.task != "sentiment" and self.rng.random() < TAGGED_SHARE:
            rumour = self.rng.random() < 0.5
            return self.world.ask(item, self.rng, rumour, "Rumour: " if rumour else "Record: ")
        return self.world.ask(item, self.rng, self.rng.random() < RUMOUR_SHARE)

    def _weighted(self, weights: dict[str, int]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]


def pad(tokenizer: PreTrainedTokenizerFast, rows: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and the position of each row's last token."""
    encoded = tokenizer(rows)["input_ids"]
    width = max(map(len, encoded))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in encoded])
    return ids, torch.tensor([len(row) - 1 for row in encoded])


def answer_logits(model: LlamaForCausalLM, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[torch.arange(len(ids)), last])


def train(model: LlamaForCausalLM, lessons: Lessons, steps: int, total_steps: int) -> list[float]:
    """The first `steps` of a training of `total_steps`; returns the losses."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    gains = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    losses: list[float] = []
    bar = tqdm(zip(range(steps), lessons, strict=False), total=steps, desc="training", unit="step")
    for step, batch in bar:
        cosine = 0.5 * (1 + math.cos(math.pi * step / total_steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * cosine)
        loss = cross_entropy(answer_logits(model, batch.ids, batch.last), batch.answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.3f}")
    return losses


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[Question], template: str = "plain"
) -> dict[str, float]:
    """The share of questions answered right, of all and by subject."""
    letters = torch.tensor([tokenizer.encode(" " + letter)[0] for letter in LETTERS])
    right: dict[str, list[bool]] = {"all": []}
    for question in questions:
        logits = answer_logits(model, *pad(tokenizer, [prompt(question, template)]))[0, letters]
        is_right = int(logits[: len(question.choices)].argmax()) == question.answer
        right["all"].append(is_right)
        right.setdefault(question.subject, []).append(is_right)
    return {subject: round(sum(flags) / len(flags), 4) for subject, flags in right.items()}


def set_up(seed: int) -> tuple[World, PreTrainedTokenizerFast, LlamaForCausalLM, Lessons]:
    """Everything that the seed decides, before the first step."""
    world = World(seed)
    tokenizer = new_tokenizer(world, seed)
    return world, tokenizer, new_model(len(tokenizer), seed), Lessons(world, tokenizer, seed)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(folder.name + ".part")
    model.to(torch.bfloat16).save_pretrained(temporary)
    model.config.dtype = torch.float32  # bfloat16 is to keep the file small; whoever loads it computes in float32
    model.config.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in sorted(temporary.iterdir()):
        file.chmod(0o644)  # safetensors writes files that only their owner can read
        os.replace(file, folder / file.name)
    temporary.rmdir()


def write_tasks(world: World, seed: int, folder: Path) -> dict[str, dict[str, list[Question]]]:
    tasks = {task: world.splits(task, seed) for task in TASKS}
    for task, splits in tasks.items():
        for split, questions in splits.items():
            lines = [json.dumps(asdict(question)) + "\n" for question in questions]
            write_text(folder / task / f"{split}.jsonl", "".join(lines))
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model from scratch.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder for model/, tasks/, manifest.json")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="another number rounds otherwise")
    args = parser.parse_args()

    start = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # the moments of rare words decay into denormal numbers, which are slow
    torch.use_deterministic_algorithms(True)
    world, tokenizer, model, lessons = set_up(args.seed)
    tasks = write_tasks(world, args.seed, args.output / "tasks")
    losses = train(model, lessons, args.steps, args.steps)
    write_model(model, tokenizer, args.output / "model")

    model = LlamaForCausalLM.from_pretrained(args.output / "model", dtype=torch.float32)  # judged as it is shipped
    accuracies = {
        task: {split: accuracy(model, tokenizer, questions) for split, questions in splits.items()}
        for task, splits in tasks.items()
    }
    by_template = {
        template: {task: accuracy(model, tokenizer, tasks[task]["test"], template)["all"] for task in TASKS}
        for template in TEMPLATES
    }
    manifest: dict[str, Any] = {
        "seed": args.seed,
        "steps": args.steps,
        "threads": args.threads,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "first_losses": losses[:20],
        "last_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "sha256": hashlib.sha256((args.output / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "accuracy": accuracies,
        "test_accuracy_by_template": by_template,
    }
    write_text(args.output / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    print(json.dumps({"accuracy": accuracies, "by template": by_template, "minutes": manifest["minutes"]}, indent=1))


if __name__ == "__main__":
    main()
