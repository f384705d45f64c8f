"""Involution whose kernel is made on the fly, its results summed over the groups.

What a block of the article's network does after its 1x1 convolution has been moved before the
involution: x (N, G*O, H, W) holds O channels for each group, and the groups' results are added up.
The kernel is never stored; z (N, F, H, W) is what it is made from, before norm and ReLU.

::

    f[n,f,p] = max(0, scale[f] * z[n,f,p] + shift[f])
    kernel   = weight @ f + bias, as (N, G, Kh, Kw, H, W)

    forward(x, z, scale, shift, weight, bias, offset, g, out)
                    out[n,o] = offset[o] + sum over groups j of
                               involution of x[n,j*O+o] with kernel[n,j]
    backward(grad, x, z, scale, shift, weight, bias, g,
             grad_x, grad_z, grad_weight, grad_bias)
                    all gradients in one pass; grad_z is that of scale * z + shift, those of
                    parameters are float64

``g`` is the geometry of the involution of x: stride 1, and a padding that keeps the size.
"""
