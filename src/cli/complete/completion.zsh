#compdef PROGRAM
# Zsh completion of PROGRAM, which prints what can follow the words that are typed.
function _clap_dynamic_completer_FUNCTION() {
    local completion value
    local -a completions dirs others
    completions=("${(@f)$( \
        _CLAP_IFS=$'\n' \
        _CLAP_COMPLETE_INDEX="$((CURRENT - 1))" \
        VARIABLE="zsh" \
        PROGRAM -- "${(Q)words[@]}" 2>/dev/null \
    )}")
    # The program knows no variables.
    if [[ -z $completions && "${words[CURRENT]}" == *'$'* ]]; then
        _files
        return
    fi
    for completion in $completions; do
        value="${completion%%:*}"
        if [[ "$value" == '~/'* ]]; then
            # The home directory, if the ~ is not quoted; _describe would quote it.
            value="~/${(q)${value#\~/}}"
            if [[ "$value" == */ ]]; then
                compadd -Q -S '/' -r '/' -- "${value%/}"
            else
                compadd -Q -- "$value"
            fi
        elif [[ "$value" == */ ]]; then
            dirs+=("${value%/}${completion#"$value"}")
        else
            others+=("$completion")
        fi
    done
    [[ -n $dirs ]] && _describe -V 'values' dirs -S '/' -r '/'
    [[ -n $others ]] && _describe -V 'values' others
}

compdef _clap_dynamic_completer_FUNCTION PROGRAM
# A file in fpath is run as a function at the first completion, so it also answers that one.
if [ "$funcstack[1]" = "_PROGRAM" ]; then
    _clap_dynamic_completer_FUNCTION "$@"
fi
