"""One step of stochastic gradient descent on one parameter.

::

    update(p, grad, velocity, *, lr, momentum, weight_decay, nesterov) -> (new p, new velocity)

``velocity`` is ``None`` at the first step and stays so without momentum. The results are new
arrays of the dtype of ``p``.
"""
