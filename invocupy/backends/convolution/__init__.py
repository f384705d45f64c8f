"""Convolution of x (N, C, H, W) with weight (O, C/groups, Kh, Kw), zero outside x.

``window`` is (stride, padding, dilation), a pair each; ``bias`` and ``grad_bias`` may be ``None``.

::

    forward(x, weight, bias, window, out)
                    out[n,o,i,j] = bias[o] + sum over c, u, v of
                                   weight[o,c,u,v] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
    grad_x(grad, weight, window, out)
    grad_weight(grad, x, window, out, grad_bias)
"""
