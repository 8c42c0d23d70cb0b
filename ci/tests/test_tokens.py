"""Pictures of tokens, and the comparison of methods at equal cost."""

import matplotlib.pyplot as plt
import pytest
import torch

from helpers.comparison import Comparison
from helpers.models import vit
from helpers.notebooks import load
from helpers.tokens import TokenViews, draw_gates, draw_schedules, follow, paint_groups, removals


def test_removals_follow_the_running_minimum():
    schedule = [(17, 17), (15, 11), (20, 9), (5, 30)]
    assert removals(schedule, 17).tolist() == [[0, 0], [2, 4], [0, 2], [4, 0]]


def test_schedules_are_drawn_as_bars_that_add_up():
    figure = draw_schedules({"a": [(17, 17), (15, 11)], "b": [(17, 9), (9, 9)]}, 17)
    for axis in figure.axes:
        heights = torch.tensor([patch.get_height() for patch in axis.patches]).view(3, 2)
        assert heights.sum(0)[0] == 17
    assert heights[0].tolist() == [9, 9]
    plt.close(figure)


def test_follow_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        row = torch.arange(12).expand(2, -1)
        members = [[{i} for i in range(12)] for _ in range(2)]
        for survivors, merged in ((10, 3), (6, 0), (5, 2)):
            kept = survivors - merged
            alive = len(members[0])
            order = torch.stack([torch.randperm(alive, generator=generator) for _ in range(2)])
            order = order[:, :survivors]
            destination = torch.randint(0, kept, (2, merged), generator=generator)
            row = follow(row, order, destination if merged else None)
            for b in range(2):
                old = [members[b][i] for i in order[b]]
                members[b] = old[:kept]
                for group, place in zip(old[kept:], destination[b], strict=True):
                    members[b][place] = members[b][place] | group
        for b in range(2):
            for token in range(12):
                place = [i for i, group in enumerate(members[b]) if token in group]
                assert row[b, token] == (place[0] if place else -1)


def test_painted_groups():
    image = torch.rand(3, 4, 4)
    row = torch.tensor([0, 1, 1, -1, 2])  # class token; two patches merged, one pruned, one kept
    picture = paint_groups(image, row, scale=16)
    assert picture.shape == (3, 64, 64)
    mean = image[:, :2].mean((1, 2))
    assert picture[:, 8, 8].allclose(mean)
    assert picture[:, 8, 56].allclose(mean)
    assert (picture[:, 40, 8] == 0).all()
    assert picture[:, 63, 63].equal(image[:, 3, 3])
    assert (picture[:, 32, :32] == 1).all()  # the border below the merged group


def test_views_of_a_compressed_network():
    method = load("diffrate")
    torch.manual_seed(0)
    model = vit(img_size=16, embed_dim=32, depth=3, num_heads=2).eval().requires_grad_(False)
    images, schedule = torch.rand(2, 3, 16, 16), [(17, 17), (15, 9), (6, 6)]
    views = TokenViews(images, model, method.compressed_blocks(model, images, schedule))
    assert views.tokens == [17, 9, 6]
    for block, (prune, kept) in enumerate(((17, 17), (15, 9), (6, 6))):
        rows = views.rows[block]
        assert rows.max() == kept - 1
        assert ((rows >= 0).sum(1) >= prune if block < 2 else (rows >= 0).sum(1) >= 6).all()
        assert (rows[:, 0] == 0).all()  # the class token leads
    probability = model(images).softmax(-1).max(-1)  # after block 0 nothing is lost
    assert len(views.readings[0]) == len(probability.indices) == 2
    assert len(views.draw(1).axes) == 2
    assert len(views.grid(images=(0, 1), blocks=(0, 1, 2)).axes) == 6
    plt.close("all")


def test_gates_are_drawn_with_their_title():
    gate = torch.linspace(1, 0, 5), torch.ones(5), torch.zeros(4)
    figure = draw_gates(torch.arange(4.0), {"step 0": gate, "step 9": gate})
    assert [axis.get_title() for axis in figure.axes[:2]] == ["step 0", "step 9"]
    plt.close(figure)


@pytest.fixture
def compared():
    comparison = Comparison()
    for name, right in (("ours", [1, 1, 1, 0]), ("theirs", [1, 0, 0, 0])):
        comparison.add(name, 0.5, 0.5, torch.tensor(right).float())
    comparison.add("ours", 0.5, 0.6, torch.tensor([1.0, 1, 0, 0]))
    comparison.add("theirs", 0.5, 0.6, torch.tensor([0.0, 0, 1, 0]))
    return comparison


def test_a_lead_is_paired_by_image_and_averaged_over_repeats(compared):
    lead = compared.lead("ours", "theirs", 0.5)
    # per image: (1 + 1)/2 - (1 + 0)/2, (1 + 1)/2 - 0, (1 + 0)/2 - (0 + 1)/2, 0
    assert lead.mean == pytest.approx(100 * (0.5 + 1 + 0 + 0) / 4)
    assert lead.n == 4
    assert lead.low < lead.mean < lead.high


def test_the_table_names_every_method_once_per_target(compared, capsys):
    compared.print_table("ours", [90.0, 91.0])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "90.0 91.0" in lines[1]
    assert "75.0 50.0" in lines[2]
    assert "+37.50" in lines[3]


def test_the_curve_goes_through_the_means(compared):
    figure = compared.draw(95.0, "ours")
    line = next(line for line in figure.axes[0].lines if line.get_label() == "ours")
    assert line.get_xdata()[0] == pytest.approx(0.55)
    assert line.get_ydata()[0] == pytest.approx(62.5)
    plt.close(figure)
