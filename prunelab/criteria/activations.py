"""Criteria that look at what flows into a layer: inputs, no labels."""

from __future__ import annotations

from torch import nn

from ..calibration import Calibration, input_norms, needed
from ..core import Scores
from .registry import PartialScores, finite_weights, register


@register("wanda")
def wanda(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|W_ij| * norm(X_j): how large the weight's share of an output is on real inputs. Needs inputs, no labels.

    To be compared within each output: scope="row". X_j is input j over all samples and positions; of a convolution,
    column j of the unfolded input, that is, input channel and kernel position. Padding that a dict's `attention_mask`
    marks does not count. A layer whose inputs are not seen (`input_norms` warns of it: experts, recurrent layers) gets
    no scores, and `prune` leaves it as it is. Sun et al. 2023, arXiv 2306.11695.
    """
    weights = finite_weights(model)
    norms = input_norms(model, needed(calib, "wanda"))
    scores = {name: weights[name].abs() * norm for name, norm in norms.items()}
    return scores if len(scores) == len(weights) else PartialScores(scores)
