#!/usr/bin/env bash
# A private, real SLURM on this machine: munge, slurmctld, slurmdbd on a MariaDB of its own, nodes n1 and n2.
#
#   cluster.sh up | down | status | env | kill-node NAME
#
# Everything lies in one folder ($KDSCALE_CLUSTER, by default below /tmp), listens on loopback, and reads and
# writes nothing in /etc. With root each node is a set of namespaces (its own host name and processes), so
# that `kill-node` is a whole machine lost. Without root there is one plain node.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
R=${KDSCALE_CLUSTER:-/tmp/kdscale-cluster-$(id -u)}
PORT=${KDSCALE_CLUSTER_PORT:-17300}  # the first of twenty
CPUS=${KDSCALE_CLUSTER_CPUS:-4}      # that each node claims to have
HOST=$(hostname -s)
export SLURM_CONF=$R/etc/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
root() { [ "$(id -u)" = 0 ]; }
alive() { [ -n "${1:-}" ] && [ -r "/proc/$1/stat" ] && ! grep -q '^State:.*[ZX] ' "/proc/$1/status"; }
pid_of() { cat "$R/pid/$1.pid" 2>/dev/null || true; }
accounts() { [ -z "${KDSCALE_CLUSTER_NO_ACCOUNTING:-}" ] && command -v slurmdbd mariadbd >/dev/null && root; }
nodes() { if root; then echo n1 n2; else echo n1; fi; }

wait_for() {  # WHAT SECONDS COMMAND...
    local what=$1 left=$(($2 * 20)); shift 2
    until "$@" >/dev/null 2>&1; do
        ((left-- > 0)) || die "$what did not come up; its log is in $R/log"
        sleep 0.05
    done
}

