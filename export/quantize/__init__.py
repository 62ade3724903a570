"""Quantization of a float graph with a calibration table: explicit Q/DQ pairs, INT8 or FP8."""

from save_deploy.export.quantize.qdq import insert_qdq
from save_deploy.export.quantize.sites import MatMulSite, find_sites
from save_deploy.export.quantize.weights import FORMATS, quantize_weight

__all__ = ["FORMATS", "MatMulSite", "find_sites", "insert_qdq", "quantize_weight"]
