#!/bin/sh
# Make the certificates of a small fleet: an authority, a coordinator, an operator and any number of hosts.
#
#   make-fleet.sh DIRECTORY COORDINATOR_ADDRESS NAME=ADDRESS...
#   make-fleet.sh ./pki ferry.example host-a=host-a.example host-b=192.0.2.12
#
# Then copy DIRECTORY/<host> to /etc/ferry/pki of that host, DIRECTORY/coordinator to that of the coordinator's, and
# DIRECTORY/operator to ~/.config/ferry/pki of whoever may move VMs. DIRECTORY/ca stays where nobody else comes.
set -eu

if [ $# -lt 3 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
directory=$1
coordinator=$2
shift 2

ferry pki init "$directory/ca"
ferry pki issue coordinator --role coordinator --address "$coordinator" --ca "$directory/ca"
ferry pki issue operator --role operator --ca "$directory/ca"
for host in "$@"; do
    ferry pki issue "${host%%=*}" --role agent --address "${host#*=}" --ca "$directory/ca"
done
