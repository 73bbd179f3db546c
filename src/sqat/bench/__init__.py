"""Benchmarks: this package beside its peers, measured alternately in one run. `sqat bench` runs them."""