needs() {
    local missing=()
    for program in munged slurmctld slurmd sbatch; do command -v $program >/dev/null || missing+=("$program"); done
    [ ${#missing[@]} = 0 ] || die "missing: ${missing[*]}. On Debian or Ubuntu: apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server-core"
}

# --------------------------------------------------------------------------- files

write_config() {
    mkdir -p "$R"/{etc,munge,state,pid,log,db,spool/n1,spool/n2}
    chmod 755 "$R" "$R/munge"
    [ -s "$R/munge/key" ] || { (umask 077; head -c 1024 /dev/urandom >"$R/munge/key"); }
    { cat /etc/hosts; echo "127.0.0.1 n1"; echo "127.0.0.1 n2"; } >"$R/etc/hosts"
    echo "CgroupPlugin=cgroup/v1" >"$R/etc/cgroup.conf"
    : >"$R/etc/plugstack.conf"
    local user accounting="AccountingStorageType=accounting_storage/none"
    user=$(id -un)
    if accounts; then
        accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$R/munge/socket
AccountingStorageEnforce=limits
AccountingStorageTRES=cpu,mem,node"
        (umask 077; cat >"$R/etc/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$R/munge/socket
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
LogFile=$R/log/slurmdbd.log
PidFile=$R/pid/slurmdbd.pid
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CommitDelay=1
CONF
    fi
    cat >"$R/etc/slurm.conf" <<CONF
ClusterName=kdscale
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$R/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$R/state
SlurmdSpoolDir=$R/spool/%n
SlurmctldPidFile=$R/pid/slurmctld.pid
SlurmdPidFile=$R/pid/slurmd.%n.pid
SlurmctldLogFile=$R/log/slurmctld.log
SlurmdLogFile=$R/log/slurmd.%n.log
PlugStackConfig=$R/etc/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
# without this a preempted job is told by SIGTERM only, which submitit passes over
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
MinJobAge=300
WaitTime=0
MaxArraySize=1001
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
JobCompType=jobcomp/none
$accounting
$(for node in $(nodes); do
    echo "NodeName=$node NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 10 + ${node#n})) CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN"
done)
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

# --------------------------------------------------------------------------- daemons

start_munge() {
    alive "$(pid_of munged)" && return
    rm -f "$R"/munge/socket*
    munged --key-file="$R/munge/key" --socket="$R/munge/socket" --pid-file="$R/pid/munged.pid" \
        --log-file="$R/log/munged.log" --seed-file="$R/munge/seed" --force >/dev/null 2>&1
    wait_for munged 5 munge -n --socket="$R/munge/socket"
}

start_database() {
    accounts || return 0
    if ! alive "$(pid_of mariadbd)"; then
        local small=(--innodb-buffer-pool-size=16M)
        if [ ! -d "$R/db/data/mysql" ]; then
            rm -rf "$R/db/data"; mkdir -p "$R/db/data"
            { printf '%s\n' "create database if not exists mysql;" "use mysql;" "SET @auth_root_socket=NULL;"
              cat /usr/share/mysql/{mysql_system_tables,mysql_performance_tables,mysql_system_tables_data}.sql; } |
                mariadbd --no-defaults --user=root --bootstrap --datadir="$R/db/data" --basedir=/usr --log-warnings=0 \
                    --enforce-storage-engine= --max_allowed_packet=8M --net_buffer_length=16K \
                    --innodb-log-file-size=8M "${small[@]}" >"$R/log/bootstrap.log" 2>&1
        fi
        printf '%s\n' "CREATE DATABASE IF NOT EXISTS slurm_acct;" \
            "CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY 'slurm';" \
            "GRANT ALL ON slurm_acct.* TO 'slurm'@'localhost';" >"$R/db/init.sql"
        rm -f "$R/db/socket"
        setsid mariadbd --no-defaults --user=root --datadir="$R/db/data" --socket="$R/db/socket" \
            --pid-file="$R/pid/mariadbd.pid" --skip-networking --init-file="$R/db/init.sql" "${small[@]}" \
            --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --performance-schema=OFF \
            --max-connections=20 --aria-pagecache-buffer-size=1M --key-buffer-size=1M \
            </dev/null >"$R/log/mariadbd.log" 2>&1 &
        wait_for mariadbd 20 test -S "$R/db/socket"
    fi
    if ! alive "$(pid_of slurmdbd)"; then
        MYSQL_UNIX_PORT=$R/db/socket slurmdbd
        wait_for slurmdbd 20 sacctmgr -n show cluster
        if ! sacctmgr -n show cluster kdscale | grep -q kdscale; then
            sacctmgr -i add cluster kdscale >/dev/null
            sacctmgr -i add account users >/dev/null
            sacctmgr -i add user "$(id -un)" account=users >/dev/null
        fi
    fi
}

start_controller() {
    alive "$(pid_of slurmctld)" && return
    slurmctld
    wait_for slurmctld 10 sh -c 'scontrol ping | grep -q " UP"'
}

start_node() {
    local node=$1
    alive "$(pid_of "init.$node")" && return
    if root; then
        # the name's own init: when it dies, the kernel ends every process of the node with it
        setsid unshare --uts --mount --pid --fork --mount-proc --kill-child --propagation private \
            bash -c 'hostname "$1" && mount --bind "$2/etc/hosts" /etc/hosts && slurmd -D -N "$1" & wait $!; while wait -n; do :; done' \
            init "$node" "$R" </dev/null >"$R/log/node.$node.log" 2>&1 &
        local outside=$!
        echo "$outside" >"$R/pid/outside.$node.pid"
        wait_for "$node" 5 grep -q . "/proc/$outside/task/$outside/children"  # files of /proc have no size
        tr -d ' ' <"/proc/$outside/task/$outside/children" >"$R/pid/init.$node.pid"
    else
        setsid slurmd -D -N "$node" </dev/null >"$R/log/node.$node.log" 2>&1 &
        echo $! >"$R/pid/init.$node.pid"
    fi
}

ready() { [ "$(sinfo -h -N -p low -t idle,mix,alloc -o %N | sort -u | wc -l)" = "$(nodes | wc -w)" ]; }

end() {  # NAME: ask, then insist
    local pid tries
    pid=$(pid_of "$1")
    if alive "$pid"; then
        kill "$pid" 2>/dev/null || true
        for tries in $(seq 100); do alive "$pid" || break; sleep 0.05; done
        alive "$pid" && kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$R/pid/$1.pid"
}

# --------------------------------------------------------------------------- commands

up() {
    needs
    mkdir -p "$R/pid"
    exec 9>"$R/lock"; flock 9
    [ -f "$R/etc/slurm.conf" ] && alive "$(pid_of slurmctld)" || write_config
    {
        start_munge
        start_database
        start_controller
        for node in $(nodes); do start_node "$node"; done
    } 9>&-
    for node in $(nodes); do
        case $(sinfo -h -n "$node" -o %T | head -1) in
            *down* | *drain* | *fail*) scontrol update nodename="$node" state=resume 2>/dev/null || true ;;
        esac
    done
    wait_for "a node" 30 ready
    root || say "without root: one node, and no kill-node, no lost node, no second host to drill with"
    accounts || say "without accounting: sacct knows nothing (squeue and state files are enough for kdscale)"
    say "up in $R; eval \"\$($0 env)\" makes this shell use it"
}

down() {
    [ -d "$R/pid" ] || { say "not up"; return; }
    exec 9>"$R/lock"; flock 9
    if alive "$(pid_of slurmctld)"; then
        scancel --quiet --state=PENDING 2>/dev/null || true
        scancel --quiet --full --signal=KILL 2>/dev/null || true
        scancel --quiet 2>/dev/null || true
    fi
    for node in n1 n2; do
        for pid in "$(pid_of "init.$node")" "$(pid_of "outside.$node")"; do
            alive "$pid" && kill -9 "$pid" 2>/dev/null || true  # and with it every process of the node
        done
        rm -f "$R/pid/init.$node.pid" "$R/pid/outside.$node.pid" "$R/pid/slurmd.$node.pid"
    done
    for daemon in slurmctld slurmdbd mariadbd munged; do end $daemon; done
    say "down; $R keeps its state and logs (rm -r it when you like)"
}

status() {
    local daemon state
    for daemon in munged mariadbd slurmdbd slurmctld init.n1 init.n2; do
        state=down
        alive "$(pid_of $daemon)" && state="up (pid $(pid_of $daemon))"
        printf '%-10s %s\n' "${daemon#init.}" "$state"
    done
    if alive "$(pid_of slurmctld)"; then sinfo; squeue; fi
}

environment() {
    [ -f "$SLURM_CONF" ] || die "not up: $0 up"
    printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
    printf 'export PATH=%q:$PATH\n' /usr/sbin
}

kill_node() {
    root || die "kill-node needs root: without it a node is no machine of its own"
    local pid; pid=$(pid_of "init.$1")
    alive "$pid" || die "$1 is not up"
    kill -9 "$pid"
    rm -f "$R/pid/init.$1.pid"
    say "$1 is gone, with everything that ran on it; \`$0 up\` brings it back"
}

case ${1:-} in
    up) up ;;
    down) down ;;
    status) status ;;
    env) environment ;;
    kill-node) [ $# = 2 ] || die "kill-node NAME"; kill_node "$2" ;;
    *) sed -n '2,9p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; [ "${1:-}" = help ] || exit 2 ;;
esac
