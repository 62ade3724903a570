"""Export of a checkpoint to a bundle: merge, trace, choose precision, prove parity, write."""
