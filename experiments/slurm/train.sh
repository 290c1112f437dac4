#!/bin/bash
# Trains on Slurm, on as many nodes as the job has, one process a node:
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 experiments/slurm/train.sh \
#       --config=resnet50 --workdir=/shared/runs/resnet50
#
# Preempted, or two minutes before its time is up, the run saves and ends with exit code 75; the job
# then goes back into the queue, and continues where it stopped. The workdir has to be one that all
# nodes see. A process that dies ends the others within a minute.
#SBATCH --job-name=flaxcls
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

srun "${PYTHON:-python}" -m flaxcls train "$@"
code=$?
# 75: saved and stopped. The other two: a signal came before there was anything to save.
if [ $code = 75 ] || [ $code = 143 ] || [ $code = 138 ]; then
    echo "Requeued (exit code $code)."
    scontrol requeue "$SLURM_JOB_ID"
    # The requeue ends this script.
    sleep 60
fi
exit $code
