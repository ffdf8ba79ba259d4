#!/bin/bash
# Reads what `cargo test` says and passes it on, without a line for each test that went well. Appends to the file $1 how long
# each test took: seconds, where, name. $2 is the number of threads that run tests (of the machine's processors otherwise).
#
# libtest says when a test ends, not when it starts. It starts tests in the order of their names: with N threads the first N
# at once, each further one when another has ended.
set -u
export LC_ALL=C
file=$1 threads=${2:-$(nproc)} where='' pending='' begin=0 names=() ends=()

ended() { names+=("$1") ends+=("${EPOCHREALTIME/./}"); }

write() {
    local at start took
    for at in "${!names[@]}"; do printf '%s %s\n' "${names[at]}" "${ends[at]}"; done | sort | {
        at=0
        while read -r name end; do
            start=$begin
            [ "$at" -lt "$threads" ] || start=${ends[at - threads]}
            took=$((end > start ? end - start : 0))
            printf '%d.%02d %s %s\n' $((took / 1000000)) $((took / 10000 % 100)) "$where" "$name"
            at=$((at + 1))
        done
    } >>"$file"
    names=() ends=()
}

while IFS= read -r line || [ -n "$line" ]; do
    # What the test itself says may stand between its name and its end.
    if [[ $line =~ ^test\ ([^ ]+)(\ -\ should\ panic)?\ \.\.\.\ (.*)$ ]]; then
        pending=${BASH_REMATCH[1]} rest=${BASH_REMATCH[3]}
        case $rest in
            ok | ignored*) ended "$pending"; pending=''; continue ;;
            FAILED) ended "$pending"; pending='' ;;
        esac
    elif [ -n "$pending" ] && [[ $line =~ ^(ok|FAILED)$ ]]; then
        ended "$pending"
        pending=''
        [ "$line" = FAILED ] || continue
    fi
    case $line in
        '   Compiling '* | '    Finished '* | '  Executable '* | '    Blocking '* | '') continue ;;
        '     Running '*)
            where=${line#*Running }
            where=${where#unittests }
            # A library's or program's own tests are known by its name alone.
            if [[ $where == src/* ]]; then where=${where##*/}; where=${where%-*}; else where=${where%% *}; fi
            continue ;;
        '   Doc-tests '*) where="documents of ${line##* }"; where=${where// /-}; continue ;;
        'running '*' test'*) begin=${EPOCHREALTIME/./}; continue ;;
        'test result:'*)
            write
            [[ $line == *' 0 passed; 0 failed; 0 ignored'* ]] && continue
            line="$where: ${line#test result: }" ;;
    esac
    printf '%s\n' "$line"
done
