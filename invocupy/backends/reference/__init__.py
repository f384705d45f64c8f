"""The specification of every op in plain array code, for NumPy and CuPy."""
