"""Paired runs: traces, tables and figures; networks that fold."""

import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from helpers import experiments, folding, kernel_figures, metrics, training
from helpers.session import start


@pytest.mark.parametrize(
    ("steps", "times", "expected"),
    [(7, 60, list(range(7))), (10, 3, [0, 3, 6, 9]), (10, 2, [0, 5, 9])],
)
def test_a_trace_looks_at_spread_steps_and_the_last(steps, times, expected):
    seen = iter(range(99))
    trace = experiments.Trace(lambda: next(seen), steps, times)
    for step in range(steps):
        trace(step)
    assert trace.at == expected
    assert trace.seen == list(range(len(expected)))


RUNS = {
    "SR-STE": [{"accuracy": 90.0}, {"accuracy": 92.0}],
    "other": [{"accuracy": 91.0}, {"accuracy": 93.5}],
}


def test_gains_are_paired_differences_from_the_base(capsys):
    experiments.print_gains(RUNS, "SR-STE", ["accuracy"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("other - SR-STE: accuracy +1.25 [")


def test_slopes_draw_a_line_a_seed_and_references_as_levels():
    figure = experiments.draw_slopes(
        RUNS, {"accuracy": "accuracy [%]"}, {"dense": [{"accuracy": 95.0}]}
    )
    (axis,) = figure.axes
    lines = [list(line.get_ydata()) for line in axis.lines]
    assert lines == [[90, 91], [92, 93.5], [91, 92.25], [95, 95]]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["SR-STE", "other"]
    plt.close(figure)


def test_kernel_figures_show_the_numbers_they_are_given():
    values = torch.tensor([[0.25, 0.5], [0.75, 1.0]])
    figure = kernel_figures.draw_maps([{"one": values, "two": values}], "sparsity")
    assert [t.get_text() for t in figure.axes[1].texts] == ["25", "50", "75", "100"]
    kernel = torch.zeros(4, 8, 2, 2)
    kernel[:, :2, 0, 1] = 1.0
    bars = kernel_figures.draw_kernels({"k": kernel, "l": kernel}, values > 0.5, 50).axes[2].patches
    assert [bar.get_height() for bar in bars] == [0, 25, 0, 0]
    right = kernel_figures.draw_densities(values, values > 0.5, 0.25, "t").axes[1]
    assert [round(bar.get_height()) for bar in right.patches] == [75, 50, 25, 0, 25, 25, 50, 50]
    trace = [{"D": [1.0, 2.0], "S": [values.flatten() > 0.5] * 2}] * 3
    left, strip = kernel_figures.draw_history([0, 5, 9], trace, (2, 2)).axes
    assert [list(line.get_ydata()) for line in left.lines[:2]] == [[1.0] * 3, [2.0] * 3]
    assert strip.images[0].get_array().tolist() == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]
    plt.close("all")


class Twice(nn.Conv2d):
    """A layer that folds: in training form it doubles its output."""

    def forward(self, x):
        return 2 * super().forward(x)

    def merge(self):
        return folding.convolution(2 * self.weight, 2 * self.bias, self.stride, self.padding)


def pair():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten())


def test_pairs_are_replaced_where_nothing_speaks_against_it():
    model, kept = pair(), []

    def make(conv, norm):
        kept.append(norm)
        return nn.Identity()

    names, left = folding.replace_pairs(
        model, lambda c, n: "" if c.out_channels else "x", make, ["2"]
    )
    assert names == ["0"]
    assert left == {"2": "kept dense by choice"}
    assert type(kept[0]) is nn.BatchNorm2d
    assert [type(m).__name__ for m in model] == ["Identity", "Identity", "Conv2d", "Flatten"]
    with pytest.raises(ValueError, match="lacks: \\['9'\\]"):
        folding.replace_pairs(model, lambda c, n: "", make, ["9"])


def test_fold_check_finds_equal_and_unequal_folds():
    model = nn.Sequential(Twice(4, 8, 3, padding=1))
    x = torch.randn(2, 4, 5, 5)
    found = folding.fold_check(model, x, 4, 4)
    assert found["error"] < 1e-12
    assert found["fits"]
    assert found["nonzeros"] == 8 * 4 * 9
    assert found["size"] == 8 * 4 * 9 + 8
    assert not folding.fold_check(model, x, 1, 4)["fits"]
    model[0].merge = lambda: folding.convolution(model[0].weight, model[0].bias, 1, 1)
    assert metrics.largest_difference(folding.merge_model(model), model, x) > 0.1


def test_scores_and_new_norm_statistics():
    session, model = start(seed=0, device="cpu", banner=False), pair()
    x, y = torch.randn(40, 4, 3, 3), torch.randint(8, (40,))
    training.reestimate_norms(model, x, session=session, batch_size=10)
    parts = model[0](x).split(10)
    mean = torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    found = training.scores(model, [(x[:25], y[:25]), (x[25:], y[25:])], session=session)
    logits = model.eval()(x)
    assert found["nll"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(100 * (logits.argmax(1) == y).double().mean().item())
