"""Figures: grids, steady colours, and controls that redraw in place."""

import IPython.display
import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch

from helpers import plots


def test_a_label_keeps_its_colour():
    assert plots.color("some method") == plots.color("some method")
    assert plots.color("some method") != plots.color("another method")
    assert plots.color("dense") == plots.REFERENCE


def test_image_grid_places_every_image():
    images = torch.rand(5, 3, 4, 6)
    figure = plots.image_grid(images, titles=list("abcde"), columns=3)
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == list("abcde")
    shown = torch.from_numpy(drawn[4].images[0].get_array().data)
    assert torch.allclose(shown, images[4].permute(1, 2, 0))
    plt.close(figure)


@pytest.mark.parametrize(("images", "titles"), [([], None), (torch.rand(2, 1, 3, 3), ["one"])])
def test_image_grid_refuses_what_does_not_fit(images, titles):
    with pytest.raises(ValueError, match="images"):
        plots.image_grid(images, titles)


def test_play_shows_the_first_state_and_redraws_in_place(monkeypatch):
    shown, updates, drawn = [], [], []

    class Handle:
        def update(self, figure):
            updates.append(figure)

    def display(thing, display_id=None):
        shown.append(thing)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)

    def draw(k):
        drawn.append(k)
        return plt.figure()

    slider = ipywidgets.IntSlider(value=3, min=1, max=9, description="k")
    before = plt.get_fignums()
    plots.play(draw, k=slider)
    slider.value = 7
    assert drawn == [3, 7]
    assert [type(thing) for thing in shown] == [ipywidgets.VBox, plt.Figure]
    assert len(updates) == 1
    assert plt.get_fignums() == before
