#!/usr/bin/env bash
# Sets up what is missing, then trains a GAT over the partitions of a graph, one process a partition.
#
#   bash scripts/train.sh [OPTIONS]       OPTIONS of examples/train_gat.py, for example --data cora; --help lists them
#
# SARC_RANKS sets the number of processes (4).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh pyg,metis

case " $* " in
    *" --help "* | *" -h "*) exec .venv/bin/python examples/train_gat.py --help ;;  # once, not once a process
esac

ranks="${SARC_RANKS:-4}"
cores="$(.venv/bin/python -c 'import os; print(os.cpu_count() or 1)')"
threads=$(( cores / ranks > 0 ? cores / ranks : 1 ))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
# torchrun by its module name: unlike the script, it survives a moved checkout.
exec .venv/bin/python -m torch.distributed.run --standalone --nproc-per-node "$ranks" examples/train_gat.py "$@"
