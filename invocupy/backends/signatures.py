"""The contract of all ops: the functions of an op's module in every wing.

A row of :data:`TABLE` lists the inputs and results of a function with their shapes, and its
formula. ``?`` marks an array that may be None, and names without a shape are not arrays: ``g`` is a
:class:`~invocupy.geometry.Geometry`; ``window`` is (stride, padding, dilation), or for pooling
(size, stride, padding), a pair each. sh, ph, dh are the vertical stride, padding and dilation, and
sw, pw, dw the horizontal ones. An involution has one, two or three spatial axes: ``*S`` are the
sizes of the image, ``*O`` of the result and ``*K`` of the kernel, T is G times the product of
``*K``; a position i and a tap u have an index for each axis. A test holds the modules to the table.

Arrays are C-contiguous, of one floating dtype that the wing supports, of the right shapes, on one
device, and not empty. Results are the last arguments; they are filled completely and never read,
and inputs are not modified. There are no checks and no state that changes a result; all sums are
gathers, so the same call gives the same bits. Half types accumulate in float32. Per-channel arrays
of batch_norm are float64 for float64 arrays and float32 otherwise; sums and moments may be float64.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from invocupy.arrays import Array

TABLE = """
involution      kernel = weight @ features + bias in the fused functions, and never stored whole
  forward(x[N,C,*S], kernel[N,G,*K,*O], g -> out[N,C,*O])
    out[n,c,i] = sum_u kernel[n,c//(C/G),u,i] * x[n,c,i*stride+u*dilation-padding]
  grad_x(grad[N,C,*O], kernel[N,G,*K,*O], g -> out[N,C,*S])
    the transpose of forward in x
  grad_kernel(grad[N,C,*O], x[N,C,*S], g -> out[N,G,*K,*O])
    sum over the group's channels of grad[n,c,i] * x[n,c,i*stride+u*dilation-padding]
  fused_forward(x[N,C,*S], features[N,F,*O], weight[T,F], bias[T], g -> out[N,C,*O])
  fused_grad_x(grad[N,C,*O], features[N,F,*O], weight[T,F], bias[T], g -> out[N,C,*S])
  fused_grad_span(grad[N,C,*O], x[N,C,*S], features[N,F,*O], weight[T,F], g
                  -> grad_features[N,F,*O], grad_weight[T,F], grad_bias[T])
    grad_kernel, pushed through the product that makes the kernel

convolution     zero outside x
  forward(x[N,C,H,W], weight[O,C/G,Kh,Kw], bias?[O], window -> out[N,O,Ho,Wo])
    out[n,o,i,j] = bias[o] + sum_cuv weight[o,c,u,v] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
  grad_x(grad[N,O,Ho,Wo], weight[O,C/G,Kh,Kw], window -> out[N,C,H,W])
  grad_weight(grad[N,O,Ho,Wo], x[N,C,H,W], window -> out[O,C/G,Kh,Kw], grad_bias?[O])

pointwise       the 1x1 convolution of P pixels of an image in a row
  forward(x[N,C,P], weight[O,C], bias?[O] -> out[N,O,P])
    out[n,o,p] = bias[o] + sum_c weight[o,c] * x[n,c,p]
  grad_x(grad[N,O,P], weight[O,C], base?[N,C,P] -> out[N,C,P])
    out[n,c,p] = base[n,c,p] + sum_o weight[o,c] * grad[n,o,p]; base may be out
  grad_weight(grad[N,O,P], x[N,C,P] -> out[O,C], grad_bias?[O])
    out[o,c] = sum_np grad[n,o,p] * x[n,c,p] and grad_bias[o] = sum_np grad[n,o,p]

pooling         every window meets x, and only its part in x counts; the last may pass the padding
  max_pool(x[N,C,H,W], window -> out[N,C,Ho,Wo], winner[N,C,Ho,Wo])
    out is the largest value, NaN the largest of all; winner (int32 or int64) says where the first
    of equal ones stands in the plane of x
  max_pool_grad(grad[N,C,Ho,Wo], winner[N,C,Ho,Wo], window -> out[N,C,H,W])
    the sum of grad over the windows that a pixel wins
  avg_pool(x[N,C,H,W], scale[Ho,Wo], window -> out[N,C,Ho,Wo])
    scale[i,j] * the sum of the window
  avg_pool_grad(grad[N,C,Ho,Wo], scale[Ho,Wo], window -> out[N,C,H,W])

batch_norm      h = grad where out > 0, else 0; h = grad if out is None
  moments(x[N,C,H,W] -> mean[C], var[C])
    mean and biased variance, without the cancellation of E[x^2] - E[x]^2
  forward(x[N,C,H,W], scale[C], shift[C], residual?[N,C,H,W], relu -> out[N,C,H,W])
    scale[c] * x + shift[c] (+ residual), then max(., 0) if relu; NaN stays NaN
  grad_sums(grad[N,C,H,W], x[N,C,H,W], out?[N,C,H,W], mean[C] -> sum_grad[C], sum_grad_x[C])
    sum_grad[c] = sum h and sum_grad_x[c] = sum h * (x - mean[c])
  grad_x(grad[N,C,H,W], x[N,C,H,W], out?[N,C,H,W], a[C], b[C], c[C]
         -> grad_x[N,C,H,W], grad_residual?[N,C,H,W])
    grad_x = a[c] * h + b[c] * x + c[c] and grad_residual = h
  fold(mean[C], var[C], weight[C], bias[C], eps -> inverse[C], scale[C], shift[C])
    inverse = 1 / sqrt(var + eps), scale = weight * inverse, shift = bias - mean * scale
  coefficients(scale[C], inverse[C], mean[C], sum_grad[C], sum_grad_x[C], count
               -> b[C], c[C], grad_weight[C])
    of grad_x, whose a is scale, by moments of the batch; grad_weight = sum_grad_x * inverse
  running(old_mean[C], old_var[C], mean[C], var[C], momentum, unbiased -> new_mean[C], new_var[C])
    (1 - momentum) * old + momentum * (mean, unbiased * var)

perceptron      h = relu(first @ x + offset), never stored; weights and their gradients are a
                Perceptron, the gradients float64
  covariance(x[N,C,P], mean[C] -> out[C,C])
    the mean of (x[c] - mean[c]) * (x[d] - mean[d]), float64
  forward(x[N,C,P], weights, groups -> out[N,F,P], out_grouped[N,G*O,P])
    out = dense @ h + bias; out_grouped is, for each group, its columns of grouped @ its h
  backward(grad[N,F,P], grad_grouped[N,G*O,P], x[N,C,P], weights, groups
           -> grad_x[N,C,P], grad_weights)

involution_sum  of f = relu(scale * z + shift): stride 1, and a padding that keeps the size
  forward(x[N,G*O,H,W], z[N,F,H,W], scale[F], shift[F], weight[T,F], bias[T],
          offset[O], g -> out[N,O,H,W])
    offset + the sum over the groups of involution's fused_forward(x, f, weight, bias)
  backward(grad[N,O,H,W], x[N,G*O,H,W], z[N,F,H,W], scale[F], shift[F], weight[T,F],
           bias[T], g -> grad_x[N,G*O,H,W], grad_z[N,F,H,W], grad_weight[T,F],
           grad_bias[T])
    grad_z is that of scale * z + shift; those of parameters are float64

involution_block  a block of the article's network, see invocupy.ops.block: parameters are weight
                and bias of expand, its norm, reduce, a norm, span, project and a last norm
  forward(x[N,O,H,W], parameters, moments, eps, relu, g -> out[N,O,H,W])
    evaluation: x + act(involution_sum of both results of the perceptron), act a ReLU if relu;
    moments are mean and variance of each norm, which folds into the convolution before it with its
    eps
  train(x[N,O,H,W], parameters, eps, relu, g -> out[N,O,H,W], kept)
    the same with the moments of the batch; kept is a Kept
  gradients(grad[N,O,H,W], x[N,O,H,W], parameters, kept, eps, relu, g
            -> grad_x[N,O,H,W], grads)
    of train, by what it left in kept; grads are those of the parameters. A bias before a norm of
    the batch has the gradient 0
  running(stats, old, momenta, unbiased -> new)
    running statistics by the stats of a Kept: old and new are, for each norm, (mean, variance, how
    many batches), of which the first two become (1 - momentum) * old + momentum * that of the
    batch, with unbiased * variance

expansion       y = gamma * (weight @ x + bias - mean) / sqrt(var + eps) + beta, by moments of the
                batch, then max(y, 0) if relu
  forward(x[N,C,P], weight[O,C], bias?[O], gamma[O], beta[O], eps, relu
          -> out[N,O,P], mean[O], var[O], kept[C+C*C+O*C+O])
    kept are mean and covariance of x, and for each o the weights of y = w @ (x - its mean) + w[C]
  backward(grad[N,O,P], x[N,C,P], weight[O,C], gamma[O], kept[C+C*C+O*C+O], eps, relu
           -> grad_x[N,C,P], grad_weight[O,C], grad_bias[O], grad_gamma[O], grad_beta[O])
    grad_bias is 0

sgd             lists of arrays, whose dtypes may differ
  update(params, grads, velocities, decays, *, lr, momentum, nesterov -> )
    (new params, new velocities), new arrays. decays are the weight decays, numbers; a velocity is
    None at the first step, and stays so without momentum
  average(averages, arrays, share -> )
    averages += share * (arrays - averages), in place; those of half types are float32
"""

_OP = r"(?m)^(\w+) .*\n((?: .*\n)+)"
_FUNCTION = r"(?m)^  (\w+)\(([^>]*)->([^)]*)\)"
_ARGUMENT = r"(\*|\w+)(\?)?(?:\[(.*?)\])?"


class Argument(NamedTuple):
    """A parameter of a function; the shape of an array has a size for each axis."""

    name: str
    optional: bool
    shape: tuple[str, ...]


class Function(NamedTuple):
    """What a function is given, and what it fills."""

    given: tuple[Argument, ...]
    filled: tuple[Argument, ...]


class Perceptron(NamedTuple):
    """The parameters of a perceptron at each pixel, or their gradients."""

    first: Array  # (D, C): the hidden layer, D channels in groups
    offset: Array  # (D,)
    dense: Array  # (F, D): reads all hidden channels
    bias: Array  # (F,)
    grouped: Array  # (O, D): reads each group by itself


class Kept(NamedTuple):
    """What a block in training keeps for its gradients."""

    reduced: Array  # (N, F, H, W): what the kernel is made from, before its norm
    shares: Array  # (N, G*O, H, W): what project makes of the hidden channels of each group
    projected: Array  # (N, O, H, W): the involution of the shares, before the last norm
    stats: Array  # one axis: what :meth:`statistics` says, in the dtype of sums

    @staticmethod
    def statistics(channels: int, hidden: int, reduced: int) -> list[slice]:
        """Where in ``stats`` are mean and covariance of x, then mean and variance of each norm."""
        sizes = channels, channels**2, hidden, hidden, reduced, reduced, channels, channels
        return [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]


@cache
def functions() -> dict[str, dict[str, Function]]:
    """The table: its functions, by op and name."""

    def arguments(text: str) -> tuple[Argument, ...]:
        found = re.findall(_ARGUMENT, text)
        return tuple(
            Argument(name, bool(mark), tuple(shape.split(",")) if shape else ())
            for name, mark, shape in found
        )

    return {
        op: {
            name: Function(arguments(given), arguments(filled))
            for name, given, filled in re.findall(_FUNCTION, rows)
        }
        for op, rows in re.findall(_OP, TABLE)
    }
