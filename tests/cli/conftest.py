"""A model with its tokenizer and a file of questions, as the command line is given them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.tools import write_questions
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_level()
    tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def questions(tmp_path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")
