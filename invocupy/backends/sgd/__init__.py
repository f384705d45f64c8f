"""One step of stochastic gradient descent on many parameters.

::

    update(params, grads, velocities, decays, *, lr, momentum, nesterov)
        -> (new params, new velocities)

Lists of the same length; ``decays`` are the weight decays, numbers. A velocity is ``None`` at the
first step and stays so without momentum. The results are new arrays of the dtypes of ``params``,
which may differ.
"""
