#!/bin/sh
# Give a task of Slurm its place among the processes that train together, and become the command.
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_WORLD_SIZE="${SLURM_NTASKS_PER_NODE:-1}"
exec "$@"
