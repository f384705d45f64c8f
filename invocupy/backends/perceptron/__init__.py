"""A perceptron at each pixel, whose wide hidden layer is never stored; x is (N, C, P).

``h = relu(first @ x + offset)`` has D channels in G groups of D / G. Two linear maps read it: a
*dense* one, and a *grouped* one that maps each group by itself, with its own columns of
``grouped`` (O, D) and without a bias.

::

    covariance(x, mean, out)            out[c,d] = mean over images and pixels of
                                        (x[c] - mean[c]) * (x[d] - mean[d]), float64
    forward(x, first, offset, dense, bias, grouped, groups, out, out_grouped)
                                        out[n,f,p] = bias[f] + sum_d dense[f,d] * h[n,d,p]
                                        out_grouped[n,g*O+o,p] = sum over d of group g
                                                                 of grouped[o,d] * h[n,d,p]
    backward(grad, grad_grouped, x, first, offset, dense, grouped, groups,
             grad_x, grad_first, grad_offset, grad_dense, grad_bias, grad_weight)
                                        all gradients in one pass; grad_weight is that of grouped.
                                        Those of parameters are float64.
"""
