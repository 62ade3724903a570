"""Benchmark of forms of one model, each in a separate process, timed in interleaved rounds."""
