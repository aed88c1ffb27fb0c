package node

import (
	"path"
	"strconv"

	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/sandbox"
)

// specOf merges the image's configuration with the service's, as Kubernetes
// does: command replaces the entrypoint and drops the image's arguments,
// args replaces only the arguments.
func (i *Instance) specOf(img *image.Image, can sandbox.Capabilities, link sandbox.Link) *sandbox.Spec {
	l := &i.launch
	rootfs := img.Rootfs
	if !can.RootfsXattrs {
		rootfs = img.RootfsNoXattrs
	}
	entrypoint, args := img.Config.Entrypoint, img.Config.Cmd
	if len(l.Command) > 0 {
		entrypoint, args = l.Command, nil
	}
	if len(l.Args) > 0 {
		args = l.Args
	}
	env := append([]string(nil), img.Config.Env...)
	env = append(env,
		"PORT="+strconv.Itoa(l.Port),
		"K_SERVICE="+l.Service, "K_CONFIGURATION="+l.Service, "K_REVISION="+l.Revision)
	env = append(env, l.Env...)
	return &sandbox.Spec{
		ID: i.id, Dir: i.node.sandboxDir(i.id), Rootfs: rootfs,
		Hostname: hostname(l.Revision, i.id),
		Process: sandbox.Process{
			Args: append(append([]string(nil), entrypoint...), args...),
			Env:  dedupEnv(env),
			Cwd:  first(l.WorkingDir, img.Config.WorkingDir, "/"),
			User: first(l.User, img.Config.User),
		},
		Resources: l.Resources,
		Link:      link,
		Cgroup:    path.Join(i.node.CgroupParent(), i.id),
		Stdout:    i.log.Stdout, Stderr: i.log.Stderr,
	}
}

// hostname is unique on the node, as a pod's name is, also among clones.
func hostname(revision, id string) string {
	const most = 63 // bytes, in DNS
	suffix := "-" + id[:8]
	return revision[:min(len(revision), most-len(suffix))] + suffix
}

// dedupEnv keeps the last value of each variable, at its first place.
func dedupEnv(env []string) []string {
	at := map[string]int{}
	var out []string
	for _, kv := range env {
		key := kv
		for k := range kv {
			if kv[k] == '=' {
				key = kv[:k]
				break
			}
		}
		if n, ok := at[key]; ok {
			out[n] = kv
			continue
		}
		at[key] = len(out)
		out = append(out, kv)
	}
	return out
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
