"""The 1x1 convolution of x (N, C, P) to (N, O, P), P pixels of an image in a row.

``bias`` and ``grad_bias`` may be ``None``.

::

    forward(x, weight, bias, out)       out[n,o,p] = bias[o] + sum_c weight[o,c] * x[n,c,p]
    grad_x(grad, weight, out)           out[n,c,p] = sum_o weight[o,c] * grad[n,o,p]
    grad_weight(grad, x, out, grad_bias)
                                        out[o,c] = sum_np grad[n,o,p] * x[n,c,p] and
                                        grad_bias[o] = sum_np grad[n,o,p] in one pass
"""
