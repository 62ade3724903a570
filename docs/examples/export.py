"""Own checkpoint -> proven FP16 bundle: python export.py CHECKPOINT RES OUT"""

import sys

import save_deploy

checkpoint, res, out = sys.argv[1:]
try:
    bundle = save_deploy.export(checkpoint, res=int(res), precision="fp16", out=out)
except save_deploy.SaveDeployError as error:  # over its budget: report and frames in OUT.rejected/
    sys.exit(str(error))
bundle.verify()
for row in bundle.report["rows"]:
    agreement = (row["parity"] or {}).get("mask_agreement", 1.0)
    print(f"{row['backend']} {row['precision']}: mask agreement {agreement:.5f}")
