#!/usr/bin/env bash
# Second step of the action: publishes the image. The tool itself speaks to the runner
# (--github): annotations, summary, and the outputs of this step.
#
#   INPUT_IMAGE, INPUT_NAME, INPUT_BASE, INPUT_TAGS, INPUT_READERS, INPUT_KEEP,
#   INPUT_RECEIPT, INPUT_ENDPOINT                            the inputs of the action
#   OHAUTH, OHURI                         who publishes, and where without an endpoint
set -euo pipefail

fail() {
    printf '::error title=openhosting::%s\n' "$1"
    exit 2
}

[[ -n ${OHAUTH:-} ]] || fail 'OHAUTH is not set: give it to the step that uses the action, as env: from a secret'
[[ -n ${INPUT_NAME:-} ]] || fail 'The input name is missing'

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
[[ -z ${INPUT_ENDPOINT:-} ]] || flags+=("--endpoint=$INPUT_ENDPOINT")

exec openhosting publish --github "${flags[@]}" -- "$INPUT_IMAGE"
