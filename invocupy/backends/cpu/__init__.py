"""NumPy arrays on the CPU: compiled by Numba and LLVM, run by threads of our own."""
