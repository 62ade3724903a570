#!/bin/bash
# Figures of save-deploy on an NVIDIA GPU (docs/gpu.md). In the repository's root:
#
#   bash tests/gpu/kit/kit.sh here [DIR]   all four steps on this machine, results in DIR (default: gpu-results)
#   bash tests/gpu/kit/kit.sh prepare      lays .gpu/ for a machine without a network (about 4 minutes, no GPU)
#   bash tests/gpu/kit/kit.sh check        sizes against the limit of a call: LIMIT MiB with the tree (default: 64)
#   bash tests/gpu/kit/kit.sh calls        prints the steps
set -euo pipefail
K=tests/gpu/kit G=.gpu LIMIT=${LIMIT:-64} CUT=24  # CUT: MiB of the first part of ONNX Runtime's wheel
W=${WHEELS:-$G/wheels}
ORT=onnxruntime-gpu==1.31.1 ORT_FILE=onnxruntime_gpu-1.31.1
SMALL="segment-anything==1.0 soundfile==0.14.0 cffi==2.1.1 pycparser==3.12 pillow==13.0.0"
RTX="tensorrt-rtx-cu13-bindings==1.7.1.116 tensorrt-rtx-cu13-libs==1.7.1.116"

# For the Python and the system of the other machine.
download() {
  local tags="--python-version ${PY_VERSION:-3.12} --implementation cp"
  local n
  for n in 2_28 2_27 2_17 2_24 2_34; do tags="$tags --platform manylinux_${n}_x86_64"; done
  tags="$tags --platform manylinux2014_x86_64 --platform manylinux1_x86_64"
  for n in $SMALL $ORT $RTX; do
    python3 -m pip download -q --no-deps --only-binary=:all: $tags -d $W "$n" || { echo "not to be had: $n"; exit 1; }
  done
  # a package without a wheel: its import name and its version
  ls $W/tensorrt_rtx_cu13-*.whl >/dev/null 2>&1 ||
    python3 -m pip wheel -q --no-deps -w $W tensorrt-rtx-cu13==1.7.1.116
}

prepare() {
  rm -rf $G/[abcd]; mkdir -p $W $G/{a,b,c,d} $G/thin
  download
  cp $W/{segment_anything,soundfile,cffi,pycparser,pillow}-*.whl $G/a/
  local name; name=$(basename $W/$ORT_FILE-*.whl)
  [ -f "$G/thin/$name" ] || python3 $K/thin_wheel.py "$W/$name" -o "$G/thin/$name" --sm "${SM:-90}" --lone
  echo "$name" >$G/a/ort.name
  head -c ${CUT}M "$G/thin/$name" >$G/a/ort.part0
  tail -c +$((CUT * 1048576 + 1)) "$G/thin/$name" >$G/b/ort.part1
  if [ ! -f $G/thin/rtx.tar.xz ]; then  # 234 MB of library: a minute
    rm -rf $G/x; mkdir $G/x; python3 -m zipfile -e $W/tensorrt_rtx_cu13_libs*.whl $G/x
    tar -C $G/x -cf - . | xz -T0 -6 >$G/thin/rtx.tar.xz; rm -rf $G/x
  fi
  head -c 34M $G/thin/rtx.tar.xz >$G/c/rtx.part0
  tail -c +$((34 * 1048576 + 1)) $G/thin/rtx.tar.xz >$G/d/rtx.part1
  cp $W/tensorrt_rtx_cu13-*.whl $W/tensorrt_rtx_cu13_bindings-*.whl $G/d/
  check
}

check() {
  local tree c n word
  tree=$({ git ls-files -z; git ls-files -z -o --exclude-standard; } | xargs -0 cat 2>/dev/null | wc -c)
  for c in a b c d; do
    n=$(du -sb $G/$c | cut -f1); word=
    if [ $((tree + n)) -gt $((LIMIT * 1048576)) ]; then word="  TOO LARGE"; fi
    echo "$c: tree $((tree / 1048576)) + carried $((n / 1048576)) of $LIMIT MiB$word"
  done
}

calls() {
  cat <<X
1  command: bash $K/call1.sh     carry: $G/a   limit: 600 s
2  command: bash $K/call2.sh     carry: $G/b   limit: 600 s
3  command: bash $K/call3.sh     carry: $G/c   limit: 600 s
4  command: bash $K/call4.sh     carry: $G/d   limit: 600 s
X
}

here() {
  export OUT; OUT=$(realpath -m "${1:-gpu-results}")
  export GPU_WORK=${GPU_WORK:-$OUT/work}
  local n
  for n in 1 2 3 4; do bash $K/call$n.sh; done
  echo "results: $OUT"
}

case ${1:-} in prepare | check | calls) "$1" ;; here) here "${2:-}" ;; *) sed -n 2,7p "$0"; exit 1 ;; esac
