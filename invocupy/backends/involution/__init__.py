"""The kernels of involution; ``g`` is a :class:`~invocupy.geometry.Geometry`.

::

    forward(x, kernel, g, out)          out[n,c,i,j] = sum_uv kernel[n,c//(C/G),u,v,i,j]
                                                       * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
    grad_x(grad, kernel, g, out)        gradient of x from the gradient of the result
    grad_kernel(grad, x, g, out)        gradient of kernel
    fused_forward(x, features, weight, bias, g, out)
    fused_grad_x(grad, features, weight, bias, g, out)
    fused_grad_span(grad, x, features, weight, g, grad_features, grad_weight, grad_bias)

In the fused functions ``kernel = einsum("kf,nfij->nkij", weight, features) + bias`` reshaped to
(N, G, Kh, Kw, Ho, Wo); it is never stored whole (but in the reference).
"""
