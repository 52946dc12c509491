"""How important is each weight? One function a criterion: (model, calibration) -> scores, higher = keep.

Every criterion leaves the model exactly as it was, and gives each prunable weight a score of its own shape (but
`bn_slimming` scores BatchNorms instead, `head_importance` what reads attention heads, and `reap` and its kin experts).
A masked weight is scored by its underlying value, so that a mask can be reconsidered; but a gradient stops at a mask,
and whatever is multiplied by one is 0 there.

A criterion scores single weights. What a structure is worth, `allocate` makes of the scores of its weights.
"""

from ..registry import renamed
from .depth import AngularDistance, BlockInfluence, block_influence, glu_peak_to_peak
from .experts import expert_frequency, expert_norm, reap
from .gradients import fisher, gradient, grasp, synflow, taylor, taylor_sum
from .heads import head_importance
from .registry import CRITERIA, by_name, register
from .weights import Mama, Random, bn_slimming, fpgm, lamp, magnitude, magnitude_l2, random, wanda

__getattr__ = renamed(
    __name__,
    {"Criterion": "prunelab.core.Criterion", "Grasp": "prunelab.criteria.gradients.Grasp"}
    | {"angular_distance": "prunelab.criteria.depth.angular_distance"},
)
__all__ = [
    "CRITERIA", "AngularDistance", "BlockInfluence", "Mama", "Random", "block_influence", "bn_slimming", "by_name",
    "expert_frequency", "expert_norm", "fisher", "fpgm", "glu_peak_to_peak", "gradient", "grasp", "head_importance",
    "lamp", "magnitude", "magnitude_l2", "random", "reap", "register", "synflow", "taylor", "taylor_sum", "wanda",
]  # fmt: skip
