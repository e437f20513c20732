"""Side-by-side benchmarks: ``python -m benchmarks --help``; what they found: docs/benchmarks.md."""
