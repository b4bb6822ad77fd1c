// SPDX-License-Identifier: Apache-2.0

// A kubelet's hands, for tests: its own library for the Container Runtime Interface, and client-go's executors.
//
//	kube-client -socket PATH [-lists] life IMAGE FOLDER CGROUP   the life of a pod; a line for each answer
//	kube-client -socket PATH [-lists] list                       how many there are of each
//	kube-client [-way WAY] [-tty ROWSxCOLUMNS] stream URL        input and output at the CRI's URL; ends as the command
//	kube-client [-way WAY] forward URL PORT                      says where, until standard input ends
//
// -lists asks for lists in pieces; WAY is spdy, websocket or fallback.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	nooptrace "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
	streaming "k8s.io/streaming/pkg/httpstream"
	utilexec "k8s.io/utils/exec"
)

var (
	socket = flag.String("socket", "", "of the runtime")
	lists  = flag.Bool("lists", false, "ask for lists in pieces")
	way    = flag.String("way", "spdy", "spdy, websocket or fallback")
	tty    = flag.String("tty", "", "ROWSxCOLUMNS of a terminal")
)

func main() {
	flag.Parse()
	var err error
	code := 0
	switch flag.Arg(0) {
	case "life":
		err = (&house{image: flag.Arg(1), folder: flag.Arg(2), cgroup: flag.Arg(3)}).life()
	case "list":
		err = (&house{}).list()
	case "stream":
		code, err = stream(flag.Arg(1))
	case "forward":
		err = forward(flag.Arg(1), flag.Arg(2))
	default:
		err = fmt.Errorf("no such command: %q", flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
	os.Exit(code)
}

// The runtime

type house struct {
	image, folder, cgroup string
	runtime               internalapi.RuntimeService
	images                internalapi.ImageManagerService
}

func say(format string, values ...any) { fmt.Printf(format+"\n", values...) }

func (h *house) open(ctx context.Context) (err error) {
	tracing := nooptrace.NewTracerProvider()
	if h.runtime, err = remote.NewRemoteRuntimeService(ctx, "unix://"+*socket, 2*time.Minute, tracing, *lists); err != nil {
		return err
	}
	h.images, err = remote.NewRemoteImageService(ctx, "unix://"+*socket, 2*time.Minute, tracing, *lists)
	return err
}

func (h *house) list() error {
	ctx := context.Background()
	if err := h.open(ctx); err != nil {
		return err
	}
	pods, err := h.runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	containers, err := h.runtime.ListContainers(ctx, nil)
	if err != nil {
		return err
	}
	stats, err := h.runtime.ListContainerStats(ctx, nil)
	if err != nil {
		return err
	}
	podStats, err := h.runtime.ListPodSandboxStats(ctx, nil)
	if err != nil {
		return err
	}
	images, err := h.images.ListImages(ctx, nil)
	if err != nil {
		return err
	}
	say("pods %d containers %d stats %d of pods %d images %d", len(pods), len(containers), len(stats), len(podStats), len(images))
	return nil
}

func conditions(found []*cri.RuntimeCondition) string {
	var words []string
	for _, one := range found {
		if one.Type != "RuntimeReady" && one.Type != "NetworkReady" {
			continue // kubelet looks at these
		}
		words = append(words, fmt.Sprintf("%s=%t", one.Type, one.Status))
	}
	sort.Strings(words)
	return strings.Join(words, " ")
}

func (h *house) life() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := h.open(ctx); err != nil {
		return err
	}
	version, err := h.runtime.Version(ctx, "0.1.0")
	if err != nil {
		return err
	}
	say("version %s of %s, %s", version.Version, version.RuntimeName, version.RuntimeApiVersion)
	ready, err := h.runtime.Status(ctx, false)
	if err != nil {
		return err
	}
	say("status %s", conditions(ready.Status.Conditions))

	events := make(chan *cri.ContainerEventResponse, 100)
	connected := make(chan struct{})
	go func() {
		_ = h.runtime.GetContainerEvents(ctx, events, func(cri.RuntimeService_GetContainerEventsClient) { close(connected) })
	}()
	<-connected
	time.Sleep(200 * time.Millisecond) // what is called before its server has the request is not told of

	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "kubelet", Uid: "uid-kubelet", Namespace: "default", Attempt: 1},
		Hostname:     "host-kubelet",
		LogDirectory: filepath.Join(h.folder, "logs"),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.9.8.7"}, Searches: []string{"default.svc"}},
		Labels:       map[string]string{"app": "kubelet"},
		Annotations:  map[string]string{"note": "of the pod"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: h.cgroup,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	if err := os.MkdirAll(pod.LogDirectory, 0o755); err != nil {
		return err
	}
	podID, err := h.runtime.RunPodSandbox(ctx, pod, "")
	if err != nil {
		return err
	}
	told, err := h.runtime.PodSandboxStatus(ctx, podID, false)
	if err != nil {
		return err
	}
	say("pod %s %s address %t labels %v annotations %v", told.Status.Metadata.Name, told.Status.State,
		told.Status.Network.Ip != "", told.Status.Labels, told.Status.Annotations)

	image := &cri.ImageSpec{Image: h.image}
	found, err := h.images.ImageStatus(ctx, image, false)
	if err != nil {
		return err
	}
	say("image tags %v user %v pinned %t", found.Image.RepoTags, found.Image.Uid, found.Image.Pinned)
	_, err = h.images.PullImage(ctx, &cri.ImageSpec{Image: "127.0.0.1:9/none:1"}, nil, pod)
	say("pull refused %t", err != nil)

	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c", Attempt: 2},
		Image:    image,
		Command:  []string{"sh", "-c", "echo out; echo err >&2; trap 'exit 5' TERM; while :; do sleep 0.1; done"},
		Envs:     []*cri.KeyValue{{Key: "GIVEN", Value: []byte("by kubelet")}},
		Mounts:   []*cri.Mount{{ContainerPath: "/given", HostPath: h.folder, Readonly: true}},
		Labels:   map[string]string{"part": "c"},
		LogPath:  "c.log",
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{OomScoreAdj: 100},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				RunAsUser:          &cri.Int64Value{Value: 1000},
				SupplementalGroups: []int64{7, 8},
				NamespaceOptions:   &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				NoNewPrivs:         true,
			},
		},
	}
	id, err := h.runtime.CreateContainer(ctx, podID, config, pod)
	if err != nil {
		return err
	}
	if err := h.runtime.StartContainer(ctx, id); err != nil {
		return err
	}
	say("start again refused %t", h.runtime.StartContainer(ctx, id) != nil)
	state, err := h.runtime.ContainerStatus(ctx, id, false)
	if err != nil {
		return err
	}
	say("container %s %s attempt %d mounts %d log %t user %v", state.Status.Metadata.Name, state.Status.State,
		state.Status.Metadata.Attempt, len(state.Status.Mounts), strings.HasSuffix(state.Status.LogPath, "/logs/c.log"),
		state.Status.User.GetLinux())

	out, errOut, err := h.runtime.ExecSync(ctx, id, []string{"sh", "-c", "id; echo $GIVEN; hostname; cat /etc/resolv.conf; ls -d /given"}, 0)
	if err != nil {
		return err
	}
	say("exec %q %q", out, errOut)
	out, errOut, err = h.runtime.ExecSync(ctx, id, []string{"sh", "-c", "echo lost >&2; exit 3"}, 0)
	ended := utilexec.CodeExitError{}
	say("exec that fails %q %q %t %d", out, errOut, errors.As(err, &ended), ended.Code)
	_, _, err = h.runtime.ExecSync(ctx, id, []string{"sleep", "100"}, time.Second)
	say("exec in time %v", err)

	for _, filter := range []*cri.ContainerFilter{
		{PodSandboxId: podID}, {LabelSelector: map[string]string{"part": "c"}}, {Id: "none"},
	} {
		listed, err := h.runtime.ListContainers(ctx, filter)
		if err != nil {
			return err
		}
		say("listed %d", len(listed))
	}
	if err := os.Rename(state.Status.LogPath, state.Status.LogPath+".1"); err != nil {
		return err
	}
	if err := h.runtime.ReopenContainerLog(ctx, id); err != nil {
		return err
	}
	_, err = os.Stat(state.Status.LogPath)
	say("log reopened %t", err == nil)
	stats, err := h.runtime.ContainerStats(ctx, id)
	if err != nil {
		return err
	}
	say("stats of %s, processor %t", stats.Attributes.Metadata.Name, stats.Cpu != nil)
	podStats, err := h.runtime.PodSandboxStats(ctx, podID)
	if err != nil {
		return err
	}
	say("stats of pod %s, containers %d", podStats.Attributes.Metadata.Name, len(podStats.Linux.Containers))
	handlers, err := h.runtime.RuntimeConfig(ctx)
	if err != nil {
		return err
	}
	say("cgroup driver is told %t", handlers.Linux != nil)
	if err := h.runtime.UpdateRuntimeConfig(ctx, &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{}}); err != nil {
		return err
	}

	if err := h.runtime.StopContainer(ctx, id, 10); err != nil {
		return err
	}
	if state, err = h.runtime.ContainerStatus(ctx, id, false); err != nil {
		return err
	}
	say("ended %s %d %s", state.Status.State, state.Status.ExitCode, state.Status.Reason)
	if err := h.runtime.RemoveContainer(ctx, id); err != nil {
		return err
	}
	_, err = h.runtime.ContainerStatus(ctx, id, false)
	say("after its removal %s", status.Code(err))
	for _, what := range []func(context.Context, string) error{h.runtime.StopPodSandbox, h.runtime.RemovePodSandbox} {
		for range 2 { // the second time it is no error
			if err := what(ctx, podID); err != nil {
				return err
			}
		}
	}
	info, err := h.images.ImageFsInfo(ctx)
	if err != nil {
		return err
	}
	say("file systems of images %d, at %t", len(info.ImageFilesystems), info.ImageFilesystems[0].FsId.Mountpoint != "")

	for {
		select {
		case event := <-events:
			say("event %s of %s", event.ContainerEventType, map[bool]string{true: "the pod", false: "the container"}[event.ContainerId == podID])
			if event.ContainerEventType == cri.ContainerEventType_CONTAINER_DELETED_EVENT && event.ContainerId == podID {
				return nil
			}
		case <-time.After(20 * time.Second):
			say("events have ended")
			return nil
		}
	}
}

