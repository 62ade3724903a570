"""Exact rewrites of the eager model for one resolution, each with its proof.

merge(SaveModel) -> (DeployModel, MergeProof). A rewrite that is not exact does not exist here.
"""

from save_deploy.export.merge.deploy import DeployModel, merge
from save_deploy.export.merge.forms import REWRITES, TARGETS, Forms, forms_for
from save_deploy.export.merge.proof import MergeProof, RewriteProof

__all__ = [
    "REWRITES",
    "TARGETS",
    "DeployModel",
    "Forms",
    "MergeProof",
    "RewriteProof",
    "forms_for",
    "merge",
]
