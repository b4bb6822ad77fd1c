// SPDX-License-Identifier: Apache-2.0

// A plugin of the Node Resource Interface for tests: it writes a line for each call, and changes each container.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct {
	lock sync.Mutex
	log  *os.File
}

func (p *plugin) say(format string, values ...any) {
	p.lock.Lock()
	defer p.lock.Unlock()
	fmt.Fprintf(p.log, format+"\n", values...)
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	p.say("Configure %q", config)
	return 0, nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, all []*api.Container) ([]*api.ContainerUpdate, error) {
	names := 0
	for _, one := range all {
		names += len(one.Name)
	}
	p.say("Synchronize %d %d %d", len(pods), len(all), names)
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.say("RunPodSandbox %s %s %s", pod.Name, pod.Namespace, pod.Uid)
	return nil
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.say("StopPodSandbox %s", pod.Name)
	return nil
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.say("RemovePodSandbox %s", pod.Name)
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, one *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.say("CreateContainer %s %v %s", one.Name, one.Args, one.State)
	if one.Annotations["refuse"] != "" {
		return nil, nil, fmt.Errorf("refused: %s", one.Annotations["refuse"])
	}
	adjust := &api.ContainerAdjustment{}
	adjust.AddEnv("NRI", "was here")
	adjust.RemoveEnv("GOES")
	adjust.AddAnnotation("nri", "was here")
	adjust.RemoveAnnotation("goes")
	adjust.AddMount(&api.Mount{Destination: "/nri", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=751"}})
	adjust.RemoveMount("/goes")
	adjust.AddRlimit("RLIMIT_NOFILE", 99, 77)
	adjust.AddDevice(&api.LinuxDevice{Path: "/dev/nri", Type: "c", Major: 1, Minor: 5})
	return adjust, nil, nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, one *api.Container) error {
	p.say("PostCreateContainer %s %s %s", one.Name, one.State, one.Annotations["nri"])
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, one *api.Container) error {
	p.say("StartContainer %s %s", one.Name, one.State)
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, one *api.Container) error {
	p.say("PostStartContainer %s %s", one.Name, one.State)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, one *api.Container, asked *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.say("UpdateContainer %s %d", one.Name, asked.Cpu.Shares.GetValue())
	update := &api.ContainerUpdate{}
	update.SetContainerId(one.Id)
	update.SetLinuxCPUShares(asked.Cpu.Shares.GetValue() + 5)
	return []*api.ContainerUpdate{update}, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, one *api.Container) error {
	p.say("PostUpdateContainer %s %d", one.Name, one.Linux.Resources.Cpu.Shares.GetValue())
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, one *api.Container) ([]*api.ContainerUpdate, error) {
	p.say("StopContainer %s", one.Name)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, one *api.Container) error {
	p.say("RemoveContainer %s", one.Name)
	return nil
}

func main() {
	socket := flag.String("socket", api.DefaultSocketPath, "where the runtime listens")
	index := flag.String("index", "10", "index")
	name := flag.String("name", "test", "name")
	path := flag.String("log", "", "file for a line of each call")
	flag.Parse()
	log, err := os.OpenFile(*path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		var made stub.Stub
		var options []stub.Option
		if os.Getenv(api.PluginSocketEnvVar) == "" { // else the runtime has started it, and says all of that
			options = append(options, stub.WithPluginName(*name), stub.WithPluginIdx(*index), stub.WithSocketPath(*socket))
		}
		made, err = stub.New(&plugin{log: log}, options...)
		if err == nil {
			err = made.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, "the plugin ends:", err)
	os.Exit(1)
}
