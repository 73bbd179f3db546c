"""Benchmarks of sqat beside transformers, rxlm and naive twins, or beside another checkout of sqat.

`make bench` or `python -m benchmarks.harness all --out results`; docs/benchmarks.md explains the rows.
"""
