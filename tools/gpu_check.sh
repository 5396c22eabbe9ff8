#!/usr/bin/env bash
# At most nine minutes on a machine with an NVIDIA GPU: bits, memory errors, times, a picture.
#
#     tools/gpu_check.sh BUNDLE OUT               # PYTHON=python3 has the package and onnxruntime-gpu
#     tools/gpu_check.sh --dry-run BUNDLE OUT     # the same steps on the CPU, small, without a GPU
#
# Each step writes OUT/NAME.txt and a line of OUT/summary.txt; a step that fails ends no other one.
# Exit code: the number of steps that failed. What is not installed is "not run", never "ok".
set -u -o pipefail

device=cuda few=() rounds=(--seconds 20)
shapes=(--shape 1024x1152x4608 --shape 4096x1152x4608 --shape 8192x3072x12288)
attention=(--attention 1x4096x16x72)
if [ "${1:-}" = --dry-run ]; then
  device=cpu few=(--few) rounds=(--rounds 1) shapes=(--shape 4x64x32) attention=(--attention 1x8x2x16)
  shift
fi
if [ $# -ne 2 ]; then
  echo "usage: tools/gpu_check.sh [--dry-run] BUNDLE OUT" >&2
  exit 2
fi
bundle=$1 out=$2 python=${PYTHON:-python3} failed=0
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out" || exit 2
: >"$out/summary.txt"
cli=("$python" -P -m fp4dit_onnx)
check=("$python" -P "$here/gpu_check.py")

note() { printf '%-10s %-14s %s\n' "$1" "$2" "$3" | tee -a "$out/summary.txt"; }

# step NAME SECONDS COMMAND...: the limits of all steps together are 540 seconds.
step() {
  local name=$1 limit=$2 code=0
  shift 2
  if ! command -v "$1" >/dev/null; then
    note "not run" "$name" "$1 is not installed"
    return
  fi
  SECONDS=0
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || code=$?
  case $code in
    0) note ok "$name" "$SECONDS s" ;;
    124) note FAILED "$name" "took longer than $limit s" ;;
    *) note FAILED "$name" "exit code $code: $(tail -n 1 "$out/$name.txt")" ;;
  esac
  [ "$code" -eq 0 ] || failed=$((failed + 1))
}

sanitizer=(compute-sanitizer --error-exitcode 9 --target-processes all)
step gpu 10 nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv
step doctor 30 "${cli[@]}" doctor
step bits 120 "${check[@]}" bits --device "$device" ${few[@]+"${few[@]}"}
step memcheck 70 "${sanitizer[@]}" --tool memcheck "${check[@]}" bits --device "$device" --few
step racecheck 90 "${sanitizer[@]}" --tool racecheck "${check[@]}" bits --device "$device" --few
step torch 30 "${check[@]}" torch --device "$device"
step operators 60 "${cli[@]}" bench "${shapes[@]}" "${attention[@]}" --device "$device" \
  "${rounds[@]}" --peer ort-float32 --peer ort-matmul-softmax
step verify 60 "${cli[@]}" verify "$bundle" --quick --device "$device"
step kernels 30 "${cli[@]}" generate "$bundle" --prompt "red apple" --device "$device" --overwrite \
  --library -o "$out/kernels.png"
step bodies 30 "${cli[@]}" generate "$bundle" --prompt "red apple" --device "$device" --overwrite \
  --no-library -o "$out/bodies.png"
exit "$failed"
