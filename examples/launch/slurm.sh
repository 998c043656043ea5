#!/usr/bin/env bash
#SBATCH --job-name=context-returns
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the end srun's processes get SIGTERM, finish their step and save it: longer than a step takes.
#SBATCH --signal=TERM@300
#
# Submit from the root of the checkout, on a file system that all nodes share:
#
#   sbatch examples/launch/slurm.sh configs/experiment/medical_qwen3-8b.yaml configs/strategy/zero2.yaml
#
# The first two arguments are the run's config and the strategy's; what follows goes to `fit`. One task for each GPU:
# --ntasks-per-node and --gpus-per-node are equal. NOT RUN: written against SLURM's and Lightning's documentation.
set -uo pipefail
config=$1 strategy=$2
shift 2
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}  # hundreds of processes shall not ask the hub; download the model before
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m cli fit --config "$config" --config "$strategy" \
  --trainer.accelerator gpu --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
  --ckpt_path auto "$@"
code=$?
if [ "$code" -eq 75 ]; then  # told to stop, and saved (docs/faults.md)
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
