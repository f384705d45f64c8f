"""Largest values and means of windows of x (N, C, H, W), of which only the part in x counts.

``window`` is (size, stride, padding), a pair each; every window meets x. The last ones may pass the
padded edge (PyTorch's ``ceil_mode``).

::

    max_pool(x, window, out, winner)          out = the largest value, NaN the largest of all;
                                              winner[n,c,i,j] = where the first of equal ones
                                              stands in the plane of x, int32 or int64
    max_pool_grad(grad, winner, window, out)  out = the sum of grad over the windows it wins
    avg_pool(x, scale, window, out)           out = scale[i,j] * the sum
    avg_pool_grad(grad, scale, window, out)
"""
