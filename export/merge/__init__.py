"""Exact rewrites of the eager model for one resolution, each proven equal in float64.

deploy.merge(SaveModel) returns (DeployModel, MergeProof). Approximations (FP16, INT8) are separate.
"""
