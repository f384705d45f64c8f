"""Weights of other programs: their files are read without them, their names mapped to ours.

``files`` reads each format. ``pickles`` interprets the opcodes of a pickle that build data, and
``tensors`` builds the arrays. ``states`` finds the weights in a checkpoint, ``names`` maps their
names. A state is a mapping of names to arrays. Missing and unexpected names are errors unless the
caller allows them, so a checkpoint either fits exactly or changes nothing.
"""

from __future__ import annotations

from invocupy.weights.files import read
from invocupy.weights.names import Fit, import_state
from invocupy.weights.pickles import WeightsError

__all__ = ["Fit", "WeightsError", "import_state", "read"]
