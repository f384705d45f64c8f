"""Batch normalisation of (N, C, H, W) in few passes, with ReLU and a residual in them.

Per-channel arrays (C,) are float64 for float64 arrays and float32 otherwise. ``residual`` and
``out`` may be ``None`` where they are optional.

::

    moments(x, mean, var)               mean and biased variance of each channel, stable (no
                                        E[x^2] - E[x]^2 cancellation), one read of x from memory
    forward(x, scale, shift, residual, relu, out)
                                        out = scale[c] * x + shift[c] (+ residual), then max(., 0)
                                        if relu; NaN stays NaN
    grad_sums(grad, x, out, mean, sum_grad, sum_grad_x)
                                        with h = grad where out > 0 else 0 (h = grad if out is
                                        None): sum_grad[c] = sum h,
                                        sum_grad_x[c] = sum h * (x - mean[c])
    grad_x(grad, x, out, a, b, c, grad_x, grad_residual)
                                        grad_x = a[c] * h + b[c] * x + c[c]; grad_residual = h
                                        (unless None)

What comes between, all on arrays (C,) of one dtype::

    fold(mean, var, weight, bias, eps, inverse, scale, shift)
                                        inverse = 1 / sqrt(var + eps), scale = weight * inverse,
                                        shift = bias - mean * scale
    coefficients(scale, inverse, mean, sum_grad, sum_grad_x, count, b, c, grad_weight)
                                        b and c for grad_x (whose a is scale) where the moments are
                                        those of the batch; grad_weight = sum_grad_x * inverse
    running(old_mean, old_var, mean, var, momentum, unbiased, new_mean, new_var)
                                        (1 - momentum) * old + momentum * (mean, unbiased * var)
"""
