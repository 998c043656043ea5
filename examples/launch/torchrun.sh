#!/usr/bin/env bash
# One node, or the same line on every node, by torchrun. Run it from the root of the checkout:
#
#   examples/launch/torchrun.sh configs/quickstart.yaml configs/strategy/ddp.yaml --trainer.default_root_dir runs/x
#
# The first two arguments are the run's config and the strategy's; what follows goes to `fit`. For several nodes set
# NODES, NODE_RANK (0 is the first) and MASTER_ADDR (the first node's name) on each; the run's folder must be shared.
# It continues by itself: --ckpt_path auto, and up to RESTARTS new starts when a rank dies.
set -euo pipefail
config=$1 strategy=$2
shift 2
nodes=${NODES:-1}
processes=${PROCESSES_PER_NODE:-}
if [ -z "$processes" ]; then  # one for each GPU; else the accelerator is the config's own
  processes=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
  set -- --trainer.accelerator gpu "$@"
fi
if [ "$processes" -lt 1 ]; then
  echo "No GPU found: say how many CPU processes, PROCESSES_PER_NODE=2 $0 ..." >&2
  exit 2
fi
# The processes start at the same moment and import the same libraries: one thread each until the work begins.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$nodes" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$processes" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" --max-restarts "${RESTARTS:-0}" \
  -m cli fit --config "$config" --config "$strategy" \
  --trainer.num_nodes "$nodes" --trainer.devices "$processes" --ckpt_path auto "$@"