// Streams

type once struct{ size *remotecommand.TerminalSize }

func (o *once) Next() *remotecommand.TerminalSize {
	size := o.size
	o.size = nil
	return size
}

func executor(config *rest.Config, at *url.URL) (remotecommand.Executor, error) {
	old, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, at)
	if err != nil || *way == "spdy" {
		return old, err
	}
	new, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, at.String())
	if err != nil || *way == "websocket" {
		return new, err
	}
	return remotecommand.NewFallbackExecutor(new, old, func(err error) bool {
		fmt.Fprintln(os.Stderr, "falls back")
		return refused(err)
	})
}

// What kubectl goes back to SPDY for.
func refused(err error) bool {
	return httpstream.IsUpgradeFailure(err) || streaming.IsUpgradeFailure(err)
}

func stream(text string) (int, error) {
	at, err := url.Parse(text)
	if err != nil {
		return 0, err
	}
	runs, err := executor(&rest.Config{Host: at.Host}, at)
	if err != nil {
		return 0, err
	}
	options := remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if *tty != "" {
		size := &remotecommand.TerminalSize{}
		if _, err := fmt.Sscanf(*tty, "%dx%d", &size.Height, &size.Width); err != nil {
			return 0, err
		}
		options.Tty, options.Stderr, options.TerminalSizeQueue = true, nil, &once{size}
	}
	err = runs.StreamWithContext(context.Background(), options)
	var ended exec.CodeExitError
	if errors.As(err, &ended) {
		return ended.Code, nil
	}
	return 0, err
}

func dialer(config *rest.Config, at *url.URL) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at)
	if *way == "spdy" {
		return old, nil
	}
	new, err := portforward.NewSPDYOverWebsocketDialer(at, config)
	if err != nil || *way == "websocket" {
		return new, err
	}
	return portforward.NewFallbackDialer(new, old, refused), nil
}

func forward(text, port string) error {
	at, err := url.Parse(text)
	if err != nil {
		return err
	}
	dials, err := dialer(&rest.Config{Host: at.Host}, at)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dials, []string{"0:" + port}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		<-ready
		ports, err := forwarder.GetPorts()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		say("%d", ports[0].Local)
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return forwarder.ForwardPorts()
}
