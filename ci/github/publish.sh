#!/usr/bin/env bash
# Second step of the action: publishes the image. The tool itself speaks to the runner
# (--github): annotations, summary, and the outputs of this step.
#
#   INPUT_IMAGE, INPUT_NAME, INPUT_BASE, INPUT_TAGS, INPUT_READERS, INPUT_KEEP,
#   INPUT_CLEANUP, INPUT_ATTEMPTS, INPUT_RECEIPT, INPUT_ENDPOINT    the inputs of the action
#   OHAUTH, OHURI                         who publishes, and where without an endpoint
set -euo pipefail

fail() {
    printf '::error title=openhosting::%s\n' "$1"
    exit 2
}

[[ -n ${OHAUTH:-} ]] || fail 'OHAUTH is not set: give it to the step that uses the action, as env: from a secret'
[[ -n ${INPUT_NAME:-} ]] || fail 'The input name is missing'
[[ ${INPUT_ATTEMPTS:=3} =~ ^[1-9][0-9]?$ ]] || fail 'The input attempts is not a number from 1 to 99'
[[ ${INPUT_CLEANUP:=false} =~ ^(true|false)$ ]] || fail 'The input cleanup is neither true nor false'

# The runner masks the secret as it was given, USER:KEY. From here on it masks the key
# alone as well, and what HTTP makes of both.
if [[ ${GITHUB_ACTIONS:-} == true && $OHAUTH == *:?* ]]; then
    for secret in "${OHAUTH#*:}" "$(printf %s "$OHAUTH" | base64 -w 0)"; do
        printf '::add-mask::%s\n' "${secret//'%'/%25}"
    done
fi

# With = a value is a value, whatever it begins with.
flags=("--name=$INPUT_NAME" "--base=${INPUT_BASE:-auto}")
# Spaces and line ends are between tags; no name of a file is meant by one.
read -r -d '' -a tags <<<"${INPUT_TAGS:-}" || true
for tag in "${tags[@]}"; do
    flags+=("--tag=$tag")
done
[[ -z ${INPUT_READERS:-} ]] || flags+=("--readers=$INPUT_READERS")
[[ -z ${INPUT_KEEP:-} ]] || flags+=("--keep=$INPUT_KEEP")
[[ -z ${INPUT_RECEIPT:-} ]] || flags+=("--receipt=$INPUT_RECEIPT")
endpoint=()
[[ -z ${INPUT_ENDPOINT:-} ]] || endpoint=("--endpoint=$INPUT_ENDPOINT")

# 75: it gave up for now, and the same command continues. Any other failure stays.
for ((attempt = 1; ; attempt++)); do
    code=0
    openhosting publish --github "${flags[@]}" "${endpoint[@]}" -- "$INPUT_IMAGE" || code=$?
    if [[ $code != 75 || $attempt == "$INPUT_ATTEMPTS" ]]; then
        break
    fi
    printf 'Attempt %s of %s gave up for now\n' "$attempt" "$INPUT_ATTEMPTS"
done
[[ $code == 0 ]] || exit "$code"

# Only now: before, it would remove what an earlier attempt of this image has sent.
if [[ $INPUT_CLEANUP == true ]]; then
    exec openhosting publish "--name=$INPUT_NAME" --cleanup "${endpoint[@]}"
fi
