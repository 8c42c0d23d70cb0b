"""start(): seeds, device, precision and its errors."""

import random

import numpy as np
import pytest
import torch

from helpers import session


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_same_seed_same_numbers_everywhere():
    session.start(seed=3, banner=False)
    first = draw()
    session.start(seed=3, banner=False)
    assert draw() == first
    session.start(seed=4, banner=False)
    assert draw() != first


def test_generators_are_independent_of_global_state():
    run = session.start(seed=5, banner=False)
    a = torch.rand(3, generator=run.generator(1))
    torch.rand(10)
    assert torch.equal(a, torch.rand(3, generator=run.generator(1)))
    assert not torch.equal(a, torch.rand(3, generator=run.generator(2)))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_changes_the_arithmetic(precision, dtype):
    run = session.start(device="cpu", precision=precision, banner=False)
    with run.autocast():
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == dtype


def test_banner_names_no_folder(capsys, tmp_path):
    session.start(seed=7, device="cpu", data_root=tmp_path)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "seed 7" in line
    assert str(tmp_path) not in line


def test_data_root_falls_back_to_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    assert session.start(banner=False).data_root == tmp_path
    monkeypatch.delenv("REPRO_DATA")
    assert session.start(banner=False).data_root is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"precision": "fp8"}, "precision"),
        ({"device": "abacus"}, "device"),
        pytest.param(
            {"device": "cuda"},
            "device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
        ),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        session.start(**arguments, banner=False)


def test_missing_data_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        session.start(data_root=tmp_path / "nowhere", banner=False)
