"""The few batches and the loss that a criterion may look at, and what it can learn from them.

Everything here runs the model in eval mode. In train mode BatchNorm would update its statistics, and normalize each
sample by the others of its batch, so that "the gradient of one sample" would not exist; dropout would add dice.
The model is left exactly as it was: no gradient is put into `.grad`, and nothing is unfrozen.
"""

from ..registry import moved, renamed
from .derivatives import fisher_information, gradients, hessian_gradient
from .inputs import input_norms
from .samples import Calibration

__all__ = ["Calibration", "fisher_information", "gradients", "hessian_gradient", "input_norms"]

__getattr__ = renamed(
    __name__,
    moved("prunelab.calibration.derivatives", "call_with differentiable over_samples")
    | moved("prunelab.calibration.samples", "Loss checked needed real_inputs scalar_loss sequences unpadded"),
)
