"""Benchmarks that anyone can run: each shows progress and ends with one flat JSON object."""
