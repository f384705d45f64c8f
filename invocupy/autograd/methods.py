"""The methods and operators that ops add to Tensor; their types are in ``methods.pyi``."""


class Methods:
    """Filled by :mod:`invocupy.autograd.lift`."""

    __slots__ = ()
