#!/bin/sh
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# vmcontext prolog|epilog: runs what a site has put on the medium labelled CONTEXT, on each boot:
#   prolog   «prolog.sh start» (HEPiX), before the network
#   epilog   «init.sh» (OpenNebula), then «epilog.sh start» (HEPiX), when all else is up
# context.sh is only lying there, for these scripts to read: cloud-init is who runs it.
set -u
medium=${VMCONTEXT_MEDIUM:-/dev/disk/by-label/CONTEXT}
point=${VMCONTEXT_DIRECTORY:-/mnt}
failed=0

# A script, by its name on the medium, and its arguments. Not every way to make a medium keeps permissions.
run() {
    name=$1
    shift
    [ -f "$point/$name" ] || return 0
    echo "vmcontext: runs $name"
    if [ -x "$point/$name" ]; then
        (cd "$point" && exec "./$name" "$@" </dev/null)
    else
        (cd "$point" && exec /bin/sh "./$name" "$@" </dev/null)
    fi
    code=$?
    [ "$code" -eq 0 ] && return 0
    echo "vmcontext: $name ended with $code" >&2
    failed=1
}

case ${1:-} in prolog | epilog) ;; *)
    echo "vmcontext: say prolog or epilog" >&2
    exit 2
    ;;
esac
[ -e "$medium" ] || exit 0
mkdir -p "$point" || exit 1
mount -t "${VMCONTEXT_TYPE:-iso9660}" -o ro,nosuid,nodev "$medium" "$point" || exit 1
# A script may have left something running there.
trap 'umount "$point" 2>/dev/null || umount --lazy "$point"' EXIT
trap 'exit 1' HUP INT TERM

if [ "$1" = prolog ]; then
    run prolog.sh start
else
    run init.sh
    run epilog.sh start
fi
exit "$failed"
