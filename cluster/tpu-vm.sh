#!/bin/bash
# One training run on a TPU pod slice of virtual machines (v5e-64), without Kubernetes.
#
#   PROJECT=... ZONE=us-west4-b MOUNT=10.0.0.2:/runs cluster/tpu-vm.sh create
#   PROJECT=... ZONE=us-west4-b cluster/tpu-vm.sh run train --config=configs/explicit.py:llama3_8b --workdir=/runs/explicit
#   PROJECT=... ZONE=us-west4-b cluster/tpu-vm.sh stop       every process saves and leaves; run again to continue
#   PROJECT=... ZONE=us-west4-b cluster/tpu-vm.sh delete
#
# MOUNT is an NFS share (Filestore) for workdirs: all hosts write checkpoints there. WHEEL is this project's wheel (python -m build).
set -euo pipefail

: "${PROJECT:?set PROJECT to a Google Cloud project}" "${ZONE:?set ZONE, e.g. us-west4-b}"
NAME=${NAME:-agentrm} KIND=${KIND:-v5litepod-64} RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} WHEEL=${WHEEL:-}
where=(--project="$PROJECT" --zone="$ZONE")

everywhere() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    : "${MOUNT:?set MOUNT to the NFS share for workdirs, e.g. 10.0.0.2:/runs}"
    gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" --accelerator-type="$KIND" --version="$RUNTIME"
    [[ -n $WHEEL ]] || WHEEL=$(ls dist/agentrm_jax-*.whl)
    gcloud compute tpus tpu-vm scp "$WHEEL" constraints.txt "$NAME:" "${where[@]}" --worker=all
    everywhere "sudo apt-get -qq install nfs-common python3-venv && sudo mkdir -p /runs && sudo mount $(printf %q "$MOUNT") /runs \
      && python3 -m venv env && env/bin/pip install -q -c constraints.txt \"\$(ls agentrm_jax-*.whl)[tpu]\""
    ;;
  run)
    shift
    [[ $# -gt 0 ]] || { echo "error: name the command, e.g. train --config=configs/sft.py --workdir=/runs/sft" >&2; exit 2; }
    everywhere "JAX_COORDINATOR_ADDRESS=auto JAX_COMPILATION_CACHE_DIR=/runs/xla env/bin/agentrm $(printf '%q ' "$@")"
    ;;
  stop) everywhere "pkill -TERM -f env/bin/agentrm || true" ;;
  delete) gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet ;;
  *)
    echo "error: name one of create, run, stop, delete" >&2
    exit 2
    ;;
esac
