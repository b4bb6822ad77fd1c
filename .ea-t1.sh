export DOCKER_HOST=unix:///run/teu/teud.sock
t() { echo "--- $*"; timeout 30 "$@"; echo "[rc=$?]"; }
N="--network host"
t docker run --rm $N busybox sh -c 'exit 7'
t docker run --rm $N busybox nosuch
t docker run --rm $N busybox /etc/passwd
t docker run --rm $N nosuchimage:x true </dev/null
t docker run -d --name web $N busybox sleep 600
t docker ps
t docker exec web echo exec-ok
t docker exec web sh -c 'exit 9'
t docker exec web nosuch
echo input | t docker exec -i web cat
t docker exec -e A=b -w /tmp -u nobody web sh -c 'id; pwd; echo $A'
t docker top web
t docker inspect -f '{{.State.Status}} {{.State.Pid}}' web
t docker stop -t 1 web
t docker ps -a
t docker start web
t docker restart -t 1 web
t docker pause web
t docker ps
t docker unpause web
t docker rename web web2
t docker kill web2
t docker wait web2
t docker rm web2
t docker run --name l1 $N busybox sh -c 'for i in 1 2 3; do echo out$i; echo err$i >&2; done; printf partial'
t docker logs l1
t docker logs --tail 2 -t l1
journalctl CONTAINER_NAME=l1 -o cat --no-pager
t docker run --name l2 --log-driver json-file $N busybox sh -c 'for i in 1 2 3; do echo "out\"$i\\"; echo err$i >&2; done; printf partial'
t docker logs l2
t docker logs --tail 2 -t l2
cat /var/lib/teu/engine/containers/*/*-json.log
t docker run --name l3 --log-driver none $N busybox echo x
t docker logs l3
echo hello | t docker run --rm -i $N busybox cat
t docker run --rm $N -e FOO=bar -w /tmp -u 1000:1000 --hostname hh busybox sh -c 'id; pwd; echo $FOO; hostname; cat /etc/hostname; env'
t docker rm -f l1 l2 l3
t docker run --rm $N -v /tmp/bindx:/b -v vol:/v --tmpfs /t busybox sh -c 'touch /b/x /v/y /t/z; mount | grep -E " /(b|v|t) "'
ls /tmp/bindx
t docker run --rm $N --read-only busybox touch /x
t docker run --rm --privileged $N busybox sh -c 'grep Cap /proc/self/status'
t docker run --rm $N busybox sh -c 'grep -E "Cap|Seccomp" /proc/self/status; cat /proc/self/mounts; ls /proc/self/fd -l'
t docker run --rm --init $N busybox ps
t docker run --rm --network none busybox ip a
t docker run --rm $N --cap-drop ALL busybox sh -c 'grep Cap /proc/self/status'
t docker run --rm --memory 5m $N busybox true
t docker run --rm --name "bad name" $N busybox true
