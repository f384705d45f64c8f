"""The formulas of the CPU backend as plain Numba loops, without optimisation.

Only tests compile them: read them between the array code of :mod:`invocupy.backends.reference` and
the vector code in this folder. They work in any number
of spatial dimensions: images are (N, C, pixels), kernels (N, G, taps, positions), and ``axes`` are
the tuples (sizes of the image, of the window and of the result, stride, padding, dilation). Sums
are float64; a gradient is written as the transpose of its formula: the same loop, with the product
added to what was read before.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit


@njit
def seen(axes):
    """Each position, tap and pixel that it sees through the tap, by their numbers."""
    sizes, taps, positions, stride, padding, dilation = axes
    for i, position in enumerate(np.ndindex(positions)):
        for t, tap in enumerate(np.ndindex(taps)):
            pixel, inside = 0, True
            for a in range(len(sizes)):
                place = position[a] * stride[a] + tap[a] * dilation[a] - padding[a]
                inside = inside and 0 <= place < sizes[a]
                pixel = pixel * sizes[a] + place
            if inside:
                yield i, t, pixel


@njit
def involution(image, kernel, axes, out):
    """The kernel differs by position and is shared by a group's channels."""
    channels, total = image.shape[1] // kernel.shape[1], np.zeros(out.shape)
    for i, t, pixel in seen(axes):
        for n, c in np.ndindex(out.shape[:2]):
            total[n, c, i] += kernel[n, c // channels, t, i] * image[n, c, pixel]
    out[...] = total


@njit
def involution_grads(grad, image, kernel, axes, grad_image, grad_kernel):
    """Both gradients of :func:`involution`; the results must be zeros before."""
    channels = image.shape[1] // kernel.shape[1]
    for i, t, pixel in seen(axes):
        for n, c in np.ndindex(grad.shape[:2]):
            g = c // channels
            grad_image[n, c, pixel] += kernel[n, g, t, i] * grad[n, c, i]
            grad_kernel[n, g, t, i] += image[n, c, pixel] * grad[n, c, i]


@njit
def convolution(image, weight, bias, axes, out):
    """The weight (O, C/G, taps) is the same at all positions."""
    channels, total = weight.shape[1], np.zeros(out.shape)
    outputs = len(weight) * channels // image.shape[1]  # of a group
    for i, t, pixel in seen(axes):
        for n, o, c in np.ndindex(len(out), len(weight), channels):
            total[n, o, i] += weight[o, c, t] * image[n, o // outputs * channels + c, pixel]
    for o in range(len(weight)):
        out[:, o] = total[:, o] + bias[o]


@njit
def convolution_grads(grad, image, weight, axes, grad_image, grad_weight, grad_bias):
    """All gradients of :func:`convolution`; the results must be zeros before."""
    channels = weight.shape[1]
    outputs = len(weight) * channels // image.shape[1]
    for n, o, i in np.ndindex(grad.shape):
        grad_bias[o] += grad[n, o, i]
    for i, t, pixel in seen(axes):
        for n, o, c in np.ndindex(len(grad), len(weight), channels):
            k = o // outputs * channels + c
            grad_image[n, k, pixel] += weight[o, c, t] * grad[n, o, i]
            grad_weight[o, c, t] += image[n, k, pixel] * grad[n, o, i]


@njit
def max_pool(image, axes, out, winner):
    """The first of the largest values, NaN the largest of all, and the number of its pixel."""
    out[...], winner[...] = -np.inf, -1
    for i, _, pixel in seen(axes):
        for n, c in np.ndindex(out.shape[:2]):
            value, best = image[n, c, pixel], out[n, c, i]
            first = winner[n, c, i] < 0
            if first or value > best or (np.isnan(value) and not np.isnan(best)):
                out[n, c, i], winner[n, c, i] = value, pixel


@njit
def avg_pool(image, scale, axes, out):
    """``scale`` (positions) times the sum of each window."""
    total = np.zeros(out.shape)
    for i, _, pixel in seen(axes):
        total[:, :, i] += image[:, :, pixel]
    out[...] = scale * total


@njit
def moments(image, mean, var):
    """The mean, then the mean square distance from it."""
    for c in range(image.shape[1]):
        mean[c] = image[:, c].mean()
        var[c] = ((image[:, c] - mean[c]) ** 2).mean()
