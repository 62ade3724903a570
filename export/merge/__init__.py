"""Exact rewrites of the eager model for one resolution, each with its proof.

deploy.merge(SaveModel) -> (DeployModel, MergeProof). A rewrite that is not exact does not exist here.
"""
