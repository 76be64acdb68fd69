#!/usr/bin/env bash
# A Slurm of one node, to try things out: one-node.sh start DIR, then eval what it prints; one-node.sh stop DIR.
#
# Needs root and Debian's or Ubuntu's packages: apt-get install slurm-wlm munge
# Two partitions: "main", and "urgent", whose jobs preempt those of main. Everything is kept in DIR.
set -euo pipefail

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

stop() { # ends the daemons whose process numbers stand in the folder, and waits for them
    local name pid
    for name in slurmd slurmctld munged; do
        pid=$(cat "$1/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    done
}

[[ $# == 2 ]] || usage
mkdir -p "$2"
folder=$(cd "$2" && pwd)
case $1 in
stop)
    stop "$folder"
    exit
    ;;
start) ;;
*) usage ;;
esac

for tool in munged slurmctld slurmd; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || {
        echo "$0: no $tool: apt-get install slurm-wlm munge" >&2
        exit 2
    }
done
[[ $(id -u) == 0 ]] || {
    echo "$0: Slurm's daemons need root" >&2
    exit 2
}
stop "$folder"
PATH=$PATH:/usr/sbin
node=$(hostname -s)
mkdir -p "$folder"/{state,spool}
chmod 755 "$folder"

if [[ ! -e $folder/munge.key ]]; then
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
fi
munged --force --num-threads 2 --key-file "$folder/munge.key" --socket "$folder/munge.socket" \
    --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"

# Credentials expire soon, for that is how long a job that requeues itself has to wait.
cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=${SLURM_TRIAL_PORT:-6817}
SlurmdPort=$((${SLURM_TRIAL_PORT:-6817} + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=main Nodes=$node Default=YES PriorityTier=1 GraceTime=300
PartitionName=urgent Nodes=$node PriorityTier=2 PreemptMode=OFF
CONF

export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd
for _ in $(seq 100); do
    [[ $(sinfo --noheader --format %T 2>/dev/null | head -1) == idle ]] && break
    sleep 0.1
done
[[ $(sinfo --noheader --format %T | head -1) == idle ]] || {
    echo "$0: the node did not come up: see $folder/slurmctld.log and $folder/slurmd.log" >&2
    exit 1
}
echo "export SLURM_CONF=$SLURM_CONF"
