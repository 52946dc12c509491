"""The few batches and the loss that a criterion may look at, and what it can learn from them.

Everything here runs the model in eval mode. In train mode BatchNorm would update its statistics, and normalize each
sample by the others of its batch, so that "the gradient of one sample" would not exist; dropout would add dice.
The model is left exactly as it was: no gradient is put into `.grad`, and nothing is unfrozen.
"""

from .derivatives import call_with, differentiable, fisher_information, gradients, hessian_gradient, over_samples
from .inputs import input_norms
from .samples import Calibration, Loss, checked, needed, real_inputs, scalar_loss, sequences, unpadded

__all__ = [
    "Calibration", "Loss", "call_with", "checked", "differentiable", "fisher_information", "gradients",
    "hessian_gradient", "input_norms", "needed", "over_samples", "real_inputs", "scalar_loss", "sequences", "unpadded",
]  # fmt: skip
