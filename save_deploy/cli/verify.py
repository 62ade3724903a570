"""save-deploy verify: hashes, golden samples and conformance pack of a bundle."""

from __future__ import annotations

from save_deploy.cli.options import Bundle, Placement
from save_deploy.cli.takes import takes


@takes(Placement, leave_out=["self_test", "threshold"])
def verify(placement: Placement, bundle: Bundle) -> None:
    """Check a bundle's files against their hashes, run its golden samples and conformance pack."""
    from save_deploy.runtime.verify import verify_bundle

    result = verify_bundle(
        bundle, backend=placement.backend, threads=placement.threads, trust=placement.trust
    )
    parity = result.parity
    print(
        f"{bundle}: files intact, {parity.n_frames} golden samples on {result.backend}, "
        f"mask agreement {parity.mask_agreement:.5f}, max abs logit error {parity.max_abs_err:.1e}, "
        f"first mask after {result.first_mask_s:.2f} s"
    )
    for note in result.notes:
        print(f"note: {note}; running the bundle does not need it")
    if (pack := result.conformed) is None:
        print("conformance pack: not run (none in the bundle)")
    else:
        print(
            f"conformance pack: {pack.n_cases} files prepared as in the exporter, logits within "
            f"{pack.logits_err:.1e}, mask agreement {pack.mask_agreement:.5f}"
        )
