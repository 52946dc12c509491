"""Maps of agreement: the shares by hand, and what is drawn."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from prunelab.lab.lessons import lesson_05


def keep(*bits):
    return {"a": torch.tensor(bits[:3]), "b": torch.tensor(bits[3:])}


def test_overlaps_by_hand():
    shares = lesson_05.overlaps({"x": keep(True, True, False, True, True), "y": keep(True, False, False, True, False)})
    assert shares.tolist() == [[1.0, 0.5], [1.0, 1.0]]  # all that y keeps x keeps too; half of x's four y keeps
    assert lesson_05.overlaps({"nothing": keep(False, False, False, False, False)}).tolist() == [[0.0]]


def test_a_map_names_both_sides_and_writes_every_share():
    fig, ax = plt.subplots()
    lesson_05.agreement_map(ax, ["x", "y"], np.array([[1.0, 0.25], [0.25, 1.0]]), chance=0.2)
    assert [t.get_text() for t in ax.texts] == ["100%", "25%", "25%", "100%"]
    assert [t.get_color() for t in ax.texts] == ["white", "black", "black", "white"], "each is legible on its square"
    assert [t.get_text() for t in (*ax.get_xticklabels(), *ax.get_yticklabels())] == ["x", "y", "x", "y"]
    plt.close(fig)
