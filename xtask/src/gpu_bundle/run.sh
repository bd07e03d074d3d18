#!/bin/sh
# Checks meshreduce on the GPUs of this machine. Needs an NVIDIA driver and nothing else.
#
#   run.sh [--quick] [--shared-device] [--soak-calls N] [--bench-bytes LIST] [--out DIR]
#
# Leaves report.json and report.md in DIR; ends with 1 if anything failed.
set -u

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit "$1"; }

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
out=
quick=
shared=
soak=
sizes=
asked="run.sh $*"
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=--quick ;;
        --shared-device) shared=--shared-device ;;
        --soak-calls | --bench-bytes | --out)
            [ $# -ge 2 ] || { echo "$1 needs a value" >&2; usage 2; }
            case $1 in
                --soak-calls) soak="--calls $2" ;;
                --bench-bytes) sizes="--bytes $2" ;;
                *) out=$2 ;;
            esac
            shift ;;
        -h | --help) usage 0 ;;
        *) echo "what is $1?" >&2; usage 2 ;;
    esac
    shift
done
when=$(date -u +%Y-%m-%dT%H:%M:%SZ)
[ -n "$out" ] || out=$PWD/meshreduce-report-$(date -u +%Y%m%d-%H%M%S)
mkdir -p "$out" || exit 2
out=$(CDPATH='' cd -- "$out" && pwd) || exit 2
rm -f "$out"/*.json "$out"/*.exit "$out"/*.log "$out"/report.md

# Ranks that share a GPU must not share a queue of it, and their kernels must be there before the first one runs.
export CUDA_DEVICE_MAX_CONNECTIONS=32 CUDA_MODULE_LOADING=EAGER
# The driver's compiler starts without anything cached, so that load times mean something.
export CUDA_CACHE_PATH="$out/jit-cache"

parts=
# part NAME SECONDS PROGRAM [ARGUMENT...]: runs a part for at most so long; whatever comes of it, the next one follows.
part() {
    name=$1
    limit=$2
    shift 2
    parts=${parts:+$parts,}$name
    {
        if command -v timeout >/dev/null; then
            timeout -k 10 "$limit" "$@"
        else
            "$@"
        fi
        code=$?
        [ "$code" -ne 124 ] || echo "ended after $limit seconds"
        echo "$code" >"$out/$name.exit"
    } </dev/null 2>&1 | tee "$out/$name.log"
}
check() {
    name=$1
    limit=$2
    shift 2
    # shellcheck disable=SC2086 # options that are not there are no arguments
    part "$name" "$limit" "$here/bin/gpu-check" "$name" $quick $shared --json "$out/$name.json" "$@"
}

echo "meshreduce, $when, into $out"
if command -v nvidia-smi >/dev/null; then
    # For whoever reads the report; what does not work of it is no failure.
    part nvidia-smi 60 sh -c 'nvidia-smi; nvidia-smi topo -m; true'
fi
check machine 60
check modules 300
check results 600
check collectives 600
check processes 300
check failures 300
check graphs 300
check nccl 600
check channels 900
# shellcheck disable=SC2086 # an option and its value
check soak 900 $soak
# Where the other parts ran, on the machine's own driver unless another one is asked for.
where=$("$here/bin/gpu-check" bench-options $shared) || where=$shared
[ -n "${MESHREDUCE_DRIVER:-}" ] || where="--node real $where"
[ -n "$sizes" ] || sizes=${quick:+--bytes 1KiB,16KiB}
bench() {
    name=$1
    shift
    # shellcheck disable=SC2086
    part "$name" 600 "$here/bin/meshreduce-bench" $where $sizes \
        --graph --csv "$out/$name.csv" --svg "$out/$name.svg" "$@"
}
bench bench
case $where$quick in
    *--shared-device) bench bench-8-ranks --ranks 8 ;;
esac
rm -rf "$out/jit-cache"

echo
"$here/bin/gpu-check" report --folder "$out" --parts "$parts" --when "$when" --command "$asked" \
    --manifest "$here/MANIFEST.json"
