"""The specification of every op in plain array code, for NumPy and CuPy: read with the contract.

Nothing here is fast. Half types are computed in float32.
"""
