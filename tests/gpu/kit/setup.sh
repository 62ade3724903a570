# Sourced by every step, in the repository's root on the GPU machine. Sets PY, K (this folder), WORK (kept
# between the steps), OUT. SAVE_GPU_DRY=1: on a CPU with a tiny model, to see that the steps run.
export PYTHONUNBUFFERED=1
PY=${PY:-$(command -v python3)}
K=tests/gpu/kit
WORK=${GPU_WORK:-$(dirname "$(mktemp -u)")/save-gpu}
OUT=${OUT:-$WORK/out}
SITE=$WORK/site
BUNDLES=${BUNDLES:-$WORK/bundles}
DRY=${SAVE_GPU_DRY:-}
mkdir -p "$WORK" "$OUT" "$SITE" "$BUNDLES"
export OUT PYTHONPATH="$SITE:$WORK/links${PYTHONPATH:+:$PYTHONPATH}"

say() { echo; echo "== $* [$(date +%T), $SECONDS s]"; }

# The package of this tree, as links: the working directory has only a part of it.
# Laid once: exports of an earlier step may be running from them.
if [ ! -d "$WORK/links/save_deploy" ]; then "$PY" tests/gpu/tree.py "$WORK/links" || exit 1; fi

# Seconds that a part of a step may take; a dry run may be on a busy machine.
within() {
  if [ -n "$DRY" ]; then shift; "$@"; else timeout "$@"; fi
}

# Wheels that were carried; nothing where a package is installed already.
wheels() {
  "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" "$@"
}
has() { "$PY" -P -c "import $1" 2>/dev/null; }

# ONNX Runtime looks for CUDA's libraries beside itself, and a process without torch finds them nowhere else
nvidia_beside() {
  local purelib
  purelib=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  if [ -d "$purelib/nvidia" ]; then ln -sfn "$purelib/nvidia" "$SITE/nvidia"; fi
}

# Cores of the machine: torch is timed on the first half, exports run on the second.
CORES=$(nproc)
HALF=$(((CORES + 1) / 2))
