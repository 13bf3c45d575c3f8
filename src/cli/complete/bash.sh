# Bash completion of PROGRAM, which prints what can follow the words that are typed.
# shellcheck shell=bash
_clap_complete_FUNCTION() {
    local index word output before=''
    local -a words=()
    # Bash makes three words of --flag=value. The program gets them as one.
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        # The last word ends at the cursor.
        if ((index == COMP_CWORD)) && [[ $word != '=' && ${BASH_VERSINFO[0]} -ge 4 ]]; then
            word=$2
            [[ $word == *[\'\"]* ]] || word=${word//\\/}
        fi
        if [[ $word == '=' && $before == --* && $before != *=* || $before == --*= ]]; then
            before+=$word
            words[${#words[@]} - 1]=$before
        else
            before=$word
            words+=("$word")
        fi
    done
    local space=true
    if compopt +o nospace 2> /dev/null; then
        space=false
    fi
    if ! output=$(
        _CLAP_IFS=$'\013' \
            _CLAP_COMPLETE_INDEX="$((${#words[@]} - 1))" \
            _CLAP_COMPLETE_COMP_TYPE="$COMP_TYPE" \
            _CLAP_COMPLETE_SPACE="$space" \
            VARIABLE="bash" \
            "PROGRAM" -- "${words[@]}"
    ); then
        unset COMPREPLY
        return
    fi
    IFS=$'\013' read -r -d '' -a COMPREPLY < <(printf '%s' "$output")
    # Of --flag=value, bash replaces the value only.
    if [[ $before == --*=* && ${COMP_WORDS[COMP_CWORD]} != --*=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${before%%=*}="}")
    fi
    if [[ $space == false && ${COMPREPLY-} =~ [=/:]$ ]]; then
        compopt -o nospace
    fi
    # The program knows no variables and no other users.
    if ((${#COMPREPLY[@]} == 0)) && [[ $2 == *'$'* || $2 == '~'* ]]; then
        compopt -o default 2> /dev/null
    fi
    # Bash quotes names of files, if it knows that they are some.
    for word in "${COMPREPLY[@]}"; do
        if [[ -e ${word/#\~\//$HOME/} ]]; then
            compopt -o filenames 2> /dev/null
            return
        fi
    done
}
if [[ ${BASH_VERSINFO[0]} -eq 4 && ${BASH_VERSINFO[1]} -ge 4 || ${BASH_VERSINFO[0]} -gt 4 ]]; then
    complete -o nospace -o nosort -F _clap_complete_FUNCTION PROGRAM
else
    complete -o nospace -F _clap_complete_FUNCTION PROGRAM
fi
