#!/usr/bin/env bash
# Publishes an image with an array of Slurm, each task a part of it (docs/user/many-machines.md):
# puts two jobs into the queue, and tells the second one, which gives the drive its name.
#
#   publish.sh IMAGE NAME [SHARDS]      IMAGE is on a file system that all nodes see
#   OHURI, OHAUTH                       in the environment, which Slurm hands to the jobs;
#                                       what is in a script or a word of a command, others see
set -euo pipefail

image=$(realpath -- "${1:?"usage: publish.sh IMAGE NAME [SHARDS]"}")
name=${2:?"usage: publish.sh IMAGE NAME [SHARDS]"}
shards=${3:-8}
[[ $shards =~ ^[1-9][0-9]*$ ]] || { echo "publish.sh: $shards is no number of shards" >&2; exit 2; }
: "${OHURI:?OHURI is not set}" "${OHAUTH:?OHAUTH is not set}"
export OPENHOSTING_IMAGE=$image OPENHOSTING_NAME=$name OPENHOSTING_SHARDS=$shards

# A task that fails is put into the queue again by hand (scontrol requeue), or the whole
# array sent anew: what is done does nothing.
# shellcheck disable=SC2016  # the shell of the task expands it
array=$(sbatch --parsable --export=ALL --job-name=publish-shards --array="1-$shards" --requeue --wrap \
    'openhosting publish --name="$OPENHOSTING_NAME" --shard="$SLURM_ARRAY_TASK_ID/$OPENHOSTING_SHARDS" --progress=plain -- "$OPENHOSTING_IMAGE"')
# With several clusters it is JOB;CLUSTER.
array=${array%%;*}
# shellcheck disable=SC2016
sbatch --parsable --export=ALL --job-name=publish-join --dependency="afterok:$array" --kill-on-invalid-dep=yes --wrap \
    'openhosting publish --name="$OPENHOSTING_NAME" --join --progress=plain -- "$OPENHOSTING_IMAGE"'
