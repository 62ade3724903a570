"""Checkpoint -> bundle: merge, trace to ONNX, choose precision, prove parity, write."""
