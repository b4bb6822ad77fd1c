# SPDX-License-Identifier: Apache-2.0
"""The option table of `run` and `create` (see `options` for its form)."""

FLAGS = """
   --add-host           list        Add a line to the hosts file, NAME:ADDRESS or NAME:host-gateway
   --annotation         map         Pass an annotation to the OCI runtime
-a --attach             list        Attach to stdin, stdout or stderr
   --blkio-weight       uint16      Relative weight of block I/O, 10 to 1000, 0 for none
   --blkio-weight-device list       Weight for one device, PATH:WEIGHT
   --cap-add            list        Give a capability, or ALL
   --cap-drop           list        Take a capability away, or ALL
   --cgroup-parent      string      The slice (or cgroup path) to put the container into
   --cgroupns           string      Cgroup namespace: host or private
   --cidfile            string      Write the container's ID to this file, which must not exist
   --cpu-period         int         Length of the CFS period in microseconds
   --cpu-quota          int         CPU time per period in microseconds
   --cpu-rt-period      int         Length of the real-time period in microseconds
   --cpu-rt-runtime     int         Real-time CPU time per period in microseconds
-c --cpu-shares         int         Relative weight of CPU time
   --cpus               decimal     How many CPUs' worth of time the container may use, as 1.5
   --cpuset-cpus        string      CPUs to run on, as 0-3,5
   --cpuset-mems        string      Memory nodes to use, as 0-1
   --detach-keys        string      Keys that detach from the container (default ctrl-p,ctrl-q)
   --device             list        Give access to a device, HOST[:CONTAINER][:rwm], or a CDI name
   --device-cgroup-rule list        Allow devices by rule, `c 189:* rmw`
   --device-read-bps    list        Limit reading, PATH:BYTES per second
   --device-read-iops   list        Limit reading, PATH:OPERATIONS per second
   --device-write-bps   list        Limit writing, PATH:BYTES per second
   --device-write-iops  list        Limit writing, PATH:OPERATIONS per second
   --disable-content-trust bool=true  Must stay true: signatures are not checked
   --dns                list        Ask this name server
!  --dns-opt            list        Set an option of resolv.conf
   --dns-option         list        Set an option of resolv.conf
   --dns-search         list        Search this domain
   --domainname         string      NIS domain name
   --entrypoint         string      Run this instead of the image's entry point
-e --env                list        Set an environment variable, NAME=VALUE, or NAME to copy ours
   --env-file           list        Read environment variables from a file
   --expose             list        Note that the container listens on this port or range
   --gpus               gpu-request  Give access to GPUs: a number, `all`, or device=…
   --group-add          list        Join a further group
   --health-cmd         string      Command that tells whether the container is healthy
   --health-interval    duration    Time between two checks
   --health-on-failure  string      What is done when it becomes unhealthy: none, kill, restart or stop
   --health-retries     int         So many failures in a row mean unhealthy
   --health-start-interval duration  Time between two checks during the start period
   --health-start-period duration   Time after the start in which failures do not count
   --health-startup-cmd string      Command that tells whether it has started; the health check begins then
   --health-startup-interval string Time between two of those, as 5s
   --health-startup-retries int     So many failures in a row of that, and it is started anew; 0 for never
   --health-startup-success int     So many successes in a row mean started
   --health-startup-timeout string  Longest time for one of those
   --health-timeout     duration    Longest time for one check
   --help               bool        Show the help
-h --hostname           string      Host name inside the container
   --init               bool        Run a small init as process 1, which reaps children and passes signals on
-i --interactive        bool        Keep standard input open
!  --io-maxbandwidth    bytes       Windows only
!  --io-maxiops         int         Windows only
!  --cpu-count          int         Windows only
!  --cpu-percent        int         Windows only
   --ip                 string      IPv4 address on the network
   --ip6                string      IPv6 address on the network
   --ipc                string      IPC namespace: none, private, shareable, host or container:NAME
   --isolation          string      Isolation technology of the platform
   --kernel-memory      bytes       Accepted for docker's sake; the kernel has no such limit any more
-l --label              list        Attach a label, KEY=VALUE
   --label-file         list        Read labels from a file
   --link               list        Make another container known here, NAME[:ALIAS]
   --link-local-ip      list        Further link-local address
   --log-driver         string      Where the output goes: journald, json-file, syslog, …; see teu-logs(7)
   --log-opt            list        Set an option of the log driver, KEY=VALUE
   --mac-address        string      MAC address of the interface
-m --memory             bytes       Most memory the container may use, as 512m
   --memory-reservation bytes       Memory that is protected while the host is short of it
   --memory-swap        swap        Most memory and swap together, -1 for no limit on swap
   --memory-swappiness  int=-1      Preference for swapping, 0 to 100
   --mount              mount       Mount something, type=bind|volume|tmpfs|image,source=…,target=…[,readonly]…
   --name               string      Name of the container
!  --net                network     Connect to a network
!  --net-alias          list        Further name on the network
   --network            network     Network: NAME, none, host, container:NAME, or name=…,alias=…,ip=…
   --network-alias      list        Further name on the network
   --no-healthcheck     bool        Do not run the image's health check
   --oom-kill-disable   bool        Do not kill the container's processes when memory runs out
   --oom-score-adj      int         Preference of the OOM killer, -1000 to 1000
   --pid                string      PID namespace: host or container:NAME
   --pids-limit         int         Most processes, -1 for no limit
   --platform           string      Platform of the image, OS[/ARCH[/VARIANT]]
   --privileged         bool        Give all capabilities and devices
-p --publish            list        Publish a port, [ADDRESS:][HOSTPORT:]PORT[/tcp|udp|sctp], or target=…,source=…
-P --publish-all        bool        Publish every exposed port on a free port of the host
   --pull               string=missing  Pull the image first: always, missing or never
-q --quiet              bool        Do not show the progress of a pull
   --read-only          bool        Make the root file system read-only
   --restart            string=no   When to restart it: no, on-failure[:MOST], always or unless-stopped
   --rm                 bool        Remove the container and its anonymous volumes when it has ended
   --runtime            string      The OCI runtime to use
   --security-opt       list        seccomp=…, apparmor=…, label=…, no-new-privileges, systempaths=unconfined
   --shm-size           bytes       Size of /dev/shm
   --stop-signal        string      Signal that asks the container to stop
   --stop-timeout       int         Seconds between asking the container to stop and killing it
   --storage-opt        list        Set an option of the storage driver: size=BYTES, what may be written
   --sysctl             map         Set a namespaced kernel parameter, NAME=VALUE
   --tmpfs              list        Mount a tmpfs, PATH[:OPTIONS]
-t --tty                bool        Give the process a terminal
   --ulimit             ulimit      Set a resource limit, NAME=SOFT[:HARD]
-u --user               string      Run as this user, NAME|UID[:GROUP|GID]
   --userns             string      User namespace: host
   --uts                string      UTS namespace: host
-v --volume             list        Mount a volume or a folder of the host, [SOURCE:]PATH[:OPTIONS]
   --volume-driver      string      Driver for new volumes
   --volumes-from       list        Mount what another container mounts, NAME[:ro]
-w --workdir            string      Working directory of the process
"""
