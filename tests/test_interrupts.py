"""Ctrl-C, once and twice: what waits for the end of a step, and what is taken for the same press."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from neuronllm.cli import main as cli
from neuronllm.common import interrupts
from neuronllm.common.files import new_folder
from neuronllm.common.interrupts import one_interrupt, undisturbed
from tests.cli.tools import ROWS, write_questions
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.001)  # Python takes the signal between two steps of its own


def handler() -> object:
    return signal.getsignal(signal.SIGINT)


def test_undisturbed_defers_ctrl_c_and_gives_the_handler_back() -> None:
    seen, before = [], handler()
    with pytest.raises(KeyboardInterrupt), undisturbed():
        press()
        press()
        seen.append("through")
    assert seen == ["through"] and handler() is before
    with undisturbed():
        pass
    with undisturbed(stopping=True):
        press()
    thread = threading.Thread(target=lambda: undisturbed().__enter__() or seen.append("thread"))
    thread.start()
    thread.join()
    assert seen == ["through", "thread"] and handler() is before


def test_a_second_press_does_not_break_off_what_the_first_one_began() -> None:
    seen, before = [], handler()
    with pytest.raises(KeyboardInterrupt), one_interrupt():
        try:
            press()
            seen.append("not reached")
        finally:
            press()
            with undisturbed():
                press()
            seen.append("put in order")
    assert seen == ["put in order"] and handler() is before


def test_a_later_press_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "AGAIN", 0.0)
    with one_interrupt():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                press()


def test_other_handlers_and_threads_are_left_alone() -> None:
    before, seen = handler(), []

    def theirs(*_: object) -> None:
        seen.append("theirs")

    signal.signal(signal.SIGINT, theirs)
    try:
        with one_interrupt():
            press()
            press()
        assert handler() is theirs and seen == ["theirs"] * 2
    finally:
        signal.signal(signal.SIGINT, before)

    def in_a_thread() -> None:
        with one_interrupt():
            seen.append("thread" if handler() is before else "changed")

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen[2:] == ["thread"]


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), one_interrupt(), new_folder(tmp_path / "scores", "scores.json") as folder:
        (folder / "scores.safetensors").write_text("half")
        try:
            press()
        finally:
            press()
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Wherever the presses fall, also in the last line itself."""
    before = handler()

    def pressed(*_: object) -> int:
        try:
            press()
        finally:
            press()
        return 0

    monkeypatch.setattr(cli, "_run", pressed)
    assert cli.main(["env"]) == 130 and handler() is before
    assert capsys.readouterr().err == "neuronllm: interrupted\n"
    monkeypatch.setattr(sys, "argv", ["neuronllm", "env"])
    try:
        assert cli.main() == 130 and handler() is signal.SIG_IGN  # until the process is gone
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.005, 0.05])
def test_two_presses_end_a_run_with_130_and_no_traceback(pause: float, tmp_path: Path) -> None:
    tokenizer, folder = byte_level(), tmp_path / "model"
    tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = write_questions(tmp_path / "questions.jsonl", [{**ROWS[0], "id": f"q{n}"} for n in range(600)])
    flags = ("--model", folder, "--questions", path, "--method", "gradient", "--output", tmp_path / "scores", "--quiet")
    command = [sys.executable, "-m", "neuronllm", "attribute", *map(str, flags)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
    state = tmp_path / "scores.partial" / "state-0.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in error and "Exception ignored" not in error
    assert error.splitlines()[-1].startswith("neuronllm: interrupted, ") and "--resume" in error.splitlines()[-1]
    assert not [name for name in state.parent.iterdir() if name.name.startswith(".")]
