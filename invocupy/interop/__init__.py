"""Involution for arrays of other libraries: one module for each, imported only by the user.

``invocupy.interop.torch``, ``invocupy.interop.jax`` and ``invocupy.interop.dask`` each import
their library; nothing else in the package does, and none of them is a dependency. One that is
missing or too old is a :class:`~invocupy.extras.MissingExtra` with the command that installs it.
"""
