"""A block of the article's network whose norms have given moments, as in evaluation, in one pass.

``parameters`` are the 14 of :func:`invocupy.ops.block.involution_block`, in its order: 1x1
convolutions C to D, D to F, F to G*Kh*Kw and D to C channels, and three norms; ``moments`` are mean
and variance of each norm, ``eps`` their three numbers. The norms fold into the weights before them,
so that what is computed on x (N, C, H, W) is

::

    h      = max(0, expand @ x + offset)                      (N, D, H, W)
    kernel = span @ max(0, reduce @ h + bias) + span_bias     as (N, G, Kh, Kw, H, W)
    s[n,j*C+o] = sum over channels d of group j of project[o,d] * h[n,d]

    forward(x, parameters, moments, eps, relu, g, out)
                    out[n,o] = x[n,o] + act(shift[o] + sum over groups j of
                               involution of s[n,j*C+o] with kernel[n,j])

``act`` is a ReLU with ``relu``, else nothing; ``g`` is the geometry of the involution of s: stride
1, and a padding that keeps the size.
"""
