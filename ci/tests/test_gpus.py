"""Parallel runs on one machine get different GPUs."""

import json
import threading

import nbformat

from helpers import batch, gpus, plan


def test_visible_follows_the_variable(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert gpus.visible() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus.visible() == []


def test_cards_are_shared_out_and_given_back():
    cards, stop = gpus.Cards(["0", "1", "2"]), threading.Event()
    with cards.take(2, stop) as first, cards.take(1, stop) as second, cards.take(0, stop) as none:
        assert first == {"CUDA_VISIBLE_DEVICES": "0,1"}
        assert second == {"CUDA_VISIBLE_DEVICES": "2"}
        assert none == {}
        waiting = threading.Thread(target=lambda: cards.take(1, stop).__enter__())
        waiting.start()
        waiting.join(timeout=0.2)
        assert waiting.is_alive()  # none is free
    waiting.join(timeout=5)
    assert not waiting.is_alive()


def test_more_than_there_are_gets_all_and_none_sets_nothing():
    stop = threading.Event()
    with gpus.Cards(["0"]).take(4, stop) as variables:
        assert variables == {"CUDA_VISIBLE_DEVICES": "0"}
    with gpus.Cards([]).take(4, stop) as variables:
        assert variables == {}


def test_runs_at_the_same_time_see_different_cards(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    notebook = nbformat.read(toy_folder / "toy.ipynb", 4)
    notebook.cells[3].source = (
        "import json, os, time\ntime.sleep(2)\n"
        "print(json.dumps(os.environ.get('CUDA_VISIBLE_DEVICES')))\n"
    )
    notebook.cells = notebook.cells[:4]
    nbformat.write(notebook, toy_folder / "toy.ipynb")
    runs = plan.make_plan(["toy"], profile="gpu", seeds=[0, 1], out=tmp_path)
    assert {o.outcome for o in batch.execute(runs, jobs=2)} == {"ok"}
    seen = [nbformat.read(run.path(".ipynb"), 4).cells[-1].outputs[0].text for run in runs]
    assert {json.loads(text) for text in seen} == {"5", "7"}
