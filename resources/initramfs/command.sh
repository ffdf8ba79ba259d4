# /.minivmm/command, which takes the place of the command's shell: the command's directory, or nothing, and its words. Busybox may prefer programs
# of its own to those in PATH, in `exec` and in all that begin others: hence a file is looked for here. Its own variables are not exported.
[ -z "$1" ] || cd "$1" || exit
shift
case $1 in
*/*)
    [ -x "$1" ] && [ ! -d "$1" ] && exec "$@"
    # The shell's reason, without the name of this file.
    minivmm_said=$(exec "$1" 2>&1) || minivmm_status=$?
    echo "minivmm: $1: ${minivmm_said##*: }" >&2
    exit "${minivmm_status:-126}"
    ;;
esac
minivmm_rest=$PATH: minivmm_status=127
while [ -n "$minivmm_rest" ]; do
    minivmm_file=${minivmm_rest%%:*}
    minivmm_file=${minivmm_file:-.}/$1 minivmm_rest=${minivmm_rest#*:}
    [ -f "$minivmm_file" ] || continue
    if [ -x "$minivmm_file" ]; then
        minivmm_name=$1
        shift
        # An old busybox (1.27, say) knows no `-a`. The program then gets its path as its name.
        (exec -a "$minivmm_name") 2>/dev/null || exec "$minivmm_file" "$@"
        exec -a "$minivmm_name" "$minivmm_file" "$@"
    fi
    minivmm_status=126
done
case $minivmm_status in
126) echo "minivmm: $1 cannot be executed: no file of that name in PATH may be" >&2 ;;
*)
    # There it is that of --root.
    case $0 in /run/*) minivmm_where=" in the directory of --root, in PATH=$PATH" ;; esac
    echo "minivmm: $1: not found$minivmm_where" >&2
    ;;
esac
exit $minivmm_status
