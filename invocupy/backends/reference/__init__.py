"""The specification of every op in plain array code, for NumPy and CuPy: read it with the table.

It is not optimised. Half types are computed in float32.
"""
