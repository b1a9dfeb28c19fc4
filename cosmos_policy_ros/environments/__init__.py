"""Benchmarks that run under an interpreter of their own, behind a pipe."""
