"""Weights from elsewhere: files read without the programs that wrote them, names mapped to ours.

``files`` reads each format. ``pickles`` reads the opcodes of a pickle that build data, and
``tensors`` makes the arrays that they build. ``states`` finds the weights in a checkpoint,
``names`` maps their names. A state is a mapping of names to arrays. A name that is missing or left
over is an error unless the caller says otherwise, so a checkpoint either fits exactly or changes
nothing.
"""

from __future__ import annotations

from invocupy.weights.files import read
from invocupy.weights.names import Fit, import_state
from invocupy.weights.pickles import WeightsError

__all__ = ["Fit", "WeightsError", "import_state", "read"]
