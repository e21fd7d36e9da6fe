"""Benchmarks: cases, measurements, tables, and the scripts that run them."""
