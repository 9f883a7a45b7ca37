"""Selection from files: against the same array in memory, and one line for every file that is not one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neuronllm.cli.main import main
from neuronllm.select import extremes, files
from neuronllm.select.files import extremes_of_files, parts_of
from tests.checks import refused


@pytest.fixture
def array():
    x = np.random.default_rng(0).standard_normal((37, 41)).astype(np.float32)
    x[3, 4] = np.nan
    return x


@pytest.mark.noext
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, array, dtype, order, monkeypatch):
    x = np.asarray(array.astype(dtype), order=order)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(files, "PIECE", 1 << 10)
    found = extremes_of_files(parts_of(tmp_path / "x.npy"), 20, 10)
    flat = x.ravel(order="A" if order == "C" else "F")
    expected = extremes(flat, 20, 10)
    for end, other in ((found.extremes.largest, expected.largest), (found.extremes.smallest, expected.smallest)):
        assert end.indices.tolist() == other.indices.tolist() and end.values.tolist() == other.values.tolist()
        for value, index in zip(end.values.tolist(), end.indices.tolist(), strict=True):
            part, place = found.locate(index)
            assert part.tensor is None and x[place] == value
    assert (found.extremes.n_nan, found.extremes.n_valid) == (1, 37 * 41 - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_tensors_of_a_file_count_as_one_array(tmp_path, array, dtype, monkeypatch):
    x = torch.from_numpy(array).to(dtype)
    tensors = {"a": x, "b": x.flip(0) * 2, "empty": x[:0], "ids": torch.arange(5)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    monkeypatch.setattr(files, "PIECE", 1 << 11)
    with pytest.warns(UserWarning, match="skipped ids: I64"):
        parts = parts_of(tmp_path / "x.safetensors")
    assert sorted(part.tensor or "" for part in parts) == ["a", "b", "empty"]
    found = extremes_of_files(parts, 50, 50)
    whole = torch.cat([tensors[part.tensor or ""].reshape(-1) for part in parts])
    assert found.extremes.largest.values.tolist() == extremes(whole, 50).largest.values.tolist()
    for end in (found.extremes.largest, found.extremes.smallest):
        for value, index in zip(end.values.tolist(), end.indices.tolist(), strict=True):
            part, place = found.locate(index)
            assert tensors[part.tensor or ""][place].item() == value
    (one,) = parts_of(tmp_path / "x.safetensors", "a")
    assert extremes_of_files([one], 1).extremes.n_valid == 37 * 41 - 1
    with pytest.raises(IndexError):
        found.locate(10**6)


def test_two_files_and_a_report(tmp_path, array, capsys):
    np.save(tmp_path / "one.npy", array)
    np.save(tmp_path / "two.npy", array + 1)
    paths = [str(tmp_path / name) for name in ("one.npy", "two.npy")]
    output = tmp_path / "found.json"
    assert main(["select", *paths, "--largest", "2", "--smallest", "1", "--quiet", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    top = np.unravel_index(np.nanargmax(array), array.shape)
    assert report["largest"][0] | {"value": 0} == {
        "value": 0,
        "file": paths[1],
        "tensor": None,
        "index": [int(i) for i in top],
    }
    assert report["smallest"][0]["file"] == paths[0] and report["n_nan"] == 2
    printed = capsys.readouterr().out
    assert "largest:" in printed and "2 NaN left out" in printed and paths[1] in printed
    assert main(["select", *paths, "--largest", "2", "--output", str(output)]) == 2  # something stands there


@pytest.mark.noext
def test_bad_files_are_one_line(tmp_path, array, capsys):
    np.save(tmp_path / "ints.npy", np.arange(3))
    (tmp_path / "bad.npy").write_bytes(b"nonsense")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "empty.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (tmp_path / "x.txt").write_text("1")
    np.save(tmp_path / "cut.npy", array)
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    save_file({"a": torch.ones(2), "b": torch.ones(2).half()}, tmp_path / "two.safetensors")
    for name, part in (
        ("none.npy", "no such file"),
        ("ints.npy", "holds int64"),
        ("bad.npy", "not a .npy file"),
        ("bad.safetensors", "not a safetensors file"),
        ("empty.safetensors", "no tensors"),
        ("list.safetensors", "not a safetensors file"),
        ("x.txt", "give a .safetensors or .npy file"),
        ("cut.npy", "ends before its data do"),
    ):
        with refused(name, part):
            parts_of(tmp_path / name)
    with refused("no tensor 'c'", "a, b"):
        parts_of(tmp_path / "two.safetensors", "c")
    with refused("leave out"):
        parts_of(tmp_path / "cut.npy", "c")
    with refused("one dtype", "float16, float32"):
        extremes_of_files(parts_of(tmp_path / "two.safetensors"), 1)
    assert main(["select", str(tmp_path / "two.safetensors")]) == 2
    assert "give --largest K or --smallest K" in capsys.readouterr().err


def test_a_file_that_shrinks_meanwhile(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    parts = parts_of(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:1000])
    with refused("x.npy", "ended while it was read"):
        extremes_of_files(parts, 1)


def safetensors_of(header: object, data: bytes = b"\0" * 32) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


@pytest.mark.noext
@pytest.mark.parametrize(
    ("header", "part"),
    [
        ({"a": entry(data_offsets=[-40, 16])}, "data_offsets"),
        ({"a": entry(data_offsets=[16, 0])}, "backwards"),
        ({"a": entry(data_offsets=[0, 20])}, "span 20 bytes, its shape 16"),
        ({"a": entry(data_offsets=[])}, "data_offsets"),
        ({"a": entry(data_offsets=[0.0, 16.0])}, "data_offsets"),
        ({"a": entry(data_offsets=[32, 48])}, "ends before the data of tensor 'a'"),
        ({"ids": entry(dtype="I64", data_offsets=[0, 48])}, "ends before the data of tensor 'ids'"),
        ({"a": entry(), "b": entry(data_offsets=[8, 24])}, "'a' and 'b' overlap"),
        ({"a": entry(data_offsets=[16, 32])}, "bytes 0 to 16 of its data belong to no tensor"),
        ({"a": entry(), "b": entry(shape=[2], data_offsets=[24, 32])}, "bytes 16 to 24 of its data belong to no"),
        ({"a": entry()}, "bytes 16 to 32 of its data belong to no"),
        ({}, "bytes 0 to 32 of its data belong to no"),
        ({"a": entry(shape=[8], data_offsets=[0, 32]), "b": entry(shape=[0], data_offsets=[4, 4])}, "overlap"),
        ({"a": entry(shape="4")}, "shape"),
        ({"a": entry(shape=[-2, -2])}, "shape"),
        ({"a": entry(shape=[True, 4])}, "shape"),
        ({"a": entry(shape=[float("inf")])}, "shape"),
        ({"a": entry(dtype=["F32"])}, "dtype"),
        ({"a": entry(dtype=5)}, "dtype"),
        ({"a": {}}, "dtype"),
        ({"a": 3}, "JSON object"),
        ([], "JSON object"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_headers_of_safetensors_that_cannot_be(tmp_path, header, part):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_of(header))
    with refused(str(path), part):
        parts_of(path)


def test_a_safetensors_header_may_hold_what_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"__metadata__": {"format": "pt"}, "a": entry(), "none": entry(shape=[0, 9], data_offsets=[16, 16])}
    path.write_bytes(safetensors_of(header | {"odd": entry(dtype="F6", data_offsets=[16, 32])}))
    with pytest.warns(UserWarning, match="skipped odd: F6"):
        assert [part.shape for part in parts_of(path)] == [(4,), (0, 9)]


@pytest.mark.noext
@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}", "shape (-2, -2)"),
        ("(((((", "not a .npy file"),
        ("(" * 5000, "not a .npy file"),
        ("{[]: 1}", "not a .npy file"),
    ],
)
def test_headers_of_npy_that_cannot_be(tmp_path, header, part):
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 16)
    with refused(str(path), part):
        parts_of(path)


def test_files_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "ver9.npy").write_bytes(b"\x93NUMPY\x09\x00" + b"\0" * 40)
    with refused("ver9.npy", "version 9.0"):
        parts_of(tmp_path / "ver9.npy")
    (tmp_path / "folder.npy").mkdir()
    with refused("folder.npy", "is a folder"):
        parts_of(tmp_path / "folder.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with refused("pipe.npy", "is not a regular file"):
        parts_of(tmp_path / "pipe.npy")
    np.save(tmp_path / "x.npy", np.ones(3))
    parts = parts_of(tmp_path / "x.npy")

    def denied(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with refused("x.npy", "cannot be read: Permission denied"):
        parts_of(tmp_path / "x.npy")
    with refused("x.npy", "cannot be read: Permission denied"):
        extremes_of_files(parts, 1)


def test_many_dimensions_are_located(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_of({"a": entry(shape=[1] * 80 + [2, 2])}, np.float32([1, 2, 4, 3]).tobytes()))
    found = extremes_of_files(parts_of(path), 1)
    assert found.locate(found.extremes.largest.indices[0])[1] == (0,) * 80 + (1, 0)


def test_a_reader_that_leaves_ends_it_quietly(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20_000.0))
    command = [sys.executable, "-m", "neuronllm", "select", str(tmp_path / "x.npy"), "--largest", "20000", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"largest:\n"
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait() == 141


def strict(text: str) -> object:
    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_infinite_values_are_texts_in_json(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1.0, np.inf, -np.inf]))
    output = tmp_path / "found.json"
    command = ["select", str(tmp_path / "x.npy"), "--largest", "2", "--smallest", "1", "--quiet"]
    assert main([*command, "--output", str(output)]) == 0
    report = strict(output.read_text())
    assert [row["value"] for row in report["largest"] + report["smallest"]] == ["inf", 1.0, "-inf"]


def test_values_are_printed_to_the_last_digit(tmp_path, capsys):
    np.save(tmp_path / "f64.npy", np.array([0.1, np.nextafter(0.1, 1), -np.inf]))
    np.save(tmp_path / "f32.npy", np.float32([0.1, 1e-30]))
    assert main(["select", str(tmp_path / "f64.npy"), "--largest", "3", "--quiet"]) == 0
    words = capsys.readouterr().out.split()
    assert {"0.1", repr(float(np.nextafter(0.1, 1))), "-inf"} <= set(words)
    assert main(["select", str(tmp_path / "f32.npy"), "--largest", "2", "--quiet"]) == 0
    assert {"0.1", "1e-30"} <= set(capsys.readouterr().out.split())


def test_the_table_names_the_file_where_there_are_several(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("one.safetensors", "two.safetensors")]
    for number, path in enumerate(paths):
        save_file({"a": torch.tensor([float(number)])}, path)
    assert main(["select", *paths, "--largest", "2", "--quiet"]) == 0
    assert f"{paths[1]} a[0]\n" in capsys.readouterr().out
    assert main(["select", paths[0], "--largest", "2", "--quiet"]) == 0
    assert " a[0]\n" in (printed := capsys.readouterr().out) and paths[0] not in printed


def test_with_an_output_few_rows_are_printed(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.arange(50.0))
    command = ["select", str(tmp_path / "x.npy"), "--largest", "50", "--quiet"]
    assert main(command) == 0 and capsys.readouterr().out.count("x.npy[") == 50
    output = tmp_path / "found.json"
    assert main([*command, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("x.npy[") == 20 and f"... 30 more in {output}" in printed
    assert len(strict(output.read_text())["largest"]) == 50


def test_tensors_that_are_skipped_are_named(tmp_path, recwarn):
    path = tmp_path / "x.safetensors"
    header = {"a\n": entry(dtype="F8_E4M3", shape=[16]), "b": entry(data_offsets=[16, 32])}
    path.write_bytes(safetensors_of(header))
    assert [part.tensor for part in parts_of(path)] == ["b"]
    (warning,) = recwarn
    assert f"{path}: skipped a\\n: F8_E4M3 (" in str(warning.message) and "F16, BF16" in str(warning.message)
    parts_of(path, "b")
    assert len(recwarn) == 1
    with refused("holds F8_E4M3"):
        parts_of(path, "a\n")
    with refused("no tensor 'c'", "a\\n, b"):
        parts_of(path, "c")
    many = {str(i): entry(dtype="F99", shape=[0], data_offsets=[0, 0]) for i in range(25)}
    path.write_bytes(safetensors_of(many | {"b": entry(data_offsets=[0, 32], shape=[8])}))
    parts_of(path)
    assert "19: F99 and 5 more (" in str(recwarn[-1].message)


def test_the_command_says_what_it_skips(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_of({"a": entry(dtype="F99"), "b": entry(data_offsets=[16, 32])}))
    command = [sys.executable, "-m", "neuronllm", "select", str(path), "--largest", "1", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and " b[0]" in done.stdout
    (line,) = done.stderr.splitlines()
    assert f"{path}: skipped a: F99 (" in line


def selected(path, encoding: str, **where) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "neuronllm", "select", str(path), "--largest", "9", "--quiet"]
    return subprocess.run(command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": encoding}, **where)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_stays_in_its_line(tmp_path, encoding):
    names = ["\ud800", "é", "a\n  9.0  b[0]\x1b[31m"]
    path = tmp_path / "x.safetensors"
    header = {name: entry(shape=[1], data_offsets=[4 * i, 4 * i + 4]) for i, name in enumerate(names)}
    path.write_bytes(safetensors_of(header, np.float32([3, 2, 1]).tobytes()))
    done = selected(path, encoding, stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr == b""
    accent = "é" if encoding == "utf-8" else "\\xe9"
    assert [line.split(maxsplit=1)[1] for line in done.stdout.decode(encoding).splitlines()[1:-1]] == [
        "\\ud800[0]",
        f"{accent}[0]",
        "a\\n  9.0  b[0]\\x1b[31m[0]",
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3.0))
    with open("/dev/full", "w") as full:
        done = selected(tmp_path / "x.npy", "utf-8", stdout=full)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert "standard output: cannot be written: No space left on device" in line
