"""The formulas of the CPU backend as plain Numba loops: what the vector code computes, unoptimised.

Only tests compile them: this is the form to read between the array code of
:mod:`invocupy.backends.reference` and the vector code beside this module. ``window`` is (stride,
padding, dilation), a pair each; images are (N, C, H, W). Sums are float64; a gradient is written as
the transpose of its formula: the same loop, with the product added to what was read before.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit


@njit
def seen(i, j, taps, window, height, width):
    """Each tap (u, v) through which the position (i, j) sees a pixel (y, x) of the image."""
    (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w) = window
    for u in range(taps[0]):
        for v in range(taps[1]):
            y = i * stride_h + u * dilation_h - pad_h
            x = j * stride_w + v * dilation_w - pad_w
            if 0 <= y < height and 0 <= x < width:
                yield u, v, y, x


@njit
def involution(image, kernel, window, out):
    """The kernel (N, G, Kh, Kw, H', W') differs by position and is shared by a group's channels."""
    channels, taps = image.shape[1] // kernel.shape[1], kernel.shape[2:4]
    for n, c, i, j in np.ndindex(out.shape):
        total = 0.0
        for u, v, y, x in seen(i, j, taps, window, *image.shape[2:]):
            total += kernel[n, c // channels, u, v, i, j] * image[n, c, y, x]
        out[n, c, i, j] = total


@njit
def involution_grads(grad, image, kernel, window, grad_image, grad_kernel):
    """Both gradients of :func:`involution`; the results must be zeros before."""
    channels, taps = image.shape[1] // kernel.shape[1], kernel.shape[2:4]
    for n, c, i, j in np.ndindex(grad.shape):
        for u, v, y, x in seen(i, j, taps, window, *image.shape[2:]):
            g = c // channels
            grad_image[n, c, y, x] += kernel[n, g, u, v, i, j] * grad[n, c, i, j]
            grad_kernel[n, g, u, v, i, j] += image[n, c, y, x] * grad[n, c, i, j]


@njit
def convolution(image, weight, bias, window, out):
    """The weight (O, C/G, Kh, Kw) is the same at all positions."""
    channels, taps = weight.shape[1], weight.shape[2:]
    outputs = len(weight) * channels // image.shape[1]  # of a group
    for n, o, i, j in np.ndindex(out.shape):
        total = float(bias[o])
        for u, v, y, x in seen(i, j, taps, window, *image.shape[2:]):
            for c in range(channels):
                total += weight[o, c, u, v] * image[n, o // outputs * channels + c, y, x]
        out[n, o, i, j] = total


@njit
def convolution_grads(grad, image, weight, window, grad_image, grad_weight, grad_bias):
    """All gradients of :func:`convolution`; the results must be zeros before."""
    channels, taps = weight.shape[1], weight.shape[2:]
    outputs = len(weight) * channels // image.shape[1]
    for n, o, i, j in np.ndindex(grad.shape):
        grad_bias[o] += grad[n, o, i, j]
        for u, v, y, x in seen(i, j, taps, window, *image.shape[2:]):
            for c in range(channels):
                k = o // outputs * channels + c
                grad_image[n, k, y, x] += weight[o, c, u, v] * grad[n, o, i, j]
                grad_weight[o, c, u, v] += image[n, k, y, x] * grad[n, o, i, j]


@njit
def max_pool(image, taps, window, out, winner):
    """The first of the largest values, NaN the largest of all, and where it stands in its plane."""
    for n, c, i, j in np.ndindex(out.shape):
        best, where = -np.inf, -1
        for _, _, y, x in seen(i, j, taps, window, *image.shape[2:]):
            value = image[n, c, y, x]
            if where < 0 or value > best or (np.isnan(value) and not np.isnan(best)):
                best, where = value, y * image.shape[3] + x
        out[n, c, i, j], winner[n, c, i, j] = best, where


@njit
def avg_pool(image, scale, taps, window, out):
    """``scale`` (H', W') times the sum of each window."""
    for n, c, i, j in np.ndindex(out.shape):
        total = 0.0
        for _, _, y, x in seen(i, j, taps, window, *image.shape[2:]):
            total += image[n, c, y, x]
        out[n, c, i, j] = scale[i, j] * total


@njit
def moments(image, mean, var):
    """The mean, then the mean square distance from it."""
    for c in range(image.shape[1]):
        mean[c] = image[:, c].mean()
        var[c] = ((image[:, c] - mean[c]) ** 2).mean()
