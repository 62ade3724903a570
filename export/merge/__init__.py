"""Exact rewrites of the eager model for one resolution, each with a proof in float64.

deploy.merge(SaveModel) -> (DeployModel, MergeProof). Approximations (FP16, INT8) are made elsewhere.
"""
