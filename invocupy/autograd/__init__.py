"""The tape: :class:`Tensor`, :func:`lift` and :func:`apply`, :class:`no_grad`.

Every result of an operator gets the next serial number; backward takes the reachable tensors
newest first from a heap. The order of serial numbers is the tape: there is no other record, so a
graph lives as long as its last tensor and is freed by reference counting.
"""

from invocupy.autograd.edits import detect_in_place as detect_in_place
from invocupy.autograd.lift import lift as lift
from invocupy.autograd.recording import is_recording as is_recording
from invocupy.autograd.recording import no_grad as no_grad
from invocupy.autograd.tensor import Tensor as Tensor
from invocupy.autograd.tensor import apply as apply
